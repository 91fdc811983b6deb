"""A made-up diagnosis effect: wider ventricles, thinner frontal and temporal cortex.

There is no public schizophrenia imaging to train on, so the two-class network learns this
effect instead, and says so. Its places are those the field reports (preprint, discussion); its
size is chosen, not measured.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

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
    zooms = np.abs(np.diag(affine)[:3])
    grid = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in volume.shape], indexing="ij")
    mm = [g * affine[i, i] + affine[i, 3] for i, g in enumerate(grid)]
    move = _jitter(volume.shape, zooms, seed)
    if strength:
        for i, step in enumerate(_widen_ventricles(mm)):
            move[i] += strength * step
        for i, step in enumerate(_thin_cortex(volume, mask, mm, zooms)):
            move[i] += strength * step
    # A displacement points to where each voxel's value is taken from.
    where = [g + m / affine[i, i] for i, (g, m) in enumerate(zip(grid, move, strict=True))]
    moved = ndimage.map_coordinates(volume.astype(np.float32), where, order=1)
    inside = ndimage.map_coordinates(mask.astype(np.float32), where, order=1) > 0.5
    return np.where(inside, moved, 0).astype(np.float32), inside


def _jitter(shape: tuple[int, ...], zooms: np.ndarray, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    fields = []
    for _ in range(3):
        noise = rng.standard_normal(shape, dtype=np.float32)
        smooth = ndimage.gaussian_filter(noise, JITTER_SMOOTH_MM / zooms)
        fields.append(smooth * (JITTER_MM / smooth.std()))
    return fields


def _bump(mm: list[np.ndarray], centre: tuple[float, ...], width: tuple[float, ...]) -> np.ndarray:
    square = sum(((x - c) / w) ** 2 for x, c, w in zip(mm, centre, width, strict=True))
    return np.asarray(np.exp(-0.5 * square))


def _widen_ventricles(mm: list[np.ndarray]) -> list[np.ndarray]:
    """Magnify each lateral ventricle across its length: take values from nearer its axis."""
    centre, width = VENTRICLE
    move = [np.zeros_like(x) for x in mm]
    for side in (1, -1):
        middle = (side * centre[0], *centre[1:])
        weight = _bump(mm, middle, width) * WIDENING / (1 + WIDENING)
        for i in (0, 2):
            move[i] -= weight * (mm[i] - middle[i])
    return move


def _thin_cortex(
    volume: np.ndarray, mask: np.ndarray, mm: list[np.ndarray], zooms: np.ndarray
) -> list[np.ndarray]:
    """Push the cortex's outer surface inwards: take values from the fluid or outside."""
    weight = np.zeros(volume.shape)
    for centre, width in CORTEX:
        for side in (1, -1):
            weight = np.maximum(weight, _bump(mm, (side * centre[0], *centre[1:]), width))
    smooth = ndimage.gaussian_filter(volume.astype(np.float32), 1.5 / zooms)
    slope = np.array(np.gradient(smooth, *zooms))
    length = np.sqrt((slope**2).sum(axis=0)) + 1e-3
    # Only the pial side moves: from outside (0) to grey matter (0.55).
    pial = np.clip((0.6 - smooth) / 0.3, 0, 1) * ndimage.binary_dilation(mask, iterations=1)
    return [-THINNING_MM * weight * pial * s / length for s in slope]
