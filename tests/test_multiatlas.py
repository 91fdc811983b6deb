"""Multi-atlas label fusion: which files are atlases, how they vote, and what comes out."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_harmony.anat.brain import Atlas, dice, find_atlases, fuse, multiatlas_mask
from bids_harmony.errors import ScanError, UsageError


def save(path: Path, data: np.ndarray | None = None, zoom: float = 4.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.zeros((4, 4, 4), np.uint8) if data is None else data
    nib.save(nib.Nifti1Image(data, np.diag([zoom, zoom, zoom, 1.0])), path)
    return path


def phantom(size: tuple[float, float, float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make a head of 48 voxels of 4 mm: scalp, dark skull, and a brain of its own texture."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(48) - 23.5] * 3, indexing="ij"))
    radius = np.sqrt(sum((x / s) ** 2 for x, s in zip(grid, size, strict=True)))
    brain = radius < 1
    # The same folds in every head, stretched with it.
    texture = sum(
        np.cos(6 * x / s + phase) for x, s, phase in zip(grid, size, (0, 1, 2), strict=True)
    )
    head = np.where(brain, 120 + 20 * texture, 0.0)
    head[(radius > 1.12) & (radius < 1.25)] = 200
    head = ndimage.gaussian_filter(head, 0.6) + rng.normal(0, 3, head.shape)
    return head.astype(np.float32), brain.astype(np.uint8)


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    sizes = {"sub-01": (15, 18, 14), "sub-02": (16, 17, 15), "sub-03": (14, 18, 13.5)}
    for seed, (name, size) in enumerate(sizes.items()):
        head, brain = phantom(size, seed)
        save(tmp_path / name / "anat" / f"{name}_T1w.nii.gz", head)
        label = tmp_path / "derivatives" / "x" / name / f"{name}_desc-brain_mask.nii.gz"
        save(label, (0.9 * brain).astype(np.float32))  # soft, as some are
    return tmp_path


def test_pairs_are_found_across_derivatives_and_side_by_side(tmp_path: Path) -> None:
    image = save(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    labels = save(tmp_path / "derivatives" / "d" / "sub-01" / "sub-01_desc-dlmuse_dseg.nii.gz")
    save(tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz")
    one = save(tmp_path / "head_1.nii"), save(tmp_path / "head_1_mask.nii.gz")
    two = save(tmp_path / "head_2.nii.gz"), save(tmp_path / "head_2_mask.nii")
    heads = [Atlas("head_1", *one), Atlas("head_2", *two)]
    assert find_atlases(tmp_path) == [*heads, Atlas("sub-01", image, labels)]
    # A mask wins over labels, and a brain mask over others.
    for name in ("sub-01_desc-a_mask.nii.gz", "sub-01_T1w_desc-brain_mask.nii.gz"):
        assert find_atlases(tmp_path)[-1].mask != (mask := save(tmp_path / name))
        assert find_atlases(tmp_path)[-1].mask == mask


def test_masks_of_other_sessions_and_spaces_do_not_count(tmp_path: Path) -> None:
    save(tmp_path / "sub-01_T1w.nii.gz")
    save(tmp_path / "sub-01_ses-b_desc-brain_mask.nii.gz")
    save(tmp_path / "sub-01_space-MNI_desc-brain_mask.nii.gz")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="No atlas was found"):
            find_atlases(folder)


def test_a_pair_that_is_not_fetched_is_a_usage_error(tmp_path: Path) -> None:
    save(tmp_path / "head.nii.gz")
    (tmp_path / "head_mask.nii.gz").symlink_to(tmp_path / ".git" / "annex" / "objects" / "x")
    with pytest.raises(UsageError, match=r"head_mask.nii.gz cannot be read: its content is not"):
        find_atlases(tmp_path)


def test_each_voxel_follows_the_atlas_that_looks_like_it() -> None:
    rng = np.random.default_rng(0)
    target = ndimage.gaussian_filter(rng.normal(size=(24, 16, 16)), 1) * 10
    other = ndimage.gaussian_filter(rng.normal(size=(24, 16, 16)), 1) * 10
    left = np.arange(24)[:, None, None] < 12
    one, two = np.where(left, target, other), np.where(left, other, target)
    voters = [(one, np.ones(target.shape)), (two, np.zeros(target.shape))]
    share = fuse(target, voters, 1.0)
    assert 0 <= share.min() <= share.max() <= 1
    assert share[:8].mean() > 0.9
    assert share[-8:].mean() < 0.1


def test_heads_find_each_others_brains_repeatably(heads: Path) -> None:
    atlases = find_atlases(heads)
    img = nib.load(atlases[0].image)
    mask, record = multiatlas_mask(img, atlases, n_best=2, exclude=("sub-01",))
    again, _ = multiatlas_mask(img, atlases, n_best=2, exclude=("sub-01_ses-2",))
    truth = np.asarray(nib.load(atlases[0].mask).dataobj) > 0
    assert mask.dtype == bool
    assert dice(mask, truth) > 0.95
    assert np.array_equal(mask, again)
    assert ndimage.label(mask)[1] == 1
    assert (record["n_atlases"], record["excluded"]) == (3, 1)
    assert {voter["name"] for voter in record["used"]} == {"sub-02", "sub-03"}
    assert record["used"][0]["similarity"] >= record["used"][1]["similarity"] > 0.5
    with pytest.raises(ScanError, match="same subject"):
        multiatlas_mask(img, atlases[:1], exclude=("sub-01",))
