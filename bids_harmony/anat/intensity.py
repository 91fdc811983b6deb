"""Bias field correction and intensity scaling: CSF, grey and white matter at fixed values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from bids_harmony.errors import ScanError

#: Maximum of scaled volumes. White matter is 1; vessels and residual fat may be far brighter.
MAX_SCALED = 2.0
#: Scaled intensity, between CSF (0) and grey matter, below which voxels at the surface of the
#: brain are background.
SURFACE = 0.12
#: Minimum distance, in mm, from the mask's surface at which CSF is sampled.
DEEP_MM = 20.0
#: Minimum number of voxels in a brain.
MIN_VOXELS = 1000
#: Iterations of the bias field fit, and its subsampling along each axis.
BIAS_ROUNDS, BIAS_STEP = 8, 2


class TissueMeans(NamedTuple):
    """Mean intensities of CSF, grey and white matter, in ascending order."""

    csf: float
    grey: float
    white: float


def normalize(
    data: np.ndarray, mask: np.ndarray, zoom_mm: float, *, bias_order: int = 3, grey: float = 0.55
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Scale a volume to CSF 0, grey matter ``grey`` and white matter 1.

    The volume is divided by its bias field (:func:`bias_field`). Its :func:`tissue_means` are then
    mapped to the fixed values piecewise linearly (:func:`map_intensities`). As CSF has the
    background value 0, tight brain masks and masks that include the CSF around the cortex give the
    same image. As grey matter has a fixed value, scanner-dependent contrast is not mistaken for an
    effect of age.

    Parameters
    ----------
    data : numpy.ndarray
        3-D volume on the template grid, arbitrary units.
    mask : numpy.ndarray
        Boolean brain mask of the same shape.
    zoom_mm : float
        Isotropic voxel size in mm.
    bias_order : int
        Order of the bias field polynomial; 0 disables the correction.
    grey : float
        Scaled value of grey matter.

    Returns
    -------
    scaled : numpy.ndarray
        float32, same shape; background exactly 0, brain in (0, 2].
    used : numpy.ndarray
        Boolean mask of the foreground: brain tissue and the CSF it encloses.
    record : dict
        ``tissue_means`` (tissue means after bias field correction, in units of ``data``),
        ``bias_field_range`` (95th to 5th percentile ratio of the bias field within the mask),
        ``mask_ml`` and ``used_ml`` (volumes in ml of the mask and of the foreground).

    Raises
    ------
    ScanError
        When the mask is too small or its intensities are not those of a T1w brain.
    """
    data = np.asarray(data, dtype=np.float64)
    given = np.asarray(mask, dtype=bool) & np.isfinite(data)
    if given.sum() < MIN_VOXELS:
        raise ScanError(
            f"Only {int(given.sum())} voxels lie inside the brain mask on the template grid.",
            "Check the brain mask and the registration.",
        )
    field = bias_field(data, given, bias_order)
    data = data / field
    means = tissue_means(data, given, zoom_mm)
    if means is not None:
        scaled = map_intensities(data, means, grey)
        used = _foreground(scaled, given)
    if means is None or used.sum() < MIN_VOXELS:
        raise ScanError(
            "The voxels inside the brain mask do not have the intensities of a T1w brain.",
            "Check the brain mask, and that the scan is T1-weighted.",
        )
    scaled = np.where(used, np.maximum(scaled, 1e-3), 0).astype(np.float32)
    ml = zoom_mm**3 / 1000
    return scaled, used, {
        "tissue_means": [round(mean, 6) for mean in means],
        "bias_field_range": round(float(np.divide(*np.percentile(field[given], (95, 5)))), 4),
        "mask_ml": round(float(given.sum() * ml), 3),
        "used_ml": round(float(used.sum() * ml), 3),
    }  # fmt: skip


