"""What harmonization did to a scan, measured on the scaled volumes (science.md §10, §11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from bids_harmony.anat.intensity import tissue_centres
from bids_harmony.qc.metrics import rounded

#: Histogram of scaled brain intensities: white matter is near 1 and 2 is the ceiling.
N_BINS, TOP = 80, 1.6


def brain_histogram(volume: np.ndarray, mask: np.ndarray) -> dict[str, list[float]]:
    """Histogram of a scaled volume within its mask.

    Parameters
    ----------
    volume : numpy.ndarray
        Scaled volume on the template grid.
    mask : numpy.ndarray
        Boolean mask of its foreground.

    Returns
    -------
    dict
        ``edges`` (81 values from 0 to 1.6) and ``density`` (80 values that integrate to 1;
        brighter voxels count in the last bin).
    """
    edges = np.linspace(0, TOP, N_BINS + 1)
    values = np.clip(volume[mask], 0, TOP)
    counts = np.histogram(values, bins=edges)[0]
    density = counts / max(int(counts.sum()), 1) / (TOP / N_BINS)
    return {
        "edges": [round(float(e), 6) for e in edges],
        "density": [round(float(d), 6) for d in density],
    }


def mean_histogram(histograms: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Average histograms of several scans, as a reference site's histogram."""
    density = np.mean([h["density"] for h in histograms], axis=0)
    return {
        "edges": list(histograms[0]["edges"]),
        "density": [round(float(d), 6) for d in density],
    }


def histogram_distance(a: Mapping[str, list[float]], b: Mapping[str, list[float]]) -> float:
    """Wasserstein-1 distance of two histograms with the same edges."""
    if list(a["edges"]) != list(b["edges"]):
        raise ValueError("The histograms have different bins.")
    width = np.diff(a["edges"])
    gap = np.cumsum((np.array(a["density"]) - np.array(b["density"])) * width)
    return float((np.abs(gap) * width).sum())


def harmonization_metrics(
    raw: np.ndarray,
    harmonized: np.ndarray,
    mask: np.ndarray,
    reference_histogram: Mapping[str, Any] | None = None,
) -> dict[str, float | None]:
    """Measure how much harmonization changed a scan, and whether its anatomy stayed.

    Parameters
    ----------
    raw, harmonized : numpy.ndarray
        Scaled volumes on the template grid, before and after.
    mask : numpy.ndarray
        Boolean mask of their foreground.
    reference_histogram : mapping, optional
        The reference site's :func:`mean_histogram`.

    Returns
    -------
    dict
        ``harmonized_change``, ``harmonized_edge_agreement``, ``harmonized_dark_change``,
        ``reference_distance_raw`` and ``reference_distance_harmonized`` (None without a
        reference), as described in ``data/qc_dictionary.json``.
    """
    before, after = (np.where(mask, v, 0).astype(np.float32) for v in (raw, harmonized))
    core = ndimage.binary_erosion(mask)
    dots = np.zeros_like(before)
    norms = [np.zeros_like(before), np.zeros_like(before)]
    for axis in range(3):
        slopes = [np.gradient(v, axis=axis) for v in (before, after)]
        dots += slopes[0] * slopes[1]
        for norm, slope in zip(norms, slopes, strict=True):
            norm += slope**2
    strength = float(np.sqrt(norms[0] * norms[1])[core].sum(dtype=np.float64))
    agreement = float(dots[core].sum(dtype=np.float64)) / strength if strength > 0 else None
    values: dict[str, float | None] = {
        "harmonized_change": float(np.abs(after - before)[mask].mean(dtype=np.float64)),
        "harmonized_edge_agreement": agreement,
        "harmonized_dark_change": _dark_change(before[mask], after[mask]),
        "reference_distance_raw": None,
        "reference_distance_harmonized": None,
    }
    if reference_histogram is not None:
        for name, volume in (("raw", before), ("harmonized", after)):
            values[f"reference_distance_{name}"] = histogram_distance(
                brain_histogram(volume, mask), reference_histogram
            )
    return {name: rounded(value) for name, value in values.items()}


def _dark_change(before: np.ndarray, after: np.ndarray) -> float:
    """Growth of the CSF-like share of the brain that a change of tone alone does not explain.

    CSF ends where raw voxels are nearer to the CSF than to the GM centre. On the harmonized
    side the same limit is where voxels at that limit went, by their median, so that a new tone
    curve moves nothing, but ventricles painted larger or smaller do.
    """
    limit = float(tissue_centres(before)[:2].mean())
    near = np.argsort(np.abs(before - limit), kind="stable")[: max(before.size // 50, 1)]
    moved_limit = float(np.median(after[near]))
    return float((after < moved_limit).mean() - (before < limit).mean())
