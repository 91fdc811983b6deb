"""Simulated heads: what they look like, and what is true about them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from bids_harmony.simulation.atlas import upsample
from bids_harmony.simulation.head import Head, make_head
from bids_harmony.simulation.layers import Tissue


@pytest.fixture(scope="module")
def head() -> Head:
    return make_head(3, age=45, spacing=2)


def test_ventricles_grow_and_cortex_thins_with_age() -> None:
    truths = [make_head(11, age=age, spacing=2).truth for age in (20, 40, 60, 80)]
    table = pd.DataFrame(truths)
    assert table["ventricle_ml"].is_monotonic_increasing
    assert table["ventricle_ml"].iloc[-1] > 1.5 * table["ventricle_ml"].iloc[0]
    assert table["gm_ml"].is_monotonic_decreasing
    assert 0.80 < table["gm_ml"].iloc[-1] / table["gm_ml"].iloc[0] < 0.92
    # The skull does not age.
    np.testing.assert_allclose(table["brain_ml"], table["brain_ml"].iloc[0], rtol=0.002)


def test_the_diagnosis_widens_ventricles_and_thins_cortex() -> None:
    well, ill = (
        make_head(12, age=40, diagnosis=diagnosis, spacing=2)
        for diagnosis in ("control", "schizophrenia")
    )
    assert ill.truth["ventricle_ml"] > 1.1 * well.truth["ventricle_ml"]
    assert ill.truth["gm_ml"] < 0.995 * well.truth["gm_ml"]
    faint = make_head(12, age=40, diagnosis="schizophrenia", spacing=2, diagnosis_effect=0.4)
    for name in ("ventricle_diagnosis_mm", "cortex_diagnosis_log_odds"):
        assert faint.truth[name] == pytest.approx(0.4 * ill.truth[name], abs=1e-4)
    assert well.truth["ventricle_ml"] < faint.truth["ventricle_ml"] < ill.truth["ventricle_ml"]


def test_heads_of_different_seeds_differ_in_shape(head: Head) -> None:
    other = make_head(4, age=45, spacing=2)
    a, b = head.brain_mask, other.brain_mask
    assert 0.80 < 2 * (a & b).sum() / (a.sum() + b.sum()) < 0.985


def test_a_coarse_head_is_the_fine_head(head: Head) -> None:
    fine = make_head(3, age=45)
    assert fine.labels.shape == tuple(2 * n - 1 for n in head.labels.shape)
    np.testing.assert_array_equal(fine.labels[::2, ::2, ::2], head.labels)
    for name in ("brain_ml", "gm_ml", "wm_ml", "csf_ml", "ventricle_ml"):
        assert fine.truth[name] == pytest.approx(head.truth[name], rel=0.02)


def test_fractions_fill_the_brain_and_nothing_else(head: Head) -> None:
    total = sum(head.tissue(name) for name in ("gm", "wm", "csf"))
    np.testing.assert_allclose(total[head.brain_mask], 1, atol=1e-5)
    assert not total[~head.brain_mask].any()


def test_a_head_is_wrapped_in_fluid_bone_and_skin(head: Head) -> None:
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


def test_upsample_is_linear_interpolation() -> None:
    values = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    places = np.meshgrid(*[np.arange(2 * n - 1) / 2 for n in values.shape], indexing="ij")
    expected = ndimage.map_coordinates(values, places, order=1)
    np.testing.assert_allclose(upsample(values), expected, atol=1e-6)
