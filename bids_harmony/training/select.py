"""Choose among the harmonizer's checkpoints: anatomy first, then likeness to the reference.

Image similarity cannot choose: it rises while ventricles shrink by half and come back
(science.md §9). So a checkpoint must keep the anatomy of the validation scans, the reference's
among them, and what differs between the others; among those that do, a site's mapped scans should
on average have the reference's intensities, as a whole and within each tissue, and a simple
classifier should find it hard to tell them from the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from bids_harmony.models.apply import map_volume
from bids_harmony.qc.guard import MEASURES, excess
from bids_harmony.qc.harmonization import harmonization_metrics, ventricle_ml
from bids_harmony.qc.style import style_features
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.evaluate import volume_of
from bids_harmony.training.splits import TEST, VALIDATION

#: Measures that decide whether a checkpoint keeps the anatomy.
ANATOMY = tuple(
    name for name in MEASURES
    if name not in ("harmonized_change", "harmonized_cycle_error", "training_distance")
)  # fmt: skip
#: Scans of each site that are mapped by every checkpoint: at most, at most of all sources
#: together, at least. And reference scans they are held against.
MAX_SOURCE, MAX_SOURCES, LEAST_SOURCE, MAX_REFERENCE = 12, 60, 3, 36
#: Correlation over scans of the fluid in the middle of the brain, by one limit before and after: a
#: map that gives every scan the same share of dark voxels wipes out what differs between people.
LEAST_R = 0.95
#: Greatest violation of the anatomy, where 1 is what is harmless in one scan: what moves a site's
#: median moves every comparison between sites, and validation scans are few.
MAX_VIOLATION = 0.5
#: Part of the validation scans that may lie beyond the widest limit without a checkpoint failing.
MAX_BEYOND = 0.05
#: A chosen map with this score or more hardly changes anything (2: nothing); without a probe, 1
#: less.
IDLE = 1.8
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
        limits), ``ventricle_r`` (:data:`LEAST_R`; None below five scans), ``tissue_distance``
        (relative to no map), ``probe`` (balanced accuracy, 0.5 is chance; None with fewer than
        four persons of a side, which then count as not told apart) and ``score``.
    """
    sites = sorted(set(data.sites[split != TEST].tolist()) - {reference})
    most = max(min(MAX_SOURCE, MAX_SOURCES // len(sites)), LEAST_SOURCE)
    scans = {site: _some(data, split, site, most, seed) for site in sites}
    sources = np.concatenate(list(scans.values()))
    targets = _some(data, split, reference, MAX_REFERENCE, seed)
    judged = np.concatenate([sources, _some(data, split, reference, most, seed)])
    zoom = abs(float(data.affine[0, 0]))
    styles = np.array([style_features(*volume_of(data, int(i)), zoom, grey) for i in targets])
    quantiles = {
        int(i): tissue_quantiles(*volume_of(data, int(i)), grey) for i in (*sources, *targets)
    }
    wanted = {
        site: at_ages([quantiles[int(i)] for i in targets], data.ages[targets], data.ages[here])
        for site, here in scans.items()
    }
    before = _distance(quantiles, scans, wanted)
    table: list[dict[str, Any]] = []
    for step in steps:
        network = load(step)
        rows, found, looks, fluid = [], {}, [], []
        for i in judged:
            volume, mask = volume_of(data, int(i))
            mapped = map_volume(network, volume, mask, data.affine, data.box)
            rows.append(harmonization_metrics(volume, mapped, mask, data.affine, grey=grey))
            if data.sites[i] == reference:  # these need nothing
                continue
            found[int(i)] = tissue_quantiles(mapped, mask, grey)
            looks.append(style_features(mapped, mask, zoom, grey))
            fluid.append([ventricle_ml(v, mask, data.affine, grey / 2) for v in (volume, mapped)])
        violation, beyond = anatomy(rows, data.sites[judged])
        kept = _correlation(np.array(fluid))
        distance = _distance(found, scans, wanted) / max(before, 1e-6)
        probe = site_probe(
            np.array(looks), styles, data.ages[sources], data.ages[targets], seed,
            data.persons[np.concatenate([sources, targets])],
        )  # fmt: skip
        table.append(
            {
                "step": int(step),
                "eligible": bool(
                    violation <= MAX_VIOLATION
                    and beyond <= MAX_BEYOND
                    and (kept is None or kept >= LEAST_R)
                ),
                "violation": round(violation, 3),
                "beyond": round(beyond, 3),
                "ventricle_r": kept if kept is None else round(kept, 3),
                "tissue_distance": round(distance, 4),
                "probe": None if np.isnan(probe) else round(probe, 3),
                # Both terms are 0 where harmonization is perfect and about 1 where it did nothing.
                "score": round(distance + max(2 * np.nan_to_num(probe) - 1, 0.0), 4),
            }
        )
        say(_spoken(table[-1]))
    chosen = min(table, key=lambda row: (
        not row["eligible"], row["score"] if row["eligible"] else row["violation"], row["step"]
    ))  # fmt: skip
    if not chosen["eligible"]:
        say(
            "Warning: no checkpoint keeps the anatomy of the validation scans within the limits; "
            f"step {chosen['step']} comes nearest."
        )
    elif chosen["score"] >= IDLE - (chosen["probe"] is None):
        say(
            "Note: the chosen map changes little: beyond the scaling of tissues there was little "
            "to learn, or the maps want more scans or --harmonizer-steps."
        )
    return int(chosen["step"]), table


def _spoken(row: dict[str, Any]) -> str:
    probe = "with too few persons" if row["probe"] is None else f"{row['probe']:.2f}"
    return (
        f"checkpoint after step {row['step']}: score {row['score']:.3f} (tissue distance "
        f"{row['tissue_distance']:.3f}, site probe {probe}), anatomy "
        f"{'kept' if row['eligible'] else 'not kept'} ({row['violation']:.2f} of what is harmless)"
    )


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
    persons: np.ndarray | None = None,
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


def _some(data: TrainingSet, split: np.ndarray, site: str, most: int, seed: int) -> np.ndarray:
    """Choose validation scans of a site, and training scans where these are few."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero((data.sites == site) & (split != TEST)))
    return np.sort(order[np.argsort(split[order] != VALIDATION, kind="stable")][:most])


def tissue_quantiles(volume: np.ndarray, mask: np.ndarray, grey: float) -> np.ndarray:
    """Quantiles of the brain's intensities, as a whole and in each tissue: (4, 99)."""
    values = volume[mask]
    parts = np.digitize(values, (grey / 2, (1 + grey) / 2))
    groups = [values, *(values[parts == k] for k in range(3))]
    return np.array([np.quantile(g, QUANTILES) if g.size else 0 * QUANTILES for g in groups])


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


def _distance(
    found: dict[int, np.ndarray], scans: dict[str, np.ndarray], wanted: dict[str, np.ndarray]
) -> float:
    """Mean Wasserstein-1 distance of each site's mean quantiles from those wanted.

    Means over a site's scans: that one person has more fluid than another is no fault.
    """
    means = {site: np.mean([found[int(i)] for i in here], axis=0) for site, here in scans.items()}
    return float(np.mean([np.abs(means[site] - wanted[site]).mean() for site in scans]))


def _correlation(pairs: np.ndarray) -> float | None:
    """Correlation of (scans, 2) values; None where it cannot be had."""
    if len(pairs) < 5 or (pairs.std(axis=0) < 1e-6).any():
        return None
    return float(np.corrcoef(pairs.T)[0, 1])
