"""Made-up acquisitions change what they say alone; known truth measures the way back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from training_data import from_arrays

from bids_harmony.anat.intensity import tissue_means
from bids_harmony.anat.template import deep_grey, load_template
from bids_harmony.sites.code import Appearance
from bids_harmony.training.acquisition import KINDS, Acquisition, apply, known_truth, summarize
from bids_harmony.training.data import TrainingSet

TEMPLATE = load_template(4)
DEEP = deep_grey(TEMPLATE)


def brain(seed: int = 0, age: float = 40.0) -> np.ndarray:
    """Return a scaled brain made of the template's tissue; grey matter darkens with age."""
    rng = np.random.default_rng(seed)
    grey, white = TEMPLATE.tissues["gm"], TEMPLATE.tissues["wm"]
    v = (0.57 - 0.0005 * age) * grey + white + 0.02 * rng.standard_normal(grey.shape)
    v = ndimage.shift(v, rng.uniform(-0.5, 0.5, 3), order=1)
    return np.where(TEMPLATE.mask, np.clip(v, 1e-3, 2), 0).astype(np.float32)


def acquired(
    acquisition: Acquisition, volume: torch.Tensor, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    new = apply(acquisition, volume, generator, torch.from_numpy(DEEP)[None, None])
    return new, new > 0


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return torch.from_numpy(np.stack([brain(0), brain(1)]))[:, None]


def test_no_change_is_none_and_a_draw_can_be_repeated(volume: torch.Tensor) -> None:
    same, mask = acquired(Acquisition(), volume)
    assert torch.allclose(same, volume, atol=1e-5)
    assert torch.equal(mask, volume > 0)
    draws = [Acquisition.draw(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert Acquisition.draw(torch.Generator().manual_seed(1), strength=0) == Acquisition()
    assert draws[0].only("tone").tone == draws[0].tone
    assert draws[0].only("tone").noise == 0


@pytest.mark.parametrize("seed", range(3))
def test_what_is_drawn_arrives_as_real_scans_do(volume: torch.Tensor, seed: int) -> None:
    new, mask = acquired(Acquisition.draw(torch.Generator().manual_seed(seed)), volume, seed)
    assert new.shape == volume.shape
    assert new.dtype == torch.float32
    assert torch.equal(new > 0, mask)
    assert float(new.max()) <= 2
    assert float((new - volume).abs()[mask].mean()) > 0.01
    for before, after in zip(volume[:, 0].numpy(), new[:, 0].numpy(), strict=True):
        levels = [tissue_means(v, v > 0, 4.0) for v in (before, after)]
        assert None not in levels
        # Few voxels of 4 mm hold nothing but CSF.
        assert (np.abs(np.subtract(*levels)) < (0.12, 0.03, 0.02)).all()


def test_an_intensity_mapping_keeps_the_order(volume: torch.Tensor) -> None:
    tone = Acquisition.draw(torch.Generator().manual_seed(3)).only("tone")
    new, mask = acquired(tone, volume)
    there = (mask & (volume < 1.9))[0]
    order = volume[0][there].argsort()
    assert (new[0][there][order].diff() > -1e-5).all()
    assert float((new - volume).abs()[mask].max()) > 0.02


def test_a_group_has_one_acquisition_and_each_scan_its_own_noise(volume: torch.Tensor) -> None:
    twice = volume[:1].repeat(2, 1, 1, 1, 1)
    drawn = Acquisition.draw(torch.Generator().manual_seed(4))
    still, _ = acquired(drawn.only("tone", "bias", "deep_grey", "blur", "sharpen"), twice)
    assert torch.equal(still[0], still[1])
    noisy, _ = acquired(drawn.only("tone", "noise"), twice)
    assert not torch.equal(noisy[0], noisy[1])


def test_each_effect_goes_where_it_belongs(volume: torch.Tensor) -> None:
    place = torch.from_numpy(DEEP)[None, None] > 0.8
    grey = (volume > 0.45) & (volume < 0.7)
    bright, _ = acquired(Acquisition(deep_grey=0.1), volume)
    assert float((bright - volume)[grey & place].mean()) > 0.05
    assert float((bright - volume)[grey & ~place].abs().mean()) < 0.02
    steep = [
        float(torch.diff(acquired(change, volume)[0], dim=2).abs().mean())
        for change in (Acquisition(blur=(0.6, 0, 0)), Acquisition(), Acquisition(sharpen=0.5))
    ]
    assert steep[0] < steep[1] < steep[2]
    sizes = [int(acquired(Acquisition(rim=r), volume)[1].sum()) for r in (-0.4, 0.0, 0.1)]
    assert sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(ValueError, match="its map is missing"):
        apply(Acquisition(deep_grey=0.1), volume, torch.Generator())


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    ages = np.linspace(20, 80, 12)
    images = np.array([brain(i, age).transpose(2, 0, 1) for i, age in enumerate(ages)])
    table = pd.DataFrame({"site": "REF", "age": ages})
    return from_arrays(images, images > 0, table, affine=TEMPLATE.t1w.affine)


def test_a_mapping_from_other_persons_gives_originals_back(data: TrainingSet) -> None:
    appearance = Appearance.fit(data.descriptors, data.ages, data.persons, (0.8, 9.0))
    kinds = ("intensity mapping", "deep grey")
    rows = known_truth(
        data, np.arange(12), appearance, {"curve": None}, DEEP,
        kinds=kinds, sites=3, per_site=2, seed=1,
    )  # fmt: skip
    assert len(rows) == 12
    table = summarize(rows).set_index(["kind", "figure"])
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    share = table["value"].xs("removed", level="figure")
    assert share["intensity mapping"] > 0.5
    # What is local, no curve can mend.
    assert share["deep grey"] < share["intensity mapping"]
    assert set(KINDS["all"]) >= {name for names in KINDS.values() for name in names}
    with pytest.raises(ValueError, match="takes 10 persons, not 3"):
        known_truth(data, np.arange(3), appearance, {}, DEEP, per_site=2)
