"""Choose among the harmonizer's checkpoints: anatomy first, then likeness to the reference.

Image similarity cannot choose: it rises while ventricles shrink by half and come back
(science.md §9). So a checkpoint must keep the anatomy of the validation scans; among those that
do, mapped scans should have the reference's intensities within each tissue, and a simple
classifier should find it hard to tell them from the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from bids_harmony.models.apply import map_volume
from bids_harmony.qc.guard import MEASURES, excess
from bids_harmony.qc.harmonization import harmonization_metrics
from bids_harmony.qc.style import style_features
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.evaluate import volume_of
from bids_harmony.training.splits import TEST, VALIDATION

#: Measures that decide whether a checkpoint keeps the anatomy.
ANATOMY = tuple(name for name in MEASURES if name.endswith(("agreement", "_change"))
                and name != "harmonized_change")  # fmt: skip
#: Scans of each site that are mapped by every checkpoint, and reference scans they are held
#: against.
MAX_SOURCE, MAX_REFERENCE = 12, 36
#: Part of the validation scans that may lie beyond the widest limit without a checkpoint failing.
MAX_BEYOND = 0.05
QUANTILES = np.linspace(0.01, 0.99, 99)
#: Reference scans are weighed by age around a source scan's, as in training (years).
AGE_WIDTH = 5.0


def choose_checkpoint(
    data: TrainingSet,
    split: np.ndarray,
    reference: str,
    steps: Sequence[int],
    load: Callable[[int], nn.Module],
    *,
    grey: float,
    seed: int,
    say: Callable[[str], None],
) -> tuple[int, list[dict[str, Any]]]:
    """Score the forward map after each of some steps on validation scans.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    split : numpy.ndarray
        (scans,) ``train``, ``validation`` or ``test``. Test scans are not looked at; where a site
        has few validation scans, training scans fill up.
    reference : str
        Reference site.
    steps : sequence of int
        Steps after which the map was kept.
    load : callable
        Gives the forward map for a step.
    grey : float
        The contract's value of grey matter.
    seed : int
        Seed of the scans' choice and of the probe's folds.
    say : callable
        Takes a line of progress.

    Returns
    -------
    step : int
        The eligible checkpoint with the lowest score; where none is eligible, the one that
        violates the anatomy least.
    table : list of dict
        Per checkpoint ``step``, ``eligible``, ``violation`` (greatest median of an anatomy
        measure over its harmless size, at any site), ``beyond`` (share of scans beyond the widest
        limits), ``tissue_distance`` (relative to no map), ``probe`` (balanced accuracy, 0.5 is
        chance) and ``score``.
    """
    scans = {
        str(site): _some(data, split, str(site), MAX_SOURCE, seed)
        for site in np.unique(data.sites[split != TEST])
        if site != reference
    }
    targets = _some(data, split, reference, MAX_REFERENCE, seed)
    ages = data.ages[targets]
    zoom = abs(float(data.affine[0, 0]))
    tissues = np.array([_tissue_quantiles(*volume_of(data, int(i)), None, grey) for i in targets])
    styles = np.array([style_features(*volume_of(data, int(i)), zoom, grey) for i in targets])
    sources = np.concatenate(list(scans.values()))
    wanted = {int(i): _at_age(tissues, ages, data.ages[i]) for i in sources}
    before = _mean_distance(
        {int(i): _tissue_quantiles(*volume_of(data, int(i)), None, grey) for i in sources}, wanted
    )
    table = []
    for step in steps:
        network = load(step)
        rows, found, looks = [], {}, []
        for i in sources:
            volume, mask = volume_of(data, int(i))
            mapped = map_volume(network, volume, mask, data.affine, data.box)
            rows.append(harmonization_metrics(volume, mapped, mask, data.affine, grey=grey))
            found[int(i)] = _tissue_quantiles(mapped, mask, volume, grey)
            looks.append(style_features(mapped, mask, zoom, grey))
        violation, beyond = anatomy(rows, data.sites[sources])
        distance = _mean_distance(found, wanted) / max(before, 1e-6)
        probe = site_probe(np.array(looks), styles, data.ages[sources], ages, seed)
        table.append(
            {
                "step": int(step),
                "eligible": bool(violation <= 1 and beyond <= MAX_BEYOND),
                "violation": round(violation, 3),
                "beyond": round(beyond, 3),
                "tissue_distance": round(distance, 4),
                "probe": round(probe, 3),
                # Both terms are 0 where harmonization is perfect and about 1 where it did nothing.
                "score": round(distance + max(2 * probe - 1, 0.0), 4),
            }
        )
        say(f"checkpoint {table[-1]}")
    chosen = min(table, key=lambda row: (
        not row["eligible"], row["score"] if row["eligible"] else row["violation"], row["step"]
    ))  # fmt: skip
    if not chosen["eligible"]:
        say(
            "Warning: no checkpoint keeps the anatomy of the validation scans within the limits; "
            f"step {chosen['step']} comes nearest."
        )
    return int(chosen["step"]), table


def anatomy(rows: Sequence[dict[str, float | None]], sites: np.ndarray) -> tuple[float, float]:
    """Measure how far a map changes anatomy.

    Parameters
    ----------
    rows : sequence of dict
        :func:`bids_harmony.qc.harmonization.harmonization_metrics` of each scan.
    sites : numpy.ndarray
        Their sites.

    Returns
    -------
    violation : float
        Greatest median over a site's scans of a measure over its harmless size
        (:class:`bids_harmony.qc.guard.Bounds`); signed changes that cancel are none.
    beyond : float
        Share of scans with a measure beyond the widest limit.
    """
    violation, beyond = 0.0, np.zeros(len(rows), bool)
    for name in ANATOMY:
        values = np.array([np.nan if row[name] is None else row[name] for row in rows], float)
        sizes = np.array([excess(name, v) for v in values])
        beyond |= sizes > MEASURES[name].most
        for site in np.unique(sites):
            here = values[(sites == site) & np.isfinite(values)]
            if here.size:
                middle = excess(name, float(np.median(here)))
                violation = max(violation, middle / MEASURES[name].least)
    return violation, float(beyond.mean())


def site_probe(
    mapped: np.ndarray,
    reference: np.ndarray,
    mapped_ages: np.ndarray,
    reference_ages: np.ndarray,
    seed: int,
) -> float:
    """Cross-validated balanced accuracy of telling mapped scans from the reference's.

    A logistic regression on :func:`bids_harmony.qc.style.style_features`; reference scans are
    weighed to the mapped scans' ages, so that age does not tell them apart.

    Parameters
    ----------
    mapped, reference : numpy.ndarray
        (scans, features).
    mapped_ages, reference_ages : numpy.ndarray
        Years, NaN where unknown.
    seed : int
        Seed of the folds.

    Returns
    -------
    float
        0 to 1; 0.5 is chance. 0.5 also where there are fewer than four scans of a side.
    """
    n_folds = min(4, len(mapped) // 2, len(reference) // 2)
    if n_folds < 2:
        return 0.5
    weight = np.concatenate(
        [
            np.full(len(mapped), 1 / len(mapped)),
            np.mean([_age_weights(reference_ages, age) for age in mapped_ages], axis=0),
        ]
    )
    truth = np.repeat([1, 0], [len(mapped), len(reference)])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    told = cross_val_predict(
        probe,
        np.concatenate([mapped, reference]),
        truth,
        cv=folds,
        params={"logisticregression__sample_weight": len(truth) * weight},
    )
    return float(
        np.mean([(weight * (told == truth))[truth == k].sum() / weight[truth == k].sum()
                 for k in (0, 1)])
    )  # fmt: skip


def _some(data: TrainingSet, split: np.ndarray, site: str, most: int, seed: int) -> np.ndarray:
    """Choose validation scans of a site, and training scans where these are few."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero((data.sites == site) & (split != TEST)))
    return np.sort(order[np.argsort(split[order] != VALIDATION, kind="stable")][:most])


