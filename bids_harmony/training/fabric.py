"""Lightning Fabric: devices, precision, logs; whole checkpoints; signals that end a run.

Processes for several devices of one machine are started here, for the function that needs them
alone. Those of several machines are started by ``srun`` or ``torchrun``.
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.multiprocessing.spawn import ProcessExitedException

from bids_harmony.errors import HarmonyError, UsageError
from bids_harmony.training.config import TrainOptions

#: Processes wait this long for one that reads scans or writes a bundle.
PATIENCE = timedelta(hours=24)

#: How gloo (a plain ``RuntimeError``) and NCCL tell that another process is gone.
_LOST = re.compile(r"by peer|Broken pipe|remote (process|worker|peer)", re.IGNORECASE)


@dataclass(frozen=True)
class Engine:
    """Where training runs.

    Attributes
    ----------
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    devices : int
        Devices per machine; on the CPU, processes.
    nodes : int
        Machines.
    threads : int
        CPU threads, shared by the processes of a machine.
    precision : str
        ``auto``: as the preset says, where the device can (:func:`has_bf16`); or one of Fabric's.
    """

    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    threads: int = 1
    precision: str = "auto"

    @classmethod
    def of(cls, options: TrainOptions) -> Engine:
        """Read what the user chose."""
        return cls(
            options.device, options.devices, options.nodes, options.threads, options.precision
        )

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.devices * self.nodes

    def check(self, batch: int) -> None:
        """See that the devices are there and can share a batch.

        Raises
        ------
        UsageError
            When the batch cannot be shared, machines are missing, or there are fewer GPUs.
        """
        if batch % self.world:
            raise UsageError(
                f"A batch of {batch} cannot be shared by {self.world} devices.",
                "Give --batch a multiple of their number.",
            )
        if self.nodes > 1 and not started_outside():
            raise UsageError(
                f"Training on {self.nodes} machines was asked for, but only this one takes part.",
                "Start the command with srun or torchrun on all of them.",
            )
        there = torch.cuda.device_count() if self.device != "cpu" else 0
        if (self.device == "cuda" or there) and there < self.devices:
            raise UsageError(
                f"--devices {self.devices} asks for GPUs, and torch finds {there}.",
                "Give --devices as many as there are, or use --device cpu; a container must be "
                "given its GPUs (--gpus all, --nv).",
            )


def one_device(asked: str) -> str:
    """Where a network that needs no more than one device trains: ``cpu`` or ``cuda``."""
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether a device itself multiplies in bfloat16; a CPU that does not is many times slower."""
    if one_device(device) == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def started_outside() -> bool:
    """Whether ``srun`` or ``torchrun`` started this process as one of several."""
    if TorchElasticEnvironment.detect():
        return True
    # One process needs no srun, and of several the pages tell.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    return SLURMEnvironment.detect() and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def first_process() -> bool:
    """Whether this is the process that reads, tells and writes."""
    return (
        not started_outside()
        or int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0
    )


def make_fabric(engine: Engine, precision: str, logs: Path | None = None) -> Fabric:
    """Set Fabric up.

    Parameters
    ----------
    engine : Engine
        Devices.
    precision : str
        Used where the engine leaves it to the preset; single where the device has no half.
    logs : pathlib.Path, optional
        Folder of CSV and TensorBoard logs; each run writes a new version.
    """
    outside = started_outside()
    strategy: DDPStrategy | str = "auto"
    if engine.world > 1:
        strategy = DDPStrategy(
            start_method="popen" if outside else "spawn",
            timeout=PATIENCE,
            # The only buffers, of spectral norm, are the same everywhere.
            forward_sync_buffers=False,
        )
    if engine.precision != "auto":
        precision = engine.precision
    elif not has_bf16(engine.device):
        precision = "32-true"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    loggers = [CSVLogger(logs, "csv"), TensorBoardLogger(logs, "tensorboard")] if logs else []
    return Fabric(
        accelerator=engine.device,
        devices=engine.devices,
        num_nodes=engine.nodes,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
        loggers=loggers,
    )


def launch(
    engine: Engine, precision: str, logs: Path, function: Callable[..., Any], *args: Any
) -> Any:
    """Run ``function(*args, fabric=...)`` on every device and return what the first returns.

    Raises
    ------
    HarmonyError
        That the function raised, or when a process ended by itself.
    KeyboardInterrupt
        When the function was ended by a signal.
    """
    fabric = make_fabric(engine, precision, logs)
    threads = max(1, engine.threads // engine.devices)
    with _PassedOn(engine.world > 1 and not started_outside()) as stop:
        try:
            kind, value = fabric.launch(_worker, threads, partial(function, *args))  # type: ignore[arg-type]
        except ProcessExitedException as error:
            if stop.received:  # before it could note the signal
                raise KeyboardInterrupt from error
            raise HarmonyError(
                f"A process of the training ended ({error}).",
                "It may have run out of memory. The same command goes on from the checkpoint.",
            ) from error
    if kind == "error":
        raise value
    if kind == "stopped":
        raise KeyboardInterrupt
    return value


def _worker(fabric: Fabric, threads: int, call: Callable[..., Any]) -> tuple[str, Any]:
    """Run in a process that may be another one: errors go back as values."""
    torch.set_num_threads(threads)
    # Fabric's own calls, which its next versions mend.
    warnings.filterwarnings("ignore", message=".*all_gather is deprecated")
    try:
        return "done", call(fabric=fabric)
    except HarmonyError as error:
        return "error", error
    except KeyboardInterrupt:
        return "stopped", None
    except RuntimeError as error:
        if fabric.world_size == 1 or not _LOST.search(str(error)):
            raise
        return "error", HarmonyError(
            "Another process of the training ended, or cannot be reached any more.",
            "Its own messages say why; it may have run out of memory, or its machine was lost. "
            "The same command goes on from the checkpoint.",
        )
    finally:
        for logger in fabric.loggers:
            logger.finalize("")


class StopSignal:
    """Remembers SIGTERM or SIGINT instead of ending the process in the middle of a step.

    Within ``with``; afterwards signals do again what they did before.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True


class _PassedOn(StopSignal):
    """Hands signals on to the processes started here, which save and end; does nothing else."""

    def __init__(self, wanted: bool) -> None:
        super().__init__()
        self.wanted = wanted

    def __enter__(self) -> Self:
        return super().__enter__() if self.wanted else self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        for child in multiprocessing.active_children():
            child.terminate()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole: beside its place, to the disk, then renamed.

    Parameters
    ----------
    path : pathlib.Path
        The file; an older one is replaced.
    state : dict
        Tensors, numbers, strings, and lists and dictionaries of them.
    """
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes(path, content.getbuffer())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole, and make sure of it before it takes its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint onto the CPU; None where there is none.

    Nothing but tensors and plain values is read, never code.
    """
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)  # left by a process that was killed while it wrote
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
