"""Flag scans for visual inspection and explain why.

Within a site, each metric is compared with the site's median in units of its robust deviation
(robust z beyond 3.5, science.md §7), and all metrics together by their Mahalanobis distance.

With some 20 metrics, each scan has 20 chances of being flagged. Two rules limit false alarms.
Metrics with a good and a bad side only count on the bad side. The deviation is estimated
separately on each side, so that skewed metrics do not raise flags. Two more rules keep bad scans
from masking each other. The deviation of a small or contaminated site is shrunk towards that of
other sites. Metrics that do not depend on the scanner (registration, brain size) are also compared
with the bundle's reference at every site.

Of 151 real scans from three scanners without known faults, 8 are flagged (5 %), first of all a
brain with ventricles three times as large as most. Three of the 8 turned out to have a focal
lesion or a very wide sulcus. If one scan in ten is replaced by a copy whose metrics are changed as
by ghosts, noise, a lesion, a wrong mask or a cropped head, 146 of 152 are detected at sites of 8,
15 and 50 scans.

A flag is a reason to look at a scan. No scan is excluded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bids_harmony.qc.dataset import NAMED, Flag, ScanRow, named
from bids_harmony.qc.reference import (
    MAD_TO_SD,
    MIN_REFERENCE,
    POSE_METRICS,
    dictionary,
    out_of_range,
    readable,
    spoken_unit,
)

if TYPE_CHECKING:
    import pandas as pd

Z_LIMIT = 3.5
#: Number of scans below which a site is small, and weight, in scans, of the pooled deviations
#: towards which those of each site are shrunk.
MIN_SITE, PRIOR_SCANS = 10, 20
#: Maximum ratio of the one-sided to the two-sided deviation (1.4 for an exponential distribution).
#: Without it, if a third of a site's scans are bad in the same way, they are most of one side and
#: determine its deviation.
MAX_SKEW = 2.0
#: Absolute z at which values are clipped to estimate covariances.
WINSOR = 3.0
#: Fraction of a site's scans that must have a metric for its absence to be flagged.
MIN_KNOWN = 0.75
#: Good scans of a scanner or population that the bundle was not trained on are often outside its
#: reference range. With at least ``FEW`` scans per site, scans outside are therefore flagged only
#: if their robust z exceeds ``ALSO_Z``, or ``ALSO_Z_LARGE`` if the site is not small.
FEW, ALSO_Z, ALSO_Z_LARGE = 4, 2.5, 3.0
#: Fraction of scans outside the reference range above which the whole site is considered outside.
MOST_OF_SITE = 0.5
#: Maximum size of a flag, which is that of failed scans.
MAX_SIZE = 10.0
#: Groups of metrics that do not depend on the scanner.
FIXED_GROUPS = ("Brain", "Registration")
#: Metrics that are functions of others and would make the covariance singular.
REDUNDANT = frozenset({"affine_determinant", "wm_fraction", "cjv", "brain_age_gap"})
GAP = "brain_age_gap"


class Outliers(NamedTuple):
    """Flagged scans of a dataset.

    Attributes
    ----------
    flags : dict of str to tuple of Flag
        Flags by scan, worst first, at most one per metric.
    score : numpy.ndarray
        Shape (scans,). Most extreme deviation of each scan relative to the limit: at least 1 for a
        flagged scan, at most :data:`MAX_SIZE`.
    notes : tuple of str
        Remarks on whole sites, which are not a reason to look at single scans.
    """

    flags: dict[str, tuple[Flag, ...]]
    score: np.ndarray
    notes: tuple[str, ...]


class Norms(NamedTuple):
    """Metrics of scans and their distribution at each scan's site, shape (scans, metrics) each."""

    values: np.ndarray
    median: np.ndarray
    #: Robust standard deviation below and above the median; 0 where unknown.
    below: np.ndarray
    above: np.ndarray
    #: Robust z; NaN where the value is missing, 0 where the deviation is unknown.
    z: np.ndarray
    #: Robust z on the bad side of each metric, 0 on its good side; without a direction, both are
    #: bad.
    bad: np.ndarray


