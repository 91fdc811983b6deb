"""Figures of predictions with intervals, and what harmonization gains over other ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.evaluation.prepare import HARMONIZED, WAYS
from bids_harmony.training.evaluate import LEAST_DRAWN, class_figures, value_figures

#: Draws of persons for intervals, and of exchanged persons for p.
N_BOOTSTRAP, N_PERMUTATIONS = 1000, 1000
#: What ways are compared by.
PRIMARY = {False: "mae", True: "auc"}
#: What tells one cell of the tables from another.
CELL = ["experiment", "train_sites", "n_source", "target"]

Measure = Callable[[np.ndarray, np.ndarray], dict[str, float]]


def tabulate(rows: pd.DataFrame, binary: dict[str, bool], seed: int) -> pd.DataFrame:
    """Make the table of all experiments.

    Parameters
    ----------
    rows : pandas.DataFrame
        Of :func:`bids_harmony.evaluation.fit.predict_unit`, all units together.
    binary : dict of str to bool
        By target, whether it has two classes.
    seed : int
        Of the draws.

    Returns
    -------
    pandas.DataFrame
        One row per experiment, training sites, test site (and all test sites that are no training
        sites together), target and way: ``n_scans``, ``n_persons``, ``n_cases`` (two classes),
        the figures of :func:`bids_harmony.training.evaluate.figures`, each with ``_low`` and
        ``_high`` ends of its 95 % interval and ``_seed_sd``, its spread over repetitions; and
        ``gain_over_<way>`` of the harmonized scans, with interval and ``p_over_<way>``: positive
        is better.
    """
    found = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        named: dict[str, Any] = dict(zip(CELL, key, strict=True))
        groups = [(str(site), part) for site, part in cell.groupby("test_site", sort=True)]
        foreign = cell[~cell["test_site"].isin(named["train_sites"].split("+"))]
        if foreign["test_site"].nunique() > 1:
            together = "+".join(sorted(foreign["test_site"].unique()))
            groups.append((together, foreign))
        for site, part in groups:
            cells = _cell(part, binary[named["target"]], seed)
            found += [named | {"test_site": site} | row for row in cells]
    return pd.DataFrame(found)


def _cell(rows: pd.DataFrame, binary: bool, seed: int) -> list[dict[str, Any]]:
    """Rows of one cell, one per way."""
    measure: Measure = class_figures if binary else value_figures
    # (seeds, scans); each repetition tests every scan once.
    by_way = {
        way: part.pivot_table(index="seed", columns="scan", values="predicted").to_numpy()
        for way in WAYS
        if len(part := rows[rows["way"] == way])
    }
    one = rows[rows["way"] == next(iter(by_way))].drop_duplicates("scan").sort_values("scan")
    truth, persons = one["truth"].to_numpy(), one["participant"].to_numpy()
    draws = list(drawn_persons(persons, N_BOOTSTRAP, np.random.default_rng(seed)))
    found: list[dict[str, Any]] = []
    drawn: dict[str, np.ndarray] = {}
    for way, predicted in by_way.items():
        row: dict[str, Any] = {"way": way, "n_scans": len(truth)}
        row["n_persons"] = len(np.unique(persons))
        if binary:
            row["n_cases"] = int(truth.sum())
        each = pd.DataFrame([measure(p, truth) for p in predicted])
        samples = pd.DataFrame([_mean(measure, predicted[:, d], truth[d]) for d in draws])
        for name in map(str, each):
            row[name] = each[name].mean()
            row[f"{name}_low"], row[f"{name}_high"] = _interval(samples[name], row["n_persons"])
            row[f"{name}_seed_sd"] = each[name].std() if len(each) > 1 else np.nan
        drawn[way] = samples[PRIMARY[binary]].to_numpy()
        found.append(row)
    if HARMONIZED in by_way:
        better = 1 if binary else -1
        (ours,) = (row for row in found if row["way"] == HARMONIZED)
        for row in found:
            if (way := row["way"]) == HARMONIZED:
                continue
            gain = better * (ours[PRIMARY[binary]] - row[PRIMARY[binary]])
            low, high = _interval(
                pd.Series(better * (drawn[HARMONIZED] - drawn[way])), row["n_persons"]
            )
            ours |= {f"gain_over_{way}": gain, f"gain_over_{way}_low": low,
                     f"gain_over_{way}_high": high}  # fmt: skip
            ours[f"p_over_{way}"] = permutation_p(
                by_way[HARMONIZED], by_way[way], truth, persons, measure, PRIMARY[binary], seed
            )
    return found


def _mean(measure: Measure, predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean of each figure over repetitions."""
    found = [measure(p, truth) for p in predicted]
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}


def drawn_persons(persons: np.ndarray, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw persons with all their scans, ``n`` times: indices of scans."""
    labels, inverse = np.unique(persons, return_inverse=True)
    scans_of = [np.flatnonzero(inverse == i) for i in range(len(labels))]
    return [
        np.concatenate([scans_of[i] for i in rng.integers(len(labels), size=len(labels))])
        for _ in range(n)
    ]


def _interval(samples: pd.Series, n_persons: int) -> tuple[float, float]:
    known = samples.dropna()
    if n_persons < LEAST_DRAWN or known.empty:
        return np.nan, np.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def permutation_p(
    a: np.ndarray,
    b: np.ndarray,
    truth: np.ndarray,
    persons: np.ndarray,
    measure: Measure,
    name: str,
    seed: int,
) -> float:
    """Two-sided p of the difference between two ways, by exchanging them within persons.

    Parameters
    ----------
    a, b : numpy.ndarray
        (seeds, scans) predictions in two ways.
    truth, persons : numpy.ndarray
        (scans,) truth, and whose scan it is.
    measure : callable
        Gives the figures of (scans,) predictions and truth.
    name : str
        The figure that is compared.
    seed : int
        Of the exchanges.

    Returns
    -------
    float
        NaN where the figure cannot be had, or with fewer than :data:`LEAST_DRAWN` persons.
    """
    labels, inverse = np.unique(persons, return_inverse=True)

    def difference(x: np.ndarray, y: np.ndarray) -> float:
        return _mean(measure, x, truth)[name] - _mean(measure, y, truth)[name]

    observed = difference(a, b)
    if len(labels) < LEAST_DRAWN or not np.isfinite(observed):
        return np.nan
    rng = np.random.default_rng(seed)
    as_far = 1
    for _ in range(N_PERMUTATIONS):
        swap = (rng.random(len(labels)) < 0.5)[inverse]
        found = difference(np.where(swap, b, a), np.where(swap, a, b))
        as_far += abs(found) >= abs(observed) - 1e-12
    return as_far / (N_PERMUTATIONS + 1)


def icc(values: np.ndarray) -> float:
    """Agreement of one measurement by each of several sites: ICC(2,1) (science.md §4).

    Parameters
    ----------
    values : numpy.ndarray
        (persons, sites), none missing.

    Returns
    -------
    float
        1 is perfect; NaN below two persons or sites, or without any spread.
    """
    n, k = values.shape
    if n < 2 or k < 2:
        return np.nan
    grand = values.mean()
    rows = k * ((values.mean(axis=1) - grand) ** 2).sum() / (n - 1)
    columns = n * ((values.mean(axis=0) - grand) ** 2).sum() / (k - 1)
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + grand
    error = (rest**2).sum() / ((n - 1) * (k - 1))
    below = rows + (k - 1) * error + k * (columns - error) / n
    return float((rows - error) / below) if below > 0 else np.nan
