"""Intensity scaling and bias field."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bids_harmony.anat.intensity import bias_field, normalize, tissue_means
from bids_harmony.errors import ScanError


def brain(csf: float = 0.3, gm: float = 0.7, noise: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Return a ball: white core with a ventricle, folded grey rind, CSF shell; and its mask."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij"))
    r = np.sqrt((grid**2).sum(axis=0))
    angle = np.arctan2(grid[1], grid[0])
    cortex = 0.8 + 0.05 * np.sin(9 * angle)
    volume = np.where(r < cortex, gm, csf)
    volume = np.where(r < cortex - 0.18, 1.0, volume)
    volume = np.where(r < 0.2, csf, volume)
    mask = r < 0.92
    volume = volume + noise * np.random.default_rng(0).standard_normal(r.shape)
    return np.where(mask, np.maximum(volume, 0.01), 0), mask


def test_white_matter_becomes_one_and_background_zero_in_any_unit() -> None:
    volume, mask = brain()
    results = [normalize(volume * unit, mask, 2.0) for unit in (1.0, 1234.5)]
    for scaled, used, record in results:
        assert scaled.dtype == np.float32
        assert not scaled[~used].any()
        assert (scaled[used] > 0).all()
        assert np.median(scaled[20:28, 20:28, 10:14]) == pytest.approx(1, abs=0.03)
        assert np.median(scaled[20:28, 20:28, 20:28][used[20:28, 20:28, 20:28]]) < 0.1
        assert used[24, 24, 24]  # CSF inside the brain stays
        assert record["mask_ml"] > record["used_ml"] > 0.5 * record["mask_ml"]
    assert np.allclose(results[0][0], results[1][0], atol=1e-4)


def test_loose_and_tight_masks_give_the_same_picture() -> None:
    volume, loose = brain()
    tight = loose & (volume > 0.5)
    tight = ndimage.binary_fill_holes(ndimage.binary_opening(tight))
    assert tight.sum() < 0.8 * loose.sum()
    a, b = (normalize(volume * m, m, 2.0)[0] for m in (loose, tight))
    assert np.abs(a - b)[loose].mean() < 0.02
    divided = [np.where(m, volume, 0) / volume[loose].max() for m in (loose, tight)]
    assert np.abs(divided[0] - divided[1])[loose].mean() > 0.05


@settings(deadline=None, max_examples=10)
@given(st.floats(0.1, 0.4), st.floats(0.65, 0.85), st.floats(0.1, 1e4))
def test_tissue_means_are_found_whatever_the_contrast(csf: float, gm: float, unit: float) -> None:
    volume, mask = brain(csf, gm)
    means = tissue_means(volume * unit, mask, 2.0)
    assert means is not None
    assert np.allclose(np.array(means) / unit, [csf, gm, 1.0], atol=0.08)
    scaled, _, _ = normalize(volume * unit, mask, 2.0, bias_order=0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    assert np.median(scaled[(radius > 0.66) & (radius < 0.72)]) == pytest.approx(0.55, abs=0.08)


def test_a_bias_field_is_found_and_removed() -> None:
    # Grey and white matter interleaved as in a folded brain: in a ball of shells a smooth field
    # could pass for the difference between them.
    volume, mask = brain()
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij")
    folds = np.sin(12 * x) + np.sin(12 * y) + np.sin(12 * z)
    inner = mask & (volume > 0.5)
    volume[inner] = np.where(folds[inner] > 0, 1.0, 0.7)
    volume += 0.02 * np.random.default_rng(0).standard_normal(volume.shape)
    volume = np.where(mask, np.maximum(volume, 0.01), 0)
    truth = np.exp(0.3 * x - 0.2 * y**2)
    found = bias_field(volume * truth, mask, 3)
    where = inner & (np.sqrt(x**2 + y**2 + z**2) < 0.7)
    ratio = np.log(found / truth)[where]
    assert ratio.std() < 0.25 * np.log(truth)[where].std()
    assert np.array_equal(bias_field(volume, mask, 0), np.ones(volume.shape))
    flat = bias_field(volume, mask, 3)[where]
    assert np.percentile(flat, 95) / np.percentile(flat, 5) < 1.08


@pytest.mark.parametrize("inside", [True, False])
def test_what_is_no_brain_is_refused(inside: bool) -> None:
    with pytest.raises(ScanError):
        normalize(np.full((20, 20, 20), 5.0), np.full((20, 20, 20), inside), 2.0)
