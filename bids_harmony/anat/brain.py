"""Brain masks: deepbet, the outline of a scan that is already stripped, or one that is given."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_harmony.anat.geometry import open_image, usable_affine, without_single_axes
from bids_harmony.anat.intensity import largest_component
from bids_harmony.errors import ScanError

#: Litres a foreground may fill to be a brain alone; heads start near 2.5 L.
BRAIN_LITRES = (0.6, 2.3)
#: Voxels beside a stripped brain, as a share of the brain's.
BESIDE = 0.1
#: Values up to this are those of a mask, or of probabilities with interpolation's ringing.
MAX_PROBABILITY = 1.5
#: Share of a mask's voxels that lie near its highest value, unless the values are labels.
NEAR_HIGHEST = 0.5
#: More different values than a label map has.
MAX_LABELS = 1000
#: Dice between a scan's foreground and deepbet's mask above which the scan is a stripped one.
STRIPPED_DICE = 0.85


@cache
def _deepbet() -> Any:
    """Load deepbet's two networks once per process."""
    from deepbet.bet import BrainExtraction

    return BrainExtraction(no_gpu=True)


def deepbet_mask(img: nib.Nifti1Image) -> np.ndarray:
    """Brain mask by deepbet, whose weights come with its wheel (science.md §6).

    Parameters
    ----------
    img : nibabel.Nifti1Image
        3-D RAS image.

    Returns
    -------
    numpy.ndarray
        Boolean mask on the image's grid.

    Raises
    ------
    ScanError
        When deepbet finds no brain.
    """
    import torch

    engine = _deepbet()
    data = np.asarray(img.dataobj, dtype=np.float32)
    n_threads = torch.get_num_threads()
    # More threads sum in another order, which moves a voxel of the mask now and then.
    torch.set_num_threads(1)
    try:
        mask = engine.postprocess(engine.run_model(data.copy()) > 0.5)
    except (AssertionError, ValueError) as error:
        raise ScanError(
            "deepbet found no brain in the scan.",
            "Look at the scan: is it a whole-head T1w? Otherwise try --skull-strip multi-atlas.",
        ) from error
    finally:
        torch.set_num_threads(n_threads)
    return np.asarray(mask, dtype=bool)


def foreground(img: nib.Nifti1Image) -> np.ndarray:
    """Largest component of the voxels that differ from the scan's background value, filled.

    Stripped scans have a constant background, which need not be 0.
    """
    filled: np.ndarray = ndimage.binary_fill_holes(largest_component(_differs(img)))
    return filled


def _differs(img: nib.Nifti1Image) -> np.ndarray:
    """Find the voxels that differ from the background, which is what most corners hold."""
    data = np.asarray(img.dataobj)
    corners = data[tuple(np.ix_(*[(0, n - 1) for n in data.shape]))]
    different: np.ndarray = data != float(np.median(corners))
    return different


def is_stripped(img: nib.Nifti1Image) -> bool:
    """Tell whether a scan has been skull-stripped already.

    Its foreground must have a brain's volume with next to nothing beside it (a scalp that zeroed
    bone parts from the brain, say), and deepbet must find that same brain in it.
    """
    mask = outlines_brain(img)
    try:
        return mask is not None and dice(mask, deepbet_mask(img)) >= STRIPPED_DICE
    except ScanError:
        return False


def outlines_brain(img: nib.Nifti1Image) -> np.ndarray | None:
    """Return a scan's foreground where its volume is a brain's, with next to nothing beside it."""
    mask = foreground(img)
    if np.sum(_differs(img) & ~mask) > BESIDE * mask.sum():
        return None
    litres = mask.sum() * float(np.prod(img.header.get_zooms()[:3])) / 1e6
    return mask if BRAIN_LITRES[0] <= litres <= BRAIN_LITRES[1] else None


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice overlap of two boolean arrays (1 when both are empty)."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int(np.logical_and(a, b).sum()) / total if total else 1.0


