"""Figures of a bundle on scans that took no part in making it, with n and intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bids_harmony.models.networks import Generator, SliceNetwork
from bids_harmony.models.slices import generator_input
from bids_harmony.qc.harmonization import (
    brain_histogram,
    harmonization_metrics,
    histogram_distance,
    mean_histogram,
)
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.predictor import predict_stack

N_QUANTILES = 256
N_BOOTSTRAP = 2000
#: The first two learn nothing from the scans they are used on.
UNTRAINED_METHODS = ("none", "histogram_matching")
METHODS = (*UNTRAINED_METHODS, "harmonized")


def reference_quantiles(data: TrainingSet, scans: np.ndarray) -> np.ndarray:
    """Mean intensity quantiles inside the mask over reference scans, for histogram matching."""
    levels = np.linspace(0, 1, N_QUANTILES)
    rows = [np.quantile(data.images[i][data.masks[i]].astype(np.float32), levels) for i in scans]
    return np.asarray(np.mean(rows, axis=0))


def match_histogram(stack: np.ndarray, mask: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Give a scan the reference's intensity distribution: the published comparator.

    Parameters
    ----------
    stack, mask : numpy.ndarray
        (slices, rows, columns) intensities and mask.
    quantiles : numpy.ndarray
        Of :func:`reference_quantiles`.

    Returns
    -------
    numpy.ndarray
        float32, background 0.
    """
    out = np.zeros(stack.shape, np.float32)
    own = np.quantile(stack[mask], np.linspace(0, 1, len(quantiles)))
    out[mask] = np.interp(stack[mask], own, quantiles)
    return out


def map_stack(
    network: Generator, stack: np.ndarray, mask: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """Apply the forward map to every slice of one scan."""
    with torch.inference_mode():
        x = torch.from_numpy(generator_input(stack, mask, heights))
        parts = [network(part)[:, 0].float().numpy() for part in torch.split(x, 16)]
    return np.concatenate(parts)


def age_figures(
    predicted: np.ndarray, age: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """Mean absolute error, bias and correlation with 95 % bootstrap intervals over scans.

    The correlation is None below five scans.
    """
    error = predicted - age
    draws = rng.integers(len(age), size=(N_BOOTSTRAP, len(age)))

    def interval(values: np.ndarray) -> list[float]:
        return [round(float(v), 2) for v in np.nanpercentile(values, (2.5, 97.5))]

    figures: dict[str, Any] = {
        "n": len(age),
        "mae": round(float(np.abs(error).mean()), 2),
        "mae_95": interval(np.abs(error)[draws].mean(axis=1)),
        "bias": round(float(error.mean()), 2),
        "bias_95": interval(error[draws].mean(axis=1)),
        "r": None,
        "r_95": None,
    }
    if len(age) >= 5:
        a, b = predicted[draws], age[draws]
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
        figures["r"] = round(float(np.corrcoef(predicted, age)[0, 1]), 3)
        figures["r_95"] = interval(r)
    return figures


@dataclass(frozen=True)
class Mapped:
    """Every scan of a training set after harmonization and after histogram matching.

    Attributes
    ----------
    harmonized, matched : numpy.ndarray
        Like the training set's ``images``.
    changes : list of dict
        Per scan, :func:`bids_harmony.qc.harmonization.harmonization_metrics` and the distance
        from the reference after histogram matching.
    """

    harmonized: np.ndarray
    matched: np.ndarray
    changes: list[dict[str, float | None]]


def map_all(data: TrainingSet, train_ref: np.ndarray, forward: Generator) -> Mapped:
    """Prepare every scan in each way, the reference being the given training scans."""
    quantiles = reference_quantiles(data, train_ref)
    histogram = mean_histogram(
        [brain_histogram(data.images[i].astype(np.float32), data.masks[i]) for i in train_ref]
    )
    harmonized, matched = np.zeros_like(data.images), np.zeros_like(data.images)
    changes = []
    for i in range(len(data.sites)):
        stack, mask = data.images[i].astype(np.float32), data.masks[i]
        harmonized[i] = map_stack(forward, stack, mask, data.heights)
        matched[i] = match_histogram(stack, mask, quantiles)
        distance = histogram_distance(
            brain_histogram(matched[i].astype(np.float32), mask), histogram
        )
        changes.append(
            harmonization_metrics(stack, harmonized[i].astype(np.float32), mask, histogram)
            | {"reference_distance_histogram_matching": round(distance, 5)}
        )
    return Mapped(harmonized, matched, changes)


def evaluate_age(
    data: TrainingSet,
    held: np.ndarray,
    reference: str,
    mapped: Mapped,
    members: list[SliceNetwork],
    middle: np.ndarray,
    *,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Predict every held-out and every source scan by three ways of preparing it.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    held : numpy.ndarray
        Boolean: scans that took no part in training.
    reference : str
        Reference site.
    mapped : Mapped
        The scans after harmonization and histogram matching.
    members : list of SliceNetwork
        The predictor, with the weights as stored.
    middle : numpy.ndarray
        Numbers of the slices the predictor sees.
    seed : int
        Seed of the bootstrap.
    say : callable
        Takes a line of progress.

    Returns
    -------
    dict
        Per site ``held_out`` figures for the methods of :data:`METHODS`; for source sites also
        ``all``, for the methods that learnt nothing from these scans (the harmonizer did).
    """
    wanted = np.flatnonzero((held | (data.sites != reference)) & ~np.isnan(data.ages))
    predicted = {method: np.full(len(data.sites), np.nan) for method in METHODS}
    ways = zip(METHODS, (data.images, mapped.matched, mapped.harmonized), strict=True)
    for method, images in ways:
        for i in wanted:
            stack = images[i, middle].astype(np.float32)
            values = predict_stack(members, stack, data.heights[middle])
            predicted[method][i] = np.median(values)
    sites: dict[str, Any] = {}
    for site in np.unique(data.sites[wanted]):
        here = wanted[data.sites[wanted] == site]
        groups: dict[str, tuple[np.ndarray, Sequence[str]]] = {
            "held_out": (here[held[here]], METHODS)
        }
        if site != reference:
            groups["all"] = (here, UNTRAINED_METHODS)
        sites[str(site)] = {
            name: {
                method: age_figures(
                    predicted[method][scans], data.ages[scans], np.random.default_rng(seed)
                )
                for method in methods
            }
            for name, (scans, methods) in groups.items()
            if len(scans)
        }
        for name, figures in sites[str(site)].items():
            text = ", ".join(f"{m} MAE {figures[m]['mae']} r {figures[m]['r']}" for m in figures)
            say(f"{site} {name} (n {figures['none']['n']}): {text}")
    return sites


def summarize_changes(data: TrainingSet, scans: np.ndarray, mapped: Mapped) -> dict[str, Any]:
    """Median per site of what harmonization did to the images of the given scans."""
    summary: dict[str, Any] = {}
    for site in np.unique(data.sites[scans]):
        rows = [mapped.changes[i] for i in scans if data.sites[i] == site]
        summary[str(site)] = {"n": len(rows)}
        for name in rows[0]:
            values = [value for row in rows if (value := row[name]) is not None]
            if values:
                summary[str(site)][name] = round(float(np.median(values)), 5)
    return summary