def _tissue_quantiles(
    volume: np.ndarray, mask: np.ndarray, raw: np.ndarray | None, grey: float
) -> np.ndarray:
    """Quantiles of the intensities in each tissue, (3, 99); tissue is told on ``raw``."""
    values = volume[mask]
    before = values if raw is None else raw[mask]
    parts = np.digitize(before, (grey / 2, (1 + grey) / 2))
    return np.array(
        [
            np.quantile(values[parts == k], QUANTILES) if (parts == k).any() else 0 * QUANTILES
            for k in range(3)
        ]
    )


def _age_weights(ages: np.ndarray, age: float) -> np.ndarray:
    """Weights of reference scans around an age; even where ages are unknown or far away."""
    if np.isnan(age):
        return np.full(len(ages), 1 / len(ages))
    distance = (np.nan_to_num(ages, nan=np.inf) - age) / AGE_WIDTH
    weight = np.exp(-0.5 * np.minimum(distance**2, 1e3)) + 1e-6
    return np.asarray(weight / weight.sum())


def _at_age(tissues: np.ndarray, ages: np.ndarray, age: float) -> np.ndarray:
    """Mean of the reference's tissue quantiles at an age."""
    return np.asarray(np.einsum("s,stq->tq", _age_weights(ages, age), tissues))


def _mean_distance(found: dict[int, np.ndarray], wanted: dict[int, np.ndarray]) -> float:
    """Mean over scans and tissues of the Wasserstein-1 distance of two sets of quantiles."""
    return float(np.mean([np.abs(found[i] - wanted[i]).mean() for i in found]))
