"""Preprocessed scans in memory, and how they are split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from bids_harmony.errors import NoInputError, UsageError
from bids_harmony.models.slices import crop, fit_box, slice_heights
from bids_harmony.training.config import TrainScan

Box = tuple[tuple[int, int], tuple[int, int]]
#: Sides of the networks' slices are multiples of this: five halvings, in the predictor.
SIDE = 16


@dataclass(frozen=True)
class TrainingSet:
    """All scans of a training run, cut to one box.

    Attributes
    ----------
    images : numpy.ndarray
        (scans, slices, rows, columns) float16 intensities, white matter 1, background 0.
    masks : numpy.ndarray
        Boolean, same shape.
    subjects, sites, ages : numpy.ndarray
        One entry per scan; an unknown age is NaN.
    heights : numpy.ndarray
        (slices,) template z in mm.
    box : tuple
        Rows and columns of the grid the images show.
    shape, affine : tuple of int, numpy.ndarray
        The template grid.
    """

    images: np.ndarray
    masks: np.ndarray
    subjects: np.ndarray
    sites: np.ndarray
    ages: np.ndarray
    heights: np.ndarray
    box: Box
    shape: tuple[int, ...]
    affine: np.ndarray

    def site_scans(self, site: str, among: np.ndarray) -> np.ndarray:
        """Return the scans of a site among the given scan numbers."""
        return np.asarray(among[self.sites[among] == site])


def load_scans(scans: Sequence[TrainScan]) -> TrainingSet:
    """Read preprocessed scans and cut them to a box that holds every brain.

    Parameters
    ----------
    scans : sequence of TrainScan
        Volumes on one template grid.

    Returns
    -------
    TrainingSet

    Raises
    ------
    NoInputError
        When there is no scan.
    UsageError
        When the scans are not on one grid.
    """
    if not scans:
        raise NoInputError(
            "No preprocessed scan was found to train on.", "Run the participant level first."
        )
    loaded = [(nib.load(s.t1w), nib.load(s.mask)) for s in scans]
    shape, affine = loaded[0][0].shape, loaded[0][0].affine
    volumes, masks = [], []
    for scan, (t1w, mask) in zip(scans, loaded, strict=True):
        if t1w.shape != shape or not np.allclose(t1w.affine, affine, atol=1e-3):
            raise UsageError(
                f"{scan.t1w.name} is not on the same grid as the other scans.",
                "Preprocess all scans with one template and resolution.",
            )
        inside = np.asarray(mask.dataobj) > 0
        volumes.append(np.where(inside, np.asarray(t1w.dataobj, np.float32), 0))
        masks.append(inside)
    box = _box(np.any(masks, axis=0))
    return TrainingSet(
        images=np.stack([crop(v, box) for v in volumes]).astype(np.float16),
        masks=np.stack([crop(m, box) for m in masks]),
        subjects=np.array([f"{s.site}/{s.subject}" for s in scans]),
        sites=np.array([s.site for s in scans]),
        ages=np.array([np.nan if s.age is None else s.age for s in scans], dtype=float),
        heights=slice_heights(shape[2], affine),
        box=box,
        shape=tuple(int(n) for n in shape),
        affine=np.asarray(affine, dtype=float),
    )


def _box(union: np.ndarray) -> Box:
    """Smallest box around a mask whose sides are multiples of :data:`SIDE`, centred on it."""
    ends = []
    for other in (1, 0):
        used = np.flatnonzero(union.any(axis=(other, 2)))
        low, high = int(used[0]), int(used[-1]) + 1
        spare = -(high - low) % SIDE
        ends.append((low - spare // 2, high + spare - spare // 2))
    return fit_box((ends[0], ends[1]), union, SIDE)


def hold_out(data: TrainingSet, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Choose scans to keep out of everything: whole subjects, every age, each site.

    Subjects of a site are ordered by age and cut into blocks of ``1 / fraction``; one of each
    block is held out. A site with fewer than four subjects is not split.

    Returns
    -------
    numpy.ndarray
        Boolean, one entry per scan.
    """
    held: set[str] = set()
    for site in np.unique(data.sites):
        subjects = _by_age(data, np.flatnonzero(data.sites == site))
        n_held = round(fraction * len(subjects)) if len(subjects) >= 4 else 0
        held |= {
            str(rng.choice(block)) for block in np.array_split(subjects, max(n_held, 1))[:n_held]
        }
    return np.isin(data.subjects, sorted(held))


def make_folds(
    data: TrainingSet, among: np.ndarray, n_folds: int, rng: np.random.Generator
) -> np.ndarray:
    """Give each scan a fold, by subject and balanced on age; -1 for scans not in ``among``."""
    folds = np.full(len(data.sites), -1)
    subjects = _by_age(data, among)
    for start in range(0, len(subjects), n_folds):
        order = rng.permutation(n_folds)
        for subject, fold in zip(subjects[start : start + n_folds], order, strict=False):
            folds[among[data.subjects[among] == subject]] = fold
    return folds


def _by_age(data: TrainingSet, among: np.ndarray) -> list[str]:
    """Subjects of the given scans, by age then label; unknown ages last."""
    first = {str(data.subjects[i]): float(data.ages[i]) for i in among[::-1]}
    return sorted(first, key=lambda s: (np.isnan(first[s]), first[s], s))
