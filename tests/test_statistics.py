"""Statistics whose unit is the person, against published figures and some worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_harmony.sites.statistics import (
    Scans,
    coverage,
    delong,
    drawn_persons,
    exchange_p,
    fit_line,
    offset_and_scatter,
    placements,
    site_offset,
    with_intervals,
)

#: Albumin, total protein, Krebs-Goplerud score and outcome of the 43 women with all three measures
#: in DeLong, DeLong and Clarke-Pearson (1988), as listed in the SAS/STAT User's Guide, "The
#: LOGISTIC Procedure", example "Comparing Receiver Operating Characteristic Curves".
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
3.6 6.6 5 1
"""


@pytest.fixture(scope="module")
def ovarian() -> np.ndarray:
    return np.array(OVARIAN.split(), float).reshape(-1, 4).T


def test_delong_gives_the_published_comparisons(ovarian: np.ndarray) -> None:
    albumin, protein, score, truth = ovarian
    women = np.arange(len(truth))
    assert placements(albumin, truth)[truth == 1].mean() == pytest.approx(0.7366, abs=5e-5)
    # The guide's table "ROC Contrast Estimation and Testing Results by Row".
    for measure, wanted in ((albumin, (0.0108, 0.0953, 0.9102)),
                            (protein, (-0.0780, 0.1046, 0.4561))):  # fmt: skip
        found = delong(measure[None], -score[None], truth, women)
        assert found == pytest.approx(wanted, abs=5e-5)
        # Another scale, and a scale of its own in each repetition, change nothing.
        scaled = np.array([1000 * measure - 7, np.exp(measure)])
        assert delong(scaled, -np.array([score, score]), truth, women) == pytest.approx(found)
    # Ratings of 109 CT images in Hanley and McNeil (1982), Table I; Stata's manual (roctab) has
    # DeLong's standard error of the area, 0.0307. A constant score has the area 0.5 for certain.
    counts = ([33, 6, 6, 11, 2], [3, 2, 2, 11, 33])
    rating = np.concatenate([np.repeat(np.arange(5.0), n) for n in counts])
    truth = np.repeat([0.0, 1.0], [58, 51])
    area, error, _ = delong(rating[None], 0 * rating[None], truth, np.arange(109))
    assert (area, error) == pytest.approx((0.8932 - 0.5, 0.0307), abs=5e-5)


def test_delong_counts_persons_not_scans(ovarian: np.ndarray) -> None:
    albumin, _, score, truth = ovarian
    women = np.arange(len(truth))
    once = delong(albumin[None], -score[None], truth, women)
    # The same scan three times is no more than once: the clustered variance stays what it was.
    a, b, classes, persons = (np.tile(v, 3) for v in (albumin, -score, truth, women))
    assert delong(a[None], b[None], classes, persons) == pytest.approx(once)
    assert delong(a[None], b[None], classes, np.arange(len(a)))[1] < 0.6 * once[1]
    # Obuchowski's variance worked out by hand. Two persons have a case and a control scan each, a
    # third a case, a fourth a control. a places cases at 1, 1, 1/3 and controls at 2/3, 2/3, 1, b
    # all at 1/2: the differences are 1/2, 1/2, -1/6 (mean 5/18) and 1/6, 1/6, 1/2 (mean 5/18).
    # Centred, over 3: 2/27, 2/27, -4/27 and -1/27, -1/27, 2/27. Variance 3/2 (24 + 6) / 729
    # + 2 * 4/3 * (-4) / 729.
    a = np.array([[5.0, 5.0, 2.0, 3.0, 3.0, 1.0]])
    area, error, _ = delong(a, 0 * a, np.array([1, 1, 1, 0, 0, 0]), np.array(list("pqrpqs")))
    assert (area, error**2) == pytest.approx((5 / 18, (45 - 32 / 3) / 729))


def test_delong_says_nothing_of_what_it_cannot_know() -> None:
    truth = np.array([1, 1, 0, 0])
    score = np.array([[4.0, 3.0, 2.0, 1.0]])
    assert delong(score, score, truth, np.arange(4)) == (0, 0, 1)
    assert np.isnan(delong(score, -score, truth, np.arange(4))[2])  # no spread to judge it by
    assert np.isnan(delong(score, -score, truth, np.array([0, 0, 1, 2]))).all()
    missing = np.array([[4.0, 3.0, 2.0, 1.0], [np.nan] * 4])
    assert delong(missing, missing, truth, np.arange(4)) == (0, 0, 1)


def test_whole_persons_are_drawn_as_many_of_each_stratum() -> None:
    persons = np.array(["a", "b", "b", "b"])
    draws = drawn_persons(persons, 50, np.random.default_rng(0))
    for draw in draws:
        n_b = [int((draw == i).sum()) for i in (1, 2, 3)]
        assert len(set(n_b)) == 1
        assert (draw == 0).sum() + n_b[0] == 2
    assert {len(draw) for draw in draws} == {2, 4, 6}
    draws = drawn_persons(persons, 9, np.random.default_rng(0), np.array([0, 1, 1, 1]))
    assert all(sorted(draw) == [0, 1, 2, 3] for draw in draws)


