"""Fine-tune the map network on unpaired scans of real sites with a conditional CycleGAN.

A forward generator maps to the reference and a backward generator to any site. Both are
conditioned on the site code, and each has a discriminator. A paired loss on simulated acquisitions
regularizes the forward generator. ``train_cyclegan`` reads from top to bottom: training loop,
examples, losses.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_harmony.config import CURVE, CYCLEGAN, NETWORK
from bids_harmony.errors import UsageError
from bids_harmony.models.networks import CODE_SIZE, MIDDLE, MapNetwork, code_input
from bids_harmony.sites.code import Appearance, IntensityMapping, SiteCode, site_code
from bids_harmony.training import maps, storage
from bids_harmony.training.data import TrainingRun, TrainingSet
from bids_harmony.training.harmonizer import Calibrator
from bids_harmony.training.maps import errors

#: Steps that train the discriminators alone, since the differences after paired training are
#: small, and steps that train all networks.
STEPS = 80, 40
#: Learning rates of the forward generator, the backward generator and the two discriminators, with
#: linear decay to 0.
RATES = (1e-3, 2e-3, 1e-3, 1e-3)
#: Betas of AdamW: a short first moment, since the adversarial objective changes during training.
BETAS = (0.5, 0.99)
#: Each site's scan is paired with one of this many reference scans of similar age and the same
#: sex.
ALIKE = 5
#: Number of surface voxels hidden from the discriminators, because brain masks differ between
#: sites.
RIM = 2
#: Gain of the finest details in the discriminators' input.
FINE = 20.0
#: Weights of the losses.
WEIGHTS = {"adversarial": 3.0, "cycle": 10.0, "paired": 1.0}


class Source(NamedTuple):
    """Scans of one site other than the reference.

    Attributes
    ----------
    scans : numpy.ndarray
        (scans,) scan indices.
    ages : numpy.ndarray
        (scans,) ages in years, known or estimated
        (:func:`bids_harmony.sites.calibration.estimate_ages`).
    """

    scans: np.ndarray
    ages: np.ndarray


def train_cyclegan(
    paired: MapNetwork, run: TrainingRun, appearance: Appearance, sources: Sequence[Source]
) -> MapNetwork:
    """Fine-tune the map network on scans of real sites.

    A network of the same options and data is loaded from the cache.

    Parameters
    ----------
    paired : MapNetwork
        Network from :func:`bids_harmony.training.maps.train_map`; it is not modified.
    run, appearance
        Training run and appearance model that ``paired`` was trained with.
    sources : sequence of Source
        Scans of real sites.

    Returns
    -------
    MapNetwork
        The forward generator.
    """
    data, options, seed = run.data, run.options, run.options.seed
    device = storage.one_device(options.device)
    n_sites = maps.QUICK[1] if options.fast_dev_run else maps.N_SITES
    ahead, together = (2, 2) if options.fast_dev_run else STEPS
    what = [
        WEIGHTS, together, ahead, *RATES, *BETAS, ALIKE, RIM, FINE, seed, data.box, n_sites,
        maps.PER_SITE, maps.STRENGTH, maps.UNTOUCHED, maps.PERSONS, appearance.to_dict(),
    ]  # fmt: skip
    trained_on = [Source(run.trained, data.ages[run.trained]), *sources]
    known = b"".join(_known(data, *source) for source in trained_on)
    path = run.work_dir / f"cyclegan-{storage.digest_of(what, known + paired.content())}.pt"
    forward = copy.deepcopy(paired).train().requires_grad_(True)
    if finished := storage.load_network(path, forward):
        return finished
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    backward = MapNetwork(paired.channels)
    # One discriminator is for the reference, the other for any site, given its code. Both are
    # conditioned on age and sex.
    at_reference, at_site = Discriminator(2), Discriminator(2 + CODE_SIZE)
    for network in (forward, backward, at_reference, at_site):
        network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    pairs = maps.make_pairs(run, appearance, n_sites)
    unpaired = Unpaired(run, appearance, sources)
    rates = zip((forward, backward, at_reference, at_site), RATES, strict=True)
    groups = [{"params": network.parameters(), "lr": rate} for network, rate in rates]
    maps_step, discriminators_step = (
        torch.optim.AdamW(some, betas=BETAS, weight_decay=1e-4)
        for some in (groups[:2], groups[2:])
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(together, 1))
        for optimizer in (maps_step, discriminators_step)
    ]
    bf16 = storage.has_bf16(device)
    losses = storage.Losses(ahead + together, "training the map on real sites")
    for step in losses.bar:
        x, y, code, of_x, of_y = (drawn.to(device) for drawn in unpaired.draw(rng))
        x_mask, y_mask = (x > 0).float(), (y > 0).float()
        found: dict[str, float] = {}
        seen, both = inside(x_mask * y_mask), step >= ahead
        with torch.set_grad_enabled(both), torch.autocast(device, torch.bfloat16, enabled=bf16):
            mapped, made = forward(x, x_mask, code), backward(y, y_mask, code)
        site_x, site_y = torch.cat([of_x, code], dim=1), torch.cat([of_y, code], dim=1)

        # 1. Generators: the discriminators must accept mapped scans, the cycle must restore the
        # input, and simulated acquisitions must still be mapped to their originals.
        if both:
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                x_again, y_again = backward(mapped, x_mask, code), forward(made, y_mask, code)
                fooled = at_reference(mapped, seen, of_x), at_site(made, seen, site_y)
            # In the second cycle, the backward generator makes pairs of known truth.
            there_and_back = (x_again, x, x_mask), (y_again, y, y_mask)
            lost = _sum(e for each in there_and_back for e in errors(*each))
            unlike = _sum(missed(score, 1, seen) for score in fooled)
            # Some pairs are unchanged reference scans with a code that is sampling noise.
            known_loss = maps.paired_loss(forward, pairs.draw(rng), rng, bf16)
            parts = {"adversarial": unlike, "cycle": lost, "paired": known_loss}
            loss = _sum(WEIGHTS[name] * part for name, part in parts.items())
            loss.backward()  # type: ignore[no-untyped-call]
            found = {name: part.item() for name, part in parts.items()}
            for network in (forward, backward):
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            maps_step.step()
            maps_step.zero_grad()

        # 2. Discriminators: the label is 0 for mapped and 1 for real scans.
        discriminators_step.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            scores = [
                (at_reference(mapped.detach(), seen, of_x), 0), (at_reference(y, seen, of_y), 1),
                (at_site(made.detach(), seen, site_y), 0), (at_site(x, seen, site_x), 1),
            ]  # fmt: skip
        loss = _sum(missed(score, real, seen) for score, real in scores)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.add(step, **found, discriminator=loss.item())
        discriminators_step.step()
        for schedule in schedules if both else []:
            schedule.step()
    return storage.save_network(path, forward)


def train_maps(
    run: TrainingRun,
    others: np.ndarray,
    appearance: Appearance,
    ensembles: Sequence[Sequence[nn.Module]] | None,
) -> dict[str, MapNetwork | None]:
    """Train the networks applied after the intensity mapping, given ``run.options.map``.

    Parameters
    ----------
    run : TrainingRun
        Training run; the reference's training scans are used.
    others : numpy.ndarray
        Indices of training scans of other sites.
    appearance : Appearance
        Appearance model of the reference.
    ensembles : sequence of sequence of torch.nn.Module or None
        Brain age ensembles that estimate unknown ages; None if brain age is not predicted.

    Returns
    -------
    dict of str to MapNetwork or None
        Networks by kind of map: the requested kind and all simpler ones. None for the intensity
        mapping alone.

    Raises
    ------
    UsageError
        If a CycleGAN is requested and ``others`` is empty.
    """
    data, options = run.data, run.options
    found: dict[str, MapNetwork | None] = {CURVE: None}
    if options.map == CURVE:
        return found
    if options.map == CYCLEGAN and not len(others):
        raise UsageError(
            "--map cyclegan is trained on scans of other sites, and no training scan is of one.",
            "Choose another --map, or add scans of other sites.",
        )
    found[NETWORK] = network = maps.train_map(run, appearance)
    if options.map == CYCLEGAN:
        slice_mm = options.contract.slice_mm
        calibrator = Calibrator(data, appearance, network, ensembles, slice_mm)
        predict = None if ensembles is None else calibrator.predict_age
        sources = []
        for site in np.unique(data.sites[others]):
            here = data.site_scans(site, others)
            ages = calibrator.filled_ages(here, data.ages[here], predict)
            sources.append(Source(here[~np.isnan(ages)], ages[~np.isnan(ages)]))
        found[CYCLEGAN] = train_cyclegan(network, run, appearance, sources)
    return found


def _known(data: TrainingSet, scans: np.ndarray, ages: np.ndarray) -> bytes:
    """Return everything that training uses of scans as bytes, for hashing."""
    about = [data.persons[scans].tolist(), data.sexes[scans].tolist(), np.round(ages, 3).tolist(),
             data.descriptors[scans].round(6).tolist()]  # fmt: skip
    return json.dumps(about).encode() + data.content(scans)


@dataclass(frozen=True)
class Unpaired:
    """Unpaired examples: a scan of a real site after intensity mapping and a reference scan.

    The attributes are parameters of :func:`train_cyclegan`.
    """

    run: TrainingRun
    appearance: Appearance
    sources: Sequence[Source]

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Draw a random example.

        Returns
        -------
        x, y : torch.Tensor
            (1, 1, slices, rows, columns) mapped scan of a site, and reference scan.
        code : torch.Tensor
            (1, code size) site code as network input.
        of_x, of_y : torch.Tensor
            (1, 2) scaled age and sex of both persons.
        """
        data, appearance = self.run.data, self.appearance
        source = self.sources[int(rng.integers(len(self.sources)))]  # all sites are equally likely
        k = int(rng.integers(len(source.scans)))
        scan = int(source.scans[k])
        code = self.draw_code(source, data.persons[scan], rng)
        site = IntensityMapping.of(code, appearance)(data.stack(scan)[0])
        age, sex = float(source.ages[k]), str(data.sexes[scan])
        like = int(rng.choice(self.alike(age, sex)))
        x, y = maps.network_inputs(site, data.stack(like)[0], rng)
        condition = torch.from_numpy(code_input(code.shift, code.n, appearance))[None]
        of_y = self.person(float(data.ages[like]), str(data.sexes[like]))
        return x, y, condition, self.person(age, sex), of_y

    def draw_code(self, source: Source, person: str, rng: np.random.Generator) -> SiteCode:
        """Estimate the site code from a random subset of other persons, as augmentation."""
        data = self.run.data
        persons = data.persons[source.scans]
        others = np.unique(persons[persons != person])
        others = others if len(others) else np.unique(persons)
        n = int(rng.integers((len(others) + 1) // 2, len(others) + 1))
        used = np.isin(persons, rng.choice(others, n, replace=False))
        values = data.descriptors[source.scans[used]]
        return site_code(values, source.ages[used], persons[used], self.appearance)

    def alike(self, age: float, sex: str) -> np.ndarray:
        """Return reference scans of the same sex, if known, with the most similar ages.

        Otherwise discriminators could recognize sites by the age of their persons, and the
        generators would change apparent age.
        """
        data, scans = self.run.data, self.run.trained
        same = scans[data.sexes[scans] == sex] if sex else scans
        same = same if len(same) >= ALIKE else scans
        distance = np.abs(data.ages[same] - age)
        if not np.isfinite(distance).any():
            return same
        return np.asarray(same[np.argsort(distance, kind="stable")[:ALIKE]])

    def person(self, age: float, sex: str) -> Tensor:
        """Return age and sex scaled for a discriminator, (1, 2); 0 if unknown."""
        years = 0.0 if np.isnan(age) else (age - self.appearance.mean_age) / 20
        return torch.tensor([[years, {"M": 1.0, "F": -1.0}.get(sex, 0.0)]], dtype=torch.float32)


class Discriminator(nn.Module):
    """Patch discriminator: scores how realistic patches of a volume are, given a condition.

    Parameters
    ----------
    n_conditions : int
        Size of the condition vector.
    channels : sequence of int
        Number of channels of the layers.
    """

    def __init__(self, n_conditions: int, channels: Sequence[int] = (16, 32, 48)) -> None:
        super().__init__()
        a, b, c = channels
        self.first = nn.Conv3d(2, a, 4, stride=2, padding=1)
        self.second = nn.Conv3d(a, b, 4, stride=2, padding=1)
        self.third = nn.Conv3d(b, c, 3, padding=1)
        self.condition = nn.Linear(n_conditions, c)
        self.last = nn.Conv3d(c, 1, 1)

    def forward(self, x: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        """Score (n, 1, slices, rows, columns) volumes inside masks, at a quarter of the size."""
        x = x.float() * mask
        around = F.avg_pool3d(x, 3, 1, 1) / F.avg_pool3d(mask, 3, 1, 1).clamp(min=0.01)
        h = torch.cat([2 * (x - MIDDLE), FINE * (x - around)], dim=1) * mask
        for layer in (self.first, self.second):
            h = F.leaky_relu(layer(h), 0.2)
        h = self.third(h) + self.condition(condition)[:, :, None, None, None]
        out: Tensor = self.last(F.leaky_relu(h, 0.2))
        return out


def inside(mask: Tensor) -> Tensor:
    """Erode a mask by :data:`RIM` voxels."""
    return -F.max_pool3d(-mask, 2 * RIM + 1, 1, RIM)


def _sum(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()


def missed(score: Tensor, wanted: float, mask: Tensor) -> Tensor:
    """Compute the least-squares GAN loss: mean squared error of scores inside the mask."""
    weight = F.avg_pool3d(mask, 4)
    off: Tensor = ((score.float() - wanted) ** 2 * weight).sum() / weight.sum().clamp(min=1)
    return off
