"""The conditional CycleGAN: unpaired scans of a site come nearer to the reference."""

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
from bids_harmony.errors import UsageError
from bids_harmony.models.networks import MapNetwork, SiteMap
from bids_harmony.sites.code import Appearance, site_code
from bids_harmony.training import cyclegan, maps
from bids_harmony.training.cyclegan import (
    RIM,
    Discriminator,
    Source,
    Unpaired,
    inside,
    missed,
    train_maps,
)
from bids_harmony.training.data import TrainingRun, TrainingSet

N, SIZE = 12, (16, 24, 24)
BRAIN = (slice(1, 15), slice(2, 22), slice(2, 22))
LITTLE, MUCH = 0.02, 0.1


def volumes(seed: int, noise: float) -> np.ndarray:
    """Persons with folded tissue, acquired with more or less noise."""
    rng, out = np.random.default_rng(seed), np.zeros((N, *SIZE), np.float32)
    for volume in out:
        folds = ndimage.gaussian_filter(rng.normal(size=SIZE), 2.0)
        tissue = np.digitize(folds, np.quantile(folds, [0.15, 0.55]))
        smooth = ndimage.gaussian_filter(np.array([0.15, 0.6, 1.0])[tissue], 0.6)
        volume[BRAIN] = np.clip(smooth + rng.normal(0, noise, SIZE), 0.01, 1.3)[BRAIN]
    return out


REFERENCE, SITE = np.arange(N), np.arange(N, 2 * N)


def both(noisy_seed: int = 1) -> TrainingSet:
    """Return N scans of the reference, and then N noisy ones."""
    images = np.concatenate([volumes(0, LITTLE), volumes(noisy_seed, MUCH)])
    table = pd.DataFrame({
        "site": ["reference"] * N + ["noisy"] * N,
        "age": [*np.linspace(20, 80, N)] * 2,
        "sex": ["M", "F"] * N,
    })  # fmt: skip
    return from_arrays(images, images > 0, table, affine=np.diag([2.0, 2, 2, 1]))


@pytest.fixture(autouse=True)
def few_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "N_SITES", 1)


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    return both()


def reference_of(
    data: TrainingSet, folder: Path = Path(), **options: Any
) -> tuple[TrainingRun, Appearance]:
    split, fit = np.full(2 * N, "train"), np.ones(2 * N, bool)
    run = TrainingRun(data, split, fit, "reference", TrainOptions(**options), folder)
    return run, run.appearance(None)


def trained(
    data: TrainingSet,
    work_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    **constants: object,
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = MapNetwork(channels=(8, 8, 8), embedding=8).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for name, value in ({"STEPS": (1, 1)} | constants).items():
        monkeypatch.setattr(cyclegan, name, value)
    reference = reference_of(data, work_dir, seed=0, device="cpu")
    found = cyclegan.train_cyclegan(network, *reference, [Source(SITE, data.ages[SITE])])
    assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())
    return found.state_dict()


def distance(state: dict[str, torch.Tensor] | None, data: TrainingSet) -> float:
    """How far the site's scans, mapped, scatter about the same persons at the reference."""
    network, appearance = None, reference_of(data)[1]
    if state is not None:
        network = MapNetwork(channels=(8, 8, 8), embedding=8).eval()
        network.load_state_dict(state)
    code = site_code(data.descriptors[SITE], data.ages[SITE], data.persons[SITE], appearance)
    site_map = SiteMap.of(code, appearance, network, data.box)
    truth = volumes(1, LITTLE).transpose(0, 2, 3, 1)
    off = [
        (site_map(data.volume(i)[0]) - t)[t > 0].std() for i, t in zip(SITE, truth, strict=True)
    ]
    return float(np.mean(off))


def test_unpaired_scans_teach_the_map_to_smooth(
    data: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing but the discriminators tells the map what the reference's scans look like.
    found = trained(
        data, tmp_path, monkeypatch,
        WEIGHTS={"adversarial": 1.0, "cycle": 5.0, "paired": 0.0},
        STEPS=(20, 30), RATES=(4e-3, 2e-3, 2e-3, 2e-3),
    )  # fmt: skip
    assert distance(found, data) < 0.85 * distance(None, data)


def test_seeds_reproduce_and_a_finished_network_is_cached(
    data: TrainingSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, other, third = (
        trained(data, tmp_path / folder, monkeypatch) for folder in ("one", "other", "one")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(one[name], third[name]) for name in one)
    told = [line for line in caplog.messages if "training the map on real sites: 2 of 2" in line]
    assert caplog.text.count("training the map on real sites: 0 of 2") == 2
    for name in ("discriminator", "adversarial", "cycle", "paired"):
        assert f"{name} loss" in told[0]
    # What a network depends on names it.
    trained(both(2), tmp_path / "one", monkeypatch)
    trained(data, tmp_path / "one", monkeypatch, WEIGHTS=cyclegan.WEIGHTS | {"adversarial": 0.5})
    assert len(list((tmp_path / "one").glob("cyclegan-*.pt"))) == 3


def test_a_scan_is_set_beside_persons_like_it(data: TrainingSet) -> None:
    unpaired = Unpaired(*reference_of(data), [])
    found = unpaired.alike(35.0, "F")
    assert set(data.sexes[found]) == {"F"}
    assert 80 not in data.ages[found]
    assert len(unpaired.alike(float("nan"), "")) == N
    assert unpaired.person(float("nan"), "").tolist() == [[0, 0]]


def test_codes_leave_out_the_person(data: TrainingSet) -> None:
    unpaired, rng = Unpaired(*reference_of(data), []), np.random.default_rng(0)
    site, person = Source(SITE, data.ages[SITE]), data.persons[SITE[0]]
    codes = [unpaired.draw_code(site, person, rng) for _ in range(20)]
    assert {code.n for code in codes} <= set(range(N // 2, N))
    assert len({float(code.shift[0]) for code in codes}) > 10
    alone = Source(SITE[:1], data.ages[SITE[:1]])
    assert unpaired.draw_code(alone, person, rng).n == 1


def test_discriminators_see_the_brain_alone_and_no_surface() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(1, 1, 16, 16, 16)
    mask[..., 2:14, 2:14, 2:14] = 1
    seen = inside(mask)
    assert seen.sum() == (12 - 2 * RIM) ** 3
    discriminator, x, told = Discriminator(2).eval(), torch.rand_like(mask), torch.zeros(1, 2)
    scores = discriminator(x, seen, told)
    assert scores.shape == (1, 1, 4, 4, 4)
    assert torch.equal(scores, discriminator(x * seen + 7 * (1 - seen), seen, told))
    assert not torch.equal(scores, discriminator(x, seen, torch.ones(1, 2)))
    assert missed(torch.ones_like(scores), 1, seen) == 0
    assert missed(torch.ones_like(scores), 0, seen) == 1


def test_without_another_site_it_is_refused_before_anything_is_trained(
    data: TrainingSet, tmp_path: Path
) -> None:
    run, appearance = reference_of(data, tmp_path, map="cyclegan")
    with pytest.raises(UsageError, match="other sites"):
        train_maps(run, np.arange(0), appearance, None)
    assert not list(tmp_path.iterdir())
