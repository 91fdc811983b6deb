"""Unknown ages of a site: the mean that prediction and mapping agree on."""

from __future__ import annotations

import numpy as np
import pytest

from bids_harmony.sites.calibration import MAX_ESTIMATED, MAX_MAPPED, estimate_ages
from bids_harmony.sites.code import Appearance, SiteCode

LINE = (0.8, 9.0)
APPEARANCE = Appearance(
    np.zeros(3), np.array([0.01, 0.0, 0.0]), np.full(3, 0.02), (20.0, 80.0), LINE, 45.0, 30
)


class Predictor:
    """Brain ages of a site of one true mean age, of which the age taken for true is a part."""

    def __init__(self, true: float, comes_back: float, network: float = 0.0) -> None:
        self.true, self.comes_back, self.network = true, comes_back, network
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, scan: int, code: SiteCode, spare: bool) -> float:
        self.calls.append((scan, spare))
        age = self.true + self.comes_back * (code.age - self.true)
        return LINE[0] * age + LINE[1] + (0.0 if spare else self.network)


def estimate(predict: Predictor | None, n: int = 10, known: float | None = None) -> np.ndarray:
    ages = np.full(n, np.nan)
    if known is not None:
        ages[0] = known
    persons = np.array([f"{k:03}" for k in range(n)])
    return estimate_ages(np.zeros((n, 3)), ages, persons, APPEARANCE, predict)


@pytest.mark.parametrize("true", [25.0, 44.0, 70.0])
@pytest.mark.parametrize("comes_back", [0.0, 0.3, 0.5])
def test_the_age_is_found_that_prediction_and_mapping_agree_on(
    true: float, comes_back: float
) -> None:
    assert estimate(Predictor(true, comes_back)) == pytest.approx(true, abs=0.5)


def test_the_network_s_part_counts_and_few_scans_tell_it() -> None:
    # It makes brains look 2 years older, and the mapping that follows from that adds to it.
    predict = Predictor(40.0, 0.5, network=2 * LINE[0])
    assert estimate(predict, 30)[0] == pytest.approx(40 + 2 / 0.5, abs=0.5)
    through = [scan for scan, spare in predict.calls if not spare]
    assert len(through) == len(set(through)) == MAX_MAPPED


def test_known_ages_stay_and_more_persons_than_needed_do_not_calibrate() -> None:
    found = estimate(Predictor(30.0, 0.3), MAX_ESTIMATED + 20, known=64.0)
    assert found[0] == 64
    assert np.isfinite(found[1:]).sum() == MAX_ESTIMATED


@pytest.mark.parametrize(("true", "end"), [(5.0, 20.0), (99.0, 80.0)])
def test_no_age_beyond_the_reference_s_is_guessed(true: float, end: float) -> None:
    assert (estimate(Predictor(true, 0.2)) == end).all()


def test_without_a_predictor_the_reference_s_mean_age_is_taken() -> None:
    assert (estimate(None) == APPEARANCE.mean_age).all()
