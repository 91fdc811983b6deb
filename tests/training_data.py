"""Small training sets in memory."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from bids_harmony.models.networks import Box, uncrop
from bids_harmony.sites.code import describe, vector
from bids_harmony.training.data import TrainingSet


def from_arrays(
    images: np.ndarray,
    masks: np.ndarray,
    table: pd.DataFrame,
    *,
    affine: np.ndarray | None = None,
    box: Box | None = None,
    shape: tuple[int, ...] | None = None,
) -> TrainingSet:
    """Make a set of (scans, slices, rows, columns) arrays; what the table lacks is unknown."""
    n_slices, rows, columns = images.shape[1:]
    affine = np.eye(4) if affine is None else np.asarray(affine, dtype=float)
    box, shape = box or ((0, rows), (0, columns)), shape or (rows, columns, n_slices)
    table, n = table.reset_index(drop=True), len(images)
    unknown = dict.fromkeys(("sex", "diagnosis", "qc_status"))
    unknown |= {"subject": [f"{i:04d}" for i in range(n)], "age": np.nan, "metrics": [{}] * n}
    table = table.assign(**{name: v for name, v in unknown.items() if name not in table})
    whole = (
        (uncrop(np.where(m, v, 0), box, shape), uncrop(m, box, shape))
        for v, m in zip(images, np.asarray(masks, bool), strict=True)
    )
    table["descriptors"] = [vector(describe(v, m, abs(affine[0, 0]))).tolist() for v, m in whole]
    volumes = np.where(masks, images, np.nan).astype(np.float16)
    digests = tuple(hashlib.sha256(volume.tobytes()).hexdigest() for volume in volumes)
    return TrainingSet(volumes, table, box, shape, affine, digests)


def balls(
    counts: dict[str, int] | None = None, shape: tuple[int, int, int] = (12, 32, 48)
) -> TrainingSet:
    """Return scans of balls with a ventricle that grows with age; grey matter tells the site."""
    counts = counts or {"REF": 5, "A": 4, "B": 3}
    rng = np.random.default_rng(0)
    radius = np.linalg.norm(
        np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), axis=0
    )
    mask = radius < 0.9
    images, rows = [], []
    for grey, (site, n) in zip((0.55, 0.75, 0.4, 0.65), counts.items(), strict=False):
        for i in range(n):
            age = 20 + 50 * i / max(n - 1, 1)
            volume = np.where(radius < 0.6, 1.0, grey)
            volume[radius < 0.1 + age / 300] = 0.05
            noisy = volume + 0.02 * rng.standard_normal(shape)
            images.append(np.where(mask, np.clip(noisy, 0, 2), 0))
            rows.append({"subject": str(i), "site": site, "age": age, "sex": "MF"[i % 2]})
    return from_arrays(
        np.array(images), np.broadcast_to(mask, (len(images), *shape)), pd.DataFrame(rows)
    )
