"""Train slice networks on reference scans.

There are two recipes. ``ARTICLE`` is that of the paper (preprint §4.2): Adam, learning rate
divided by ten when the training loss reaches a plateau, and slices without augmentation. ``FAST``,
the default, uses one cycle of AdamW and augments appearance and pose, so that the network is more
robust to scanner effects. It predicts numeric targets with the mean of slice networks and networks
on grey matter maps (:mod:`bids_harmony.training.grey_matter`).
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format as set_layout

from bids_harmony.config import TrainOptions
from bids_harmony.models.networks import (
    HEIGHT_MM,
    SliceNetwork,
    middle_slices,
    predict_value,
    predictor_input,
)
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.storage import (
    Losses,
    check_finite,
    digest_of,
    has_bf16,
    load_network,
    save_network,
)

LOGGER = logging.getLogger(__name__)

#: Schedule of the paper (preprint §4.2): epochs without progress before the learning rate is
#: reduced and before training stops, and consecutive epochs with a rising validation loss before
#: training stops.
SLOW_AFTER, STOP_AFTER, RISES = 5, 10, 5
#: Smallest relative decrease of the loss that counts as progress.
STILL = 1e-3
#: Sizes of intensity changes in :func:`augment`: standard deviation of the change of CSF and grey
#: matter (CSF is 0, white matter 1), standard deviation of the log bias field, maximum standard
#: deviation of noise, and maximum weight of the blur (negative weights sharpen).
CONTRAST, BIAS, NOISE, BLUR = 0.08, 0.08, 0.04, 0.5
#: Standard deviations of shift (fraction of the half-width), scale and rotation.
SHIFT, SCALE, DEGREES = 0.02, 0.03, 2.0
#: Fraction of slices from which surface voxels are removed.
EDGE = 0.3
#: Fraction of slices that are only shifted by whole pixels and flipped. All others are
#: interpolated, and a network trained on interpolated slices alone mispredicts original slices by
#: years.
PLAIN = 0.3


@dataclass(frozen=True)
class PredictorConfig:
    """Architecture and optimization of a slice network.

    Attributes
    ----------
    name : str
        Name on the command line.
    channels : tuple of int
        Number of channels of the stem and the four residual blocks; not given in the paper.
    hidden : int
        Number of units of the fully connected layer.
    batch : int
        Slices per step.
    learning_rate : float
        Maximum learning rate of the one-cycle schedule, or initial learning rate of the paper's.
    weight_decay : float
        Weight decay of AdamW; 0 is equivalent to Adam.
    steps : int
        Number of steps of the cycle; maximum number of steps if ``patient``.
    patient : bool
        Whether to use the paper's schedule (:func:`is_over`) and loss, without augmentation.
    acquisitions : int
        Number of simulated sites per fold for training robust grey matter networks
        (:mod:`bids_harmony.training.grey_matter`); 0 for slice networks alone.
    """

    name: str = "fast"
    channels: tuple[int, ...] = (16, 16, 32, 64, 128)
    hidden: int = 512
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    steps: int = 1_600
    patient: bool = False
    acquisitions: int = 32


FAST = PredictorConfig()
ARTICLE = PredictorConfig(
    name="article",
    channels=(32, 32, 64, 128, 256),
    learning_rate=3e-4,
    weight_decay=0.0,
    steps=200_000,
    patient=True,
    acquisitions=0,
)
PREDICTORS = {config.name: config for config in (FAST, ARTICLE)}


def recipe_of(options: TrainOptions) -> PredictorConfig:
    """Return the recipe named in the options, with their overrides."""
    recipe = PREDICTORS[options.predictor]
    return replace(
        recipe,
        steps=options.predictor_steps or recipe.steps,
        acquisitions=min(recipe.acquisitions, 1 if options.fast_dev_run else FAST.acquisitions),
    )


@dataclass(frozen=True)
class Examples:
    """Middle slices of scans with one target value per scan, read from disk on demand.

    Attributes
    ----------
    data : TrainingSet
        All scans.
    scans : numpy.ndarray
        (n,) scan indices.
    targets : numpy.ndarray
        (n,) target values, or 0/1.
    slice_mm : tuple of float
        Range of slice heights in mm.
    """

    data: TrainingSet
    scans: np.ndarray
    targets: np.ndarray
    slice_mm: tuple[float, float]

    @cached_property
    def persons(self) -> np.ndarray:
        """Person of each scan, (n,)."""
        return np.asarray(self.data.persons[self.scans])

    @cached_property
    def numbers(self) -> np.ndarray:
        """Indices of the middle slices."""
        return middle_slices(len(self.data.heights), self.data.affine, self.slice_mm)

    @cached_property
    def heights(self) -> np.ndarray:
        """Heights of the middle slices in mm."""
        return np.asarray(self.data.heights[self.numbers])

    def draw(self, which: np.ndarray, slices: np.ndarray) -> Tensor:
        """Read slices as an (n, 1, rows, columns) tensor.

        Parameters
        ----------
        which : numpy.ndarray
            (n,) positions in ``scans``.
        slices : numpy.ndarray
            (n,) positions in ``numbers``.
        """
        drawn = self.data.slices(self.scans[which], self.numbers[slices])
        return torch.from_numpy(drawn)[:, None]

    def content(self) -> bytes:
        """Return a digest of targets and one slice of each scan, for cache keys."""
        digest = hashlib.sha256(self.targets.tobytes())
        middle = np.array([len(self.numbers) // 2])
        for place in range(len(self.scans)):
            digest.update(self.draw(np.array([place]), middle).numpy().tobytes())
        return digest.digest()


def target_scale(targets: np.ndarray) -> dict[str, float]:
    """Return mean and standard deviation of the targets, to scale network outputs."""
    return {
        "mean": round(float(targets.mean()), 3),
        "scale": max(round(float(targets.std()), 3), 1e-3),
    }


@dataclass(frozen=True)
class Ensemble:
    """Networks for one target, one per fold, each trained on the scans of the other folds.

    Attributes
    ----------
    name : str
        Target name.
    examples : Examples
        Scans and targets.
    validation : Examples or None
        Validation scans of the paper's schedule.
    folds : numpy.ndarray
        (examples,) fold of each scan. Scans of folds from ``n_networks`` on are used by all
        networks.
    n_networks : int
        Number of networks.
    binary : bool
        Whether the networks predict logits.
    seed : int
        Random seed of the first network; it is increased by 1 for each further network.
    config : PredictorConfig
        Architecture and optimization.
    folder : pathlib.Path
        Cache folder of completed networks.
    """

    name: str
    examples: Examples
    validation: Examples | None
    folds: np.ndarray
    n_networks: int
    binary: bool
    seed: int
    config: PredictorConfig
    folder: Path

    @cached_property
    def options(self) -> dict[str, Any]:
        """Constructor arguments of the networks."""
        config, size = self.config, list(self.examples.data.size)
        options = {"channels": list(config.channels), "shape": size, "hidden": config.hidden}
        return options if self.binary else options | target_scale(self.examples.targets)

    @cached_property
    def paths(self) -> list[Path]:
        """Cache file of each network, named by a hash of everything that affects its weights."""
        recipe = {k: v for k, v in asdict(self.config).items() if k != "acquisitions"}
        content = self.examples.content() + (self.validation.content() if self.validation else b"")
        found = []
        for fold in range(self.n_networks):
            what = [recipe, self.options, self.binary, self.seed + fold]
            digest = digest_of(what, content + (self.folds != fold).tobytes())
            found.append(self.folder / f"{self.name}-{fold}-{digest}.pt")
        return found

    def train(self, fold: int, device: str) -> None:
        """Train the network of a fold and save it.

        Raises
        ------
        HarmonyError
            If the loss is not finite.
        """
        LOGGER.info(f"{self.name}, network {fold + 1} of {self.n_networks}")
        training, among = _Training(self, fold, device), np.flatnonzero(self.folds != fold)
        if self.config.patient:
            _train_patiently(training, among, self.validation)
        else:
            _train_one_cycle(training, among)
        network = set_layout(training.network.cpu(), torch.contiguous_format)
        save_network(self.paths[fold], network)

    def load(self) -> list[nn.Module]:
        """Load the completed networks, with weights rounded to half precision."""
        loaded = [load_network(path, SliceNetwork(**self.options)) for path in self.paths]
        return [network for network in loaded if network is not None]

    def unseen(self, networks: Sequence[nn.Module]) -> np.ndarray:
        """Return cross-validated predictions, (examples,).

        Each scan is predicted by the network of its fold; NaN if there is none.
        """
        data, slice_mm = self.examples.data, self.examples.slice_mm
        found = np.full(len(self.folds), np.nan)
        for i in np.flatnonzero(self.folds < len(networks)):
            volume = data.volume(self.examples.scans[i])[0]
            ensemble = [[networks[self.folds[i]]]]
            found[i] = predict_value(ensemble, volume, data.affine, data.box, slice_mm)
        return found


class _Training:
    """State of training one network: model, optimizer and examples."""

    def __init__(self, ensemble: Ensemble, fold: int, device: str) -> None:
        self.examples, self.config, self.device = ensemble.examples, ensemble.config, device
        self.binary, seed = ensemble.binary, ensemble.seed + fold
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        bf16 = has_bf16(device)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=bf16)
        # In single precision, channels last takes two thirds of the time on a CPU.
        self.layout = torch.contiguous_format if bf16 or device != "cpu" else torch.channels_last
        self.network = set_layout(SliceNetwork(**ensemble.options).to(device), self.layout)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        self.targets = torch.from_numpy(self.examples.targets.astype(np.float32))
        self.heights = torch.from_numpy((self.examples.heights / HEIGHT_MM).astype(np.float32))

    def step(self, which: np.ndarray, slices: np.ndarray) -> float:
        """Train on a batch, given positions of scans and slices; return the loss."""
        x = self.examples.draw(which, slices)
        if not self.config.patient:
            x = augment(x, self.generator)
        height = self.heights[slices][:, None, None, None].expand_as(x)
        x = torch.cat([x, height], dim=1).to(self.device, memory_format=self.layout)
        with self.autocast:
            value = self.network(x).float()
        loss = self.loss(value, self.targets[which].to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def loss(self, value: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        It is the cross-entropy for two classes, the scaled squared error of the paper, or the
        smooth L1 loss in ``FAST``.
        """
        if self.binary:
            return F.binary_cross_entropy_with_logits(value, target)
        if self.config.patient:
            return F.mse_loss(value / self.network.scale, target / self.network.scale)
        # Quadratic below .6 standard deviations of the targets and linear above, because
        # predictions of single slices have outliers.
        unit = 0.6 * self.network.scale
        return F.smooth_l1_loss(value / unit, target / unit)


