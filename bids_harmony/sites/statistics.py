"""Statistics whose unit is the person: a person's scans resemble each other and stay together.

Site offset and scatter say what a site adds to predicted ages. Brain ages are drawn to the mean
age at every site, the reference included. The mean absolute error mixes that with the scanner: a
young site looks years off without any site effect, and where both push in opposite directions,
errors cancel. So predictions are held against the reference site's own line of predicted on true
values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import norm, permutation_test

#: Indices of some scans, or all.
Scans = np.ndarray | slice

#: Fewest persons at the reference that a line is fitted to, and at a site for its interval.
LEAST_ON_LINE, LEAST_AT_SITE = 8, 3


def drawn_persons(
    persons: np.ndarray, n: int, rng: np.random.Generator, strata: np.ndarray | None = None
) -> list[np.ndarray]:
    """Draw persons with all their scans (cluster bootstrap), ``n`` times.

    Parameters
    ----------
    persons : numpy.ndarray
        (scans,) whose scan it is.
    n : int
        Number of draws.
    rng : numpy.random.Generator
        Random number generator.
    strata : numpy.ndarray, optional
        (scans,) group of the scan's person: as many persons of each are drawn as there are.

    Returns
    -------
    list of numpy.ndarray
        Indices of scans; each draw has as many persons as there are, some of them repeatedly.
    """
    labels, first, inverse = np.unique(persons, return_index=True, return_inverse=True)
    scans_of = [np.flatnonzero(inverse == i) for i in range(len(labels))]
    stratum = np.zeros(len(labels)) if strata is None else strata[first]
    groups = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    return [
        np.concatenate(
            [scans_of[g[i]] for g in groups for i in rng.integers(len(g), size=len(g))]
        )
        for _ in range(n)
    ]  # fmt: skip


def with_intervals(
    measure: Callable[[Scans], dict[str, float]],
    persons: np.ndarray,
    n: int,
    seed: int,
    *,
    enough: bool = True,
    strata: np.ndarray | None = None,
) -> dict[str, float]:
    """Measure figures and their 95 % percentile intervals, on persons drawn again.

    Parameters
    ----------
    measure : callable
        Takes indices of scans, gives figures by name.
    persons, n, strata
        As of :func:`drawn_persons`.
    seed : int
        Of the draws: the same persons for the same scans and seed.
    enough : bool
        Whether there are enough persons; without, intervals are NaN.

    Returns
    -------
    dict
        Each figure, and the ends of its interval under its name with ``_low`` and ``_high``: NaN
        where the figure is, or no draw has it.
    """
    found = measure(slice(None))
    draws = drawn_persons(persons, n if enough else 0, np.random.default_rng(seed), strata)
    samples = pd.DataFrame([measure(draw) for draw in draws], columns=list(found), dtype=float)
    for name, value in list(found.items()):
        known = samples[name][np.isfinite(samples[name]) & np.isfinite(value)]
        found[f"{name}_low"], found[f"{name}_high"] = known.quantile([0.025, 0.975])
    return found


def exchange_p(difference: np.ndarray, persons: np.ndarray, n: int, seed: int) -> float:
    """Two-sided p of a sum of differences between two methods, exchanged within persons.

    Parameters
    ----------
    difference : numpy.ndarray
        (scans,) difference between the methods' errors, already weighted.
    persons : numpy.ndarray
        (scans,) whose scan it is.
    n, seed : int
        Number of exchanges (all that there are, where these are fewer), and their seed.
    """
    of_person = pd.Series(difference).groupby(persons).sum().to_numpy()
    rng = np.random.default_rng(seed)
    return float(permutation_test(
        (of_person,), np.sum, permutation_type="samples", n_resamples=n, random_state=rng
    ).pvalue)  # fmt: skip


def placements(score: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share of the other class that each score is on the right side of, ties counting half.

    The mean over cases, and that over controls, is the area under the curve.

    Parameters
    ----------
    score, truth : numpy.ndarray
        (scans,) scores, and 1 for cases, 0 for controls; both occur.
    """
    above = np.subtract.outer(score[truth == 1], score[truth == 0])
    right = (above > 0) + 0.5 * (above == 0)
    found = np.empty(len(truth))
    found[truth == 1], found[truth == 0] = right.mean(axis=1), right.mean(axis=0)
    return found


