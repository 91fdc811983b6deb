"""Statistics with the person as the unit of analysis: scans of one person are not independent.

The site offset and scatter measure site effects on predicted ages. Predicted brain ages regress to
the mean age at every site, including the reference. The mean absolute error mixes this with
scanner effects: a young site shows an error of years without any site effect, and two opposite
effects cancel. Predictions are therefore compared with the reference site's regression line of
predicted on true values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import norm, permutation_test

#: Indices of scans, or a slice.
Scans = np.ndarray | slice

#: Minimum number of persons at the reference for fitting a line, and at a site for an interval.
LEAST_ON_LINE, LEAST_AT_SITE = 8, 3


def drawn_persons(
    persons: np.ndarray, n: int, rng: np.random.Generator, strata: np.ndarray | None = None
) -> list[np.ndarray]:
    """Draw bootstrap samples of persons with all their scans (cluster bootstrap).

    Parameters
    ----------
    persons : numpy.ndarray
        (scans,) person of each scan.
    n : int
        Number of draws.
    rng : numpy.random.Generator
        Random number generator.
    strata : numpy.ndarray, optional
        (scans,) stratum of each scan's person. Each draw keeps the number of persons per stratum.

    Returns
    -------
    list of numpy.ndarray
        Scan indices of each draw. Persons are drawn with replacement, as many as there are.
    """
    labels, first, inverse = np.unique(persons, return_index=True, return_inverse=True)
    counts = np.bincount(inverse)
    order, starts = np.argsort(inverse, kind="stable"), np.cumsum(counts) - counts
    stratum = np.zeros(len(labels)) if strata is None else strata[first]
    groups = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    draws = []
    for _ in range(n):
        drawn = np.concatenate([g[rng.integers(len(g), size=len(g))] for g in groups])
        ends = np.cumsum(counts[drawn])
        draws.append(
            order[
                np.repeat(starts[drawn] - ends + counts[drawn], counts[drawn])
                + np.arange(ends[-1])
            ]
        )
    return draws


def with_intervals(
    measure: Callable[[Scans], dict[str, float]],
    persons: np.ndarray,
    n: int,
    seed: int,
    *,
    enough: bool = True,
    strata: np.ndarray | None = None,
) -> dict[str, float]:
    """Compute metrics with 95 % percentile bootstrap intervals over persons.

    Parameters
    ----------
    measure : callable
        Function of scan indices that returns metrics by name.
    persons, n, strata
        See :func:`drawn_persons`.
    seed : int
        Random seed. Equal scans and seeds give equal draws.
    enough : bool
        Whether there are enough persons for intervals; if False, intervals are NaN.

    Returns
    -------
    dict
        Each metric, and the ends of its interval with the suffixes ``_low`` and ``_high``. The
        ends are NaN if the metric is NaN in the data or in all draws.
    """
    found = measure(slice(None))
    draws = drawn_persons(persons, n if enough else 0, np.random.default_rng(seed), strata)
    samples = pd.DataFrame([measure(draw) for draw in draws], columns=list(found), dtype=float)
    for name, value in list(found.items()):
        known = samples[name][np.isfinite(samples[name]) & np.isfinite(value)]
        found[f"{name}_low"], found[f"{name}_high"] = known.quantile([0.025, 0.975])
    return found


def exchange_p(difference: np.ndarray, persons: np.ndarray, n: int, seed: int) -> float:
    """Compute the two-sided p-value of a permutation test between two methods.

    The methods are exchanged within persons; the test statistic is the sum of differences.

    Parameters
    ----------
    difference : numpy.ndarray
        (scans,) difference between the methods' errors, already weighted.
    persons : numpy.ndarray
        (scans,) person of each scan.
    n, seed : int
        Number of permutations (all possible ones if there are fewer), and the random seed.
    """
    of_person = pd.Series(difference).groupby(persons).sum().to_numpy()
    rng = np.random.default_rng(seed)
    return float(permutation_test(
        (of_person,), np.sum, permutation_type="samples", n_resamples=n, random_state=rng
    ).pvalue)  # fmt: skip


def placements(score: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute DeLong placements: the share of the other class that is ranked correctly.

    Ties count half. The mean over cases equals the area under the curve, as does that over
    controls.

    Parameters
    ----------
    score, truth : numpy.ndarray
        (scans,) scores, and 1 for cases or 0 for controls. Both classes must occur.

    Returns
    -------
    numpy.ndarray
        (scans,) values between 0 and 1.
    """
    above = np.subtract.outer(score[truth == 1], score[truth == 0])
    right = (above > 0) + 0.5 * (above == 0)
    found = np.empty(len(truth))
    found[truth == 1], found[truth == 0] = right.mean(axis=1), right.mean(axis=0)
    return found


