"""Compute the tables of an evaluation: prediction performance and changes of the images."""

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
from bids_harmony.training import targets
from bids_harmony.training.harmonizer import HARMONIZED

#: Bootstrap draws of persons for intervals, and permutations of methods for p values.
N_BOOTSTRAP, N_PERMUTATIONS = 1000, 1000
#: Measure that methods are compared by, for continuous (False) and binary (True) targets.
PRIMARY = {False: "mae", True: "auc"}
#: Columns that identify a cell of the experiments.
CELL = ["experiment", "train_sites", "n_source", "target"]
#: Kernel width (years, standard deviation) for weighting reference scans by age.
AGE_WIDTH = 5.0
VALUES = ["seed", "predicted", "truth"]
#: Fewest persons for a slope with age, and for a site probe.
LEAST_PERSONS, LEAST_PROBED = 8, 4


def experiments_table(rows: pd.DataFrame, binary: dict[str, bool], seed: int) -> pd.DataFrame:
    """Compute the table of prediction performance in all experiments.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``predictions`` of :func:`bids_harmony.evaluation.unit.measure_unit`, all units together.
    binary : dict of str to bool
        Whether each target has two classes.
    seed : int
        Random seed for bootstrap and permutations.

    Returns
    -------
    pandas.DataFrame
        One row per experiment, training sites, calibration size, target, test site and
        ``method``. If there are several test sites besides the training sites, further rows
        combine them. Columns:

        * ``n_scans``, ``n_persons``, ``n_folds`` (seeds and folds), ``n_cases`` (binary targets);
        * the measures of :func:`bids_harmony.training.targets.value_figures` or
          :func:`bids_harmony.training.targets.class_figures`, each with the ends ``_low`` and
          ``_high`` of its 95 % bootstrap interval and ``_seed_sd``, its standard deviation over
          repetitions;
        * ``gain`` of the harmonized scans over the method's, on the scans that both have, with
          interval and ``p``; positive means that harmonized scans are better;
        * continuous targets only: ``coverage`` of the prediction intervals, with Wilson's
          interval, and the measures of :func:`bids_harmony.sites.statistics.site_offset` from the
          line of the training sites' test scans, prepared by the same method.
    """
    found: list[dict[str, Any]] = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False) if len(rows) else ():
        named: dict[str, Any] = dict(zip(CELL, key, strict=True))
        at_home = cell["test_site"].isin(named["train_sites"].split("+"))
        groups = {str(site): part for site, part in cell.groupby("test_site")}
        foreign = cell[~at_home]
        sites = sorted(foreign["test_site"].unique())
        if len(sites) > 1:
            # Combine the sites only for methods that are available at all of them.
            n_sites = foreign.groupby("method")["test_site"].transform("nunique")
            groups["+".join(sites)] = foreign[n_sites == len(sites)]
        for site, part in groups.items():
            by_method = _by_method(part, cell[at_home], binary[named["target"]], seed)
            found += [named | {"test_site": site} | row for row in by_method]
    return pd.DataFrame(found)


def _by_method(
    part: pd.DataFrame, home: pd.DataFrame, binary: bool, seed: int
) -> list[dict[str, Any]]:
    """Return one row per method of a cell; methods may differ in the scans they have."""
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
    """Compute each measure with its interval over persons and its spread over repetitions."""
    values, persons = rows[VALUES].to_numpy(float), rows["person"].to_numpy(dtype=str)
    enough = targets.can_be_drawn(persons, values[:, 2], binary)
    found = with_intervals(
        lambda draw: _mean(values[draw], binary), persons, N_BOOTSTRAP, seed, enough=enough
    )
    for name, spread in pd.DataFrame(_each(values, binary)).std().items():
        found[f"{name}_seed_sd"] = float(spread)
    if rows["person"].nunique() < targets.LEAST_R:
        found |= {name: np.nan for name in found if name.startswith("r")}
    return found


