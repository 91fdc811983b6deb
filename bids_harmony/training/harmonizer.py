"""Train the forward and backward maps: a conditional CycleGAN on unpaired slices.

The forward map takes any site to the reference and knows no site; the backward map is told the
site to lead to (preprint §4, science.md §2). Slices are paired by height and scans by age, so
that neither position nor age tells the discriminator where a slice comes from.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bids_harmony.models.networks import Discriminator, Generator
from bids_harmony.models.slices import scaled_height
from bids_harmony.training.data import TrainingSet


@dataclass(frozen=True)
class HarmonizerConfig:
    """Sizes, losses and optimisation of the CycleGAN.

    Attributes
    ----------
    channels : list of int
        Widths of both generators.
    discriminator_width : int
        First width of the discriminator.
    batch : int
        Pairs of slices per step.
    learning_rate : float
        Of Adam (0.5, 0.999); falls linearly to 0 over the second half.
    cycle, identity, edges : float
        Weights of the cycle, identity and edge-direction losses; the adversarial weight is 1.
    cycle_noise : float
        Noise added to a mapped slice before it is mapped back, so that nothing can be hidden
        in it (science.md §10).
    age_width : float
        Reference scans are drawn with Gaussian weights of this width (years) around the age
        of the source scan they are paired with.
    ema : float
        Decay of the averaged forward map, which is the one kept.
    """

    channels: list[int] = field(default_factory=lambda: [32, 64])
    discriminator_width: int = 24
    batch: int = 4
    learning_rate: float = 4e-4
    cycle: float = 10.0
    identity: float = 5.0
    edges: float = 0.5
    cycle_noise: float = 0.02
    age_width: float = 5.0
    ema: float = 0.995


@dataclass
class Harmonizer:
    """Trained maps.

    Attributes
    ----------
    forward, backward : Generator
        Any site to the reference; the reference to one of ``sites``.
    sites : list of str
        Source sites in the order of the backward map's codes.
    record : dict
        What was done, for ``bundle.json``.
    """

    forward: Generator
    backward: Generator
    sites: list[str]
    record: dict[str, Any]


def train_harmonizer(
    data: TrainingSet,
    among: np.ndarray,
    reference: str,
    config: HarmonizerConfig,
    *,
    steps: int,
    minutes: float,
    seed: int,
    say: Callable[[str], None],
) -> Harmonizer:
    """Train on the given scans until ``steps`` or ``minutes`` are used up.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    among : numpy.ndarray
        Numbers of the scans to train on.
    reference : str
        The site the forward map leads to.
    config : HarmonizerConfig
        Sizes, losses and optimisation.
    steps, minutes : int, float
        Limits; the learning rate's fall follows whichever is nearer.
    seed : int
        Seed of weights and sampling.
    say : callable
        Takes a line of progress.

    Returns
    -------
    Harmonizer
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    ref = data.site_scans(reference, among)
    sites = sorted(set(data.sites[among].tolist()) - {reference})
    sources = [data.site_scans(site, among) for site in sites]
    # A site's share grows with the root of its size: small sites are seen, not memorised.
    share = np.sqrt([len(s) for s in sources])
    share /= share.sum()

    forward = Generator(config.channels)
    backward = Generator(config.channels, len(sites))
    # One output per site; the reference comes last.
    judge = Discriminator(config.discriminator_width, len(sites) + 1)
    averaged = copy.deepcopy(forward).requires_grad_(False)
    maps = torch.optim.Adam(
        [*forward.parameters(), *backward.parameters()], config.learning_rate, (0.5, 0.999)
    )
    judges = torch.optim.Adam(judge.parameters(), config.learning_rate, (0.5, 0.999))
    heights = torch.from_numpy(scaled_height(data.heights))
    last = torch.full((config.batch,), len(sites))

    begun = time.monotonic()
    history: list[list[float]] = []
    losses: list[list[float]] = []
    done = 0.0
    step = 0
    while done < 1:
        # 1. Slices of one site each, with reference slices of the same age and height.
        site = torch.from_numpy(rng.choice(len(sites), config.batch, p=share))
        a = np.array([rng.choice(sources[s]) for s in site])
        b = np.array([_of_age(data, ref, data.ages[i], config.age_width, rng) for i in a])
        x = _slices(data, a, heights, rng)
        y = _slices(data, b, heights, rng, near=x)

        # 2. The maps: fool the discriminator, come back, leave the reference as it is.
        with torch.autocast("cpu", torch.bfloat16):
            x_ref = _with(x, forward(x))
            x_back = backward(_noisy(x_ref, config.cycle_noise), site)
            y_src = _with(y, backward(y, site))
            y_back = forward(_noisy(y_src, config.cycle_noise))
            y_same = forward(y)
            judge.requires_grad_(False)
            fooled = _score(judge, x_ref, last, 1) + _score(judge, y_src, site, 1)
        cycle = _masked_l1(x_back, x) + _masked_l1(y_back, y)
        identity = _masked_l1(y_same, y)
        edges = _edge_loss(x_ref, x) + _edge_loss(y_src, y)
        loss = fooled + config.cycle * cycle + config.identity * identity + config.edges * edges
        maps.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(forward.parameters(), 5.0)
        torch.nn.utils.clip_grad_norm_(backward.parameters(), 5.0)
        maps.step()

        # 3. The discriminator: real slices 1, mapped slices 0.
        judge.requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            real = _score(judge, _shifted(y, rng), last, 1) + _score(
                judge, _shifted(x, rng), site, 1
            )
            fake = _score(judge, _shifted(x_ref.detach(), rng), last, 0) + _score(
                judge, _shifted(y_src.detach(), rng), site, 0
            )
            judged = 0.5 * (real + fake)
        judges.zero_grad(set_to_none=True)
        judged.backward()  # type: ignore[no-untyped-call]
        judges.step()

        # 4. Average the forward map; slow down over the second half; tell.
        step += 1
        decay = min(config.ema, step / (step + 10))
        with torch.no_grad():
            for kept, now in zip(averaged.parameters(), forward.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
        spent = time.monotonic() - begun
        done = max(step / steps, spent / (60 * minutes))
        for optimiser in (maps, judges):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * min(1.0, 2 * (1 - min(done, 1.0)) + 1e-3)
        losses.append([v.item() for v in (fooled, judged, cycle, identity, edges)])
        if step % 100 == 0 or done >= 1:
            mean = np.mean(losses, axis=0)
            losses.clear()
            history.append([step, *[round(float(v), 4) for v in mean]])
            left = spent * (1 - done) / max(done, 1e-9)
            say(
                f"harmonizer step {step}: adversarial {mean[0]:.3f}, discriminator "
                f"{mean[1]:.3f}, cycle {mean[2]:.4f}, identity {mean[3]:.4f}, edges "
                f"{mean[4]:.4f}; {step * config.batch / spent:.1f} pairs/s, {left:.0f} s left"
            )
    record = {
        "config": asdict(config),
        "steps": step,
        "seed": seed,
        "history_columns": ["step", "adversarial", "discriminator", "cycle", "identity", "edges"],
        "history": history[:: max(1, len(history) // 40)],
    }
    return Harmonizer(averaged.eval(), backward.eval(), sites, record)


def _of_age(
    data: TrainingSet, ref: np.ndarray, age: float, width: float, rng: np.random.Generator
) -> int:
    """Draw a reference scan of about the given age; any, when the age is unknown."""
    if np.isnan(age):
        return int(rng.choice(ref))
    distance = (np.nan_to_num(data.ages[ref], nan=np.inf) - age) / width
    weight = np.exp(-0.5 * np.minimum(distance**2, 1e3))
    if weight.sum() < 1e-12:
        return int(ref[np.argmin(np.abs(distance))])
    return int(rng.choice(ref, p=weight / weight.sum()))


def _slices(
    data: TrainingSet,
    scans: np.ndarray,
    heights: Tensor,
    rng: np.random.Generator,
    near: Tensor | None = None,
) -> Tensor:
    """Draw one slice of each scan with enough brain; within a slice of ``near``'s heights."""
    chosen = []
    for i, scan in enumerate(scans):
        usable = np.flatnonzero(data.filled[scan] > 0.05)
        if near is None:
            chosen.append(int(rng.choice(usable)))
        else:
            wanted = int(torch.argmin(torch.abs(heights - near[i, 2, 0, 0])))
            wanted += int(rng.integers(-1, 2))
            chosen.append(int(usable[np.argmin(np.abs(usable - wanted))]))
    images, masks = data.slices(scans, chosen)
    image, mask = torch.from_numpy(images[:, 0]), torch.from_numpy(masks.astype(np.float32))
    height = heights[chosen][:, None, None].expand_as(image)
    return torch.stack([image, mask, height], dim=1)


def _with(x: Tensor, image: Tensor) -> Tensor:
    """Replace an input's image, keeping mask and height."""
    return torch.cat([image, x[:, 1:]], dim=1)


def _noisy(x: Tensor, size: float) -> Tensor:
    noise = size * torch.randn_like(x[:, :1]) * x[:, 1:2]
    return torch.cat([x[:, :1] + noise, x[:, 1:]], dim=1)


def _shifted(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift a batch by up to two pixels, so that the discriminator cannot memorise."""
    rows, columns = (int(n) for n in rng.integers(-2, 3, size=2))
    return torch.roll(x, (rows, columns), dims=(2, 3))


def _score(judge: Discriminator, x: Tensor, site: Tensor, wanted: float) -> Tensor:
    """Least-squares adversarial loss of each slice's own site, where there is brain."""
    scores = judge(x).float()
    own = scores[torch.arange(len(site)), site]
    weight = F.adaptive_avg_pool2d(x[:, 1:2].float(), own.shape[1:])[:, 0]
    loss: Tensor = ((own - wanted) ** 2 * weight).sum() / weight.sum().clamp(min=1.0)
    return loss


def _masked_l1(image: Tensor, x: Tensor) -> Tensor:
    mask = x[:, 1:2]
    loss: Tensor = ((image - x[:, :1]).abs() * mask).sum() / mask.sum().clamp(min=1.0)
    return loss


def _edge_loss(mapped: Tensor, x: Tensor) -> Tensor:
    """One minus the correlation of both images' gradients inside the mask."""
    # Only between two voxels inside: the outline is the same in both and would hide the rest.
    mask = x[:, 1:2]
    inner = 1 - F.max_pool2d(1 - mask, 3, 1, 1)
    total = torch.zeros(())
    for dim in (2, 3):
        a, b = (torch.diff(v[:, :1], dim=dim) for v in (mapped, x))
        w = inner.narrow(dim, 1, inner.shape[dim] - 1)
        product = (a * b * w).sum(dim=(1, 2, 3))
        size = ((a * a * w).sum(dim=(1, 2, 3)) * (b * b * w).sum(dim=(1, 2, 3)) + 1e-8).sqrt()
        total = total + (1 - product / size).mean() / 2
    return total
