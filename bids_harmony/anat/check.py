"""Look at a T1w file before anything is computed from it."""

from __future__ import annotations

import gzip
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import affines
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from scipy.spatial import ConvexHull, QhullError

from bids_harmony.anat.background import background_value, find_padding, lift, surrounding
from bids_harmony.anat.geometry import (
    REMEDY,
    in_mm,
    open_image,
    usable_affine,
    without_single_axes,
)
from bids_harmony.errors import ScanError
from bids_harmony.text import pointer

MIN_ZOOM_MM, MAX_ZOOM_MM = 0.2, 8.0
#: A brain is longer than this in every direction, and no field of view than the other.
MIN_EXTENT_MM, MAX_EXTENT_MM = 80.0, 700.0
MAX_VOXELS = 2**28
MAX_NONFINITE = 0.01
#: Beyond this a value is as good as infinite: sums of squares would overflow.
MAX_VALUE = 1e15
#: Bytes that may follow an image in its file: some programs write something there.
MAX_SURPLUS = 2**24
MAX_FILE = 8 * MAX_VOXELS + MAX_SURPLUS
DIRECTIONS = {"R": "left to right", "A": "back to front", "S": "bottom to top"}


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
        number of non-finite values replaced, values found as padding, notes in plain words.

    Raises
    ------
    ScanError
        When the file is absent, unreadable, truncated, not 3-D, empty, not finite within the
        head, covers a part of it alone, or its header makes no sense.
    """
    path = Path(path)
    name = path.name
    check_file(path)
    try:
        img = open_image(path)
        shape = tuple(int(n) for n in img.shape)
        if np.prod(shape, dtype=float) > MAX_VOXELS:
            raise ScanError(
                f"{name} claims {' x '.join(map(str, shape))} voxels.",
                "Check how it was converted: no T1w scan is this large.",
            )
        _check_integrity(path, _claimed_bytes(img))
        data = without_single_axes(img)
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
    if data.ndim != 3 or min(data.shape) < 2:
        raise ScanError(
            f"{name} is not a 3-D volume (its shape is {' x '.join(map(str, shape))}).",
            "Provide one 3-D T1w volume per file.",
        )

    affine, codes, notes = usable_affine(img, name)
    zooms = affines.voxel_sizes(affine)
    extent = zooms * data.shape
    possible = zooms.min() >= MIN_ZOOM_MM and zooms.max() <= MAX_ZOOM_MM
    if not possible or extent.max() > MAX_EXTENT_MM:
        raise ScanError(
            f"{name} has an impossible geometry: voxels of {in_mm(zooms)} mm in a field of view "
            f"of {in_mm(extent)} mm.",
            REMEDY,
        )
    _check_coverage(np.ones(data.shape, dtype=bool), affine, name)

    data = data.astype(np.float32)
    # Of the values, so that an image is known again in a file that was compressed in another way.
    voxels = sha256(f"{data.shape}".encode() + data.tobytes()).hexdigest()
    bad = ~(np.abs(data) < MAX_VALUE)
    n_nonfinite = int(bad.sum())
    outside = surrounding(bad) if n_nonfinite > MAX_NONFINITE * data.size else np.zeros_like(bad)
    n_inside = n_nonfinite - int(outside.sum())
    if n_inside > MAX_NONFINITE * (data.size - outside.sum()):
        raise ScanError(
            f"{n_inside / (data.size - outside.sum()):.1%} of the voxels of {name} that are not "
            "background are NaN or infinite.",
            "Find the processing step that made them, and provide the scan from before it.",
        )
    if n_nonfinite:
        data[bad] = 0
    if n_inside:
        notes.append(f"{n_inside} voxels were NaN or infinite and were set to 0")
    if outside.any():
        notes.append(
            f"{int(outside.sum())} voxels around the brain were NaN or infinite and were set to "
            "0, as background"
        )
    padding, constants = find_padding(data, outside)
    outside |= padding
    for value in constants:
        notes.append(
            f"the value {value:g} outside the field of view was taken as padding and set to 0"
        )
    scanned = data[~outside]
    if not scanned.size or scanned.max() == scanned.min():
        raise ScanError(
            f"All voxels of {name} have the same value.", "Convert or download the scan again."
        )
    # What follows takes 0 for the background, so that tissue must lie above it.
    data, added = lift(data, outside)
    if added:
        notes.append(f"intensities below 0 were found; {added:.4g} was added to all")
    # Where the faces hold no constant (None), everything was scanned.
    _check_coverage(data != background_value(data), affine, name)

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
        "padding": constants,
        "voxels_sha256": voxels,
        "notes": notes,
    }
    return ras, record


def _check_coverage(scanned: np.ndarray, affine: np.ndarray, name: str) -> None:
    """Refuse a slab.

    Raises
    ------
    ScanError
        When what was scanned is too thin for a brain in some direction.
    """
    short = []
    for axis, code in enumerate(nib.aff2axcodes(affine, (("R", "R"), ("A", "A"), ("S", "S")))):
        along = np.flatnonzero(scanned.any(axis=tuple({0, 1, 2} - {axis})))
        length = (
            (along[-1] + 1 - along[0]) * affines.voxel_sizes(affine)[axis] if along.size else 0
        )
        if length < MIN_EXTENT_MM:
            short.append(f"{length:.0f} mm from {DIRECTIONS[code]}")
    if not short and (length := _thickness(scanned, affine)) < MIN_EXTENT_MM:
        short.append(f"{length:.0f} mm across an oblique slab")
    if short:
        raise ScanError(
            f"{name} covers a part of the head only: {' and '.join(short)}, where at least "
            f"{MIN_EXTENT_MM:.0f} mm are needed.",
            "Provide a scan of the whole head.",
        )


def _thickness(scanned: np.ndarray, affine: np.ndarray) -> float:
    """Length in mm of what was scanned in the direction, oblique or not, where it is shortest."""
    columns = scanned.any(axis=2)
    first = scanned.argmax(axis=2)[columns]
    end = scanned.shape[2] - scanned[..., ::-1].argmax(axis=2)[columns]
    where = np.argwhere(columns)
    ends = np.vstack([np.column_stack([where, along]) for along in (first, end)])
    try:
        hull = ConvexHull(ends @ affine[:3, :3].T)
    except QhullError:  # a flat set of voxels
        return 0.0
    a, b, c = hull.points[hull.simplices].transpose(1, 0, 2)
    # The flat sides of a slab are among the largest of its hull.
    largest = np.argsort(np.linalg.norm(np.cross(b - a, c - a), axis=1))[-500:]
    sides = hull.equations[largest]
    across = hull.points[hull.vertices] @ sides[:, :3].T + sides[:, 3]
    return float(-across.min(axis=0).max())


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
    if why := pointer(path):
        cause, _, command = why.partition(": run ")
        raise ScanError(f"{name} is no image: {cause}.", f"Run {command}, then the same again.")
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
