"""The tables of an evaluation: figures of predictions, and what happened to the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bids_harmony.evaluation import statistics
from bids_harmony.evaluation.methods import FROM_SCALED, METHODS, SCALED
from bids_harmony.evaluation.statistics import with_intervals
from bids_harmony.evaluation.unit import ANATOMY, FEATURES
from bids_harmony.training import figures
from bids_harmony.training.harmonizer import HARMONIZED
from bids_harmony.training.targets import Target

#: Draws of persons for intervals, and exchanges of methods, and of sites for the probe, for p.
N_BOOTSTRAP, N_PERMUTATIONS, N_PROBES = 1000, 1000, 100
#: What methods are compared by: of numbers, and of two classes.
PRIMARY = {False: "mae", True: "auc"}
#: What tells one cell of the experiments from another.
CELL = ["experiment", "train_sites", "n_source", "target"]
#: The reference's scans are weighted by age around another site's (years).
AGE_WIDTH = 5.0
VALUES = ["seed", "predicted", "truth"]
#: Fewest persons that a slope or an effect is looked for in, and that a site probe needs.
LEAST_PERSONS, LEAST_PROBED = 8, 4

Effect = Callable[[np.ndarray, np.ndarray], float]


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
        sites together), target and method (``way``): ``n_scans``, ``n_persons``, ``n_folds``
        (seeds and folds they were tested in), ``n_cases`` (two classes), the figures of
        :func:`bids_harmony.training.figures.figures`, each with ``_low`` and ``_high`` ends of its
        95 % interval and ``_seed_sd``, its spread over repetitions; and ``gain_over_<method>`` of
        the harmonized scans, on the scans of both methods, with interval and ``p_over_<method>``:
        positive is better. For numbers ``coverage`` of the predictors' intervals, with Wilson's
        interval, and the figures of :func:`bids_harmony.evaluation.statistics.site_offset`, held
        against the line of the training sites' tested scans prepared by the same method.
    """
    found: list[dict[str, Any]] = []
    for key, cell in rows.groupby(CELL, dropna=False, sort=False) if len(rows) else ():
        named: dict[str, Any] = dict(zip(CELL, key, strict=True))
        at_home = cell["test_site"].isin(named["train_sites"].split("+"))
        groups = [(str(site), part) for site, part in cell.groupby("test_site")]
        foreign = cell[~at_home]
        if (n_sites := foreign["test_site"].nunique()) > 1:
            # A method that one of them lacks says nothing of all.
            everywhere = foreign.groupby("way")["test_site"].transform("nunique") == n_sites
            together = "+".join(sorted(foreign["test_site"].unique()))
            groups.append((together, foreign[everywhere]))
        for site, part in groups:
            by_method = _by_method(part, cell[at_home], binary[named["target"]], seed)
            found += [named | {"test_site": site} | row for row in by_method]
    return pd.DataFrame(found)


def _by_method(
    part: pd.DataFrame, home: pd.DataFrame, binary: bool, seed: int
) -> list[dict[str, Any]]:
    """Rows of one cell, one per method; a method may have some of the scans only."""
    tested = {name: rows for name in METHODS if len(rows := part[part["way"] == name])}
    found: dict[str, dict[str, Any]] = {}
    for name, rows in tested.items():
        truth = rows.drop_duplicates("scan")["truth"]
        row = {"way": name, "n_scans": len(truth), "n_persons": rows["person"].nunique()}
        row["n_folds"] = len(rows[["seed", "fold"]].drop_duplicates())
        if binary:
            row["n_cases"] = int(truth.sum())
        found[name] = row | _figures(rows, binary, seed)
        if not binary:
            if "half_width" in rows:
                inside = (rows["predicted"] - rows["truth"]).abs() <= rows["half_width"]
                ends = statistics.coverage(inside.to_numpy(), rows["person"].to_numpy())
                names = ("coverage", "coverage_low", "coverage_high")
                found[name] |= zip(names, ends, strict=True)
            at_home = home[home["way"] == name]
            found[name] |= statistics.site_offset(rows, at_home, N_BOOTSTRAP, seed)
    if HARMONIZED in tested:
        for name in (name for name in tested if name != HARMONIZED):
            gain = _gain(tested[HARMONIZED], tested[name], binary, seed)
            found[HARMONIZED] |= {key.format(name): value for key, value in gain.items()}
    return list(found.values())


