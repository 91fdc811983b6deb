"""Compare scans with the bundle's training scans, and check registrations against fixed limits.

The registration limits are based on 151 good affine registrations (three scanners, ages 19 to 82,
one brain with ventricles three times as large as most) and on registrations of four of these heads
that were made to fail: by rotations of up to 180 degrees, and by masks shifted by 3 to 6 cm, cut
in half or dilated by 2 cm, each followed by the actual registration:

=====================  ==================  ===============================================
metric                 good                failed
=====================  ==================  ===============================================
``template_ncc``       0.62 to 0.77;       at most 0.30
                       0.47 for the brain
                       with large
                       ventricles
``template_dice``      0.925 to 0.964      at most 0.79 where the correlation alone was
                                           good (mask far too large), else up to 0.96
=====================  ==================  ===============================================

Starting from a good registration, the correlation drops to the limit at a shift of about 10 mm or
a rotation of about 15 degrees. A mirrored brain has the same similarity as the original; only the
affine's determinant, which is then negative, reveals it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from bids_harmony.errors import ScanError
from bids_harmony.qc.metrics import rounded

#: Minimum and maximum of each metric for a successful registration.
REGISTRATION_LIMITS = {
    "template_ncc": (0.36, math.inf),
    "template_dice": (0.85, math.inf),
    "affine_determinant": (0.30, 1.60),
    "affine_scale_x": (0.60, 1.40),
    "affine_scale_y": (0.60, 1.40),
    "affine_scale_z": (0.60, 1.40),
}
#: Ratio of standard deviation to median absolute deviation of a normal distribution.
MAD_TO_SD = 1.4826
#: Robust standard deviations outside the 1st to 99th percentile beyond which a value is out of
#: range. In five-fold cross-validation with 151 good scans of three scanners, 7 scans were
#: flagged. Without this margin, 46 were: 2 % of good scans are outside for each of some 25
#: metrics.
SLACK_SD = 1.0
#: Minimum number of reference scans; with fewer, percentiles are meaningless and metrics pass.
MIN_REFERENCE = 20
#: Metrics of head pose, which varies freely and is harmless within the registration limits.
POSE_METRICS = frozenset(
    {"affine_rotation_deg", "affine_shear_xy", "affine_shear_xz", "affine_shear_yz"}
)
SHOWN_UNITS = ("mL", "mm", "degree")
#: Number of bins and upper end of histograms of scaled intensities (white matter 1, maximum 2).
N_BINS, TOP = 80, 1.6


@cache
def dictionary() -> dict[str, dict[str, Any]]:
    """Load the description of every metric: LongName, Description, Units, Direction and Group."""
    text = (files("bids_harmony.data") / "qc_dictionary.json").read_text(encoding="utf-8")
    values: dict[str, dict[str, Any]] = json.loads(text)
    return values


def check_registration(metrics: Mapping[str, float | None], name: str) -> None:
    """Raise ScanError if a scan's registration failed.

    Parameters
    ----------
    metrics : mapping
        Metrics from :func:`bids_harmony.qc.metrics.scan_metrics`.
    name : str
        Name of the scan, for the message.

    Raises
    ------
    ScanError
        When a metric is outside its limits or could not be computed.
    """
    problems = []
    for metric, (low, high) in REGISTRATION_LIMITS.items():
        value, called = metrics.get(metric), dictionary()[metric]["LongName"]
        if value is None:
            problems.append(f"{called} could not be computed")
        elif not low <= value <= high:
            side, limit = ("below", low) if value < low else ("above", high)
            problems.append(f"{called} is {value:.2f}, {side} the limit of {limit:.2f}")
    if problems:
        raise ScanError(
            f"The registration of {name} to the template failed: {'; '.join(problems)}.",
            "Check the brain mask and the orientation of the scan; a mask from --derivatives, or "
            "another --skull-strip or --registration method, may help.",
        )


def reference_statistics(
    by_site: Mapping[str, Iterable[Mapping[str, float | None]]],
) -> dict[str, Any]:
    """Summarize the metrics of the bundle's training scans (``qc_reference.json``).

    Parameters
    ----------
    by_site : mapping
        Metrics of the scans of each site.

    Returns
    -------
    dict
        ``{"all": {metric: summary}, "sites": {site: {metric: summary}}}``, where each summary is
        ``{"median", "mad", "p1", "p99", "n"}``. Missing values are ignored.
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
        if values.size:
            p1, median, p99 = np.percentile(values, (1, 50, 99))
            numbers = {"median": median, "mad": np.median(np.abs(values - median))}
            numbers |= {"p1": p1, "p99": p99}
            summaries[name] = {key: float(f"{v:.6g}") for key, v in numbers.items()}
            summaries[name]["n"] = values.size
    return summaries


