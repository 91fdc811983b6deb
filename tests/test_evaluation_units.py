"""What an evaluation trains and tests: whole persons, every scan once, nothing seen before."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from training_data import balls
from training_heads import people, table

from bids_harmony.config import EvaluateOptions, TrainOptions
from bids_harmony.errors import UsageError
from bids_harmony.evaluation.run import choose_targets, plan_units, unknown_values
from bids_harmony.evaluation.unit import (
    Study,
    Unit,
    fit_predictors,
    person_distances,
    split_of,
    subject_folds,
)
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.targets import Target

AGES = [float(age) for age in range(20, 60, 2)]


@pytest.fixture(scope="module")
def travellers() -> TrainingSet:
    """Return 20 persons of each of two sites, of whom 6 were also scanned at the other."""
    rows = table({"A": AGES, "B": AGES})
    rows["subject"] = [f"{site}{i}" for site in "AB" for i in range(len(AGES))]
    again = rows[rows["subject"].isin([f"A{i}" for i in range(6)])].assign(site="B")
    twice = rows[rows["subject"] == "B3"]
    return people(pd.concat([rows, again, twice], ignore_index=True))


def test_a_person_has_one_fold_at_all_sites_and_classes_are_balanced(
    travellers: TrainingSet,
) -> None:
    folds = subject_folds(travellers, 4, seed=1)
    frame = pd.DataFrame({"person": travellers.table["subject"], "fold": folds})
    assert (frame.groupby("person")["fold"].nunique() == 1).all()
    assert set(folds) == {0, 1, 2, 3}
    for site in "AB":  # every fold has persons of every site, young and old
        ages = [travellers.ages[(folds == k) & (travellers.sites == site)] for k in range(4)]
        assert all(len(a) >= 4 and np.ptp(a) > 20 for a in ages)
    assert not np.array_equal(folds, subject_folds(travellers, 4, seed=2))
    rows = table({"A": AGES + AGES}).assign(subject=[str(i) for i in range(40)])
    ill = np.array([float(i % 5 == 0) for i in range(40)])
    folds = subject_folds(people(rows), 4, 0, [Target("ill", "ill", ill, ("no", "yes"))])
    assert [int(ill[folds == k].sum()) for k in range(4)] == [2, 2, 2, 2]


@pytest.mark.parametrize("unit", [
    Unit("sites", 3, 1, ("A",), ("A", "B")),
    Unit("size", 3, 1, ("A",), ("B",), n_source=5),
])  # fmt: skip
def test_nobody_tested_is_seen(travellers: TrainingSet, unit: Unit) -> None:
    folds = subject_folds(travellers, 3, unit.seed)
    split, seen = split_of(travellers, unit, folds, 0.15)
    tested = set(travellers.persons[folds == 1])
    for part in (split, seen):
        assert not tested & set(travellers.persons[part != "test"])
    at_b = np.unique(travellers.persons[(seen != "test") & (travellers.sites == "B")])
    every = np.unique(travellers.persons[(split != "test") & (travellers.sites == "B")])
    assert len(at_b) == {"sites": len(every), "size": 5}[unit.experiment]


def planned(data: TrainingSet, *experiments: str, seed: int = 0, **more: Any) -> list[Unit]:
    options = EvaluateOptions(experiments, **{"cv_folds": 2, **more})
    return plan_units(data, options, "A", TrainOptions(seed=seed, folds=2))


def test_units_of_every_experiment() -> None:
    data = people(table({"A": AGES, "B": AGES[:11], "C": AGES[:6]}))
    units = planned(data, "sites", "rotations", "size", n_seeds=2, seed=7)
    # Eleven scans, half of them tested: sizes 1, 2 and 4.
    assert len(units) == 2 * 2 * (1 + 9 + 3)
    assert {unit.seed for unit in units} == {7, 8}
    pairs = {u.train_sites: u.test_sites for u in units if u.experiment == "rotations"}
    assert pairs[("B",)] == ("A", "C")
    assert pairs[("B", "A")] == pairs[("A", "B")] == ("C",)
    rotations = planned(data, "rotations", train_sites=("B", "C+A"))
    assert [unit.train_sites for unit in rotations] == [("B",), ("C", "A")] * 2


def test_experiments_that_cannot_be_done_are_refused() -> None:
    # Of four persons two are left, of three one, which is too few for two networks.
    data = people(table({"A": AGES, "B": AGES[:3]}))
    assert {unit.train_sites for unit in planned(data, "rotations")} == {("A",)}
    for wrong in ("Q", "A+B", "B"):  # unknown, nothing left to test on, too few persons
        with pytest.raises(
            UsageError, match=re.escape(f"--train-sites {wrong} is not a possible rotation")
        ):
            planned(data, "rotations", train_sites=("A", wrong))
    with pytest.raises(UsageError, match="No site has enough persons"):
        planned(people(table({"A": AGES[:3], "B": AGES[:3]})), "rotations")
    for rows in ({"A": AGES}, {"A": AGES, "B": AGES[:1]}):
        with pytest.raises(UsageError, match="experiment size needs"):
            planned(people(table(rows)), "size")


def test_sizes_are_persons_with_all_their_scans() -> None:
    rows = table({"A": AGES, "B": AGES + AGES})
    rows["subject"] = [f"a{i}" for i in range(20)] + 2 * [f"b{i}" for i in range(20)]
    data = people(rows)
    units = planned(data, "size")
    assert {unit.n_source for unit in units} == {1, 2, 4, 8}  # of ten persons with twenty scans
    _, seen = split_of(data, units[2], subject_folds(data, 2, 0), 0.15)
    left = data.persons[(seen != "test") & (data.sites == "B")]
    assert (len(left), len(set(left))) == (8, 4)


def test_images_are_compared_with_the_same_persons_and_another_s() -> None:
    data = balls({"REF": 3, "A": 2})
    data.table["subject"] = ["p", "q", "r", "p", "s"]
    at_home = np.array([0, 1])
    volume, mask = data.volume(0)
    found = person_distances(data, 3, (volume + 0.1, mask), at_home)
    assert found["within_person"] == pytest.approx(0.1)
    other, there = data.volume(1)  # the scan of another person
    apart = np.abs(volume + 0.1 - other)[mask & there].mean()
    assert found["between_persons"] == pytest.approx(apart)
    # Of the reference itself, of a person whom it lacks, and where it has no other person.
    for scan, home in ((0, at_home), (4, at_home), (3, at_home[:1])):
        assert person_distances(data, scan, (volume, mask), home) == {}


def test_targets_that_cannot_be_evaluated_are_named() -> None:
    rows = table({"A": AGES, "B": AGES[:8]})
    rows["subject"] = [f"s{i}" for i in range(28)]
    everything = np.ones(28, bool)

    def chosen(**columns: object) -> tuple[list[str], list[str]]:
        data = people(rows.assign(**columns))
        found, notes = choose_targets(data, TrainOptions(folds=2), "A", everything)
        return [target.column for target in found], notes + unknown_values(data, found)

    dx = ["control", "ill"] * 14
    some = [*AGES, *AGES[:5], *[np.nan] * 3]
    for columns, wanted, said in (
        ({"diagnosis": dx}, ["age", "diagnosis"], ""),
        ({"diagnosis": dx, "age": np.nan}, ["diagnosis"],
         "Not evaluated: age. No scan of A has a value in the column age."),
        ({}, ["age"], "Not evaluated: diagnosis. No scan of A has a value"),
        ({"diagnosis": dx, "age": 40.0}, ["diagnosis"], "age has 1 different values at A"),
        ({"diagnosis": dx, "age": some}, ["age", "diagnosis"],
         "brain_age: 3 scans of B without a value in the column age will not be tested."),
        ({"diagnosis": [*dx[:20], *["ill"] * 8]}, ["age", "diagnosis"],
         "diagnosis_probability: B has scans of the class ill only."),
    ):  # fmt: skip
        found, notes = chosen(**columns)
        assert found == wanted
        assert len(notes) == bool(said)
        assert said in "".join(notes)
    with pytest.raises(UsageError, match="No scan of A has a value in the column age"):
        chosen(age=np.nan)
    with pytest.raises(UsageError, match="age has 1 different values"):
        chosen(age=40.0)


def test_a_target_with_too_few_persons_of_a_class_is_left_out(tmp_path: Path) -> None:
    rows = table({"A": AGES, "B": AGES[:8]}).assign(diagnosis=["ill"] + 27 * ["control"])
    data = people(rows.assign(subject=[f"s{i}" for i in range(28)]))
    targets, _ = choose_targets(data, TrainOptions(), "A", np.ones(28, bool))
    options = EvaluateOptions()
    study = Study(data, targets[1:], TrainOptions(folds=2), options, tmp_path)
    unit = Unit("sites", 1, 0, ("A",), ("A", "B"))
    predictors, reasons = fit_predictors(study, unit, data, np.full(28, "train"))
    assert predictors == {}
    assert "The reference site has 1 person" in reasons["diagnosis_probability"]
    assert "of one class, fewer than --folds 2." in reasons["diagnosis_probability"]


def test_a_site_of_few_persons_keeps_one_to_train_on() -> None:
    data = people(table({"A": AGES, "B": AGES[:4]}).assign(subject=[f"s{i}" for i in range(24)]))
    folds = np.where(np.arange(24) % 4 == 0, 0, 1)  # of B one person is tested, or three are
    for seed, fold in itertools.product(range(6), (0, 1)):
        unit = Unit("sites", seed, fold, ("A",), ("A", "B"))
        split, _ = split_of(data, unit, folds, 0.4)
        assert "train" in split[data.sites == "B"]
        assert ((split == "test") == (folds == fold)).all()
