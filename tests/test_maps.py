"""The map network: what it may change, what it depends on, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from training_data import from_arrays

from bids_harmony.config import TrainOptions
from bids_harmony.errors import HarmonyError
from bids_harmony.models.networks import (
    CODE_SIZE,
    MapNetwork,
    SiteMap,
    apply_network,
    code_input,
)
from bids_harmony.sites.code import LEVELS, N_TEXTURE, Appearance, SiteCode
from bids_harmony.training import maps
from bids_harmony.training.acquisition import Acquisition, acquire
from bids_harmony.training.data import TrainingRun, TrainingSet
from bids_harmony.training.maps import KNOTS, follow, read_curve, train_map

BOX = ((2, 26), (1, 33))
SIZE = len(LEVELS) + N_TEXTURE


@pytest.fixture
def appearance() -> Appearance:
    expected = np.append(np.linspace(0.05, 1.1, len(LEVELS)), np.zeros(N_TEXTURE))
    return Appearance(
        expected, np.zeros(SIZE), np.full(SIZE, 0.02), (20.0, 80.0), (0.8, 9.0), 45.0, 30
    )


@pytest.fixture
def volume() -> np.ndarray:
    rng = np.random.default_rng(0)
    out = np.zeros((28, 34, 21), np.float32)
    out[4:24, 4:30, 2:18] = rng.uniform(0.1, 1.1, (20, 26, 16))
    return out


def moved_network() -> MapNetwork:
    torch.manual_seed(0)
    network = MapNetwork(channels=(4, 4, 4), embedding=4)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.05)
    return network.eval()


def test_the_network_moves_the_brain_alone_as_the_code_says(volume: np.ndarray) -> None:
    ones, zeros = np.ones(CODE_SIZE, np.float32), np.zeros(CODE_SIZE, np.float32)
    assert np.array_equal(apply_network(MapNetwork().eval(), volume, ones, BOX), volume)
    out = apply_network(moved_network(), volume, ones, BOX)
    assert out.shape == volume.shape
    assert not np.allclose(out, volume)
    assert not np.allclose(out, apply_network(moved_network(), volume, zeros, BOX))
    assert ((out > 0) == (volume > 0)).all()
    # What lies outside the box is not seen, and stays.
    outside = np.ones(volume.shape, bool)
    outside[2:26, 1:33] = False
    assert np.array_equal(out[outside], volume[outside])


def test_a_site_s_map_is_the_curve_and_then_the_network(
    volume: np.ndarray, appearance: Appearance
) -> None:
    code = SiteCode(np.full(SIZE, -0.05), np.full(SIZE, 0.01), 50.0, 8)
    alone = SiteMap.of(code, appearance, None, BOX)
    both = SiteMap.of(code, appearance, moved_network(), BOX)
    assert np.array_equal(alone(volume), alone.curve(volume))
    condition = code_input(code.shift, code.n, appearance)
    expected = apply_network(moved_network(), alone(volume), condition, BOX)
    assert np.array_equal(both(volume), expected)
    # The code is scaled, and bounded.
    shift = np.append(np.full(SIZE - 1, 0.02), 100.0)
    condition = code_input(shift, 8, appearance)
    assert condition.shape == (CODE_SIZE,)
    assert condition[[0, -2, -1]] == pytest.approx([0.25, 4.0, 0.25])


def test_a_known_curve_is_read_and_followed() -> None:
    rng = np.random.default_rng(0)
    original = rng.uniform(0.01, 1.25, (30, 30, 30)).astype(np.float32)
    acquired = (original**1.3).astype(np.float32)
    curve = read_curve([(acquired, original)])
    assert np.abs(curve - KNOTS ** (1 / 1.3)).max() < 0.02
    assert (
        np.abs(follow(curve, acquired) - original)[(original > 0.1) & (original < 1.1)].max()
        < 0.03
    )
    assert follow(curve, np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def brains(n: int) -> TrainingSet:
    """Return scans of one site, of smooth noise, at ages from 20 to 70."""
    rng = np.random.default_rng(0)
    noise = [ndimage.gaussian_filter(rng.standard_normal((24, 32, 32)), 0.7) for _ in range(n)]
    images = np.clip(0.7 + 0.6 * np.array(noise, np.float32), 0.1, 1.3)
    masks = np.zeros(images.shape, bool)
    masks[:, 2:-2, 3:-3, 3:-3] = True
    table = pd.DataFrame({
        "subject": [f"{k:02}" for k in range(n)], "site": "REF", "age": np.linspace(20, 70, n),
    })  # fmt: skip
    return from_arrays(images, masks, table, affine=np.diag([4.0, 4.0, 4.0, 1.0]))


def trained(data: TrainingSet, folder: Path) -> MapNetwork:
    learnt = np.arange(len(data) - 2)
    appearance = Appearance.fit(
        data.descriptors[learnt], data.ages[learnt], data.persons[learnt], None
    )
    split = np.where(np.arange(len(data)) < len(learnt), "train", "test")
    options = TrainOptions(seed=0, device="cpu")
    run = TrainingRun(data, split, np.ones(len(data), bool), "REF", options, folder)
    return train_map(run, appearance)


def test_what_a_site_blurs_is_sharpened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blurred = Acquisition(blur=(0.6, 0.6, 0.6))
    monkeypatch.setattr(Acquisition, "draw", lambda *_: blurred)
    for name, value in (("N_SITES", 2), ("STEPS", 40), ("UNTOUCHED", 0.1)):
        monkeypatch.setattr(maps, name, value)
    data = brains(10)
    network = trained(data, tmp_path)
    last = caplog.messages[-1]
    assert "40 of 40 steps" in last
    assert 0 < float(last.rpartition("paired loss ")[2]) < 2

    appearance = Appearance.fit(data.descriptors[:8], data.ages[:8], data.persons[:8], None)
    generator = torch.Generator().manual_seed(1)
    anew = [acquire(data, scan, blurred, generator) for scan in range(10)]
    shift = np.mean([row - data.descriptors[i] for i, (_, row) in enumerate(anew)], axis=0)
    for scan in (8, 9):  # which it has not seen
        original = data.stack(scan)[0]
        acquired = anew[scan][0].astype(np.float32)
        mapped = follow(read_curve([(acquired, original)]), acquired)
        box = ((0, 32), (0, 32))

        def on_grid(stack: np.ndarray) -> np.ndarray:
            return np.moveaxis(stack, 0, 2)

        found = apply_network(network, on_grid(mapped), code_input(shift, 8, appearance), box)
        left, before = (np.abs(v - on_grid(original)).mean() for v in (found, on_grid(mapped)))
        assert left < 0.8 * before


def test_a_finished_network_is_taken_from_the_work_folder_and_seeds_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("N_SITES", 1), ("STEPS", 2), ("PER_SITE", 2)):
        monkeypatch.setattr(maps, name, value)
    data = brains(6)

    def weights(folder: Path) -> dict[str, Any]:
        return trained(data, folder).state_dict()

    one = weights(tmp_path / "a")
    again = weights(tmp_path / "b")
    monkeypatch.setattr(maps, "make_pairs", lambda *_: pytest.fail("made up again"))
    kept = weights(tmp_path / "a")
    assert any(v.abs().max() > 0 for k, v in one.items() if k.startswith("overall"))
    for name, value in one.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, kept[name])


def test_a_loss_that_is_no_number_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("N_SITES", 1), ("STEPS", 40), ("PER_SITE", 2), ("RATE", 1e30)):
        monkeypatch.setattr(maps, name, value)
    with pytest.raises(HarmonyError, match="is not finite at step"):
        trained(brains(6), tmp_path)
    assert not list(tmp_path.glob("map-*"))
