"""Ways of preparing scans: each a training set that differs in the scans asked for alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_data import balls

from bids_harmony.anat.intensity import Levels, map_levels
from bids_harmony.evaluation.combat import combat
from bids_harmony.evaluation.prepare import matching, prepare, unscale, weights_digest
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.evaluate import volume_of

LEVELS = (200.0, 700.0, 1000.0)


@pytest.fixture
def data() -> TrainingSet:
    found = balls()
    found.table["levels"] = [LEVELS] * len(found)
    return found


def test_unscaled_scans_are_what_scaling_began_with(data: TrainingSet) -> None:
    change = unscale(data, 0.55)
    assert change is not None
    volume, mask = volume_of(data, 0)
    found = change(0, volume, mask)
    again = map_levels(found[mask], Levels(*(v / 1000 for v in LEVELS)), 0.55)
    top = np.percentile(found[mask], 98)
    assert top == pytest.approx(1, abs=0.01)
    # White matter was 1000 of the percentile's about 1000: the scaling undoes the division.
    assert np.corrcoef(again, volume[mask])[0, 1] > 0.999
    assert found[mask].min() == pytest.approx(0.2, abs=0.03)  # fluid is not black
    assert (found[~mask] == 0).all()
    data.table.at[3, "levels"] = None
    assert unscale(data, 0.55) is None


def test_only_the_scans_asked_for_change(data: TrainingSet, tmp_path: Path) -> None:
    calls: list[int] = []

    def darker(scan: int, volume: np.ndarray, _: np.ndarray) -> np.ndarray:
        calls.append(scan)
        return volume / 2

    found = prepare(data, [1, 4], darker, "darker", tmp_path, print)
    for scan in range(len(data)):
        before, mask = data.stack(scan)
        after, same = found.stack(scan)
        assert np.array_equal(mask, same)
        np.testing.assert_allclose(after, before / 2 if scan in (1, 4) else before, atol=2e-3)
    images, _ = found.slices([1, 2], [5, 5], around=1)
    np.testing.assert_allclose(images[0], data.slices([1], [5], 1)[0][0] / 2, atol=2e-3)
    prepare(data, [1, 4], darker, "darker", tmp_path, print)
    assert calls == [1, 4]  # taken from the folder the second time
    prepare(data, [1, 4], darker, "darker still", tmp_path, print)
    assert calls == [1, 4, 1, 4]


def test_matched_scans_have_the_references_quantiles(data: TrainingSet) -> None:
    quantiles = np.linspace(0.2, 0.9, 256)
    volume, mask = volume_of(data, 0)
    found = matching(quantiles)(0, volume, mask)[mask]
    np.testing.assert_allclose(np.quantile(found, [0.1, 0.5, 0.9]), [0.27, 0.55, 0.83], atol=0.01)


def test_a_network_is_named_by_its_weights() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert weights_digest(one) == weights_digest(one) != weights_digest(other)


def test_combat_takes_a_site_to_the_references_tone() -> None:
    data = balls({"REF": 8, "A": 8})
    change = combat(data, np.array([*range(6), *range(8, 14)]), "REF", 0)
    assert change is not None
    (own, mask), (unseen, _) = volume_of(data, 7), volume_of(data, 15)
    assert change(7, own, mask) is own  # the reference stays as it is
    found = change(15, unseen, mask)
    shell = (own > 0.45) & (own < 0.65)  # grey matter at the reference
    assert unseen[shell].mean() == pytest.approx(0.75, abs=0.02)
    assert found[shell].mean() == pytest.approx(0.55, abs=0.04)
    assert (found[~mask] == 0).all()
    assert combat(data, np.array([0, 1, 2, 3, 8, 9]), "REF", 0) is None  # two scans are too few
