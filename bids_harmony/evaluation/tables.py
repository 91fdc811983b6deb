"""The tables of an evaluation: figures of predictions, and what happened to the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bids_harmony.evaluation.methods import FROM_SCALED, METHODS, SCALED
from bids_harmony.evaluation.unit import ANATOMY, FEATURES
from bids_harmony.sites import statistics
from bids_harmony.sites.statistics import with_intervals
from bids_harmony.training import figures
from bids_harmony.training.harmonizer import HARMONIZED

#: Draws of persons for intervals, and exchanges of methods for p.
N_BOOTSTRAP, N_PERMUTATIONS = 1000, 1000
#: What methods are compared by: of numbers, and of two classes.
PRIMARY = {False: "mae", True: "auc"}
#: What tells one cell of the experiments from another.
CELL = ["experiment", "train_sites", "n_source", "target"]
#: The reference's scans are weighted by age around another site's (years).
AGE_WIDTH = 5.0
VALUES = ["seed", "predicted", "truth"]
#: Fewest persons that a slope is looked for in, and that a site probe needs.
LEAST_PERSONS, LEAST_PROBED = 8, 4


def experiments_table(rows: pd.DataFrame, binary: dict[str, bool], seed: int) -> pd.DataFrame:
    """Make the table of all experiments.

    Parameters
    ----------
    rows : pandas.DataFrame
        Predictions of :func:`bids_harmony.evaluation.unit.measure_unit`, all units together.
    binary : dict of str to bool
        By target, whether it has two classes.
    seed : int
        Of the draws.

    Returns
    -------
    pandas.DataFrame
        One row per experiment, training sites, test site (and all test sites that are no training
        sites together), target and ``method``: ``n_scans``, ``n_persons``, ``n_folds``
        (seeds and folds they were tested in), ``n_cases`` (two classes), the figures of
        :func:`bids_harmony.training.figures.figures`, each with ``_low`` and ``_high`` ends of its
        95 % interval and ``_seed_sd``, its spread over repetitions; and ``gain`` of the harmonized
        scans over the method's, on the scans of both, with interval and ``p``:
        positive is better. For numbers ``coverage`` of the predictors' intervals, with Wilson's
        interval, and the figures of :func:`bids_harmony.sites.statistics.site_offset`, held
        against the line of the training sites' tested scans prepared by the same method.
    """
    found: list[dict[str, Any]] = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False) if len(rows) else ():
        named: dict[str, Any] = dict(zip(CELL, key, strict=True))
        at_home = cell["test_site"].isin(named["train_sites"].split("+"))
        groups = {str(site): part for site, part in cell.groupby("test_site")}
        foreign = cell[~at_home]
        sites = sorted(foreign["test_site"].unique())
        if len(sites) > 1:
            # A method that one of them lacks says nothing of all.
            n_sites = foreign.groupby("method")["test_site"].transform("nunique")
            groups["+".join(sites)] = foreign[n_sites == len(sites)]
        for site, part in groups.items():
            by_method = _by_method(part, cell[at_home], binary[named["target"]], seed)
            found += [named | {"test_site": site} | row for row in by_method]
    return pd.DataFrame(found)


def _by_method(
    part: pd.DataFrame, home: pd.DataFrame, binary: bool, seed: int
) -> list[dict[str, Any]]:
    """Rows of one cell, one per method; a method may have some of the scans only."""
    found: list[dict[str, Any]] = []
    for name in (name for name in METHODS if name in set(part["method"])):
        rows = part[part["method"] == name]
        truth = rows.drop_duplicates("scan")["truth"]
        row = {"method": name, "n_scans": len(truth), "n_persons": rows["person"].nunique()}
        row["n_folds"] = len(rows[["seed", "fold"]].drop_duplicates())
        if binary:
            row["n_cases"] = int(truth.sum())
        row |= _figures(rows, binary, seed)
        if not binary and "half_width" in rows:
            inside = (rows["predicted"] - rows["truth"]).abs() <= rows["half_width"]
            ends = statistics.coverage(inside.to_numpy(), rows["person"].to_numpy())
            row |= zip(("coverage", "coverage_low", "coverage_high"), ends, strict=True)
        if not binary:
            at_home = home[home["method"] == name]
            row |= statistics.site_offset(rows, at_home, N_BOOTSTRAP, seed)
        found.append(row | _gain(part[part["method"] == HARMONIZED], rows, binary, seed))
    return found


def _figures(rows: pd.DataFrame, binary: bool, seed: int) -> dict[str, float]:
    """Each figure with its interval over persons and its spread over repetitions."""
    values, persons = rows[VALUES].to_numpy(float), rows["person"].to_numpy(dtype=str)
    enough = figures.can_be_drawn(persons, values[:, 2], binary)
    found = with_intervals(
        lambda draw: _mean(values[draw], binary), persons, N_BOOTSTRAP, seed, enough=enough
    )
    for name, spread in pd.DataFrame(_each(values, binary)).std().items():
        found[f"{name}_seed_sd"] = float(spread)
    if rows["person"].nunique() < figures.LEAST_R:
        found |= {name: np.nan for name in found if name.startswith("r")}
    return found


def _mean(values: np.ndarray, binary: bool) -> dict[str, float]:
    """Mean of each figure over repetitions; NaN where it is in any."""
    each = _each(values, binary)
    return {name: float(np.mean([row[name] for row in each])) for name in each[0]}


def _each(values: np.ndarray, binary: bool) -> list[dict[str, float]]:
    """Figures of each repetition; columns of ``values`` are seed, prediction and truth."""
    measure = figures.class_figures if binary else figures.value_figures
    return [measure(*values[values[:, 0] == k, 1:].T) for k in np.unique(values[:, 0])]


def _gain(ours: pd.DataFrame, theirs: pd.DataFrame, binary: bool, seed: int) -> dict[str, float]:
    """By how much harmonized scans do better than another method's, on the scans of both."""
    columns = ["seed", "scan", "predicted"]
    both = ours.merge(theirs[columns], on=columns[:2], suffixes=("", "_other"))
    if both.empty or theirs["method"].iloc[0] == HARMONIZED:
        return dict.fromkeys(("gain", "gain_low", "gain_high", "p"), np.nan)
    a, b = both[VALUES].to_numpy(float), both[["seed", "predicted_other", "truth"]].to_numpy(float)
    persons = both["person"].to_numpy(dtype=str)

    def gain(draw: statistics.Scans) -> dict[str, float]:
        x, y = (_mean(values[draw], binary)[PRIMARY[binary]] for values in (a, b))
        return {"gain": x - y if binary else y - x}

    enough = figures.can_be_drawn(persons, a[:, 2], binary)
    found = with_intervals(gain, persons, N_BOOTSTRAP, seed, enough=enough) | {"p": np.nan}
    if binary:
        wide = both.pivot(index="seed", columns="scan", values=["predicted", "predicted_other"])
        one, other = np.hsplit(wide.to_numpy(), 2)
        scans = both.drop_duplicates("scan").sort_values("scan")
        classes, people = scans["truth"].to_numpy(), scans["person"].to_numpy(dtype=str)
        found["p"] = statistics.delong(one, other, classes, people)[2]
    elif len(np.unique(persons)) >= figures.LEAST_DRAWN:
        error = np.abs(a[:, 1] - a[:, 2]) - np.abs(b[:, 1] - b[:, 2])
        # The mean over repetitions of the mean over their scans, as a sum.
        weighted = error / both.groupby("seed")["scan"].transform("size").to_numpy()
        found["p"] = statistics.exchange_p(weighted, persons, N_PERMUTATIONS, seed)
    return found