def given_mask(
    path: str | Path, img: nib.Nifti1Image, orientation: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Bring a mask that was made elsewhere from its file onto the scan's RAS grid.

    Parameters
    ----------
    path : path-like
        The mask's file.
    img : nibabel.Nifti1Image
        3-D RAS scan.
    orientation : str
        Axes of the scan as it is stored (``LAS``). A mask whose header is useless is taken to be
        stored like the scan if it has its shape.

    Returns
    -------
    mask : numpy.ndarray
        Boolean mask on the scan's grid.
    record : dict
        What is to be said of it: ``notes``, and ``threshold`` where the mask holds other values
        than 0 and 1.

    Raises
    ------
    ScanError
        When it is no mask, or does not cover the scan's space. What nibabel raises passes.
    """
    name = f"The brain mask {Path(path).name}"
    mask = open_image(path)
    try:
        affine, _, notes = usable_affine(mask, name)
        notes = [f"{name}: {note}" for note in notes]
    except ScanError:
        axes = nib.orientations.axcodes2ornt(orientation)
        stored = img.as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(img.affine), axes)
        )
        if mask.shape[:3] != stored.shape:
            raise
        affine = stored.affine
        notes = [
            f"{name} has no usable orientation in its header; as its shape is the scan's, it was "
            "taken to lie on the scan's own grid"
        ]
    data, record = as_mask(without_single_axes(mask), name)
    if notes:
        record["notes"] = [*notes, *record.get("notes", ())]
    return conform_mask(nib.Nifti1Image(data.astype(np.uint8), affine), img), record


def as_mask(data: np.ndarray, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Turn a mask's values into brain or not.

    Probabilities count from 0.5, other scales (0 to 100, 0 to 255) from half of the highest
    value. Whole numbers that are mostly not near the highest are labels, all of them brain.

    Parameters
    ----------
    data : numpy.ndarray
        3-D.
    name : str
        What it is, for messages.

    Returns
    -------
    mask : numpy.ndarray
        Boolean.
    record : dict
        Empty for a mask of 0 and 1; otherwise ``threshold``, above which voxels are brain, and
        ``notes``.

    Raises
    ------
    ScanError
        When it is not 3-D or its values are those of no mask.
    """
    if data.ndim != 3 or data.dtype.fields or np.iscomplexobj(data):
        raise ScanError(
            f"{name} is not a 3-D volume of numbers (its shape is "
            f"{' x '.join(map(str, data.shape))}).",
            "Give one 3-D mask of 0 and 1.",
        )
    data = np.nan_to_num(data.astype(np.float32), nan=0, posinf=0, neginf=0)
    values = np.unique(data[data > 0])
    if np.allclose(values, 1, atol=1e-3):
        return data > 0.5, {}
    highest, whole = values[-1], np.array_equal(values, values.round())
    if highest <= MAX_PROBABILITY:
        cut = 0.5
    elif np.mean(data[data > 0] >= 0.9 * highest) >= NEAR_HIGHEST:
        cut = float(highest) / 2
    elif whole and len(values) <= MAX_LABELS:
        cut = 0.0
    else:
        raise ScanError(
            f"{name} holds {len(values)} different values up to {highest:g}, which is no mask.",
            "Give a mask of 0 and 1, or of probabilities from 0 to 1.",
        )
    kind = "labels" if cut == 0 else "values other than 0 and 1"
    note = f"{name} holds {kind} up to {highest:g}; what lies above {cut:g} was taken as brain"
    return data > cut, {"threshold": cut, "notes": [note]}


def conform_mask(mask_img: nib.Nifti1Image, img: nib.Nifti1Image) -> np.ndarray:
    """Bring a mask of the same scan, made elsewhere, onto the scan's RAS grid.

    Raises
    ------
    ScanError
        When it is no mask, or does not cover the scan's space.
    """
    given, _ = as_mask(without_single_axes(mask_img), "The brain mask")
    affine = usable_affine(mask_img, "The brain mask").affine
    ras = nib.as_closest_canonical(nib.Nifti1Image(given.astype(np.uint8), affine))
    data = np.asarray(ras.dataobj) > 0
    if ras.shape == img.shape[:3] and np.allclose(ras.affine, img.affine, atol=1e-2):
        return data
    to_mask = np.linalg.inv(ras.affine) @ img.affine
    moved = ndimage.affine_transform(
        data.astype(np.float32), to_mask, output_shape=img.shape[:3], order=1
    )
    mask: np.ndarray = moved > 0.5
    if mask.sum() * np.prod(img.header.get_zooms()[:3]) < 0.8 * data.sum() * np.prod(
        ras.header.get_zooms()[:3]
    ):
        raise ScanError(
            "The brain mask does not lie in the scan's space.",
            "Give a mask in the T1w scan's own space.",
        )
    return mask


def check_mask(mask: np.ndarray, img: nib.Nifti1Image) -> None:
    """Refuse a mask that cannot be a brain.

    Raises
    ------
    ScanError
        When its volume lies outside 0.3 to 2.6 litres.
    """
    litres = float(mask.sum() * np.prod(img.header.get_zooms()[:3]) / 1e6)
    if not 0.3 <= litres <= 2.6:
        raise ScanError(
            f"The brain mask holds {litres:.2f} litres, which no brain does.",
            "Look at the scan, and try another --skull-strip method.",
        )
