"""What is usual at each site of a dataset, and how far a scan is from it.

Medians and their absolute deviations take the place of means and standard deviations, so that
the scans that are looked for do not set the measure they are found by.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_harmony.qc.verdict import MAD_TO_SD, MIN_REFERENCE, dictionary

Z_LIMIT = 3.5
#: Sites with fewer scans lean on others in what is usual.
MIN_SITE = 10
#: A site's deviation counts as much as that of all sites together when it has this many scans.
PRIOR_SCANS = 20
#: Deviations on one side are at most this many times those on both sides; an exponential
#: distribution's are 1.4 times. Where a third of a site's scans are bad in the same way, they are
#: most of one side and would set the measure.
MOST_SKEW = 2.0
#: Scans per metric that the minimum covariance determinant asks for.
PER_METRIC = 5
#: Beyond this a value counts as this far when covariances are estimated without enough scans.
WINSOR = 3.0


@dataclass(frozen=True)
class Site:
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


def usual_at_sites(
    values: np.ndarray,
    places: Mapping[str, np.ndarray],
    metrics: tuple[str, ...],
    reference: Mapping[str, Any] | None,
) -> Iterator[Site]:
    """Find what is usual at each site; the fewer scans it has, the more as at the others.

    Parameters
    ----------
    values : numpy.ndarray
        (scans, metrics), NaN where missing.
    places : mapping
        By site, the rows of its scans.
    metrics : tuple of str
        Names of the columns.
    reference : mapping or None
        :func:`bids_harmony.qc.verdict.reference_statistics` of the bundle, on whose deviations
        within sites small datasets lean.

    Yields
    ------
    Site
        In the order of ``places``.
    """
    middles = {name: _median(values[where]) for name, where in places.items()}
    off = np.full_like(values, np.nan)
    for name, where in places.items():
        # The middle of a few scans lies too close to each of them.
        if len(where) >= MIN_SITE // 2:
            off[where] = values[where] - middles[name]
    known = _reference_spread(metrics, reference)
    pooled = [
        _lean(side, np.isfinite(off).sum(axis=0), known) for side in _spreads_below_and_above(off)
    ]
    for name, where in places.items():
        here = values[where]
        n = np.isfinite(here).sum(axis=0)
        own = _spreads_below_and_above(here - middles[name])
        # The middle of a few scans is itself uncertain: a median's variance is pi / (2 n).
        unsure = np.sqrt(1 + np.pi / (2 * np.maximum(n, 1)))
        below, above = (unsure * _lean(a, n, b) for a, b in zip(own, pooled, strict=True))
        yield Site(name, here, metrics, middles[name], below, above)


def _spreads_below_and_above(off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    most = MOST_SKEW * _spread(np.abs(off))
    below, above = np.where(off <= 0, -off, np.nan), np.where(off >= 0, off, np.nan)
    return np.minimum(_spread(below), most), np.minimum(_spread(above), most)


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


def bad_side(z: np.ndarray, metrics: Sequence[str]) -> np.ndarray:
    """Leave of each metric only the side that speaks against a scan."""
    z = z.copy()
    for j, name in enumerate(metrics):
        direction = dictionary()[name]["Direction"] if name in dictionary() else ""
        if direction == "higher is better":
            z[:, j] = np.minimum(z[:, j], 0)
        elif direction == "lower is better":
            z[:, j] = np.maximum(z[:, j], 0)
    return z


def relative_distances(z: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure how far scans are from others in all metrics together.

    Parameters
    ----------
    z, others : numpy.ndarray
        (scans, metrics) robust z of the scans and of those they are compared with, finite.

    Returns
    -------
    sizes : numpy.ndarray
        Distance of each scan, where 1 is the limit.
    parts : numpy.ndarray
        (scans, metrics) what each metric adds to the squared distance.
    """
    centre, precision = _covariance(others)

    def parts_and_roots(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = (z - centre) * ((z - centre) @ precision)
        return parts, np.cbrt(np.maximum(parts.sum(axis=1), 0))

    p = others.shape[1]
    # Cube roots of squared distances are nearly normal (Wilson and Hilferty). Both covariances fit
    # the scans they were found on, some better than others, so that distances spread wider than
    # normal data's would: the limit is the one that the bulk of the scans sets.
    roots = parts_and_roots(others)[1]
    middle = float(np.median(roots))
    spread = MAD_TO_SD * float(np.median(np.abs(roots - middle)))
    limit = middle + Z_LIMIT * max(spread, middle * np.sqrt(2 / (9 * p)))
    parts, roots = parts_and_roots(z)
    # A few scans' medians, each taken by itself, take all of them off the others' course.
    limit *= max(1.0, float(np.median(roots)) / max(middle, 1e-12))
    return (roots / limit) ** 1.5, parts


def _covariance(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and inverse covariance, by the robust method that the number of scans allows."""
    from sklearn import config_context
    from sklearn.covariance import OAS, MinCovDet

    n, p = z.shape
    if n >= PER_METRIC * p:
        # Its many small steps spend more time on checking their arguments than on anything else.
        quick = config_context(assume_finite=True, skip_parameter_validation=True)
        with quick, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            robust = MinCovDet(random_state=0).fit(z)
        if np.linalg.matrix_rank(robust.covariance_) == p:
            return robust.location_, robust.get_precision()
    shrunk = OAS().fit(np.clip(z, -WINSOR, WINSOR))
    return shrunk.location_, shrunk.get_precision()