def image_table(rows: pd.DataFrame, reference: str, seed: int) -> pd.DataFrame:
    """Describe appearance and anatomy of the test scans of each site but the reference.

    Parameters
    ----------
    rows : pandas.DataFrame
        Scans of :func:`bids_harmony.evaluation.unit.measure_unit`, all units together.
    reference : str
        Its scans, as preprocessed, are what the others are held against.
    seed : int
        Of the probe's folds.

    Returns
    -------
    pandas.DataFrame
        ``site``, ``method``, ``n_scans``, ``n_persons``; ``tissue_distance``, Wasserstein-1
        distance of the site's mean quantiles from the reference's at the same ages, and
        ``distance_left``, what part of that with tissue normalization only is left;
        ``site_probe``, of :func:`site_probe`; where persons were scanned at the reference too,
        ``within_over_between``, how far their images are from their own there over how far they
        are from another person's; and medians of the guard's measures.
    """
    first = _first_seed(rows)
    home = first[(first["site"] == reference) & (first["method"] == SCALED)]
    others = first[first["site"] != reference] if len(home) else first.iloc[:0]
    guard = sorted(name for name in map(str, first) if name.startswith("harmonized_"))
    found: list[dict[str, Any]] = []
    before: dict[Any, float] = {}
    for (site, name), here in others.groupby(["site", "method"], observed=True):
        weight = age_weights(home["age"].to_numpy(float), here["age"].to_numpy(float))
        wanted = np.tensordot(weight, np.array(home["quantiles"].tolist()), axes=1)
        distance = np.abs(np.mean(here["quantiles"].tolist(), axis=0) - wanted).mean()
        before.setdefault(site, distance)  # tissue normalization only comes first
        row = {
            "site": site, "method": name, "n_scans": len(here), "n_persons": here.person.nunique(),
            "tissue_distance": distance, "distance_left": distance / max(before[site], 1e-6),
            "site_probe": site_probe(here, home, seed),
        }  # fmt: skip
        if "within_person" in first:
            between = here["between_persons"].sum() or np.nan
            row["within_over_between"] = here["within_person"].sum() / between
        found.append(row | dict(zip(guard, here[guard].astype(float).median(), strict=True)))
    return pd.DataFrame(found)


