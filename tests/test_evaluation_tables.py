"""The tables of an evaluation: figures with intervals and p values, and what images say."""

from __future__ import annotations

import html
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from training_heads import people, table

from bids_harmony.config import EvaluateOptions
from bids_harmony.evaluation import tables
from bids_harmony.evaluation.page import page_tables, write_page
from bids_harmony.evaluation.tables import (
    biology_table,
    experiments_table,
    image_table,
    site_probe,
)
from bids_harmony.evaluation.unit import ANATOMY, FEATURES
from bids_harmony.sites.statistics import delong
from bids_harmony.training.targets import Target, figures

AGE, ILL = {"brain_age": False}, {"ill": True}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "N_BOOTSTRAP", 200)


def rows(method: str, predicted: np.ndarray, truth: np.ndarray, **more: Any) -> pd.DataFrame:
    n = len(truth)
    base = {
        "experiment": "sites", "seed": 1, "fold": 0, "train_sites": "A", "n_source": None,
        "scan": range(n), "participant": "x", "person": [f"p{i}" for i in range(n)],
        "test_site": "B",
        "method": method, "target": "brain_age", "truth": truth, "predicted": predicted,
    }  # fmt: skip
    return pd.DataFrame(base | more)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.random.default_rng(0).uniform(20, 80, 40)


def test_two_classes_and_all_foreign_sites_together() -> None:
    truth = np.tile([0.0, 1.0], 20)
    parts = [
        rows("harmonized", truth, truth, test_site=site, target="ill", scan=range(k, k + 40),
             person=[f"{site}{i}" for i in range(40)])
        for k, site in ((0, "A"), (40, "B"), (80, "C"))
    ]  # fmt: skip
    table = experiments_table(pd.concat(parts), ILL, 0).set_index("test_site")
    assert list(table.index) == ["A", "B", "C", "B+C"]
    assert table.loc["B+C", "n_cases"] == 40
    assert (table["auc"] == 1).all()


def test_repetitions_are_averaged_and_their_spread_is_told(truth: np.ndarray) -> None:
    first, second = (rows("harmonized", truth + k, truth, seed=k) for k in (1, 3))
    for again in (second, second.iloc[:10]):  # a repetition without a fold counts what it has
        row = experiments_table(pd.concat([first, again]), AGE, 0).iloc[0]
        assert (row["n_scans"], row["bias"]) == (40, pytest.approx(2))
        assert row["bias_seed_sd"] == pytest.approx(np.sqrt(2))
        assert np.isfinite(row["bias_low"])


def test_a_method_that_was_had_in_one_fold_is_compared_on_its_own_scans(truth: np.ndarray) -> None:
    whole = [
        rows(method, truth + off, truth, fold=np.repeat([0, 1], 20))
        for method, off in (("tissue_scaling", 6), ("harmonized", np.repeat([1, 3], 20)))
    ]
    some = rows("combat", truth + 5, truth).iloc[20:].assign(fold=1)
    found = experiments_table(pd.concat([*whole, some]), AGE, 0).set_index("method")
    assert found["n_scans"].to_dict() == {"tissue_scaling": 40, "combat": 20, "harmonized": 40}
    assert found["n_folds"].to_dict() == {"tissue_scaling": 2, "combat": 1, "harmonized": 2}
    assert found["mae"]["harmonized"] == pytest.approx(2)
    assert found["gain"]["tissue_scaling"] == pytest.approx(4)
    low, high = found.loc["tissue_scaling", ["gain_low", "gain_high"]]
    assert 3.5 < low < 4 < high
    assert found["gain"]["combat"] == pytest.approx(2)  # 5 against 3, in the second fold
    assert found["p"]["combat"] < 0.01
    assert np.isnan(found["gain"]["harmonized"])
    # Not had where the harmonized scans were tested, or no map at all: no comparison, no crash.
    for parts in ([whole[1].iloc[:20], some], [some]):
        assert experiments_table(pd.concat(parts), AGE, 0)["gain"].isna().all()


def test_areas_are_compared_by_ranks_with_persons_as_clusters() -> None:
    rng = np.random.default_rng(4)
    truth = np.tile([0.0, 1.0], 30)
    ours = truth + rng.normal(0, 1.0, 60)
    theirs = ours + rng.normal(0, 0.1, 60)
    for scale in (1, 100):  # a network of another scale is no other classifier
        person = [f"p{i // 6}" for i in range(60)]
        scores = {"none": theirs, "harmonized": scale * ours}
        parts = [rows(k, v, truth, target="ill", person=person) for k, v in scores.items()]
        found = experiments_table(pd.concat(parts), ILL, 0).iloc[0]
        gain, _, p = delong(ours[None], theirs[None], truth, np.array(person))
        assert (found["gain"], found["p"]) == pytest.approx((gain, p))


