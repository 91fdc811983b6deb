"""Train slice networks on reference scans, and calibrate their prediction interval.

Scans are cut into folds; each network of the ensemble is trained without one fold and judged on
it. Those errors, on scans a network has not seen, give the split-conformal interval; the
ensemble's own error on scans outside all folds is measured apart (training/evaluate.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bids_harmony.models.networks import SliceNetwork
from bids_harmony.models.slices import predictor_input, scaled_height
from bids_harmony.training.augment import Augmentation, augment


@dataclass(frozen=True)
class PredictorConfig:
    """Size and optimisation of a slice network.

    Attributes
    ----------
    channels : list of int
        Widths of the stem and the four residual blocks.
    hidden : int
        Units of the fully connected layer.
    batch : int
        Slices per step.
    learning_rate : float
        Highest rate of a one-cycle schedule for AdamW.
    weight_decay : float
        Of AdamW.
    augmentation : Augmentation
        Random changes of training slices.
    """

    channels: list[int] = field(default_factory=lambda: [16, 16, 32, 64, 128])
    hidden: int = 512
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Examples:
    """Middle slices of scans with one target value per scan.

    Attributes
    ----------
    images : numpy.ndarray
        (scans, slices, rows, columns) float16.
    targets : numpy.ndarray
        (scans,) years, or 0/1.
    heights : numpy.ndarray
        (slices,) z in mm.
    """

    images: np.ndarray
    targets: np.ndarray
    heights: np.ndarray


def network_options(data: Examples, config: PredictorConfig, binary: bool) -> dict[str, Any]:
    """Choose the options of :class:`SliceNetwork` for a set of examples."""
    options: dict[str, Any] = {
        "channels": list(config.channels),
        "shape": [int(n) for n in data.images.shape[2:]],
        "hidden": config.hidden,
    }
    if not binary:
        options["mean"] = round(float(data.targets.mean()), 3)
        options["scale"] = round(float(data.targets.std()), 3)
    return options


def train_predictor(
    data: Examples,
    among: np.ndarray,
    options: dict[str, Any],
    config: PredictorConfig,
    *,
    binary: bool,
    steps: int,
    minutes: float,
    seed: int,
    say: Callable[[str], None],
) -> SliceNetwork:
    """Train one network on the given scans until ``steps`` or ``minutes`` are used up.

    Parameters
    ----------
    data : Examples
        Slices and targets.
    among : numpy.ndarray
        Numbers of the scans to train on; slices are drawn evenly over their targets' range.
    options : dict
        Of :class:`SliceNetwork`.
    config : PredictorConfig
        Optimisation.
    binary : bool
        Cross-entropy on logits instead of a robust regression loss.
    steps, minutes : int, float
        Limits; the learning rate follows whichever is nearer.
    seed : int
        Seed of weights and sampling.
    say : callable
        Takes a line of progress.

    Returns
    -------
    SliceNetwork
        In evaluation mode.
    """
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = SliceNetwork(**options)
    optimiser = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    heights = torch.from_numpy(scaled_height(data.heights))
    targets = torch.from_numpy(data.targets.astype(np.float32))
    weight = _even(data.targets[among])
    begun = time.monotonic()
    step, done = 0, 0.0
    total = 0.0
    while done < 1:
        # One cycle: up over the first tenth, down along a half cosine.
        rise = min(1.0, (done + 0.01) / 0.1)
        fall = 0.5 * (1 + np.cos(np.pi * max(0.0, (done - 0.1) / 0.9)))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * rise * (fall + 1e-3)

        scans = rng.choice(among, config.batch, p=weight)
        which = rng.integers(len(heights), size=config.batch)
        x = torch.from_numpy(data.images[scans, which].astype(np.float32))[:, None]
        x = augment(x, config.augmentation, chance)
        x = torch.cat([x, heights[which][:, None, None, None].expand_as(x)], dim=1)
        with torch.autocast("cpu", torch.bfloat16):
            value = network(x).float()
        loss = _loss(value, targets[scans], binary)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

        step += 1
        total += loss.item()
        spent = time.monotonic() - begun
        done = max(step / steps, spent / (60 * minutes))
        if step % 200 == 0 or done >= 1:
            left = spent * (1 - done) / done
            say(
                f"predictor step {step}: loss {total / (step % 200 or 200):.4f}; "
                f"{step * config.batch / spent:.0f} slices/s, {max(left, 0):.0f} s left"
            )
            total = 0.0
    return network.eval()


def _loss(value: Tensor, target: Tensor, binary: bool) -> Tensor:
    if binary:
        return F.binary_cross_entropy_with_logits(value, target)
    # Quadratic below ten years, linear above: single slices can be far off.
    return F.smooth_l1_loss(value / 10, target / 10)


def _even(targets: np.ndarray) -> np.ndarray:
    """Weigh scans so as to flatten the targets' distribution, at most threefold."""
    counts, edges = np.histogram(targets, bins=8)
    here = counts[np.clip(np.searchsorted(edges, targets, side="right") - 1, 0, 7)]
    weight = 1 / np.clip(here, here.max() / 3, None)
    return np.asarray(weight / weight.sum())


def predict_stack(
    members: list[SliceNetwork], stack: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """Value of each slice of one scan, averaged over an ensemble."""
    with torch.inference_mode():
        x = torch.from_numpy(predictor_input(stack, heights))
        return np.asarray(np.mean([m(x).double().numpy() for m in members], axis=0))


def conformal_half_width(errors: np.ndarray, level: float = 0.9) -> float:
    """Half-width of a split-conformal interval from absolute errors on unseen scans.

    The ceil((n + 1) level)-th smallest error (science.md §5); the largest when n is too small
    for the level.
    """
    ordered = np.sort(np.abs(errors))
    rank = int(np.ceil((len(ordered) + 1) * level))
    return float(ordered[min(rank, len(ordered)) - 1])


def config_record(config: PredictorConfig) -> dict[str, Any]:
    """Return a configuration as JSON-ready values."""
    return asdict(config)
