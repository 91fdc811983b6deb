"""What all trainings share: the device, the losses, and the weights of finished networks."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from bids_harmony.console import counted_off
from bids_harmony.errors import HarmonyError
from bids_harmony.files import write_bytes

Network = TypeVar("Network", bound=nn.Module)
#: Losses of so many steps are averaged.
RECENT = 50


def one_device(asked: str) -> str:
    """Where a network that needs no more than one device trains: ``cpu`` or ``cuda``."""
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether a device itself multiplies in bfloat16; a CPU that does not is many times slower."""
    if one_device(device) == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Losses:
    """The last losses of a training, by name; as text, the means of the last steps.

    Parameters
    ----------
    what : str
        What is trained, for messages.
    """

    def __init__(self, what: str) -> None:
        self.what, self.step = what, 0
        self.recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))

    def add(self, **losses: float) -> None:
        """Take the losses of a step.

        Raises
        ------
        HarmonyError
            When one is no number.
        """
        self.step += 1
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise HarmonyError(
                    f"The {self.what}'s loss is not a number at step {self.step}.",
                    "Look for damaged scans or absurd values of the target.",
                )
            self.recent[name].append(loss)

    def steps(self, n: int, what: str, say: Callable[[str], None]) -> Iterator[int]:
        """Count the steps of a training, and say now and then where its losses are."""
        return counted_off(range(n), n, what, lambda line: say(f"{line}; {self}"), "steps")

    def __str__(self) -> str:
        return ", ".join(f"{name} loss {np.mean(last):.3f}" for name, last in self.recent.items())


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
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode() + content).hexdigest()[:16]


def save_network(path: Path, network: Network) -> Network:
    """Write a trained network's weights whole: beside their place, then renamed.

    Returns
    -------
    torch.nn.Module
        The same network on the CPU, as :func:`as_stored`.
    """
    content = io.BytesIO()
    torch.save(network.cpu().state_dict(), content)
    write_bytes(path, content.getbuffer())
    return as_stored(network)


def load_network(path: Path, network: Network) -> Network | None:
    """Fill a network with the weights that an earlier run has written; None where there are none.

    Nothing but tensors and plain values is read, never code.
    """
    if not path.is_file():
        return None
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return as_stored(network)
