"""Simulate a diagnosis effect: wider ventricles, thinner frontal and temporal cortex.

No public schizophrenia scans are available for training, so the binary network is trained on this
effect instead, and its outputs say so. The regions are those reported in the literature (preprint,
discussion); the effect size is chosen, not measured.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Triple = tuple[float, float, float]

#: Centres (MNI mm, left hemisphere; mirrored) and Gaussian widths (mm) of the regions.
VENTRICLE = ((-14.0, -8.0, 15.0), (9.0, 26.0, 12.0))
CORTEX = (((-32.0, 38.0, 16.0), (24.0, 26.0, 28.0)), ((-54.0, -8.0, -14.0), (20.0, 30.0, 18.0)))
#: Relative widening of the ventricles, and cortical thinning in mm, at strength 1.
WIDENING, THINNING_MM = 0.45, 1.2
#: Random displacement (individual shape): standard deviation and width of the smoothing, in mm.
JITTER_MM, JITTER_SMOOTH_MM = 0.6, 14.0


def apply_effect(
    volume: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    strength: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the simulated diagnosis effect to a brain volume in template space.

    A random smooth deformation given by ``seed`` is applied at every strength, including 0. So
    patients and controls made from one scan differ only in the effect, and both are interpolated
    once.

    Parameters
    ----------
    volume : numpy.ndarray
        (x, y, z) brain volume in template space; background 0, white matter near 1.
    mask : numpy.ndarray
        Boolean brain mask of the same shape.
    affine : numpy.ndarray
        4 x 4 voxel-to-MNI matrix (diagonal).
    strength : float
        Effect size: 0 for controls, about 1 for patients.
    seed : int
        Random seed of the individual deformation.

    Returns
    -------
    volume, mask : numpy.ndarray
        Deformed float32 volume and boolean mask.
    """
    scale, origin = (values[:3].reshape(3, 1, 1, 1) for values in (np.diag(affine), affine[:, 3]))
    axes = [np.arange(n, dtype=np.float32) for n in volume.shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    mm, zooms = grid * scale + origin, np.abs(scale.ravel())
    move = _jitter(volume.shape, zooms, seed)
    if strength:
        move += strength * _widen_ventricles(mm)
        move += strength * _thin_cortex(volume, mask, mm, zooms)
    # Displacements point to the source of each voxel's value.
    where = grid + move / scale
    moved = ndimage.map_coordinates(volume.astype(np.float32), where, order=1)
    inside = ndimage.map_coordinates(mask.astype(np.float32), where, order=1) > 0.5
    return np.where(inside, moved, 0).astype(np.float32), inside


def _jitter(shape: tuple[int, ...], zooms: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((3, *shape), dtype=np.float32)
    fields = [ndimage.gaussian_filter(part, JITTER_SMOOTH_MM / zooms) for part in noise]
    return np.stack([field * (JITTER_MM / field.std()) for field in fields])


def _bump(mm: np.ndarray, centre: Triple, width: Triple, side: int) -> tuple[np.ndarray, ...]:
    """Return offsets (mm) from a centre, left (1) or right (-1), and a Gaussian weight of them."""
    away = mm - np.reshape([side * centre[0], *centre[1:]], (3, 1, 1, 1))
    return away, np.exp(-0.5 * ((away / np.reshape(width, (3, 1, 1, 1))) ** 2).sum(axis=0))


def _widen_ventricles(mm: np.ndarray) -> np.ndarray:
    """Return the displacement that widens each lateral ventricle perpendicular to its length."""
    move = np.zeros_like(mm)
    for side in (1, -1):
        away, weight = _bump(mm, *VENTRICLE, side)
        move[::2] -= weight * WIDENING / (1 + WIDENING) * away[::2]
    return move


def _thin_cortex(
    volume: np.ndarray, mask: np.ndarray, mm: np.ndarray, zooms: np.ndarray
) -> np.ndarray:
    """Return the displacement that moves the pial surface inwards."""
    weight = np.maximum.reduce([_bump(mm, *part, side)[1] for part in CORTEX for side in (1, -1)])
    smooth = ndimage.gaussian_filter(volume.astype(np.float32), 1.5 / zooms)
    slope = np.array(np.gradient(smooth, *zooms))
    length = np.sqrt((slope**2).sum(axis=0)) + 1e-3
    # Move only the pial side, from background (0) to grey matter (0.55).
    pial = np.clip((0.6 - smooth) / 0.3, 0, 1) * ndimage.binary_dilation(mask, iterations=1)
    return np.asarray(-THINNING_MM * weight * pial * slope / length)
