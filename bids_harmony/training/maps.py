"""Train the map network to restore reference scans from simulated acquisitions.

``train_map`` reads from top to bottom: training loop, examples, loss, simulated sites.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bids_harmony.console import progress
from bids_harmony.models.networks import MapNetwork, code_input, padded
from bids_harmony.sites.code import Appearance
from bids_harmony.training import storage
from bids_harmony.training.acquisition import Acquisition, acquire
from bids_harmony.training.data import TrainingRun, Volumes, new_array

#: Number of simulated sites, scans per site, and range of their strength (1: as real sites).
N_SITES, PER_SITE, STRENGTH = 100, 6, (0.2, 1.1)
#: Number of steps, volumes per step, and maximum learning rate of the one-cycle schedule.
STEPS, BATCH, RATE = 700, 2, 2e-3
#: Number of steps and simulated sites with ``fast_dev_run``.
QUICK = (2, 1)
#: Fraction of examples without a simulated acquisition, so that the network learns to leave them
#: unchanged.
UNTOUCHED = 0.08
#: Range of the number of persons that a simulated site code is based on (upper end exclusive).
PERSONS = (3, 40)
#: Intensities at which a simulated site's mapping is estimated, half-width of each bin, and
#: minimum number of voxels in it.
KNOTS, STEP, FEW = np.arange(0.05, 1.2, 0.05), 0.025, 50
#: Error that is negligible; it is added to the denominator of relative errors.
NOTHING = 0.004


def train_map(run: TrainingRun, appearance: Appearance) -> MapNetwork:
    """Train the network applied after a site's intensity mapping.

    The network should not correct the intensity mapping itself. In training, each simulated site
    therefore uses the mapping estimated from its original scans, and the network learns the
    residual effects.

    Parameters
    ----------
    run : TrainingRun
        Training run; the reference's training scans are used. Simulated scans and the trained
        network are cached. With ``fast_dev_run``, a small network is trained for a few steps.
    appearance : Appearance
        Appearance model of the reference.

    Returns
    -------
    MapNetwork
        Network on the CPU in evaluation mode, with weights rounded to half precision.
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
    bf16, losses = storage.has_bf16(device), storage.Losses(steps, "training the map")
    for step in losses.bar:
        step_loss = 0.0
        for _ in range(BATCH):
            loss = paired_loss(network, pairs.draw(rng), rng, bf16) / BATCH
            loss.backward()  # type: ignore[no-untyped-call]
            step_loss += loss.item()
        losses.add(step, paired=step_loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return storage.save_network(path, network)


@dataclass(frozen=True)
class Pairs:
    """Paired examples: simulated scans after intensity mapping, and their originals.

    Attributes
    ----------
    run, appearance
        Training run and appearance model that they were made with.
    acquired : Volumes
        (n, slices, rows, columns) reference scans under simulated acquisitions, :data:`PER_SITE`
        for each site; background 0.
    originals : numpy.ndarray
        (n,) scan indices of the originals.
    shifts : numpy.ndarray
        (sites, descriptors) mean change of the descriptors.
    curves : numpy.ndarray
        (sites, knots) original intensities at the acquired intensities :data:`KNOTS`.
    """

    run: TrainingRun
    appearance: Appearance
    acquired: Volumes
    originals: np.ndarray
    shifts: np.ndarray
    curves: np.ndarray

    @cached_property
    def own(self) -> np.ndarray:
        """Residuals of each reference scan's descriptors from those expected at its age.

        They provide the sampling noise of simulated site codes.
        """
        data, scans, appearance = self.run.data, self.run.trained, self.appearance
        ages = np.where(np.isnan(data.ages[scans]), appearance.mean_age, data.ages[scans])
        return np.asarray(data.descriptors[scans] - appearance.expected(ages))

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw a mapped volume, the site code as network input, and the original volume."""
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
    """Compute the loss of the network on an example of :class:`Pairs`, randomly flipped.

    The loss is the error of intensities plus that of their spatial differences, each relative to
    the error of the input; otherwise, strongly blurred acquisitions would dominate. A network that
    changes nothing has a loss of about 2.

    Parameters
    ----------
    network : MapNetwork
        Network in training.
    example : tuple of numpy.ndarray
        Mapped volume, site code and original from :meth:`Pairs.draw`.
    rng : numpy.random.Generator
        Random number generator.
    bf16 : bool
        Whether to use bfloat16 autocast.
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
    """Convert two volumes to padded (1, 1, slices, rows, columns) tensors, randomly flipped."""
    x, y = (torch.from_numpy(padded(v))[None, None] for v in (one, other))
    return (x.flip(3), y.flip(3)) if rng.random() < 0.5 else (x, y)


def errors(out: Tensor, y: Tensor, mask: Tensor) -> list[Tensor]:
    """Compute mean absolute errors of intensities and of their spatial differences."""
    off = (out - y) * mask
    n = mask.sum()
    steps = [off.diff(dim=axis).abs().sum() for axis in (2, 3, 4)]
    return [off.abs().sum() / n, torch.stack(steps).sum() / (3 * n)]


def make_pairs(run: TrainingRun, appearance: Appearance, n_sites: int) -> Pairs:
    """Simulate acquisitions of reference scans, or load them from the cache.

    See :func:`train_map` for parameters; ``n_sites`` is the number of simulated sites.
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
            for site in progress(range(n_sites), "simulating acquisitions", "sites"):
                acquisition = Acquisition.draw(generator, float(rng.uniform(*STRENGTH)))
                here = rng.choice(scans, PER_SITE, replace=len(scans) < PER_SITE).tolist()
                acquired = [acquire(data, scan, acquisition, generator) for scan in here]
                volumes[site * PER_SITE : (site + 1) * PER_SITE] = [stack for stack, _ in acquired]
                stacks = [
                    (acquired[k][0], data.stack(here[k])[0]) for k in range(min(3, PER_SITE))
                ]
                originals += here
                described = np.array([row for _, row in acquired])
                shifts.append(np.mean(described - data.descriptors[here], axis=0))
                curves.append(read_curve(stacks))
        np.savez(about, originals=originals, shifts=np.array(shifts), curves=np.array(curves))
    with np.load(about) as cached:
        return Pairs(run, appearance, Volumes(path), **cached)


def read_curve(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Estimate the original intensities at the acquired intensities :data:`KNOTS`.

    Parameters
    ----------
    pairs : list of tuple
        Acquired and original volumes of one site.

    Returns
    -------
    numpy.ndarray
        (knots,) ascending medians, averaged over the pairs.
    """
    found = []
    for acquired, original in pairs:
        inside = (acquired > 0) & (original > 0)
        order = np.argsort(acquired[inside])
        x, y = acquired[inside][order], original[inside][order]
        ends = np.searchsorted(x, [KNOTS - STEP, KNOTS + STEP]).T
        found.append([np.median(y[a:b]) if b - a >= FEW else np.nan for a, b in ends])
    means = np.array(found)
    known = np.isfinite(means).all(axis=0)
    curve = np.interp(KNOTS, KNOTS[known], means[:, known].mean(axis=0))
    return np.asarray(np.maximum.accumulate(curve))


def follow(curve: np.ndarray, volume: np.ndarray) -> np.ndarray:
    """Map a volume with the curve of :func:`read_curve`, extrapolated with a slope of 1."""
    x = np.concatenate([[0.0], KNOTS, [KNOTS[-1] + 5]])
    y = np.concatenate([[0.0], curve, [curve[-1] + 5]])
    return np.asarray(np.interp(volume, x, y), dtype=np.float32)
