"""Tables of what harmonization did to images: looks and anatomy, biology, travelling heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.evaluation.images import ANATOMY
from bids_harmony.evaluation.prepare import FROM_SCALED, SCALED
from bids_harmony.evaluation.statistics import N_BOOTSTRAP, drawn_persons, icc
from bids_harmony.qc.style import FEATURES
from bids_harmony.training.evaluate import LEAST_DRAWN
from bids_harmony.training.select import at_ages, site_probe
from bids_harmony.training.targets import Target

#: Exchanges of labels for the site probe's p.
N_PROBES = 100
CHANGES = (
    "harmonized_change", "harmonized_edge_agreement", "harmonized_csf_change",
    "harmonized_gm_change", "harmonized_wm_change", "harmonized_ventricle_change",
    "segmented_ventricle_change", "segmented_overlap",
)  # fmt: skip
#: Fewest scans that a slope or an effect is looked for in.
LEAST_SCANS = 8


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
        ``site``, ``way``, ``n_scans``; ``tissue_distance``, Wasserstein-1 distance of the site's
        mean quantiles from the reference's at the same ages, and what part of that of the
        tissue-scaled scans is left; ``site_probe``, cross-validated balanced accuracy of telling
        the site's scans from the reference's (0.5 is chance), with ``site_probe_p``; and medians
        of the guard's measures.
    """
    first = rows[rows["seed"] == rows["seed"].min()]
    home = first[(first["site"] == reference) & (first["way"] == SCALED)]
    found = []
    for site in sorted(set(first["site"]) - {reference}):
        before = np.nan
        for way in _ways(first):
            here = first[(first["site"] == site) & (first["way"] == way)]
            wanted = at_ages(
                list(home["quantiles"]), home["age"].to_numpy(), here["age"].to_numpy()
            )
            distance = float(np.abs(np.mean(list(here["quantiles"]), axis=0) - wanted).mean())
            before = distance if way == SCALED else before
            probe, p = _probe(here, home, seed)
            found.append(
                {
                    "site": site,
                    "way": way,
                    "n_scans": len(here),
                    "tissue_distance": distance,
                    "distance_left": distance / max(before, 1e-6),
                    "site_probe": probe,
                    "site_probe_p": p,
                    **{name: pd.to_numeric(here[name]).median() for name in CHANGES},
                }
            )
    return pd.DataFrame(found)


def _ways(rows: pd.DataFrame) -> list[str]:
    """Ways that are there; the first is tissue scaling."""
    return [way for way in FROM_SCALED if way in set(rows["way"])]


def _probe(here: pd.DataFrame, home: pd.DataFrame, seed: int) -> tuple[float, float]:
    """Balanced accuracy of the site probe, and its p by exchanging labels."""
    looks = np.concatenate([part[list(FEATURES)].to_numpy(float) for part in (here, home)])
    ages = np.concatenate([part["age"].to_numpy(float) for part in (here, home)])
    n = len(here)
    if min(n, len(home)) < 4:
        return np.nan, np.nan

    def probe(order: np.ndarray) -> float:
        a, b = order[:n], order[n:]
        return site_probe(looks[a], looks[b], ages[a], ages[b], seed)

    observed = probe(np.arange(len(looks)))
    rng = np.random.default_rng(seed)
    exchanged = [probe(rng.permutation(len(looks))) for _ in range(N_PROBES)]
    return observed, (1 + sum(v >= observed for v in exchanged)) / (N_PROBES + 1)


