"""Weights as a bundle stores them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def as_stored(network: Network) -> Network:
    """Round a network's weights to the half precision they are stored in, in place.

    Everything measured after this holds for the bundle as it will be loaded.
    """
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().float())
    return network.eval().requires_grad_(False)
