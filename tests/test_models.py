"""Networks, bundles and their application to a scan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_calibration import made_calibration
from random_bundle import write_random_bundle

from bids_harmony.errors import BundleError
from bids_harmony.models import slices
from bids_harmony.models.apply import harmonize_volume, predict_scan
from bids_harmony.models.bundle import Bundle, load_bundle
from bids_harmony.models.networks import SliceNetwork

AFFINE = np.array([[2.0, 0, 0, -98], [0, 2, 0, -134], [0, 0, 2, -72], [0, 0, 0, 1]])
SHAPE = (99, 117, 95)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_random_bundle(tmp_path_factory.mktemp("models") / "bundle")


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray]:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    radius = np.sqrt((((grid.T - (49, 58, 42)) / (34, 42, 36)) ** 2).sum(axis=-1)).T
    mask = radius < 1
    volume = np.where(mask, 1 - 0.4 * radius**4, 0).astype(np.float32)
    return volume, mask


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
    back = slices.uncrop(slices.crop(volume, box), box, volume.shape)
    inside = np.zeros(volume.shape, bool)
    inside[max(a, 0) : b + 2, max(c, 0) : d] = True
    assert np.array_equal(back, np.where(inside, volume, 0))


def test_box_grows_by_whole_strides_until_it_holds_the_mask() -> None:
    mask = np.zeros((40, 40, 3), bool)
    mask[3:30, 10:35] = True
    (a, b), (c, d) = slices.fit_box(((8, 24), (8, 32)), mask, 8)
    assert (a, b, c, d) == (0, 32, 8, 40)


def test_a_harmonized_volume_is_masked_and_follows_the_calibration(
    bundle: Bundle, head: tuple[np.ndarray, np.ndarray]
) -> None:
    volume, mask = head
    calibration = made_calibration(bundle, -0.05)
    first = harmonize_volume(bundle, volume, mask, AFFINE, calibration)
    assert first.dtype == np.float32
    assert first.shape == SHAPE
    assert not first[~mask].any()
    # Well inside the range of the descriptors, all is brighter by what the site is darker.
    middle = mask & (volume > 0.62) & (volume < 0.9)
    kept = 16 / (16 + 1 / 8)  # shrunk for eight persons
    assert np.allclose(first[middle] - volume[middle], 0.05 * kept, atol=2e-3)
    # The curve rises: what was brighter stays brighter.
    order = np.argsort(volume[mask])
    assert (np.diff(first[mask][order]) >= 0).all()
    again = harmonize_volume(bundle, volume, mask, AFFINE, calibration)
    assert np.array_equal(first, again)


def test_predictions_have_the_promised_entries(
    bundle: Bundle, head: tuple[np.ndarray, np.ndarray]
) -> None:
    volume, mask = head
    harmonized = harmonize_volume(bundle, volume, mask, AFFINE, made_calibration(bundle))
    result = predict_scan(bundle, volume, harmonized, AFFINE, age=30.0, site="SRC")
    age = result["brain_age"]
    assert age["harmonized"] == pytest.approx(np.median(age["per_slice"]["harmonized"]), abs=0.011)
    assert age["gap_raw"] == pytest.approx(age["raw"] - 30, abs=0.011)
    assert age["interval_90"] == pytest.approx([age["harmonized"] - 12, age["harmonized"] + 12])
    assert age["age_in_training_range"] is True
    z = age["per_slice"]["z_mm"]
    assert (z[0], z[-1], len(z)) == (-28.0, 52.0, 41)
    probability = result["schizophrenia_probability"]
    assert 0 < probability["raw"] < 1
    assert probability["training_data"] == "simulated"
    assert result["bundle"] == bundle.identity()
    assert result["in_training"] == {"site": True, "reference_site": False}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result == predict_scan(bundle, volume, harmonized, AFFINE, age=30.0, site="SRC")


def test_predictions_without_harmonization_or_age(
    bundle: Bundle, head: tuple[np.ndarray, np.ndarray]
) -> None:
    age = predict_scan(bundle, head[0], None, AFFINE)["brain_age"]
    assert age["harmonized"] is None
    assert age["gap_raw"] is None
    assert age["interval_90"] == age["interval_90_raw"] != [None, None]


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


def _with_digest(folder: Path, name: str, data: bytes) -> None:
    import hashlib

    (folder / name).write_bytes(data)
    files = json.loads((folder / "bundle.json").read_text())["files"]
    _edit(folder, files=files | {name: hashlib.sha256(data).hexdigest()})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: shutil.rmtree(f), "no model bundle"),
        (lambda f: (f / "bundle.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "bundle.json").write_text("[]"), "format"),
        (lambda f: _edit(f, format=99), "format"),
        (lambda f: _edit(f, surprise=1), "surprise"),
        (lambda f: _edit(f, files=[]), "wrong kind"),
        (lambda f: _edit(f, contract={"skull_strip": "deepbet"}), "contract"),
        (lambda f: (f / "brain_age.safetensors").unlink(), "lacks its file brain_age"),
        (lambda f: (f / "extra.pkl").write_bytes(b"x"), "extra.pkl"),
        (lambda f: (f / "brain_age.safetensors").write_bytes(b"x"), "altered"),
        (lambda f: _edit(f, files={"../x": "0"}), "do not|does not know|outside"),
    ],
)
def test_damaged_bundle_is_refused(tmp_path: Path, damage: object, words: str) -> None:
    write_random_bundle(tmp_path / "b")
    damage(tmp_path / "b")  # type: ignore[operator]
    with pytest.raises(BundleError, match=words) as caught:
        load_bundle(tmp_path / "b")
    assert caught.value.exit_code == 78


def test_file_named_outside_the_bundle_is_refused(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "b")
    files = json.loads((tmp_path / "b" / "bundle.json").read_text())["files"]
    (tmp_path / "x").write_bytes(b"x")
    _edit(tmp_path / "b", files=files | {"../x": "0"})
    with pytest.raises(BundleError, match="outside itself"):
        load_bundle(tmp_path / "b")


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "nan", "not tensors"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: str) -> None:
    from safetensors.torch import load, save

    folder = write_random_bundle(tmp_path / "b").path
    tensors = load((folder / "brain_age.safetensors").read_bytes())
    if change == "missing":
        del tensors["head.weight"]
    elif change == "extra":
        tensors["more"] = torch.zeros(1)
    elif change == "shape":
        tensors["head.weight"] = torch.zeros(2, 2)
    elif change == "nan":
        tensors["head.weight"] *= float("nan")
    data = b"no tensors" if change == "not tensors" else save(tensors)
    _with_digest(folder, "brain_age.safetensors", data)
    with pytest.raises(BundleError, match="weights of brain_age"):
        load_bundle(folder).networks()