def _train_one_cycle(training: _Training, among: np.ndarray) -> None:
    """Train with one cycle: linear warm-up over a tenth of the steps, then cosine decay."""
    config, rng, steps = training.config, training.rng, training.config.steps
    weight = _even(training.examples.targets[among])
    losses = Losses(steps, "training a predictor")
    for step in losses.bar:
        share = step / steps
        rise = min(1.0, (share + 0.01) / 0.1)
        fall = 0.5 * (1 + np.cos(np.pi * max(0.0, (share - 0.1) / 0.9)))
        training.optimizer.param_groups[0]["lr"] = config.learning_rate * rise * (fall + 1e-3)
        which = rng.choice(among, config.batch, p=weight)
        slices = rng.integers(len(training.examples.numbers), size=config.batch)
        losses.add(step, training=training.step(which, slices))


def _train_patiently(training: _Training, among: np.ndarray, validation: Examples | None) -> None:
    """Train with the paper's schedule; keep the weights of the best validation epoch.

    An epoch contains all slices. The learning rate is divided by ten after five epochs without
    progress of the training loss.
    """
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        training.optimizer, factor=0.1, patience=SLOW_AFTER - 1, threshold=STILL
    )
    network = training.network
    losses: list[float] = []
    validated: list[float] = []
    best = copy.deepcopy(network.state_dict())
    step = 0
    while step < training.config.steps and not is_over(losses, validated):
        network.train()
        epoch = itertools.islice(_epoch(training, among), training.config.steps - step)
        found = [training.step(*batch) for batch in epoch]
        step += len(found)
        losses.append(float(np.mean(found)))
        check_finite("training a predictor", step, losses[-1])
        schedule.step(losses[-1])
        text = ""
        if validation is not None and len(validation.scans):
            validated.append(_validation_loss(training, validation))
            text = f", validation {validated[-1]:.4f}"
        if not validated or validated[-1] == min(validated):
            best = copy.deepcopy(network.state_dict())
        LOGGER.info(
            f"predictor epoch {len(losses)} (step {step}): "
            f"loss {losses[-1]:.4f}{text}; rate {schedule.get_last_lr()[0]:g}"
        )
    network.load_state_dict(best)


