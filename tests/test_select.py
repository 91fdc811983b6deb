"""The choice of a checkpoint: anatomy first, likeness second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_guard import AFFINE, brain
from torch import Tensor, nn

from bids_harmony.qc.guard import MEASURES
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.select import ANATOMY, anatomy, choose_checkpoint, site_probe


class Tone(nn.Module):
    """A map that only changes tone; ``shrink`` also brightens the darkest voxels."""

    around, stride = 0, 1

    def __init__(self, power: float, shrink: float = 0.0) -> None:
        super().__init__()
        self.power, self.shrink = power, shrink

    def forward(self, x: Tensor) -> Tensor:
        image = x[:, :1] ** self.power
        return torch.where(image < self.shrink, 0.6, image) * x[:, 1:2]


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    """Return balls of a reference, and of a site whose tone is bent."""
    pairs = [brain(12.0 + i % 4, seed=i, blur=0.0) for i in range(14)]
    images = np.stack([np.moveaxis(v, 2, 0) for v, _ in pairs])
    masks = np.stack([np.moveaxis(m, 2, 0) for _, m in pairs])
    images[8:] = np.where(masks[8:], images[8:] ** 1.25, 0)
    table = pd.DataFrame(
        {"site": ["REF"] * 8 + ["A"] * 6, "age": [30.0 + i % 4 for i in range(14)]}
    )
    return TrainingSet.from_arrays(images, masks, table, affine=AFFINE)


def split_of(data: TrainingSet) -> np.ndarray:
    return np.array((["validation"] * 3 + ["train"]) * 4)[: len(data)]


def choose(data: TrainingSet, maps: dict[int, nn.Module]) -> tuple[int, list[dict], list[str]]:
    lines: list[str] = []
    step, table = choose_checkpoint(
        data, split_of(data), "REF", list(maps), maps.__getitem__,
        grey=0.55, seed=0, say=lines.append,
    )  # fmt: skip
    return step, table, lines


def test_the_map_that_undoes_the_site_is_chosen(data: TrainingSet) -> None:
    step, table, lines = choose(data, {100: Tone(1.0), 200: Tone(0.8), 300: Tone(0.8, shrink=0.3)})
    assert "changes little" not in lines[-1]
    rows = {row["step"]: row for row in table}
    assert step == 200
    assert rows[100]["tissue_distance"] == pytest.approx(1.0, abs=0.01)
    assert rows[200]["tissue_distance"] < 0.5
    # Without its ventricles a brain may look like the reference's and may not be chosen.
    assert not rows[300]["eligible"]
    assert rows[300]["violation"] > 1


class Wider(nn.Module):
    """A map that darkens the rim of fluid, in slices as bright as the reference's."""

    around, stride = 0, 1

    def forward(self, x: Tensor) -> Tensor:
        image, mask = x[:, :1], x[:, 1:2]
        bright = (image * mask).sum((2, 3), keepdim=True) > 0.8 * mask.sum((2, 3), keepdim=True)
        near = -nn.functional.max_pool2d(-image, 5, 1, 2) < 0.2
        return torch.where(near & bright, 0.02, image) * mask


def test_a_map_may_not_change_the_reference_either(data: TrainingSet) -> None:
    darker = data.volumes.copy()
    darker[8:] = np.where(darker[8:] > 0.2, 0.8 * darker[8:], darker[8:])
    _, table, _ = choose(replace(data, volumes=darker), {1: Wider()})
    assert table[0]["violation"] > 1
    assert table[0]["tissue_distance"] == pytest.approx(1.0, abs=0.02)  # sources stay


def test_a_map_that_does_nothing_is_said_to(data: TrainingSet) -> None:
    assert "changes little" in choose(data, {1: Tone(1.0)})[2][-1]


def test_a_probe_of_few_persons_is_not_said_to_be_chance(data: TrainingSet) -> None:
    # All scans of the source sites are of one person.
    rows = data.table.assign(person=[f"p{i}" for i in range(len(data))])
    rows.loc[rows["site"] != "REF", "person"] = "one"
    _, table, lines = choose(replace(data, table=rows), {1: Tone(1.0)})
    assert table[0]["probe"] is None
    assert table[0]["score"] == pytest.approx(table[0]["tissue_distance"])
    assert "site probe with too few persons" in lines[0]
    assert "changes little" in lines[-1]


def test_where_no_map_keeps_the_anatomy_the_least_bad_is_chosen_and_said(
    data: TrainingSet,
) -> None:
    step, table, lines = choose(data, {1: Tone(3.0), 2: Tone(0.8, shrink=0.3)})
    assert not any(row["eligible"] for row in table)
    assert step == min(table, key=lambda row: row["violation"])["step"]
    assert "Warning: no checkpoint" in lines[-1]


def test_test_scans_are_never_read(data: TrainingSet) -> None:
    split = split_of(data)
    split[[0, 9]] = "test"
    volumes = data.volumes.copy()
    volumes[[0, 9]] = np.inf
    choose_checkpoint(
        replace(data, volumes=volumes), split, "REF", [1], {1: Tone(1.0)}.__getitem__,
        grey=0.55, seed=0, say=lambda _: None,
    )  # fmt: skip


def test_changes_of_single_scans_cancel_in_the_median_but_not_in_the_share() -> None:
    still = {name: 1.0 if MEASURES[name].kept else 0.0 for name in ANATOMY}
    rows = [dict(still) for _ in range(9)]
    assert anatomy(rows, np.repeat("A", 9)) == (0.0, 0.0)
    rows[0]["harmonized_ventricle_change"] = 0.4
    assert anatomy(rows, np.repeat("A", 9)) == (0.0, pytest.approx(1 / 9))
    sites = np.array(["B"] + ["A"] * 8)
    assert anatomy(rows, sites)[0] == pytest.approx(0.4 / 0.02)


def test_probe_tells_sites_apart_and_not_ages() -> None:
    rng = np.random.default_rng(0)
    ages, young = np.linspace(20, 80, 60), np.linspace(20, 40, 30)
    reference = np.stack([ages / 20, np.zeros(60)], axis=1) + 0.3 * rng.standard_normal((60, 2))
    same = np.stack([young / 20, np.zeros(30)], axis=1) + 0.3 * rng.standard_normal((30, 2))
    assert site_probe(same, reference, young, ages, 0) < 0.68
    assert site_probe(same + np.array([0, 2]), reference, young, ages, 0) > 0.9
    unknown = np.full(30, np.nan)
    assert site_probe(same, reference, unknown, ages, 0) > 0.7
    assert np.isnan(site_probe(same[:3], reference, young[:3], ages, 0))
