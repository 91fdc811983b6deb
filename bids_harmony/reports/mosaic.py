"""Slices of a volume laid out on one canvas, so that one drawing call shows them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

#: Axis cut through, by the name of the slices it gives.
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
GAP = 3


@dataclass(frozen=True)
class Layout:
    """Which slices are shown, and how large.

    Attributes
    ----------
    cuts : tuple of tuple
        For each row, (axis, indices of the slices).
    box : tuple of tuple
        First and last-plus-one voxel of the part shown, per axis.
    zooms : tuple of float
        Voxel size in mm; each shown pixel is ``pixel_mm`` wide.
    pixel_mm : float
        Size of a pixel.
    """

    cuts: tuple[tuple[int, tuple[int, ...]], ...]
    box: tuple[tuple[int, int], ...]
    zooms: tuple[float, ...]
    pixel_mm: float = 1.0

    def panel(self, volume: np.ndarray, axis: int, index: int, order: int = 1) -> np.ndarray:
        """One slice, rows from top to bottom and columns as a viewer expects them.

        Axial and coronal slices show the right of the brain on the right ("neurological");
        sagittal slices look to the left of the page.
        """
        planes = [i for i in range(3) if i != axis]
        cut = volume[tuple(index if i == axis else slice(*self.box[i]) for i in range(3))].astype(
            np.float32
        )
        scale = [self.zooms[i] / self.pixel_mm for i in planes]
        if not np.allclose(scale, 1.0):
            shape = [max(1, round(n * s)) for n, s in zip(cut.shape, scale, strict=True)]
            cut = ndimage.affine_transform(
                cut, np.diag(1 / np.array(scale)), output_shape=shape, order=order, mode="nearest",
                offset=[(1 / s - 1) / 2 for s in scale],
            )  # fmt: skip
        if axis == 0:
            cut = cut[::-1]
        return np.ascontiguousarray(cut.T[::-1])

    def canvas(
        self, volume: np.ndarray, fill: float = 0.0, order: int = 1
    ) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
        """All slices on one canvas.

        Parameters
        ----------
        volume : numpy.ndarray
            3-D array.
        fill : float
            Value between the slices.
        order : int
            Order of the interpolation.

        Returns
        -------
        canvas : numpy.ndarray
            2-D array.
        places : list of tuple
            (x, y) of the upper left pixel of each slice, its axis and its index.
        """
        rows = [
            [(self.panel(volume, axis, index, order), axis, index) for index in indices]
            for axis, indices in self.cuts
        ]
        width = max(sum(p.shape[1] + GAP for p, _, _ in row) for row in rows) + GAP
        height = sum(max(p.shape[0] for p, _, _ in row) + GAP for row in rows) + GAP
        canvas = np.full((height, width), fill, dtype=np.float32)
        places: list[tuple[int, int, int, int]] = []
        y = GAP
        for row in rows:
            total = sum(p.shape[1] for p, _, _ in row)
            gap = (width - total) / (len(row) + 1)
            x = gap
            for panel, axis, index in row:
                left = round(x)
                canvas[y : y + panel.shape[0], left : left + panel.shape[1]] = panel
                places.append((left, y, axis, index))
                x += panel.shape[1] + gap
            y += max(p.shape[0] for p, _, _ in row) + GAP
        return canvas, places


def layout(
    mask: np.ndarray,
    zooms: Sequence[float],
    *,
    names: Sequence[str] = ("axial", "coronal", "sagittal"),
    n_cuts: int = 6,
    margin_mm: float = 12.0,
    pixel_mm: float = 1.0,
) -> Layout:
    """Choose slices spread over a mask, and the part of them to show.

    Parameters
    ----------
    mask : numpy.ndarray
        Boolean mask; where it is empty, the whole volume counts.
    zooms : sequence of float
        Voxel size in mm.
    names : sequence of str
        Rows: ``axial``, ``coronal``, ``sagittal``.
    n_cuts : int
        Slices per row.
    margin_mm : float
        How much is shown around the mask.
    pixel_mm : float
        Size of a pixel of the result.
    """
    box, inner = [], []
    for axis in range(3):
        others = tuple(i for i in range(3) if i != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        low, high = (int(inside[0]), int(inside[-1])) if inside.size else (0, mask.shape[axis] - 1)
        margin = round(margin_mm / zooms[axis])
        box.append((max(0, low - margin), min(mask.shape[axis], high + 1 + margin)))
        inner.append((low, high))
    cuts = []
    for name in names:
        low, high = inner[AXES[name]]
        steps = np.linspace(0.12, 0.88, n_cuts)
        cuts.append((AXES[name], tuple(round(low + s * (high - low)) for s in steps)))
    return Layout(tuple(cuts), tuple(box), tuple(float(z) for z in zooms), pixel_mm)
