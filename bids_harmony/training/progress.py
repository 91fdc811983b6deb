"""What a training shows: a line with rate and time left, logs, and sheets of sample slices."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from PIL import Image

from bids_harmony.models.generators import Generator
from bids_harmony.models.slices import generator_input
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.fabric import write_bytes
from bids_harmony.training.maps import LOSSES

#: Seconds between two lines, and how many rows of the history a bundle keeps.
TELL_SECONDS, HISTORY = 5.0, 40
#: Change of intensity shown as black or white on a sheet.
SHOWN_CHANGE = 0.3


class Progress:
    """Tells and records how a training goes.

    Parameters
    ----------
    fabric : Fabric
        Its loggers get every entry.
    say : callable
        Takes a line.
    steps, start : int
        Steps of the training, and how many were done before.
    batch : int
        Pairs per step.
    save_seconds : float
        How old a checkpoint may become.

    Attributes
    ----------
    history : list of list of float
        Step and losses of every entry.
    """

    def __init__(
        self,
        fabric: Fabric,
        say: Callable[[str], None],
        steps: int,
        start: int,
        batch: int,
        save_seconds: float,
    ) -> None:
        self.fabric, self.say, self.steps, self.start = fabric, say, steps, start
        self.batch, self.save_seconds = batch, save_seconds
        self.history: list[list[float]] = []
        self._begun = self._saved = time.monotonic()
        self._told = 0.0
        if start and fabric.is_global_zero:
            say(f"harmonizer goes on after step {start} of {steps}")

    def agree(self, stopped: bool, epoch: bool) -> tuple[bool, bool]:
        """Whether any process was told to stop, and whether a checkpoint is due."""
        due = epoch or stopped or time.monotonic() - self._saved >= self.save_seconds
        if self.fabric.world_size > 1:
            wishes = torch.tensor([stopped, due], dtype=torch.float32, device=self.fabric.device)
            stopped, due = (self.fabric.all_reduce(wishes, reduce_op="sum") > 0).tolist()  # type: ignore[operator, union-attr]
        if due:
            self._saved = time.monotonic()
        return stopped, due

    def log(self, step: int, losses: dict[str, float], waited: float) -> None:
        """Enter losses, rate and the share of time spent waiting for data; now and then tell."""
        now = time.monotonic()
        spent = max(now - self._begun, 1e-9)
        rate = (step - self.start) / spent
        self.history.append([step, *[round(losses[name], 5) for name in LOSSES]])
        extra = {"pairs_per_second": rate * self.batch, "waited_for_data": waited}
        self.fabric.log_dict({**losses, **extra}, step)
        if self.fabric.is_global_zero and (now - self._told > TELL_SECONDS or step == self.steps):
            self._told = now
            done = round(20 * step / self.steps)
            left = round((self.steps - step) / rate)
            shown = ", ".join(f"{name} {losses[name]:.3f}" for name in LOSSES)
            self.say(
                f"harmonizer [{'#' * done}{'.' * (20 - done)}] step {step} of {self.steps}, "
                f"{rate * self.batch:.1f} pairs/s ({waited:.0%} of the time waiting for data), "
                f"{left // 60} min {left % 60} s left; {shown}"
            )

    def show(self, step: int, sheet: np.ndarray, path: Path) -> None:
        """Write a sheet as a PNG file and to TensorBoard."""
        content = io.BytesIO()
        Image.fromarray(sheet).save(content, "PNG")
        write_bytes(path, content.getbuffer())
        for logger in self.fabric.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", sheet[None], step)

    def record(self) -> dict[str, Any]:
        """Return the history, thinned."""
        thinned = self.history[:: max(1, len(self.history) // HISTORY)]
        return {"history_columns": ["step", *LOSSES], "history": thinned}


def sample_sheet(data: TrainingSet, scans: Sequence[int], network: Generator) -> np.ndarray:
    """Draw the fullest slice of some scans, the same mapped, and the change.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    scans : sequence of int
        One row each.
    network : Generator
        The forward map.

    Returns
    -------
    numpy.ndarray
        uint8 (len(scans) * columns, 3 * rows), front up; in the third column grey is no change,
        black and white are -0.3 and 0.3.
    """
    rows = []
    device = next(network.parameters()).device
    for scan in scans:
        stack, mask = data.stack(int(scan))
        which = int(np.argmax(data.filled[scan]))
        inputs = generator_input(stack, mask, data.heights, network.around)[which : which + 1]
        with torch.inference_mode():
            mapped = network(torch.from_numpy(inputs).to(device))[0, 0].cpu().numpy()
        change = (mapped - stack[which]) / (2 * SHOWN_CHANGE) + 0.5
        rows.append(np.hstack([np.rot90(v) for v in (stack[which] / 1.5, mapped / 1.5, change)]))
    return (255 * np.clip(np.vstack(rows), 0, 1)).astype(np.uint8)
