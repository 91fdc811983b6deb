"""Ridge regression on grey matter maps that is robust to scanner effects.

Ordinary ridge regression penalizes all weights equally. Here, the penalty is larger along
differences between acquisitions of the same scan. The acquisitions are simulated, and each scan is
harmonized with the code of other persons of its simulated site, so that the differences resemble
those that remain at real sites after harmonization.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_harmony.models.networks import GreyMatterNetwork, grey_matter_map
from bids_harmony.sites.code import Appearance, IntensityMapping, site_code
from bids_harmony.training.acquisition import Acquisition, acquire
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.predictor import Ensemble, target_scale
from bids_harmony.training.storage import digest_of, load_network, save_network

LOGGER = logging.getLogger(__name__)

#: Side of the map's cells in mm.
CELL_MM = 4.0
#: Ridge penalty relative to the mean squared norm of the maps, and the factor by which it is
#: larger along differences between acquisitions.
PENALTY, STEADY = 0.3, 1000.0
#: Number of scans per simulated site, and the standard deviation, in years, of the error in their
#: assumed mean age, so that predictions are robust to errors in estimated ages.
PER_SITE, WRONG = 6, 8.0


def grey_matter_networks(ensemble: Ensemble) -> tuple[dict[str, Any], list[nn.Module]]:
    """Fit one grey matter network per fold, on the scans of the other folds.

    Networks of the same options and data are loaded from the cache.

    Parameters
    ----------
    ensemble : Ensemble
        Ensemble of slice networks, with the scans, targets and folds to use.

    Returns
    -------
    options : dict
        Options of :class:`bids_harmony.models.networks.GreyMatterNetwork`.
    networks : list of GreyMatterNetwork
        Networks with weights rounded to half precision.
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
    LOGGER.info(f"{name}, networks on maps of grey matter")
    scans, cell = examples.scans, options["cell"]
    maps = np.concatenate([_map(data.stack(scan)[0], cell) for scan in scans])
    # A simulated site has scans of one fold only, so that no network uses scans it must not see.
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
    """Compute ridge regression weights with an extra penalty along given differences.

    Parameters
    ----------
    seen : numpy.ndarray
        (n, points) maps with mean 0.
    targets : numpy.ndarray
        (n,) targets with mean 0.
    differences : numpy.ndarray
        (m, points) differences between maps of the same scan.

    Returns
    -------
    numpy.ndarray
        (points,) weights w that minimize ``|seen w - targets|² + c w'Mw``, with the matrix
        ``M = I + STEADY * mean(d d') / mean(x'x)`` over the differences d and the maps x, and
        ``c = PENALTY * mean(x'M⁻¹x)``.
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
    """Compute changes of grey matter maps between simulated acquisitions.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    scans : numpy.ndarray
        (n,) scan indices.
    maps : numpy.ndarray
        (n, points) grey matter maps of these scans.
    cell : int
        Side of the map's cells in voxels.
    n_sites : int
        Number of simulated acquisitions, with a random strength of up to 1.
    seed : int
        Random seed.

    Returns
    -------
    numpy.ndarray
        (differences, points) map of the simulated scan minus map of the original. Each simulated
        scan is harmonized with a code of the other persons of its site, whose mean age is
        perturbed.
    """
    values, ages, persons = data.descriptors[scans], data.ages[scans], data.persons[scans]
    appearance = Appearance.fit(values, ages, persons, None)
    ages = np.where(np.isnan(ages), appearance.mean_age, ages)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    found = [np.empty((0, maps.shape[1]))]
    for _ in range(n_sites):
        acquisition = Acquisition.draw(generator, float(rng.uniform()))
        here = rng.permutation(len(scans))[:PER_SITE]
        acquired = [acquire(data, scan, acquisition, generator) for scan in scans[here].tolist()]
        described, wrong = np.array([row for _, row in acquired]), rng.normal(0, WRONG)
        for place, (stack, _) in zip(here, acquired, strict=True):
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
