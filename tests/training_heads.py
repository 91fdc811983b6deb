"""Small made-up heads of several sites, preprocessed, for tests of training."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from training_data import from_arrays

from bids_harmony.training.data import TrainingSet, TrainScan

SHAPE = (40, 44, 30)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = (-78, -86, -58)


def head(
    age: float, rng: np.random.Generator, gamma: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return a ball with a ventricle that grows with age, and its mask."""
    mm = np.stack(np.meshgrid(*[np.arange(n) * 4.0 for n in SHAPE], indexing="ij"))
    mm += AFFINE[:3, 3][:, None, None, None]
    r = np.sqrt(((mm - rng.normal(0, 1, (3, 1, 1, 1))) ** 2).sum(axis=0))
    volume = np.where(r < 38, 1.0, 0.75**gamma)
    volume = np.where(r < 5 + age / 4, 0.5**gamma, volume)
    mask = r < 56
    volume = np.clip(volume + 0.02 * rng.standard_normal(SHAPE), 0.01, 2)
    return np.where(mask, volume, 0).astype(np.float32), mask


def write_scans(
    folder: Path,
    counts: dict[str, int],
    gammas: dict[str, float],
    names: tuple[str, str] = ("{0}_T1w.nii.gz", "{0}_mask.nii.gz"),
) -> list[TrainScan]:
    """Write so many heads of each site; ``names`` are those of images and masks by subject."""
    rng, scans = np.random.default_rng(0), []
    for site, n in counts.items():
        for i in range(n):
            age = 20 + 50 * i / max(n - 1, 1)
            volume, mask = head(age, rng, gammas.get(site, 1.0))
            paths = [folder / name.format(f"{site}{i}") for name in names]
            for path, data in zip(paths, (volume, mask.astype(np.uint8)), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(data, AFFINE), path)
            scans.append(TrainScan(f"{site}{i}", site, *paths, age, {"snr_wm": 10.0 + i}))
    return scans


def people(table: pd.DataFrame, n_slices: int = 12) -> TrainingSet:
    """Return a set whose scans differ in their table only, brain in slices 2 to 9."""
    masks = np.zeros((len(table), n_slices, 4, 4), dtype=bool)
    masks[:, 2:10] = True
    images = np.broadcast_to(np.arange(n_slices)[:, None, None] / 10, masks.shape)
    return from_arrays(images, masks, table)


def table(sites: dict[str, list[float]], sex: str | None = None) -> pd.DataFrame:
    rows = [{"site": site, "age": age, "sex": sex} for site, ages in sites.items() for age in ages]
    return pd.DataFrame(rows)
