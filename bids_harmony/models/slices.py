"""Axial slices of volumes on the template grid."""

from __future__ import annotations

import numpy as np

#: First and last (exclusive) row and column of the template grid that the networks use.
Box = tuple[tuple[int, int], tuple[int, int]]
#: Scale of slice heights in mm: heights divided by this are about -1 to 1.
HEIGHT_MM = 70.0


def slice_heights(n_slices: int, affine: np.ndarray) -> np.ndarray:
    """Return the height of each axial slice (template z, in mm)."""
    return np.asarray(affine[2, 3] + affine[2, 2] * np.arange(n_slices))


def middle_slices(n_slices: int, affine: np.ndarray, slice_mm: tuple[float, float]) -> np.ndarray:
    """Return the indices of slices with a height within ``slice_mm`` (inclusive)."""
    heights = slice_heights(n_slices, affine)
    return np.flatnonzero((heights >= slice_mm[0]) & (heights <= slice_mm[1]))


def crop(volume: np.ndarray, box: Box) -> np.ndarray:
    """Crop a volume to a box and move the slice axis first: (slices, rows, columns).

    Parts of the box outside the grid are filled with 0.
    """
    out = np.zeros((volume.shape[2], *(b - a for a, b in box)), volume.dtype)
    grid, within = _common(box, volume.shape)
    out[:, within[0], within[1]] = np.moveaxis(volume[grid], 2, 0)
    return out


def uncrop(slices: np.ndarray, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """Undo :func:`crop`: insert slices into a volume of ``shape`` that is 0 elsewhere."""
    out = np.zeros(shape, slices.dtype)
    grid, within = _common(box, shape)
    out[grid] = np.moveaxis(slices[:, within[0], within[1]], 0, 2)
    return out


def _common(box: Box, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the overlap of grid and box, in coordinates of the grid and of the box."""
    ends = [(max(a, 0), min(b, n), a) for (a, b), n in zip(box, shape, strict=False)]
    return tuple(slice(a, b) for a, b, _ in ends), tuple(slice(a - o, b - o) for a, b, o in ends)


def predictor_input(stack: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Stack slices with their heights (mm): float32 (slices, 2, rows, columns).

    Channel 0 is the intensity; channel 1 is the height divided by :data:`HEIGHT_MM`.
    """
    height = np.asarray(heights / HEIGHT_MM, np.float32)[:, None, None]
    return np.stack([stack, np.broadcast_to(height, stack.shape)], axis=1).astype(np.float32)
