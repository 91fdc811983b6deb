"""Small made-up T1w images, in any orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

SHAPE = (48, 56, 40)
ZOOM = 4.0


def scan(dtype: Any = np.float32) -> np.ndarray:
    """Smooth positive values without any symmetry."""
    rng = np.random.default_rng(7)
    data = ndimage.gaussian_filter(rng.random(SHAPE), 2)
    return (1000 * (data - data.min()) / np.ptp(data)).astype(dtype)


def affine(*, turn: tuple[float, float, float] = (0, 0, 0), flip: bool = False) -> np.ndarray:
    matrix = np.eye(4)
    rotation = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    matrix[:3, :3] = rotation @ np.diag([-ZOOM if flip else ZOOM, ZOOM, ZOOM])
    matrix[:3, 3] = -matrix[:3, :3] @ (np.array(SHAPE) - 1) / 2
    return matrix


def write(path: Path, data: np.ndarray, matrix: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, affine() if matrix is None else matrix), path)
    return path
