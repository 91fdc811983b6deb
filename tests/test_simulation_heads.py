"""Simulated heads: their anatomy, and what is true about them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from bids_harmony.simulation.anatomy import Head, Tissue, make_head

TISSUES = ("gm_ml", "wm_ml", "csf_ml", "lesion_ml")


@pytest.fixture(scope="module")
def head() -> Head:
    return make_head(3, age=45, spacing=2)


def test_ventricles_grow_and_cortex_thins_with_age() -> None:
    table = pd.DataFrame([make_head(11, age=age, spacing=2).truth for age in (25, 45, 65, 80)])
    assert table["ventricle_ml"].is_monotonic_increasing
    assert table["ventricle_ml"].iloc[-1] > 1.5 * table["ventricle_ml"].iloc[0]
    assert table["gm_ml"].is_monotonic_decreasing
    assert 0.80 < table["gm_ml"].iloc[-1] / table["gm_ml"].iloc[0] < 0.92
    # The skull does not age.
    np.testing.assert_allclose(table["brain_ml"], table["brain_ml"].iloc[0], rtol=0.002)
    assert table[["ventricle_age_mm", "cortex_age_log_odds"]].iloc[0].tolist() == [0, 0]
    assert (table[["ventricle_diagnosis_mm", "cortex_diagnosis_log_odds"]] == 0).all(axis=None)


def test_the_diagnosis_widens_ventricles_and_thins_cortex() -> None:
    well, faint, ill = (
        make_head(12, age=40, diagnosis=diagnosis, spacing=2, diagnosis_effect=size).truth
        for diagnosis, size in (("control", 1.0), ("schizophrenia", 0.4), ("schizophrenia", 1.0))
    )
    assert ill["ventricle_ml"] > 1.1 * well["ventricle_ml"]
    assert ill["gm_ml"] < 0.995 * well["gm_ml"]
    for name in ("ventricle_diagnosis_mm", "cortex_diagnosis_log_odds"):
        assert faint[name] == pytest.approx(0.4 * ill[name], abs=1e-4)
    assert well["ventricle_ml"] < faint["ventricle_ml"] < ill["ventricle_ml"]


def test_a_coarse_head_is_the_fine_head(head: Head) -> None:
    fine = make_head(3, age=45)
    np.testing.assert_array_equal(fine.labels[::2, ::2, ::2], head.labels)
    for name in ("brain_ml", "gm_ml", "csf_ml", "ventricle_ml"):
        assert fine.truth[name] == pytest.approx(head.truth[name], rel=0.02)


def test_a_head_is_wrapped_in_csf_bone_and_skin(head: Head) -> None:
    """Walking upwards from the brain's middle meets them in this order."""
    x, y, z = (int(c.mean()) for c in np.nonzero(head.brain_mask))
    up = head.labels[x, y, z:]
    runs = [Tissue(int(up[0]))]
    runs += [Tissue(int(b)) for a, b in itertools.pairwise(up) if a != b]
    assert runs[0] is Tissue.BRAIN
    assert runs[-2:] == [Tissue.SKIN, Tissue.AIR]
    assert Tissue.BONE in runs
    assert Tissue.FAT in runs
    assert runs.index(Tissue.BONE) < runs.index(Tissue.FAT)


def test_a_lesion_is_a_tissue_of_its_own_in_the_same_head(head: Head) -> None:
    ill = make_head(3, age=45, spacing=2, lesion=True)
    np.testing.assert_array_equal(ill.labels, head.labels)
    assert head.truth["lesion_ml"] == 0
    assert 10 < ill.truth["lesion_ml"] < 60
    for each in (head, ill):
        np.testing.assert_allclose(each.fractions.sum(axis=0), 1, atol=1e-5)
        volumes = each.fractions.sum(axis=1, dtype=float) * 8 / 1000
        assert volumes == pytest.approx([each.truth[name] for name in TISSUES], rel=1e-3)
        assert sum(volumes) == pytest.approx(each.truth["brain_ml"], abs=0.01)
    # Elsewhere nothing changes.
    outside = ill.fractions[3] == 0
    assert outside.mean() > 0.9
    np.testing.assert_allclose(ill.fractions[:, outside], head.fractions[:, outside], atol=1e-6)
    assert ill.truth["wm_ml"] < head.truth["wm_ml"] - 5
