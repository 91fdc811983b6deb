"""Where an image's voxels lie: the affine that every reader of a user's image takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel import affines
from nibabel.arrayproxy import ArrayProxy
from nibabel.fileholders import FileHolderError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from bids_harmony.errors import ScanError

#: Voxel sizes of any image of a head; those of a usable scan are checked with the scan.
MIN_ZOOM_MM, MAX_ZOOM_MM = 0.05, 20.0
AFFINE_TOLERANCE_MM = 1.0
#: Voxel sizes of a sform that differ more from the header's own are wrong; a sform that scales to
#: a template differs less.
MAX_SCALING = 1.5
#: Volume of a voxel, as a share of the box with its edges' lengths, below which axes coincide.
MIN_VOLUME = 0.1
#: Farther from the origin, in mm, positions lose their digits.
MAX_ORIGIN_MM = 1e5

REMEDY = "Correct the header's voxel size and affine (for example by converting it again)."


class Geometry(NamedTuple):
    """The affine of an image, the qform and sform codes of its header, and what was wrong."""

    affine: np.ndarray
    codes: tuple[int | None, int | None]
    notes: list[str]


def load_image(path: str | Path) -> tuple[nib.Nifti1Image, list[str]]:
    """Open a 3-D image with its usable affine; trailing axes of one are dropped.

    Parameters
    ----------
    path : path-like
        Any format that nibabel knows.

    Returns
    -------
    img : nibabel.Nifti1Image
        Its data as they are stored.
    notes : list of str
        What was wrong with the header.

    Raises
    ------
    ScanError
        When the header gives no usable affine. What nibabel raises passes.
    """
    img = open_image(path)
    affine, _, notes = usable_affine(img, Path(path).name)
    data = img.dataobj if img.ndim == 3 else without_single_axes(img)
    return nib.Nifti1Image(data, affine, dtype=img.get_data_dtype()), notes


def open_image(path: str | Path) -> Any:
    """Load an image as nibabel does, also where its only form is no rotation.

    What nibabel raises for files that it cannot read passes.
    """
    try:
        return nib.load(path)
    except ValueError as error:
        if not str(error).startswith("w2 "):  # nibabel's words for a quaternion longer than 1
            raise
    with ImageOpener(path) as file:
        header = nib.Nifti1Header.from_fileobj(file)
    return nib.Nifti1Image(ArrayProxy(str(path), header), None, header)


def without_single_axes(img: Any) -> np.ndarray:
    """Read an image's data without axes of one behind the third."""
    data: np.ndarray = np.asanyarray(img.dataobj)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    return data


