"""Where networks train, whole checkpoints, and signals that end a training."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import tempfile
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch


def one_device(asked: str) -> str:
    """Where a network that needs no more than one device trains: ``cpu`` or ``cuda``."""
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether a device itself multiplies in bfloat16; a CPU that does not is many times slower."""
    if one_device(device) == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


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


def digest_of(what: Any, content: bytes) -> str:
    """Name weights by what decides them: JSON-ready values, and bytes."""
    said = json.dumps(what, sort_keys=True).encode()
    return hashlib.sha256(said + content).hexdigest()[:16]


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