def _each(values: np.ndarray, binary: bool) -> list[dict[str, float]]:
    """Figures of each repetition; columns of ``values`` are seed, prediction and truth."""
    measure = figures.class_figures if binary else figures.value_figures
    return [measure(*values[values[:, 0] == k, 1:].T) for k in np.unique(values[:, 0])]


def _mean(values: np.ndarray, binary: bool) -> dict[str, float]:
    """Mean of each figure over repetitions; NaN where it is in any."""
    each = _each(values, binary)
    return {name: float(np.mean([row[name] for row in each])) for name in each[0]}


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


def _gain(ours: pd.DataFrame, theirs: pd.DataFrame, binary: bool, seed: int) -> dict[str, float]:
    """By how much harmonized scans do better than another method's, on the scans of both."""
    columns = ["seed", "scan", "predicted"]
    both = ours.merge(theirs[columns], on=columns[:2], suffixes=("", "_other"))
    if both.empty:
        return {}
    a, b = both[VALUES].to_numpy(float), both[["seed", "predicted_other", "truth"]].to_numpy(float)
    persons = both["person"].to_numpy(dtype=str)

    def gain(draw: statistics.Scans) -> dict[str, float]:
        x, y = (_mean(values[draw], binary)[PRIMARY[binary]] for values in (a, b))
        return {"": x - y if binary else y - x}

    enough = figures.can_be_drawn(persons, a[:, 2], binary)
    found = with_intervals(gain, persons, N_BOOTSTRAP, seed, enough=enough)
    found = {f"gain_over_{{}}{end}": value for end, value in found.items()} | {"p_over_{}": np.nan}
    if binary:
        wide = both.pivot(index="seed", columns="scan", values=["predicted", "predicted_other"])
        one, other = np.hsplit(wide.to_numpy(), 2)
        scans = both.drop_duplicates("scan").sort_values("scan")
        classes, people = scans["truth"].to_numpy(), scans["person"].to_numpy(dtype=str)
        found["p_over_{}"] = statistics.delong(one, other, classes, people)[2]
    elif len(np.unique(persons)) >= figures.LEAST_DRAWN:
        error = np.abs(a[:, 1] - a[:, 2]) - np.abs(b[:, 1] - b[:, 2])
        # The mean over repetitions of the mean over their scans, as a sum.
        weighted = error / both.groupby("seed")["scan"].transform("size").to_numpy()
        found["p_over_{}"] = statistics.exchange_p(weighted, persons, N_PERMUTATIONS, seed)
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
        Of the probe's folds and exchanges.

    Returns
    -------
    pandas.DataFrame
        ``site``, ``way``, ``n_scans``, ``n_persons``; ``tissue_distance``, Wasserstein-1 distance
        of the site's mean quantiles from the reference's at the same ages, and what part of that
        with tissue normalization only is left; ``site_probe``, cross-validated balanced accuracy
        of telling the site's scans from the reference's (0.5 is chance), with ``site_probe_p``;
        and medians of the guard's measures.
    """
    first = _first_seed(rows)
    home = first[(first["site"] == reference) & (first["way"] == SCALED)]
    others = first[first["site"] != reference] if len(home) else first.iloc[:0]
    guard = sorted(name for name in map(str, first) if name.startswith("harmonized_"))
    found: list[dict[str, Any]] = []
    before: dict[Any, float] = {}
    for (site, name), here in others.groupby(["site", "way"], observed=True):
        weight = age_weights(home["age"].to_numpy(float), here["age"].to_numpy(float))
        wanted = np.tensordot(weight, np.array(home["quantiles"].tolist()), axes=1)
        distance = np.abs(np.mean(here["quantiles"].tolist(), axis=0) - wanted).mean()
        before.setdefault(site, distance)  # tissue normalization only comes first
        row = {"site": site, "way": name, "n_scans": len(here), "n_persons": here.person.nunique()}
        row |= {"tissue_distance": distance, "distance_left": distance / max(before[site], 1e-6)}
        row["site_probe"], row["site_probe_p"] = _probe(here, home, seed)
        found.append(row | dict(zip(guard, here[guard].astype(float).median(), strict=True)))
    return pd.DataFrame(found)


def _first_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Take the scans of the first repetition, methods in order: tissue normalization first."""
    methods = pd.Categorical(rows["way"], FROM_SCALED, ordered=True)
    first: pd.DataFrame = rows.assign(way=methods)[rows["seed"] == rows["seed"].min()]
    return first


