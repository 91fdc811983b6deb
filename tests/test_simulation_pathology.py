"""Lesions, resections and atrophy in simulated heads: what they change, and what is true."""

from __future__ import annotations

import numpy as np
import pytest

from bids_harmony.simulation.head import Head, make_head
from bids_harmony.simulation.layers import Tissue
from bids_harmony.simulation.pathology import KINDS

TISSUES = ("gm_ml", "wm_ml", "csf_ml")


@pytest.fixture(scope="module")
def heads() -> dict[str, Head]:
    return {kind: make_head(9, age=50, spacing=2, pathology=kind) for kind in ("none", *KINDS)}


def millilitres(fraction: np.ndarray) -> float:
    return float(fraction.sum(dtype=float)) * 8 / 1000


def test_a_lesion_is_a_tissue_of_its_own_with_mass(heads: dict[str, Head]) -> None:
    well, ill = heads["none"], heads["lesion"]
    lesion = ill.tissue("lesion")
    assert millilitres(lesion) == pytest.approx(ill.truth["pathology_ml"], abs=0.01)
    assert 10 < ill.truth["pathology_ml"] < 60
    total = sum(ill.truth[name] for name in TISSUES) + ill.truth["pathology_ml"]
    assert total == pytest.approx(ill.truth["brain_ml"], abs=0.01)
    # It pushes, within the same skull.
    assert ill.truth["brain_ml"] == pytest.approx(well.truth["brain_ml"], rel=0.003)
    ring = (lesion == 0) & (well.labels == Tissue.BRAIN) & (ill.labels == Tissue.BRAIN)
    moved = np.abs(ill.tissue("wm") - well.tissue("wm"))[ring]
    assert (moved > 0.5).sum() * 8 / 1000 > 1
    # Far from it nothing changes.
    x, y, z = (c.mean() for c in np.nonzero(lesion))
    far = np.linalg.norm(
        np.indices(lesion.shape) - np.array([x, y, z]).reshape(3, 1, 1, 1), axis=0
    )
    np.testing.assert_allclose(ill.tissue("gm")[far > 45], well.tissue("gm")[far > 45], atol=1e-3)


def test_a_resection_is_a_cavity_of_fluid_at_the_surface(heads: dict[str, Head]) -> None:
    well, operated = heads["none"], heads["resection"]
    np.testing.assert_array_equal(operated.labels, well.labels)
    change = {name: operated.truth[name] - well.truth[name] for name in (*TISSUES, "brain_ml")}
    assert change["brain_ml"] == 0
    assert change["gm_ml"] < -5
    assert change["wm_ml"] < 0
    # The cavity's volume counts the sulcal fluid that was there before, too.
    assert 0.5 < change["csf_ml"] / operated.truth["pathology_ml"] <= 1
    filled = (operated.tissue("csf") > 0.99) & (well.tissue("csf") < 0.5)
    assert millilitres(filled) > 0.3 * operated.truth["pathology_ml"]


def test_atrophy_is_tissue_lost_to_fluid_far_beyond_age(heads: dict[str, Head]) -> None:
    well, wasted = heads["none"].truth, heads["atrophy"].truth
    assert wasted["pathology_ml"] == pytest.approx(wasted["csf_ml"] - well["csf_ml"], rel=0.05)
    assert wasted["ventricle_ml"] > 1.8 * well["ventricle_ml"]
    oldest = make_head(9, age=85, spacing=2).truth
    assert wasted["csf_ml"] > oldest["csf_ml"]
    assert wasted["brain_ml"] == pytest.approx(well["brain_ml"], rel=0.01)


def test_a_head_without_pathology_has_none(heads: dict[str, Head]) -> None:
    truth = heads["none"].truth
    assert (truth["pathology"], truth["pathology_ml"]) == ("none", 0)
    assert len(heads["none"].fractions) == 3
    with pytest.raises(ValueError, match="pathology"):
        make_head(9, age=50, spacing=2, pathology="flu")


def test_effects_are_those_of_age_and_diagnosis() -> None:
    truth = {
        (age, diagnosis): make_head(9, age=age, spacing=2, diagnosis=diagnosis).truth
        for age in (25, 75)
        for diagnosis in ("control", "schizophrenia")
    }
    for (age, diagnosis), row in truth.items():
        ill = diagnosis == "schizophrenia"
        assert (row["ventricle_age_mm"], row["cortex_age_log_odds"]) == (
            pytest.approx((1.4, 1.6)) if age == 75 else (0, 0)
        )
        assert (row["ventricle_diagnosis_mm"] > 0) == (row["cortex_diagnosis_log_odds"] > 0) == ill
