"""The networks of predictors' ensembles: trained one after the other or at once, and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_harmony.models.networks import GreyMatterNetwork, SliceNetwork
from bids_harmony.processes import prefixed, side_by_side
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.predictor import (
    Examples,
    PredictorConfig,
    predict_stack,
    train_predictor,
)
from bids_harmony.training.storage import as_stored, digest_of, load_checkpoint, save_checkpoint


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
        Where finished networks are kept.
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

    def unseen(self, members: Sequence[nn.Module]) -> np.ndarray:
        """Predict each scan by the network that was trained without it: (examples,), or NaN."""
        found = np.full(len(self.folds), np.nan)
        for fold, member in enumerate(members):
            for i in np.flatnonzero(self.folds == fold):
                if isinstance(member, GreyMatterNetwork):
                    whole = torch.from_numpy(self.examples.data.stack(self.examples.scans[i])[0])
                    found[i] = float(member(whole[None]))
                else:
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
    paths = {name: _paths(ensemble, job) for name, ensemble in ensembles.items()}
    left = []
    for ensemble in ensembles.values():
        for fold, path in enumerate(paths[ensemble.name]):
            if path.is_file():
                job.say(f"{ensemble.name}-{fold} was trained before: {path}")
            else:
                left.append((ensemble, fold, path))
    if min(nprocs, len(left)) > 1 and job.device == "cpu":
        alone = [
            (
                e,
                fold,
                path,
                replace(job, say=partial(prefixed, job.say, f"[{e.name} {fold + 1}] ")),
            )
            for e, fold, path in left
        ]
        for _ in side_by_side(_train_alone, alone, nprocs):
            pass
    else:
        for call in left:
            _train(*call, job)
    return {
        name: [_load(e.network, path) for path in paths[name]] for name, e in ensembles.items()
    }


def _paths(ensemble: Ensemble, job: Job) -> list[Path]:
    """Name each network's file by all that decides its weights."""
    parts = (ensemble.examples, ensemble.validation)
    contents = b"".join(_content(part) for part in parts if part is not None)
    paths = []
    config = {k: v for k, v in job.config.to_dict().items() if k != "acquisitions"}
    for fold in range(ensemble.n_networks):
        what = {
            "config": config, "network": ensemble.network,
            "binary": ensemble.binary, "seed": ensemble.seed + fold,
        }  # fmt: skip
        places = np.flatnonzero(ensemble.folds != fold).tobytes()
        paths.append(
            job.folder / f"{ensemble.name}-{fold}-{digest_of(what, contents + places)}.pt"
        )
    return paths


def _train_alone(ensemble: Ensemble, fold: int, path: Path, job: Job) -> None:
    """Train one network in a process of its own."""
    torch.set_num_threads(1)
    _train(ensemble, fold, path, job)


def _train(ensemble: Ensemble, fold: int, path: Path, job: Job) -> None:
    """Train one network and keep it."""
    job.say(f"{ensemble.name}, network {fold + 1} of {ensemble.n_networks}")
    member = train_predictor(
        ensemble.examples, np.flatnonzero(ensemble.folds != fold), ensemble.validation,
        ensemble.network, job.config, binary=ensemble.binary, seed=ensemble.seed + fold,
        say=job.say, device=job.device,
    )  # fmt: skip
    save_checkpoint(path, member.state_dict())


def _load(network: dict[str, Any], path: Path) -> SliceNetwork:
    """Read a network that was kept, with the weights as a bundle has them."""
    state = load_checkpoint(path)
    assert state is not None  # it was there, or has been trained
    member = SliceNetwork(**network)
    member.load_state_dict(state)
    return as_stored(member)


def _content(examples: Examples) -> bytes:
    """Digest of targets and of one slice of each scan, to know an earlier run's data again."""
    digest = hashlib.sha256(examples.targets.tobytes())
    middle = len(examples.numbers) // 2
    for place in range(len(examples.scans)):
        digest.update(examples.draw(np.array([place]), np.array([middle])).numpy().tobytes())
    return digest.digest()
