"""Keep a predictor's training now and then, so that it goes on where it was cut short."""

from __future__ import annotations

import time
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from bids_harmony.training.fabric import StopSignal, load_checkpoint, save_checkpoint

#: Seconds between two checkpoints.
SAVE_SECONDS = 120.0


class Training(Protocol):
    """What the next step of a training depends on, beside torch's own chance (dropout)."""

    optimiser: torch.optim.Optimizer
    chance: torch.Generator
    rng: np.random.Generator
    count: int
    device: str

    @property
    def network(self) -> nn.Module:
        """The network."""


class Keeper(StopSignal):
    """Writes checkpoints of a training and takes it up again; signals wait for a whole one.

    Parameters
    ----------
    path : pathlib.Path or None
        The checkpoint; None keeps nothing.
    training : Training
        What is kept.
    """

    def __init__(self, path: Path | None, training: Training) -> None:
        super().__init__()
        self.path, self.training = path, training
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any]:
        """Go on from the checkpoint, and return what was saved beside it; empty without one."""
        if self.path is None or (state := load_checkpoint(self.path)) is None:
            return {}
        training = self.training
        training.network.load_state_dict(state["network"])
        training.optimiser.load_state_dict(state["optimiser"])
        training.chance.set_state(state["chance"])
        training.rng.bit_generator.state = state["rng"]
        training.count = state["count"]
        torch.set_rng_state(state["torch"])
        if training.device == "cuda":
            torch.cuda.set_rng_state(state["cuda"])
        beside: dict[str, Any] = state["beside"]
        return beside

    def keep(self, **beside: Any) -> None:
        """Save if the last checkpoint is old or a signal came; after a signal, end.

        Raises
        ------
        KeyboardInterrupt
            When a signal asked to stop.
        """
        due = time.monotonic() - self._saved >= SAVE_SECONDS
        if self.path is not None and (due or self.received):
            training = self.training
            save_checkpoint(
                self.path,
                {
                    "network": training.network.state_dict(),
                    "optimiser": training.optimiser.state_dict(),
                    "chance": training.chance.get_state(),
                    "rng": deepcopy(training.rng.bit_generator.state),
                    "count": training.count,
                    "torch": torch.get_rng_state(),
                    "cuda": torch.cuda.get_rng_state() if training.device == "cuda" else None,
                    "beside": beside,
                },
            )
            self._saved = time.monotonic()
        self.end_if_asked()

    def end_if_asked(self) -> None:
        """End where a signal asked to, without saving.

        Raises
        ------
        KeyboardInterrupt
            When it did.
        """
        if self.received:
            raise KeyboardInterrupt
