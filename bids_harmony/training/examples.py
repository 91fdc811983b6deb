"""What a predictor learns from: middle slices of scans, each with its scan's target."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bids_harmony.models.slices import middle_slices
from bids_harmony.training.data import TrainingSet


@dataclass(frozen=True)
class Examples:
    """Middle slices of scans with one target value per scan, read when they are drawn.

    Attributes
    ----------
    data : TrainingSet
        All scans.
    scans : numpy.ndarray
        (n,) numbers of the scans.
    targets : numpy.ndarray
        (n,) values, or 0/1.
    numbers : numpy.ndarray
        Numbers of the middle slices.
    changed : dict of int to numpy.ndarray
        Slices (slices, rows, columns) that take the place of a scan's own, by place in ``scans``.
    """

    data: TrainingSet
    scans: np.ndarray
    targets: np.ndarray
    numbers: np.ndarray
    changed: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: TrainingSet,
        scans: np.ndarray,
        targets: np.ndarray,
        slice_mm: tuple[float, float],
        changed: dict[int, np.ndarray] | None = None,
    ) -> Examples:
        """Take the slices whose heights lie in ``slice_mm``."""
        numbers = middle_slices(len(data.heights), data.affine, slice_mm)
        return cls(data, scans, np.asarray(targets, dtype=float), numbers, changed or {})

    @property
    def persons(self) -> np.ndarray:
        """Person of each of the scans."""
        return np.asarray(self.data.persons[self.scans])

    @property
    def heights(self) -> np.ndarray:
        """Heights of the middle slices in mm."""
        return np.asarray(self.data.heights[self.numbers])

    def draw(self, which: np.ndarray, slices: np.ndarray) -> Tensor:
        """Read slices: (n, 1, rows, columns), by place in ``scans`` and among the middle ones."""
        images = self.data.slices(self.scans[which], self.numbers[slices])[:, None]
        for i, (scan, number) in enumerate(zip(which, slices, strict=True)):
            if int(scan) in self.changed:
                images[i, 0] = self.changed[int(scan)][number]
        return torch.from_numpy(images)

    def stack(self, which: int) -> np.ndarray:
        """Read all middle slices of a scan, float32 (slices, rows, columns)."""
        if which in self.changed:
            return self.changed[which].astype(np.float32)
        return np.asarray(self.data.stack(int(self.scans[which]))[0][self.numbers])