def biology_table(rows: pd.DataFrame, targets: Sequence[Target], seed: int) -> pd.DataFrame:
    """Compare what differs between persons of a site before and after: age and diagnosis.

    Returns
    -------
    pandas.DataFrame
        ``site``, ``way``, ``measure`` (of :data:`bids_harmony.evaluation.images.ANATOMY`),
        ``effect`` (``age slope``: per year; else a two-class column: Cohen's d), ``n_scans``,
        ``before``, ``after`` and ``ratio``, after over before, with its 95 % interval over
        persons. A ratio far from 1 means that harmonization took away, or added, what differs
        between persons; where the effect before is nearly 0 it says nothing, and is missing.
    """
    first = rows[rows["seed"] == rows["seed"].min()]
    effects: dict[str, tuple[np.ndarray, Callable[[np.ndarray, np.ndarray], float]]] = {}
    ages = first.drop_duplicates("scan").set_index("scan")["age"]
    effects["age slope"] = (ages.reindex(range(int(first["scan"].max()) + 1)).to_numpy(), _slope)
    for target in targets:
        if target.binary:
            effects[target.column] = (target.values, _cohen)
    found = []
    for site, part in first.groupby("site"):
        ways = {way: g.set_index("scan").sort_index() for way, g in part.groupby("way")}
        scans = ways[SCALED].index.to_numpy()
        for effect, (values, measure) in effects.items():
            known = scans[np.isfinite(values[scans])]
            if len(known) < LEAST_SCANS or np.ptp(values[known]) == 0:
                continue
            persons = ways[SCALED].loc[known, "participant"].to_numpy()
            for name in ANATOMY:
                before = ways[SCALED].loc[known, name].to_numpy(float)
                for way in _ways(first)[1:]:
                    after = ways[way].loc[known, name].to_numpy(float)
                    found.append(
                        {"site": site, "way": way, "measure": name, "effect": effect}
                        | _ratio(values[known], before, after, persons, measure, seed)
                    )
    return pd.DataFrame(found)


def _ratio(
    cause: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    persons: np.ndarray,
    measure: Callable[[np.ndarray, np.ndarray], float],
    seed: int,
) -> dict[str, Any]:
    draws = drawn_persons(persons, N_BOOTSTRAP, np.random.default_rng(seed))
    drawn = np.array([(measure(cause[d], before[d]), measure(cause[d], after[d])) for d in draws])
    one, two = measure(cause, before), measure(cause, after)
    # Where the effect itself may well be none, a ratio of two of them means nothing.
    low, high = np.nanpercentile(drawn[:, 0], (2.5, 97.5))
    there = np.isfinite(one) and low * high > 0
    ends = (np.nan, np.nan)
    if there:
        ends = tuple(np.nanpercentile(drawn[:, 1] / drawn[:, 0], (2.5, 97.5)))
    return {
        "n_scans": len(cause),
        "before": one,
        "after": two,
        "ratio": two / one if there else np.nan,
        "ratio_low": float(ends[0]),
        "ratio_high": float(ends[1]),
    }


def _slope(cause: np.ndarray, values: np.ndarray) -> float:
    moved = cause - cause.mean()
    return float(moved @ values / (moved @ moved)) if moved.any() else np.nan


def _cohen(cause: np.ndarray, values: np.ndarray) -> float:
    cases, controls = values[cause == 1], values[cause == 0]
    if min(len(cases), len(controls)) < 2:
        return np.nan
    pooled = np.sqrt((cases.var(ddof=1) + controls.var(ddof=1)) / 2)
    return float((cases.mean() - controls.mean()) / pooled) if pooled > 0 else np.nan


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
    mean = pairs.groupby(["site", "way", "participant"], sort=True)[["mae", "psnr", "ssim"]].mean()
    found = []
    rng = np.random.default_rng(seed)
    for (site, way), part in mean.groupby(level=["site", "way"]):
        table = part.droplevel(["site", "way"])
        draws = rng.integers(len(table), size=(N_BOOTSTRAP, len(table)))
        drawn = table["mae"].to_numpy()[draws].mean(axis=1)
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
    tall = rows.melt(["participant", "site", "way"], list(ANATOMY), "measure", "value")
    said = predictions.rename(
        columns={"test_site": "site", "target": "measure", "predicted": "value"}
    )
    tall = pd.concat([tall, said[tall.columns]])
    found = []
    for (name, way), part in tall.groupby(["measure", "way"], sort=True):
        wide = part.pivot_table(index="participant", columns="site", values="value").dropna()
        if wide.shape[1] > 1 and len(wide) > 1:
            found.append(
                {"measure": name, "way": way, "n_persons": len(wide), "n_sites": wide.shape[1],
                 "icc": icc(wide.to_numpy(float))}
            )  # fmt: skip
    return pd.DataFrame(found)
