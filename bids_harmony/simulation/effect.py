"""A made-up diagnosis effect: wider ventricles, thinner frontal and temporal cortex.

There is no public schizophrenia imaging to train on, so the two-class network learns this
effect instead, and says so. Its places are those the field reports (preprint, discussion); its
size is chosen, not measured.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Triple = tuple[float, float, float]

#: Centres (MNI mm, left half; mirrored) and Gaussian widths (mm) of the regions.
VENTRICLE = ((-14.0, -8.0, 15.0), (9.0, 26.0, 12.0))
CORTEX = (((-32.0, 38.0, 16.0), (24.0, 26.0, 28.0)), ((-54.0, -8.0, -14.0), (20.0, 30.0, 18.0)))
#: At strength 1: relative widening of the ventricles, and cortex lost at its outside in mm.
WIDENING, THINNING_MM = 0.45, 1.2
#: Individual shape variation: standard deviation and smoothness of a random displacement, in mm.
JITTER_MM, JITTER_SMOOTH_MM = 0.6, 14.0


def apply_effect(
    volume: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    strength: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Deform a brain volume in template space as the simulated diagnosis does.

    The same random, smooth deformation belongs to ``seed`` at every strength, 0 included, so
    that patients and controls made from one scan differ by the effect alone and both have been
    interpolated once.

    Parameters
    ----------
    volume : numpy.ndarray
        3-D brain volume in template space, background 0, white matter near 1.
    mask : numpy.ndarray
        Boolean brain mask of the same shape.
    affine : numpy.ndarray
        4 x 4 voxel-to-MNI matrix (diagonal).
    strength : float
        0 for a control; patients lie around 1.
    seed : int
        Seed of the individual deformation.

    Returns
    -------
    volume, mask : numpy.ndarray
        float32 volume, and boolean mask, deformed.
    """
    scale, origin = (values[:3].reshape(3, 1, 1, 1) for values in (np.diag(affine), affine[:, 3]))
    axes = [np.arange(n, dtype=np.float32) for n in volume.shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    mm, zooms = grid * scale + origin, np.abs(scale.ravel())
    move = _jitter(volume.shape, zooms, seed)
    if strength:
        move += strength * _widen_ventricles(mm)
        move += strength * _thin_cortex(volume, mask, mm, zooms)
    # A displacement points to where each voxel's value is taken from.
    where = grid + move / scale
    moved = ndimage.map_coordinates(volume.astype(np.float32), where, order=1)
    inside = ndimage.map_coordinates(mask.astype(np.float32), where, order=1) > 0.5
    return np.where(inside, moved, 0).astype(np.float32), inside


def _jitter(shape: tuple[int, ...], zooms: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((3, *shape), dtype=np.float32)
    fields = [ndimage.gaussian_filter(part, JITTER_SMOOTH_MM / zooms) for part in noise]
    return np.stack([field * (JITTER_MM / field.std()) for field in fields])


def _bump(mm: np.ndarray, centre: Triple, width: Triple, side: int) -> tuple[np.ndarray, ...]:
    """Place in the left half (1) or the right (-1) relative to a centre, and a Gaussian of it."""
    away = mm - np.reshape([side * centre[0], *centre[1:]], (3, 1, 1, 1))
    return away, np.exp(-0.5 * ((away / np.reshape(width, (3, 1, 1, 1))) ** 2).sum(axis=0))


def _widen_ventricles(mm: np.ndarray) -> np.ndarray:
    """Magnify each lateral ventricle across its length: take values from nearer its axis."""
    move = np.zeros_like(mm)
    for side in (1, -1):
        away, weight = _bump(mm, *VENTRICLE, side)
        move[::2] -= weight * WIDENING / (1 + WIDENING) * away[::2]
    return move


def _thin_cortex(
    volume: np.ndarray, mask: np.ndarray, mm: np.ndarray, zooms: np.ndarray
) -> np.ndarray:
    """Push the cortex's outer surface inwards: take values from the CSF or outside."""
    weight = np.maximum.reduce([_bump(mm, *part, side)[1] for part in CORTEX for side in (1, -1)])
    smooth = ndimage.gaussian_filter(volume.astype(np.float32), 1.5 / zooms)
    slope = np.array(np.gradient(smooth, *zooms))
    length = np.sqrt((slope**2).sum(axis=0)) + 1e-3
    # Only the pial side moves: from outside (0) to grey matter (0.55).
    pial = np.clip((0.6 - smooth) / 0.3, 0, 1) * ndimage.binary_dilation(mask, iterations=1)
    return np.asarray(-THINNING_MM * weight * pial * slope / length)
