"""Shared training utilities: device selection, losses and the network cache."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict, deque
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from bids_harmony.console import progress
from bids_harmony.errors import HarmonyError
from bids_harmony.files import write_bytes

Network = TypeVar("Network", bound=nn.Module)
#: Number of steps over which losses are averaged.
RECENT = 50


def one_device(asked: str) -> str:
    """Return the training device, ``cpu`` or ``cuda``.

    CUDA is used if available, unless ``asked`` is ``cpu``.
    """
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Return whether a device supports bfloat16 natively; emulation on a CPU is much slower."""
    if one_device(device) == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_finite(what: str, step: int, *losses: float) -> None:
    """Raise HarmonyError if a loss is not finite."""
    if not np.isfinite(losses).all():
        raise HarmonyError(
            f"The loss is not finite at step {step} of {what}.",
            "Check the scans for artefacts and the target for invalid values.",
        )


class Losses:
    """Recent losses of a training, by name, shown beside its progress bar.

    Parameters
    ----------
    n_steps : int
        Number of training steps.
    what : str
        Description of the training.
    """

    def __init__(self, n_steps: int, what: str) -> None:
        self.what, self.bar = what, progress(range(n_steps), what, "steps")
        self.recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))

    def add(self, step: int, **losses: float) -> None:
        """Check the losses of a step (from 0), and show the means over the last steps."""
        check_finite(self.what, step + 1, *losses.values())
        for name, loss in losses.items():
            self.recent[name].append(loss)
        means = (f"{name} loss {np.mean(last):.3f}" for name, last in self.recent.items())
        self.bar.set_postfix_str(", ".join(means), refresh=False)


def as_stored(network: Network) -> Network:
    """Round the weights of a network to half precision, in place, and freeze it.

    Bundles are saved in half precision, so later measurements hold for the bundle as loaded.
    """
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().float())
    return network.eval().requires_grad_(False)


def digest_of(what: Any, content: bytes) -> str:
    """Compute a cache key, 16 hexadecimal digits of the SHA-256 of all inputs.

    Parameters
    ----------
    what : Any
        JSON-serializable values.
    content : bytes
        Further content, such as data digests or weights.
    """
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode() + content).hexdigest()[:16]


def save_network(path: Path, network: Network) -> Network:
    """Save the weights of a trained network atomically.

    Returns
    -------
    torch.nn.Module
        The same network on the CPU, rounded by :func:`as_stored`.
    """
    content = io.BytesIO()
    torch.save(network.cpu().state_dict(), content)
    write_bytes(path, content.getbuffer())
    return as_stored(network)


def load_network(path: Path, network: Network) -> Network | None:
    """Load cached weights into a network; return None if there are none.

    Only tensors and plain values are read, never code.
    """
    if not path.is_file():
        return None
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return as_stored(network)
