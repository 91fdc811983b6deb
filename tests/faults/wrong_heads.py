"""Scans of something else than an adult head in the ordinary position, as well as can be made."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_harmony.simulation.anatomy import Head, Tissue, make_head
from bids_harmony.simulation.scanner import draw_scanner, scan_head

HOUNSFIELD = {"AIR": -1000, "BRAIN": 37, "CSF": 8, "BONE": 1000, "MARROW": 300, "FAT": -80}
SOFT = 40


def wrong_heads() -> dict[str, nib.Nifti1Image]:
    """By name; ``plain`` is the head they are made from."""
    head = make_head(3, age=45, spacing=2)
    scanner = draw_scanner(1, 3, min_voxel_mm=2.0)
    images, _ = scan_head(head, scanner, (1,))
    plain, mask = images["t1w"], images["brain"]
    data, affine = plain.get_fdata(dtype=np.float32), plain.affine
    tumour = make_head(3, age=45, spacing=2, lesion=True)
    t2w = scan_head(head, scanner, (1,), "wrong-contrast")[0]["t1w"]
    return {
        "plain": plain,
        "turned by 90 degrees": _image(data, _turn("x", 90) @ affine),
        "upside down": _image(data, _turn("y", 180) @ affine),
        "flipped left-right": _image(data, np.diag([-1.0, 1, 1, 1]) @ affine),
        "T2w named T1w": t2w,
        "knee": knee(),
        "CT": ct(head),
        "infant": infant(data, np.asarray(mask.dataobj) > 0, affine),
        "tumour": scan_head(tumour, scanner, (1,))[0]["t1w"],
    }


def knee() -> nib.Nifti1Image:
    """Two long bones with their joint, in muscle, under fat; 16 cm of a leg."""
    n = 80
    x, y, z = np.meshgrid(*[2.0 * np.arange(n) - n] * 3, indexing="ij")
    data = np.where(np.hypot(x, y) < 62, 900.0, 0.0)
    data[np.hypot(x, y) < 54] = 350
    wide = 6 * np.exp(-((np.abs(z) - 10) ** 2) / 200)
    bone, marrow = (np.hypot(x, y - 8) < radius + wide for radius in (24, 21))
    data[bone] = 60
    data[marrow] = 850
    data[bone & (np.abs(z) < 3)] = 250
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -n
    return _image(_noisy(ndimage.gaussian_filter(data, 0.6), 15), affine)


def ct(head: Head) -> nib.Nifti1Image:
    """Tissues in Hounsfield units."""
    data = np.full(head.labels.shape, float(HOUNSFIELD["AIR"]))
    for tissue in Tissue:
        data[head.labels == tissue] = HOUNSFIELD.get(tissue.name, SOFT)
    rng = np.random.default_rng(0)
    return _image(ndimage.gaussian_filter(data, 0.5) + rng.normal(0, 8, data.shape), head.affine)


def infant(data: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A head of 62 % of the size, white matter darker than grey."""
    young = data.copy()
    young[brain] = np.maximum(2 * np.median(data[brain]) - data[brain], 0)
    return _image(young, np.diag([0.62, 0.62, 0.62, 1]) @ affine)


def _turn(axis: str, degrees: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return matrix


def _noisy(data: np.ndarray, sd: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    noisy: np.ndarray = np.hypot(
        data + rng.normal(0, sd, data.shape), rng.normal(0, sd, data.shape)
    )
    return noisy


def _image(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    img = nib.Nifti1Image(data.astype(np.float32), affine)
    img.set_sform(affine, 1)
    img.set_qform(affine, 1)
    return img
