"""Tables of what harmonization did to images: looks and anatomy, biology, travelling heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bids_harmony.evaluation.images import ANATOMY, FEATURES
from bids_harmony.evaluation.persons import drawn_persons, exchanged_labels
from bids_harmony.evaluation.prepare import FROM_SCALED, SCALED
from bids_harmony.evaluation.statistics import N_BOOTSTRAP, icc
from bids_harmony.training.figures import LEAST_DRAWN, SAME
from bids_harmony.training.targets import Target

#: Exchanges of labels for the site probe's p.
N_PROBES = 100
#: Reference scans are weighed by age around a source scan's (years).
AGE_WIDTH = 5.0
#: Fewest persons that a slope or an effect is looked for in.
LEAST_PERSONS = 8


def image_table(rows: pd.DataFrame, reference: str, seed: int) -> pd.DataFrame:
    """Describe looks and anatomy of the test scans of each site but the reference, by way.

    Parameters
    ----------
    rows : pandas.DataFrame
        Of :func:`bids_harmony.evaluation.images.measure_scans`, all units together.
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
    first = rows[rows["seed"] == rows["seed"].min()]
    home = first[(first["site"] == reference) & (first["way"] == SCALED)]
    found = []
    for site in sorted(set(first["site"]) - {reference}):
        before = np.nan
        for way in _ways(first):
            here = first[(first["site"] == site) & (first["way"] == way)]
            if here.empty or home.empty:  # a way that could not be had there
                continue
            wanted = at_ages(
                list(home["quantiles"]), home["age"].to_numpy(float), here["age"].to_numpy(float)
            )
            distance = float(np.abs(np.mean(list(here["quantiles"]), axis=0) - wanted).mean())
            before = distance if way == SCALED else before
            probe, p = _probe(here, home, seed)
            found.append(
                {
                    "site": site,
                    "way": way,
                    "n_scans": len(here),
                    "n_persons": here["person"].nunique(),
                    "tissue_distance": distance,
                    "distance_left": distance / max(before, 1e-6),
                    "site_probe": probe,
                    "site_probe_p": p,
                    **{
                        name: pd.to_numeric(here[name]).median()
                        for name in sorted(here)
                        if name.startswith("harmonized_")
                    },
                }
            )
    return pd.DataFrame(found)


def _ways(rows: pd.DataFrame) -> list[str]:
    """Ways that are there; the first is tissue normalization only."""
    return [way for way in FROM_SCALED if way in set(rows["way"])]


def _probe(here: pd.DataFrame, home: pd.DataFrame, seed: int) -> tuple[float, float]:
    """Balanced accuracy of the site probe, and its p by exchanging labels between persons."""
    both = pd.concat([here, home])
    looks, ages = both[list(FEATURES)].to_numpy(float), both["age"].to_numpy(float)
    persons = both["person"].to_numpy()
    if min(here["person"].nunique(), home["person"].nunique()) < 4:
        return np.nan, np.nan

    def probe(at_site: np.ndarray) -> float:
        a, b = np.flatnonzero(at_site), np.flatnonzero(~at_site)
        people = persons[np.concatenate([a, b])]
        return site_probe(looks[a], looks[b], ages[a], ages[b], seed, people)

    labels = np.arange(len(both)) < len(here)
    observed = probe(labels)
    if np.isnan(observed):
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    exchanged = [probe(exchanged_labels(labels, persons, rng)) for _ in range(N_PROBES)]
    return observed, (1 + sum(not v < observed for v in exchanged)) / (N_PROBES + 1)


