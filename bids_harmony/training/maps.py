"""Train the map network: reference scans under made-up acquisitions have to come back.

``train_map`` reads from top to bottom: the loop, examples, the loss, made-up sites.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bids_harmony.console import counted_off
from bids_harmony.models.networks import MapNetwork, code_input, padded
from bids_harmony.sites.code import Appearance
from bids_harmony.training import storage
from bids_harmony.training.acquisition import Acquisition, acquire
from bids_harmony.training.data import TrainingRun, Volumes, new_array

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


def train_map(run: TrainingRun, appearance: Appearance) -> MapNetwork:
    """Train the network that follows a site's intensity mapping.

    The network is not to mend the mapping: in training each made-up site has the mapping that its
    originals show, and the network sees what such a mapping leaves.

    Parameters
    ----------
    run : TrainingRun
        The reference's training scans are learnt from. What was made up, and the finished network,
        are cached; with ``fast_dev_run``, a small network takes a few steps.
    appearance : Appearance
        Of the reference.
    """
    options = run.options
    quick, seed, device = options.fast_dev_run, options.seed, storage.one_device(options.device)
    steps, n_sites = QUICK if quick else (STEPS, N_SITES)
    what = [steps, n_sites, PER_SITE, STRENGTH, BATCH, RATE, UNTOUCHED, PERSONS, seed]
    about = replace(appearance, line=None).to_dict()
    digest = storage.digest_of([what, about], run.data.content(run.trained))
    path = run.work_dir / f"map-{digest}.pt"
    torch.manual_seed(seed)
    network = MapNetwork(channels=(4, 4, 4)) if quick else MapNetwork()
    if found := storage.load_network(path, network):
        return found
    rng = np.random.default_rng(seed)
    pairs = make_pairs(run, appearance, n_sites)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    bf16, losses = storage.has_bf16(device), storage.Losses("map")
    for _ in losses.steps(steps, "training the map", run.say):
        step_loss = 0.0
        for _ in range(BATCH):
            loss = paired_loss(network, pairs.draw(rng), rng, bf16) / BATCH
            loss.backward()  # type: ignore[no-untyped-call]
            step_loss += loss.item()
        losses.add(paired=step_loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return storage.save_network(path, network)


@dataclass(frozen=True)
class Pairs:
    """Examples of which the truth is known: volumes after a site's mapping, and their originals.

    Attributes
    ----------
    run, appearance
        What they are made of.
    acquired : Volumes
        (n, slices, rows, columns) reference scans under made-up acquisitions, :data:`PER_SITE` of
        each site; background 0.
    originals : numpy.ndarray
        (n,) numbers of the scans they were made of.
    shifts : numpy.ndarray
        (sites, descriptors) by how much the acquisition changed the descriptors.
    curves : numpy.ndarray
        (sites, knots) intensities of the originals where the acquired ones are :data:`KNOTS`.
    """

    run: TrainingRun
    appearance: Appearance
    acquired: Volumes
    originals: np.ndarray
    shifts: np.ndarray
    curves: np.ndarray

    @cached_property
    def own(self) -> np.ndarray:
        """How each reference scan differs from what is expected at its age: sampling noise."""
        data, scans, appearance = self.run.data, self.run.trained, self.appearance
        ages = np.where(np.isnan(data.ages[scans]), appearance.mean_age, data.ages[scans])
        return np.asarray(data.descriptors[scans] - appearance.expected(ages))

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give a mapped volume, the site's code, and the original."""
        data = self.run.data
        persons = rng.choice(len(self.own), int(rng.integers(*PERSONS)))
        shift = self.own[persons].mean(axis=0)
        if rng.random() < UNTOUCHED:
            mapped = original = data.stack(int(rng.choice(self.run.trained)))[0]
        else:
            row = int(rng.integers(len(self.originals)))
            site = row // PER_SITE
            shift = shift + self.shifts[site]
            original = data.stack(int(self.originals[row]))[0]
            mapped = follow(self.curves[site], np.asarray(self.acquired[row], np.float32))
        return mapped, code_input(shift, len(persons), self.appearance), original


def paired_loss(
    network: MapNetwork,
    example: tuple[np.ndarray, np.ndarray, np.ndarray],
    rng: np.random.Generator,
    bf16: bool,
) -> Tensor:
    """Run the network on an example of :class:`Pairs`, as it is or flipped, and measure it.

    The errors of intensities and of their differences between neighbours are relative to what
    they were before, since acquisitions that blur would else outweigh all others. A network that
    changes nothing has a loss of 2.
    """
    mapped, code, original = example
    device = next(network.parameters()).device
    x, y = (drawn.to(device) for drawn in network_inputs(mapped, original, rng))
    mask = ((x > 0) & (y > 0)).float()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        out = network(x, (x > 0).float(), torch.from_numpy(code)[None].to(device))
    before, after = errors(x, y, mask), errors(out.float(), y, mask)
    first, second = (a / (b + NOTHING) for a, b in zip(after, before, strict=True))
    return first + second


def network_inputs(
    one: np.ndarray, other: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Make two volumes (1, 1, slices, rows, columns) tensors, as they are or flipped."""
    x, y = (torch.from_numpy(padded(v))[None, None] for v in (one, other))
    return (x.flip(3), y.flip(3)) if rng.random() < 0.5 else (x, y)


def errors(out: Tensor, y: Tensor, mask: Tensor) -> list[Tensor]:
    """Mean absolute error of intensities, and of their differences between neighbours."""
    off = (out - y) * mask
    n = mask.sum()
    steps = [off.diff(dim=axis).abs().sum() for axis in (2, 3, 4)]
    return [off.abs().sum() / n, torch.stack(steps).sum() / (3 * n)]


def make_pairs(run: TrainingRun, appearance: Appearance, n_sites: int) -> Pairs:
    """Acquire reference scans anew at made-up sites, once: they are cached.

    The parameters are those of :func:`train_map`.
    """
    data, scans, seed = run.data, run.trained, run.options.seed
    what = [n_sites, PER_SITE, STRENGTH, KNOTS.tolist(), seed]
    path = run.work_dir / f"acquired-{storage.digest_of(what, data.content(scans))}.npy"
    about = path.with_suffix(".npz")
    if not path.is_file() or not about.is_file():
        generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        shape = (n_sites * PER_SITE, len(data.heights), *data.size)
        originals, shifts, curves = [], [], []
        with new_array(path, shape) as volumes:
            for site in counted_off(range(n_sites), n_sites, "making up sites", run.say, "sites"):
                acquisition = Acquisition.draw(generator, float(rng.uniform(*STRENGTH)))
                here = rng.choice(scans, PER_SITE, replace=len(scans) < PER_SITE).tolist()
                anew = [acquire(data, scan, acquisition, generator) for scan in here]
                volumes[site * PER_SITE : (site + 1) * PER_SITE] = [stack for stack, _ in anew]
                stacks = [(anew[k][0], data.stack(here[k])[0]) for k in range(min(3, PER_SITE))]
                originals += here
                described = np.array([row for _, row in anew])
                shifts.append(np.mean(described - data.descriptors[here], axis=0))
                curves.append(read_curve(stacks))
        np.savez(about, originals=originals, shifts=np.array(shifts), curves=np.array(curves))
    with np.load(about) as cached:
        return Pairs(run, appearance, Volumes(path), **cached)


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
