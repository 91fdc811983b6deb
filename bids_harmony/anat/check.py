"""Check input images and load T1w scans in RAS orientation."""

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
from scipy import ndimage

from bids_harmony.anat.intensity import largest_component
from bids_harmony.errors import ScanError
from bids_harmony.files import pointer

#: Exceptions raised by nibabel for files that it cannot read.
READ_ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError,
               zlib.error)  # fmt: skip
#: Range of plausible voxel sizes, and the distance from the origin beyond which coordinates lose
#: precision, in mm.
MIN_ZOOM_MM, MAX_ZOOM_MM, MAX_ORIGIN_MM = 0.1, 12.0, 1e5
#: Minimum extent of a head scan along each axis, in mm.
MIN_EXTENT_MM = 80.0
#: Distance between sform and qform, in mm, from which a note is recorded.
MAX_SHIFT_MM = 1.0
#: Minimum voxel volume, as a fraction of the product of the voxel sizes; it is smaller if axes are
#: nearly parallel.
MIN_VOLUME = 0.1
#: Maximum fraction of non-background voxels that may be NaN or infinite, and the absolute value
#: from which voxels are treated as infinite because their squares may overflow.
MAX_NONFINITE, MAX_VALUE = 0.01, 1e15
#: Minimum fraction of voxels that hold a padding value, and maximum fraction of negative voxels
#: that is attributed to ringing.
MIN_PADDING, MAX_NEGATIVE = 0.001, 0.01
#: Maximum number of voxels, and of bytes after them in the file (some programs append data).
MAX_VOXELS, MAX_SURPLUS = 2**28, 2**24


def load_t1w(path: str | Path) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """Load a T1w scan in RAS orientation and check that it can be used.

    Parameters
    ----------
    path : path-like
        NIfTI file.

    Returns
    -------
    img : nibabel.Nifti1Image
        3-D float32 image in the closest RAS orientation (axes are flipped or permuted, never
        resampled). All values are finite; padding is 0.
    record : dict
        Findings: ``shape``, ``voxel_size_mm``, original ``orientation``, ``obliquity_deg``,
        ``nonfinite_voxels`` (number replaced), ``padding`` (values treated as background),
        ``voxels_sha256`` and ``notes``.

    Raises
    ------
    ScanError
        When the file is missing, unreadable, truncated, constant or not a 3-D real-valued image;
        when more than 1 % of the voxels outside the background are not finite; when the scan
        covers only a part of the head; or when its affine is invalid.
    """
    name = Path(path).name
    img, notes = load_image(path)
    data, affine = np.asarray(img.dataobj), img.affine
    # Hash the values, so that copies of an image are recognized however they are compressed.
    voxels = sha256(f"{data.shape}".encode() + data.tobytes()).hexdigest()
    bad = ~(np.abs(data) < MAX_VALUE)
    background = _replace_nonfinite(data, bad, name, notes)
    padding = find_padding(data, background)
    notes += [f"the padding value {value:g} was set to 0" for value in padding]
    background |= np.isin(data, padding)
    scanned = data[~background]
    if not scanned.size or scanned.max() == scanned.min():
        raise ScanError(
            f"All voxels of {name} have the same value.", "Convert or download the scan again."
        )
    # Later steps treat 0 as background, so tissue must be positive.
    data, added = lift(data, background)
    if added:
        notes.append(f"the scan has negative intensities: {added:.4g} was added to all voxels")
    (box,) = ndimage.find_objects((data != _background_value(data)).astype(np.uint8))
    lengths = [along.stop - along.start for along in box] * affines.voxel_sizes(affine)
    if lengths.min() < MIN_EXTENT_MM:
        covered = " x ".join(f"{length:.0f}" for length in lengths)
        raise ScanError(
            f"{name} covers only a part of the head: {covered} mm, less than "
            f"{MIN_EXTENT_MM:.0f} mm along an axis.",
            "Provide a scan of the whole head.",
        )
    oblique = float(np.rad2deg(np.max(affines.obliquity(affine))))
    if oblique > 20:
        notes.append(f"the scan is oblique by {oblique:.0f} degrees")
    return nib.as_closest_canonical(new_image(data, affine, 1)), {
        "shape": [int(n) for n in data.shape],
        "voxel_size_mm": [round(float(z), 4) for z in affines.voxel_sizes(affine)],
        "orientation": "".join(nib.aff2axcodes(affine)),
        "obliquity_deg": round(oblique, 2),
        "nonfinite_voxels": int(bad.sum()),
        "padding": padding,
        "voxels_sha256": voxels,
        "notes": notes,
    }


