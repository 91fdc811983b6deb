"""Find the scans of a dataset that a person should look at, and say why in plain words.

Within a site each metric is compared with the site's median in units of its usual deviation
(robust z beyond 3.5, science.md §7), and all metrics together by their distance. Two things keep
good scans from being flagged, for with some 20 metrics each scan has 20 chances: a metric with a
good and a bad side counts on the bad side only, and the usual deviation is taken on that side, so
that a skewed metric does not count as odd. And two keep bad scans from hiding each other: the
deviation of a small or spoilt site leans on that of the other sites, and what does not depend on
the scanner (registration, brain size) is held against the bundle's reference at every site.

A flag is a reason to look. Nothing is dropped.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_harmony.qc.collect import Flag, ScanRow
from bids_harmony.qc.guard import MEASURES
from bids_harmony.qc.verdict import (
    MAD_TO_SD,
    MIN_REFERENCE,
    NOT_JUDGED,
    dictionary,
    readable,
    reference_range,
    spoken_unit,
)

if TYPE_CHECKING:
    import pandas as pd

Z_LIMIT = 3.5
#: Sites with fewer scans are held against the bundle's reference in everything.
MIN_SITE = 10
#: A site's deviation counts as much as that of all sites together when it has this many scans.
PRIOR_SCANS = 20
#: Scans per metric that the minimum covariance determinant asks for.
PER_METRIC = 5
#: Beyond this a value counts as this far when covariances are estimated without enough scans.
WINSOR = 3.0
#: A metric that this share of a site's scans have is missed where it is absent.
USUAL = 0.75
#: Beyond the reference are a site's own ways when more than this share of its scans shows them.
SITES_WAY = 0.5
#: No flag counts as farther beyond its limit than this; a scan that failed does as much.
MOST = 10.0
#: What no scanner changes.
FIXED_GROUPS = ("Brain", "Registration")
#: Follow from others: with them the covariance has no inverse.
REDUNDANT = frozenset({"affine_determinant", "wm_fraction", "cjv", "brain_age_gap"})
GAP = "brain_age_gap"
#: Of what harmonization did to a scan the guard is the judge; these tell how odd a scan is.
STYLE = frozenset({"training_distance"})
PLAUSIBLE_AGE = (0.0, 120.0)


@dataclass(frozen=True)
class Outliers:
    """What was found.

    Attributes
    ----------
    flags : dict of str to tuple of Flag
        By scan, worst first, at most one per metric.
    score : numpy.ndarray
        For every scan, how far its most remarkable measure lies, where 1 is at the limit: at
        least 1 for a flagged scan, at most :data:`MOST`.
    notes : tuple of str
        What concerns a whole site and is no reason to look at single scans.
    """

    flags: dict[str, tuple[Flag, ...]]
    score: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Site:
    """A site's finished scans: their values by metric, and what is usual there."""

    name: str
    values: np.ndarray
    metrics: tuple[str, ...]
    middle: np.ndarray
    #: Usual deviation below and above the middle, as a standard deviation; 0 where unknown.
    below: np.ndarray
    above: np.ndarray

    def z(self) -> np.ndarray:
        """Robust z of every value: NaN where it is missing, 0 where no deviation is known."""
        off = self.values - self.middle
        scale = np.where(off < 0, self.below, self.above)
        z = np.divide(off, scale, out=np.zeros_like(off), where=scale > 0)
        return np.asarray(np.where(np.isnan(self.values), np.nan, z))


