"""What the evaluation's page says in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bids_harmony.evaluation.report import _site_sentence


def row(way: str, **facts: float) -> dict[str, Any]:
    values = {"target": "age", "test_site": "B", "n_persons": 24, "way": way}
    return values | {"mae": 8.0, "mae_low": 7.0, "mae_high": 9.0} | facts


@pytest.mark.parametrize(
    ("gain", "low", "high", "p", "said"),
    [
        (1.5, 0.1, 3.1, 0.01, "better by 1.50 than"),
        (-1.5, -3.1, -0.1, 0.01, "worse by 1.50 than"),
        (1.5, -0.1, 3.1, 0.01, "not clearly other than"),
        (1.5, 0.1, 3.1, 0.056, "not clearly other than"),  # ends of interval and p disagree
    ],
)
def test_a_gain_is_one_where_interval_and_p_say_so(
    gain: float, low: float, high: float, p: float, said: str
) -> None:
    facts = {
        "gain_over_none": gain, "gain_over_none_low": low, "gain_over_none_high": high,
        "p_over_none": p,
    }  # fmt: skip
    text = _site_sentence([row("none"), row("harmonized", **facts)], binary=False)
    assert f"Harmonized scans are {said} no harmonization (p {p:.3f})" in text


def test_a_way_with_fewer_persons_and_no_interval_is_said_as_it_is() -> None:
    few = row("combat", n_persons=2, mae_low=np.nan, mae_high=np.nan)
    text = _site_sentence([few, row("harmonized")], binary=False)
    assert text == (
        "age at B (2 to 24 persons), mean absolute error: ComBat 8.00, "
        "harmonized 8.00 (7.00 to 9.00)."
    )
    assert "Harmonized" not in _site_sentence([few], binary=False)
