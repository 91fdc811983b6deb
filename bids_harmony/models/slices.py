"""Axial slices of volumes on the template grid, and what networks predict from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

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


def predict_slices(
    ensembles: Sequence[Sequence[nn.Module]],
    volume: np.ndarray,
    affine: np.ndarray,
    box: Box,
    slice_mm: tuple[float, float],
    device: str = "cpu",
    step: int = 1,
) -> np.ndarray:
    """Predict from a volume, slice by slice.

    Networks on slices say how the slices differ, and all ensembles together what their median is.

    Parameters
    ----------
    ensembles : sequence of sequence of torch.nn.Module
        Networks on slices and, where there are any, on whole scans. What they predict is the mean
        over ensembles; within an ensemble, networks are averaged, and slices have their median.
    volume : numpy.ndarray
        3-D preprocessed volume on the template grid.
    affine : numpy.ndarray
        4 x 4 affine of that grid.
    box, slice_mm
        Of the bundle and its contract.
    device : str
        torch device.
    step : int
        Take every ``step``-th slice only.

    Returns
    -------
    numpy.ndarray
        Years, or the logit of a probability, of every ``step``-th slice of
        :func:`middle_slices`; their median is the prediction.
    """
    import torch

    from bids_harmony.models.networks import GreyMatterNetwork, repeatable

    chosen = middle_slices(volume.shape[2], affine, slice_mm)[::step]
    heights = slice_heights(volume.shape[2], affine)[chosen]
    whole = crop(volume, box).astype(np.float32)
    slices, medians = np.zeros(len(chosen)), []
    with repeatable():
        for networks in ensembles:
            on_volumes = isinstance(networks[0], GreyMatterNetwork)
            inputs = whole[None] if on_volumes else predictor_input(whole[chosen], heights)
            x = torch.from_numpy(inputs).to(device)
            values = np.mean([network(x).double().cpu().numpy() for network in networks], axis=0)
            medians.append(float(np.median(values)))
            slices = slices if on_volumes else values
    return np.asarray(slices + np.mean(medians) - np.median(slices))


def predict_value(
    ensembles: Sequence[Sequence[nn.Module]],
    volume: np.ndarray,
    affine: np.ndarray,
    box: Box,
    slice_mm: tuple[float, float],
    device: str = "cpu",
    step: int = 1,
) -> float:
    """Predict one value from a volume: the median of :func:`predict_slices`."""
    values = predict_slices(ensembles, volume, affine, box, slice_mm, device, step)
    return float(np.median(values))