def test_each_method_is_held_against_its_own_line() -> None:
    ages = np.linspace(20, 80, 40)
    parts = [
        rows(method, 25 + 0.5 * ages + by, ages, test_site=site, half_width=14.5,
             person=[f"{site}{i}" for i in range(40)])
        for method, shifts in (("none", (0, -9)), ("harmonized", (4, 5)))
        for site, by in zip("AB", shifts, strict=True)
    ]  # fmt: skip
    found = experiments_table(pd.concat(parts), AGE, 0).set_index(["test_site", "method"])
    offsets = {("A", "none"): 0, ("A", "harmonized"): 0, ("B", "none"): -9, ("B", "harmonized"): 1}
    assert found["offset"].to_dict() == pytest.approx(offsets)
    # Errors from -15 to 15 years: all but one person on either side.
    home = found.loc[("A", "none"), ["coverage", "coverage_low", "coverage_high"]].astype(float)
    assert home.to_list() == pytest.approx([0.95, 0.835, 0.986], abs=1e-3)


def test_a_gain_is_clear_where_interval_and_p_say_so() -> None:
    gains = [(0.1, 3.1, 0.01), (-3.1, -0.1, 0.01), (-0.1, 3.1, 0.01), (0.1, 3.1, 0.056)]
    table = pd.DataFrame([*gains, [np.nan] * 3], columns=["gain_low", "gain_high", "p"]).assign(
        experiment="sites", target="brain_age", train_sites="A", test_site="B", n_source=None
    )
    (cell,) = page_tables(table)[0]["cells"]
    # In the fourth, ends of interval and p disagree.
    assert [row["verdict"] for row in cell] == [1, -1, 0, 0, 0]


def test_the_page_says_where_harmonized_scans_are_better(
    truth: np.ndarray, tmp_path: Path
) -> None:
    parts = [rows(method, truth + by, truth) for method, by in (("none", 8), ("harmonized", 2))]
    predictions = pd.concat([*parts, rows("combat", truth + 5, truth).iloc[:2]])
    study: Any = SimpleNamespace(
        options=EvaluateOptions(), data=people(table({"A": [30.0], "B": [40.0]})),
        targets=[Target("age", "brain_age", truth)],
    )  # fmt: skip
    found = {"experiments": experiments_table(predictions, AGE, 0), "predictions": predictions}
    page = write_page(tmp_path, study, "A", found, ["A note."], simulated=True, sloppy=False)
    text = " ".join(html.unescape(page.read_text()).split())
    for said in (
        "brain_age at B (2 to 40 persons), mean absolute error: no harmonization 8.00 "
        "(8.00 to 8.00), ComBat 5.00, harmonized 2.00 (2.00 to 2.00). Harmonized scans are better "
        "by 6.00 than no harmonization (p < 0.002), not significantly different from ComBat "
        "(p –).",
        "no person was scanned", "A note.", "Training was not repeated",
    ):  # fmt: skip
        assert said in text
    assert "Training was shortened" not in text
    ill = experiments_table(rows("none", truth, np.ones(40), target="ill"), ILL, 0)  # one class
    write_page(
        tmp_path, study, "A", found | {"experiments": ill}, [], simulated=False, sloppy=True
    )
    assert "area under the curve: no harmonization –." in page.read_text()
    assert (tmp_path / "evaluation" / "figures" / "sites_brain_age.svg").is_file()


# --- what cannot be known -----------------------------------------------------------------------


def test_equal_ages_correlate_with_nothing_and_have_no_slope() -> None:
    # The mean of seven 30.1 is off by rounding, and so is their standard deviation.
    predicted = np.array([25.0, 31, 44, 28, 39, 50, 33])
    for x, y in ((predicted, np.full(7, 30.1)), (np.full(7, 30.1), predicted)):
        found = experiments_table(rows("none", x, y), AGE, 0).iloc[0]
        assert np.isnan(found[["r", "r_low", "r_high"]].astype(float)).all()
        assert np.isfinite(found["mae_low"])
    person = [f"p{i // 3}" for i in range(30)]
    volume = np.random.default_rng(0).random(30)
    same = appearance(person, "A", "tissue_scaling", np.full(30, 30.1), volume)
    assert biology_table(pd.concat([same, same.assign(method="harmonized")]), 0).empty


def test_one_case_has_an_area_and_no_interval() -> None:
    # Each draw of persons that has the class has this case: the interval would be 1 to 1.
    score, ill = np.r_[3.0, np.linspace(-2, 2, 20)], np.r_[1.0, np.zeros(20)]
    table = pd.concat([rows(method, score, ill) for method in ("none", "harmonized")])
    for row in experiments_table(table, {"brain_age": True}, 0).to_dict("records"):
        assert (row["auc"], row["n_cases"]) == (1, 1)
        assert np.isnan([row["auc_low"], row["auc_high"], row["balanced_accuracy_low"]]).all()
        assert np.isnan([row["gain_low"], row["p"]]).all()
    found = figures(score, ill, True, 0)
    assert (found["auc"], found["auc_95"]) == (1, None)