def _probe(here: pd.DataFrame, home: pd.DataFrame, seed: int) -> tuple[float, float]:
    """Balanced accuracy of the site probe, and its p by exchanging labels between persons."""
    both = pd.concat([here, home])
    arguments = both[FEATURES].to_numpy(float), both["age"].to_numpy(float)
    persons, at_site = both["person"].to_numpy(dtype=str), np.arange(len(both)) < len(here)
    observed = site_probe(*arguments, at_site, persons, seed)
    if np.isnan(observed):
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    exchanged = [
        site_probe(*arguments, statistics.exchanged_labels(at_site, persons, rng), persons, seed)
        for _ in range(N_PROBES)
    ]
    return observed, (1 + sum(not value < observed for value in exchanged)) / (N_PROBES + 1)


def site_probe(
    features: np.ndarray, ages: np.ndarray, at_site: np.ndarray, persons: np.ndarray, seed: int
) -> float:
    """Cross-validated balanced accuracy of telling a site's scans from the reference's.

    A logistic regression; the reference's scans are weighted to the site's ages, so that age does
    not tell them apart.

    Parameters
    ----------
    features : numpy.ndarray
        (scans, features) :data:`bids_harmony.evaluation.unit.FEATURES`.
    ages, at_site, persons : numpy.ndarray
        (scans,) years, NaN where unknown; whether the scan is the site's or the reference's; and
        whose it is: nobody is in two folds.
    seed : int
        Of the folds.

    Returns
    -------
    float
        0 to 1; 0.5 is chance. NaN where there are too few persons on a side, or a fold has all
        scans of one.
    """
    n_persons = min(len(np.unique(persons[at_site == k])) for k in (True, False))
    if n_persons < LEAST_PROBED:
        return np.nan
    weight = np.full(len(ages), 1 / at_site.sum())
    weight[~at_site] = age_weights(ages[~at_site], ages[at_site])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedGroupKFold(min(4, n_persons // 2), shuffle=True, random_state=seed)
    weights = {"logisticregression__sample_weight": len(weight) * weight}
    try:
        told = cross_val_predict(
            probe, features, at_site, groups=persons, cv=folds, params=weights
        )
    except ValueError:  # a fold has all scans of one side, or none
        return np.nan
    return float(balanced_accuracy_score(at_site, told, sample_weight=weight))


def age_weights(ages: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Weight scans to have the ages wanted; evenly where those are unknown."""
    distance = (np.nan_to_num(ages, nan=np.inf) - wanted[:, None]) / AGE_WIDTH
    weight = np.exp(-0.5 * np.minimum(distance**2, 1e3)) + 1e-6
    weight[np.isnan(wanted)] = 1
    return np.asarray((weight / weight.sum(axis=1, keepdims=True)).mean(axis=0))


def biology_table(rows: pd.DataFrame, targets: Sequence[Target], seed: int) -> pd.DataFrame:
    """Compare what differs between persons of a site before and after: age and diagnosis.

    Returns
    -------
    pandas.DataFrame
        ``site``, ``way``, ``measure`` (of :data:`bids_harmony.evaluation.unit.ANATOMY`),
        ``effect`` (``age slope``: per year; else a two-class column: Cohen's d), ``n_scans``,
        ``n_persons``, ``before``, ``after`` and ``ratio``, after over before, with its 95 %
        interval over persons; a person's scans are averaged first. A ratio far from 1 means that
        harmonization took away, or added, what differs between persons; where the effect before is
        nearly 0 it says nothing, and is missing.
    """
    first = _first_seed(rows).set_index("scan")
    scaled = first[first["way"] == SCALED]
    effects: dict[str, tuple[pd.Series, Effect]] = {"age slope": (scaled["age"], _slope)}
    for target in (target for target in targets if target.binary):
        effects[target.column] = (pd.Series(target.values), _cohens_d)
    found = []
    changed = first[first["way"] != SCALED]
    for (site, name), after in changed.groupby(["site", "way"], observed=True):
        for effect, (values, measure) in effects.items():
            cause = values.reindex(after.index).dropna()
            tables = cause, scaled.loc[cause.index, ANATOMY], after.loc[cause.index, ANATOMY]
            x, y, z = (t.astype(float).groupby(after["person"]).mean().to_numpy() for t in tables)
            if len(x) < LEAST_PERSONS or np.ptp(x) <= figures.SAME:
                continue
            for k, volume in enumerate(ANATOMY):
                row = {"site": site, "way": name, "measure": volume, "effect": effect}
                row |= {"n_scans": len(cause), "n_persons": len(x)}
                found.append(row | _ratio(x, y[:, k], z[:, k], measure, seed))
    return pd.DataFrame(found)


def _ratio(
    cause: np.ndarray, before: np.ndarray, after: np.ndarray, measure: Effect, seed: int
) -> dict[str, float]:
    """Effect before and after, and their ratio; one entry is one person."""

    def effects(draw: np.ndarray | slice) -> dict[str, float]:
        one, two = (measure(cause[draw], part[draw]) for part in (before, after))
        return {"before": one, "after": two, "ratio": two / one if one else np.nan}

    found = with_intervals(effects, np.arange(len(cause)), N_BOOTSTRAP, seed)
    # Where the effect itself may well be none, a ratio of two of them means nothing.
    if not found["before_low"] * found["before_high"] > 0:
        found |= dict.fromkeys(("ratio", "ratio_low", "ratio_high"), np.nan)
    return {name: found[name] for name in ("before", "after", "ratio", "ratio_low", "ratio_high")}


def _slope(cause: np.ndarray, values: np.ndarray) -> float:
    # A mean of equal ages may be off by rounding.
    return statistics.fit_line(values, cause)[0] if np.ptp(cause) > figures.SAME else np.nan


def _cohens_d(cause: np.ndarray, values: np.ndarray) -> float:
    cases, controls = values[cause == 1], values[cause == 0]
    if min(len(cases), len(controls)) < 2:
        return np.nan
    pooled = np.sqrt((cases.var(ddof=1) + controls.var(ddof=1)) / 2)
    return float((cases.mean() - controls.mean()) / pooled) if pooled > figures.SAME else np.nan


def travelling_table(pairs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Measure how near a person's scans at other sites come to the one at the reference.

    Parameters
    ----------
    pairs : pandas.DataFrame
        Of :func:`bids_harmony.evaluation.unit.measure_unit`, all units together.
    seed : int
        Of the draws.

    Returns
    -------
    pandas.DataFrame
        ``site``, ``way``, ``n_persons``; mean ``mae`` with interval, ``psnr``, ``ssim``; and
        ``closer``, the share of persons whose scan is closer than as preprocessed.
    """
    if pairs.empty:
        return pd.DataFrame()
    mean = pairs.groupby(["site", "way", "person"])[["mae", "psnr", "ssim"]].mean()
    found = []
    for (site, name), part in mean.groupby(level=["site", "way"]):
        table = part.droplevel(["site", "way"])
        row = {"site": site, "way": name, "n_persons": len(table), **table.mean()}
        row |= with_intervals(
            partial(_mean_of, table[["mae"]]), table.index.to_numpy(), N_BOOTSTRAP, seed,
            enough=len(table) >= figures.LEAST_DRAWN,
        )  # fmt: skip
        if name in FROM_SCALED[1:]:
            row["closer"] = (table["mae"] < mean.xs((site, SCALED))["mae"]).mean()
        found.append(row)
    return pd.DataFrame(found)


def _mean_of(table: pd.DataFrame, draw: statistics.Scans) -> dict[str, float]:
    return {str(name): float(value) for name, value in table.iloc[draw].mean().items()}


def agreement_table(rows: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Measure how sites agree over persons scanned at all of them: ICC(2,1).

    Parameters
    ----------
    rows, predictions : pandas.DataFrame
        Scans and predictions of :func:`bids_harmony.evaluation.unit.measure_unit`; of the latter,
        those of the experiment ``sites`` count.

    Returns
    -------
    pandas.DataFrame
        ``measure`` (of :data:`bids_harmony.evaluation.unit.ANATOMY`, or a target), ``way``,
        ``n_persons``, ``n_sites`` and ``icc``; empty where nobody was scanned at two sites.
    """
    tall = rows.melt(["person", "site", "way"], ANATOMY, "measure", "value")
    names = {"test_site": "site", "target": "measure", "predicted": "value"}
    at_sites = predictions[predictions["experiment"] == "sites"].rename(columns=names)
    tall = pd.concat([tall, at_sites[tall.columns]])
    found = []
    for (measure, name), part in tall.groupby(["measure", "way"]):
        wide = part.pivot_table(index="person", columns="site", values="value")
        # A site that no travelling person was at must not hide the others.
        wide = wide[wide.notna().sum(axis=1) > 1].dropna(axis=1, how="all").dropna()
        if min(wide.shape) > 1:
            row = {"measure": measure, "way": name, "n_persons": len(wide)}
            value = statistics.icc(wide.to_numpy(float))
            found.append(row | {"n_sites": wide.shape[1], "icc": value})
    return pd.DataFrame(found)
