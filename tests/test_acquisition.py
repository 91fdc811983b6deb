"""Made-up acquisitions change what they say alone; known truth measures the way back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from training_data import from_arrays

from bids_harmony.anat.intensity import tissue_means
from bids_harmony.anat.template import Template, deep_grey, load_template
from bids_harmony.sites.code import Appearance
from bids_harmony.training.acquisition import Acquisition, apply, known_truth, summarize

TEMPLATE = load_template(4)
DEEP = deep_grey(TEMPLATE)


def brain(seed: int = 0, age: float = 40.0, template: Template = TEMPLATE) -> np.ndarray:
    """Return a scaled brain made of the template's tissue; grey matter darkens with age."""
    rng = np.random.default_rng(seed)
    grey, white = template.tissues["gm"], template.tissues["wm"]
    v = (0.57 - 0.0005 * age) * grey + white + 0.02 * rng.standard_normal(grey.shape)
    v = ndimage.shift(v, rng.uniform(-0.5, 0.5, 3), order=1)
    return np.where(template.mask, np.clip(v, 1e-3, 2), 0).astype(np.float32)


def drawn(seed: int, strength: float = 1.0) -> Acquisition:
    return Acquisition.draw(torch.Generator().manual_seed(seed), strength)


def acquired(acquisition: Acquisition, volume: np.ndarray, seed: int = 0) -> np.ndarray:
    return apply(acquisition, volume, torch.Generator().manual_seed(seed), DEEP)


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return brain()


def test_no_change_is_none_and_a_draw_can_be_repeated(volume: np.ndarray) -> None:
    assert np.allclose(acquired(Acquisition(), volume), volume, atol=1e-5)
    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1, strength=0) == Acquisition()
    assert drawn(1).only("curve") == Acquisition(curve=drawn(1).curve)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_drawn_arrives_as_real_scans_do(seed: int) -> None:
    template = load_template(2)  # few voxels of 4 mm hold nothing but CSF
    volume = brain(template=template)
    generator = torch.Generator().manual_seed(seed)
    new = apply(drawn(seed), volume, generator, deep_grey(template))
    assert (new.shape, new.dtype) == (volume.shape, np.float32)
    assert new.max() <= 2
    assert np.abs(new - volume)[new > 0].mean() > 0.01
    levels = [tissue_means(v, v > 0, 2.0) for v in (volume, new)]
    assert (np.abs(np.subtract(*levels)) < (0.08, 0.02, 0.02)).all()


def test_an_intensity_mapping_keeps_the_order(volume: np.ndarray) -> None:
    new = acquired(drawn(3).only("curve"), volume)
    inside = (volume > 0) & (volume < 1.9)
    assert (np.diff(new[inside][volume[inside].argsort()]) > -1e-5).all()
    assert np.abs(new - volume).max() > 0.02


def test_noise_alone_differs_between_scans_of_an_acquisition(volume: np.ndarray) -> None:
    still, noisy = drawn(4).only("curve", "bias", "deep_grey", "blur", "sharpen"), drawn(4)
    for acquisition, same in ((still, True), (noisy.only("curve", "noise"), False)):
        twice = [acquired(acquisition, volume, seed) for seed in (0, 1)]
        assert np.array_equal(*twice) is same


def test_each_effect_goes_where_it_belongs(volume: np.ndarray) -> None:
    place, grey = DEEP > 0.8, (volume > 0.45) & (volume < 0.7)
    brighter = acquired(Acquisition(deep_grey=0.1), volume) - volume
    assert brighter[grey & place].mean() > 0.05
    assert np.abs(brighter[grey & ~place]).mean() < 0.02
    changes = (Acquisition(blur=(0.6, 0, 0)), Acquisition(), Acquisition(sharpen=0.5))
    steep = [np.abs(np.diff(acquired(change, volume), axis=0)).mean() for change in changes]
    assert steep[0] < steep[1] < steep[2]
    sizes = [(acquired(Acquisition(rim=rim), volume) > 0).sum() for rim in (-0.4, 0.0, 0.1)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_mapping_from_other_persons_gives_originals_back() -> None:
    ages = np.linspace(20, 80, 12)
    images = np.array([brain(i, age).transpose(2, 0, 1) for i, age in enumerate(ages)])
    table = pd.DataFrame({"site": "REF", "age": ages})
    data = from_arrays(images, images > 0, table, affine=TEMPLATE.t1w.affine)
    appearance = Appearance.fit(data.descriptors, data.ages, data.persons, (0.8, 9.0))
    kinds = ("all", "intensity mapping")
    rows = known_truth(data, np.arange(12), appearance, {"curve": None},
                       kinds=kinds, sites=3, per_site=2, seed=1)  # fmt: skip
    assert len(rows) == 12
    table = pd.DataFrame(summarize(rows)).set_index(["kind", "figure"])
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    share = table["value"].xs("removed", level="figure")
    # What is local, no curve can mend.
    assert share["intensity mapping"] > max(0.5, share["all"])
