"""Methods of preparing scans: each a training set that differs in the scans asked for alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from training_data import balls, from_arrays

from bids_harmony.anat.affine import write_affine
from bids_harmony.evaluation.methods import (
    Method,
    combat,
    mapping,
    matching,
    prepare,
    unharmonized,
)
from bids_harmony.models.networks import SiteMap
from bids_harmony.sites.code import IntensityMapping
from bids_harmony.training.data import TrainingSet


@pytest.fixture
def data() -> TrainingSet:
    return balls()


def test_without_harmonization_a_scan_is_resampled_and_divided_alone(
    data: TrainingSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A raw scan with a bias field, and CSF outside of what tissue normalization keeps.
    shape = (64, 64, 48)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    brain = x**2 + y**2 + z**2 < 0.8
    raw = np.where(brain, 500 + 300 * x, 40).astype(np.float32)
    used = brain & (x**2 + y**2 + z**2 < 0.6)
    nib.save(nib.Nifti1Image(raw, affine), tmp_path / "raw.nii.gz")
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), affine), tmp_path / "mask.nii.gz")
    write_affine(np.eye(4), tmp_path / "xfm.txt")
    one = from_arrays(
        np.where(used, 0.5, 0).transpose(2, 1, 0)[None], used.transpose(2, 1, 0)[None],
        pd.DataFrame({"subject": ["01"], "site": ["A"]}), affine=affine, shape=shape,
        box=((0, shape[1]), (0, shape[0])),
    )  # fmt: skip
    files = (tmp_path / "raw.nii.gz", tmp_path / "xfm.txt", tmp_path / "mask.nii.gz")
    one.table["_source"] = pd.Series([files], dtype=object)
    found = unharmonized(one, tmp_path)
    assert found is not None
    volume, mask = found.volume(0)
    assert np.array_equal(mask, brain)  # the brain mask as it was found
    wanted = raw / np.percentile(raw[brain], 98)
    np.testing.assert_allclose(volume[brain], wanted[brain], rtol=2e-3)  # and the bias field
    assert not volume[~brain].any()

    (tmp_path / "xfm.txt").unlink()
    assert unharmonized(one, tmp_path) is None
    assert "1 of 1 scans have no raw image or no transform" in caplog.text
    assert "sub-01" in caplog.text
    write_affine(np.eye(4), tmp_path / "xfm.txt")
    (tmp_path / "raw.nii.gz").write_bytes(b"broken")
    assert unharmonized(one, tmp_path) is None
    assert "raw.nii.gz" in caplog.messages[-1]


def test_only_the_scans_asked_for_change(data: TrainingSet, tmp_path: Path) -> None:
    calls: list[int] = []

    def darker(scan: int, volume: np.ndarray, _: np.ndarray) -> np.ndarray:
        calls.append(scan)
        return volume / 2

    found = prepare(data, [1, 4], Method(darker, "darker", ["A"]), tmp_path)
    for scan in range(len(data)):
        before, mask = data.stack(scan)
        after, same = found.stack(scan)
        assert np.array_equal(mask, same)
        np.testing.assert_allclose(after, before / 2 if scan in (1, 4) else before, atol=2e-3)
    prepare(data, [1, 4], Method(darker, "darker", ["A"]), tmp_path)
    assert calls == [1, 4]  # taken from the folder the second time
    prepare(data, [1, 4], Method(darker, "darker still", ["A"]), tmp_path)
    assert calls == [1, 4, 1, 4]


def test_matched_scans_have_the_references_quantiles_and_mapped_ones_their_sites_map(
    data: TrainingSet,
) -> None:
    volume, mask = data.volume(0)
    found = matching(np.linspace(0.2, 0.9, 256), []).change(0, volume, mask)[mask]
    np.testing.assert_allclose(np.quantile(found, [0.1, 0.5, 0.9]), [0.27, 0.55, 0.83], atol=0.01)
    x = np.array([0.2, 0.5, 1.0])
    of_site = {
        site: SiteMap(IntensityMapping(x, x - by), np.zeros(1), None, data.box)
        for site, by in (("REF", 0.0), ("A", 0.1))
    }
    method = mapping("harmonized", of_site, data.sites)
    for scan, less in ((0, 0.0), (6, 0.1)):
        volume, mask = data.volume(scan)
        bright = mask & (volume > 0.25)
        found = method.change(scan, volume, mask)
        np.testing.assert_allclose(volume[bright] - found[bright], less, atol=1e-5)
        assert not found[~mask].any()


def test_combat_takes_a_site_to_the_references_intensities() -> None:
    data = balls({"REF": 8, "A": 8})
    method = combat(data, np.array([*range(6), *range(8, 14)]), ["REF"], 0)
    assert method.sites == ("A", "REF")
    (own, mask), (unseen, _) = data.volume(7), data.volume(15)
    assert method.change(7, own, mask) is own  # the reference stays as it is
    found = method.change(15, unseen, mask)
    shell = (own > 0.45) & (own < 0.65)  # grey matter at the reference
    assert unseen[shell].mean() == pytest.approx(0.75, abs=0.02)
    assert found[shell].mean() == pytest.approx(0.55, abs=0.04)
    assert (found[~mask] == 0).all()
    few = combat(data, np.array([0, 1, 2, 3, 8, 9]), ["REF"], 0)
    assert (few.sites, few.reason) == ((), "ComBat needs 3 persons of each site for fitting")


def test_combat_wants_persons_not_scans_and_voxels_that_vary() -> None:
    data = balls({"REF": 8, "A": 6})
    data.table["subject"] = [f"r{i}" for i in range(8)] + ["a", "a", "a", "b", "b", "b"]
    assert combat(data, np.arange(14), ["REF"], 0).sites == ()
    data = balls({"REF": 8, "A": 8, "B": 2})
    assert combat(data, np.arange(18), ["REF"], 0).sites == ("A", "REF")
    assert combat(data, np.arange(18), ["REF", "B"], 0).sites == ()
    images = np.array(data.volumes)
    images[:, 6, 16, 24] = 0.5  # the same in all scans
    method = combat(replace(data, volumes=images), np.arange(18), ["REF"], 0)
    assert np.isfinite(method.change(15, *data.volume(15))).all()