def biology_table(rows: pd.DataFrame, targets: Sequence[Target], seed: int) -> pd.DataFrame:
    """Compare what differs between persons of a site before and after: age and diagnosis.

    Returns
    -------
    pandas.DataFrame
        ``site``, ``way``, ``measure`` (of :data:`bids_harmony.evaluation.images.ANATOMY`),
        ``effect`` (``age slope``: per year; else a two-class column: Cohen's d), ``n_scans``,
        ``n_persons``, ``before``, ``after`` and ``ratio``, after over before, with its 95 %
        interval over persons; a person's scans are averaged first. A ratio far from 1 means that
        harmonization took away, or added, what differs between persons; where the effect before is
        nearly 0 it says nothing, and is missing.
    """
    first = rows[rows["seed"] == rows["seed"].min()]
    effects: dict[str, tuple[pd.Series, Callable[[np.ndarray, np.ndarray], float]]] = {
        "age slope": (first.drop_duplicates("scan").set_index("scan")["age"], _slope)
    }
    for target in targets:
        if target.binary:
            effects[target.column] = (pd.Series(target.values), _cohen)
    found = []
    for site, part in first.groupby("site"):
        ways = {way: g.set_index("scan").sort_index() for way, g in part.groupby("way")}
        for way in [way for way in _ways(first)[1:] if way in ways]:
            scans = ways[SCALED].index.intersection(ways[way].index)
            before, after = ways[SCALED].loc[scans], ways[way].loc[scans]
            for effect, (values, measure) in effects.items():
                known = before["person"][values.reindex(scans).notna()]
                columns = {"cause": values.reindex(known.index)}
                for name in ANATOMY:
                    columns[f"{name} before"] = before.loc[known.index, name]
                    columns[f"{name} after"] = after.loc[known.index, name]
                people = pd.DataFrame(columns).astype(float).groupby(known).mean()
                if len(people) < LEAST_PERSONS or np.ptp(people["cause"]) <= SAME:
                    continue
                for name in ANATOMY:
                    pair = people[f"{name} before"], people[f"{name} after"]
                    found.append(
                        {"site": site, "way": way, "measure": name, "effect": effect,
                         "n_scans": len(known), "n_persons": len(people)}
                        | _ratio(people["cause"], *pair, measure, seed)
                    )  # fmt: skip
    return pd.DataFrame(found)


def _ratio(
    cause: pd.Series,
    before: pd.Series,
    after: pd.Series,
    measure: Callable[[np.ndarray, np.ndarray], float],
    seed: int,
) -> dict[str, Any]:
    """Effect before and after, and their ratio; one row is one person."""
    x, y, z = (column.to_numpy() for column in (cause, before, after))
    draws = drawn_persons(np.arange(len(x)), N_BOOTSTRAP, np.random.default_rng(seed))
    drawn = np.array([(measure(x[d], y[d]), measure(x[d], z[d])) for d in draws])
    one, two = measure(x, y), measure(x, z)
    ends = (np.nan, np.nan)
    # Where the effect itself may well be none, a ratio of two of them means nothing.
    if there := bool(np.isfinite(one) and np.isfinite(drawn[:, 0]).any()):
        low, high = np.nanpercentile(drawn[:, 0], (2.5, 97.5))
        if there := bool(low * high > 0):
            ends = tuple(np.nanpercentile(drawn[:, 1] / drawn[:, 0], (2.5, 97.5)))
    return {
        "before": one,
        "after": two,
        "ratio": two / one if there else np.nan,
        "ratio_low": float(ends[0]),
        "ratio_high": float(ends[1]),
    }


def _slope(cause: np.ndarray, values: np.ndarray) -> float:
    moved = cause - cause.mean()
    # A mean of equal ages may be off by rounding.
    return float(moved @ values / (moved @ moved)) if np.ptp(cause) > SAME else np.nan


def _cohen(cause: np.ndarray, values: np.ndarray) -> float:
    cases, controls = values[cause == 1], values[cause == 0]
    if min(len(cases), len(controls)) < 2:
        return np.nan
    pooled = np.sqrt((cases.var(ddof=1) + controls.var(ddof=1)) / 2)
    return float((cases.mean() - controls.mean()) / pooled) if pooled > SAME else np.nan


