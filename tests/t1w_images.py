"""Small made-up T1w images, in any orientation, and NIfTI files with any header."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

SHAPE = (48, 56, 40)
ZOOM = 4.0
NAN = float("nan")
#: Fields of a NIfTI-1 header: offset in bytes and format.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE = (
    (40, "8h"), (70, "2h"), (76, "4f"), (108, "f"), (112, "2f"),
)  # fmt: skip
CODES, QUATERNION, QOFFSET, SROW = (252, "2h"), (256, "3f"), (268, "f"), (280, "12f")
Change = tuple[tuple[int, str], tuple[float, ...]]


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


def nifti(
    *changes: Change, data: np.ndarray | None = None, matrix: np.ndarray | None = None
) -> bytes:
    """Bytes of a scan with its affine in both forms, and some fields of its header changed."""
    img = nib.Nifti1Image(scan() if data is None else data, affine() if matrix is None else matrix)
    img.set_sform(img.affine, 1)
    img.set_qform(img.affine, 1)
    content = bytearray(img.to_bytes())
    for (place, form), values in changes:
        struct.pack_into("<" + form, content, place, *values)
    return bytes(content)


def srow(matrix: np.ndarray) -> Change:
    """Put a matrix into the sform."""
    return SROW, tuple(matrix[:3].ravel())
