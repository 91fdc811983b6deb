"""Compare a scan's metrics with the scans a bundle was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

#: Makes a median absolute deviation comparable with a standard deviation.
MAD_TO_SD = 1.4826
#: A value is out of range when it lies this many robust standard deviations outside the 1st to
#: 99th percentile. Of 151 good scans of three scanners, judged by references made without them
#: (five folds), 7 were flagged so, and 46 by the percentiles alone: there are some 25 metrics, and
#: 2 % of good scans lie outside for each.
SLACK_SD = 1.0
#: With fewer reference scans than this, percentiles say nothing and no verdict is given.
MIN_REFERENCE = 20
#: Head pose and size in the scanner differ at will and do no harm; the limits of
#: :mod:`bids_harmony.qc.limits` catch what does.
NOT_JUDGED = frozenset(
    {"affine_rotation_deg", "affine_shear_xy", "affine_shear_xz", "affine_shear_yz"}
)
SPOKEN_UNITS = ("mL", "mm", "degree")


@dataclass(frozen=True)
class Verdict:
    """What the reference says about a scan.

    Attributes
    ----------
    status : str
        ``pass`` or ``warn``.
    reasons : tuple of str
        In plain words, one per metric out of range.
    flagged : tuple of str
        The names of those metrics.
    """

    status: str = "pass"
    reasons: tuple[str, ...] = ()
    flagged: tuple[str, ...] = field(default=())


@cache
def dictionary() -> dict[str, dict[str, Any]]:
    """Describe every metric: LongName, Description, Units, Direction and Group."""
    text = (files("bids_harmony.data") / "qc_dictionary.json").read_text(encoding="utf-8")
    values: dict[str, dict[str, Any]] = json.loads(text)
    return values


def reference_statistics(
    by_site: Mapping[str, Iterable[Mapping[str, float | None]]],
) -> dict[str, Any]:
    """Summarize the metrics of the scans a bundle was trained on (``qc_reference.json``).

    Parameters
    ----------
    by_site : mapping
        For each site, the metrics of its scans.

    Returns
    -------
    dict
        ``{"all": {metric: summary}, "sites": {site: {metric: summary}}}`` where a summary is
        ``{"median", "mad", "p1", "p99", "n"}``. Missing values are left out.
    """
    rows = {site: list(metrics) for site, metrics in sorted(by_site.items())}
    return {
        "all": _summaries([row for site in rows.values() for row in site]),
        "sites": {site: _summaries(site_rows) for site, site_rows in rows.items()},
    }


def _summaries(rows: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    summaries = {}
    for name in sorted({name for row in rows for name in row}):
        values = np.array([v for row in rows if (v := row.get(name)) is not None], dtype=float)
        if not values.size:
            continue
        median = float(np.median(values))
        numbers = {
            "median": median,
            "mad": float(np.median(np.abs(values - median))),
            "p1": float(np.percentile(values, 1)),
            "p99": float(np.percentile(values, 99)),
        }
        summaries[name] = {k: float(f"{v:.6g}") for k, v in numbers.items()} | {"n": values.size}
    return summaries


def reference_range(summary: Mapping[str, float]) -> tuple[float, float]:
    """Range of values that are not remarked upon: 1st to 99th percentile with some slack."""
    slack = SLACK_SD * MAD_TO_SD * summary["mad"]
    low = summary["p1"] - slack
    # What is never negative has no negative lower end.
    return max(low, 0.0) if summary["p1"] >= 0 else low, summary["p99"] + slack


def judge(metrics: Mapping[str, float | None], reference: Mapping[str, Any] | None) -> Verdict:
    """Judge a scan by the reference statistics of a bundle.

    A metric with a direction ("higher is better") is remarked upon on its bad side only; the
    others on both. A scan is never dropped for this: statistics do not replace looking at it
    (science.md §7).

    Parameters
    ----------
    metrics : mapping
        Metric name to value, or None where it is not defined.
    reference : mapping, optional
        As :func:`reference_statistics` returns it. Without one everything passes.

    Returns
    -------
    Verdict
        ``warn`` when at least one metric is out of range.
    """
    summaries = (reference or {}).get("all", {})
    reasons, flagged = [], []
    for name, facts in dictionary().items():
        value, summary = metrics.get(name), summaries.get(name)
        if value is None or summary is None or name in NOT_JUDGED:
            continue
        if summary["n"] < MIN_REFERENCE:
            continue
        low, high = reference_range(summary)
        below = value < low and facts["Direction"] != "lower is better"
        above = value > high and facts["Direction"] != "higher is better"
        if below or above:
            side = "below" if below else "above"
            unit = spoken_unit(name)
            reasons.append(
                f"{facts['LongName']} {readable(value)}{unit} is {side} the reference range "
                f"{readable(low)} to {readable(high)}{unit}"
            )
            flagged.append(name)
    return Verdict("warn" if reasons else "pass", tuple(reasons), tuple(flagged))


def spoken_unit(name: str) -> str:
    """Give the unit to write behind a metric's value; ratios have none."""
    unit = dictionary()[name]["Units"]
    return f" {unit}" if unit in SPOKEN_UNITS else ""


def readable(value: float) -> str:
    """Three significant digits without an exponent.

    >>> readable(1561.2), readable(0.0123456), readable(-3.14159)
    ('1561', '0.0123', '-3.14')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