def travelling_table(pairs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Measure how near a person's scans at other sites come to the one at the reference.

    Parameters
    ----------
    pairs : pandas.DataFrame
        Of :func:`bids_harmony.evaluation.images.measure_pairs`, all units together.
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
    mean = pairs.groupby(["site", "way", "person"], sort=True)[["mae", "psnr", "ssim"]].mean()
    found = []
    rng = np.random.default_rng(seed)
    for (site, way), part in mean.groupby(level=["site", "way"]):
        table = part.droplevel(["site", "way"])
        draws = drawn_persons(table.index.to_numpy(), N_BOOTSTRAP, rng)
        drawn = [table["mae"].to_numpy()[d].mean() for d in draws]
        few = len(table) < LEAST_DRAWN
        row = {"site": site, "way": way, "n_persons": len(table), **table.mean().to_dict()}
        row["mae_low"], row["mae_high"] = (
            (np.nan, np.nan) if few else np.percentile(drawn, (2.5, 97.5))
        )
        if way in FROM_SCALED[1:]:
            before = mean.xs((site, SCALED), level=("site", "way"))["mae"]
            row["closer"] = float((table["mae"] < before[table.index]).mean())
        found.append(row)
    return pd.DataFrame(found)


def agreement_table(rows: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Measure how sites agree over persons scanned at all of them: ICC(2,1).

    Parameters
    ----------
    rows : pandas.DataFrame
        Of :func:`bids_harmony.evaluation.images.measure_scans`.
    predictions : pandas.DataFrame
        Of :func:`bids_harmony.evaluation.fit.predict_unit`, experiment ``sites``.

    Returns
    -------
    pandas.DataFrame
        ``measure`` (of :data:`bids_harmony.evaluation.images.ANATOMY`, or a target), ``way``,
        ``n_persons``, ``n_sites`` and ``icc``; empty where nobody was scanned at two sites.
    """
    tall = rows.melt(["person", "site", "way"], list(ANATOMY), "measure", "value")
    said = predictions.rename(
        columns={"test_site": "site", "target": "measure", "predicted": "value"}
    )
    tall = pd.concat([tall, said[tall.columns]])
    found = []
    for (name, way), part in tall.groupby(["measure", "way"], sort=True):
        wide = part.pivot_table(index="person", columns="site", values="value")
        # A site that no travelling person was at must not hide the others.
        wide = wide[wide.notna().sum(axis=1) > 1].dropna(axis=1, how="all").dropna()
        if wide.shape[1] > 1 and len(wide) > 1:
            found.append(
                {"measure": name, "way": way, "n_persons": len(wide), "n_sites": wide.shape[1],
                 "icc": icc(wide.to_numpy(float))}
            )  # fmt: skip
    return pd.DataFrame(found)


def site_probe(
    mapped: np.ndarray,
    reference: np.ndarray,
    mapped_ages: np.ndarray,
    reference_ages: np.ndarray,
    seed: int,
    persons: np.ndarray | None = None,
) -> float:
    """Cross-validated balanced accuracy of telling mapped scans from the reference's.

    A logistic regression on :data:`bids_harmony.evaluation.images.FEATURES`; reference scans are
    weighed to the mapped scans' ages, so that age does not tell them apart.

    Parameters
    ----------
    mapped, reference : numpy.ndarray
        (scans, features).
    mapped_ages, reference_ages : numpy.ndarray
        Years, NaN where unknown.
    seed : int
        Seed of the folds.
    persons : numpy.ndarray, optional
        (mapped and reference scans,) whose scan each is: nobody is in two folds. Each scan is
        another person's when None.

    Returns
    -------
    float
        0 to 1; 0.5 is chance. NaN where there are fewer than four persons of a side.
    """
    truth = np.repeat([1, 0], [len(mapped), len(reference)])
    persons = np.arange(len(truth)) if persons is None else persons
    n_folds = min(4, *(len(np.unique(persons[truth == k])) // 2 for k in (0, 1)))
    if n_folds < 2:
        return np.nan
    weight = np.concatenate(
        [
            np.full(len(mapped), 1 / len(mapped)),
            np.mean([age_weights(reference_ages, age) for age in mapped_ages], axis=0),
        ]
    )
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    values, told = np.concatenate([mapped, reference]), np.full(len(truth), -1)
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for train, test in folds.split(values, truth, persons):
        # Where persons have many scans a part may lack one side, or a fold anybody.
        if len(test) and len(np.unique(truth[train])) == 2:
            weights = len(truth) * weight[train]
            probe.fit(values[train], truth[train], logisticregression__sample_weight=weights)
            told[test] = probe.predict(values[test])
    right = [weight * (told == k) for k in (0, 1)]
    tried = [weight[(truth == k) & (told >= 0)].sum() for k in (0, 1)]
    if not all(tried):
        return np.nan
    return float(np.mean([right[k][truth == k].sum() / tried[k] for k in (0, 1)]))


def age_weights(ages: np.ndarray, age: float) -> np.ndarray:
    """Weights of reference scans around an age; even where ages are unknown or far away."""
    if np.isnan(age):
        return np.full(len(ages), 1 / len(ages))
    distance = (np.nan_to_num(ages, nan=np.inf) - age) / AGE_WIDTH
    weight = np.exp(-0.5 * np.minimum(distance**2, 1e3)) + 1e-6
    return np.asarray(weight / weight.sum())


def at_ages(quantiles: list[np.ndarray], known: np.ndarray, ages: np.ndarray) -> np.ndarray:
    """Mean of the reference's quantiles, its scans weighed to a site's ages."""
    weights = np.mean([age_weights(known, age) for age in ages], axis=0)
    return np.asarray(np.einsum("s,sgq->gq", weights, np.array(quantiles)))