def _mean(values: np.ndarray, binary: bool) -> dict[str, float]:
    """Return the mean of each measure over repetitions; NaN if it is NaN in any of them."""
    each = _each(values, binary)
    return {name: float(np.mean([row[name] for row in each])) for name in each[0]}


def _each(values: np.ndarray, binary: bool) -> list[dict[str, float]]:
    """Compute the measures of each repetition; ``values`` has the columns :data:`VALUES`."""
    measure = targets.class_figures if binary else targets.value_figures
    return [measure(*values[values[:, 0] == k, 1:].T) for k in np.unique(values[:, 0])]


def _gain(ours: pd.DataFrame, theirs: pd.DataFrame, binary: bool, seed: int) -> dict[str, float]:
    """Compute the gain of harmonized scans over another method, on the scans that both have."""
    columns = ["seed", "scan", "predicted"]
    both = ours.merge(theirs[columns], on=columns[:2], suffixes=("", "_other"))
    if both.empty or theirs["method"].iloc[0] == HARMONIZED:
        return dict.fromkeys(("gain", "gain_low", "gain_high", "p"), np.nan)
    a, b = both[VALUES].to_numpy(float), both[["seed", "predicted_other", "truth"]].to_numpy(float)
    persons = both["person"].to_numpy(dtype=str)

    def gain(draw: statistics.Scans) -> dict[str, float]:
        x, y = (_mean(values[draw], binary)[PRIMARY[binary]] for values in (a, b))
        return {"gain": x - y if binary else y - x}

    enough = targets.can_be_drawn(persons, a[:, 2], binary)
    found = with_intervals(gain, persons, N_BOOTSTRAP, seed, enough=enough) | {"p": np.nan}
    if binary:
        wide = both.pivot(index="seed", columns="scan", values=["predicted", "predicted_other"])
        one, other = np.hsplit(wide.to_numpy(), 2)
        scans = both.drop_duplicates("scan").sort_values("scan")
        classes, people = scans["truth"].to_numpy(), scans["person"].to_numpy(dtype=str)
        found["p"] = statistics.delong(one, other, classes, people)[2]
    elif len(np.unique(persons)) >= targets.LEAST_DRAWN:
        error = np.abs(a[:, 1] - a[:, 2]) - np.abs(b[:, 1] - b[:, 2])
        # Weights turn the mean over repetitions of the mean over scans into a sum.
        weighted = error / both.groupby("seed")["scan"].transform("size").to_numpy()
        found["p"] = statistics.exchange_p(weighted, persons, N_PERMUTATIONS, seed)
    return found


def image_table(rows: pd.DataFrame, reference: str, seed: int) -> pd.DataFrame:
    """Compare appearance and anatomy of each site's test scans with the reference site.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``scans`` of :func:`bids_harmony.evaluation.unit.measure_unit`, all units together.
    reference : str
        Reference site, whose scans with tissue normalization only are the standard of comparison.
    seed : int
        Random seed for the folds of the site probe.

    Returns
    -------
    pandas.DataFrame
        One row per ``site`` except the reference, and ``method``, from the test scans of the first
        repetition. Columns:

        * ``n_scans``, ``n_persons``;
        * ``tissue_distance``: Wasserstein-1 distance of the site's mean quantiles from the
          reference's at the same ages, averaged over brain and tissues;
        * ``distance_left``: that distance relative to the one with tissue normalization only;
        * ``site_probe``: see :func:`site_probe`;
        * ``within_over_between``, if persons were scanned at the reference too: distance to their
          own reference scan over the distance to another person's;
        * medians of the guard's measures (``harmonized_*``).
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
        before.setdefault(site, distance)  # tissue normalization comes first
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
    """Return the scans of the first repetition, with methods as an ordered categorical."""
    methods = pd.Categorical(rows["method"], FROM_SCALED, ordered=True)
    first: pd.DataFrame = rows.assign(method=methods)[rows["seed"] == rows["seed"].min()]
    return first


def site_probe(here: pd.DataFrame, home: pd.DataFrame, seed: int) -> float:
    """Compute the cross-validated balanced accuracy of classifying scans as site or reference.

    The classifier is a logistic regression. Reference scans are weighted to the ages of the site,
    so that age does not separate the two. All scans of a person are in the same fold.

    Parameters
    ----------
    here, home : pandas.DataFrame
        Scans of the site and of the reference, with the columns
        :data:`bids_harmony.evaluation.unit.FEATURES`, ``age`` (years, NaN if unknown) and
        ``person``.
    seed : int
        Random seed for the folds.

    Returns
    -------
    float
        0 to 1; 0.5 is chance. NaN if either has fewer than :data:`LEAST_PROBED` persons, or a fold
        would be trained on one class only.
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
        classified = cross_val_predict(
            probe, both[FEATURES].to_numpy(float), at_site, groups=both["person"], cv=folds,
            params={"logisticregression__sample_weight": weight},
        )  # fmt: skip
    except ValueError:  # a fold has all scans of one side, or none
        return np.nan
    return float(balanced_accuracy_score(at_site, classified, sample_weight=weight))


