"""Where networks train, and how their weights are kept."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bids_harmony.files import write_bytes

Network = TypeVar("Network", bound=nn.Module)


def one_device(asked: str) -> str:
    """Where a network that needs no more than one device trains: ``cpu`` or ``cuda``."""
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether a device itself multiplies in bfloat16; a CPU that does not is many times slower."""
    if one_device(device) == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def as_stored(network: Network) -> Network:
    """Round a network's weights to the half precision they are stored in, in place.

    Everything measured after this holds for the bundle as it will be loaded.
    """
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().float())
    return network.eval().requires_grad_(False)


def digest_of(what: Any, content: bytes) -> str:
    """Name weights by what decides them: JSON-ready values, and bytes."""
    said = json.dumps(what, sort_keys=True).encode()
    return hashlib.sha256(said + content).hexdigest()[:16]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole: beside its place, then renamed.

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
