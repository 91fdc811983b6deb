"""Figures of predictions with intervals, and what harmonization gains over other ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.evaluation.offset import site_offset
from bids_harmony.evaluation.persons import coverage, delong, drawn_persons
from bids_harmony.evaluation.prepare import HARMONIZED, WAYS
from bids_harmony.training.figures import (
    LEAST_DRAWN,
    LEAST_R,
    SAME,
    can_be_drawn,
    class_figures,
    value_figures,
)

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
        sites together), target and way: ``n_scans``, ``n_persons``, ``n_folds`` (seeds and folds
        they were tested in), ``n_cases`` (two classes),
        the figures of :func:`bids_harmony.training.figures.figures`, each with ``_low`` and
        ``_high`` ends of its 95 % interval and ``_seed_sd``, its spread over repetitions; and
        ``gain_over_<way>`` of the harmonized scans, on the scans of both ways, with interval and
        ``p_over_<way>``: positive is better. For numbers ``coverage`` of the predictors'
        intervals, with Wilson's interval, and the figures of
        :func:`bids_harmony.evaluation.offset.site_offset`, held against the line of the training
        sites' tested scans prepared in the same way.
    """
    found = []
    if rows.empty:
        return pd.DataFrame()
    rows = rows.assign(person=rows.get("person", rows["participant"]))
    for key, cell in rows.groupby(CELL, dropna=False, sort=False):
        named: dict[str, Any] = dict(zip(CELL, key, strict=True))
        groups = [(str(site), part) for site, part in cell.groupby("test_site", sort=True)]
        foreign = cell[~cell["test_site"].isin(named["train_sites"].split("+"))]
        if (n_sites := foreign["test_site"].nunique()) > 1:
            together = "+".join(sorted(foreign["test_site"].unique()))
            # A way that one of them lacks says nothing of all.
            everywhere = foreign.groupby("way")["test_site"].transform("nunique") == n_sites
            groups.append((together, foreign[everywhere]))
        home = cell[cell["test_site"].isin(named["train_sites"].split("+"))]
        for site, part in groups:
            cells = _cell(part, binary[named["target"]], seed)
            if not binary[named["target"]]:
                for row in cells:
                    way = row["way"]
                    row |= site_offset(
                        part[part["way"] == way], home[home["way"] == way], N_BOOTSTRAP, seed
                    )
            found += [named | {"test_site": site} | row for row in cells]
    return pd.DataFrame(found)


def _cell(rows: pd.DataFrame, binary: bool, seed: int) -> list[dict[str, Any]]:
    """Rows of one cell, one per way; a way may have some of the scans only."""
    ways = {way: part for way in WAYS if len(part := rows[rows["way"] == way])}
    # (seeds, scans); each repetition tests every scan once, NaN where it could not.
    by_way = {
        way: part.pivot_table(index="seed", columns="scan", values="predicted")
        for way, part in ways.items()
    }
    found: list[dict[str, Any]] = []
    for way, predicted in by_way.items():
        cell = _Cell.of(predicted, ways[way], binary)
        row: dict[str, Any] = {"way": way, "n_scans": len(cell.truth)}
        row["n_persons"] = len(np.unique(cell.persons))
        row["n_folds"] = len(ways[way][["seed", "fold"]].drop_duplicates())
        if binary:
            row["n_cases"] = int(cell.truth.sum())
        each = pd.DataFrame(cell.repetitions(predicted.to_numpy()))
        if row["n_persons"] < LEAST_R and "r" in each:
            each["r"] = np.nan
        samples = cell.samples(predicted.to_numpy(), seed)
        for figure in map(str, each):
            row[figure] = each[figure].mean()
            drawn = samples[figure] if np.isfinite(row[figure]) else samples[figure].iloc[:0]
            row[f"{figure}_low"], row[f"{figure}_high"] = cell.interval(drawn)
            row[f"{figure}_seed_sd"] = each[figure].std() if len(each) > 1 else np.nan
        if not binary and "half_width" in rows:
            inside = (ways[way]["predicted"] - ways[way]["truth"]).abs() <= ways[way]["half_width"]
            row |= dict(zip(
                ("coverage", "coverage_low", "coverage_high"),
                coverage(inside.to_numpy(), ways[way]["person"].to_numpy()), strict=True,
            ))  # fmt: skip
        found.append(row)
    for ours in (row for row in found if row["way"] == HARMONIZED):
        for way in (way for way in by_way if way != HARMONIZED):
            a, b = by_way[HARMONIZED].align(by_way[way], join="inner")
            a, b = a.where(b.notna()), b.where(a.notna())
            if a.notna().any(axis=None):
                compared = _gain(a, b, ways[way], binary, seed)
                ours |= {f"{key}_over_{way}{end}": v for (key, end), v in compared.items()}
    return found