def delong(
    a: np.ndarray, b: np.ndarray, truth: np.ndarray, persons: np.ndarray
) -> tuple[float, float, float]:
    """Compare two areas under the curve on the same scans with DeLong's test.

    The variance is that of Obuchowski (1997) for clustered data, with persons as clusters. With
    one scan per person, it equals that of DeLong et al. (1988). Only the ranks of scores matter,
    so networks with different output scales can be compared.

    Parameters
    ----------
    a, b : numpy.ndarray
        (repetitions, scans) scores of two predictors. Areas are averaged over repetitions. Scans
        that a repetition does not contain are NaN in both.
    truth, persons : numpy.ndarray
        (scans,) 1 for cases and 0 for controls, and the person of each scan.

    Returns
    -------
    difference, error, p : float
        Area of ``a`` minus that of ``b``, its standard error, and the two-sided p-value. All are
        NaN if a class has fewer than two persons. The p-value is also NaN if the standard error is
        0 but the difference is not.
    """
    differences = np.full(a.shape, np.nan)
    for row, one, other in zip(differences, a, b, strict=True):
        known = np.isfinite(one) & np.isfinite(other)
        if len(np.unique(truth[known])) == 2:
            row[known] = placements(one[known], truth[known])
            row[known] -= placements(other[known], truth[known])
    seen = np.isfinite(differences).any(axis=0)
    difference, truth = np.nanmean(differences[:, seen], axis=0), truth[seen]
    labels, inverse = np.unique(persons[seen], return_inverse=True)
    parts, variance = [], 0.0
    for of_class in (truth == 0, truth == 1):
        n = len(np.unique(inverse[of_class]))
        if n < 2:
            return np.nan, np.nan, np.nan
        # Contribution of each person to the difference, among controls and among cases.
        centred = np.where(of_class, difference - difference[of_class].mean(), 0)
        parts.append(np.bincount(inverse, centred) / of_class.sum())
        variance += float((parts[-1] ** 2).sum() * n / (n - 1))
    variance += float(2 * parts[0] @ parts[1] * len(labels) / (len(labels) - 1))
    area, error = float(difference[truth == 1].mean()), float(np.sqrt(max(variance, 0.0)))
    if error < 1e-12:
        return area, 0.0, 1.0 if abs(area) < 1e-12 else np.nan
    return area, error, float(2 * norm.sf(abs(area) / error))


def coverage(inside: np.ndarray, persons: np.ndarray) -> tuple[float, float, float]:
    """Compute the coverage of prediction intervals; each person counts once.

    Parameters
    ----------
    inside : numpy.ndarray
        (scans,) boolean, whether the interval contains the true value.
    persons : numpy.ndarray
        (scans,) person of each scan.

    Returns
    -------
    share, low, high : float
        Mean over persons of the share of covered scans, and its 95 % Wilson interval. NaN if there
        are no scans.
    """
    of_person = pd.Series(inside, dtype=float).groupby(persons).mean()
    if of_person.empty:
        return np.nan, np.nan, np.nan
    n, p, z = len(of_person), float(of_person.mean()), float(norm.ppf(0.975))
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return p, max(float(low), 0.0), min(float(high), 1.0)


