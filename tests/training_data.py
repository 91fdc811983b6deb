"""A small training set with a known difference between sites."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bids_harmony.training.data import TrainingSet


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
    return TrainingSet.from_arrays(
        np.array(images), np.broadcast_to(mask, (len(images), *shape)), pd.DataFrame(rows)
    )