def _gain(
    a: pd.DataFrame, b: pd.DataFrame, rows: pd.DataFrame, binary: bool, seed: int
) -> dict[tuple[str, str], float]:
    """By how much ``a`` does better than ``b`` on the scans of both, with interval and p."""
    name, better = PRIMARY[binary], 1 if binary else -1
    cell = _Cell.of(a, rows, binary)
    ours, theirs = a.to_numpy(), b.to_numpy()
    gain = better * (cell.mean(ours)[name] - cell.mean(theirs)[name])
    drawn = better * (cell.samples(ours, seed)[name] - cell.samples(theirs, seed)[name])
    low, high = cell.interval(drawn)
    if binary:
        p = delong(ours, theirs, cell.truth, cell.persons)[2]
    else:
        p = permutation_p(ours, theirs, cell.truth, cell.persons, cell.measure, name, seed)
    return {("gain", ""): gain, ("gain", "_low"): low, ("gain", "_high"): high, ("p", ""): p}


@dataclass(frozen=True)
class _Cell:
    """Truth and persons of the scans of a cell in some way, and what they are measured by."""

    truth: np.ndarray
    persons: np.ndarray
    measure: Measure

    @classmethod
    def of(cls, predicted: pd.DataFrame, rows: pd.DataFrame, binary: bool) -> _Cell:
        one = rows.drop_duplicates("scan").set_index("scan").loc[predicted.columns]
        measure: Measure = class_figures if binary else value_figures
        return cls(one["truth"].to_numpy(), one["person"].to_numpy(), measure)

    def repetitions(self, predicted: np.ndarray) -> list[dict[str, float]]:
        """Figures of each repetition that has predictions."""
        return _figures(self.measure, predicted, self.truth)

    def mean(self, predicted: np.ndarray) -> dict[str, float]:
        """Mean of each figure over repetitions."""
        return _mean(self.measure, predicted, self.truth)

    def samples(self, predicted: np.ndarray, seed: int) -> pd.DataFrame:
        """Figures of persons drawn again; the same persons for the same scans and seed."""
        draws = drawn_persons(self.persons, N_BOOTSTRAP, np.random.default_rng(seed))
        return pd.DataFrame([_mean(self.measure, predicted[:, d], self.truth[d]) for d in draws])

    def interval(self, samples: pd.Series) -> tuple[float, float]:
        """Find the ends of the 95 % interval; NaN where too few persons were drawn."""
        known = samples.dropna()
        binary = self.measure is class_figures
        if known.empty or not can_be_drawn(self.persons, self.truth, binary):
            return np.nan, np.nan
        low, high = np.percentile(known, (2.5, 97.5))
        return float(low), float(high)


def _figures(measure: Measure, predicted: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    return [measure(p[k], truth[k]) for p in predicted if (k := np.isfinite(p)).any()]


def _mean(measure: Measure, predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean of each figure over the repetitions that have predictions; NaN where any is."""
    found = _figures(measure, predicted, truth)
    if not found:
        return dict.fromkeys(measure(np.zeros(1), np.zeros(1)), np.nan)
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}


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

    For figures of values in one unit; scores of networks of different scales are compared by
    :func:`bids_harmony.evaluation.persons.delong`.

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
    if n < 2 or k < 2 or np.ptp(values) <= SAME:
        return np.nan
    grand = values.mean()
    rows = k * ((values.mean(axis=1) - grand) ** 2).sum() / (n - 1)
    columns = n * ((values.mean(axis=0) - grand) ** 2).sum() / (k - 1)
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + grand
    error = (rest**2).sum() / ((n - 1) * (k - 1))
    below = rows + (k - 1) * error + k * (columns - error) / n
    return float((rows - error) / below) if below > 0 else np.nan