def tissue_means(data: np.ndarray, mask: np.ndarray, zoom_mm: float) -> TissueMeans | None:
    """Estimate the mean intensities of CSF, grey and white matter of a T1w brain.

    CSF is the 1st percentile deep in the brain, around the ventricles, as CSF near the surface
    depends on the brain extraction method. Grey and white matter are two k-means classes of the
    voxels brighter than CSF.

    Parameters
    ----------
    data : numpy.ndarray
        3-D bias-corrected volume.
    mask : numpy.ndarray
        Boolean brain mask of the same shape.
    zoom_mm : float
        Isotropic voxel size in mm.

    Returns
    -------
    TissueMeans or None
        Means in units of ``data``; None if the three tissues cannot be separated.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] * zoom_mm
    deep = depth > min(DEEP_MM, 0.5 * float(depth.max()))
    csf = float(np.percentile(data[deep], 1))
    values = data[mask]
    white = float(class_means(values)[2])
    grey = csf
    for _ in range(3):
        tissue = values[values > csf + 0.35 * (white - csf)]
        if tissue.size < 2:
            return None
        grey, white = (float(v) for v in class_means(tissue, 2))
    contrast = 0.02 * abs(white)
    if not (white > 0 and grey - csf > contrast and white - grey > contrast):
        return None
    return TissueMeans(csf, grey, white)


def map_intensities(data: np.ndarray, means: TissueMeans, grey: float) -> np.ndarray:
    """Map CSF to 0, grey matter to ``grey`` and white matter to 1, piecewise linearly.

    Darker values become 0. Brighter values stay proportional to white matter, up to 2.
    """
    known = [*means, MAX_SCALED * means.white]
    return np.asarray(np.interp(data, known, [0.0, grey, 1.0, MAX_SCALED]))


def _foreground(scaled: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a mask of the largest tissue component, with narrow gaps closed and holes filled."""
    # Pad so that closing works at the edge of the volume.
    brain = np.pad(largest_component(mask & (scaled > SURFACE)), 2)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=2))
    return np.asarray(brain[2:-2, 2:-2, 2:-2] & mask)


def bias_field(data: np.ndarray, mask: np.ndarray, order: int) -> np.ndarray:
    """Estimate the multiplicative bias field of a brain as a polynomial.

    Each receive coil has its own bias field. It varies too slowly across the brain for the
    slice-wise networks to see. Each iteration assigns voxels to k-means tissue classes and fits
    the polynomial to the log ratio of grey and white matter voxels to their class means.

    Parameters
    ----------
    data : numpy.ndarray
        3-D volume.
    mask : numpy.ndarray
        Boolean brain mask of the same shape.
    order : int
        Maximum total degree of the polynomial; 0 returns a field of ones.

    Returns
    -------
    numpy.ndarray
        Field of the same shape as ``data``, with a mean logarithm of 0 within the mask, clipped to
        [0.4, 2.5].
    """
    if order < 1:
        return np.ones(data.shape)
    axes = [np.linspace(-1, 1, n) for n in data.shape]
    powers = [power for power in np.ndindex((order + 1,) * 3) if sum(power) <= order]
    few = np.zeros_like(mask)
    every = (slice(None, None, BIAS_STEP),) * 3
    few[every] = mask[every]
    few &= data > 0
    x, y, z = (axis[index] for axis, index in zip(axes, np.nonzero(few), strict=True))
    terms = np.stack([x**i * y**j * z**k for i, j, k in powers], axis=1)
    values = np.log(data[few])
    weights = np.zeros(len(powers))
    for _ in range(BIAS_ROUNDS):
        flat = values - terms @ weights
        means = np.log(class_means(np.exp(flat)))
        csf, white = (means[0] + means[1]) / 2, (means[1] + means[2]) / 2
        # Exclude CSF and voxels far brighter than white matter (vessels, fat).
        tissue = (flat > csf) & (flat < means[2] + 0.4)
        off = flat - np.where(flat > white, means[2], means[1])
        weights = weights + np.linalg.lstsq(terms[tissue], off[tissue], rcond=None)[0]
    weights[powers.index((0, 0, 0))] -= float((terms @ weights).mean())
    log_field = sum(
        w * axes[0][:, None, None] ** i * axes[1][:, None] ** j * axes[2] ** k
        for w, (i, j, k) in zip(weights, powers, strict=True)
    )
    return np.asarray(np.exp(np.clip(log_field, np.log(0.4), np.log(2.5))))


def class_means(values: np.ndarray, n_classes: int = 3) -> np.ndarray:
    """Compute class means with one-dimensional k-means.

    Parameters
    ----------
    values : numpy.ndarray
        1-D brain intensities.
    n_classes : int
        Number of classes; 3 for CSF, grey and white matter.

    Returns
    -------
    numpy.ndarray
        ``n_classes`` means in ascending order.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    # Cumulative sums of sorted values make each iteration a lookup, independent of voxel order.
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    means = np.quantile(ordered, (np.arange(n_classes) + 0.5) / n_classes)
    for _ in range(100):
        edges = np.searchsorted(ordered, (means[1:] + means[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(ordered)]])
        counts = np.diff(edges)
        new = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), means)
        if np.allclose(new, means, rtol=1e-6, atol=0):
            break
        means = new
    return np.asarray(means)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected component of a boolean array; empty if the array is."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((labels == sizes.argmax()) & mask)
