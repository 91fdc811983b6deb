"""Train the map network: reference scans under made-up acquisitions have to come back.

``train_map`` reads from top to bottom: made-up sites, examples, the loss, the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bids_harmony.console import counted_off
from bids_harmony.models.mapnetwork import MapNetwork, code_input, padded
from bids_harmony.models.slices import crop, uncrop
from bids_harmony.sites.code import Appearance
from bids_harmony.sites.descriptors import describe, vector
from bids_harmony.training.acquisition import Acquisition, apply
from bids_harmony.training.cache import Volumes, new_array
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.storage import (
    as_stored,
    digest_of,
    has_bf16,
    load_checkpoint,
    save_checkpoint,
)

#: Made-up sites, scans of each, and how strong they are (1: as real sites).
N_SITES, PER_SITE, STRENGTH = 100, 6, (0.2, 1.1)
#: Steps, volumes averaged in a step, and the highest learning rate of its one cycle.
STEPS, BATCH, RATE = 700, 2, 2e-3
#: Steps and sites of a quick run.
QUICK = (2, 1)
#: Share of examples that no acquisition has touched: what is as it should be stays so.
UNTOUCHED = 0.08
#: A site's code is as sure as that of this many persons, at least and at most.
PERSONS = (3, 40)
#: Intensities at which the mapping of a made-up site is read, and voxels it takes to read one.
KNOTS, STEP, FEW = np.arange(0.05, 1.2, 0.05), 0.025, 50
#: A smaller error than this is none.
NOTHING = 0.004


class MadeUp(NamedTuple):
    """Reference scans under made-up acquisitions, each shared by some of them.

    Attributes
    ----------
    volumes : Volumes
        (n, slices, rows, columns) float16 intensities; background 0.
    scans, sites : numpy.ndarray
        (n,) number of the scan and of the made-up site.
    shifts : numpy.ndarray
        (sites, descriptors) by how much the acquisition changed the descriptors.
    curves : numpy.ndarray
        (sites, knots) intensities of the originals where the acquired ones are :data:`KNOTS`.
    """

    volumes: Volumes
    scans: np.ndarray
    sites: np.ndarray
    shifts: np.ndarray
    curves: np.ndarray


def train_map(
    data: TrainingSet,
    scans: np.ndarray,
    appearance: Appearance,
    work_dir: Path,
    *,
    seed: int,
    resolution: int,
    say: Callable[[str], None],
    device: str = "cpu",
    quick: bool = False,
) -> MapNetwork:
    """Train the network that follows a site's intensity mapping.

    The network is not to mend the mapping: in training each made-up site has the mapping that its
    originals show, and the network sees what such a mapping leaves.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    scans : numpy.ndarray
        Numbers of the reference scans to learn from.
    appearance : Appearance
        Of the reference.
    work_dir : pathlib.Path
        What was made up, and the finished network, are kept there.
    seed : int
        Random seed.
    resolution : int
        Of the template grid in mm.
    say : callable
        Takes a line of progress.
    device : str
        torch device.
    quick : bool
        A few steps of a small network on a few acquisitions, to see that it runs.
    """
    steps, n_sites = QUICK if quick else (STEPS, N_SITES)
    what = [steps, n_sites, PER_SITE, STRENGTH, BATCH, RATE, UNTOUCHED, PERSONS, seed]
    about = replace(appearance, line=None).to_dict()
    path = work_dir / f"map-{digest_of([what, about], data.content(scans))}.pt"
    torch.manual_seed(seed)
    network = MapNetwork(channels=(4, 4, 4)) if quick else MapNetwork()
    rng = np.random.default_rng(seed)
    if (state := load_checkpoint(path)) is not None:
        network.load_state_dict(state)
        return as_stored(network)
    made_up = make_up_sites(data, scans, work_dir, n_sites, seed, resolution, say)
    pairs = Pairs(data, scans, appearance, made_up)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    bf16 = has_bf16(device)
    for _ in counted_off(range(steps), steps, "training the map", say, "steps"):
        for _ in range(BATCH):
            error = paired_loss(network, pairs.draw(rng), rng, bf16) / BATCH
            error.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    network.cpu()
    save_checkpoint(path, network.state_dict())
    return as_stored(network)


class Pairs:
    """Examples of which the truth is known: volumes after a site's mapping, and their originals.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    scans : numpy.ndarray
        Numbers of the reference scans.
    appearance : Appearance
        Of the reference.
    made_up : MadeUp
        The reference scans at made-up sites.
    """

    def __init__(
        self, data: TrainingSet, scans: np.ndarray, appearance: Appearance, made_up: MadeUp
    ) -> None:
        self.data, self.scans, self.appearance, self.made_up = data, scans, appearance, made_up
        # Reference scans seen through the eyes of a calibration: their codes are chance alone.
        self.own = data.descriptors[scans] - appearance.expected(
            np.where(np.isnan(data.ages[scans]), appearance.mean_age, data.ages[scans])
        )

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give a mapped volume, the site's code, and the original."""
        chance = rng.choice(len(self.own), int(rng.integers(*PERSONS)))
        shift = self.own[chance].mean(axis=0)
        if rng.random() < UNTOUCHED:
            original = self.data.stack(int(rng.choice(self.scans)))[0]
            mapped = original
        else:
            row = int(rng.integers(len(self.made_up.scans)))
            site = self.made_up.sites[row]
            shift = shift + self.made_up.shifts[site]
            original = self.data.stack(int(self.made_up.scans[row]))[0]
            acquired = np.asarray(self.made_up.volumes[row], np.float32)
            mapped = follow(self.made_up.curves[site], acquired)
        return mapped, code_input(shift, len(chance), self.appearance), original