def _first_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Take the scans of the first repetition, methods in order: tissue normalization first."""
    methods = pd.Categorical(rows["method"], FROM_SCALED, ordered=True)
    first: pd.DataFrame = rows.assign(method=methods)[rows["seed"] == rows["seed"].min()]
    return first


def site_probe(here: pd.DataFrame, home: pd.DataFrame, seed: int) -> float:
    """Cross-validated balanced accuracy of telling a site's scans from the reference's.

    A logistic regression; the reference's scans are weighted to the site's ages, so that age does
    not tell them apart. Nobody is in two folds.

    Parameters
    ----------
    here, home : pandas.DataFrame
        Scans of the site and of the reference: :data:`bids_harmony.evaluation.unit.FEATURES`,
        ``age`` (NaN where unknown) and ``person``.
    seed : int
        Of the folds.

    Returns
    -------
    float
        0 to 1; 0.5 is chance. NaN where there are too few persons on a side, or a fold has all
        scans of one.
    """
    n_persons = min(here["person"].nunique(), home["person"].nunique())
    if n_persons < LEAST_PROBED:
        return np.nan
    both, at_site = pd.concat([here, home]), np.arange(len(here) + len(home)) < len(here)
    in_home = age_weights(home["age"].to_numpy(float), here["age"].to_numpy(float))
    weight = len(both) * np.append(np.full(len(here), 1 / len(here)), in_home)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedGroupKFold(min(4, n_persons // 2), shuffle=True, random_state=seed)
    try:
        told = cross_val_predict(
            probe, both[FEATURES].to_numpy(float), at_site, groups=both["person"], cv=folds,
            params={"logisticregression__sample_weight": weight},
        )  # fmt: skip
    except ValueError:  # a fold has all scans of one side, or none
        return np.nan
    return float(balanced_accuracy_score(at_site, told, sample_weight=weight))


def age_weights(ages: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Weight scans to have the ages wanted; evenly where those are unknown."""
    distance = (np.nan_to_num(ages, nan=np.inf) - wanted[:, None]) / AGE_WIDTH
    weight = np.exp(-0.5 * np.minimum(distance**2, 1e3)) + 1e-6
    weight[np.isnan(wanted)] = 1
    return np.asarray((weight / weight.sum(axis=1, keepdims=True)).mean(axis=0))


def biology_table(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Compare how volumes change with age between persons of a site, before and after.

    Returns
    -------
    pandas.DataFrame
        ``site``, ``method``, ``measure`` (of :data:`bids_harmony.evaluation.unit.ANATOMY`),
        ``n_scans``, ``n_persons``, ``before`` and ``after``, slopes per year, and ``ratio``, after
        over before, with its 95 % interval over persons; a person's scans are averaged first. A
        ratio far from 1 means that harmonization took away, or added, what differs between
        persons; where the slope before may be 0 it says nothing, and is missing.
    """
    first = _first_seed(rows).set_index("scan")
    first = first[first["age"].notna()]
    scaled = first[first["method"] == SCALED]
    found = []
    changed = first[first["method"] != SCALED].groupby(["site", "method"], observed=True)
    for (site, name), after in changed:
        tables = scaled.loc[after.index, ["age", *ANATOMY]], after[ANATOMY]
        before, now = (t.astype(float).groupby(after["person"]).mean() for t in tables)
        ages = before.pop("age").to_numpy()
        if len(ages) < LEAST_PERSONS or np.ptp(ages) <= figures.SAME:
            continue
        for volume in ANATOMY:
            row = {"site": site, "method": name, "measure": volume, "n_scans": len(after)}
            slopes = _slopes(ages, before[volume].to_numpy(), now[volume].to_numpy(), seed)
            found.append(row | {"n_persons": len(ages)} | slopes)
    return pd.DataFrame(found)


def _slopes(
    ages: np.ndarray, before: np.ndarray, after: np.ndarray, seed: int
) -> dict[str, float]:
    """Slopes before and after, and their ratio; one entry is one person."""

    def measure(draw: statistics.Scans) -> dict[str, float]:
        one, two = (statistics.fit_line(part[draw], ages[draw])[0] for part in (before, after))
        return {"before": one, "after": two, "ratio": two / one if one else np.nan}

    found = with_intervals(measure, np.arange(len(ages)), N_BOOTSTRAP, seed)
    # Where the slope itself may well be none, a ratio of two of them means nothing.
    if not found["before_low"] * found["before_high"] > 0:
        found |= dict.fromkeys(("ratio", "ratio_low", "ratio_high"), np.nan)
    return {name: found[name] for name in ("before", "after", "ratio", "ratio_low", "ratio_high")}