def find_outliers(
    table: pd.DataFrame, rows: Sequence[ScanRow], reference: Mapping[str, Any] | None = None
) -> Outliers:
    """Find the scans of a dataset that should be inspected.

    Parameters
    ----------
    table : pandas.DataFrame
        Table from :func:`bids_harmony.qc.dataset.scan_table`.
    rows : sequence of ScanRow
        Scans of the table, in the same order.
    reference : mapping, optional
        Bundle's :func:`bids_harmony.qc.reference.reference_statistics`; None to compare scans
        within the dataset only.

    Returns
    -------
    Outliers
        Flags, scores and notes.
    """
    found: dict[int, list[Flag]] = defaultdict(list)
    for i, flag in _status_flags(rows):
        found[i].append(flag)
    # The anatomy guard checks all harmonization metrics except the histogram distances.
    by_guard = {name for name, facts in dictionary().items() if facts["Group"] == "Harmonization"}
    by_guard -= {"reference_distance_raw", "reference_distance_harmonized"}
    metrics = [name for name in (*dictionary(), GAP) if name in table.columns]
    metrics = [name for name in metrics if name not in POSE_METRICS | by_guard]
    finished = np.flatnonzero(table["qc_status"] != "error")
    values, site = table[metrics].iloc[finished], table["site"].iloc[finished]
    norms = site_norms(values, site, reference)
    score, notes = np.zeros(len(table)), []
    for name in sorted(set(site)):
        here = np.flatnonzero(site == name)
        this = _Site(name, metrics, Norms(*(part[here] for part in norms)))
        elsewhere = np.delete(norms.values, here, axis=0)
        sizes, far = _distances(this, this.norms.z if len(here) >= MIN_SITE else norms.z)
        beyond, note = _outside_reference(this, reference, elsewhere)
        for i, flag in (*_deviations(this), *far, *_missing(this), *beyond):
            found[finished[here[i]]].append(flag)
        worst = np.nan_to_num(np.abs(this.norms.bad)).max(axis=1, initial=0.0) / Z_LIMIT
        score[finished[here]] = np.maximum(worst, sizes)
        notes += note
    flags = {}
    for i, its_flags in sorted(found.items()):
        best: dict[str, Flag] = {}
        for flag in sorted(its_flags, key=lambda flag: (-flag.size, flag.metric)):
            best.setdefault(flag.metric, flag)
        flags[rows[i].scan] = tuple(best.values())
        score[i] = max(score[i], flags[rows[i].scan][0].size)
    return Outliers(flags, np.minimum(score, MAX_SIZE), tuple(notes))


