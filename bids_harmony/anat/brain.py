"""Brain masks: deepbet, label fusion, the outline of a stripped scan, or one that is given."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.processing import resample_from_to
from scipy import ndimage

from bids_harmony.anat.affine import downsample, local_correlation, to_ants
from bids_harmony.anat.check import check_file, load_image, load_t1w
from bids_harmony.anat.intensity import largest_component
from bids_harmony.errors import ScanError, UsageError

#: Litres a foreground may fill to be a brain alone (heads start near 2.5 L), and any mask.
BRAIN_LITRES, MASK_LITRES = (0.6, 2.3), (0.3, 2.6)
#: Voxels beside a stripped brain, as a share of the brain's.
BESIDE = 0.1
#: Dice between a scan's foreground and deepbet's mask above which the scan is a stripped one.
STRIPPED_DICE = 0.85
#: Values up to this are those of a mask, or of probabilities with interpolation's ringing.
MAX_PROBABILITY = 1.5
#: Voxel sizes, in mm, at which atlases are ranked, warped and fused.
COARSE_MM, SYN_MM, WORK_MM = 8.0, 4.0, 2.0
#: Local weights compare patches of this standard deviation, in mm, and are their correlation to
#: this power.
PATCH_MM, SHARPNESS = 4.0, 4.0
#: What a mask's name adds to its image's; ``space-`` would be another grid.
MASK_NAME = r"(_T1w)?(_(atlas|desc|label|res|seg)-[^_]+)*_(mask|dseg)"


def deepbet_mask(img: nib.Nifti1Image) -> np.ndarray:
    """Brain mask by deepbet, whose weights come with its wheel; torch is left with one thread.

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

    # More threads sum in another order, which moves a voxel of the mask now and then.
    torch.set_num_threads(1)
    engine = _deepbet()
    try:
        probabilities = engine.run_model(np.array(img.dataobj, dtype=np.float32))
        return np.asarray(engine.postprocess(probabilities > 0.5), dtype=bool)
    except (AssertionError, ValueError) as error:
        raise ScanError(
            "deepbet found no brain in the scan.",
            "Look at the scan: is it a whole-head T1w? Otherwise try --skull-strip multi-atlas.",
        ) from error


@cache
def _deepbet() -> Any:
    """Load deepbet's two networks once per process."""
    from deepbet.bet import BrainExtraction

    return BrainExtraction(no_gpu=True)


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
    alone = np.sum(_differs(img) & ~mask) <= BESIDE * mask.sum()
    return mask if alone and BRAIN_LITRES[0] <= _litres(mask, img) <= BRAIN_LITRES[1] else None


def foreground(img: nib.Nifti1Image) -> np.ndarray:
    """Largest component of the voxels that differ from the scan's background value, filled.

    Stripped scans have a constant background, which need not be 0.
    """
    return np.asarray(ndimage.binary_fill_holes(largest_component(_differs(img))))


def _differs(img: nib.Nifti1Image) -> np.ndarray:
    """Find the voxels that differ from the background, which is what most corners hold."""
    data = np.asarray(img.dataobj)
    return np.asarray(data != float(np.median(data[np.ix_(*[(0, -1)] * 3)])))


def _litres(mask: np.ndarray, img: nib.Nifti1Image) -> float:
    return float(mask.sum() * np.prod(img.header.get_zooms()[:3]) / 1e6)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice overlap of two boolean arrays (1 when both are empty)."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int(np.logical_and(a, b).sum()) / total if total else 1.0


def check_mask(mask: np.ndarray, img: nib.Nifti1Image) -> None:
    """Refuse a mask that cannot be a brain.

    Raises
    ------
    ScanError
        When its volume lies outside 0.3 to 2.6 litres.
    """
    litres = _litres(mask, img)
    if not MASK_LITRES[0] <= litres <= MASK_LITRES[1]:
        raise ScanError(
            f"The brain mask holds {litres:.2f} litres, which no brain does.",
            "Look at the scan, and try another --skull-strip method.",
        )


def given_mask(path: str | Path, img: nib.Nifti1Image) -> tuple[np.ndarray, dict[str, Any]]:
    """Bring a mask that was made elsewhere from its file onto the scan's RAS grid.

    Parameters
    ----------
    path : path-like
        The mask's file.
    img : nibabel.Nifti1Image
        3-D RAS scan.

    Returns
    -------
    mask : numpy.ndarray
        Boolean mask on the scan's grid.
    record : dict
        ``notes``, and ``threshold`` where the mask holds other values than 0 and 1.

    Raises
    ------
    ScanError
        When it cannot be read, is no mask, or does not cover the scan's space.
    """
    name = f"The brain mask {Path(path).name}"
    given, geometry = load_image(path)
    data, record = as_mask(np.asarray(given.dataobj), name)
    notes = [f"{name}: {note}" for note in geometry.notes]
    given = nib.Nifti1Image(data.astype(np.float32), given.affine)
    moved = resample_from_to(given, (img.shape[:3], img.affine), order=1)
    mask = np.asarray(moved.dataobj) > 0.5
    if _litres(mask, img) < 0.8 * _litres(data, given):
        raise ScanError(
            f"{name} does not lie in the scan's space.", "Give a mask in the T1w scan's own space."
        )
    return mask, {**record, "notes": [*notes, *record.get("notes", [])]}


