"""Networks, slices and bundles."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_bundle import write_random_bundle
from safetensors.torch import load, save

from bids_harmony.errors import BundleError
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


def _edit(folder: Path, **changes: object) -> None:
    file = folder / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: shutil.rmtree(f), "no model bundle"),
        (lambda f: (f / "bundle.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "bundle.json").write_text("[]"), "format"),
        (lambda f: _edit(f, format=99), "format"),
        (lambda f: _edit(f, surprise=1), "surprise"),
        (lambda f: _edit(f, files=[]), "wrong type"),
        (lambda f: _edit(f, contract={"skull_strip": "deepbet"}), "contract"),
    ],
)
def test_damaged_bundle_is_refused(tmp_path: Path, damage: object, words: str) -> None:
    write_random_bundle(tmp_path / "b")
    damage(tmp_path / "b")  # type: ignore[operator]
    with pytest.raises(BundleError, match=words) as caught:
        load_bundle(tmp_path / "b")
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("change", ["extra", "shape", "nan"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: str) -> None:
    folder = write_random_bundle(tmp_path / "b").path
    tensors = load((folder / "brain_age.safetensors").read_bytes())
    wrong = {
        "extra": {"more": torch.zeros(1)},
        "shape": {"head.weight": torch.zeros(2, 2)},
        "nan": {"head.weight": tensors["head.weight"] * float("nan")},
    }
    data = save(tensors | wrong[change])
    (folder / "brain_age.safetensors").write_bytes(data)
    files = json.loads((folder / "bundle.json").read_text())["files"]
    digest = hashlib.sha256(data).hexdigest()
    _edit(folder, files=files | {"brain_age.safetensors": digest})
    with pytest.raises(BundleError, match="weights of brain_age"):
        load_bundle(folder).networks()
