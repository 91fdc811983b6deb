"""Brain masks from deepbet, multi-atlas label fusion, skull-stripped scans or existing files."""

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
from bids_harmony.anat.check import MIN_EXTENT_MM, check_file, load_image, load_t1w
from bids_harmony.anat.intensity import largest_component
from bids_harmony.errors import ScanError, UsageError

#: Volume range, in litres, of a skull-stripped scan's foreground (43 have 1.2 to 1.7, heads of
#: adults 5 and more) and of any brain mask.
BRAIN_LITRES, MASK_LITRES = (0.6, 2.1), (0.3, 2.6)
#: Voxel size, in mm, at which skull-stripped scans are recognized.
GLANCE_MM = 3.0
#: Maximum volume of other foreground in a skull-stripped scan, as a fraction of the brain.
BESIDE = 0.1
#: Maximum of a binary mask or probability map, allowing for ringing from interpolation.
MAX_PROBABILITY = 1.5
#: Voxel sizes, in mm, used to rank, warp and fuse atlases.
COARSE_MM, SYN_MM, WORK_MM = 8.0, 4.0, 2.0
#: Gaussian patch size (standard deviation in mm) of the local correlation between atlas and scan,
#: and the power to which it is raised to give the atlas weights.
PATCH_MM, SHARPNESS = 4.0, 4.0
#: Regular expression for what follows the image's name in a mask's name. ``space-`` is excluded,
#: as such masks are on another grid.
MASK_NAME = r"(_T1w)?(_(atlas|desc|label|res|seg)-[^_]+)*_(mask|dseg)"


def deepbet_mask(img: nib.Nifti1Image) -> np.ndarray:
    """Compute a brain mask with deepbet, whose weights ship with its package.

    This sets the number of torch threads to 1.

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

    # With more threads, the order of summation changes and single voxels of the mask may flip.
    torch.set_num_threads(1)
    engine = _deepbet()
    try:
        probabilities = engine.run_model(np.array(img.dataobj, dtype=np.float32))
        return np.asarray(engine.postprocess(probabilities > 0.5), dtype=bool)
    except (AssertionError, ValueError) as error:
        raise ScanError(
            "deepbet found no brain in the scan.",
            "Check that it is a whole-head T1w scan, or try --skull-strip multi-atlas.",
        ) from error


@cache
def _deepbet() -> Any:
    """Load deepbet's two networks, once per process."""
    from deepbet.bet import BrainExtraction

    return BrainExtraction(no_gpu=True)


def is_stripped(img: nib.Nifti1Image) -> bool:
    """Return whether a scan is already skull-stripped.

    On a grid of about :data:`GLANCE_MM`, its foreground must have the volume and the extent of a
    brain, and contain little else (such as a scalp separated from the brain by zeroed bone).
    """
    steps = [max(1, round(GLANCE_MM / zoom)) for zoom in img.header.get_zooms()[:3]]
    coarse = img.slicer[tuple(slice(None, None, step) for step in steps)]
    mask = foreground(coarse)
    extent = np.ptp(np.argwhere(mask), axis=0) * coarse.header.get_zooms()[:3] if mask.any() else 0
    return bool(
        BRAIN_LITRES[0] <= _litres(mask, coarse) <= BRAIN_LITRES[1]
        and np.min(extent) >= MIN_EXTENT_MM
        and np.sum(_differs(coarse) & ~mask) <= BESIDE * mask.sum()
    )


def foreground(img: nib.Nifti1Image) -> np.ndarray:
    """Return the largest component of voxels that differ from the background, with holes filled.

    Skull-stripped scans have a constant background, which is not necessarily 0.
    """
    return np.asarray(ndimage.binary_fill_holes(largest_component(_differs(img))))


def _differs(img: nib.Nifti1Image) -> np.ndarray:
    """Find voxels that differ from the background, the median value of the volume's corners."""
    data = np.asarray(img.dataobj)
    return np.asarray(data != float(np.median(data[np.ix_(*[(0, -1)] * 3)])))


def _litres(mask: np.ndarray, img: nib.Nifti1Image) -> float:
    return float(mask.sum() * np.prod(img.header.get_zooms()[:3]) / 1e6)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the Dice coefficient of two boolean arrays (1 when both are empty)."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int(np.logical_and(a, b).sum()) / total if total else 1.0


def check_mask(mask: np.ndarray, img: nib.Nifti1Image) -> None:
    """Check that a mask has the volume of a brain.

    Raises
    ------
    ScanError
        When its volume is outside 0.3 to 2.6 litres.
    """
    litres = _litres(mask, img)
    if not MASK_LITRES[0] <= litres <= MASK_LITRES[1]:
        raise ScanError(
            f"The brain mask has a volume of {litres:.2f} litres, outside the range of "
            f"{MASK_LITRES[0]} to {MASK_LITRES[1]} litres.",
            "Check the scan, or try another --skull-strip method.",
        )


