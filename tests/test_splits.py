"""Which scans are trained on, and which are only measured."""

from __future__ import annotations

import numpy as np
import pytest
from training_heads import people, table

from bids_harmony.training.data import (
    TEST,
    TRAIN,
    VALIDATION,
    make_folds,
    split_subjects,
    splits_record,
)


def test_parts_are_whole_subjects_of_every_age_at_each_site() -> None:
    ages = {"REF": np.linspace(20, 80, 40).tolist(), "A": [30.0] * 8, "B": [30.0] * 3}
    data = people(table(ages))
    split = split_subjects(data, 0.15, 0.25, np.random.default_rng(3))
    sizes = {s: [int((split[data.sites == s] == part).sum()) for part in (TRAIN, VALIDATION, TEST)]
             for s in ages}  # fmt: skip
    assert sizes == {"REF": [24, 6, 10], "A": [5, 1, 2], "B": [3, 0, 0]}
    for part in (VALIDATION, TEST):
        found = np.sort(data.ages[(split == part) & (data.sites == "REF")])
        assert found[0] < 35
        assert found[-1] > 65
        assert np.diff(found).max() < 25
    assert np.array_equal(split, split_subjects(data, 0.15, 0.25, np.random.default_rng(3)))
    record = splits_record(data, split)
    assert {part: len(v) for part, v in record["A"].items()} == {
        "train": 5, "validation": 1, "test": 2,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_scans_of_a_subject_are_never_parted_even_between_sites(seed: int) -> None:
    rows = table({"REF": [30.0 + i for i in range(24)], "A": [30.0 + i for i in range(24)]})
    # Two scans each at the reference; every other subject also travelled to the other site.
    rows["subject"] = [f"s{i // 2}" for i in range(24)] + [f"s{i}" for i in range(24)]
    data = people(rows)
    rng = np.random.default_rng(seed)
    split = split_subjects(data, 0.2, 0.2, rng)
    ref = np.flatnonzero(data.sites == "REF")
    folds = make_folds(data, ref, 3, rng)
    for subject in set(rows["subject"]):
        here = np.flatnonzero(rows["subject"] == subject)
        assert len(set(split[here])) == 1
        assert len(set(folds[here][data.sites[here] == "REF"])) <= 1
    assert set(folds[ref]) == {0, 1, 2}
    assert set(np.delete(folds, ref)) == {-1}
