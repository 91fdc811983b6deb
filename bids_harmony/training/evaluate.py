"""Figures of a bundle on scans that took no part in making it, with n and intervals.

Scans are read, mapped and measured one by one, as the participant level does it, so that no more
than one is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from bids_harmony.evaluation.persons import coverage, drawn_persons
from bids_harmony.models.apply import cycle_error, map_volume, predict_slices
from bids_harmony.models.slices import uncrop
from bids_harmony.qc.harmonization import (
    brain_histogram,
    harmonization_metrics,
    histogram_distance,
    mean_histogram,
)
from bids_harmony.qc.metrics import rounded
from bids_harmony.qc.style import StyleReference, style_features
from bids_harmony.training.data import Box, TrainingSet

N_QUANTILES = 256
N_BOOTSTRAP = 2000
#: With fewer persons, or persons of a class, drawing them again says nothing; and with fewer a
#: correlation does not.
LEAST_DRAWN, LEAST_R = 3, 5
#: Values that differ by less are the same but for rounding.
SAME = 1e-9
#: The first two learn nothing from the scans they are used on.
UNTRAINED_METHODS = ("none", "histogram_matching")
METHODS = (*UNTRAINED_METHODS, "harmonized")
#: Scans of a site that its looks are measured on.
MAX_LOOKS = 200


def volume_of(data: TrainingSet, scan: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a scan as a volume on the template grid, with its mask."""
    stack, mask = data.stack(scan)
    return uncrop(stack, data.box, data.shape), uncrop(mask, data.box, data.shape)


@dataclass(frozen=True)
class Looks:
    """How the scans used in training look.

    Attributes
    ----------
    style : StyleReference
        Of every site.
    histograms : dict of str to dict
        Mean histogram of every site.
    quantiles : numpy.ndarray
        (256,) mean intensity quantiles of the reference, for histogram matching.
    """

    style: StyleReference
    histograms: dict[str, dict[str, list[float]]]
    quantiles: np.ndarray


def measure_looks(
    data: TrainingSet, among: np.ndarray, reference: str, seed: int, grey: float
) -> Looks:
    """Measure the looks of the sites on at most :data:`MAX_LOOKS` scans of each."""
    rng = np.random.default_rng(seed)
    features, labels, quantiles = [], [], []
    histograms: dict[str, list[dict[str, list[float]]]] = {}
    for site in np.unique(data.sites[among]):
        here = data.site_scans(str(site), among)
        for i in np.sort(rng.permutation(here)[:MAX_LOOKS]):
            volume, mask = volume_of(data, int(i))
            features.append(style_features(volume, mask, abs(data.affine[0, 0]), grey))
            labels.append(str(site))
            histograms.setdefault(str(site), []).append(brain_histogram(volume, mask))
            if site == reference:
                quantiles.append(np.quantile(volume[mask], np.linspace(0, 1, N_QUANTILES)))
    return Looks(
        StyleReference.fit(np.array(features), labels),
        {site: mean_histogram(rows) for site, rows in histograms.items()},
        np.mean(quantiles, axis=0),
    )