def paired_loss(
    network: MapNetwork,
    example: tuple[np.ndarray, np.ndarray, np.ndarray],
    rng: np.random.Generator,
    bf16: bool,
) -> Tensor:
    """Run the network on an example of :class:`Pairs`, as it is or flipped, and measure it."""
    mapped, code, original = example
    device = next(network.parameters()).device
    x, y = (drawn.to(device) for drawn in network_inputs(mapped, original, rng))
    mask = ((x > 0) & (y > 0)).float()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        out = network(x, (x > 0).float(), torch.from_numpy(code)[None].to(device))
    return loss(out.float(), x, y, mask)


def network_inputs(
    one: np.ndarray, other: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Make two volumes (1, 1, slices, rows, columns) tensors, as they are or flipped."""
    x, y = (torch.from_numpy(padded(v))[None, None] for v in (one, other))
    return (x.flip(3), y.flip(3)) if rng.random() < 0.5 else (x, y)


def loss(out: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Error of intensities and of their differences, relative to what there was before.

    Relative, since acquisitions that blur would else outweigh all others.
    """
    before, after = errors(x, y, mask), errors(out, y, mask)
    first, second = (a / (b + NOTHING) for a, b in zip(after, before, strict=True))
    return first + second


def errors(out: Tensor, y: Tensor, mask: Tensor) -> list[Tensor]:
    """Mean absolute error of intensities, and of their differences between neighbours."""
    off = (out - y) * mask
    n = mask.sum()
    steps = [off.diff(dim=axis).abs().sum() for axis in (2, 3, 4)]
    return [off.abs().sum() / n, torch.stack(steps).sum() / (3 * n)]


def make_up_sites(
    data: TrainingSet,
    scans: np.ndarray,
    work_dir: Path,
    n_sites: int,
    seed: int,
    resolution: int,
    say: Callable[[str], None],
) -> MadeUp:
    """Acquire reference scans anew at made-up sites, once: they are kept in ``work_dir``.

    Parameters
    ----------
    data, scans, work_dir, n_sites, seed, resolution, say
        As of :func:`train_map`.
    """
    what = [n_sites, PER_SITE, STRENGTH, KNOTS.tolist(), seed]
    path = work_dir / f"made-up-{digest_of(what, data.content(scans))}.npy"
    about = path.with_suffix(".npz")
    if not path.is_file() or not about.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        deep = torch.from_numpy(crop(data.deep_grey(resolution), data.box))[None, None]
        generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        shape = (n_sites * PER_SITE, len(data.heights), *data.size)
        numbers, shifts, curves = [], [], []
        with new_array(path, shape) as stored:
            for site in counted_off(range(n_sites), n_sites, "making up sites", say, "sites"):
                acquisition = Acquisition.draw(generator, float(rng.uniform(*STRENGTH)))
                here = rng.choice(scans, PER_SITE, replace=len(scans) < PER_SITE)
                pairs, changes = [], []
                for k, scan in enumerate(here.tolist()):
                    anew, described = acquire(data, scan, acquisition, generator, deep)
                    stored[site * PER_SITE + k] = anew
                    pairs.append((anew, data.stack(scan)[0]))
                    changes.append(described - data.descriptors[scan])
                numbers += here.tolist()
                shifts.append(np.mean(changes, axis=0))
                curves.append(read_curve(pairs[:3]))
        np.savez(about, scans=numbers, shifts=np.array(shifts), curves=np.array(curves))
    with np.load(about) as kept:
        sites = np.repeat(np.arange(n_sites), PER_SITE)
        return MadeUp(Volumes(path), kept["scans"], sites, kept["shifts"], kept["curves"])


def acquire(
    data: TrainingSet,
    scan: int,
    acquisition: Acquisition,
    generator: torch.Generator,
    deep: Tensor,
) -> tuple[np.ndarray, np.ndarray]:
    """Acquire a scan anew.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    scan : int
        Number of the scan.
    acquisition : Acquisition
        The new one.
    generator : torch.Generator
        Draws the noise.
    deep : torch.Tensor
        (1, 1, slices, rows, columns) where deep grey matter is.

    Returns
    -------
    stack : numpy.ndarray
        (slices, rows, columns) intensities; background 0.
    descriptors : numpy.ndarray
        Of the new scan.
    """
    x = torch.from_numpy(data.stack(scan)[0])[None, None]
    stack = apply(acquisition, x, x > 0, generator, deep)[0][0, 0].numpy()
    whole = uncrop(stack, data.box, data.shape)
    zoom = float(abs(data.affine[0, 0]))
    return stack, vector(describe(whole, data.brain_mask(scan), zoom))


def read_curve(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Read which intensities originals have where acquired scans have :data:`KNOTS`.

    Parameters
    ----------
    pairs : list of tuple
        Acquired and original volumes of one site.

    Returns
    -------
    numpy.ndarray
        (knots,) medians, averaged over the pairs and ascending.
    """
    found = []
    for anew, original in pairs:
        inside = (anew > 0) & (original > 0)
        order = np.argsort(anew[inside])
        x, y = anew[inside][order], original[inside][order]
        ends = np.searchsorted(x, [KNOTS - STEP, KNOTS + STEP]).T
        found.append([np.median(y[a:b]) if b - a >= FEW else np.nan for a, b in ends])
    means = np.array(found)
    known = np.isfinite(means).all(axis=0)
    curve = np.interp(KNOTS, KNOTS[known], means[:, known].mean(axis=0))
    return np.asarray(np.maximum.accumulate(curve))


def follow(curve: np.ndarray, volume: np.ndarray) -> np.ndarray:
    """Map a volume by :func:`read_curve`'s curve, which keeps its distance beyond its ends."""
    x = np.concatenate([[0.0], KNOTS, [KNOTS[-1] + 5]])
    y = np.concatenate([[0.0], curve, [curve[-1] + 5]])
    return np.asarray(np.interp(volume, x, y), dtype=np.float32)
