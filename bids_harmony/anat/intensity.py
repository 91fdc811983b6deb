"""Intensity scaling inside the brain mask: fluid, grey and white matter to fixed values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from bids_harmony.contract import Contract
from bids_harmony.errors import ScanError

#: Scaled values are cut here: white matter is 1, vessels and stray fat can be far brighter.
MAX_SCALED = 2.0
#: Voxels below this at the brain's surface are background: between fluid (0) and grey matter.
SURFACE = 0.12
#: Fluid is looked for at least this far from the mask's surface, in mm.
DEEP_MM = 20.0
#: Fewer brain voxels than this cannot be a brain on any grid in use.
MIN_VOXELS = 1000


class Levels(NamedTuple):
    """Intensities of cerebrospinal fluid, grey and white matter, ascending."""

    fluid: float
    grey: float
    white: float


def normalize(
    data: np.ndarray, mask: np.ndarray, contract: Contract, zoom_mm: float
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Bring a volume to fluid 0, grey matter ``contract.grey``, white matter 1.

    Slow shading is divided out first (:func:`shading`), then :func:`tissue_levels` are found in
    the volume itself and mapped along straight lines (:func:`map_levels`). With fluid at the
    background's 0, masks of the inside of the skull, which keep the fluid over the cortex, and
    masks that hug the cortex give the same picture; with grey matter at one value, the contrast
    a scanner was set to does not pass for age.

    Parameters
    ----------
    data : numpy.ndarray
        3-D volume on the template grid, arbitrary units.
    mask : numpy.ndarray
        Boolean brain mask of the same shape.
    contract : Contract
        ``shading_order`` and ``grey`` are read.
    zoom_mm : float
        Isotropic voxel size in mm.

    Returns
    -------
    scaled : numpy.ndarray
        float32, background exactly 0, brain in (0, 2].
    used : numpy.ndarray
        Boolean mask of the brain's tissue and the fluid it encloses.
    record : dict
        Levels in the units of ``data``, the shading's 5th to 95th percentile ratio in the mask,
        volumes of the mask and of what is used of it in ml.

    Raises
    ------
    ScanError
        When the mask holds no brain-like range of intensities.
    """
    data = np.asarray(data, dtype=np.float64)
    given = np.asarray(mask, dtype=bool) & np.isfinite(data)
    if given.sum() < MIN_VOXELS:
        raise ScanError(
            f"Only {int(given.sum())} voxels lie inside the brain mask on the template grid.",
            "Look at the brain mask and at the registration.",
        )
    field = shading(data, given, contract.shading_order)
    data = data / field
    levels = tissue_levels(data, given, zoom_mm)
    if levels is not None:
        scaled = map_levels(data, levels, contract.grey)
        used = surface(scaled, given)
    if levels is None or used.sum() < MIN_VOXELS:
        raise ScanError(
            "The voxels inside the brain mask do not have the intensities of a T1w brain.",
            "Look at the brain mask: is the scan a T1-weighted image?",
        )
    scaled = np.where(used, np.maximum(scaled, 1e-3), 0).astype(np.float32)
    ml = zoom_mm**3 / 1000
    record = {
        "fluid_grey_white": [round(level, 6) for level in levels],
        "shading_range": round(float(np.divide(*np.percentile(field[given], (95, 5)))), 4),
        "mask_ml": round(float(given.sum() * ml), 3),
        "used_ml": round(float(used.sum() * ml), 3),
    }
    return scaled, used, record


def tissue_levels(data: np.ndarray, mask: np.ndarray, zoom_mm: float) -> Levels | None:
    """Find the intensities of fluid, grey and white matter of a T1w brain.

    Fluid is the darkest hundredth of the deep brain, where the ventricles lie: the fluid near
    the surface depends on the kind of mask. Grey and white matter are two classes of what is
    brighter than fluid.

    Parameters
    ----------
    data : numpy.ndarray
        3-D volume without shading.
    mask : numpy.ndarray
        Boolean brain mask.
    zoom_mm : float
        Voxel size in mm.

    Returns
    -------
    Levels or None
        None where the mask holds nothing like three tissues.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] * zoom_mm
    deep = depth > min(DEEP_MM, 0.5 * float(depth.max()))
    fluid = float(np.percentile(data[deep], 1))
    values = data[mask]
    white = float(tissue_centres(values)[2])
    grey = fluid
    for _ in range(3):
        tissue = values[values > fluid + 0.35 * (white - fluid)]
        if tissue.size < 2:
            return None
        grey, white = (float(v) for v in tissue_centres(tissue, 2))
    contrast = 0.02 * abs(white)
    if not (white > 0 and grey - fluid > contrast and white - grey > contrast):
        return None
    return Levels(fluid, grey, white)


def map_levels(data: np.ndarray, levels: Levels, grey: float) -> np.ndarray:
    """Map fluid to 0, grey matter to ``grey`` and white matter to 1, linearly in between.

    Darker values become 0; brighter than white matter stays in proportion, up to 2.
    """
    return np.asarray(
        np.interp(data, [*levels, MAX_SCALED * levels.white], [0.0, grey, 1.0, MAX_SCALED])
    )


def surface(scaled: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mask of the largest piece of tissue, with narrow clefts closed and holes filled."""
    # Room for the closing at the volume's edge.
    brain = np.pad(largest_component(mask & (scaled > SURFACE)), 2)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=2))
    used: np.ndarray = brain[2:-2, 2:-2, 2:-2] & mask
    return used


