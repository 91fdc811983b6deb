"""Networks, slices and bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_bundle import write_random_bundle

from bids_harmony.models.bundle import Bundle, load_bundle
from bids_harmony.models.networks import SliceNetwork, crop, uncrop


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_random_bundle(tmp_path_factory.mktemp("models") / "bundle")


def test_slice_network_is_ten_layers_deep_and_centred_on_its_targets() -> None:
    network = SliceNetwork([4, 4, 8, 8, 8], [32, 64], mean=40.0, scale=0.0).eval()
    convolutions = [
        m for m in network.modules()
        if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)
    ]  # fmt: skip
    assert len(convolutions) + 1 == 10
    assert network(torch.rand(3, 2, 32, 64)).tolist() == [40.0] * 3


@given(st.integers(-4, 6), st.integers(5, 14), st.integers(-3, 4), st.integers(6, 12))
def test_crop_and_uncrop_keep_what_is_inside(a: int, b: int, c: int, d: int) -> None:
    volume = np.arange(1, 10 * 9 * 4 + 1).reshape(10, 9, 4)
    box = ((a, b + 2), (c, d))
    back = uncrop(crop(volume, box), box, volume.shape)
    inside = np.zeros(volume.shape, bool)
    inside[max(a, 0) : b + 2, max(c, 0) : d] = True
    assert np.array_equal(back, np.where(inside, volume, 0))


def test_networks_are_loaded_once_per_process(bundle: Bundle) -> None:
    assert bundle.networks()["brain_age"] is load_bundle(bundle.path).networks()["brain_age"]


def test_stored_bundle_replaces_an_older_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    one = write_random_bundle(tmp_path / "b", seed=1)
    two = write_random_bundle(tmp_path / "b", seed=2)
    assert one.sha256 != two.sha256 == load_bundle(tmp_path / "b").sha256
    assert two.sha256 == write_random_bundle(tmp_path / "c", seed=2).sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c"]
