"""Axial slices of volumes on the template grid, as the networks take them."""

from __future__ import annotations

import numpy as np

#: Rows and columns of the template grid that networks see.
Box = tuple[tuple[int, int], tuple[int, int]]


def slice_heights(n_slices: int, affine: np.ndarray) -> np.ndarray:
    """Height (template z, mm) of each axial slice."""
    return np.asarray(affine[2, 3] + affine[2, 2] * np.arange(n_slices))


def middle_slices(n_slices: int, affine: np.ndarray, slice_mm: tuple[float, float]) -> np.ndarray:
    """Numbers of the slices whose height lies in ``slice_mm``, ends included."""
    heights = slice_heights(n_slices, affine)
    return np.flatnonzero((heights >= slice_mm[0]) & (heights <= slice_mm[1]))


def scaled_height(heights: np.ndarray) -> np.ndarray:
    """Heights in mm as the networks' input channel, about -1 to 1."""
    return np.asarray(heights / 70.0, dtype=np.float32)


def fit_box(box: Box, mask: np.ndarray, stride: int) -> Box:
    """Extend a box of rows and columns until it holds the mask, by multiples of ``stride``.

    The ends may lie outside the grid: :func:`crop` fills with zeros.
    """
    ends = []
    for (start, stop), other in zip(box, (1, 0), strict=True):
        used = np.flatnonzero(mask.any(axis=(other, 2)))
        low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (start, stop)
        start -= -(-max(start - low, 0) // stride) * stride
        stop += -(-max(high - stop, 0) // stride) * stride
        ends.append((start, stop))
    return ends[0], ends[1]


def crop(volume: np.ndarray, box: Box) -> np.ndarray:
    """Cut rows and columns out of a volume, slices first: (slices, rows, columns).

    Where the box reaches over the grid's edge the result is 0.
    """
    out = np.zeros((volume.shape[2], *(b - a for a, b in box)), volume.dtype)
    inside = [slice(max(a, 0), min(b, n)) for (a, b), n in zip(box, volume.shape, strict=False)]
    target = [slice(s.start - a, s.stop - a) for s, (a, _) in zip(inside, box, strict=True)]
    out[:, target[0], target[1]] = np.moveaxis(volume[inside[0], inside[1]], 2, 0)
    return out


def uncrop(slices: np.ndarray, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """Put :func:`crop`'s slices back into a volume of ``shape``, 0 elsewhere."""
    out = np.zeros(shape, slices.dtype)
    inside = [slice(max(a, 0), min(b, n)) for (a, b), n in zip(box, shape, strict=False)]
    source = [slice(s.start - a, s.stop - a) for s, (a, _) in zip(inside, box, strict=True)]
    out[inside[0], inside[1]] = np.moveaxis(slices[:, source[0], source[1]], 0, 2)
    return out


def slice_input(images: np.ndarray, masks: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Build a generator's input, in training and at inference alike.

    Parameters
    ----------
    images : numpy.ndarray
        (n, 2 * around + 1, rows, columns) slices with their neighbours, lowest first.
    masks : numpy.ndarray
        (n, rows, columns) of the slices in the middle.
    heights : numpy.ndarray
        (n,) heights in mm.

    Returns
    -------
    numpy.ndarray
        float32 (n, 3 + 2 * around, rows, columns): slice, mask, height, neighbours.
    """
    around = images.shape[1] // 2
    height = np.broadcast_to(scaled_height(heights)[:, None, None], masks.shape)
    first = np.stack([images[:, around], masks, height], axis=1)
    both = np.concatenate([first, np.delete(images, around, axis=1)], axis=1)
    return np.asarray(both, dtype=np.float32)


def generator_input(
    stack: np.ndarray, mask: np.ndarray, heights: np.ndarray, around: int = 0
) -> np.ndarray:
    """Build a generator's input of every slice of a stack.

    Parameters
    ----------
    stack, mask : numpy.ndarray
        (slices, rows, columns) intensities and mask.
    heights : numpy.ndarray
        (slices,) heights in mm.
    around : int
        Neighbours on each side; beyond the stack's ends the last slice is repeated.

    Returns
    -------
    numpy.ndarray
        As :func:`slice_input`, one entry per slice.
    """
    numbers = np.arange(len(stack))[:, None] + np.arange(-around, around + 1)
    return slice_input(stack[numbers.clip(0, len(stack) - 1)], mask, heights)


def predictor_input(stack: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Build a slice network's input: float32 (slices, 2, rows, columns)."""
    height = np.broadcast_to(scaled_height(heights)[:, None, None], stack.shape)
    return np.stack([stack, height], axis=1).astype(np.float32)