def test_an_interval_is_that_of_persons() -> None:
    def mean(draw: Scans) -> dict[str, float]:
        return {"mean": values[draw].mean(), "none": np.nan}

    values = np.random.default_rng(0).normal(10, 2, 100)
    once = with_intervals(mean, np.arange(100), 2000, 0)
    half = 1.96 * values.std() / 10
    assert once["mean_high"] - once["mean"] == pytest.approx(half, rel=0.1)
    assert once["mean"] - once["mean_low"] == pytest.approx(half, rel=0.1)
    assert np.isnan([once["none"], once["none_low"]]).all()
    assert np.isnan(with_intervals(mean, np.arange(100), 9, 0, enough=False)["mean_low"])
    values = np.repeat(values[:25], 4)
    scans, persons = (
        with_intervals(mean, labels, 500, 0) for labels in (np.arange(100), np.arange(100) // 4)
    )
    assert np.ptp([*persons.values()][2:4]) > 1.7 * np.ptp([*scans.values()][2:4])


def test_methods_are_exchanged_between_whole_persons() -> None:
    # All eight persons move the same way: of 256 exchanges the two ends are as far apart.
    ones, persons = np.ones(16), np.arange(16) // 2
    assert exchange_p(ones, persons, 1000, 0) == pytest.approx(2 / 256)
    assert exchange_p(ones * np.tile([1, -1], 8), persons, 1000, 0) == 1
    noise = np.random.default_rng(2).normal(0, 3, 40)
    assert exchange_p(noise, np.arange(40), 1000, 0) > 0.05


def test_coverage_is_that_of_persons() -> None:
    # Wilson (1927) for 9 of 10: 0.596 to 0.982 (Newcombe 1998's formula worked out by hand).
    inside = np.array([True] * 9 + [False])
    assert coverage(inside, np.arange(10)) == pytest.approx((0.9, 0.5958, 0.9821), abs=1e-4)
    # Ninety further scans of the tenth person are still one person's.
    inside, persons = np.append(inside, [False] * 90), np.append(np.arange(10), [9] * 90)
    assert coverage(inside, persons) == pytest.approx((0.9, 0.5958, 0.9821), abs=1e-4)
    assert np.isnan(coverage(np.array([], bool), np.array([]))).all()


# --- site offset and scatter --------------------------------------------------------------------

AGES = np.linspace(20, 80, 31)


def scans(
    truth: np.ndarray, site: str, error: float | np.ndarray = 0, seed: int = 1
) -> pd.DataFrame:
    """Return scans of a predictor of slope .5 about 50 years."""
    people = [f"{site}{i}" for i in range(len(truth))]
    predicted = 25 + 0.5 * truth + error
    return pd.DataFrame({"seed": seed, "predicted": predicted, "truth": truth, "person": people})


def test_line_offset_and_scatter_by_hand() -> None:
    # Means 30 and 35; covariance (100 + 0 + 50) / 3, variance 200 / 3.
    line = fit_line(np.array([25.0, 40.0, 40.0]), np.array([20.0, 30.0, 40.0]))
    assert line == pytest.approx((0.75, 12.5))
    # The line says 27.5 and 50: apart by -1.5 and 4.5.
    offset, scatter = offset_and_scatter(np.array([26.0, 54.5]), np.array([20.0, 50.0]), line)
    assert (offset, scatter) == pytest.approx((1.5, np.sqrt(18)))
    assert np.isnan(fit_line(np.array([1.0, 2.0]), np.array([5.0, 5.0]))).all()
    assert np.isnan(offset_and_scatter(np.array([1.0]), np.array([2.0]), line)[1])


def test_a_young_site_has_no_offset_and_each_repetition_its_own_line() -> None:
    young = np.linspace(20, 25, 11)
    found = site_offset(scans(young, "b"), scans(AGES, "a"), 50, 0)
    # The mean absolute error is 13.75 years there.
    assert (found["offset"], found["scatter"]) == pytest.approx((0, 0))
    assert found["in_reference_range"] == 1
    home = pd.concat([scans(AGES, "a", 0, 1), scans(AGES, "a", 6, 2)])
    site = pd.concat([scans(young, "b", 3, 1), scans(young, "b", 9, 2)])
    found = site_offset(site, home, 20, 0)
    assert (found["offset"], found["scatter"]) == pytest.approx((3, 0))


def test_what_a_scanner_adds_is_the_offset_and_is_inside_its_interval() -> None:
    rng = np.random.default_rng(0)
    ages, there = rng.uniform(20, 80, 60), rng.uniform(60, 90, 30)
    home = scans(ages, "a", rng.normal(0, 5, 60))
    site = scans(there, "b", rng.normal(-8, 5, 30))
    found = site_offset(site, home, 400, 0)
    assert found["offset_low"] < -8 < found["offset_high"] < -4
    width = found["offset_high"] - found["offset_low"]
    assert 2 < width < 8
    assert found["scatter_low"] < 5 < found["scatter_high"]
    assert 0.5 < found["in_reference_range"] < 0.9
    # The same scans once more do not narrow the interval.
    twice = site_offset(pd.concat([site, site]), home, 400, 0)
    assert twice["offset"] == pytest.approx(found["offset"])
    assert twice["offset_high"] - twice["offset_low"] == pytest.approx(width, rel=0.1)
    # The reference itself has no offset, however its persons are drawn.
    found = site_offset(home, home, 100, 0)
    for end in ("", "_low", "_high"):
        assert found[f"offset{end}"] == pytest.approx(0, abs=1e-9)
    assert found["scatter_low"] < found["scatter"] < found["scatter_high"]


def test_few_persons_have_no_line_and_no_interval() -> None:
    assert np.isnan(site_offset(scans(AGES[:7], "a"), scans(AGES[:7], "a"), 10, 0)["offset"])
    found = site_offset(scans(AGES[:2], "b"), scans(AGES[:9], "a"), 10, 0)
    assert found["offset"] == pytest.approx(0)
    assert np.isnan(found["offset_low"])