def usable_affine(img: Any, name: str) -> Geometry:
    """Choose the affine of an image: its sform if that makes sense, otherwise its qform.

    Parameters
    ----------
    img : nibabel image
        As loaded.
    name : str
        The file's name, for messages.

    Raises
    ------
    ScanError
        When neither form is set or neither makes sense.
    """
    if not hasattr(img, "get_qform"):
        affine = np.asarray(img.affine, dtype=float)
        if fault := _fault(affine):
            raise ScanError(f"{name} has an impossible geometry: its affine {fault}.", REMEDY)
        return Geometry(affine, (None, None), [])
    header = _header_as_stored(img)
    codes = int(img.header["qform_code"]), int(img.header["sform_code"])
    sizes = np.asarray(header["pixdim"][1:4], dtype=float)
    if codes == (0, 0):
        unused = "Its sform has code 0, which marks it as unused: set the code if it is right. "
        raise ScanError(
            f"{name} has neither sform nor qform, so left and right cannot be told apart.",
            ("" if _fault(img.get_sform()) else unused)
            + "Convert it again from DICOM, or set its orientation (for example with fslorient).",
        )
    notes: list[str] = []
    forms: dict[str, np.ndarray] = {}
    repairs: list[str] = []
    if codes[1]:
        forms["sform"] = np.asarray(img.get_sform(), dtype=float)
    if codes[0]:
        forms["qform"], repairs = _qform(img, header)
    faults = {form: fault for form, matrix in forms.items() if (fault := _fault(matrix))}
    other = forms["qform"] if "qform" in forms.keys() - faults else np.diag([*np.abs(sizes), 1])
    if "sform" in forms.keys() - faults and not _fault(other):
        found, wanted = affines.voxel_sizes(forms["sform"]), affines.voxel_sizes(other)
        if np.abs(np.log(found / wanted)).max() > np.log(MAX_SCALING):
            why = f"has voxels of {in_mm(found)} mm where the header says {in_mm(wanted)} mm"
            if "qform" in forms.keys() - faults:
                faults["sform"] = why
            else:
                notes.append(f"the sform {why}; the sform was used")
    usable = [form for form in forms if form not in faults]
    if not usable:
        why = ", and ".join(f"the {form} {fault}" for form, fault in faults.items())
        raise ScanError(f"{name} has an impossible geometry: {why}.", REMEDY)
    notes += [f"the {form} {fault}; the {usable[0]} was used" for form, fault in faults.items()]
    affine = forms[usable[0]]
    if usable[0] == "qform":
        notes += repairs
    if len(usable) == 2:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in img.shape[:3]])).reshape(3, -1).T
        shift = np.abs(
            affines.apply_affine(affine, corners) - affines.apply_affine(forms["qform"], corners)
        ).max()
        if not shift < AFFINE_TOLERANCE_MM:
            notes.append(f"sform and qform disagree by {shift:.1f} mm; the sform was used")
    return Geometry(affine, codes, notes)


def _header_as_stored(img: Any) -> Any:
    """Read the header again without nibabel's silent repairs of its voxel sizes."""
    holder = img.file_map.get("header", img.file_map["image"])
    try:
        with holder.get_prepare_fileobj("rb") as file:
            return img.header_class.from_fileobj(file, check=False)
    except FileHolderError:  # made in memory
        return img.header


def _qform(img: Any, stored: Any) -> tuple[np.ndarray, list[str]]:
    """Compute the qform, NaN where its quaternion is not a rotation; say what was repaired."""
    try:
        qform = np.array(img.get_qform(), dtype=float)
    except (HeaderDataError, ValueError):  # the latter for a quaternion longer than 1
        return np.full((4, 4), np.nan), []
    notes = []
    qfac, sizes = float(stored["pixdim"][0]), stored["pixdim"][1:4]
    qform[:3, :3] *= np.abs(sizes) / affines.voxel_sizes(qform)  # nibabel takes 1 for 0
    if qfac not in (-1, 0, 1):
        # By the standard its sign counts; nibabel takes 1 for whatever is not -1.
        side = -1 if qfac < 0 else 1
        qform[:3, 2] *= side
        notes.append(f"qfac is {qfac:g} in the header and was taken as {side}")
    if (sizes < 0).any():
        notes.append("voxel sizes are negative in the header and were taken as positive")
    return qform, notes


def _fault(affine: np.ndarray) -> str:
    """Say what makes a matrix useless as an affine; nothing if it is one."""
    if not np.isfinite(affine).all():
        return "is not a valid affine: it is not finite or not a rotation"
    sizes = affines.voxel_sizes(affine)
    if sizes.min() < MIN_ZOOM_MM or sizes.max() > MAX_ZOOM_MM:
        return f"has voxels of {in_mm(sizes)} mm"
    if abs(np.linalg.det(affine[:3, :3])) < MIN_VOLUME * sizes.prod():
        return "is not a valid affine: it is singular"
    if (away := np.abs(affine[:3, 3]).max()) > MAX_ORIGIN_MM:
        return f"puts the scan {away / 1000:.3g} m away"
    return ""


def in_mm(sizes: np.ndarray) -> str:
    """Write lengths as ``1 x 1 x 1.2``."""
    return " x ".join(f"{size:.3g}" for size in sizes)