def new_image(data: np.ndarray, affine: np.ndarray, code: int) -> nib.Nifti1Image:
    """Create an image with the same sform and qform, of code 1 (scanner) or 4 (MNI)."""
    img = nib.Nifti1Image(data, affine)
    img.set_qform(affine, code)
    img.set_sform(affine, code)
    return img


def load_image(path: str | Path) -> tuple[nib.Nifti1Image, list[str]]:
    """Load a 3-D NIfTI image, dropping trailing axes of length one.

    Returns
    -------
    img : nibabel.Nifti1Image
        float32 values with a valid affine.
    notes : list of str
        Problems with the affine in the image's header.

    Raises
    ------
    ScanError
        When the file is missing, cannot be read, is not 3-D, or has no valid affine.
    """
    path = Path(path)
    check_file(path)
    try:
        img = nib.load(path)
        shape = " x ".join(map(str, img.shape))
        n_voxels = np.prod(img.shape, dtype=float)
        if not isinstance(img, nib.Nifti1Pair):
            raise ImageFileError("not a NIfTI image")
        if n_voxels > MAX_VOXELS:
            raise OverflowError(f"its header claims {shape} voxels")
        if path.suffix == ".gz":
            _unpack(path, n_voxels * img.get_data_dtype().itemsize + MAX_SURPLUS)
        data = np.asanyarray(img.dataobj)
    except READ_ERRORS as error:
        why = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise ScanError(
            f"{path.name} cannot be read ({why}).",
            "The file is damaged or not a NIfTI image: convert or download it again.",
        ) from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if np.iscomplexobj(data) or data.dtype.fields or data.ndim != 3 or min(data.shape) < 2:
        raise ScanError(
            f"{path.name} is not a 3-D image of real numbers (its shape is {shape}, its data type "
            f"{data.dtype.name}).",
            "Provide one 3-D volume of real numbers per file.",
        )
    affine, notes = usable_affine(img, path.name)
    return nib.Nifti1Image(data.astype(np.float32), affine), notes


def check_file(path: Path) -> None:
    """Check a file without opening it as an image.

    Raises
    ------
    ScanError
        When the file is missing, a pointer whose content is not present (git-annex, Git LFS), or
        not a regular file.
    """
    if why := pointer(path):
        remedy = "Fetch its content and repeat the command."
        raise ScanError(f"{path.name} cannot be read: {why}.", remedy)
    if not path.is_file():  # reading a pipe would block forever
        why = "cannot be read (it is not a file)" if path.exists() else "does not exist"
        raise ScanError(f"{path.name} {why}.", "Check the dataset, and how it was converted.")


def _unpack(path: Path, limit: float) -> None:
    """Read a gzip file to its end to verify its checksum, where nibabel stops earlier."""
    n_bytes = 0
    with gzip.open(path) as file:
        while part := file.read(2**20):
            n_bytes += len(part)
            if n_bytes > limit:
                raise OverflowError("it unpacks to more than its header claims")


def usable_affine(img: nib.Nifti1Pair, name: str) -> tuple[np.ndarray, list[str]]:
    """Return an image's affine: its sform if that is valid, otherwise its qform.

    Parameters
    ----------
    img : nibabel.Nifti1Pair
        Image as loaded.
    name : str
        File name, for messages.

    Returns
    -------
    affine : numpy.ndarray
        4 x 4 affine.
    notes : list of str
        Remarks on an invalid form, or on forms that disagree.

    Raises
    ------
    ScanError
        When neither sform nor qform is set and valid.
    """
    forms = {"sform": img.get_sform()} if img.header["sform_code"] else {}
    try:
        forms |= {"qform": img.get_qform()} if img.header["qform_code"] else {}
    except (HeaderDataError, ValueError):  # the quaternion is not a rotation
        forms["qform"] = np.full((4, 4), np.nan)
    if not forms:
        raise ScanError(
            f"{name} has neither sform nor qform, so its orientation is unknown.",
            "Convert it again from DICOM, or set its orientation (for example with fslorient).",
        )
    faults = {form: fault for form, matrix in forms.items() if (fault := _fault(matrix))}
    usable = [form for form in forms if form not in faults]
    if not usable:
        why = ", and ".join(f"the {form} {fault}" for form, fault in faults.items())
        raise ScanError(
            f"{name} has no valid affine: {why}.",
            "Correct the header's voxel size and affine (for example by converting it again).",
        )
    notes = [f"the {form} {fault}; the {usable[0]} was used" for form, fault in faults.items()]
    if len(usable) == 2:
        corners = np.argwhere(np.ones((2, 2, 2))) * (np.array(img.shape[:3]) - 1)
        ends = [affines.apply_affine(matrix, corners) for matrix in forms.values()]
        if (shift := np.abs(ends[0] - ends[1]).max()) >= MAX_SHIFT_MM:
            notes.append(f"sform and qform disagree by {shift:.1f} mm; the sform was used")
    return np.asarray(forms[usable[0]], dtype=float), notes