def match_histogram(volume: np.ndarray, mask: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Give a scan the reference's intensity distribution: the published comparator.

    Parameters
    ----------
    volume, mask : numpy.ndarray
        Intensities and mask, of any shape.
    quantiles : numpy.ndarray
        Of :class:`Looks`.

    Returns
    -------
    numpy.ndarray
        float32, background 0.
    """
    out = np.zeros(volume.shape, np.float32)
    own = np.quantile(volume[mask], np.linspace(0, 1, len(quantiles)))
    out[mask] = np.interp(volume[mask], own, quantiles)
    return out


@dataclass(frozen=True)
class Models:
    """What is measured: networks with their weights as stored.

    Attributes
    ----------
    forward, backward : torch.nn.Module
        The maps.
    sources : list of str
        Sites of the backward map, in its order.
    predictors : dict of str to list of torch.nn.Module
        Networks of each target's ensemble.
    box : tuple
        Rows and columns the networks were trained on.
    slice_mm : tuple of float
        Heights of the slices the predictors see.
    grey : float
        The contract's value of grey matter.
    """

    forward: nn.Module
    backward: nn.Module
    sources: list[str]
    box: Box
    slice_mm: tuple[float, float]
    grey: float
    predictors: dict[str, list[nn.Module]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One scan under each of :data:`METHODS`.

    Attributes
    ----------
    changes : dict
        The guard's measures and the distances from the reference's histogram.
    predicted : dict
        By target and method, the median over slices of the network's output.
    """

    changes: dict[str, float | None]
    predicted: dict[str, dict[str, float]]


def measure_scan(
    data: TrainingSet, scan: int, models: Models, looks: Looks, reference: str
) -> Measured:
    """Map a scan, measure what changed, and predict from it in each way of preparing it."""
    volume, mask = volume_of(data, scan)
    grid = (mask, data.affine, models.box)
    harmonized = map_volume(models.forward, volume, *grid)
    matched = match_histogram(volume, mask, looks.quantiles)
    histogram = looks.histograms[reference]
    changes = harmonization_metrics(volume, harmonized, mask, data.affine, histogram, models.grey)
    features = style_features(volume, mask, abs(data.affine[0, 0]), models.grey)
    site, distance = looks.style.nearest(features)
    changes["training_distance"] = rounded(distance)
    number = models.sources.index(looks.style.nearest(features, models.sources)[0])
    cycled = cycle_error(
        (models.forward, models.backward),
        volume,
        None if site == reference else harmonized,
        *grid,
        number,
    )
    changes["harmonized_cycle_error"] = rounded(cycled)
    changes["reference_distance_histogram_matching"] = rounded(
        histogram_distance(brain_histogram(matched, mask), histogram)
    )
    ways = zip(METHODS, (volume, matched, harmonized), strict=True)
    predicted: dict[str, dict[str, float]] = {target: {} for target in models.predictors}
    for method, image in ways:
        for target, members in models.predictors.items():
            values = predict_slices(members, image, data.affine, models.box, models.slice_mm)
            predicted[target][method] = float(np.median(values))
    return Measured(changes, predicted)


def figures(
    predicted: np.ndarray,
    truth: np.ndarray,
    binary: bool,
    rng: np.random.Generator,
    persons: np.ndarray | None = None,
) -> dict[str, Any]:
    """Figures of predictions with 95 % bootstrap intervals over persons.

    Parameters
    ----------
    predicted, truth : numpy.ndarray
        (scans,) predicted and true values; logits and 0/1 when ``binary``.
    binary : bool
        Area under the curve and balanced accuracy, instead of mean absolute error, bias (mean
        error) and correlation.
    rng : numpy.random.Generator
        Draws the bootstrap samples.
    persons : numpy.ndarray, optional
        (scans,) whose scan it is; each another person's when None.

    Returns
    -------
    dict
        ``n`` scans, ``n_persons``, each figure, and its interval under the name with ``_95``. What
        cannot be had is None: a correlation below :data:`LEAST_R` persons, a class without scans,
        an interval below :data:`LEAST_DRAWN` persons, or persons of a class.
    """
    persons = np.arange(len(truth)) if persons is None else persons
    n_persons = len(np.unique(persons))

    def measure(p: np.ndarray, t: np.ndarray) -> dict[str, float]:
        return class_figures(p, t) if binary else value_figures(p, t)

    values = measure(predicted, truth)
    enough = can_be_drawn(persons, truth, binary)
    draws = drawn_persons(persons, N_BOOTSTRAP, rng) if enough else []
    drawn = [measure(predicted[d], truth[d]) for d in draws]
    out: dict[str, Any] = {"n": len(truth), "n_persons": n_persons}
    for name, value in values.items():
        known = np.isfinite(value) and (name != "r" or n_persons >= LEAST_R)
        out[name] = round(float(value), 3) if known else None
        samples = [row[name] for row in drawn if known and np.isfinite(row[name])]
        ends = np.percentile(samples, (2.5, 97.5)) if samples else ()
        out[f"{name}_95"] = [round(float(v), 3) for v in ends] or None
    return out


def can_be_drawn(persons: np.ndarray, truth: np.ndarray, binary: bool) -> bool:
    """Whether there are :data:`LEAST_DRAWN` persons to draw again, in each class of two.

    One person is in every draw that has his class: an interval would leave out that another
    person might be elsewhere.
    """
    groups = [persons[truth == k] for k in (0, 1)] if binary else [persons]
    return min(len(np.unique(group)) for group in groups) >= LEAST_DRAWN


def value_figures(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean absolute error, bias and correlation (NaN below five scans or without spread)."""
    error = predicted - truth
    r = np.nan
    if len(truth) >= LEAST_R and min(np.ptp(predicted), np.ptp(truth)) > SAME:
        r = float(np.corrcoef(predicted, truth)[0, 1])
    return {"mae": float(np.abs(error).mean()), "bias": float(error.mean()), "r": r}


def class_figures(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Area under the curve and balanced accuracy of logits; NaN without both classes."""
    cases, controls = score[truth == 1], score[truth == 0]
    if not len(cases) or not len(controls):
        return {"auc": np.nan, "balanced_accuracy": np.nan}
    return {
        "auc": area_under_curve(cases, controls),
        "balanced_accuracy": float(((cases > 0).mean() + (controls <= 0).mean()) / 2),
    }


def area_under_curve(cases: np.ndarray, controls: np.ndarray) -> float:
    """Chance that a case scores above a control, ties counting half."""
    difference = cases[:, None] - controls[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def target_figures(
    data: TrainingSet,
    test: np.ndarray,
    measured: Mapping[int, Measured],
    target: str,
    truth: np.ndarray,
    reference: str,
    *,
    binary: bool,
    seed: int,
    say: Callable[[str], None],
    half_width: float | None = None,
) -> dict[str, Any]:
    """Figures of one target at each site, by three ways of preparing the scans.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    test : numpy.ndarray
        Numbers of the scans that took no part in training.
    measured : mapping
        Scan number to :class:`Measured`: the test scans, and the source sites' others.
    target : str
        Name of the target.
    truth : numpy.ndarray
        (scans,) true values, NaN where unknown.
    reference : str
        Reference site.
    binary : bool
        See :func:`figures`.
    seed : int
        Seed of the bootstrap.
    say : callable
        Takes a line of progress.
    half_width : float, optional
        Of the target's interval, whose ``coverage`` is then measured too: the mean over persons of
        the share of their scans whose interval holds the truth, with Wilson's 95 % interval.

    Returns
    -------
    dict
        Per site ``held_out`` figures for the methods of :data:`METHODS`; for source sites also
        ``all``, for the methods that learnt nothing from these scans (the harmonizer did), without
        those of persons whom the predictor saw at the reference.
    """
    known = np.array([i for i in measured if np.isfinite(truth[i])], dtype=int)
    sites: dict[str, Any] = {}
    learnt = (data.sites == reference) & ~np.isin(np.arange(len(data)), test)
    unseen = ~np.isin(data.persons, data.persons[learnt])
    for site in np.unique(data.sites[known]):
        here = data.site_scans(str(site), known)
        groups: dict[str, tuple[np.ndarray, Sequence[str]]] = {
            "held_out": (here[np.isin(here, test)], METHODS)
        }
        if site != reference:
            groups["all"] = (here[unseen[here]], UNTRAINED_METHODS)
        sites[str(site)] = {}
        for name, (scans, methods) in groups.items():
            for method in methods if len(scans) else ():
                values = np.array([measured[int(i)].predicted[target][method] for i in scans])
                row = figures(
                    values, truth[scans], binary, np.random.default_rng(seed), data.persons[scans]
                )
                if half_width is not None:
                    inside = np.abs(values - truth[scans]) <= half_width
                    share, *ends = (round(v, 3) for v in coverage(inside, data.persons[scans]))
                    row |= {"coverage": share, "coverage_95": ends}
                sites[str(site)].setdefault(name, {})[method] = row
        for name, found in sites[str(site)].items():
            text = "; ".join(
                f"{method} " + ", ".join(f"{k} {v}" for k, v in row.items() if "_95" not in k)
                for method, row in found.items()
            )
            say(f"{target}, {site}, {name}: {text}")
    return sites


def summarize_changes(data: TrainingSet, measured: Mapping[int, Measured]) -> dict[str, Any]:
    """Median per site of what harmonization did to the images of the given scans."""
    summary: dict[str, Any] = {}
    for site in sorted({str(data.sites[i]) for i in measured}):
        rows = [m.changes for i, m in measured.items() if data.sites[i] == site]
        summary[site] = {"n": len(rows)}
        for name in rows[0]:
            values = [value for row in rows if (value := row[name]) is not None]
            if values:
                summary[site][name] = round(float(np.median(values)), 5)
    return summary