def fit_line(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Fit predicted on true values by ordinary least squares.

    Parameters
    ----------
    predicted, truth : numpy.ndarray
        (scans,) values of the reference site, predicted by networks not trained on the scan's
        person.

    Returns
    -------
    slope, intercept : float
        NaN if the true values are all equal.
    """
    spread = np.var(truth)
    if not len(truth) or spread <= 1e-9 * max(1.0, float(np.mean(truth) ** 2)):
        return np.nan, np.nan
    slope = float(np.mean((truth - truth.mean()) * (predicted - predicted.mean())) / spread)
    return slope, float(predicted.mean() - slope * truth.mean())


def offset_and_scatter(
    predicted: np.ndarray, truth: np.ndarray, line: tuple[float, float]
) -> tuple[float, float]:
    """Compute mean and standard deviation of predictions about the reference line.

    Parameters
    ----------
    predicted, truth : numpy.ndarray
        (scans,) values of one site.
    line : tuple of float
        Slope and intercept from :func:`fit_line`.

    Returns
    -------
    offset, scatter : float
        Values in the units of the predictions. The scatter is NaN for a single scan.
    """
    apart = predicted - (line[0] * truth + line[1])
    return float(apart.mean()), float(apart.std(ddof=1)) if len(apart) > 1 else np.nan


def site_offset(
    site: pd.DataFrame, reference: pd.DataFrame, n: int, seed: int
) -> dict[str, float]:
    """Compute the offset and scatter of a site, with bootstrap intervals over persons.

    Parameters
    ----------
    site, reference : pandas.DataFrame
        Predictions after one preparation of the scans, by predictors not trained on these persons.
        Columns: ``seed``, ``predicted``, ``truth``, ``person``. The reference may be the site
        itself.
    n : int
        Number of bootstrap draws. The reference is resampled too, because its line is uncertain.
        Persons seen at both sites are drawn together.
    seed : int
        Random seed.

    Returns
    -------
    dict
        ``offset`` and ``scatter``, averaged over repetitions, each with ``_low`` and ``_high``
        ends of the 95 % interval; and ``in_reference_range``, the share of the site's scans whose
        true value lies in the range of the reference (outside, the line is extrapolated). Offset
        and scatter are NaN if the reference has fewer than :data:`LEAST_ON_LINE` persons, the
        intervals also if the site has fewer than :data:`LEAST_AT_SITE`.
    """
    both = pd.concat([site, reference])
    values = both[["seed", "predicted", "truth"]].to_numpy(float)
    at_home = np.arange(len(both)) >= len(site)

    def measure(scans: Scans) -> dict[str, float]:
        drawn, home = values[scans], at_home[scans]
        each = []
        for k in np.intersect1d(drawn[~home, 0], drawn[home, 0]):
            (p, t), (q, u) = (drawn[(drawn[:, 0] == k) & part, 1:].T for part in (home, ~home))
            each.append(offset_and_scatter(q, u, fit_line(p, t)))
        means = np.mean(each, axis=0) if each else (np.nan, np.nan)
        return dict(zip(("offset", "scatter"), map(float, means), strict=True))

    ends = ("", "_low", "_high")
    found = {f"{name}{end}": np.nan for name in ("offset", "scatter") for end in ends}
    if reference["person"].nunique() >= LEAST_ON_LINE:
        shared = both["person"].isin(site["person"]) & both["person"].isin(reference["person"])
        found |= with_intervals(
            measure, both["person"].to_numpy(dtype=str), n, seed,
            enough=site["person"].nunique() >= LEAST_AT_SITE, strata=np.where(shared, 2, at_home),
        )  # fmt: skip
    ages = reference["truth"]
    return found | {
        "in_reference_range": float(site["truth"].between(ages.min(), ages.max()).mean())
    }
