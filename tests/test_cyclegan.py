"""The conditional CycleGAN: unpaired scans of a site come nearer to the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from bids_harmony.errors import UsageError
from bids_harmony.models.mapnetwork import MapNetwork, SiteMap
from bids_harmony.sites.code import Appearance, site_code
from bids_harmony.training import maps
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.cyclegan import (
    RATES,
    RIM,
    Discriminator,
    Source,
    Unpaired,
    Weights,
    inside,
    missed,
    train_cyclegan,
    train_maps,
)
from bids_harmony.training.data import TrainingSet

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


def scans(images: np.ndarray, site: str) -> TrainingSet:
    ages = np.linspace(20, 80, N)
    table = pd.DataFrame({"site": site, "age": ages, "sex": ["M", "F"] * (N // 2)})
    return TrainingSet.from_arrays(images, images > 0, table, affine=np.diag([2.0, 2, 2, 1]))


@pytest.fixture(autouse=True)
def few_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "N_SITES", 1)


@pytest.fixture(scope="module")
def reference() -> TrainingSet:
    return scans(volumes(0, LITTLE), "reference")


@pytest.fixture(scope="module")
def noisy() -> TrainingSet:
    return scans(volumes(1, MUCH), "noisy")


@pytest.fixture(scope="module")
def appearance(reference: TrainingSet) -> Appearance:
    return Appearance.fit(reference.descriptors, reference.ages, reference.persons, None)


def trained(
    reference: TrainingSet,
    site: TrainingSet,
    appearance: Appearance,
    work_dir: Path,
    weights: Weights,
    steps: tuple[int, int],
    said: list[str] | None = None,
    rates: tuple[float, float, float] = RATES,
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = MapNetwork(channels=(8, 8, 8), embedding=8).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = train_cyclegan(
        network, reference, np.arange(N), [Source(site, np.arange(N), site.ages)], appearance,
        work_dir, weights=weights, ahead=steps[0], steps=steps[1], rates=rates, seed=0,
        resolution=2, say=(said if said is not None else []).append,
    )  # fmt: skip
    assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())
    return found.state_dict()


def distance(
    state: dict[str, torch.Tensor] | None, site: TrainingSet, appearance: Appearance
) -> float:
    """How far the site's scans, mapped, scatter about the same persons at the reference."""
    network = None
    if state is not None:
        network = MapNetwork(channels=(8, 8, 8), embedding=8).eval()
        network.load_state_dict(state)
    code = site_code(site.descriptors, site.ages, site.persons, appearance)
    site_map = SiteMap.of(code, appearance, network, site.box)
    truth = volumes(1, LITTLE).transpose(0, 2, 3, 1)
    off = [(site_map(site.volume(i)[0]) - truth[i])[truth[i] > 0].std() for i in range(N)]
    return float(np.mean(off))


def test_unpaired_scans_teach_the_map_to_smooth(
    reference: TrainingSet, noisy: TrainingSet, appearance: Appearance, tmp_path: Path
) -> None:
    # Nothing but the discriminators tells the map what the reference's scans look like.
    found = trained(
        reference, noisy, appearance, tmp_path, Weights(1.0, 5.0, 0.0), (20, 30),
        rates=(4e-3, 2e-3, 2e-3),
    )  # fmt: skip
    assert distance(found, noisy, appearance) < 0.85 * distance(None, noisy, appearance)


def test_seeds_reproduce_and_a_finished_network_is_kept(
    reference: TrainingSet, noisy: TrainingSet, appearance: Appearance, tmp_path: Path
) -> None:
    said: list[str] = []
    one, other, third = (
        trained(reference, noisy, appearance, tmp_path / folder, Weights(), (1, 1), said)
        for folder in ("one", "other", "one")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(one[name], third[name]) for name in one)
    assert sum("training the map on real sites: 2 of 2" in line for line in said) == 2
    # What a network hangs on names it.
    few = scans(volumes(2, MUCH), "noisy")
    trained(reference, few, appearance, tmp_path / "one", Weights(), (1, 1), said)
    trained(reference, noisy, appearance, tmp_path / "one", Weights(adversarial=0.5), (1, 1), said)
    assert len(list((tmp_path / "one").glob("cyclegan-*.pt"))) == 3


def test_a_scan_is_set_beside_persons_like_it(
    reference: TrainingSet, noisy: TrainingSet, appearance: Appearance
) -> None:
    unpaired = Unpaired(reference, np.arange(N), [], appearance)
    found = unpaired.alike(35.0, "F")
    assert set(reference.sexes[found]) == {"F"}
    assert 80 not in reference.ages[found]
    assert len(unpaired.alike(float("nan"), "")) == N
    assert unpaired.person(float("nan"), "").tolist() == [[0, 0]]


def test_codes_leave_out_the_person(noisy: TrainingSet, appearance: Appearance) -> None:
    source, rng = Source(noisy, np.arange(N), noisy.ages), np.random.default_rng(0)
    codes = [source.draw_code(noisy.persons[0], appearance, rng) for _ in range(20)]
    assert {code.n for code in codes} <= set(range(N // 2, N))
    assert len({float(code.shift[0]) for code in codes}) > 10
    alone = Source(noisy, np.arange(1), noisy.ages[:1])
    assert alone.draw_code(noisy.persons[0], appearance, rng).n == 1


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
    reference: TrainingSet, appearance: Appearance, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="other sites"):
        train_maps(
            reference, np.arange(N), np.arange(0), appearance, None,
            TrainOptions(map="cyclegan"), tmp_path, lambda line: None,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
