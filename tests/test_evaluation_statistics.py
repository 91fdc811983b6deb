"""Figures, intervals and p values of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_harmony.evaluation.images import ANATOMY, FEATURES
from bids_harmony.evaluation.persons import delong
from bids_harmony.evaluation.statistics import icc, permutation_p, tabulate
from bids_harmony.evaluation.summaries import agreement_table, biology_table, image_table
from bids_harmony.training.figures import figures, value_figures


def rows(way: str, predicted: np.ndarray, truth: np.ndarray, **more: Any) -> pd.DataFrame:
    n = len(truth)
    base = {
        "experiment": "sites", "seed": 1, "fold": 0, "train_sites": "A", "n_source": None,
        "scan": range(n), "participant": "x", "person": [f"p{i}" for i in range(n)],
        "test_site": "B",
        "way": way, "target": "brain_age", "truth": truth, "predicted": predicted,
    }  # fmt: skip
    return pd.DataFrame(base | more)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.random.default_rng(0).uniform(20, 80, 40)


def test_a_gain_is_positive_where_harmonized_scans_do_better(truth: np.ndarray) -> None:
    noise = np.random.default_rng(1).normal(0, 3, (2, 40))
    table = tabulate(
        pd.concat([rows("none", truth + 12 + noise[0], truth),
                   rows("harmonized", truth + noise[1], truth)]), {"brain_age": False}, 0,
    )  # fmt: skip
    none, ours = table.to_dict("records")
    assert none["mae"] == pytest.approx(12, abs=1.5)
    assert none["bias_low"] < none["bias"] < none["bias_high"]
    assert ours["gain_over_none"] == pytest.approx(none["mae"] - ours["mae"])
    assert ours["gain_over_none_low"] > 5
    assert ours["p_over_none"] < 0.01
    assert ours["n_persons"] == 40


def test_ways_that_do_not_differ_are_not_told_apart(truth: np.ndarray) -> None:
    noise = np.random.default_rng(2).normal(0, 3, (2, 40))
    p = permutation_p(truth + noise[:1], truth + noise[1:], truth,
                      np.arange(40).astype(str), value_figures, "mae", 0)  # fmt: skip
    assert p > 0.05


def test_scans_of_one_person_are_drawn_together(truth: np.ndarray) -> None:
    error = np.repeat(np.random.default_rng(3).normal(0, 6, 10), 4)
    few = [f"p{i // 4}" for i in range(40)]
    apart, together = (
        tabulate(rows("harmonized", truth + error, truth, **more), {"brain_age": False}, 0).iloc[0]
        for more in ({}, {"person": few})
    )
    assert together["n_persons"] == 10
    width = [row["bias_high"] - row["bias_low"] for row in (apart, together)]
    assert width[1] > 1.5 * width[0]


def test_two_classes_and_all_foreign_sites_together() -> None:
    truth = np.tile([0.0, 1.0], 20)
    parts = [
        rows("harmonized", truth, truth, test_site=site, target="ill", scan=range(k, k + 40),
             person=[f"{site}{i}" for i in range(40)])
        for k, site in ((0, "A"), (40, "B"), (80, "C"))
    ]  # fmt: skip
    table = tabulate(pd.concat(parts), {"ill": True}, 0).set_index("test_site")
    assert list(table.index) == ["A", "B", "C", "B+C"]
    assert table.loc["B+C", "n_cases"] == 40
    assert (table["auc"] == 1).all()


def test_repetitions_are_averaged_and_their_spread_is_told(truth: np.ndarray) -> None:
    both = pd.concat([rows("harmonized", truth + k, truth, seed=k) for k in (1, 3)])
    row = tabulate(both, {"brain_age": False}, 0).iloc[0]
    assert row["bias"] == pytest.approx(2)
    assert row["bias_seed_sd"] == pytest.approx(np.sqrt(2))


def test_icc_of_shrout_and_fleiss() -> None:
    # The six targets and four judges of Shrout and Fleiss (1979), where ICC(2,1) is .29.
    judged = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9],
                       [6, 2, 4, 7]], float)  # fmt: skip
    assert icc(judged) == pytest.approx(0.29, abs=0.005)
    assert icc(np.repeat(judged[:, :1], 3, axis=1)) == pytest.approx(1)
    assert np.isnan(icc(judged[:1]))


def test_a_way_that_was_had_in_one_fold_is_compared_on_its_own_scans(truth: np.ndarray) -> None:
    whole = [
        rows(way, truth + off, truth, fold=np.repeat([0, 1], 20))
        for way, off in (("tissue_scaling", 6), ("harmonized", np.repeat([1, 3], 20)))
    ]
    some = rows("combat", truth + 5, truth).iloc[20:].assign(fold=1)
    found = tabulate(pd.concat([*whole, some]), {"brain_age": False}, 0).set_index("way")
    assert found["n_scans"].to_dict() == {"tissue_scaling": 40, "combat": 20, "harmonized": 40}
    assert found["n_folds"].to_dict() == {"tissue_scaling": 2, "combat": 1, "harmonized": 2}
    ours = found.loc["harmonized"]
    assert ours["mae"] == pytest.approx(2)
    assert ours["gain_over_tissue_scaling"] == pytest.approx(4)
    assert ours["gain_over_combat"] == pytest.approx(2)  # 5 against 3, in the second fold
    assert ours["p_over_combat"] < 0.01
    # Not had where the harmonized scans were tested, or no map at all: no comparison, no crash.
    apart = tabulate(pd.concat([whole[1].iloc[:20], some]), {"brain_age": False}, 0)
    assert "gain_over_combat" not in apart
    assert "gain_over_combat" not in tabulate(some, {"brain_age": False}, 0)


def test_a_repetition_without_a_fold_counts_what_it_has(truth: np.ndarray) -> None:
    first, second = (rows("combat", truth + k, truth, seed=k) for k in (1, 3))
    row = tabulate(pd.concat([first, second.iloc[:10]]), {"brain_age": False}, 0).iloc[0]
    assert (row["n_scans"], row["bias"]) == (40, pytest.approx(2))
    assert np.isfinite(row["bias_low"])


def test_areas_are_compared_by_ranks_with_persons_as_clusters() -> None:
    chance = np.random.default_rng(4)
    truth = np.tile([0.0, 1.0], 30)
    ours = truth + chance.normal(0, 1.0, 60)
    theirs = ours + chance.normal(0, 0.1, 60)
    few = [f"p{i // 6}" for i in range(60)]
    p = []
    for scale, person in ((1, None), (100, None), (1, few)):
        parts = [rows(way, score, truth, target="ill", **({"person": person} if person else {}))
                 for way, score in (("none", theirs), ("harmonized", scale * ours))]  # fmt: skip
        found = tabulate(pd.concat(parts), {"ill": True}, 0).set_index("way").loc["harmonized"]
        wanted = delong((scale * ours)[None], theirs[None], truth,
                        np.array(person or range(60)).astype(str))  # fmt: skip
        assert found["gain_over_none"] == pytest.approx(wanted[0])
        assert found["p_over_none"] == pytest.approx(wanted[2])
        p.append(found["p_over_none"])
    assert p[0] == pytest.approx(p[1])  # a network of another scale is no other classifier
    assert p[2] != pytest.approx(p[0])


def test_coverage_of_the_intervals_is_told(truth: np.ndarray) -> None:
    error = np.where(np.arange(40) < 30, 4, 12)
    found = tabulate(rows("harmonized", truth + error, truth, half_width=10.0),
                     {"brain_age": False}, 0).iloc[0]  # fmt: skip
    assert found["coverage"] == 0.75
    assert (found["coverage_low"], found["coverage_high"]) == pytest.approx(
        (0.598, 0.858), abs=1e-3
    )


# --- what cannot be known -----------------------------------------------------------------------


def test_equal_ages_correlate_with_nothing_and_have_no_slope() -> None:
    # The mean of seven 30.1 is off by rounding, and so is their standard deviation.
    predicted = np.array([25.0, 31, 44, 28, 39, 50, 33])
    for x, y in ((predicted, np.full(7, 30.1)), (np.full(7, 30.1), predicted)):
        found = tabulate(rows("none", x, y), {"brain_age": False}, 0).iloc[0]
        assert np.isnan(found[["r", "r_low", "r_high"]].astype(float)).all()
        assert np.isfinite(found["mae_low"])
    assert np.isnan(icc(np.full((5, 3), 30.1)))
    person = [f"p{i // 3}" for i in range(30)]
    volume = np.random.default_rng(0).random(30)
    same = looks(person, "A", "tissue_scaling", np.full(30, 30.1), volume)
    assert biology_table(pd.concat([same, same.assign(way="harmonized")]), [], 0).empty


def test_one_case_has_an_area_and_no_interval() -> None:
    # Each draw of persons that has the class has this case: the interval would be 1 to 1.
    score, ill = np.r_[3.0, np.linspace(-2, 2, 20)], np.r_[1.0, np.zeros(20)]
    table = pd.concat([rows(way, score, ill) for way in ("none", "harmonized")])
    for row in tabulate(table, {"brain_age": True}, 0).to_dict("records"):
        assert (row["auc"], row["n_cases"]) == (1, 1)
        assert np.isnan([row["auc_low"], row["auc_high"], row["balanced_accuracy_low"]]).all()
    assert np.isnan([row["gain_over_none_low"], row["p_over_none"]]).all()
    found = figures(score, ill, True, np.random.default_rng(0))
    assert (found["auc"], found["auc_95"]) == (1, None)


def test_scans_of_two_persons_are_no_correlation() -> None:
    truth = np.repeat([30.0, 60.0], 4) + np.tile([0, 1, 2, 3], 2)
    error = np.tile([1.0, -1, 2, -2], 2)
    found = tabulate(rows("none", truth + error, truth, person=list("aaaabbbb")),
                     {"brain_age": False}, 0).iloc[0]  # fmt: skip
    assert np.isnan(found[["r", "r_low", "r_high", "mae_low"]].astype(float)).all()
    assert found["mae"] == 1.5
    persons = np.array(list("aaaabbbb"))
    assert figures(truth + error, truth, False, np.random.default_rng(0), persons)["r"] is None


def test_a_site_without_travellers_does_not_hide_the_others() -> None:
    # Ages of four persons at two sites, and of three others at a third.
    people = [f"p{i}" for i in range(4)]
    age = np.array([20.0, 40, 60, 80])
    parts = [looks(people, site, "tissue_scaling", age, age + off)
             for site, off in (("A", 0.0), ("REF", 2.0))]  # fmt: skip
    parts.append(looks(["q0", "q1", "q2"], "B", "tissue_scaling", age[:3], age[:3]))
    said = rows("tissue_scaling", age, age, person=people, test_site="A")
    row = agreement_table(pd.concat(parts), said).set_index("measure").loc["ventricle_ml"]
    assert (row["n_persons"], row["n_sites"]) == (4, 2)
    # Between persons 2 * 2000 / 3, between sites 8, rest 0: 1333.3 / (1333.3 + 2 * 8 / 4).
    assert row["icc"] == pytest.approx(1333.333 / 1337.333)


# --- images: fewer scans of a way, and persons with several -------------------------------------


def looks(person: list[str], site: str, way: str, age: np.ndarray, volume: np.ndarray) -> Any:
    n = len(person)
    rng = np.random.default_rng(0)
    base = {
        "seed": 1, "fold": 0, "scan": np.arange(n) + 100 * (site == "REF"), "person": person,
        "site": site, "age": age, "way": way, **dict.fromkeys(ANATOMY, volume),
        **{name: rng.normal(size=n) for name in FEATURES}, "harmonized_change": 0.1,
        "quantiles": list(np.ones((n, 4, 99))),
    }  # fmt: skip
    return pd.DataFrame(base)


def test_effects_are_those_of_persons_and_of_the_scans_a_way_has() -> None:
    age = np.linspace(20, 80, 12)
    people = [f"p{i}" for i in range(12)]
    # The last person has three more scans at other ages, all with one wild volume.
    person, ages = [*people, *["p11"] * 3], np.r_[age, 90, 100, 110]
    volume = 2 * ages
    before = looks(person, "A", "tissue_scaling", ages, volume)
    after = looks(person, "A", "combat", ages, volume / 2).iloc[:10]
    found = biology_table(pd.concat([before, after]), [], 0)
    assert set(found["way"]) == {"combat"}
    row = found.iloc[0]
    assert (row["n_scans"], row["n_persons"]) == (10, 10)
    assert (row["before"], row["after"], row["ratio"]) == pytest.approx((2, 1, 0.5))
    whole = biology_table(pd.concat([before, before.assign(way="harmonized")]), [], 0).iloc[0]
    assert (whole["n_scans"], whole["n_persons"]) == (15, 12)


def test_looks_of_a_way_that_a_site_lacks_are_left_out() -> None:
    people = [f"p{i}" for i in range(6)]
    age = np.linspace(20, 80, 6)
    home = looks([f"r{i}" for i in range(6)], "REF", "tissue_scaling", age, age)
    parts = [looks(people, site, "tissue_scaling", age, age) for site in "AB"]
    parts[1]["scan"] += 200
    combat = looks(people, "A", "combat", age, age)
    found = image_table(pd.concat([home, *parts, combat]), "REF", 0)
    assert set(zip(found["site"], found["way"], strict=True)) == {
        ("A", "tissue_scaling"), ("A", "combat"), ("B", "tissue_scaling"),
    }  # fmt: skip
    assert (found["n_persons"] == 6).all()


def test_exchanged_sites_are_those_of_persons() -> None:
    # Sixteen scans of four persons on each side: by scans the p would be 1 in 101.
    rng = np.random.default_rng(3)
    sides = []
    for side, shift in (("A", 0.0), ("REF", 0.8)):
        person = np.repeat([f"{side}{i}" for i in range(4)], 4)
        part = looks(list(person), side, "tissue_scaling", np.full(16, 50.0), np.ones(16))
        part[list(FEATURES)] = np.repeat(rng.normal(shift, 1, (4, len(FEATURES))), 4, axis=0)
        sides.append(part)
    row = image_table(pd.concat(sides), "REF", 0).iloc[0]
    assert row["site_probe_p"] > 0.02
