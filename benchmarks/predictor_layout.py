"""Speed of a predictor's training steps with channels first and last, in each precision.

``python benchmarks/predictor_layout.py`` times steps of the default slice network (forward,
backward, AdamW) on slices of 80 x 112 (2 mm), in turns so that a busy machine hurts all alike, and
prints slices per second and the ratio of the layouts. Training takes channels last on a CPU in
single precision (``training/predictor.py``).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from generators import rates, show
from torch.nn.utils import convert_conv2d_weight_memory_format as set_layout

from bids_harmony.models.networks import SliceNetwork
from bids_harmony.training.fabric import has_bf16
from bids_harmony.training.predictor import FAST

LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def stepper(layout: torch.memory_format, half: bool, options: argparse.Namespace) -> Callable:
    """Return a function that makes one training step."""
    network = SliceNetwork(list(FAST.channels), list(options.shape), FAST.hidden)
    network = set_layout(network.to(options.device), layout)
    optimiser = torch.optim.AdamW(network.parameters(), FAST.learning_rate)
    x = torch.rand(FAST.batch, 2, *options.shape).to(options.device, memory_format=layout)
    target = torch.rand(FAST.batch, device=options.device)
    autocast = torch.autocast(options.device, torch.bfloat16, enabled=half)

    def call() -> None:
        with autocast:
            value = network(x).float()
        loss = (value - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss.item()  # waits for the device

    return call


def main() -> None:
    """Print the rates and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--shape", type=int, nargs=2, default=(80, 112))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    precisions = {"32": False} | ({"bf16": True} if has_bf16(options.device) else {})
    calls = {
        f"{precision}, {layout}": stepper(how, half, options)
        for precision, half in precisions.items()
        for layout, how in LAYOUTS.items()
    }
    found = rates(calls, options.seconds, options.device)
    print(f"slices/s on {options.device}")
    show({name: FAST.batch * rate for name, rate in found.items()})
    for precision in precisions:
        first, last = (found[f"{precision}, {layout}"] for layout in LAYOUTS)
        print(f"{precision}: channels last / first {last / first:.2f}")


if __name__ == "__main__":
    main()
