"""Site offset and scatter: worked out by hand, and what they must not be fooled by."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bids_harmony.evaluation.offset import fit_line, offset_and_scatter, site_offset
from bids_harmony.evaluation.statistics import tabulate


def scans(truth: np.ndarray, predicted: np.ndarray, prefix: str, seed: int = 1) -> pd.DataFrame:
    people = [f"{prefix}{i}" for i in range(len(truth))]
    return pd.DataFrame({"seed": seed, "predicted": predicted, "truth": truth, "person": people})


def drawn_to_the_mean(truth: np.ndarray) -> np.ndarray:
    """A predictor of slope .5 about 50 years, without error."""
    return 25 + 0.5 * truth


def test_line_offset_and_scatter_by_hand() -> None:
    # Means 30 and 35; covariance (100 + 0 + 50) / 3, variance 200 / 3.
    line = fit_line(np.array([25.0, 40.0, 40.0]), np.array([20.0, 30.0, 40.0]))
    assert line == pytest.approx((0.75, 12.5))
    # The line says 27.5 and 50: apart by -1.5 and 4.5.
    offset, scatter = offset_and_scatter(np.array([26.0, 54.5]), np.array([20.0, 50.0]), line)
    assert offset == pytest.approx(1.5)
    assert scatter == pytest.approx(np.sqrt(18))
    assert np.isnan(fit_line(np.array([1.0, 2.0]), np.array([5.0, 5.0]))).all()
    assert np.isnan(offset_and_scatter(np.array([1.0]), np.array([2.0]), line)[1])


def test_a_young_site_without_a_scanners_effect_has_no_offset() -> None:
    ages = np.linspace(20, 80, 31)
    young = np.linspace(20, 25, 11)
    found = site_offset(
        scans(young, drawn_to_the_mean(young), "b"), scans(ages, drawn_to_the_mean(ages), "a"),
        50, 0,
    )  # fmt: skip
    # The mean absolute error is 13.75 years there.
    assert found["offset"] == pytest.approx(0)
    assert found["scatter"] == pytest.approx(0)
    assert found["in_reference_range"] == 1


def test_what_a_scanner_adds_is_the_offset_and_is_inside_its_interval() -> None:
    rng = np.random.default_rng(0)
    ages, there = rng.uniform(20, 80, 60), rng.uniform(60, 90, 30)
    home = scans(ages, drawn_to_the_mean(ages) + rng.normal(0, 5, 60), "a")
    site = scans(there, drawn_to_the_mean(there) - 8 + rng.normal(0, 5, 30), "b")
    found = site_offset(site, home, 400, 0)
    assert found["offset_low"] < -8 < found["offset_high"] < -4
    assert 2 < found["offset_high"] - found["offset_low"] < 8
    assert found["scatter_low"] < 5 < found["scatter_high"]
    assert 0.5 < found["in_reference_range"] < 0.9


def test_the_reference_itself_has_no_offset_however_its_persons_are_drawn() -> None:
    rng = np.random.default_rng(1)
    ages = rng.uniform(20, 80, 40)
    home = scans(ages, drawn_to_the_mean(ages) + rng.normal(0, 5, 40), "a")
    found = site_offset(home, home, 100, 0)
    for end in ("", "_low", "_high"):
        assert found[f"offset{end}"] == pytest.approx(0, abs=1e-9)
    assert found["scatter_low"] < found["scatter"] < found["scatter_high"]


def test_each_repetition_has_its_own_line() -> None:
    ages, there = np.linspace(20, 80, 31), np.linspace(30, 60, 10)
    home = [scans(ages, drawn_to_the_mean(ages) + shift, "a", k) for k, shift in ((1, 0), (2, 6))]
    site = [
        scans(there, drawn_to_the_mean(there) + shift, "b", k) for k, shift in ((1, 3), (2, 9))
    ]
    found = site_offset(pd.concat(site), pd.concat(home), 20, 0)
    assert found["offset"] == pytest.approx(3)
    assert found["scatter"] == pytest.approx(0)


def test_scans_of_one_person_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    ages, there = rng.uniform(20, 80, 40), rng.uniform(30, 70, 12)
    home = scans(ages, drawn_to_the_mean(ages) + rng.normal(0, 5, 40), "a")
    site = scans(there, drawn_to_the_mean(there) + rng.normal(0, 5, 12), "b")
    once, twice = (site_offset(s, home, 300, 0) for s in (site, pd.concat([site, site])))
    assert twice["offset"] == pytest.approx(once["offset"])
    width = [found["offset_high"] - found["offset_low"] for found in (once, twice)]
    assert width[1] == pytest.approx(width[0], rel=0.1)


def test_few_persons_have_no_line_and_no_interval() -> None:
    ages = np.linspace(20, 80, 7)
    home = scans(ages, drawn_to_the_mean(ages), "a")
    assert np.isnan(site_offset(home, home, 10, 0)["offset"])
    ages = np.linspace(20, 80, 9)
    home = scans(ages, drawn_to_the_mean(ages), "a")
    found = site_offset(home.iloc[:2].assign(person=["x", "y"]), home, 10, 0)
    assert found["offset"] == pytest.approx(0)
    assert np.isnan(found["offset_low"])


def test_the_table_holds_each_way_against_its_own_line() -> None:
    ages = np.linspace(20, 80, 31)
    parts = []
    for way, home_shift, shift in (("none", 0, -9), ("harmonized", 4, 5)):
        for site, by in (("A", home_shift), ("B", shift)):
            rows = scans(ages, drawn_to_the_mean(ages) + by, site)
            parts.append(rows.assign(
                experiment="sites", fold=0, train_sites="A", n_source=None, test_site=site,
                scan=range(31), participant=rows["person"], way=way, target="brain_age",
            ))  # fmt: skip
    table = tabulate(pd.concat(parts), {"brain_age": False}, 0).set_index(["test_site", "way"])
    assert table.loc[("B", "none"), "offset"] == pytest.approx(-9)
    assert table.loc[("B", "harmonized"), "offset"] == pytest.approx(1)
    assert table.loc[("A", "harmonized"), "offset"] == pytest.approx(0)