def age_weights(ages: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Compute weights that give scans the target age distribution.

    Parameters
    ----------
    ages : numpy.ndarray
        (scans,) ages in years; a scan without an age (NaN) gets almost no weight.
    wanted : numpy.ndarray
        (n,) ages in years to match; a NaN weights all scans equally.

    Returns
    -------
    numpy.ndarray
        (scans,) weights; their sum is 1.
    """
    distance = (np.nan_to_num(ages, nan=np.inf) - wanted[:, None]) / AGE_WIDTH
    weight = np.exp(-0.5 * np.minimum(distance**2, 1e3)) + 1e-6
    weight[np.isnan(wanted)] = 1
    return np.asarray((weight / weight.sum(axis=1, keepdims=True)).mean(axis=0))


def biology_table(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Compare the slopes of volumes with age at each site before and after harmonization.

    Each person's scans are averaged first. A ratio of slopes far from 1 means that harmonization
    removed or added differences between persons.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``scans`` of :func:`bids_harmony.evaluation.unit.measure_unit`, all units together.
    seed : int
        Random seed for the bootstrap.

    Returns
    -------
    pandas.DataFrame
        ``site``, ``method``, ``measure`` (one of :data:`bids_harmony.evaluation.unit.ANATOMY`),
        ``n_scans``, ``n_persons``, ``before`` and ``after`` (slopes in ml per year), and
        ``ratio`` (after over before) with its 95 % interval over persons. The ratio is NaN if the
        interval of the slope before harmonization includes 0.
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
        if len(ages) < LEAST_PERSONS or np.ptp(ages) <= targets.SAME:
            continue
        for volume in ANATOMY:
            row = {"site": site, "method": name, "measure": volume, "n_scans": len(after)}
            slopes = _slopes(ages, before[volume].to_numpy(), now[volume].to_numpy(), seed)
            found.append(row | {"n_persons": len(ages)} | slopes)
    return pd.DataFrame(found)


def _slopes(
    ages: np.ndarray, before: np.ndarray, after: np.ndarray, seed: int
) -> dict[str, float]:
    """Compute slopes before and after, and their ratio, from (persons,) ages and volumes."""

    def measure(draw: statistics.Scans) -> dict[str, float]:
        one, two = (statistics.fit_line(part[draw], ages[draw])[0] for part in (before, after))
        return {"before": one, "after": two, "ratio": two / one if one else np.nan}

    found = with_intervals(measure, np.arange(len(ages)), N_BOOTSTRAP, seed)
    # A ratio to a slope that may be zero means nothing.
    if not found["before_low"] * found["before_high"] > 0:
        found |= dict.fromkeys(("ratio", "ratio_low", "ratio_high"), np.nan)
    return {name: found[name] for name in ("before", "after", "ratio", "ratio_low", "ratio_high")}
