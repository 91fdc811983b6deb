"""Axial slices of volumes on the template grid, as networks see them."""

from __future__ import annotations

import numpy as np

#: Rows and columns of the template grid that networks see.
Box = tuple[tuple[int, int], tuple[int, int]]
#: mm that slice heights are divided by: about -1 to 1.
HEIGHT_MM = 70.0


def slice_heights(n_slices: int, affine: np.ndarray) -> np.ndarray:
    """Height (template z, mm) of each axial slice."""
    return np.asarray(affine[2, 3] + affine[2, 2] * np.arange(n_slices))


def middle_slices(n_slices: int, affine: np.ndarray, slice_mm: tuple[float, float]) -> np.ndarray:
    """Numbers of the slices whose height lies in ``slice_mm``, ends included."""
    heights = slice_heights(n_slices, affine)
    return np.flatnonzero((heights >= slice_mm[0]) & (heights <= slice_mm[1]))


def crop(volume: np.ndarray, box: Box) -> np.ndarray:
    """Cut rows and columns out of a volume, slices first: (slices, rows, columns).

    Where the box reaches over the grid's edge the result is 0.
    """
    out = np.zeros((volume.shape[2], *(b - a for a, b in box)), volume.dtype)
    grid, within = _common(box, volume.shape)
    out[:, within[0], within[1]] = np.moveaxis(volume[grid], 2, 0)
    return out


def uncrop(slices: np.ndarray, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """Put :func:`crop`'s slices back into a volume of ``shape``, 0 elsewhere."""
    out = np.zeros(shape, slices.dtype)
    grid, within = _common(box, shape)
    out[grid] = np.moveaxis(slices[:, within[0], within[1]], 0, 2)
    return out


def _common(box: Box, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Rows and columns that a grid and a box share, counted on the grid and in the box."""
    ends = [(max(a, 0), min(b, n), a) for (a, b), n in zip(box, shape, strict=False)]
    return tuple(slice(a, b) for a, b, _ in ends), tuple(slice(a - o, b - o) for a, b, o in ends)


def predictor_input(stack: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Stack slices with their heights (mm) for a network: float32 (slices, 2, rows, columns)."""
    height = np.asarray(heights / HEIGHT_MM, np.float32)[:, None, None]
    return np.stack([stack, np.broadcast_to(height, stack.shape)], axis=1).astype(np.float32)
