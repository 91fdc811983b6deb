"""What harmonization did to a scan, measured on the scaled volumes (science.md §10, §11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from bids_harmony.anat.brain import dice
from bids_harmony.anat.intensity import tissue_centres
from bids_harmony.contract import Contract
from bids_harmony.qc.metrics import rounded
from bids_harmony.qc.tissue import mixture, mixture_limits

#: Histogram of scaled brain intensities: white matter is near 1 and 2 is the ceiling.
N_BINS, TOP = 80, 1.6
#: Box in template mm, x, y and z, that holds the bodies of the lateral and the third ventricle
#: even where they are very large, and no fluid of the brain's outside.
CENTRAL_MM = ((-30.0, 30.0), (-58.0, 34.0), (-10.0, 34.0))
#: How far a change of tone may move the limits between fluid and grey and between grey and white
#: matter. At the same ages, white matter takes up 0.51 of the brain at one of three scanners and
#: 0.43 at the others, which is a shift of the second limit by some 0.1.
TONE = (0.05, 0.10)
#: Voxels within this of a limit tell how it moves, if there are enough.
NEAR, FEW_NEAR = 0.05, 200
#: Ventricles smaller than this (ml) are taken as this large: a voxel more is no great change.
LEAST_VENTRICLE_ML = 4.0


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
    affine: np.ndarray,
    reference_histogram: Mapping[str, Any] | None = None,
    grey: float = Contract.grey,
) -> dict[str, float | None]:
    """Measure how much harmonization changed a scan, and whether its anatomy stayed.

    Before, tissue is told halfway between the values the scaling gives fluid, grey and white
    matter. After, the limits follow the change of tone (:func:`moved_limits`), which is what
    harmonization is for: a new tone curve moves little, ventricles painted larger or a cortex
    painted thinner do. A segmentation of the harmonized image knows no limits from before: the
    ``segmented_`` measures find the limits anew in each volume (:func:`own_limits`).

    Parameters
    ----------
    raw, harmonized : numpy.ndarray
        Scaled volumes on the template grid, before and after.
    mask : numpy.ndarray
        Boolean mask of their foreground.
    affine : numpy.ndarray
        4 x 4 affine of the grid.
    reference_histogram : mapping, optional
        The reference site's :func:`mean_histogram`.
    grey : float
        The contract's value of grey matter.

    Returns
    -------
    dict
        ``harmonized_change``, ``harmonized_edge_agreement``,
        ``harmonized_{csf,gm,wm,ventricle}_change``, ``segmented_ventricle_change``,
        ``segmented_overlap``, ``reference_distance_raw`` and ``reference_distance_harmonized``
        (None without a reference), as described in ``data/qc_dictionary.json``.
    """
    before, after = (np.where(mask, v, 0).astype(np.float32) for v in (raw, harmonized))
    limits = tissue_limits(grey)
    moved = moved_limits(before[mask], after[mask], grey)
    shares = [tissue_shares(before[mask], limits), tissue_shares(after[mask], moved)]
    values: dict[str, float | None] = {
        "harmonized_change": float(np.abs(after - before)[mask].mean(dtype=np.float64)),
        "harmonized_edge_agreement": edge_agreement(before, after, mask),
        **{
            f"harmonized_{tissue}_change": float(shares[1][i] - shares[0][i])
            for i, tissue in enumerate(("csf", "gm", "wm"))
        },
    }
    values["harmonized_ventricle_change"] = growth(
        ventricle_ml(before, mask, affine, limits[0]), ventricle_ml(after, mask, affine, moved[0])
    )
    segmented = [
        segmented_change(before, after, mask, affine, pair)
        for pair in zip(*(own_limits(v[mask], grey) for v in (before, after)), strict=True)
    ]
    values["segmented_ventricle_change"] = max((change for change, _ in segmented), key=abs)
    values["segmented_overlap"] = min(overlap for _, overlap in segmented)
    for name, volume in (("raw", before), ("harmonized", after)):
        values[f"reference_distance_{name}"] = (
            None
            if reference_histogram is None
            else histogram_distance(brain_histogram(volume, mask), reference_histogram)
        )
    return {name: rounded(value) for name, value in values.items()}


def growth(before: float, after: float) -> float:
    """Change of the ventricles' volume in ml, relative to that before."""
    return (after - before) / max(before, LEAST_VENTRICLE_ML)