def given_mask(path: str | Path, img: nib.Nifti1Image) -> tuple[np.ndarray, dict[str, Any]]:
    """Load an existing brain mask and resample it to the scan's RAS grid.

    Parameters
    ----------
    path : path-like
        Mask, probability map or label map (NIfTI).
    img : nibabel.Nifti1Image
        3-D RAS scan.

    Returns
    -------
    mask : numpy.ndarray
        Boolean mask on the scan's grid.
    record : dict
        ``notes``, and ``threshold`` if the file holds values other than 0 and 1.

    Raises
    ------
    ScanError
        When the file cannot be read as a 3-D image, or less than 80 % of the mask's volume lies on
        the scan's grid.
    """
    name = f"The brain mask {Path(path).name}"
    given, notes = load_image(path)
    data, record = as_mask(np.asarray(given.dataobj), name)
    notes = [f"{name}: {note}" for note in notes]
    given = nib.Nifti1Image(data.astype(np.float32), given.affine)
    moved = resample_from_to(given, (img.shape[:3], img.affine), order=1)
    mask = np.asarray(moved.dataobj) > 0.5
    if _litres(mask, img) < 0.8 * _litres(data, given):
        raise ScanError(
            f"{name} lies outside the field of view of the T1w scan.",
            "Provide a mask in the native space of the T1w scan.",
        )
    return mask, {**record, "notes": [*notes, *record.get("notes", [])]}


def as_mask(data: np.ndarray, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Convert a binary mask, probability map or label map to a boolean mask.

    Probabilities are thresholded at 0.5. In label maps, all labels above 0 are brain.

    Parameters
    ----------
    data : numpy.ndarray
        Real values; NaN and infinite ones count as 0.
    name : str
        Description of the data, for messages.

    Returns
    -------
    mask : numpy.ndarray
        Boolean, same shape as ``data``.
    record : dict
        Empty for a binary mask; otherwise ``threshold``, above which voxels are brain, and
        ``notes``.
    """
    data = np.nan_to_num(data, nan=0, posinf=0, neginf=0)
    if np.allclose(data[data > 0], 1, atol=1e-3):
        return data > 0.5, {}
    kind, cut = ("probability", 0.5) if data.max() <= MAX_PROBABILITY else ("label", 0.0)
    note = f"{name} is a {kind} map: voxels above {cut:g} are brain"
    return data > cut, {"threshold": cut, "notes": [note]}


class Atlas(NamedTuple):
    """A whole-head T1w image and its brain mask in the same space.

    Attributes
    ----------
    name : str
        File name without ``_T1w`` and extension.
    image : pathlib.Path
        T1w image.
    mask : pathlib.Path
        Mask or label map; labels above 0 are brain.
    """

    name: str
    image: Path
    mask: Path


def find_atlases(atlas_dir: str | Path) -> list[Atlas]:
    """Find the atlases in a folder, sorted by name.

    Two layouts are supported, at any depth: BIDS-like pairs (``X_T1w.nii.gz`` and a file
    ``X[_...]_mask.nii.gz`` or ``X[_...]_dseg.nii.gz`` in the same folder or anywhere else below
    ``atlas_dir``, such as ``derivatives/``), and plain pairs (``name.nii.gz`` and
    ``name_mask.nii.gz``). Masks are preferred to label maps, and a ``desc-brain`` mask to others.

    Parameters
    ----------
    atlas_dir : path-like
        Atlas folder (``--atlas-dir``).

    Returns
    -------
    list of Atlas
        At least one atlas.

    Raises
    ------
    UsageError
        When the folder holds no pair, or a file of a pair is missing or too large.
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
            f"No atlas was found in {atlas_dir}: none of {len(files)} NIfTI files has a brain "
            "mask of the same name.",
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
    """Compute the brain mask of a whole head by multi-atlas label fusion.

    This is the paper's method ([33], MASS), implemented with antspyx. Each atlas is registered to
    the scan with a coarse affine. The most similar atlases are then warped with SyN, and their
    masks are fused by locally weighted voting (:func:`fuse`).

    Parameters
    ----------
    img : nibabel.Nifti1Image
        3-D RAS image with skull.
    atlases : sequence of Atlas
        Atlases from :func:`find_atlases`.
    n_best : int
        Number of atlases to fuse.
    seed : int
        Random seed of the registrations. They run in one thread, so results are reproducible.
    exclude : collection of str
        Scan keys (``sub-01_ses-a``). Atlases of the same subjects are excluded, so that no scan is
        segmented with its own mask.

    Returns
    -------
    mask : numpy.ndarray
        Boolean mask on the image's grid: one component without holes.
    record : dict
        ``n_atlases`` (number of atlases passed), ``excluded`` (number excluded) and ``used`` (name
        and similarity of each fused atlas, best first).

    Raises
    ------
    ScanError
        When all atlases are excluded.
    """
    subjects = {key.split("_")[0] for key in exclude}
    pool = [atlas for atlas in atlases if atlas.name.split("_")[0] not in subjects]
    if not pool:
        raise ScanError(
            "All atlases are scans of the same subject.",
            "Add atlases of other subjects to --atlas-dir.",
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
    """Fuse warped atlas masks by locally weighted voting.

    At each voxel, an atlas is weighted by its local correlation with the scan.

    Parameters
    ----------
    target : numpy.ndarray
        3-D scan.
    voters : sequence of (image, mask)
        Atlas images and masks warped to the scan's grid; masks in [0, 1].
    sigma : float
        Standard deviation of the Gaussian patches, in voxels.

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
    """Register an atlas to ``fixed``; return its image and mask on ``grid``, and transforms."""
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
    """Downsample a RAS image and scale it to [0, 1], clipping at the 1st and 99.5th percentile."""
    coarse = downsample(img, target_mm)
    data = np.asarray(coarse.dataobj)
    low, high = np.percentile(data, (1, 99.5))
    return nib.Nifti1Image(np.clip((data - low) / ((high - low) or 1), 0, 1), coarse.affine)