def reference_range(summary: Mapping[str, float]) -> tuple[float, float]:
    """Return the range of normal values: 1st to 99th percentile, plus a margin."""
    slack = SLACK_SD * MAD_TO_SD * summary["mad"]
    low = summary["p1"] - slack
    # Metrics that are never negative get no negative lower bound.
    return max(low, 0.0) if summary["p1"] >= 0 else low, summary["p99"] + slack


def out_of_range(
    metrics: Mapping[str, float | None], reference: Mapping[str, Any] | None
) -> dict[str, str]:
    """Find the metrics of a scan that are outside a bundle's reference range.

    Metrics with a direction ("higher is better") are flagged on their bad side only, others on
    both sides. Scans are never excluded for this: statistics do not replace visual inspection
    (science.md §7).

    Parameters
    ----------
    metrics : mapping
        Values by metric, None where undefined.
    reference : mapping or None
        Statistics from :func:`reference_statistics`. Without them, no metric is out of range.

    Returns
    -------
    dict of str to str
        Metrics out of range, and an explanation for each.
    """
    found = {}
    for name, facts in dictionary().items():
        value, summary = metrics.get(name), (reference or {}).get("all", {}).get(name)
        if value is None or not summary or summary["n"] < MIN_REFERENCE or name in POSE_METRICS:
            continue
        low, high = reference_range(summary)
        below = value < low and facts["Direction"] != "lower is better"
        above = value > high and facts["Direction"] != "higher is better"
        if below or above:
            unit = spoken_unit(name)
            found[name] = (
                f"{facts['LongName']} {readable(value)}{unit} is {'below' if below else 'above'} "
                f"the reference range {readable(low)} to {readable(high)}{unit}"
            )
    return found


def spoken_unit(name: str) -> str:
    """Return the unit to append to a metric's value; empty for ratios."""
    unit = dictionary()[name]["Units"]
    return f" {unit}" if unit in SHOWN_UNITS else ""


def readable(value: float) -> str:
    """Format a number with three significant digits, without an exponent.

    >>> readable(1561.2), readable(0.0123456), readable(-3.14159)
    ('1561', '0.0123', '-3.14')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def brain_histogram(volume: np.ndarray, mask: np.ndarray) -> dict[str, list[float]]:
    """Compute the intensity histogram of a scaled volume within its mask.

    Parameters
    ----------
    volume : numpy.ndarray
        Scaled volume on the template grid.
    mask : numpy.ndarray
        Boolean mask of its foreground.

    Returns
    -------
    dict
        ``edges`` (81 values from 0 to 1.6) and ``density`` (80 values that integrate to 1;
        brighter voxels count in the last bin).
    """
    edges = np.linspace(0, TOP, N_BINS + 1)
    counts, _ = np.histogram(np.clip(volume[mask], 0, TOP), bins=edges)
    density = counts / max(int(counts.sum()), 1) / (TOP / N_BINS)
    return {"edges": edges.round(6).tolist(), "density": density.round(6).tolist()}


def mean_histogram(histograms: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Average the histograms of several scans, such as those of the reference site."""
    density = np.mean([h["density"] for h in histograms], axis=0)
    return {"edges": list(histograms[0]["edges"]), "density": density.round(6).tolist()}


def histogram_distance(a: Mapping[str, list[float]], b: Mapping[str, list[float]]) -> float:
    """Compute the Wasserstein-1 distance of two histograms with the same edges."""
    width = np.diff(a["edges"])
    gap = np.cumsum(np.subtract(a["density"], b["density"]) * width)
    return float((np.abs(gap) * width).sum())


def reference_distances(
    raw: np.ndarray,
    harmonized: np.ndarray,
    mask: np.ndarray,
    reference: Mapping[str, list[float]] | None,
) -> dict[str, float | None]:
    """Compute the distance of a scan's histogram from the reference site's, raw and harmonized.

    Parameters
    ----------
    raw, harmonized : numpy.ndarray
        Scaled volumes on the template grid, before and after harmonization.
    mask : numpy.ndarray
        Boolean mask of their foreground.
    reference : mapping or None
        :func:`mean_histogram` of the reference site.

    Returns
    -------
    dict
        ``reference_distance_raw`` and ``reference_distance_harmonized``, in scaled intensities;
        None without a reference.
    """
    return {
        f"reference_distance_{kind}": None
        if reference is None
        else rounded(histogram_distance(brain_histogram(volume, mask), reference))
        for kind, volume in (("raw", raw), ("harmonized", harmonized))
    }