def _fault(affine: np.ndarray) -> str:
    """Describe why a matrix is not a valid affine; return an empty string if it is."""
    sizes = affines.voxel_sizes(affine)
    finite = np.isfinite(affine).all()
    if not finite or abs(np.linalg.det(affine[:3, :3])) < MIN_VOLUME * sizes.prod():
        return "is singular or not finite"
    if sizes.min() < MIN_ZOOM_MM or sizes.max() > MAX_ZOOM_MM:
        return f"has voxels of {' x '.join(f'{size:.3g}' for size in sizes)} mm"
    if (away := np.abs(affine[:3, 3]).max()) > MAX_ORIGIN_MM:
        return f"has an origin at a distance of {away / 1000:.3g} m"
    return ""


def _replace_nonfinite(
    data: np.ndarray, bad: np.ndarray, name: str, notes: list[str]
) -> np.ndarray:
    """Set bad voxels to 0 in place; return a mask of those that surround the head or brain."""
    around = np.zeros_like(bad)
    some = MAX_NONFINITE < bad.mean() < 1 - MAX_NONFINITE
    if some and largest_component(~bad).sum() > 0.9 * np.sum(~bad):
        around = _at_border(bad)  # around the head, not within it
    if (share := np.sum(bad & ~around) / np.sum(~around)) > MAX_NONFINITE:
        raise ScanError(
            f"{share:.1%} of the voxels of {name} that are not background are NaN or infinite.",
            "Provide the scan from before the processing step that produced them.",
        )
    data[bad] = 0
    if bad.any():
        notes.append(f"{int(bad.sum())} voxels were NaN or infinite and were set to 0")
    return around


def find_padding(data: np.ndarray, background: np.ndarray) -> list[float]:
    """Find constant values used as padding outside the field of view, such as -1000 or 65535.

    Candidates are non-zero values in the volume's corners that at least 0.1 % of the voxels hold.
    A candidate is padding if its distance to the range of all other values exceeds the width of
    that range, or if it is negative while the other values are not. The constant background of
    standardized scans meets neither condition.

    Parameters
    ----------
    data : numpy.ndarray
        3-D, finite values.
    background : numpy.ndarray
        Boolean mask of known background voxels, which are ignored.

    Returns
    -------
    list of float
        Padding values; empty if there are none.
    """
    corners = np.ix_(*[(0, -1)] * 3)
    constants = [
        value
        for value in np.unique(data[corners][~background[corners]])
        if value != 0 and np.mean(data == value) >= MIN_PADDING
    ]
    rest = data[~(np.isin(data, constants) | background)]
    if not constants or not rest.size:
        return []
    low, high = np.percentile(rest, (0.1, 99.9))
    positive = np.mean(rest < 0) <= MAX_NEGATIVE
    return [
        float(value)
        for value in constants
        if (value < 0 and positive) or max(low - value, value - high) > high - low
    ]


def lift(data: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, float]:
    """Shift standardized intensities above 0, which marks the background in later steps.

    Parameters
    ----------
    data : numpy.ndarray
        3-D, finite values.
    background : numpy.ndarray
        Boolean mask of known background voxels.

    Returns
    -------
    lifted : numpy.ndarray
        ``data`` with 0 in the background. If intensities were shifted, none is below 0.
    added : float
        Constant added to all intensities; 0 if at most 1 % of them were negative.
    """
    if np.mean(data[~background] < 0) <= MAX_NEGATIVE:
        return np.where(background, 0, data), 0.0
    surround = _at_border(data == _background_value(data)) & ~background
    background = background | surround
    # Use a percentile rather than the minimum, which may be an outlier.
    lowest = float(np.percentile(data[~background], 0.1))
    if surround.any():  # higher than the minimum if a scan was standardized within the brain
        lowest = min(lowest, float(data[surround][0]))
    return np.where(background, 0, np.maximum(data - lowest, 0)), -lowest


def _background_value(data: np.ndarray) -> float:
    """Return the value that at least half of the volume's face voxels hold; NaN if none."""
    faces = np.concatenate([data.take(i, axis).ravel() for axis in range(3) for i in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    return float(values[counts.argmax()]) if counts.max() >= 0.5 * counts.sum() else np.nan


def _at_border(mask: np.ndarray) -> np.ndarray:
    """Keep the parts of a mask that are connected to the volume's faces."""
    return np.asarray(~ndimage.binary_fill_holes(~mask))
