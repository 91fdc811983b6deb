"""Fit the predictor on maps of grey matter: ridge regression that leans little on the scanner.

Ridge regression holds all weights down alike. Here they are held down more where the map of a
scan differs between acquisitions. These are made up, and each is harmonized as other scans of the
same acquisition say, so that the differences are those that harmonization leaves at real sites.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from bids_harmony.models.networks import GreyMatterNetwork, grey_matter_map
from bids_harmony.sites.code import Appearance, IntensityMapping, site_code
from bids_harmony.training.acquisition import Acquisition, acquire
from bids_harmony.training.data import Say, TrainingSet
from bids_harmony.training.predictor import Ensemble, target_scale
from bids_harmony.training.storage import digest_of, load_network, save_network

#: Side of the map's cells.
CELL_MM = 4.0
#: Penalty on the weights, relative to the mean squared norm of the maps, and how many times more
#: is put on what differs between acquisitions.
PENALTY, STEADY = 0.3, 1000.0
#: Scans of a made-up site, and the standard deviation, in years, of what is taken for their mean
#: age: where ages are unknown, predictions must not lean on what was guessed.
PER_SITE, WRONG = 6, 8.0


def grey_matter_networks(ensemble: Ensemble, say: Say) -> tuple[dict[str, Any], list[nn.Module]]:
    """Fit a network without each fold, or take those that an earlier run has fitted.

    Parameters
    ----------
    ensemble : Ensemble
        Of slice networks: these are fitted to the same scans, targets and folds.
    say : callable
        Takes a line of progress.

    Returns
    -------
    options : dict
        Of :class:`bids_harmony.models.networks.GreyMatterNetwork`.
    networks : list of GreyMatterNetwork
        With the weights as stored.
    """
    examples, folds, data = ensemble.examples, ensemble.folds, ensemble.examples.data
    acquisitions, seed, name = ensemble.config.acquisitions, ensemble.seed, ensemble.name
    options: dict[str, Any] = {
        "shape": [len(data.heights), *data.size],
        "cell": max(round(CELL_MM / data.zoom_mm), 1),
        **target_scale(examples.targets),
    }
    what = [acquisitions, options, seed, PENALTY, STEADY, PER_SITE, WRONG]
    content = data.content(examples.scans) + examples.content() + folds.tobytes()
    path = ensemble.folder / f"{name}_grey_matter-{digest_of(what, content)}.pt"
    networks: Any = nn.ModuleList(GreyMatterNetwork(**options) for _ in range(folds.max() + 1))
    if load_network(path, networks) is not None:
        return options, [*networks]
    say(f"{name}, networks on maps of grey matter")
    scans, cell = examples.scans, options["cell"]
    maps = np.concatenate([_map(data.stack(scan)[0], cell) for scan in scans])
    # A made-up site has scans of one fold: what a network does not see, it does not lean on.
    differences = [
        maps_between_acquisitions(
            data, scans[folds == fold], maps[folds == fold], cell, acquisitions, seed + fold
        )
        for fold in range(len(networks))
    ]
    unit = (examples.targets - options["mean"]) / options["scale"]
    for fold, network in enumerate(networks):
        seen = folds != fold
        others = np.concatenate([rows for k, rows in enumerate(differences) if k != fold])
        centre, level = maps[seen].mean(axis=0), unit[seen].mean()
        weights = ridge(maps[seen] - centre, unit[seen] - level, others)
        network.linear.weight.data = torch.from_numpy(weights).float()[None]
        network.linear.bias.data = torch.tensor([level - centre @ weights]).float()
    save_network(path, networks)
    return options, [*networks]


def ridge(seen: np.ndarray, targets: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Solve for the weights of a ridge regression that hold still along some differences.

    Parameters
    ----------
    seen : numpy.ndarray
        (n, points) maps, mean 0.
    targets : numpy.ndarray
        (n,) mean 0.
    differences : numpy.ndarray
        (m, points) between maps of the same scan.

    Returns
    -------
    numpy.ndarray
        (points,) weights w that minimize ``|seen w - targets|² + c w'Mw``, where M is the unit
        matrix and :data:`STEADY` times the mean of the differences' outer products over the mean
        squared norm of the maps, and c is :data:`PENALTY` times the mean of ``x'M⁻¹x`` over the
        maps x.
    """
    n, m = len(seen), len(differences)
    inner = differences @ differences.T + (seen**2).sum() / n * m / STEADY * np.eye(m)
    steady = seen - seen @ differences.T @ np.linalg.solve(inner, differences)  # seen M⁻¹
    gram = steady @ seen.T
    c = PENALTY * np.trace(gram) / n
    return np.asarray(steady.T @ np.linalg.solve(gram + c * np.eye(n), targets))


def maps_between_acquisitions(
    data: TrainingSet,
    scans: np.ndarray,
    maps: np.ndarray,
    cell: int,
    n_sites: int,
    seed: int,
) -> np.ndarray:
    """Acquire scans anew at made-up sites, and say how their maps differ from the originals'.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    scans : numpy.ndarray
        (n,) numbers of the scans.
    maps : numpy.ndarray
        (n, points) of these.
    cell : int
        Of :func:`bids_harmony.models.networks.grey_matter_map`.
    n_sites : int
        Acquisitions that are drawn, of any strength up to 1.
    seed : int
        Of the random number generators.

    Returns
    -------
    numpy.ndarray
        (differences, points): each scan harmonized as the other persons of its site say, whose
        mean age is taken for another one.
    """
    values, ages, persons = data.descriptors[scans], data.ages[scans], data.persons[scans]
    appearance = Appearance.fit(values, ages, persons, None)
    ages = np.where(np.isnan(ages), appearance.mean_age, ages)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    found = [np.empty((0, maps.shape[1]))]
    for _ in range(n_sites):
        acquisition = Acquisition.draw(generator, float(rng.uniform()))
        here = rng.permutation(len(scans))[:PER_SITE]
        anew = [acquire(data, scan, acquisition, generator) for scan in scans[here].tolist()]
        described, wrong = np.array([row for _, row in anew]), rng.normal(0, WRONG)
        for place, (stack, _) in zip(here, anew, strict=True):
            others = persons[here] != persons[place]
            if others.any():
                those = here[others]
                taken = np.full(len(those), ages[those].mean() + wrong)
                code = site_code(described[others], taken, persons[those], appearance)
                mapped = IntensityMapping.of(code, appearance)(stack)
                found.append(_map(mapped, cell) - maps[place])
    return np.concatenate(found)


def _map(stack: np.ndarray, cell: int) -> np.ndarray:
    return grey_matter_map(torch.from_numpy(stack)[None], cell).double().numpy()
