"""Train one slice network on reference scans.

Two recipes: ``ARTICLE`` is the paper's (preprint §4.2: Adam, the rate divided by ten where the
training loss stands still, single slices as they are); ``FAST``, the default, takes one cycle of
AdamW over slices whose looks and pose are changed at random, so that the network leans less on
one scanner's; numbers are predicted by the mean of slices and of a map of grey matter
(:mod:`bids_harmony.training.grey_matter`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format as set_layout

from bids_harmony.errors import HarmonyError
from bids_harmony.models.networks import SliceNetwork
from bids_harmony.models.slices import middle_slices, predictor_input, scaled_height
from bids_harmony.training.augment import Augmentation, augment
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.storage import has_bf16

#: The paper's rules: epochs without progress until the rate falls, and until training ends, and
#: epochs in a row over which the validation loss may rise (preprint §4.2).
SLOW_AFTER, STOP_AFTER, RISES = 5, 10, 5
#: A loss that falls by less than this share stands still.
STILL = 1e-3
SAY_EVERY = 200


@dataclass(frozen=True)
class PredictorConfig:
    """Size and optimisation of a slice network.

    Attributes
    ----------
    name : str
        Name on the command line.
    channels : tuple of int
        Widths of the stem and the four residual blocks; the paper does not give them.
    hidden : int
        Units of the fully connected layer.
    batch : int
        Slices per step.
    learning_rate : float
        Highest rate of the one-cycle schedule, or the paper's first rate.
    weight_decay : float
        Of AdamW; 0 makes it Adam.
    steps : int
        Steps of the cycle; with ``patient``, the most that are taken.
    patient : bool
        The paper's schedule (:class:`Patience`) and losses.
    augmentation : Augmentation or None
        Random changes of training slices.
    acquisitions : int
        Made-up sites, for each fold, that the network on maps of grey matter is to hold still
        between (:mod:`bids_harmony.training.grey_matter`); with 0 there is no such network.
    """

    name: str = "fast"
    channels: tuple[int, ...] = (16, 16, 32, 64, 128)
    hidden: int = 512
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    steps: int = 1_600
    patient: bool = False
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    acquisitions: int = 32

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self) | {"channels": list(self.channels)}


FAST = PredictorConfig()
ARTICLE = PredictorConfig(
    name="article",
    channels=(32, 32, 64, 128, 256),
    learning_rate=3e-4,
    weight_decay=0.0,
    steps=200_000,
    patient=True,
    augmentation=None,
    acquisitions=0,
)
PREDICTORS = {config.name: config for config in (FAST, ARTICLE)}


def recipe_of(options: TrainOptions) -> PredictorConfig:
    """Choose the recipe that the options name, with what they change of it."""
    recipe = PREDICTORS[options.predictor]
    return replace(
        recipe,
        steps=options.predictor_steps or recipe.steps,
        acquisitions=min(recipe.acquisitions, 1 if options.fast_dev_run else FAST.acquisitions),
    )


@dataclass(frozen=True)
class Examples:
    """Middle slices of scans with one target value per scan, read when they are drawn.

    Attributes
    ----------
    data : TrainingSet
        All scans.
    scans : numpy.ndarray
        (n,) numbers of the scans.
    targets : numpy.ndarray
        (n,) values, or 0/1.
    numbers : numpy.ndarray
        Numbers of the middle slices.
    changed : dict of int to numpy.ndarray
        Slices (slices, rows, columns) that take the place of a scan's own, by place in ``scans``.
    """

    data: TrainingSet
    scans: np.ndarray
    targets: np.ndarray
    numbers: np.ndarray
    changed: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: TrainingSet,
        scans: np.ndarray,
        targets: np.ndarray,
        slice_mm: tuple[float, float],
        changed: dict[int, np.ndarray] | None = None,
    ) -> Examples:
        """Take the slices whose heights lie in ``slice_mm``."""
        numbers = middle_slices(len(data.heights), data.affine, slice_mm)
        return cls(data, scans, np.asarray(targets, dtype=float), numbers, changed or {})

    @property
    def persons(self) -> np.ndarray:
        """Person of each of the scans."""
        return np.asarray(self.data.persons[self.scans])

    @property
    def heights(self) -> np.ndarray:
        """Heights of the middle slices in mm."""
        return np.asarray(self.data.heights[self.numbers])

    def draw(self, which: np.ndarray, slices: np.ndarray) -> Tensor:
        """Read slices: (n, 1, rows, columns), by place in ``scans`` and among the middle ones."""
        images = self.data.slices(self.scans[which], self.numbers[slices])[:, None]
        for i, (scan, number) in enumerate(zip(which, slices, strict=True)):
            if int(scan) in self.changed:
                images[i, 0] = self.changed[int(scan)][number]
        return torch.from_numpy(images)

    def stack(self, which: int) -> np.ndarray:
        """Read all middle slices of a scan, float32 (slices, rows, columns)."""
        if which in self.changed:
            return self.changed[which].astype(np.float32)
        return np.asarray(self.data.stack(int(self.scans[which]))[0][self.numbers])


def network_options(examples: Examples, config: PredictorConfig, binary: bool) -> dict[str, Any]:
    """Choose the options of :class:`SliceNetwork` for a set of examples."""
    options: dict[str, Any] = {
        "channels": list(config.channels),
        "shape": list(examples.data.size),
        "hidden": config.hidden,
    }
    if not binary:
        options["mean"] = round(float(examples.targets.mean()), 3)
        options["scale"] = max(round(float(examples.targets.std()), 3), 1e-3)
    return options


def train_predictor(
    examples: Examples,
    among: np.ndarray,
    validation: Examples | None,
    options: dict[str, Any],
    config: PredictorConfig,
    *,
    binary: bool,
    seed: int,
    say: Callable[[str], None],
    device: str = "cpu",
) -> SliceNetwork:
    """Train one network.

    Parameters
    ----------
    examples : Examples
        Slices and targets.
    among : numpy.ndarray
        Places of the scans to train on.
    validation : Examples or None
        Scans whose loss ends the paper's schedule and chooses among its epochs.
    options : dict
        Of :class:`SliceNetwork`.
    config : PredictorConfig
        Optimisation.
    binary : bool
        Cross-entropy on logits instead of a regression loss.
    seed : int
        Seed of weights and sampling.
    say : callable
        Takes a line of progress.
    device : str
        torch device.

    Returns
    -------
    SliceNetwork
        In evaluation mode, on the CPU.

    Raises
    ------
    HarmonyError
        When the loss is no longer a number.
    """
    torch.manual_seed(seed)
    step = _Step(examples, SliceNetwork(**options).to(device), config, binary, seed, device)
    if config.patient:
        _train_patiently(step, among, validation, say)
    else:
        _train_one_cycle(step, among, say)
    return set_layout(step.network.cpu().eval(), torch.contiguous_format)


class _Step:
    """One step of training, and the count of them."""

    def __init__(
        self,
        examples: Examples,
        network: SliceNetwork,
        config: PredictorConfig,
        binary: bool,
        seed: int,
        device: str,
    ) -> None:
        self.examples, self.config, self.binary, self.device = examples, config, binary, device
        self.optimiser = torch.optim.AdamW(
            network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        half = has_bf16(device)
        self.half = torch.autocast(device, torch.bfloat16, enabled=half)
        # In single precision a CPU takes two thirds of the time with channels last.
        self.layout = torch.contiguous_format if half or device != "cpu" else torch.channels_last
        self.network = set_layout(network, self.layout)
        self.chance = torch.Generator().manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.targets = torch.from_numpy(examples.targets.astype(np.float32))
        self.heights = torch.from_numpy(scaled_height(examples.heights))
        self.count, self.begun = 0, time.monotonic()

    def take(self, which: np.ndarray, slices: np.ndarray, rate: float) -> float:
        """Learn from slices, given by place of scan and of slice; return the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        x = self.examples.draw(which, slices)
        if self.config.augmentation is not None:
            x = augment(x, self.config.augmentation, self.chance)
        height = self.heights[slices][:, None, None, None].expand_as(x)
        x = torch.cat([x, height], dim=1).to(self.device, memory_format=self.layout)
        with self.half:
            value = self.network(x).float()
        loss = self.loss(value, self.targets[which].to(self.device))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.count += 1
        found = float(loss.item())
        if not np.isfinite(found):
            raise HarmonyError(
                f"The predictor's loss is not a number at step {self.count}.",
                "Look for damaged scans or absurd values of the target.",
            )
        return found

    def loss(self, value: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy; the paper's squared error in units of the targets' spread; or robust."""
        if self.binary:
            return F.binary_cross_entropy_with_logits(value, target)
        if self.config.patient:
            return F.mse_loss(value / self.network.scale, target / self.network.scale)
        # Quadratic below the targets' half spread, linear above: single slices can be far off.
        unit = 0.6 * self.network.scale
        return F.smooth_l1_loss(value / unit, target / unit)

    def rate(self) -> float:
        """Slices per second."""
        return self.count * self.config.batch / max(time.monotonic() - self.begun, 1e-9)


def _train_one_cycle(step: _Step, among: np.ndarray, say: Callable[[str], None]) -> None:
    """One cycle of the rate: up over the first tenth, down along a half cosine."""
    config, steps, losses = step.config, step.config.steps, []
    weight = _even(step.examples.targets[among])
    for number in range(steps):
        done = number / steps
        rise = min(1.0, (done + 0.01) / 0.1)
        fall = 0.5 * (1 + np.cos(np.pi * max(0.0, (done - 0.1) / 0.9)))
        which = step.rng.choice(among, config.batch, p=weight)
        slices = step.rng.integers(len(step.examples.numbers), size=config.batch)
        losses.append(step.take(which, slices, config.learning_rate * rise * (fall + 1e-3)))
        if step.count % SAY_EVERY == 0 or step.count == steps:
            left = (steps - step.count) * config.batch / step.rate()
            say(
                f"predictor step {step.count} of {steps}: loss {np.mean(losses):.4f}; "
                f"{step.rate():.0f} slices/s, {left:.0f} s left"
            )
            losses = []


def _train_patiently(
    step: _Step, among: np.ndarray, validation: Examples | None, say: Callable[[str], None]
) -> None:
    """Follow the paper's schedule over epochs of all slices; keep the best validation epoch."""
    patience, best = Patience(step.config.learning_rate), np.inf
    kept = copy.deepcopy(step.network.state_dict())
    while not patience.done and step.count < step.config.steps:
        step.network.train()
        losses = [
            step.take(which, slices, patience.rate)
            for which, slices in _epoch(step, among)
            if step.count < step.config.steps
        ]
        judged = _validation_loss(step, validation)
        patience.note(float(np.mean(losses)), judged)
        if judged is None or judged < best:
            best = np.inf if judged is None else judged
            kept = copy.deepcopy(step.network.state_dict())
        text = "" if judged is None else f", validation {judged:.4f}"
        say(
            f"predictor epoch {patience.epochs} (step {step.count}): loss "
            f"{np.mean(losses):.4f}{text}; rate {patience.rate:g}, {step.rate():.0f} slices/s"
        )
    step.network.load_state_dict(kept)


def _epoch(step: _Step, among: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches that hold every middle slice of the scans once, in random order."""
    n = len(step.examples.numbers)
    order = step.rng.permutation(len(among) * n)
    for start in range(0, len(order), step.config.batch):
        some = order[start : start + step.config.batch]
        if len(some) > 1:  # batch normalisation needs two
            yield among[some // n], some % n


def _validation_loss(step: _Step, validation: Examples | None) -> float | None:
    if validation is None or not len(validation.scans):
        return None
    step.network.eval()
    losses = []
    for i, target in enumerate(validation.targets):
        x = torch.from_numpy(predictor_input(validation.stack(i), validation.heights))
        with torch.inference_mode():
            value = step.network(x.to(step.device)).float()
            losses.append(float(step.loss(value, torch.full_like(value, float(target)))))
    return float(np.mean(losses))


class Patience:
    """The paper's schedule (preprint §4.2).

    The rate is divided by ten when the training loss has stood still for five epochs. Training
    ends when it has for ten, or when the validation loss has risen five epochs in a row.

    Parameters
    ----------
    rate : float
        First learning rate.

    Attributes
    ----------
    rate : float
        For the next epoch.
    epochs : int
        Epochs so far.
    done : bool
        Whether training has ended.
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.epochs, self.done = rate, 0, False
        self._best, self._still, self._rises = np.inf, 0, 0
        self._validation: float | None = None

    def note(self, training: float, validation: float | None) -> None:
        """Take the losses of an epoch."""
        self.epochs += 1
        if training < self._best * (1 - STILL):
            self._best, self._still = training, 0
        else:
            self._still += 1
        if validation is not None:
            rose = self._validation is not None and validation > self._validation
            self._rises = self._rises + 1 if rose else 0
            self._validation = validation
        if self._still == SLOW_AFTER:
            self.rate /= 10
        self.done = self._still >= STOP_AFTER or self._rises >= RISES


def _even(targets: np.ndarray) -> np.ndarray:
    """Weigh scans so as to flatten the targets' distribution, at most threefold."""
    counts, edges = np.histogram(targets, bins=8)
    here = counts[np.clip(np.searchsorted(edges, targets, side="right") - 1, 0, 7)]
    weight = 1 / np.clip(here, here.max() / 3, None)
    return np.asarray(weight / weight.sum())


def predict_stack(
    members: Sequence[nn.Module], stack: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """Value of each slice of one scan, averaged over an ensemble."""
    with torch.inference_mode():
        x = torch.from_numpy(predictor_input(stack, heights))
        return np.asarray(np.mean([m(x).double().numpy() for m in members], axis=0))
