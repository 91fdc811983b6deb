"""Histograms of scaled brain intensities, and how far two lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bids_harmony.qc.metrics import rounded

#: White matter is near 1 and 2 is the ceiling.
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


def reference_distances(
    raw: np.ndarray,
    harmonized: np.ndarray,
    mask: np.ndarray,
    reference: Mapping[str, list[float]] | None,
) -> dict[str, float | None]:
    """Distance of a scan's intensities from the reference site's, before and after.

    Parameters
    ----------
    raw, harmonized : numpy.ndarray
        Scaled volumes on the template grid.
    mask : numpy.ndarray
        Boolean mask of their foreground.
    reference : mapping or None
        The reference site's :func:`mean_histogram`.

    Returns
    -------
    dict
        ``reference_distance_raw`` and ``reference_distance_harmonized``; None without a
        reference.
    """
    return {
        f"reference_distance_{kind}": None
        if reference is None
        else rounded(histogram_distance(brain_histogram(volume, mask), reference))
        for kind, volume in (("raw", raw), ("harmonized", harmonized))
    }