def delong(
    a: np.ndarray, b: np.ndarray, truth: np.ndarray, persons: np.ndarray
) -> tuple[float, float, float]:
    """Compare the areas under two curves of the same scans by DeLong's test.

    The variance is Obuchowski's (1997) for clustered data, the clusters being persons; with one
    scan per person it is that of DeLong et al. (1988). Scores enter by their ranks alone, so that
    those of networks of different scales can be compared.

    Parameters
    ----------
    a, b : numpy.ndarray
        (repetitions, scans) scores of two predictors. Areas are averaged over repetitions; a
        repetition without a scan has NaN in both.
    truth, persons : numpy.ndarray
        (scans,) 1 for cases and 0 for controls, and whose scan it is.

    Returns
    -------
    difference, error, p : float
        Area of ``a`` minus that of ``b``, its standard error, and the two-sided p. NaN where a
        class has fewer than two persons; p also where the difference cannot vary.
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
        # Each person's part of the difference, among the controls and among the cases.
        centred = np.where(of_class, difference - difference[of_class].mean(), 0)
        parts.append(np.bincount(inverse, centred) / of_class.sum())
        variance += float((parts[-1] ** 2).sum() * n / (n - 1))
    variance += float(2 * parts[0] @ parts[1] * len(labels) / (len(labels) - 1))
    area, error = float(difference[truth == 1].mean()), float(np.sqrt(max(variance, 0.0)))
    if error < 1e-12:
        return area, 0.0, 1.0 if abs(area) < 1e-12 else np.nan
    return area, error, float(2 * norm.sf(abs(area) / error))


def coverage(inside: np.ndarray, persons: np.ndarray) -> tuple[float, float, float]:
    """Measure how often intervals hold the truth, each person counting once.

    Parameters
    ----------
    inside : numpy.ndarray
        Boolean (scans,), whether the interval holds the true value.
    persons : numpy.ndarray
        (scans,) whose scan it is.

    Returns
    -------
    share, low, high : float
        Mean over persons of the share of their scans, and Wilson's 95 % interval for as many
        persons; NaN without any.
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
        (scans,) of the reference site, predicted by networks that have not seen the scan's person.

    Returns
    -------
    slope, intercept : float
        NaN where the true values are all the same.
    """
    spread = np.var(truth)
    if not len(truth) or spread <= 1e-9 * max(1.0, float(np.mean(truth) ** 2)):
        return np.nan, np.nan
    slope = float(np.mean((truth - truth.mean()) * (predicted - predicted.mean())) / spread)
    return slope, float(predicted.mean() - slope * truth.mean())


def offset_and_scatter(
    predicted: np.ndarray, truth: np.ndarray, line: tuple[float, float]
) -> tuple[float, float]:
    """Mean and standard deviation of a site's predictions about the reference's line.

    Parameters
    ----------
    predicted, truth : numpy.ndarray
        (scans,) of one site.
    line : tuple of float
        Slope and intercept of :func:`fit_line`.

    Returns
    -------
    offset, scatter : float
        In the units of the predictions; the scatter is NaN below two scans.
    """
    apart = predicted - (line[0] * truth + line[1])
    return float(apart.mean()), float(apart.std(ddof=1)) if len(apart) > 1 else np.nan


def site_offset(
    site: pd.DataFrame, reference: pd.DataFrame, n: int, seed: int
) -> dict[str, float]:
    """Measure a site's offset and scatter, with intervals over persons.

    Parameters
    ----------
    site, reference : pandas.DataFrame
        Predictions with one method of preparing scans, by predictors that saw none of these
        persons: ``seed``, ``predicted``, ``truth``, ``person``. The reference may be the site
        itself.
    n : int
        Draws of persons, at the reference too: the line is part of what is uncertain. Persons seen
        at both are drawn once for both.
    seed : int
        Of the draws.

    Returns
    -------
    dict
        ``offset`` and ``scatter``, means over repetitions, each with ``_low`` and ``_high`` ends
        of its 95 % interval; ``in_reference_range``, the share of the site's scans whose true
        value lies between the reference's: beyond it, the line is a guess. Offset and scatter are
        NaN where the reference has too few persons, the interval where the site has.
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
