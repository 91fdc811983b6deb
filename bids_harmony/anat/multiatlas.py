"""Brain mask by multi-atlas label fusion, the paper's method ([33], MASS), on antspyx."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from scipy import ndimage

from bids_harmony.anat.affine import downsample, local_correlation, to_ants
from bids_harmony.anat.brain import as_mask, dice
from bids_harmony.anat.check import load_t1w
from bids_harmony.anat.geometry import load_image
from bids_harmony.anat.intensity import largest_component
from bids_harmony.errors import ScanError, UsageError

N_ATLASES = 6
#: Voxel sizes, in mm, at which atlases are ranked, warped and fused.
COARSE_MM, SYN_MM, WORK_MM = 8.0, 4.0, 2.0
#: Room around the brain, in mm, in which the deformable registration works.
MARGIN_MM = 16.0
#: Standard deviation, in mm, of the patches that local weights compare.
PATCH_MM = 4.0
#: How sharply a better local match is preferred: weights are local correlations to this power.
SHARPNESS = 4.0
#: SyN iterations at 16, 8 and 4 mm.
ITERATIONS = (40, 40, 20)

#: What a mask's name may say beyond its image's; ``space-`` would be another grid.
MASK_ENTITIES = ("atlas", "desc", "label", "res", "seg")


@dataclass(frozen=True)
class Atlas:
    """A whole-head T1w image and its brain mask, on one grid.

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
        When the folder is absent, holds no pair, or a pair cannot be read or lies on two grids.
    """
    folder = Path(atlas_dir)
    if not folder.is_dir():
        raise UsageError(
            f"The atlas folder {folder} does not exist.", "Give --atlas-dir an existing folder."
        )
    files = {_stem(path): path for path in sorted(folder.rglob("*.nii*")) if _stem(path)}
    labels: dict[str, list[str]] = {}
    for stem in files:
        if stem.endswith(("_mask", "_dseg")):
            labels.setdefault(stem.split("_")[0], []).append(stem)
    atlases = []
    for stem in files:
        if stem.endswith(("_mask", "_dseg")):
            continue
        name = stem.removesuffix("_T1w")
        candidates = [
            label for label in labels.get(stem.split("_")[0], []) if _belongs(label, name, stem)
        ]
        if candidates:
            best = min(candidates, key=_preference)
            atlases.append(Atlas(name, files[stem], files[best]))
    if not atlases:
        raise UsageError(
            f"No atlas was found in {folder}: {len(files)} NIfTI files were looked at, and none "
            "has a brain mask of the same name.",
            "Provide pairs such as sub-01_T1w.nii.gz with sub-01_desc-brain_mask.nii.gz (or a "
            "_dseg label map, also under derivatives/), or head.nii.gz with head_mask.nii.gz.",
        )
    for atlas in atlases:
        _check_grids(atlas)
    return sorted(atlases, key=lambda atlas: (atlas.name, str(atlas.image)))


def multiatlas_mask(
    img: nib.Nifti1Image,
    atlases: Sequence[Atlas],
    *,
    n_best: int = N_ATLASES,
    seed: int = 42,
    exclude: Collection[str] = (),
) -> tuple[np.ndarray, dict[str, Any]]:
    """Brain mask of a whole head by fusing the warped masks of similar atlases.

    Every atlas is registered to the scan by a coarse affine; the most similar ones are then
    warped by SyN, and their masks vote in each voxel with the weight of their local likeness
    (locally weighted voting), as MASS does [33].

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
        ``n_atlases`` found, ``excluded``, ``used`` (name, similarity and Dice with the fused
        mask of each voter, best first).

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
    with tempfile.TemporaryDirectory(prefix="multiatlas") as scratch:
        coarse = _prepare(img, COARSE_MM)
        ranked = sorted(
            (_rank(coarse, atlas, f"{scratch}/{n}_", seed) for n, atlas in enumerate(pool)),
            key=lambda item: (-item[0], item[1].name),
        )[:n_best]
        fixed = _crop(_prepare(img, WORK_MM), ranked)
        voters = [_warp(fixed, atlas, affine, seed) for _, atlas, affine in ranked]
    chance = fuse(np.asarray(fixed.dataobj), voters, PATCH_MM / WORK_MM)
    fused = chance > 0.5
    records = [_read_mask(atlas)[1] for _, atlas, _ in ranked]
    return _to_native(chance, fixed.affine, img), {
        # That labels are brain needs no word: they are as good as masks here.
        "notes": [note for r in records if r.get("threshold") for note in r["notes"]],
        "n_atlases": len(atlases),
        "excluded": len(atlases) - len(pool),
        "used": [
            {
                "name": atlas.name,
                "similarity": round(similarity, 4),
                "dice": round(dice(vote > 0.5, fused), 4),
            }
            for (similarity, atlas, _), (_, vote) in zip(ranked, voters, strict=True)
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
    total, votes = np.zeros(target.shape), np.zeros(target.shape)
    for image, mask in voters:
        likeness = local_correlation(target, image, sigma)
        weight = np.clip(likeness, 0.01, 1) ** SHARPNESS
        total += weight
        votes += weight * mask
    return votes / total


def _rank(
    fixed: nib.Nifti1Image, atlas: Atlas, prefix: str, seed: int
) -> tuple[float, Atlas, str]:
    """Register an atlas coarsely; return its likeness around the brain and the transform."""
    target = to_ants(np.asarray(fixed.dataobj), fixed.affine)
    import ants

    ants.config.set_ants_deterministic(True, seed)
    result = ants.registration(
        target,
        _ants(_prepare(load_t1w(atlas.image)[0], COARSE_MM)),
        type_of_transform="Affine",
        outprefix=prefix,
        aff_iterations=(200, 100),
        aff_shrink_factors=(2, 1),
        aff_smoothing_sigmas=(1, 0),
        aff_random_sampling_rate=0.2,
    )
    transform = result["fwdtransforms"][0]
    brain = _move(_load_mask(atlas, COARSE_MM), fixed, [transform])
    around = ndimage.binary_dilation(brain > 0.25, iterations=1)
    if not around.any():
        return -1.0, atlas, transform
    moved = result["warpedmovout"].numpy()
    return (
        float(local_correlation(np.asarray(fixed.dataobj), moved, 1.0)[around].mean()),
        atlas,
        transform,
    )


def _crop(fixed: nib.Nifti1Image, ranked: Sequence[tuple[float, Atlas, str]]) -> nib.Nifti1Image:
    """Keep the part of a scan that holds the brain by the coarse registrations."""
    brain = sum(_move(_load_mask(atlas, COARSE_MM), fixed, [path]) for _, atlas, path in ranked)
    margin = int(np.ceil(MARGIN_MM / WORK_MM))
    where = np.argwhere(brain > 0.5)
    low = np.maximum(where.min(axis=0) - margin, 0)
    high = where.max(axis=0) + margin + 1
    return fixed.slicer[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]


def _warp(
    fixed: nib.Nifti1Image, atlas: Atlas, affine: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Warp an atlas to the scan by SyN; return its image and its mask on the scan's grid."""
    whole, _ = load_t1w(atlas.image)
    target, moving = _ants(_prepare(fixed, SYN_MM)), _ants(_prepare(whole, SYN_MM))
    import ants

    ants.config.set_ants_deterministic(True, seed)
    transforms = ants.registration(
        target,
        moving,
        type_of_transform="SyNOnly",
        initial_transform=affine,
        outprefix=affine.removesuffix("0GenericAffine.mat") + "warp_",
        reg_iterations=ITERATIONS,
    )["fwdtransforms"]
    image, mask = (
        _move(moved, fixed, transforms)
        for moved in (_prepare(whole, WORK_MM), _load_mask(atlas, WORK_MM))
    )
    return image, mask


def _prepare(img: nib.Nifti1Image, target_mm: float) -> nib.Nifti1Image:
    """Bring a RAS image to coarser voxels, with values in [0, 1] and no bright outliers."""
    data, affine = downsample(np.asarray(img.dataobj, dtype=np.float32), img.affine, target_mm)
    low, high = np.percentile(data, (1, 99.5))
    return nib.Nifti1Image(np.clip((data - low) / ((high - low) or 1), 0, 1), affine)


def _load_mask(atlas: Atlas, target_mm: float) -> nib.Nifti1Image:
    """Load an atlas' brain mask in RAS and at coarser voxels, with values in [0, 1]."""
    mask, _ = _read_mask(atlas)
    ras = nib.as_closest_canonical(mask)
    data, affine = downsample(np.asarray(ras.dataobj, np.float32), ras.affine, target_mm)
    return nib.Nifti1Image(data, affine)


def _read_mask(atlas: Atlas) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    img, _ = load_image(atlas.mask)
    mask, record = as_mask(np.asarray(img.dataobj), f"The mask of the atlas {atlas.name}")
    return nib.Nifti1Image(mask.astype(np.uint8), img.affine), record


def _ants(img: nib.Nifti1Image) -> Any:
    return to_ants(np.asarray(img.dataobj, dtype=np.float32), img.affine)


def _move(img: nib.Nifti1Image, fixed: nib.Nifti1Image, transforms: list[str]) -> np.ndarray:
    """Resample an image on the grid of another through ITK transforms."""
    target, moving = _ants(fixed), _ants(img)
    import ants

    moved: np.ndarray = ants.apply_transforms(target, moving, transformlist=transforms).numpy()
    return moved


def _to_native(chance: np.ndarray, affine: np.ndarray, img: nib.Nifti1Image) -> np.ndarray:
    """Bring votes to a scan's own grid; keep the largest component and fill its holes."""
    moved = ndimage.affine_transform(
        chance, np.linalg.inv(affine) @ img.affine, output_shape=img.shape[:3], order=1
    )
    mask: np.ndarray = ndimage.binary_fill_holes(largest_component(moved > 0.5))
    return mask


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _belongs(label: str, name: str, stem: str) -> bool:
    """Tell whether a mask's name adds to an image's name only what masks add."""
    for start in (f"{stem}_", f"{name}_"):
        if label.startswith(start):
            added = label.removeprefix(start).split("_")[:-1]
            return all(part.split("-")[0] in MASK_ENTITIES for part in added)
    return False


def _preference(stem: str) -> tuple[bool, bool, str]:
    """Sort masks before label maps, and a brain mask before others."""
    return (stem.endswith("_dseg"), "_desc-brain_" not in stem, stem)


def _check_grids(atlas: Atlas) -> None:
    try:
        image, mask = (load_image(path)[0] for path in (atlas.image, atlas.mask))
    except (ImageFileError, OSError, EOFError, ValueError, ScanError) as error:
        raise UsageError(
            f"The atlas {atlas.name} cannot be read ({error}).",
            "Fetch or replace the file, or take the pair out of --atlas-dir.",
        ) from error
    same = image.shape == mask.shape
    if not (same and np.allclose(image.affine, mask.affine, atol=0.01)):
        raise UsageError(
            f"The atlas image {atlas.image} and its mask {atlas.mask} lie on different grids.",
            "Resample the mask onto the image, or take the pair out of --atlas-dir.",
        )
