"""What a site adds to predicted ages, with what every site shares taken out.

Brain ages are drawn to the mean age at every site, the reference included. The mean absolute error
mixes that with the scanner: a young site looks years off without any site effect, and where both
push in opposite directions, errors cancel. So predictions are held against the reference site's
own line of predicted on true values.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

FIGURES = ("offset", "scatter")
#: Fewest persons at the reference that a line is fitted to, and at a site for its interval.
LEAST_ON_LINE, LEAST_AT_SITE = 8, 3


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
        Predictions of one way of preparing scans, by predictors that saw none of these persons:
        ``seed``, ``predicted``, ``truth``, ``person``. The reference may be the site itself.
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
    lowest, highest = reference["truth"].min(), reference["truth"].max()
    found = {f"{name}{end}": np.nan for name in FIGURES for end in ("", "_low", "_high")}
    found["in_reference_range"] = float(site["truth"].between(lowest, highest).mean())
    here, home = (
        {str(person): scans for person, scans in table.groupby("person").indices.items()}
        for table in (site, reference)
    )
    if len(home) < LEAST_ON_LINE:
        return found
    columns = ["seed", "predicted", "truth"]
    a, b = site[columns].to_numpy(float), reference[columns].to_numpy(float)
    found |= dict(zip(FIGURES, _over_seeds(a, b), strict=True))
    if len(here) < LEAST_AT_SITE:
        return found
    rng = np.random.default_rng(seed)
    strata = [sorted(s) for s in (here.keys() - home, home.keys() - here, here.keys() & home)]
    nobody = np.zeros(0, dtype=int)
    drawn = []
    for _ in range(n):
        people = [s[i] for s in strata for i in rng.integers(len(s) or 1, size=len(s))]
        at_site, at_home = (
            np.concatenate([scans.get(person, nobody) for person in people])
            for scans in (here, home)
        )
        drawn.append(_over_seeds(a[at_site], b[at_home]))
    for name, samples in zip(FIGURES, np.transpose(drawn), strict=True):
        known = samples[np.isfinite(samples)]
        if len(known):
            ends = np.percentile(known, (2.5, 97.5))
            found[f"{name}_low"], found[f"{name}_high"] = map(float, ends)
    return found


def _over_seeds(site: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Mean of offset and scatter over repetitions (the first column), each with its own line."""
    each = []
    for k in np.intersect1d(site[:, 0], reference[:, 0]):
        p, t = reference[reference[:, 0] == k, 1:].T
        q, u = site[site[:, 0] == k, 1:].T
        each.append(offset_and_scatter(q, u, fit_line(p, t)))
    if not each:
        return np.nan, np.nan
    offset, scatter = np.mean(each, axis=0)
    return float(offset), float(scatter)