def moved_limits(before: np.ndarray, after: np.ndarray, grey: float) -> tuple[float, float]:
    """Follow the limits between tissues through a change of tone.

    Each moves by the median change of the voxels near it, but no further than :data:`TONE`: a map
    that darkens every border of fluid widens all ventricles and sulci, whatever it is called.

    Parameters
    ----------
    before, after : numpy.ndarray
        (voxels,) intensities.
    grey : float
        The contract's value of grey matter.

    Returns
    -------
    tuple of float
        Intensities after, between fluid and grey and between grey and white matter.
    """
    found = []
    for limit, most in zip(tissue_limits(grey), TONE, strict=True):
        near = np.abs(before - limit) < NEAR
        moved = float(np.median((after - before)[near])) if near.sum() >= FEW_NEAR else 0.0
        found.append(limit + float(np.clip(moved, -most, most)))
    return found[0], found[1]


def tissue_limits(grey: float) -> tuple[float, float]:
    """Intensities halfway between fluid and grey, and between grey and white matter."""
    return grey / 2, (1 + grey) / 2


def own_limits(values: np.ndarray, grey: float) -> list[tuple[float, float]]:
    """Find the limits between tissues in intensities themselves, as segmentation programs do.

    In two ways, for each misses changes that the other finds: halfway between three k-means
    centres, and where the likelier of three Gaussian classes changes.
    """
    fluid, middle, white = tissue_centres(values, start=(0.0, grey, 1.0))
    classes = mixture(values, np.array([fluid, middle, white]))
    return [((fluid + middle) / 2, (middle + white) / 2), mixture_limits(*classes)]


def segmented_change(
    before: np.ndarray,
    after: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    limits: Sequence[tuple[float, float]],
) -> tuple[float, float]:
    """Growth of the ventricles and least Dice of a tissue, by limits before and after."""
    labels = [np.digitize(v, own) for v, own in zip((before, after), limits, strict=True)]
    ventricles = [ventricle_ml(found, mask, affine, 0.5) for found in labels]
    overlap = min(dice(*((found == k) & mask for found in labels)) for k in range(3))
    return growth(*ventricles), overlap


def tissue_shares(values: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Shares of fluid, grey and white matter among intensities; they add up to 1.

    ``limits`` are the intensities between fluid and grey, and between grey and white matter.
    """
    fluid = float((values < limits[0]).mean())
    white = float((values >= limits[1]).mean())
    return np.array([fluid, 1 - fluid - white, white])


def ventricle_ml(
    volume: np.ndarray, mask: np.ndarray, affine: np.ndarray, limit: float = Contract.grey / 2
) -> float:
    """Volume of the fluid in the middle of the brain (:data:`CENTRAL_MM`), in ml.

    Parameters
    ----------
    volume, mask : numpy.ndarray
        Scaled volume on the template grid, and its foreground.
    affine : numpy.ndarray
        4 x 4 affine of the grid, whose axes run along the template's.
    limit : float
        Fluid is what is darker.
    """
    box = []
    for axis, (low, high) in enumerate(CENTRAL_MM):
        ends = sorted((mm - affine[axis, 3]) / affine[axis, axis] for mm in (low, high))
        box.append(slice(max(round(ends[0]), 0), max(round(ends[1]) + 1, 0)))
    fluid = mask[tuple(box)] & (volume[tuple(box)] < limit)
    return float(fluid.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


def edge_agreement(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float | None:
    """Mean cosine between two volumes' gradients, weighted by their strength.

    Returns
    -------
    float or None
        -1 to 1; None where there is no edge.
    """
    core = ndimage.binary_erosion(mask)
    dots = np.zeros_like(before)
    norms = [np.zeros_like(before), np.zeros_like(before)]
    for axis in range(3):
        slopes = [np.gradient(v, axis=axis) for v in (before, after)]
        dots += slopes[0] * slopes[1]
        for norm, slope in zip(norms, slopes, strict=True):
            norm += slope**2
    strength = float(np.sqrt(norms[0] * norms[1])[core].sum(dtype=np.float64))
    return float(dots[core].sum(dtype=np.float64)) / strength if strength > 0 else None