def is_over(losses: Sequence[float], validation: Sequence[float]) -> bool:
    """Return whether the paper's schedule has ended (preprint §4.2).

    Parameters
    ----------
    losses, validation : sequence of float
        Training and validation loss of each epoch; ``validation`` may be empty.

    Returns
    -------
    bool
        Whether the training loss has not improved for ten epochs, or the validation loss has risen
        in five consecutive epochs.
    """
    best, still = np.inf, 0
    for loss in losses:
        best, still = (loss, 0) if loss < best * (1 - STILL) else (best, still + 1)
    rises = np.diff(validation[-RISES - 1 :]) > 0
    return still >= STOP_AFTER or (len(rises) == RISES and bool(rises.all()))


def _epoch(training: _Training, among: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches that together contain every middle slice once, in random order."""
    n, batch = len(training.examples.numbers), training.config.batch
    order = training.rng.permutation(len(among) * n)
    for some in np.split(order, range(batch, len(order), batch)):
        if len(some) > 1:  # batch normalization needs at least two
            yield among[some // n], some % n


def _validation_loss(training: _Training, validation: Examples) -> float:
    training.network.eval()
    losses = []
    for scan, target in zip(validation.scans, validation.targets, strict=True):
        stack = validation.data.stack(scan)[0][validation.numbers]
        x = torch.from_numpy(predictor_input(stack, validation.heights))
        with torch.inference_mode():
            value = training.network(x.to(training.device)).float()
            losses.append(float(training.loss(value, torch.full_like(value, float(target)))))
    return float(np.mean(losses))


def _even(targets: np.ndarray) -> np.ndarray:
    """Return sampling weights that flatten the distribution of targets, at most threefold."""
    counts, edges = np.histogram(targets, bins=8)
    here = counts[np.clip(np.searchsorted(edges, targets, side="right") - 1, 0, 7)]
    weight = 1 / np.clip(here, here.max() / 3, None)
    return np.asarray(weight / weight.sum())


def augment(slices: Tensor, generator: torch.Generator, plain: float = PLAIN) -> Tensor:
    """Augment slices: change appearance and pose at random.

    Parameters
    ----------
    slices : torch.Tensor
        (batch, 1, rows, columns) intensities, background 0.
    generator : torch.Generator
        Random number generator.
    plain : float
        Fraction of slices that are only shifted and flipped.

    Returns
    -------
    torch.Tensor
        Augmented slices of the same shape, background 0.
    """
    n, _, rows, columns = slices.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    as_it_is = uniform(n, 1, 1, 1) < plain
    rows_by, columns_by = (int(v) for v in torch.randint(-2, 3, (2,), generator=generator))
    untouched = torch.roll(slices, (rows_by, columns_by), dims=(2, 3))
    untouched = torch.where(uniform(n, 1, 1, 1) < 0.5, untouched.flip(2), untouched)
    # Pose: rotation, anisotropic scale, shift and reflection, in a single resampling.
    angle = normal(n) * DEGREES * torch.pi / 180
    sx, sy = (1 + SCALE * normal(2, n)).unbind()
    flip = torch.where(uniform(n) < 0.5, -1.0, 1.0)
    dx, dy = (SHIFT * normal(2, n)).unbind()
    cos, sin = torch.cos(angle), torch.sin(angle)
    # grid_sample has columns first. Rows run from left to right in the brain, so rows are flipped.
    top = torch.stack([sx * cos, -sin, dx], dim=1)
    bottom = torch.stack([sin, flip * sy * cos, dy], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), [n, 1, rows, columns], False)
    x = F.grid_sample(slices, grid, align_corners=False)
    mask = (x > 5e-4).float()
    # Intensity mapping: change CSF (0) and grey matter relative to white matter (1).
    csf = CONTRAST * normal(n, 1, 1, 1)
    x = torch.relu(x - csf) / (1 - csf)
    x = x ** torch.exp(2 * CONTRAST * normal(n, 1, 1, 1))
    x = x * (1 + 0.5 * CONTRAST * normal(n, 1, 1, 1))
    # Bias field: cubic interpolation of a coarse random grid.
    field = F.interpolate(
        BIAS * normal(n, 1, 3, 3), size=(rows, columns), mode="bicubic", align_corners=True
    )
    x = x * torch.exp(field)
    # Sharpness, then noise.
    weight = BLUR * (2 * uniform(n, 1, 1, 1) - 1)
    smooth = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = x + weight * (smooth - x)
    x = x + NOISE * uniform(n, 1, 1, 1) * normal(n, 1, rows, columns)
    # Mask: on some slices, erode one voxel in random smooth regions.
    inner = 1 - F.max_pool2d(1 - mask, 3, 1, 1)
    patch = F.interpolate(uniform(n, 1, 6, 6), size=(rows, columns), mode="bilinear")
    away = (uniform(n, 1, 1, 1) < EDGE) & (patch < 0.5)
    mask = torch.where(away, inner, mask)
    return torch.where(as_it_is, untouched, torch.clamp(x, 0, 2) * mask)
