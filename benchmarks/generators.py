"""Speed of the two presets' networks: mapping slices, and steps of training.

``python benchmarks/generators.py`` times the forward map of ``fast`` and ``article`` on slices of
192 x 224 (1 mm) in slices per second, and whole training steps (maps, discriminator, losses,
optimisers) in steps and pairs per second, each in single precision and, where the device has
bfloat16, in half, in turns so that a busy machine hurts all alike. It prints the ratios that the
project promises: at least 10 for mapping on the CPU, at least 3 for training steps. With
``--device cuda`` it adds the reference implementation's way of mapping (single precision, one
slice at a time).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch

from bids_harmony.training.fabric import Engine, has_bf16, make_fabric
from bids_harmony.training.maps import Batch, Trainer
from bids_harmony.training.presets import ARTICLE, FAST, Preset

PRECISIONS = ("32-true", "bf16-mixed")


def some_input(n: int, around: int, shape: tuple[int, int], device: str) -> torch.Tensor:
    """Return random slices with an elliptic mask, as the maps take them."""
    grid = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in shape), indexing="ij")
    mask = ((grid[0] ** 2 + grid[1] ** 2) < 0.8).float()
    x = torch.rand(n, 3 + 2 * around, *shape) * mask
    x[:, 1] = mask
    return x.to(device)


def mapper(preset: Preset, precision: str, batch: int, options: argparse.Namespace) -> Callable:
    """Return a function that maps ``batch`` slices."""
    network = preset.build_maps(2)[0].eval().to(options.device)
    x = some_input(batch, preset.around, options.shape, options.device)
    half = torch.autocast(options.device, torch.bfloat16)

    def call() -> None:
        with torch.inference_mode(), half if precision == "bf16-mixed" else nullcontext():
            network(x)

    return call


def stepper(preset: Preset, precision: str, options: argparse.Namespace) -> Callable:
    """Return a function that makes one training step."""
    fabric = make_fabric(Engine(options.device, precision=precision), preset.precision)
    fabric.launch()
    trainer = Trainer(fabric, preset, 2, options.train_shape, 1000, 0)
    parts = [
        some_input(preset.batch, preset.around, options.train_shape, options.device)
        for _ in range(2)
    ]
    batch = Batch(parts[0], parts[1], torch.arange(preset.batch) % 2)

    def call() -> None:
        trainer.train(batch)
        trainer.losses(clear=True)  # waits for the device

    return call


def rates(calls: dict[str, Callable], seconds: float, device: str) -> dict[str, float]:
    """Call each function in turns; calls per second by the fastest quarter of the calls."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds or len(next(iter(times.values()))) < 3:
        for name, call in calls.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: 1 / float(np.quantile(values, 0.25)) for name, values in times.items()}


def main() -> None:
    """Print both tables and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="per table")
    parser.add_argument("--shape", type=int, nargs=2, default=(192, 224))
    parser.add_argument("--train-shape", type=int, nargs=2, default=(80, 96))
    parser.add_argument("--batch", type=int, default=4, help="slices mapped, pairs trained on")
    options = parser.parse_args()
    options.shape, options.train_shape = tuple(options.shape), tuple(options.train_shape)
    torch.set_num_threads(options.threads)
    # Emulated, a half-precision step of `article` takes minutes.
    precisions = PRECISIONS if has_bf16(options.device) else PRECISIONS[:1]
    presets = {p.name: replace(p, batch=options.batch) for p in (FAST, ARTICLE)}

    print(f"mapping {options.shape[0]} x {options.shape[1]}, slices/s on {options.device}")
    calls = {
        f"{name} {precision}": mapper(preset, precision, options.batch, options)
        for name, preset in presets.items()
        for precision in precisions
    }
    found = {
        n: options.batch * r for n, r in rates(calls, options.seconds, options.device).items()
    }
    if options.device == "cuda":
        calls = {
            f"{name} the reference's way": mapper(preset, "32-true", 1, options)
            for name, preset in presets.items()
        }
        found |= rates(calls, options.seconds, options.device)
    show(found)
    for precision in precisions:
        ratio = found[f"fast {precision}"] / found[f"article {precision}"]
        print(f"{precision}: fast / article {ratio:.1f} (promised: 10)")

    rows, columns = options.train_shape
    print(f"\ntraining {rows} x {columns}, batch {options.batch}, steps/s on {options.device}")
    calls = {
        f"{name} {precision}": stepper(preset, precision, options)
        for name, preset in presets.items()
        for precision in precisions
    }
    found = rates(calls, options.seconds, options.device)
    show(found)
    for precision in precisions:
        ratio = found[f"fast {precision}"] / found[f"article {precision}"]
        print(f"{precision}: fast / article {ratio:.1f} (promised: 3)")


def show(found: dict[str, float]) -> None:
    """Print one line per rate."""
    for name, rate in found.items():
        print(f"  {name:32} {rate:9.2f}")


if __name__ == "__main__":
    main()