def site_norms(
    values: pd.DataFrame, site: pd.Series[Any], reference: Mapping[str, Any] | None
) -> Norms:
    """Estimate medians and robust deviations of each site, shrinking deviations of small sites.

    Medians and median absolute deviations replace means and standard deviations, so that outliers
    do not affect the scale by which they are detected.

    Parameters
    ----------
    values : pandas.DataFrame
        Metrics, shape (scans, metrics), NaN where missing.
    site : pandas.Series
        Site of each scan.
    reference : mapping or None
        Bundle's :func:`bids_harmony.qc.reference.reference_statistics`, whose deviations within
        sites serve as a prior for small datasets.

    Returns
    -------
    Norms
        Norms of each scan's site.
    """
    median = values.groupby(site).transform("median")
    off, n = values - median, values.groupby(site).transform("count").to_numpy()
    # Exclude very small sites: their scans are too close to their own median.
    pool = off[site.groupby(site).transform("size") >= MIN_SITE // 2]
    trained = [
        [s[name]["mad"] for s in (reference or {}).get("sites", {}).values()
         if name in s and s[name]["n"] >= MIN_REFERENCE] for name in values
    ]  # fmt: skip
    known = np.array([np.median(mads) if mads else 0.0 for mads in trained])
    # Account for the uncertainty of the median, whose variance is pi / (2 n).
    factor = MAD_TO_SD * np.sqrt(1 + np.pi / (2 * np.maximum(n, 1)))
    sides = []
    for sign in (-1, 1):
        own = (sign * off).where(sign * off >= 0).groupby(site).transform("median")
        own = own.clip(upper=MAX_SKEW * off.abs().groupby(site).transform("median"))
        pooled = (sign * pool).where(sign * pool >= 0).median()
        pooled = pooled.clip(upper=MAX_SKEW * pool.abs().median())
        sides.append(factor * _shrink(own, n, _shrink(pooled, pool.count().to_numpy(), known)))
    below, above = sides
    scale = np.where(off < 0, below, above)
    z = np.where(scale > 0, off / np.where(scale > 0, scale, 1), 0)
    z = np.where(values.isna(), np.nan, z)
    directions = [dictionary().get(str(name), {}).get("Direction") for name in values]
    low = [0 if direction == "lower is better" else -np.inf for direction in directions]
    high = [0 if direction == "higher is better" else np.inf for direction in directions]
    return Norms(values.to_numpy(), median.to_numpy(), below, above, z, np.clip(z, low, high))


def _shrink(own: Any, n: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Shrink deviations estimated from n scans towards a prior; 0 stands for an unknown one."""
    own, prior = np.nan_to_num(own), np.nan_to_num(prior)
    mixed = np.sqrt((n * own**2 + PRIOR_SCANS * prior**2) / (n + PRIOR_SCANS))
    return np.where(prior > 0, mixed, own)


class _Site(NamedTuple):
    """A site's name, the metrics of its completed scans that are checked, and their norms."""

    name: str
    metrics: list[str]
    norms: Norms


def _status_flags(rows: Sequence[ScanRow]) -> Iterator[tuple[int, Flag]]:
    """Flag scans that failed, are duplicates, lack predictions or failed the anatomy guard."""
    same: dict[str, list[str]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.scan):
        same[str(row.values.get("image") or row.scan)].append(row.scan)
    for i, row in enumerate(rows):
        scans = same[str(row.values.get("image") or row.scan)]
        if len(scans) > 1:
            others = [scan for scan in scans[: NAMED + 1] if scan != row.scan]
            yield i, Flag("image", f"Same image as {named(others, n=len(scans) - 1)}", 2.0)
        if row.values["qc_status"] == "error":
            yield i, Flag("status", f"Processing failed: {row.values['error']}", MAX_SIZE)
            continue
        if row.problem:
            yield i, Flag("predictions", row.problem, 1.0)
        if row.values.get("harmonization_status") == "fail":
            reasons = "; ".join(row.guard_reasons)
            yield i, Flag("guard", f"Harmonization may have changed the anatomy: {reasons}", 2.0)


def _deviations(site: _Site) -> Iterator[tuple[int, Flag]]:
    """Flag metrics far from the site's median."""
    values, median, below, above, _, bad = site.norms
    for i, j in np.argwhere(np.abs(bad) > Z_LIMIT):
        z, name, middle = float(bad[i, j]), site.metrics[j], median[i, j]
        side, limit = ("below", -below[i, j]) if z < 0 else ("above", above[i, j])
        text = (
            f"{_label(name)} {_with_unit(name, values[i, j])} is far {side} the median of "
            f"{site.name}, {_with_unit(name, middle)}: the limit is "
            f"{_with_unit(name, middle + Z_LIMIT * limit)} (robust z {z:+.1f})"
        )
        yield int(i), Flag(name, text, min(abs(z) / Z_LIMIT, MAX_SIZE))


def _missing(site: _Site) -> Iterator[tuple[int, Flag]]:
    """Flag metrics that could not be computed, but are available for the site's other scans."""
    absent = np.isnan(site.norms.values)
    for i, j in np.argwhere(absent & (absent.mean(axis=0) <= 1 - MIN_KNOWN)):
        name = site.metrics[j]
        text = f"{_label(name)} could not be computed, unlike for other scans of {site.name}"
        yield int(i), Flag(name, text, 1.5)


def _distances(site: _Site, others: np.ndarray) -> tuple[np.ndarray, list[tuple[int, Flag]]]:
    """Compute each scan's multivariate distance, where 1 is at the limit, and flag large ones.

    Distances are relative to the scans of its site or, at a small site, to the z scores of all
    scans relative to their own sites.
    """
    from sklearn.covariance import OAS

    use = [
        j
        for j, name in enumerate(site.metrics)
        if name not in REDUNDANT
        and np.isfinite(others[:, j]).mean() >= MIN_KNOWN
        and np.nanmax(others[:, j]) > np.nanmin(others[:, j])
    ]
    z, others = np.nan_to_num(site.norms.z[:, use]), np.nan_to_num(others[:, use])
    if len(others) < MIN_SITE or len(use) < 2:
        return np.zeros(len(z)), []
    fitted = OAS().fit(np.clip(others, -WINSOR, WINSOR))
    # Cube roots of squared distances are nearly normal (Wilson and Hilferty). The limit is robust:
    # it is based on the median.
    roots, own = (np.cbrt(fitted.mahalanobis(x)) for x in (others, z))
    middle = float(np.median(roots))
    spread = MAD_TO_SD * float(np.median(np.abs(roots - middle)))
    limit = middle + Z_LIMIT * max(spread, middle * np.sqrt(2 / (9 * len(use))))
    # Medians of few scans are imprecise, which shifts all scans of a small site away from others.
    limit *= max(1.0, float(np.median(own)) / max(middle, 1e-12))
    sizes = (own / limit) ** 1.5
    off = z - fitted.location_
    flags = []
    for i in np.flatnonzero(sizes > 1):
        parts = off[i] * (off[i] @ fitted.precision_)
        most = [_label(site.metrics[use[j]]) for j in np.argsort(-parts, kind="stable")[:3]]
        text = (
            f"Unusual combination of metrics among the other scans of {site.name} (Mahalanobis "
            f"distance {sizes[i]:.1f} times the limit), mainly {', '.join(most)}"
        )
        flags.append((int(i), Flag("multivariate", text, min(float(sizes[i]), MAX_SIZE))))
    return sizes, flags


def _outside_reference(
    site: _Site, reference: Mapping[str, Any] | None, elsewhere: np.ndarray
) -> tuple[list[tuple[int, Flag]], list[str]]:
    """Flag metrics outside the bundle's reference range and return notes on whole sites.

    Metrics that depend on the scanner are only checked at small sites. There, values within the
    1st to 99th percentile of the dataset's other sites (``elsewhere``, shape (scans, metrics)) are
    accepted too, as these share the population and possibly the scanner.
    """
    flags, notes = [], []
    values, bad = site.norms.values, np.abs(site.norms.bad)
    n, small = len(values), len(values) < MIN_SITE
    outside: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for i, row in enumerate(values):
        found = out_of_range(dict(zip(site.metrics, row, strict=True)), reference)
        for name, reason in found.items():
            outside[name].append((i, reason))
    for name, scans in outside.items():
        j = site.metrics.index(name)
        known = elsewhere[np.isfinite(elsewhere[:, j]), j]
        if small and known.size >= MIN_SITE:
            low, high = np.percentile(known, (1, 99))
            scans = [(i, reason) for i, reason in scans if not low <= values[i, j] <= high]
        if n > 1 and len(scans) > MOST_OF_SITE * n:
            notes.append(
                f"{len(scans)} of {n} scans of {site.name} are outside the bundle's reference "
                f"range of {_label(name)}."
            )
        elif small or dictionary()[name]["Group"] in FIXED_GROUPS:
            also = ALSO_Z if small else ALSO_Z_LARGE
            beyond = [(i, reason) for i, reason in scans if n < FEW or bad[i, j] > also]
            flags += [(i, Flag(name, reason, 1.0)) for i, reason in beyond]
    return flags, notes


def _label(name: str) -> str:
    return str(dictionary()[name]["LongName"]) if name in dictionary() else "Brain-age gap"


def _with_unit(name: str, value: float) -> str:
    return readable(float(value)) + (spoken_unit(name) if name in dictionary() else " years")
