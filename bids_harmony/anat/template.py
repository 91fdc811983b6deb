"""The registration template, on the grid of the model bundle."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output

from bids_harmony.anat.check import load_image, new_image
from bids_harmony.errors import ScanError, UsageError

DEFAULT_TEMPLATE = "MNI152NLin2009aSym"
#: The template at the resolution of the default bundle, ready to use.
STORED_MM = 2
STORED = Path(str(files("bids_harmony.data") / "tpl-MNI152NLin2009aSym_res-2.npz"))
#: Bounding box (x, y, z in template mm) of the basal ganglia and thalamus.
DEEP_GREY_MM = ((-34.0, 34.0), (-36.0, 24.0), (-12.0, 22.0))


class Template(NamedTuple):
    """A template on one grid.

    Attributes
    ----------
    t1w : nibabel.Nifti1Image
        Brain-extracted T1w, float32, background 0, values in [0, 1].
    mask : numpy.ndarray
        Boolean brain mask.
    tissues : dict of numpy.ndarray
        Grey and white matter probability maps (``gm``, ``wm``) in [0, 1]; empty for a template
        loaded from a file.
    """

    t1w: nib.Nifti1Image
    mask: np.ndarray
    tissues: dict[str, np.ndarray]


@cache
def load_template(resolution: int = 2, path: str | None = None) -> Template:
    """Load the template at ``resolution`` mm.

    Parameters
    ----------
    resolution : int
        Isotropic voxel size in mm.
    path : str, optional
        Skull-stripped 3-D T1w template (background 0). Its space label is the part of its file
        name that follows ``tpl-``, or ``custom``. None loads MNI152NLin2009aSym.

    Returns
    -------
    Template
        The template, cached.

    Raises
    ------
    UsageError
        When the file cannot be read, or is not a skull-stripped 3-D image.
    """
    if path is None:
        return _stored() if resolution == STORED_MM else from_nilearn(resolution)
    try:
        img = nib.as_closest_canonical(load_image(path)[0])
        data = np.nan_to_num(np.asarray(img.dataobj), posinf=0, neginf=0)
        if (data > 0).mean() > 0.7:
            raise ScanError("it is not skull-stripped.")
    except ScanError as error:
        raise UsageError(
            f"The template {path} cannot be used: {error.cause}",
            "Provide a skull-stripped 3-D T1w template with background 0.",
        ) from error
    img = resample_to_output(nib.Nifti1Image(data, img.affine), (resolution,) * 3, order=1)
    data = np.asarray(img.dataobj, dtype=np.float32)
    return Template(_masked(data, data > 0, img.affine), data > 0, {})


def from_nilearn(resolution: int) -> Template:
    """Resample MNI152NLin2009aSym from nilearn's package data, which takes seconds."""
    from nilearn import datasets

    t1w = datasets.load_mni152_template(resolution=resolution)
    mask = datasets.load_mni152_brain_mask(resolution=resolution).get_fdata() > 0
    gm, wm = (
        load(resolution=resolution).get_fdata(dtype=np.float32)
        for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    brain = _masked(t1w.get_fdata(dtype=np.float32), mask, t1w.affine)
    return Template(brain, mask, {"gm": gm, "wm": wm})


def _stored() -> Template:
    """Load the template at 2 mm, which ``recipes/template.py`` has stored in this package."""
    with np.load(STORED) as file:
        arrays = {name: file[name] for name in ("t1w", "mask", "gm", "wm", "affine")}
    brain = _masked(arrays["t1w"], arrays["mask"], arrays["affine"])
    tissues = {name: arrays[name] for name in ("gm", "wm")}
    return Template(brain, arrays["mask"], tissues)


def deep_grey(template: Template) -> np.ndarray | None:
    """Return the probability of deep grey matter at each voxel.

    This is the template's grey matter map within a box around the basal ganglia and thalamus.

    Parameters
    ----------
    template : Template

    Returns
    -------
    numpy.ndarray or None
        float32 in [0, 1] on the template's grid; None if the template has no grey matter map.
    """
    if "gm" not in template.tissues:
        return None
    affine, grey = template.t1w.affine, template.tissues["gm"].astype(np.float32)
    mm = [affine[a, 3] + affine[a, a] * np.arange(n) for a, n in enumerate(grey.shape)]
    inside = [(low <= x) & (x <= high) for x, (low, high) in zip(mm, DEEP_GREY_MM, strict=True)]
    box = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    return np.where(box, grey, 0).astype(np.float32)


def template_label(path: str | None) -> str:
    """Return the space label of a template: ``MyTemplate`` for ``tpl-MyTemplate_T1w.nii.gz``.

    >>> template_label("/data/tpl-OASIS30ANTs_res-01_T1w.nii.gz")
    'OASIS30ANTs'
    >>> template_label(None)
    'MNI152NLin2009aSym'
    """
    if path is None:
        return DEFAULT_TEMPLATE
    first = Path(path).name.split("_")[0].split(".")[0]
    label = first.removeprefix("tpl-")
    return label if label != first and label.isalnum() else "custom"


def _masked(data: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    data = np.where(mask, data, 0).astype(np.float32)
    return new_image(data / np.float32(data.max()), affine, 4)