def test_scans_of_two_persons_are_no_correlation() -> None:
    truth = np.repeat([30.0, 60.0], 4) + np.tile([0, 1, 2, 3], 2)
    error = np.tile([1.0, -1, 2, -2], 2)
    found = experiments_table(rows("none", truth + error, truth, person=list("aaaabbbb")),
                     AGE, 0).iloc[0]  # fmt: skip
    assert np.isnan(found[["r", "r_low", "r_high", "mae_low"]].astype(float)).all()
    assert found["mae"] == 1.5
    persons = np.array(list("aaaabbbb"))
    assert figures(truth + error, truth, False, 0, persons)["r"] is None


# --- images: fewer scans of a method, and persons with several ----------------------------------


def appearance(
    person: list[str], site: str, method: str, age: np.ndarray, volume: np.ndarray
) -> Any:
    n = len(person)
    rng = np.random.default_rng(0)
    base = {
        "seed": 1, "fold": 0, "scan": np.arange(n) + 100 * (site == "REF"), "person": person,
        "site": site, "age": age, "method": method, **dict.fromkeys(ANATOMY, volume),
        **{name: rng.normal(size=n) for name in FEATURES}, "harmonized_change": 0.1,
        "quantiles": list(np.ones((n, 4, 99))),
    }  # fmt: skip
    return pd.DataFrame(base)


def test_effects_are_those_of_persons_and_of_the_scans_a_method_has() -> None:
    age = np.linspace(20, 80, 12)
    people = [f"p{i}" for i in range(12)]
    # The last person has three more scans at other ages, all with one wild volume.
    person, ages = [*people, *["p11"] * 3], np.r_[age, 90, 100, 110]
    volume = 2 * ages
    before = appearance(person, "A", "tissue_scaling", ages, volume)
    after = appearance(person, "A", "combat", ages, volume / 2).iloc[:10]
    found = biology_table(pd.concat([before, after]), 0)
    assert set(found["method"]) == {"combat"}
    row = found.iloc[0]
    assert (row["n_scans"], row["n_persons"]) == (10, 10)
    assert (row["before"], row["after"], row["ratio"]) == pytest.approx((2, 1, 0.5))
    whole = biology_table(pd.concat([before, before.assign(method="harmonized")]), 0).iloc[0]
    assert (whole["n_scans"], whole["n_persons"]) == (15, 12)


def test_a_method_that_a_site_lacks_is_left_out_and_persons_are_known_again() -> None:
    people = [f"p{i}" for i in range(6)]
    age = np.linspace(20, 80, 6)
    home = appearance([f"r{i}" for i in range(6)], "REF", "tissue_scaling", age, age)
    parts = [appearance(people, site, "tissue_scaling", age, age) for site in "AB"]
    parts[1]["scan"] += 200
    combat = appearance(people, "A", "combat", age, age)
    found = image_table(pd.concat([home, *parts, combat]), "REF", 0)
    assert set(zip(found["site"], found["method"], strict=True)) == {
        ("A", "tissue_scaling"), ("A", "combat"), ("B", "tissue_scaling"),
    }  # fmt: skip
    assert (found["n_persons"] == 6).all()
    assert "within_over_between" not in found
    parts[0].loc[:1, ["within_person", "between_persons"]] = [[0.1, 0.2], [0.2, 0.4]]
    found = image_table(pd.concat([home, *parts]), "REF", 0).set_index("site")
    assert found["within_over_between"]["A"] == pytest.approx(0.5)
    assert np.isnan(found["within_over_between"]["B"])


def test_the_site_probe_cannot_know_a_person_again() -> None:
    # Features tell persons apart and not sites; each person has four scans at one site.
    rng = np.random.default_rng(0)
    person = np.repeat([f"p{i}" for i in range(20)], 4)
    scans = appearance(list(person), "A", "combat", np.full(80, 50.0), np.ones(80))
    own = rng.normal(0, 1, (20, len(FEATURES))).repeat(4, axis=0)
    scans[FEATURES] = own + rng.normal(0, 0.01, own.shape)
    here, home = scans[:40], scans[40:]
    assert site_probe(here, home, 0) < 0.75
    # Three persons of a side are too few, however many scans they have.
    assert np.isnan(site_probe(here[:12], home, 0))
    # One person with nearly all scans of a side: a fold may lack the other side.
    lonely = here.assign(person=[*["a"] * 37, "b", "c", "d"])
    assert not site_probe(lonely, home, 0) > 1
    # Features of the site tell it.
    other = here.assign(**{name: here[name] + 4 for name in FEATURES})
    assert site_probe(other, home, 0) > 0.9