def find_outliers(
    table: pd.DataFrame, rows: Sequence[ScanRow], reference: Mapping[str, Any] | None = None
) -> Outliers:
    """Find the scans to look at.

    Parameters
    ----------
    table : pandas.DataFrame
        Of :func:`bids_harmony.qc.collect.scan_table`.
    rows : sequence of ScanRow
        The scans it was made of, in the same order.
    reference : mapping, optional
        :func:`bids_harmony.qc.verdict.reference_statistics` of the bundle.

    Returns
    -------
    Outliers
    """
    found: dict[int, list[Flag]] = defaultdict(list)
    for i, flag in _states(rows):
        found[i].append(flag)
    metrics = tuple(
        name
        for name in (*dictionary(), GAP)
        if name in table and name not in NOT_JUDGED and (name not in MEASURES or name in STYLE)
    )
    done = (table["qc_status"] != "error").to_numpy()
    values, sites = table[list(metrics)].to_numpy(dtype=float), table["site"].to_numpy()
    score, notes = np.zeros(len(table)), []
    places = {site: np.flatnonzero(done & (sites == site)) for site in sorted(set(sites[done]))}
    found_sites = list(_usual(values, places, metrics, reference))
    every = np.vstack([site.z() for site in found_sites]) if found_sites else values[:0]
    for site in found_sites:
        where = places[site.name]
        sizes = np.abs(np.nan_to_num(_bad_side(site.z(), metrics))).max(axis=1, initial=0.0)
        sizes /= Z_LIMIT
        distances, far = _distances(site, every)
        score[where] = np.maximum(sizes, distances)
        beyond, note = _beyond_reference(site, reference)
        notes += note
        for i, flag in (*_deviations(site), *far, *_missing(site), *beyond):
            found[where[i]].append(flag)
    keys = table["scan"].to_list()
    flags = {}
    for i in sorted(found):
        best: dict[str, Flag] = {}
        for flag in sorted(found[i], key=lambda flag: (-flag.size, flag.metric)):
            best.setdefault(flag.metric, flag)
        flags[keys[i]] = tuple(best.values())
        score[i] = max(score[i], flags[keys[i]][0].size)
    return Outliers(flags, np.minimum(score, MOST), tuple(notes))


def _states(rows: Sequence[ScanRow]) -> Iterator[tuple[int, Flag]]:
    """Flag scans that failed, whose harmonization did, or whose predictions make no sense."""
    for i, row in enumerate(rows):
        if row.values["qc_status"] == "error":
            yield i, Flag("status", f"It failed: {row.values['error']}", MOST)
            continue
        if row.values["qc_status"] == "fail":
            yield i, Flag("status", "; ".join(row.reasons) or "Its quality failed", 2.0)
        if row.problem:
            yield i, Flag("predictions", row.problem, 1.0)
        if row.values.get("harmonization_status") == "fail":
            text = "Harmonization seems to have changed the anatomy: "
            yield i, Flag("guard", text + "; ".join(row.guard_reasons), 2.0)
        for kind in ("raw", "harmonized"):
            age = row.values.get(f"brain_age_{kind}", np.nan)
            low, high = PLAUSIBLE_AGE
            if age < low or age > high:
                text = f"The {kind} brain age, {readable(age)} years, is no person's age"
                yield i, Flag(f"brain_age_{kind}", text, 2.0)


def _usual(
    values: np.ndarray,
    places: Mapping[str, np.ndarray],
    metrics: tuple[str, ...],
    reference: Mapping[str, Any] | None,
) -> Iterator[_Site]:
    """For each site, what is usual there; the fewer its scans, the more as at the others."""
    middles = {name: _median(values[where]) for name, where in places.items()}
    off = np.full_like(values, np.nan)
    for name, where in places.items():
        # The middle of a few scans lies too close to each of them.
        if len(where) >= MIN_SITE // 2:
            off[where] = values[where] - middles[name]
    known = _reference_spread(metrics, reference)
    pooled = [_lean(_spread(side), np.isfinite(off).sum(axis=0), known) for side in _sides(off)]
    for name, where in places.items():
        here = values[where]
        n = np.isfinite(here).sum(axis=0)
        own = [_spread(side) for side in _sides(here - middles[name])]
        below, above = (_lean(a, n, b) for a, b in zip(own, pooled, strict=True))
        yield _Site(name, here, metrics, middles[name], below, above)


