"""Where the template lies in a scan."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import nitransforms as nt
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation
from t1w_images import SHAPE, affine, scan

from bids_harmony.anat.affine import (
    GOOD_LIKENESS,
    downsample,
    likeness,
    register_affine,
    resample,
    write_affine,
)
from bids_harmony.anat.template import load_template


def test_downsampling_keeps_places_and_leaves_coarse_images_alone() -> None:
    img = nib.Nifti1Image(scan(), affine())
    same = downsample(img, 2.0)
    np.testing.assert_array_equal(np.asarray(same.dataobj), scan())
    np.testing.assert_array_equal(same.affine, affine())
    blob = np.zeros(SHAPE, np.float32)
    blob[20:25, 30:35, 15:20] = 1
    small = downsample(nib.Nifti1Image(blob, affine()), 8.0)
    assert small.shape == (24, 28, 20)
    centre = apply_affine(small.affine, ndimage.center_of_mass(np.asarray(small.dataobj)))
    np.testing.assert_allclose(centre, apply_affine(affine(), (22, 32, 17)), atol=0.2)


def test_resampling_there_and_back_returns_the_scan(tmp_path: Path) -> None:
    """With a left-handed oblique grid on one side and a known transform."""
    moving = nib.Nifti1Image(
        ndimage.gaussian_filter(scan(), 2), affine(turn=(8, 5, -9), flip=True)
    )
    reference = nib.Nifti1Image(np.zeros((70, 80, 64), np.float32), affine())
    true = np.eye(4)
    true[:3, :3] = Rotation.from_euler("xyz", [4, -6, 10], degrees=True).as_matrix() * 1.1
    true[:3, 3] = (5, -3, 8)
    xfm = write_affine(true, tmp_path / "a.txt")
    moved = resample(moving, reference, xfm)
    expected = ndimage.affine_transform(
        np.asarray(moving.dataobj),
        np.linalg.inv(moving.affine) @ true @ reference.affine,
        output_shape=reference.shape,
        order=1,
    )
    both = (np.asarray(moved.dataobj) != 0) & (expected != 0)
    assert both.mean() > 0.1
    np.testing.assert_allclose(np.asarray(moved.dataobj)[both], expected[both], atol=0.05)
    back = np.asarray(resample(moved, moving, xfm, invert=True).dataobj)
    inside = ndimage.binary_erosion(back != 0, iterations=4)
    assert inside.sum() > 1000
    assert np.corrcoef(back[inside], np.asarray(moving.dataobj)[inside])[0, 1] > 0.99


def brain_in_scanner(true: np.ndarray) -> nib.Nifti1Image:
    """Scan the template's brain: left-handed 3 mm grid, bias field, noise, pose ``true``."""
    template = load_template(2).t1w
    low = np.diag([-3.0, 3, 3, 1])
    low[:3, 3] = (90, -125, -75)
    shape = (62, 70, 62)
    data = ndimage.affine_transform(
        np.asarray(template.dataobj),
        np.linalg.inv(template.affine) @ np.linalg.inv(true) @ (true @ low),
        output_shape=shape,
        order=1,
    )
    x = np.linspace(-1, 1, shape[0])[:, None, None]
    rng = np.random.default_rng(1)
    noisy = data * (1 + 0.3 * x) * 400 + rng.normal(0, 10, shape) * (data > 0)
    return nib.Nifti1Image(noisy.astype(np.float32), true @ low)


def residual(xfm: Path, true: np.ndarray) -> float:
    """Greatest distance, in mm over the template's brain, between found and true places."""
    template = load_template(2)
    points = apply_affine(template.t1w.affine, np.argwhere(template.mask)[::500])
    found = nt.linear.load(str(xfm), fmt="itk").map(points)
    return float(np.linalg.norm(found - apply_affine(true, points), axis=1).max())


def pose(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    true = np.eye(4)
    rotation = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    true[:3, :3] = rotation @ np.diag([1.05, 0.95, 1.1])
    true[:3, 3] = shift
    return true


def test_affine_is_found_repeatably_and_looks_like_the_template(tmp_path: Path) -> None:
    true = pose((15, -10, 20), (60, -20, 40))
    brain, template = brain_in_scanner(true), load_template(2).t1w
    first = register_affine(brain, template, tmp_path / "a.txt")
    second = register_affine(brain, template, tmp_path / "b.txt")
    assert residual(first, true) < 2.0
    assert first.read_bytes() == second.read_bytes()
    assert likeness(resample(brain, template, first), template) > GOOD_LIKENESS
    turned = nib.Nifti1Image(np.asarray(template.dataobj)[:, ::-1], template.affine)
    assert likeness(turned, template) < GOOD_LIKENESS


def test_affine_of_a_head_lying_on_its_side_is_found(tmp_path: Path) -> None:
    true = pose((90, 20, -30), (10, 0, 0))
    brain = brain_in_scanner(true)
    xfm = register_affine(brain, load_template(2).t1w, tmp_path / "a.txt", sloppy=True)
    assert residual(xfm, true) < 4.0
