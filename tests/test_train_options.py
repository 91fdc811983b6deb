"""What a training is asked for, and what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_heads import people, table

from bids_harmony.config import Contract
from bids_harmony.errors import UsageError
from bids_harmony.training.data import TrainScan, common_contract, made_under
from bids_harmony.training.targets import find_target, find_targets


def test_columns_become_targets_that_never_share_a_name() -> None:
    rows = table({"REF": [20.0, 30, 40, 50], "A": [30.0, 40]})
    rows["schizophrenia"] = ["yes", "no", None, "yes", "no", "no"]
    rows["coded"] = [1, 0, 1, 0, 0, 0]
    rows["map"] = rows["brain_age"] = np.arange(6.0)
    rows["mini mental/30"] = rows["mini-mental 30"] = np.arange(6.0)
    data, every = people(rows), np.ones(6, dtype=bool)
    asked = ("age", "schizophrenia", "coded", "map", "brain_age", "mini mental/30", "age")
    found = {target.name: target for target in find_targets(data, asked, "REF", every)}
    assert list(found) == [
        "brain_age",
        "column_schizophrenia_probability",
        "coded_probability",
        "column_map",
        "column_brain_age",
        "mini_mental_30",
    ]
    assert [target.binary for target in found.values()] == [False, True, True, False, False, False]
    ill = found["column_schizophrenia_probability"]
    assert ill.classes == ("no", "yes")
    assert np.array_equal(ill.values, [1, 0, np.nan, 1, 0, 0], equal_nan=True)
    assert found["coded_probability"].classes == ("0", "1")
    with pytest.raises(UsageError, match="share the target name mini_mental_30"):
        find_targets(data, ("mini mental/30", "mini-mental 30"), "REF", every)


def test_two_classes_of_three_are_kept_with_the_filter() -> None:
    rows = table({"REF": [20.0, 30, 40, 50, 60], "A": [30.0]})
    rows["diagnosis"] = ["control", "bipolar", "patient", "control", "patient", "bipolar"]
    rows["empty"] = [np.nan] * 5 + [1.0]
    data = people(rows)
    target = find_target(data, "diagnosis", "REF", (rows["diagnosis"] != "bipolar").to_numpy())
    assert target.classes == ("control", "patient")
    assert np.array_equal(target.values, [0, np.nan, 1, 0, 1, np.nan], equal_nan=True)
    for column, words in (
        ("diagnosis", "3 different values"),
        ("empty", "No scan of REF has a value in the column empty"),
        ("height", "no column"),
        ("metrics", "no column"),
    ):
        with pytest.raises(UsageError, match=words):
            find_target(data, column, "REF", np.ones(6, dtype=bool))


def test_a_bundle_asks_for_what_most_scans_were_preprocessed_with(
    caplog: pytest.LogCaptureFixture,
) -> None:
    default = Contract()
    by_flirt = {"contract": default.to_dict(), "skull_strip": "auto", "registration": "flirt"}
    flirt = made_under({"processing": by_flirt})
    assert flirt == replace(default, registration="flirt")
    assert made_under({"processing": {"contract": {"grey": 1}}}) is None
    assert made_under({}) is None
    coarse = replace(default, resolution=4)
    ways = [flirt, flirt, default, None, coarse, coarse, coarse]
    scans = [TrainScan(str(i), "A", Path(), Path(), made=way) for i, way in enumerate(ways)]
    assert common_contract(scans, default) == flirt
    assert "1 of 7 scans" in caplog.text
    assert "registration flirt" in caplog.text
    assert common_contract(scans[3:], default) == default
    assert len(caplog.messages) == 1
