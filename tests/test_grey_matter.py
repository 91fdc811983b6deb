"""The predictor on maps of grey matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from training_data import from_arrays

from bids_harmony.models.networks import GreyMatterNetwork, grey_matter_map
from bids_harmony.training import grey_matter
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.grey_matter import (
    grey_matter_networks,
    maps_between_acquisitions,
    ridge,
)
from bids_harmony.training.predictor import FAST, Ensemble, Examples


def test_maps_show_grey_matter_and_not_its_side() -> None:
    x = torch.zeros(1, 9, 12, 10)
    x[0, 4, 1, 5] = 0.6
    found = grey_matter_map(x, 2).reshape(5, 3, 5)
    assert found.argmax() == found[2, 0, 2].reshape(-1).argmax() + 2 * 15 + 2
    assert torch.equal(grey_matter_map(x.flip(2), 2), grey_matter_map(x, 2))
    network = GreyMatterNetwork([8, 16, 16], 4, mean=50.0, scale=10.0).eval()
    bias = float(network.linear.bias.detach())
    assert network(torch.zeros(2, 8, 16, 16)).tolist() == pytest.approx([50 + 10 * bias] * 2)
    for other in (0.0, 0.2, 1.0):  # background, CSF and white matter
        assert grey_matter_map(torch.full((1, 4, 4, 4), other), 2).max() < 1e-6


def test_weights_minimize_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grey_matter, "STEADY", 20.0)
    rng = np.random.default_rng(0)
    seen, targets = rng.standard_normal((8, 12)), rng.standard_normal(8)
    differences = rng.standard_normal((5, 12))
    usual = (seen**2).sum() / 8
    held = np.eye(12) + 20 / usual * differences.T @ differences / 5
    c = grey_matter.PENALTY * np.trace(seen @ np.linalg.inv(held) @ seen.T) / 8
    expected = np.linalg.solve(seen.T @ seen + c * held, seen.T @ targets)
    assert ridge(seen, targets, differences) == pytest.approx(expected)
    plain = ridge(seen, targets, np.empty((0, 12)))
    c = grey_matter.PENALTY * usual
    assert plain == pytest.approx(
        np.linalg.solve(seen.T @ seen + c * np.eye(12), seen.T @ targets)
    )
    # They hold still along what acquisitions change, though every point tells the age.
    age, scanner = rng.standard_normal(40), np.eye(6)[:1]
    seen = 0.3 * rng.standard_normal((40, 6)) + age[:, None]
    monkeypatch.undo()
    plain, steady = (ridge(seen, age, part) for part in (np.empty((0, 6)), scanner))
    assert plain[0] > 0.05
    assert abs(steady[0]) < plain[0] / 20


def shells(n: int, darker: np.ndarray | float = 0.0) -> TrainingSet:
    """Return scans of one site whose grey matter is the thinner the older the person is."""
    ages, shape = np.linspace(20, 70, n), (12, 32, 48)
    axes = np.meshgrid(*[np.linspace(-1, 1, k) for k in shape], indexing="ij")
    radius = np.linalg.norm(axes, axis=0)
    images = [np.where(radius < 0.5 + age / 400, 1.0, 0.55) for age in ages]
    noisy = np.array(images) + 0.02 * np.random.default_rng(0).standard_normal((n, *shape))
    noisy *= 1 - np.reshape(darker, (-1, 1, 1, 1))
    masks = np.broadcast_to(radius < 0.9, noisy.shape)
    table = pd.DataFrame({"subject": [str(i) for i in range(n)], "site": "REF", "age": ages})
    return from_arrays(noisy, masks, table)


def test_age_is_predicted_by_networks_that_did_not_see_the_scan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folds = np.arange(20) % 4

    def fitted(data: TrainingSet, folder: Path) -> tuple[Ensemble, list[Any]]:
        examples = Examples(data, np.arange(20), data.ages, (-20.0, 20.0))
        config = replace(FAST, acquisitions=2)
        ensemble = Ensemble("age", examples, None, folds, 4, False, 0, config, folder)
        options, networks = grey_matter_networks(ensemble)
        assert (len(networks), options["cell"]) == (4, 4)
        return ensemble, networks

    ensemble, networks = fitted(shells(20), tmp_path)
    assert np.corrcoef(ensemble.unseen(networks), ensemble.examples.targets)[0, 1] > 0.9
    weights = [network.linear.weight for network in networks]
    assert torch.equal(weights[0], weights[0].half().float())  # as a bundle stores them
    # A later run takes what this one has fitted.
    assert caplog.messages == ["age, networks on maps of grey matter"]
    again = fitted(shells(20), tmp_path)[1]
    assert len(caplog.messages) == 1
    assert torch.equal(again[0].linear.weight, weights[0])
    # The first network has not seen the first fold: another image there changes nothing for it.
    other = fitted(shells(20, np.where(folds == 0, 0.1, 0.0)), tmp_path / "other")[1]
    assert torch.equal(other[0].linear.weight, weights[0])
    assert not torch.equal(other[1].linear.weight, weights[1])


def test_made_up_sites_leave_differences_that_harmonization_makes_small() -> None:
    data = shells(8)
    maps = np.concatenate(
        [grey_matter_map(torch.from_numpy(data.stack(i)[0])[None], 4).numpy() for i in range(8)]
    )
    found = maps_between_acquisitions(data, np.arange(8), maps, 4, 3, 0)
    assert found.shape == (3 * grey_matter.PER_SITE, maps.shape[1])
    assert np.isfinite(found).all()
    assert 0 < np.abs(found).max() < 0.5
    alone = maps_between_acquisitions(data, np.arange(1), maps[:1], 4, 3, 0)
    assert alone.shape == (0, maps.shape[1])  # nobody is there to calibrate on