def as_mask(data: np.ndarray, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Turn a mask's values into brain or not.

    Probabilities count from 0.5; all else is labels, all of them brain.

    Parameters
    ----------
    data : numpy.ndarray
        Real numbers.
    name : str
        What it is, for messages.

    Returns
    -------
    mask : numpy.ndarray
        Boolean.
    record : dict
        Empty for a mask of 0 and 1; otherwise ``threshold``, above which voxels are brain, and
        ``notes``.
    """
    data = np.nan_to_num(data, nan=0, posinf=0, neginf=0)
    highest = float(data.max())
    if np.allclose(data[data > 0], 1, atol=1e-3):
        return data > 0.5, {}
    kind, cut = ("probabilities", 0.5) if highest <= MAX_PROBABILITY else ("labels", 0.0)
    note = f"{name} holds {kind} up to {highest:g}; what lies above {cut:g} was taken as brain"
    return data > cut, {"threshold": cut, "notes": [note]}


class Atlas(NamedTuple):
    """A whole-head T1w image and its brain mask, in one space.

    Attributes
    ----------
    name : str
        File name without ``_T1w`` and extension.
    image : pathlib.Path
        The T1w image.
    mask : pathlib.Path
        A mask or a label map; labels above 0 are brain.
    """

    name: str
    image: Path
    mask: Path


def find_atlases(atlas_dir: str | Path) -> list[Atlas]:
    """Find the atlases of a folder, in name order.

    Two layouts are understood, at any depth: BIDS-like pairs (``X_T1w.nii.gz`` and a file
    ``X[_...]_mask.nii.gz`` or ``X[_...]_dseg.nii.gz`` in the same folder or anywhere else below
    ``atlas_dir``, such as ``derivatives/``), and plain pairs (``name.nii.gz`` and
    ``name_mask.nii.gz``). Masks win over label maps, and a ``desc-brain`` mask over others.

    Parameters
    ----------
    atlas_dir : path-like
        The folder of ``--atlas-dir``.

    Raises
    ------
    UsageError
        When the folder holds no pair, or a file of one is not there.
    """
    files = {path.name.split(".nii")[0]: path for path in sorted(Path(atlas_dir).rglob("*.nii*"))}
    labels = sorted(
        (stem for stem in files if stem.endswith(("_mask", "_dseg"))),
        key=lambda stem: (stem.endswith("_dseg"), "_desc-brain_" not in stem, stem),
    )
    atlases = []
    for stem in sorted(files.keys() - set(labels)):
        name = stem.removesuffix("_T1w")
        own = (label for label in labels if re.fullmatch(re.escape(name) + MASK_NAME, label))
        atlases += [Atlas(name, files[stem], files[label]) for label in islice(own, 1)]
    if not atlases:
        raise UsageError(
            f"No atlas was found in {atlas_dir}: {len(files)} NIfTI files were looked at, and "
            "none has a brain mask of the same name.",
            "Provide pairs such as sub-01_T1w.nii.gz with sub-01_desc-brain_mask.nii.gz (or a "
            "_dseg label map, also under derivatives/), or head.nii.gz with head_mask.nii.gz.",
        )
    for path in (path for atlas in atlases for path in (atlas.image, atlas.mask)):
        try:
            check_file(path)
        except ScanError as error:
            raise UsageError(f"In --atlas-dir, {error.cause}", error.remedy) from error
    return sorted(atlases)


def multiatlas_mask(
    img: nib.Nifti1Image,
    atlases: Sequence[Atlas],
    *,
    n_best: int = 6,
    seed: int = 42,
    exclude: Collection[str] = (),
) -> tuple[np.ndarray, dict[str, Any]]:
    """Brain mask of a whole head by fusing the warped masks of similar atlases.

    The paper's method ([33], MASS) on antspyx: every atlas is registered to the scan by a coarse
    affine; the most similar ones are then warped by SyN, and their masks vote in each voxel with
    the weight of their local likeness (locally weighted voting).

    Parameters
    ----------
    img : nibabel.Nifti1Image
        3-D RAS image with skull.
    atlases : sequence of Atlas
        From :func:`find_atlases`.
    n_best : int
        How many atlases vote.
    seed : int
        Seed of the registrations, which run in one thread: the same input gives the same mask.
    exclude : collection of str
        Keys of scans (``sub-01_ses-a``): atlases of the same subjects are left out, as an atlas
        made from the scan itself would vote for its own mask.

    Returns
    -------
    mask : numpy.ndarray
        Boolean mask on the image's grid: one component without holes.
    record : dict
        ``n_atlases`` found, ``excluded``, ``used`` (name and similarity of each voter, best
        first).

    Raises
    ------
    ScanError
        When no atlas is left.
    """
    subjects = {key.split("_")[0] for key in exclude}
    pool = [atlas for atlas in atlases if atlas.name.split("_")[0] not in subjects]
    if not pool:
        raise ScanError(
            "Every atlas carries the scan's own name.",
            "Add atlases of other people to --atlas-dir.",
        )
    coarse, middle, fine = (_prepare(img, mm) for mm in (COARSE_MM, SYN_MM, WORK_MM))
    ranked, voters = [], []
    with tempfile.TemporaryDirectory(prefix="multiatlas") as scratch:
        for n, atlas in enumerate(pool):
            image, mask, affine = _register(
                coarse, coarse, atlas, f"{scratch}/{n}_", seed, "Affine",
                aff_iterations=(200, 100), aff_shrink_factors=(2, 1),
                aff_smoothing_sigmas=(1, 0), aff_random_sampling_rate=0.2,
            )  # fmt: skip
            likeness = local_correlation(np.asarray(coarse.dataobj), image, 1.0)[mask > 0.25]
            ranked.append((float(likeness.mean()) if likeness.size else -1.0, atlas, affine[0]))
        ranked = sorted(ranked, key=lambda item: (-item[0], item[1].name))[:n_best]
        for n, (_, atlas, start) in enumerate(ranked):
            image, mask, _ = _register(
                middle, fine, atlas, f"{scratch}/syn{n}_", seed, "SyNOnly",
                initial_transform=start, reg_iterations=(40, 40, 20),
            )  # fmt: skip
            voters.append((image, mask))
    share = fuse(np.asarray(fine.dataobj), voters, PATCH_MM / WORK_MM)
    native = resample_from_to(nib.Nifti1Image(share, fine.affine), img, order=1)
    brain = ndimage.binary_fill_holes(largest_component(np.asarray(native.dataobj) > 0.5))
    return np.asarray(brain), {
        "n_atlases": len(atlases),
        "excluded": len(atlases) - len(pool),
        "used": [
            {"name": atlas.name, "similarity": round(similarity, 4)}
            for similarity, atlas, _ in ranked
        ],
    }


def fuse(
    target: np.ndarray, voters: Sequence[tuple[np.ndarray, np.ndarray]], sigma: float
) -> np.ndarray:
    """Let warped masks vote in each voxel with the weight of their image's local likeness.

    Parameters
    ----------
    target : numpy.ndarray
        The scan.
    voters : sequence of (image, mask)
        Warped atlases on the scan's grid, masks in [0, 1].
    sigma : float
        Standard deviation of the patches, in voxels.

    Returns
    -------
    numpy.ndarray
        Weighted mean of the masks, in [0, 1].
    """
    likeness = [local_correlation(target, image, sigma) for image, _ in voters]
    weights = [np.clip(alike, 0.01, 1) ** SHARPNESS for alike in likeness]
    return np.asarray(np.average([mask for _, mask in voters], axis=0, weights=weights))


def _register(
    fixed: nib.Nifti1Image,
    grid: nib.Nifti1Image,
    atlas: Atlas,
    prefix: str,
    seed: int,
    transform: str,
    **steps: Any,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Register an atlas to a scan; return its image and mask on a grid, and the transforms."""
    head, label = load_t1w(atlas.image)[0], nib.as_closest_canonical(load_image(atlas.mask)[0])
    mask, _ = as_mask(np.asarray(label.dataobj), f"The mask of the atlas {atlas.name}")
    brain = nib.Nifti1Image(mask.astype(np.uint8), label.affine)
    target, moving = (to_ants(img) for img in (fixed, _prepare(head, _zoom(fixed))))
    import ants

    ants.config.set_ants_deterministic(True, seed)
    found = ants.registration(target, moving, transform, outprefix=prefix, **steps)
    transforms = found["fwdtransforms"]
    image, vote = (
        ants.apply_transforms(to_ants(grid), to_ants(img), transforms).numpy()
        for img in (_prepare(head, _zoom(grid)), downsample(brain, _zoom(grid)))
    )
    return image, vote, transforms


def _zoom(img: nib.Nifti1Image) -> float:
    return float(voxel_sizes(img.affine).min())


def _prepare(img: nib.Nifti1Image, target_mm: float) -> nib.Nifti1Image:
    """Bring a RAS image to coarser voxels, with values in [0, 1] and no bright outliers."""
    coarse = downsample(img, target_mm)
    data = np.asarray(coarse.dataobj)
    low, high = np.percentile(data, (1, 99.5))
    return nib.Nifti1Image(np.clip((data - low) / ((high - low) or 1), 0, 1), coarse.affine)
