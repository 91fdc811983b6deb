"""Statistics whose unit is the person: a person's scans resemble each other and stay together."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm


def drawn_persons(persons: np.ndarray, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw persons with all their scans (cluster bootstrap), ``n`` times.

    Parameters
    ----------
    persons : numpy.ndarray
        (scans,) whose scan it is.
    n : int
        Number of draws.
    rng : numpy.random.Generator
        Random number generator.

    Returns
    -------
    list of numpy.ndarray
        Indices of scans; each draw has as many persons as there are, some of them repeatedly.
    """
    labels, inverse = np.unique(persons, return_inverse=True)
    scans_of = [np.flatnonzero(inverse == i) for i in range(len(labels))]
    return [
        np.concatenate([scans_of[i] for i in rng.integers(len(labels), size=len(labels))])
        for _ in range(n)
    ]


def exchanged_labels(
    labels: np.ndarray, persons: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Exchange the labels of two groups of scans, for a permutation test.

    Parameters
    ----------
    labels : numpy.ndarray
        Boolean (scans,), the group of each.
    persons : numpy.ndarray
        (scans,) whose scan it is.
    rng : numpy.random.Generator
        Random number generator.

    Returns
    -------
    numpy.ndarray
        Labels are permuted between persons, so that the scans of one keep one label; those of a
        person seen in both groups are swapped or not.
    """
    _, inverse = np.unique(persons, return_inverse=True)
    share = np.bincount(inverse, labels) / np.bincount(inverse)
    both = (share > 0) & (share < 1)
    given = share > 0
    given[~both] = rng.permutation(given[~both])
    swapped = rng.random(len(share)) < 0.5
    return np.asarray(np.where(both[inverse], labels ^ swapped[inverse], given[inverse]))


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
    difference = []
    for one, other in zip(a, b, strict=True):
        known = np.isfinite(one) & np.isfinite(other)
        found = np.full(len(truth), np.nan)
        if len(np.unique(truth[known])) == 2:
            found[known] = placements(one[known], truth[known])
            found[known] -= placements(other[known], truth[known])
        difference.append(found)
    seen = np.isfinite(difference).any(axis=0)
    moved, truth = np.nanmean(np.array(difference)[:, seen], axis=0), truth[seen]
    _, inverse = np.unique(persons[seen], return_inverse=True)
    n_persons = [len(np.unique(inverse[truth == k])) for k in (0, 1)]
    if min(n_persons) < 2:
        return np.nan, np.nan, np.nan
    # Each person's part of the difference, among the controls and among the cases.
    parts = [
        np.bincount(inverse, np.where(truth == k, moved - moved[truth == k].mean(), 0))
        / (truth == k).sum()
        for k in (0, 1)
    ]
    variance = sum((p**2).sum() * n / (n - 1) for p, n in zip(parts, n_persons, strict=True))
    n = len(parts[0])
    variance += 2 * (parts[0] * parts[1]).sum() * n / (n - 1)
    area, error = float(moved[truth == 1].mean()), float(np.sqrt(max(variance, 0.0)))
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
    _, inverse = np.unique(persons, return_inverse=True)
    n = int(inverse.max()) + 1 if len(inverse) else 0
    if not n:
        return np.nan, np.nan, np.nan
    p = float(np.mean(np.bincount(inverse, inside) / np.bincount(inverse)))
    z = float(norm.ppf(0.975))
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (float((middle + sign * half) / (1 + z**2 / n)) for sign in (-1, 1))
    return p, max(low, 0.0), min(high, 1.0)
