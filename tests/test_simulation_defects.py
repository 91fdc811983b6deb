"""Bad scans: each kind is as bad as its label says, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from test_simulation_dataset import digests, validator_errors

from bids_harmony.simulation.dataset import simulate_dataset
from bids_harmony.simulation.defects import (
    KINDS,
    RANGES,
    Defect,
    draw_defect,
    scan_badly,
    spoil_mask,
)
from bids_harmony.simulation.head import Head, make_head
from bids_harmony.simulation.scanner import Scanner, draw_scanner, scan_head

SITE = 3


@pytest.fixture(scope="module")
def head() -> Head:
    return make_head(3, age=45, spacing=2)


@pytest.fixture(scope="module")
def scanner() -> Scanner:
    return draw_scanner(1, SITE, min_voxel_mm=2.0)


@pytest.fixture(scope="module")
def good(head: Head, scanner: Scanner) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    return scan_head(head, scanner, 1)


def arrays(*images: nib.Nifti1Image) -> list[np.ndarray]:
    """Arrays in RAS+ order of the axes, as they are stored."""
    return [np.asarray(nib.as_closest_canonical(img).dataobj).astype(float) for img in images]


def spoilt(head: Head, scanner: Scanner, kind: str, **changes: float) -> tuple[np.ndarray, ...]:
    defect = Defect(kind, **{"amount": RANGES[kind][0], "axis": 1, "end": 1, "seed": 2, **changes})
    scan, mask, severity = scan_badly(head, scanner, 1, defect)
    return (*arrays(scan, mask), severity)


@pytest.mark.parametrize("axis", [0, 1])
def test_ghosts_lie_along_the_phase_axis_and_blur_the_brain(
    head: Head, scanner: Scanner, good: tuple, axis: int
) -> None:
    clean, mask = arrays(*good)
    bad, _, severity = spoilt(head, scanner, "ghosting", axis=axis)
    assert severity == 3.0
    # Air: well away from the head.
    air = ~ndimage.binary_dilation(clean > 0.15 * np.median(clean[mask > 0]), iterations=4)
    along = (clean > 0.3 * np.median(clean[mask > 0])).any(axis=axis, keepdims=True)
    ghosts, aside = air & along, air & ~along
    assert bad[ghosts].mean() > 1.4 * clean[ghosts].mean()
    assert bad[aside].mean() == pytest.approx(clean[aside].mean(), rel=0.05)
    deep = ndimage.binary_erosion(mask > 0, iterations=3)
    assert np.corrcoef(bad[deep], clean[deep])[0, 1] < 0.9


def test_wrong_contrast_has_fluid_brighter_than_white_matter(
    head: Head, scanner: Scanner, good: tuple
) -> None:
    bad, mask, severity = spoilt(head, scanner, "wrong-contrast")
    assert severity == RANGES["wrong-contrast"][0]
    clean, _ = arrays(*good)
    white = np.percentile(clean[mask > 0], 80)
    fluid = (mask > 0) & (clean < 0.35 * white)
    tissue = (mask > 0) & (clean > 0.9 * white)
    assert np.median(bad[fluid]) > 3 * np.median(bad[tissue])
    assert np.corrcoef(bad[mask > 0], clean[mask > 0])[0, 1] < -0.7


@pytest.mark.parametrize(("axis", "end"), [(2, 1), (2, -1), (1, 1)])
def test_a_cropped_scan_has_lost_the_share_of_the_brain_its_label_says(
    head: Head, scanner: Scanner, good: tuple, axis: int, end: int
) -> None:
    clean, whole = arrays(*good)
    bad, mask, severity = spoilt(head, scanner, "cropped", axis=axis, end=end, amount=0.25)
    assert bad.shape == mask.shape
    assert 1 - mask.sum() / whole.sum() == pytest.approx(severity)
    assert severity == pytest.approx(0.25, abs=0.02)
    kept = [slice(None)] * 3
    kept[axis] = slice(None, bad.shape[axis]) if end > 0 else slice(-bad.shape[axis], None)
    np.testing.assert_array_equal(bad, clean[tuple(kept)])


def test_noise_is_as_strong_as_its_label_says(head: Head, scanner: Scanner) -> None:
    bad, mask, severity = spoilt(head, scanner, "noise", amount=0.3)
    corner = bad[:8, -8:, -8:]
    sigma = np.sqrt((corner**2).mean() / 2)
    white = np.percentile(arrays(scan_head(head, scanner, 1)[0])[0][mask > 0], 80)
    assert severity == 0.3
    assert sigma / white == pytest.approx(0.3, rel=0.35)  # the receive field shades white matter


def test_a_wrong_orientation_turns_the_header_and_leaves_the_data(
    head: Head, scanner: Scanner, good: tuple
) -> None:
    defect = Defect("wrong-orientation", 50.0, 0, 1, 2)
    scan, mask, severity = scan_badly(head, scanner, 1, defect)
    np.testing.assert_array_equal(np.asarray(scan.dataobj), np.asarray(good[0].dataobj))
    zooms, right = np.array(nib.affines.voxel_sizes(scan.affine)), good[0].header.get_zooms()
    turn = (scan.affine[:3, :3] / zooms) @ np.linalg.inv(good[0].affine[:3, :3] / right)
    assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) == pytest.approx(severity) == 50.0
    # One axis is stretched and another shrunk as much.
    low, same, high = sorted(zooms / right)
    assert high > 1.5
    assert (low * high, same) == pytest.approx((1.0, 1.0))
    np.testing.assert_array_equal(mask.affine, scan.affine)
    np.testing.assert_allclose(scan.get_qform(), scan.get_sform(), atol=1e-3)


def test_a_wrong_mask_lacks_brain_or_holds_the_face(good: tuple) -> None:
    scan, mask = good
    inside = np.asarray(mask.dataobj) > 0
    for end in (1, -1):
        defect = Defect("wrong-mask", 0.4, 2, end, 2)
        wrong, severity = spoil_mask(scan, mask, defect)
        found = np.asarray(wrong.dataobj) > 0
        assert severity == pytest.approx(0.4, abs=0.02)
        assert (found != inside).sum() / inside.sum() == pytest.approx(severity)
        assert not ((inside if end < 0 else found) & ~(found if end < 0 else inside)).any()
    # A scan without face has a mask that lacks brain, whatever was drawn.
    bare = nib.Nifti1Image(np.asarray(scan.dataobj) * inside, scan.affine)
    half, _ = spoil_mask(bare, mask, defect)
    assert np.asarray(half.dataobj).sum() < 0.65 * inside.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_defects_are_drawn_within_what_a_person_would_reject(kind: str) -> None:
    draws = [draw_defect(kind, np.random.default_rng(seed)) for seed in range(40)]
    amounts = [draw.amount for draw in draws]
    low, high = RANGES[kind]
    assert low <= min(amounts) <= max(amounts) <= high
    assert len({(draw.axis, draw.end) for draw in draws}) > 1
    assert draws[3] == draw_defect(kind, np.random.default_rng(3))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bad") / "bids"
    options = {"n_sites": 2, "n_subjects": [7, 2], "seed": 4, "resolution": 3.0}
    simulate_dataset(out, **options, bad=7 / 9, pathology=2 / 9)
    return out


def test_the_truth_says_what_is_wrong_with_each_scan(dataset: Path) -> None:
    scans = pd.read_csv(dataset / "derivatives/truth/scans.tsv", sep="\t", keep_default_na=False)
    people = pd.read_csv(dataset / "derivatives/truth/participants.tsv", sep="\t")
    assert len(scans) == 9
    assert all((dataset / name).is_file() for name in scans["filename"])
    assert sorted(q for q in scans["quality"] if q != "good") == sorted(KINDS)
    assert (scans["severity"] > 0).tolist() == (scans["quality"] != "good").tolist()
    ill = scans[scans["pathology"] != "none"]
    assert len(ill) == 3
    assert sorted(ill["quality"]) == ["good", "good", "lesion"]
    assert (ill["pathology_ml"] > 5).all()
    np.testing.assert_array_equal(people["pathology_ml"], scans["pathology_ml"])
    lesion = scans[scans["quality"] == "lesion"].iloc[0]
    assert lesion["severity"] == pytest.approx(lesion["pathology_ml"])


def test_only_the_wrong_mask_is_offered_and_all_datasets_are_valid(
    dataset: Path, tmp_path: Path
) -> None:
    scans = pd.read_csv(dataset / "derivatives/truth/scans.tsv", sep="\t")
    wrong = scans.loc[scans["quality"] == "wrong-mask", "filename"].item()
    expected = Path(wrong.replace("_T1w.nii.gz", "_desc-brain_mask.nii.gz"))
    masks = dataset / "derivatives" / "masks"
    assert [p.relative_to(masks) for p in masks.rglob("*.nii.gz")] == [expected]
    for folder in (dataset, dataset / "derivatives" / "truth", masks):
        assert validator_errors(folder, tmp_path) == []


def test_bad_scans_are_the_same_again_and_good_ones_as_without(
    dataset: Path, tmp_path: Path
) -> None:
    options = {"n_sites": 2, "n_subjects": [7, 2], "seed": 4, "resolution": 3.0, "nprocs": 2}
    simulate_dataset(tmp_path / "again", **options, bad=7 / 9, pathology=2 / 9)
    assert digests(tmp_path / "again") == digests(dataset)
