"""Look at a T1w file before anything is computed from it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import affines
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from bids_harmony.errors import ScanError

MIN_ZOOM_MM, MAX_ZOOM_MM = 0.2, 8.0
MIN_EXTENT_MM, MAX_EXTENT_MM = 80.0, 700.0
MAX_VOXELS = 2**28
MAX_NONFINITE = 0.01
#: Beyond this a value is as good as infinite: sums of squares would overflow.
MAX_VALUE = 1e15
#: Share of voxels below 0 that interpolation's ringing can explain.
MAX_NEGATIVE = 0.01
#: Bytes that may follow an image in its file: some programs write something there.
MAX_SURPLUS = 2**24
MAX_FILE = 8 * MAX_VOXELS + MAX_SURPLUS
AFFINE_TOLERANCE_MM = 1.0


def load_t1w(path: str | Path) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """Read a T1w scan, refuse what cannot be used, and bring it to RAS.

    Parameters
    ----------
    path : path-like
        A NIfTI file.

    Returns
    -------
    img : nibabel.Nifti1Image
        3-D float32 image in the closest RAS orientation (axes flipped or permuted, never
        resampled), all values finite.
    record : dict
        What was found and done: shape, voxel size, original orientation, header codes,
        number of non-finite values replaced, notes in plain words.

    Raises
    ------
    ScanError
        When the file is absent, unreadable, truncated, not 3-D, empty, mostly not finite, or
        its header makes no sense.
    """
    path = Path(path)
    name = path.name
    check_file(path)
    try:
        img = nib.load(path)
        shape = tuple(int(n) for n in img.shape)
        if np.prod(shape, dtype=float) > MAX_VOXELS:
            raise ScanError(
                f"{name} claims {' x '.join(map(str, shape))} voxels.",
                "Check how it was converted: no T1w scan is this large.",
            )
        _check_integrity(path, _claimed_bytes(img))
        data = np.asanyarray(img.dataobj)
    except ScanError:
        raise
    except (
        ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error,
    ) as error:  # fmt: skip
        raise ScanError(
            f"{name} cannot be read ({_first_line(error)}).",
            "The file is damaged, incomplete or not a NIfTI image: convert or download it again.",
        ) from error
    if np.iscomplexobj(data) or data.dtype.fields:
        raise ScanError(f"{name} is not a grey-scale image.", "Provide a magnitude T1w image.")
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3 or min(data.shape) < 8:
        raise ScanError(
            f"{name} is not a 3-D volume (its shape is {' x '.join(map(str, shape))}).",
            "Provide one 3-D T1w volume per file.",
        )

    notes: list[str] = []
    affine, codes = _usable_affine(img, name, notes)
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    extent = zooms * data.shape
    if not (
        _invertible(affine)
        and zooms.min() >= MIN_ZOOM_MM
        and zooms.max() <= MAX_ZOOM_MM
        and extent.min() >= MIN_EXTENT_MM
        and extent.max() <= MAX_EXTENT_MM
    ):
        raise ScanError(
            f"{name} has an impossible geometry: voxels of "
            f"{' x '.join(f'{z:.3g}' for z in zooms)} mm in a field of view of "
            f"{' x '.join(f'{e:.3g}' for e in extent)} mm.",
            "Correct the header's voxel size and affine (for example by converting it again).",
        )

    data = data.astype(np.float32)
    finite = np.abs(data) < MAX_VALUE
    n_nonfinite = int(data.size - finite.sum())
    if n_nonfinite > MAX_NONFINITE * data.size:
        raise ScanError(
            f"{n_nonfinite / data.size:.1%} of the voxels of {name} are NaN or infinite.",
            "Find the processing step that made them, and provide the scan from before it.",
        )
    if n_nonfinite:
        data[~finite] = 0
        notes.append(f"{n_nonfinite} voxels were NaN or infinite and were set to 0")
    if data.max() == data.min():
        raise ScanError(
            f"All voxels of {name} have the same value.", "Convert or download the scan again."
        )
    if np.mean(data < 0) > MAX_NEGATIVE:
        # Standardised intensities: what follows takes 0 for the background, so that tissue must
        # lie above it. A percentile, as single voxels may lie far below all others.
        lowest = float(np.percentile(data, 0.1))
        data = np.maximum(data - lowest, 0)
        notes.append(f"intensities below 0 were found; {-lowest:.4g} was added to all")

    clean = nib.Nifti1Image(data, affine)
    clean.set_qform(affine, 1)
    clean.set_sform(affine, 1)
    ras = nib.as_closest_canonical(clean)
    oblique = float(np.rad2deg(np.max(affines.obliquity(affine))))
    if oblique > 20:
        notes.append(f"the scan is oblique by {oblique:.0f} degrees")
    record = {
        "shape": [int(n) for n in data.shape],
        "voxel_size_mm": [round(float(z), 4) for z in zooms],
        "orientation": "".join(nib.aff2axcodes(affine)),
        "obliquity_deg": round(oblique, 2),
        "qform_code": codes[0],
        "sform_code": codes[1],
        "nonfinite_voxels": n_nonfinite,
        "notes": notes,
    }
    return ras, record


def check_file(path: Path) -> None:
    """Refuse what is seen without opening the file: nothing there, no file, far too large.

    Raises
    ------
    ScanError
    """
    name = path.name
    if not path.exists():
        if path.is_symlink():
            raise ScanError(
                f"{name} is a broken link: its content is not present.",
                "If the dataset is a DataLad or git-annex dataset, run `datalad get` on it.",
            )
        raise ScanError(f"{name} does not exist.", "Check the dataset.")
    if not path.is_file():
        # Reading a pipe would wait for ever.
        raise ScanError(f"{name} cannot be read (it is not a file).", "Check the dataset.")
    if (size := path.stat().st_size) > MAX_FILE:
        raise ScanError(
            f"{name} has {size / 1e9:.1f} GB, which no T1w scan has.",
            "Check how it was converted.",
        )


def _claimed_bytes(img: Any) -> float:
    """Bytes that the file of an image has by its header."""
    itemsize = img.get_data_dtype().itemsize
    return float(getattr(img.dataobj, "offset", 0) + itemsize * np.prod(img.shape, dtype=float))


def _check_integrity(path: Path, claimed: float) -> None:
    """Read a gzip file to its end, where its checksum is: nibabel stops before.

    Raises
    ------
    ScanError
        When the file goes on for much longer than its header claims.
    """
    if path.suffix == ".gz":
        n_bytes = 0
        with gzip.open(path) as file:
            while part := file.read(2**20):
                n_bytes += len(part)
                if n_bytes > claimed + MAX_SURPLUS:
                    raise ScanError(
                        f"{path.name} unpacks to more than the {claimed / 1e6:.1f} MB of its "
                        "header.",
                        "The file is damaged or not what it seems: convert or download it again.",
                    )


def _usable_affine(
    img: Any, name: str, notes: list[str]
) -> tuple[np.ndarray, tuple[int | None, int | None]]:
    """Choose the affine among sform and qform, recording any conflict."""
    if not hasattr(img, "get_qform"):
        return np.asarray(img.affine, dtype=float), (None, None)
    header = img.header
    qcode, scode = int(header["qform_code"]), int(header["sform_code"])
    if qcode == 0 and scode == 0:
        raise ScanError(
            f"{name} has neither sform nor qform, so left and right cannot be told apart.",
            "Convert it again from DICOM, or set its orientation (for example with fslorient).",
        )
    forms: dict[str, np.ndarray] = {}
    if scode:
        forms["sform"] = np.asarray(img.get_sform(), dtype=float)
    if qcode:
        try:
            forms["qform"] = np.asarray(img.get_qform(), dtype=float)
        except (HeaderDataError, ValueError):  # the latter for a quaternion longer than 1
            notes.append("the qform is not a valid rotation; the sform was used")
    if not forms:
        raise ScanError(
            f"{name} has no sform and its qform is not a valid rotation.",
            "Convert it again from DICOM.",
        )
    if len(forms) == 2 and not _invertible(forms["sform"]):
        notes.append("the sform is not an affine; the qform was used")
        return forms["qform"], (qcode, scode)
    affine = next(iter(forms.values()))
    if len(forms) == 2:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in img.shape[:3]])).reshape(3, -1).T
        shift = np.abs(
            affines.apply_affine(affine, corners) - affines.apply_affine(forms["qform"], corners)
        ).max()
        if not shift < AFFINE_TOLERANCE_MM:
            notes.append(f"sform and qform disagree by {shift:.1f} mm; the sform was used")
    return affine, (qcode, scode)


def _invertible(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
