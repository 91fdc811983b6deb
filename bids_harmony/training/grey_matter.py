"""Fit the predictor on maps of grey matter: ridge regression that leans little on the scanner.

Ridge regression holds all weights down alike. Here they are held down more where the map of a
scan differs between acquisitions. These are made up, and each is harmonized as other scans of the
same acquisition say, so that the differences are those that harmonization leaves at real sites.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bids_harmony.models.networks import GreyMatterNetwork, grey_matter_map
from bids_harmony.models.slices import crop
from bids_harmony.sites.code import Appearance, site_code
from bids_harmony.sites.mapping import IntensityMapping
from bids_harmony.training.acquisition import Acquisition
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.maps import acquire
from bids_harmony.training.members import Ensemble, Job
from bids_harmony.training.storage import as_stored, digest_of, load_checkpoint, save_checkpoint

#: Side of the map's cells.
CELL_MM = 4.0
#: Penalty on the weights, relative to the mean squared norm of the maps, and how many times more
#: is put on what differs between acquisitions.
PENALTY, STEADY = 0.3, 1000.0
#: Scans of a made-up site, and the standard deviation, in years, of what is taken for their mean
#: age: where ages are unknown, predictions must not lean on what was guessed.
PER_SITE, WRONG = 6, 8.0


def grey_matter_networks(
    ensemble: Ensemble, job: Job
) -> tuple[dict[str, Any], list[GreyMatterNetwork]]:
    """Fit a network without each fold, or take those that an earlier run has fitted.

    Parameters
    ----------
    ensemble : Ensemble
        Scans, targets and folds.
    job : Job
        ``config.acquisitions`` made-up sites are drawn for each fold.

    Returns
    -------
    options : dict
        Of :class:`bids_harmony.models.networks.GreyMatterNetwork`.
    networks : list of GreyMatterNetwork
        With the weights as stored.
    """
    examples, folds = ensemble.examples, ensemble.folds
    data, scans, targets = examples.data, examples.scans, examples.targets
    options: dict[str, Any] = {
        "shape": [len(data.heights), *data.size],
        "cell": max(round(CELL_MM / abs(data.affine[0, 0])), 1),
        "mean": round(float(targets.mean()), 3),
        "scale": max(round(float(targets.std()), 3), 1e-3),
    }
    what = {
        "acquisitions": job.config.acquisitions,
        "network": options,
        "seed": ensemble.seed,
        "made_up": [PENALTY, STEADY, PER_SITE, WRONG],
    }
    content = data.content(scans) + folds.tobytes() + targets.tobytes()
    path = job.folder / f"{ensemble.name}-grey-matter-{digest_of(what, content)}.pt"
    states = load_checkpoint(path)
    if states is None:
        job.say(f"{ensemble.name}, networks on maps of grey matter")
        states = _fit(ensemble, options, job)
        save_checkpoint(path, states)
    networks = []
    for fold in range(ensemble.n_networks):
        network = GreyMatterNetwork(**options)
        network.load_state_dict(states[str(fold)])
        networks.append(as_stored(network))
    return options, networks


def _fit(ensemble: Ensemble, options: dict[str, Any], job: Job) -> dict[str, Any]:
    """Fit the weights without each fold: state dictionaries by fold."""
    examples, folds, cell = ensemble.examples, ensemble.folds, options["cell"]
    data, scans = examples.data, examples.scans
    maps = np.concatenate([_map(data.stack(int(scan))[0], cell) for scan in scans])
    deep = torch.from_numpy(crop(data.deep_grey(job.options.contract.resolution), data.box))
    # A made-up site has scans of one fold: what a network does not see, it does not lean on.
    differences = [
        maps_between_acquisitions(
            data, scans[folds == fold], maps[folds == fold], deep[None, None], cell,
            job.config.acquisitions, ensemble.seed + fold,
        )
        for fold in range(ensemble.n_networks)
    ]  # fmt: skip
    unit = (examples.targets - options["mean"]) / options["scale"]
    states = {}
    for fold in range(ensemble.n_networks):
        seen = folds != fold
        others = [rows for k, rows in enumerate(differences) if k != fold]
        centre, level = maps[seen].mean(axis=0), unit[seen].mean()
        weights = ridge(maps[seen] - centre, unit[seen] - level, np.concatenate(others))
        states[str(fold)] = {
            "linear.weight": torch.from_numpy(weights).float()[None],
            "linear.bias": torch.tensor([level - centre @ weights]).float(),
        }
    return states


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
    deep: torch.Tensor,
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
    deep : torch.Tensor
        (1, 1, slices, rows, columns) map of deep grey matter.
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
        anew = [acquire(data, scan, acquisition, generator, deep) for scan in scans[here].tolist()]
        described, wrong = np.array([row for _, row in anew]), rng.normal(0, WRONG)
        for place, (stack, _) in zip(here, anew, strict=True):
            others = persons[here] != persons[place]
            if others.any():
                told = here[others]
                taken = np.full(len(told), ages[told].mean() + wrong)
                code = site_code(described[others], taken, persons[told], appearance)
                mapped = IntensityMapping.of(code, appearance)(stack)
                found.append(_map(mapped, cell) - maps[place])
    return np.concatenate(found)


def _map(stack: np.ndarray, cell: int) -> np.ndarray:
    return grey_matter_map(torch.from_numpy(stack)[None], cell).double().numpy()