def _sides(off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(off <= 0, -off, np.nan), np.where(off >= 0, off, np.nan)


def _spread(off: np.ndarray) -> np.ndarray:
    """Estimate a standard deviation by the median deviation; by the mean where that is 0."""
    middle = MAD_TO_SD * _median(off)
    n = np.isfinite(off).sum(axis=0)
    mean = np.nansum(off, axis=0) * np.sqrt(np.pi / 2) / np.maximum(n, 1)
    return np.asarray(np.where(middle > 0, middle, mean))


def _lean(own: np.ndarray, n: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Mix a spread found on n scans with one that was known; 0 is an unknown one."""
    own, prior = np.nan_to_num(own), np.nan_to_num(prior)
    mixed = np.sqrt((n * own**2 + PRIOR_SCANS * prior**2) / (n + PRIOR_SCANS))
    return np.asarray(np.where(prior > 0, mixed, own))


def _reference_spread(metrics: Sequence[str], reference: Mapping[str, Any] | None) -> np.ndarray:
    """Spread within the bundle's training sites, those with enough scans to tell."""
    sites = (reference or {}).get("sites", {}).values()
    spreads = [
        [s[m]["mad"] for s in sites if m in s and s[m]["n"] >= MIN_REFERENCE] for m in metrics
    ]
    return np.array([MAD_TO_SD * float(np.median(mads)) if mads else 0.0 for mads in spreads])


def _median(values: np.ndarray) -> np.ndarray:
    """Median of each column's finite values; NaN where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmedian(values, axis=0))


def _bad_side(z: np.ndarray, metrics: Sequence[str]) -> np.ndarray:
    """Leave of each metric only the side that speaks against a scan."""
    z = z.copy()
    for j, name in enumerate(metrics):
        direction = dictionary()[name]["Direction"] if name in dictionary() else ""
        if direction == "higher is better":
            z[:, j] = np.minimum(z[:, j], 0)
        elif direction == "lower is better":
            z[:, j] = np.maximum(z[:, j], 0)
    return z


def _deviations(site: _Site) -> Iterator[tuple[int, Flag]]:
    """Metrics far from the site's median."""
    z = _bad_side(site.z(), site.metrics)
    for i, j in np.argwhere(np.abs(z) > Z_LIMIT):
        name, side = site.metrics[j], "below" if z[i, j] < 0 else "above"
        low = site.middle[j] - Z_LIMIT * site.below[j]
        high = site.middle[j] + Z_LIMIT * site.above[j]
        yield (
            int(i),
            Flag(
                name,
                f"{_called(name)} {_said(name, site.values[i, j])} is far {side} what is usual at "
                f"{site.name}: {_said(name, site.middle[j])}, "
                f"{'at least' if side == 'below' else 'at most'} "
                f"{_said(name, low if side == 'below' else high)} (robust z {z[i, j]:+.1f})",
                min(abs(float(z[i, j])) / Z_LIMIT, MOST),
            ),
        )


def _distances(site: _Site, every: np.ndarray) -> tuple[np.ndarray, list[tuple[int, Flag]]]:
    """Measure how far each scan is from others in all metrics together, 1 at the limit.

    The others are those of its site; at a small site ``every`` scan's z, as far as it is from
    its own site.
    """
    z = site.z()
    others = z if len(z) >= MIN_SITE else every
    use = [
        j
        for j, name in enumerate(site.metrics)
        if name not in REDUNDANT
        and np.isfinite(others[:, j]).mean() >= USUAL
        and np.nanmax(others[:, j]) > np.nanmin(others[:, j])
    ]
    n, p = len(others), len(use)
    if n < MIN_SITE or p < 2:
        return np.zeros(len(z)), []
    z, others = np.nan_to_num(z[:, use]), np.nan_to_num(others[:, use])
    centre, precision = _covariance(others)

    def parts_and_roots(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = (z - centre) * ((z - centre) @ precision)
        return parts, np.cbrt(np.maximum(parts.sum(axis=1), 0))

    # Cube roots of squared distances are nearly normal (Wilson and Hilferty). Both covariances fit
    # the scans they were found on, some better than others, so that distances spread wider than
    # normal data's would: the limit is the one that the bulk of the scans sets.
    roots = parts_and_roots(others)[1]
    middle = float(np.median(roots))
    spread = MAD_TO_SD * float(np.median(np.abs(roots - middle)))
    limit = middle + Z_LIMIT * max(spread, middle * np.sqrt(2 / (9 * p)))
    parts, roots = parts_and_roots(z)
    sizes = (roots / limit) ** 1.5
    flags = []
    for i in np.flatnonzero(sizes > 1):
        most = [site.metrics[use[j]] for j in np.argsort(-parts[i], kind="stable")[:3]]
        flags.append(
            (
                int(i),
                Flag(
                    "multivariate",
                    f"Its metrics together are unlike those of the other scans of {site.name}, "
                    f"{sizes[i]:.1f} times as far as is usual at most; above all "
                    f"{', '.join(_called(name) for name in most)}",
                    min(float(sizes[i]), MOST),
                ),
            )
        )
    return sizes, flags


def _covariance(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and inverse covariance, by the robust method that the number of scans allows."""
    from sklearn.covariance import OAS, MinCovDet

    n, p = z.shape
    if n >= PER_METRIC * p:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            robust = MinCovDet(random_state=0).fit(z)
        if np.linalg.matrix_rank(robust.covariance_) == p:
            return robust.location_, robust.get_precision()
    shrunk = OAS().fit(np.clip(z, -WINSOR, WINSOR))
    return shrunk.location_, shrunk.get_precision()


def _missing(site: _Site) -> Iterator[tuple[int, Flag]]:
    """Metrics that could not be computed though the site's other scans have them."""
    absent = np.isnan(site.values)
    for j in np.flatnonzero((1 - absent.mean(axis=0) >= USUAL) & absent.any(axis=0)):
        name = site.metrics[j]
        text = f"{_called(name)} could not be computed, as it could for others of {site.name}"
        for i in np.flatnonzero(absent[:, j]):
            yield int(i), Flag(name, text, 1.5)


def _beyond_reference(
    site: _Site, reference: Mapping[str, Any] | None
) -> tuple[list[tuple[int, Flag]], list[str]]:
    """Metrics beyond the bundle's reference, where the site is small or no scanner matters."""
    summaries = (reference or {}).get("all", {})
    flags, notes = [], []
    for j, name in enumerate(site.metrics):
        summary = summaries.get(name)
        if summary is None or summary["n"] < MIN_REFERENCE:
            continue
        n, values = len(site.values), site.values[:, j]
        small = n < MIN_SITE
        if not small and dictionary()[name]["Group"] not in FIXED_GROUPS:
            continue
        spread = MAD_TO_SD * summary["mad"]
        low, high = reference_range(summary)
        if not small:
            low, high = low - spread, high + spread
        past = _bad_side(
            np.nan_to_num(np.where(values < low, values - low, np.maximum(values - high, 0)))[
                :, None
            ],
            [name],
        )[:, 0]
        odd = np.flatnonzero(past)
        if len(odd) > SITES_WAY * n and n > 1:
            notes.append(
                f"{len(odd)} of {n} scans of {site.name} lie beyond the bundle's reference in "
                f"{_called(name)} ({_said(name, low)} to {_said(name, high)})."
            )
            continue
        for i in odd:
            side = "below" if past[i] < 0 else "above"
            text = (
                f"{_called(name)} {_said(name, values[i])} is {side} the bundle's reference, "
                f"{_said(name, low)} to {_said(name, high)}"
            )
            size = 1 + abs(float(past[i])) / (Z_LIMIT * spread) if spread > 0 else 1.0
            flags.append((int(i), Flag(name, text, min(size, MOST))))
    return flags, notes


def _called(name: str) -> str:
    return str(dictionary()[name]["LongName"]) if name in dictionary() else "Brain-age gap"


def _said(name: str, value: float) -> str:
    return readable(float(value)) + (spoken_unit(name) if name in dictionary() else " years")
