"""Figures of a bundle on scans that took no part in making it, with n and intervals."""

from __future__ import annotations

from collections.abc import Callable
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
METHODS = ("none", "histogram_matching", "harmonized")


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


def evaluate_age(
    data: TrainingSet,
    held: np.ndarray,
    reference: str,
    forward: Generator,
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
    forward, members : Generator, list of SliceNetwork
        Forward map and predictor, with the weights as stored.
    middle : numpy.ndarray
        Numbers of the slices the predictor sees.
    seed : int
        Seed of the bootstrap.
    say : callable
        Takes a line of progress.

    Returns
    -------
    dict
        ``sites``: per site ``held_out`` figures and, for source sites, ``all`` (the harmonizer
        saw most of these scans, without ages) for the methods of :data:`METHODS`; and
        ``images``: what harmonization did to them.
    """
    train_ref = np.flatnonzero(~held & (data.sites == reference))
    quantiles = reference_quantiles(data, train_ref)
    histogram = mean_histogram(
        [brain_histogram(data.images[i].astype(np.float32), data.masks[i]) for i in train_ref]
    )
    heights = data.heights
    wanted = np.flatnonzero((held | (data.sites != reference)) & ~np.isnan(data.ages))
    predicted = {method: np.full(len(data.sites), np.nan) for method in METHODS}
    images: dict[int, dict[str, float | None]] = {}
    for i in wanted:
        stack, mask = data.images[i].astype(np.float32), data.masks[i]
        mapped = map_stack(forward, stack, mask, heights)
        matched = match_histogram(stack, mask, quantiles)
        for method, volume in zip(METHODS, (stack, matched, mapped), strict=True):
            values = predict_stack(members, volume[middle], heights[middle])
            predicted[method][i] = np.median(values)
        images[int(i)] = harmonization_metrics(stack, mapped, mask, histogram) | {
            "reference_distance_histogram_matching": round(
                histogram_distance(brain_histogram(matched, mask), histogram), 5
            )
        }
    sites: dict[str, Any] = {}
    for site in np.unique(data.sites[wanted]):
        here = wanted[data.sites[wanted] == site]
        groups = {"held_out": here[held[here]], "all": here}
        if site == reference or not len(groups["held_out"]):
            groups.pop("all" if site == reference else "held_out")
        sites[str(site)] = {
            name: {
                method: age_figures(
                    predicted[method][scans], data.ages[scans], np.random.default_rng(seed)
                )
                for method in METHODS
            }
            for name, scans in groups.items()
        }
        for name, figures in sites[str(site)].items():
            text = ", ".join(f"{m} MAE {figures[m]['mae']} r {figures[m]['r']}" for m in METHODS)
            say(f"{site} {name} (n {figures['none']['n']}): {text}")
    return {"sites": sites, "images": _image_summary(data, images)}


def _image_summary(
    data: TrainingSet, images: dict[int, dict[str, float | None]]
) -> dict[str, Any]:
    """Median over each site's scans of what harmonization did to the images."""
    summary: dict[str, Any] = {}
    for site in sorted({str(data.sites[i]) for i in images}):
        rows = [row for i, row in images.items() if data.sites[i] == site]
        names = [n for n in rows[0] if all(row[n] is not None for row in rows)]
        summary[site] = {"n": len(rows)} | {
            name: round(float(np.median([row[name] for row in rows])), 5) for name in names
        }
    return summary
