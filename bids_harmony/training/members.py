"""The networks of predictors' ensembles: trained one after the other or at once, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_harmony.models.networks import SliceNetwork
from bids_harmony.processes import prefixed, side_by_side
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.examples import Examples
from bids_harmony.training.fabric import load_checkpoint, save_checkpoint
from bids_harmony.training.predictor import PredictorConfig, predict_stack, train_predictor
from bids_harmony.training.stored import as_stored


@dataclass(frozen=True)
class Job:
    """What all networks of a training share.

    Attributes
    ----------
    options : TrainOptions
        Seed, folds and contract.
    config : PredictorConfig
        Size and optimisation.
    folder : pathlib.Path
        Where finished networks and checkpoints are kept.
    device : str
        torch device.
    say : callable
        Takes a line of progress.
    """

    options: TrainOptions
    config: PredictorConfig
    folder: Path
    device: str
    say: Callable[[str], None]


@dataclass(frozen=True)
class Ensemble:
    """Networks for one target, each trained on the scans of all folds but its own.

    Attributes
    ----------
    name : str
        The target's name.
    examples : Examples
        Scans and targets.
    validation : Examples or None
        Scans that the paper's schedule watches.
    folds : numpy.ndarray
        (examples,) number of each scan's fold.
    network : dict
        Options of the networks.
    binary : bool
        Whether they give logits.
    n_networks : int
        How many there are; a scan of a higher fold is seen by all.
    seed : int
        Of the first network; the others take the next ones.
    """

    name: str
    examples: Examples
    validation: Examples | None
    folds: np.ndarray
    network: dict[str, Any]
    binary: bool
    n_networks: int
    seed: int

    def unseen(self, members: list[SliceNetwork]) -> np.ndarray:
        """Predict each scan by the network that was trained without it: (examples,), or NaN."""
        found = np.full(len(self.folds), np.nan)
        for fold, member in enumerate(members):
            for i in np.flatnonzero(self.folds == fold):
                stack = self.examples.stack(int(i))
                found[i] = np.median(predict_stack([member], stack, self.examples.heights))
        return found


def train_members(
    ensembles: dict[str, Ensemble], job: Job, nprocs: int
) -> dict[str, list[SliceNetwork]]:
    """Train the networks of all ensembles, or take those that an earlier run has finished.

    Parameters
    ----------
    ensembles : dict of str to Ensemble
        By the target's name.
    job : Job
        What they share; with several processes, ``say`` is a function of a module.
    nprocs : int
        Networks trained at once, on the CPU only.

    Returns
    -------
    dict of str to list of SliceNetwork
        By the target's name, with the weights as stored.
    """
    calls = [(e, fold) for e in ensembles.values() for fold in range(e.n_networks)]
    if nprocs == 1 or len(calls) == 1 or job.device != "cpu":
        trained = {number: _member(*call, job) for number, call in enumerate(calls)}
    else:
        alone = [
            (e, fold, replace(job, say=partial(prefixed, job.say, f"[{e.name} {fold + 1}] ")))
            for e, fold in calls
        ]
        trained = dict(side_by_side(_member_alone, alone, nprocs))
    found: dict[str, list[SliceNetwork]] = {name: [] for name in ensembles}
    for number, (ensemble, _) in enumerate(calls):
        found[ensemble.name].append(trained[number])
    return found


def _member_alone(ensemble: Ensemble, fold: int, job: Job) -> SliceNetwork:
    """Train one network in a process of its own."""
    torch.set_num_threads(1)
    return _member(ensemble, fold, job)


def _member(ensemble: Ensemble, fold: int, job: Job) -> SliceNetwork:
    """Train one network, or take the one that an earlier run has finished."""
    name = f"{ensemble.name}-{fold}"
    job.say(f"{ensemble.name}, network {fold + 1} of {ensemble.n_networks}")
    network, binary, seed = ensemble.network, ensemble.binary, ensemble.seed + fold
    what = {"config": job.config.to_dict(), "network": network, "binary": binary, "seed": seed}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for part in (ensemble.examples, ensemble.validation):
        if part is not None:
            digest.update(_content(part))
    places = np.flatnonzero(ensemble.folds != fold)
    digest.update(places.tobytes())
    path = job.folder / f"{name}-{digest.hexdigest()[:16]}.pt"
    if (state := load_checkpoint(path)) is not None:
        job.say(f"{name} was trained before: {path}")
        member = SliceNetwork(**network)
        member.load_state_dict(state)
    else:
        member = train_predictor(
            ensemble.examples, places, ensemble.validation, network, job.config,
            binary=binary, seed=seed, say=job.say, device=job.device,
            checkpoint=path.with_suffix(".checkpoint"),
        )  # fmt: skip
        save_checkpoint(path, member.state_dict())
    return as_stored(member)


def _content(examples: Examples) -> bytes:
    """Digest of targets and of one slice of each scan, to know an earlier run's data again."""
    digest = hashlib.sha256(examples.targets.tobytes())
    middle = len(examples.numbers) // 2
    for place in range(len(examples.scans)):
        digest.update(examples.draw(np.array([place]), np.array([middle])).numpy().tobytes())
    return digest.digest()
