"""Figures, intervals and p values of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_harmony.evaluation.statistics import icc, permutation_p, tabulate
from bids_harmony.training.evaluate import value_figures


def rows(way: str, predicted: np.ndarray, truth: np.ndarray, **more: Any) -> pd.DataFrame:
    n = len(truth)
    base = {
        "experiment": "sites", "seed": 1, "fold": 0, "train_sites": "A", "n_source": None,
        "scan": range(n), "participant": [f"p{i}" for i in range(n)], "test_site": "B",
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
        for more in ({}, {"participant": few})
    )
    assert together["n_persons"] == 10
    width = [row["bias_high"] - row["bias_low"] for row in (apart, together)]
    assert width[1] > 1.5 * width[0]


def test_two_classes_and_all_foreign_sites_together() -> None:
    truth = np.tile([0.0, 1.0], 20)
    parts = [
        rows("harmonized", truth, truth, test_site=site, target="ill", scan=range(k, k + 40),
             participant=[f"{site}{i}" for i in range(40)])
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
