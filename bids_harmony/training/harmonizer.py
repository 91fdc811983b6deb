"""Train the forward and backward maps: a conditional CycleGAN on unpaired slices.

The forward map takes any site to the reference and knows no site; the backward map is told the
site to lead to (preprint §4, science.md §2). With one source site this is the two-domain
CycleGAN. Slices are paired by height and scans by age and sex (``training/sampling.py``), so that
none of these tells the discriminator where a slice comes from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import load, save

from bids_harmony import __version__
from bids_harmony.errors import UsageError
from bids_harmony.models.generators import Generator
from bids_harmony.models.slices import slice_input
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.fabric import (
    Engine,
    StopSignal,
    launch,
    load_checkpoint,
    save_checkpoint,
    write_bytes,
)
from bids_harmony.training.maps import Batch, Maps, Trainer
from bids_harmony.training.presets import FAST, Preset
from bids_harmony.training.progress import Progress, sample_sheet
from bids_harmony.training.sampling import Pairs, PairSampler, Prefetcher
from bids_harmony.training.stored import as_stored

#: Steps between two entries of the logs; losses are looked at as often.
LOG_STEPS = 20


@dataclass(frozen=True)
class Plan:
    """How long to train and how often to keep what there is.

    Attributes
    ----------
    steps : int
        Optimiser steps. There is no limit of time: the result must not depend on the machine.
    epoch : int
        Steps after which the maps are kept as a candidate and a sheet of samples is drawn.
    seed : int
        Seed of weights and sampling.
    save_seconds : float
        A checkpoint is written when the last one is this old.
    """

    steps: int
    epoch: int = 500
    seed: int = 42
    save_seconds: float = 120.0


@dataclass
class Harmonizer:
    """Trained maps.

    Attributes
    ----------
    forward, backward : Generator
        Any site to the reference; the reference to one of ``sites``.
    sites : list of str
        Source sites in the order of the backward map's numbers.
    forward_config, backward_config : dict
        ``kind`` and ``options`` of the maps, as a bundle's ``networks`` entries give them.
    record : dict
        What was done, for ``bundle.json``.
    epochs : list of (int, Path)
        Steps after which the averaged maps were kept, and where; the last are those above.
    preset : Preset
        What they were trained with.
    """

    forward: Generator
    backward: Generator
    sites: list[str]
    forward_config: dict[str, Any]
    backward_config: dict[str, Any]
    record: dict[str, Any]
    epochs: list[tuple[int, Path]]
    preset: Preset

    def at(self, path: Path) -> tuple[Generator, Generator]:
        """Return the maps of one of ``epochs``, in evaluation mode."""
        maps = Maps(self.preset, len(self.sites))
        maps.load_state_dict(load(path.read_bytes()))
        maps.eval().requires_grad_(False)
        return maps.forward_map, maps.backward_map

    @property
    def steps(self) -> list[int]:
        """Steps of ``epochs``."""
        return [step for step, _ in self.epochs]

    def candidate(self, step: int) -> Generator:
        """Return the forward map after one of ``steps``, with the weights as a bundle has them."""
        return as_stored(self.at(dict(self.epochs)[step])[0])

    def choose(self, step: int) -> None:
        """Make the maps after one of ``steps`` the ones kept."""
        self.forward, self.backward = self.at(dict(self.epochs)[step])


def train_harmonizer(
    data: TrainingSet,
    among: np.ndarray,
    reference: str,
    preset: Preset = FAST,
    *,
    plan: Plan,
    folder: Path,
    engine: Engine | None = None,
    say: Callable[[str], None] = print,
) -> Harmonizer:
    """Train on the given scans; go on where an interrupted run of the same training stopped.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    among : numpy.ndarray
        Numbers of the scans to train on.
    reference : str
        The site the forward map leads to.
    preset : Preset
        Networks, losses and optimisation.
    plan : Plan
        How long.
    folder : pathlib.Path
        Work folder. Checkpoint, candidates, samples and logs go to a folder inside it that
        belongs to this training alone: another preset, seed or scan gets another.
    engine : Engine, optional
        Devices; one process on the CPU when None.
    say : callable
        Takes a line of progress; with several devices, a function of a module.

    Returns
    -------
    Harmonizer

    Raises
    ------
    HarmonyError
        When a loss is no longer a number.
    UsageError
        When the batch cannot be shared by the devices, or machines are missing, or a number is
        below one.
    KeyboardInterrupt
        When a signal asked to stop; a checkpoint has been written.
    """
    engine = engine or Engine("cpu")
    if min(plan.steps, plan.epoch, preset.batch, engine.devices, engine.nodes) < 1:
        raise UsageError(
            "The harmonizer cannot be trained with less than one step, pair or device.",
            "Check --harmonizer-steps, --epoch-steps, --batch, --devices and --nodes.",
        )
    engine.check(preset.batch)
    sites = sorted(set(data.sites[among].tolist()) - {reference})
    place = folder / f"harmonizer-{_digest(data, among, reference, preset, plan, engine)}"
    record = launch(
        engine,
        preset.precision,
        place / "logs",
        _train,
        data,
        [data.site_scans(site, among) for site in (*sites, reference)],
        preset,
        plan,
        place,
        say,
    )
    epochs = [(step, _epoch_file(place, step)) for step in _epoch_ends(plan)]
    empty = Maps(preset, len(sites))
    harmonizer = Harmonizer(
        empty.forward_map,
        empty.backward_map,
        sites,
        {"kind": preset.generator, "options": preset.generator_options()},
        {"kind": preset.generator, "options": preset.generator_options(len(sites))},
        {"preset": preset.to_dict(), "steps": plan.steps, "seed": plan.seed, **record},
        epochs,
        preset,
    )
    harmonizer.choose(plan.steps)
    return harmonizer


def _train(
    data: TrainingSet,
    scans: list[np.ndarray],
    preset: Preset,
    plan: Plan,
    place: Path,
    say: Callable[[str], None],
    *,
    fabric: Fabric,
) -> dict[str, Any]:
    """Train in one process of several, or in the only one; ``scans`` end with the reference's."""
    *sources, references = scans
    trainer = Trainer(fabric, preset, len(sources), data.size, plan.steps, plan.seed)
    with _feed(fabric, data, references, sources, preset, plan.seed) as feed, StopSignal() as stop:
        checkpoint = place / "checkpoint.pt"
        if state := load_checkpoint(checkpoint):
            trainer.load_state_dict(state["trainer"])
            feed.load_state_dict(state["feed"])
        progress = Progress(fabric, say, plan.steps, trainer.step, preset.batch, plan.save_seconds)
        progress.history = state["history"] if state else []
        while trainer.step < plan.steps:
            trainer.train(next(feed))
            step = trainer.step
            epoch = step % plan.epoch == 0 or step == plan.steps
            stopped, due = progress.agree(stop.received, epoch)
            if step % LOG_STEPS == 0 or step == plan.steps:
                progress.log(step, trainer.losses(clear=True), feed.waited_share)
            elif due:
                trainer.losses(clear=False)  # a checkpoint holds no weights gone astray
            if epoch and fabric.is_global_zero:
                maps = trainer.averaged
                write_bytes(_epoch_file(place, step), save(maps.state_dict()))
                sheet = sample_sheet(data, [s[len(s) // 2] for s in scans], maps.forward_map)
                progress.show(step, sheet, place / "samples" / f"step-{step:07d}.png")
            if due:
                state = {
                    "trainer": trainer.state_dict(),
                    "feed": feed.state_dict(),
                    "history": progress.history,
                }
                if fabric.is_global_zero:
                    save_checkpoint(checkpoint, state)
            if stopped:
                if fabric.is_global_zero:
                    say(f"harmonizer stopped after step {step} of {plan.steps}, and kept")
                raise KeyboardInterrupt
    return progress.record()


@contextmanager
def _feed(
    fabric: Fabric,
    data: TrainingSet,
    references: np.ndarray,
    sources: list[np.ndarray],
    preset: Preset,
    seed: int,
) -> Iterator[Prefetcher[Batch]]:
    """Batches read in the background: every process draws the whole, and reads its share."""

    def read(pairs: Pairs) -> Batch:
        def some(scans: np.ndarray, numbers: np.ndarray) -> torch.Tensor:
            scans, numbers = (v[fabric.global_rank :: fabric.world_size] for v in (scans, numbers))
            images, masks = data.slices(scans, numbers, preset.around)
            return torch.from_numpy(slice_input(images, masks, data.heights[numbers]))

        return Batch(
            some(pairs.source_scans, pairs.source_slices),
            some(pairs.reference_scans, pairs.reference_slices),
            torch.from_numpy(pairs.sites[fabric.global_rank :: fabric.world_size]),
        )

    sampler = PairSampler(data, references, sources, batch=preset.batch, seed=seed)
    with Prefetcher(sampler, read) as feed:
        yield feed


def _epoch_ends(plan: Plan) -> list[int]:
    return [*range(plan.epoch, plan.steps, plan.epoch), plan.steps]


def _epoch_file(place: Path, step: int) -> Path:
    return place / "epochs" / f"step-{step:07d}.safetensors"


def _digest(
    data: TrainingSet,
    among: np.ndarray,
    reference: str,
    preset: Preset,
    plan: Plan,
    engine: Engine,
) -> str:
    """Name all that decides the weights, so that only the same training is taken up again."""
    said = {
        "version": __version__,
        "preset": preset.to_dict(),
        "plan": [plan.steps, plan.epoch, plan.seed],
        "world": engine.world,
        "precision": engine.precision,
        "reference": reference,
        "scans": data.table.iloc[among].astype(str).to_numpy().tolist(),
        "box": data.box,
    }
    text = json.dumps(said, sort_keys=True).encode()
    return hashlib.sha256(text + data.content(among)).hexdigest()[:12]