def shading(
    data: np.ndarray, mask: np.ndarray, order: int, iterations: int = 8, step: int = 2
) -> np.ndarray:
    """Smooth multiplicative shading of a brain: a polynomial fitted to grey and white matter.

    Coils shade each scanner's images in their own way, over distances the slice networks
    cannot see. Each round assigns voxels to k-means classes and fits the logarithm of what
    separates grey and white matter from their class centres.

    Parameters
    ----------
    data : numpy.ndarray
        3-D volume.
    mask : numpy.ndarray
        Boolean brain mask.
    order : int
        Highest total power of the polynomial; 0 gives a field of ones.
    iterations : int
        Rounds.
    step : int
        Every ``step``-th voxel along each axis is used.

    Returns
    -------
    numpy.ndarray
        Field of the volume's shape, mean logarithm 0 in the mask, within 0.4 to 2.5.
    """
    if order < 1:
        return np.ones(data.shape)
    axes = [np.linspace(-1, 1, n) for n in data.shape]
    powers = [
        (i, j, k)
        for i in range(order + 1)
        for j in range(order + 1 - i)
        for k in range(order + 1 - i - j)
    ]
    few = np.zeros_like(mask)
    few[::step, ::step, ::step] = mask[::step, ::step, ::step]
    few &= data > 0
    x, y, z = (axis[index] for axis, index in zip(axes, np.nonzero(few), strict=True))
    terms = np.stack([x**i * y**j * z**k for i, j, k in powers], axis=1)
    values = np.log(data[few])
    weights = np.zeros(len(powers))
    for _ in range(iterations):
        flat = values - terms @ weights
        centres = np.log(tissue_centres(np.exp(flat)))
        fluid, white = (centres[0] + centres[1]) / 2, (centres[1] + centres[2]) / 2
        # Fluid and what is far brighter than white matter (vessels, fat) have no say.
        tissue = (flat > fluid) & (flat < centres[2] + 0.4)
        off = flat - np.where(flat > white, centres[2], centres[1])
        weights = weights + np.linalg.lstsq(terms[tissue], off[tissue], rcond=None)[0]
    weights[powers.index((0, 0, 0))] -= float((terms @ weights).mean())
    log_field = sum(
        w * axes[0][:, None, None] ** i * axes[1][:, None] ** j * axes[2] ** k
        for w, (i, j, k) in zip(weights, powers, strict=True)
    )
    return np.asarray(np.exp(np.clip(log_field, np.log(0.4), np.log(2.5))))


def tissue_centres(
    values: np.ndarray, n_classes: int = 3, start: Sequence[float] | None = None
) -> np.ndarray:
    """Centres of intensity classes by one-dimensional k-means.

    Parameters
    ----------
    values : numpy.ndarray
        Brain intensities.
    n_classes : int
        Number of classes; 3 for CSF, grey and white matter.
    start : sequence of float, optional
        Ascending centres to begin with, in place of fixed quantiles.

    Returns
    -------
    numpy.ndarray
        ``n_classes`` ascending centres.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    # Sums over sorted values make each iteration a look-up, exact and independent of order.
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    if start is None:
        centres = np.quantile(ordered, (np.arange(n_classes) + 0.5) / n_classes)
    else:
        centres = np.array(start, dtype=np.float64)
    for _ in range(100):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(ordered)]])
        counts = np.diff(edges)
        new = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centres)
        if np.allclose(new, centres, rtol=1e-6, atol=0):
            break
        centres = new
    return np.asarray(centres)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest connected part of a boolean array; nothing of an empty one."""
    labels, found = ndimage.label(mask)
    if not found:
        return np.zeros(mask.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept: np.ndarray = labels == sizes.argmax()
    return kept
