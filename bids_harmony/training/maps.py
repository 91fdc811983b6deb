"""One step of the CycleGAN: the maps, their discriminator, and what has to be remembered."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from bids_harmony.errors import HarmonyError
from bids_harmony.models.generators import INPUT_CHANNELS
from bids_harmony.training.losses import adversarial, edge_loss, masked_l1, tissue_loss
from bids_harmony.training.presets import Preset

LOSSES = ("adversarial", "discriminator", "cycle", "identity", "edges", "tissue")


class Batch(NamedTuple):
    """Inputs of :func:`bids_harmony.models.slices.slice_input` of source and reference slices.

    Each is (batch, channels, rows, columns); ``site`` holds the (batch,) numbers of the sources.
    """

    source: Tensor
    reference: Tensor
    site: Tensor


class Chance(NamedTuple):
    """What is drawn at random for one step, on the device."""

    source_noise: Tensor
    reference_noise: Tensor
    told: Tensor
    shift: tuple[int, int]
    generator: torch.Generator


@dataclass
class Mapped:
    """Slices after the maps, (batch, 1, rows, columns) each.

    ``*_back`` has gone to the other side and back, ``*_same`` was on the right side already.
    """

    source_mapped: Tensor
    source_back: Tensor
    source_same: Tensor
    reference_mapped: Tensor
    reference_back: Tensor
    reference_same: Tensor


class Maps(nn.Module):
    """Forward and backward map, called once per step as distributed training wants it."""

    def __init__(self, preset: Preset, n_sites: int) -> None:
        super().__init__()
        self.forward_map, self.backward_map = preset.build_maps(n_sites)

    def forward(self, batch: Batch, chance: Chance) -> dict[str, Tensor]:
        """Map both sides across, back, and onto themselves: the fields of :class:`Mapped`."""
        x, y, site = batch
        source_mapped, reference_same = self.forward_map(torch.cat([x, y])).chunk(2)
        # The backward map sees no neighbours.
        x_in, y_in = x[:, :INPUT_CHANNELS], y[:, :INPUT_CHANNELS]
        returning = _with(x_in, source_mapped + chance.source_noise)
        source_back, reference_mapped, source_same = self.backward_map(
            torch.cat([returning, y_in, x_in]), torch.cat([chance.told, site, site])
        ).chunk(3)
        returning = _with(y, reference_mapped + chance.reference_noise)
        if y.shape[1] > INPUT_CHANNELS:
            returning = torch.cat([returning[:, :INPUT_CHANNELS], self._neighbours(y, site)], 1)
        return {
            "source_mapped": source_mapped,
            "source_back": source_back,
            "source_same": source_same,
            "reference_mapped": reference_mapped,
            "reference_back": self.forward_map(returning),
            "reference_same": reference_same,
        }

    @torch.no_grad()
    def _neighbours(self, y: Tensor, site: Tensor) -> Tensor:
        """Map reference slices' neighbours to the source site, where the slices go."""
        near = y[:, INPUT_CHANNELS:]
        n, around = near.shape[:2]
        image = near.reshape(n * around, 1, *near.shape[2:])
        height = y[:, 2:3].repeat_interleave(around, dim=0)
        x = torch.cat([image, (image > 0).to(image.dtype), height], dim=1)
        mapped: Tensor = self.backward_map(x, site.repeat_interleave(around))
        return mapped.reshape_as(near)


class ImagePool:
    """Mapped slices of earlier steps, half of which take the place of new ones.

    The original CycleGAN's: it keeps the discriminator from chasing the newest maps alone.

    Parameters
    ----------
    size : int
        Slices remembered; 0: none.
    shape : tuple of int
        Rows and columns.
    """

    def __init__(self, size: int, shape: tuple[int, int], device: torch.device) -> None:
        # Slice and mask; the domain the slice was mapped to.
        self.images = torch.zeros(size, 2, *shape, device=device)
        self.domains = torch.zeros(size, dtype=torch.long, device=device)
        self.filled = 0

    def swap(
        self, images: Tensor, domains: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Remember new slices; return them, or older ones in their place."""
        size = len(self.images)
        if not size:
            return images, domains
        images, domains = images.clone(), domains.clone()
        for i in range(len(images)):
            if self.filled < size:
                self.images[self.filled], self.domains[self.filled] = images[i], domains[i]
                self.filled += 1
                continue
            keep, slot = torch.rand(2, generator=generator).tolist()
            if keep < 0.5:
                j = int(slot * size)
                old, domain = self.images[j].clone(), self.domains[j].clone()
                self.images[j], self.domains[j] = images[i], domains[i]
                images[i], domains[i] = old, domain
        return images, domains


class Trainer:
    """Networks, optimisers and memory of a training, one step at a time.

    Parameters
    ----------
    fabric : Fabric
        Device, precision and the other processes.
    preset : Preset
        Networks, losses and optimisation.
    n_sites : int
        Source sites.
    size : tuple of int
        Rows and columns of a slice.
    steps : int
        At which the learning rate reaches 0.
    seed : int
        Seed of weights and chance.

    Attributes
    ----------
    step : int
        Steps done.
    averaged : Maps
        Moving average of the maps; the maps themselves without one.
    """

    def __init__(
        self,
        fabric: Fabric,
        preset: Preset,
        n_sites: int,
        size: tuple[int, int],
        steps: int,
        seed: int,
    ) -> None:
        self.fabric, self.preset, self.n_sites = fabric, preset, n_sites
        self.steps, self.seed, self.step = steps, seed, 0
        torch.manual_seed(seed)
        maps, judge = Maps(preset, n_sites), preset.build_discriminator(n_sites)
        optimisers = [
            torch.optim.Adam(network.parameters(), preset.learning_rate, (0.5, 0.999))
            for network in (maps, judge)
        ]
        self.maps, self.maps_optimiser = fabric.setup(maps, optimisers[0])
        self.judge, self.judge_optimiser = fabric.setup(judge, optimisers[1])
        # Unwrapped, as the maps' losses use the discriminator: its gradients go nowhere.
        self.maps_alone, self.judge_alone = maps, judge
        self.averaged = copy.deepcopy(maps).requires_grad_(False) if preset.ema else maps
        self.pools = [ImagePool(preset.pool, size, fabric.device) for _ in range(2)]
        self._losses: list[Tensor] = []

    def train(self, batch: Batch) -> None:
        """Make one step of the maps and one of the discriminator."""
        preset = self.preset
        x, y, site = (part.to(self.fabric.device) for part in batch)
        chance = self._chance(Batch(x, y, site))
        mask_x, mask_y = x[:, 1:2], y[:, 1:2]
        for optimiser in (self.maps_optimiser, self.judge_optimiser):
            for group in optimiser.param_groups:
                group["lr"] = preset.learning_rate * min(1.0, 2 * (1 - self.step / self.steps))

        # 1. The maps: fool the discriminator, come back, leave what is right, keep anatomy.
        m = Mapped(**self.maps(Batch(x, y, site), chance))
        reference = torch.full_like(site, self.n_sites)
        domains, masks = torch.cat([reference, site]), torch.cat([mask_x, mask_y])
        mapped, images = torch.cat([m.source_mapped, m.reference_mapped]), torch.cat([x, y])[:, :1]
        self.judge_alone.requires_grad_(False)
        with self.fabric.autocast():
            scores = self.judge_alone(mapped, domains)
        fooled = 2 * adversarial(scores, masks, 1)
        cycle = masked_l1(m.source_back, x[:, :1], mask_x)
        cycle = cycle + masked_l1(m.reference_back, y[:, :1], mask_y)
        same = masked_l1(m.reference_same, y[:, :1], mask_y)
        same = same + masked_l1(m.source_same, x[:, :1], mask_x)
        none = torch.zeros((), device=x.device)
        edges = 2 * edge_loss(mapped, images, masks) if preset.edges else none
        tissue = 2 * tissue_loss(mapped, images, masks) if preset.tissue else none
        loss = fooled + preset.cycle * cycle + preset.identity * same
        loss = loss + preset.edges * edges + preset.tissue * tissue
        self.maps_optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        if preset.clip:
            self.fabric.clip_gradients(
                self.maps, self.maps_optimiser, max_norm=preset.clip, error_if_nonfinite=False
            )
        self.maps_optimiser.step()

        # 2. The discriminator: real slices 1, mapped slices 0, now and from before.
        self.judge_alone.requires_grad_(True)
        fake = torch.cat([mapped.detach(), masks], dim=1).chunk(2)
        swapped = [
            pool.swap(part, domain, chance.generator)
            for pool, part, domain in zip(self.pools, fake, (reference, site), strict=True)
        ]
        real = torch.cat([torch.cat([y, x])[:, :2], *(images for images, _ in swapped)])
        real = torch.roll(real, chance.shift, dims=(2, 3))
        domains = torch.cat([domains, *(domain for _, domain in swapped)])
        scores = self.judge(real[:, :1], domains).chunk(2)
        judged_masks = real[:, 1:].chunk(2)
        judged = adversarial(scores[0], judged_masks[0], 1)
        judged = judged + adversarial(scores[1], judged_masks[1], 0)
        self.judge_optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(judged)
        self.judge_optimiser.step()

        # 3. Average the maps; remember the losses without waiting for them.
        self.step += 1
        if preset.ema:
            decay = min(preset.ema, self.step / (self.step + 10))
            pairs = zip(self.averaged.parameters(), self.maps_alone.parameters(), strict=True)
            with torch.no_grad():
                for kept, now in pairs:
                    kept.lerp_(now, 1 - decay)
        self._losses.append(torch.stack([fooled, judged, cycle, same, edges, tissue]).detach())

    def losses(self, *, clear: bool) -> dict[str, float]:
        """Mean losses since they were last cleared, over all processes.

        Raises
        ------
        HarmonyError
            When one is not finite.
        """
        rows = self.fabric.all_reduce(torch.stack(self._losses), reduce_op="mean").cpu()  # type: ignore[union-attr]
        if not torch.isfinite(rows).all():
            first = int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])
            name = LOSSES[int((~torch.isfinite(rows[first])).nonzero()[0])]
            raise HarmonyError(
                f"The {name} loss is no longer a number at step "
                f"{self.step - len(rows) + first + 1}.",
                "Try --precision 32-true or another --random-seed, and look for scans with "
                "extreme intensities.",
            )
        if clear:
            self._losses.clear()
        return dict(zip(LOSSES, rows.mean(dim=0).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on; to be called by every process."""
        gathered = self.fabric.all_gather(
            [[p.images, p.domains] for p in self.pools] if self.preset.pool else []
        )
        state: dict[str, Any] = {
            "step": self.step,
            "maps": self.maps_alone.state_dict(),
            "averaged": self.averaged.state_dict(),
            "judge": self.judge_alone.state_dict(),
            "optimisers": [self.maps_optimiser.state_dict(), self.judge_optimiser.state_dict()],
            "pools": gathered,
            "filled": [p.filled for p in self.pools],
            "losses": self.fabric.all_gather(self._losses),
        }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that :meth:`state_dict` gave."""
        self.step = state["step"]
        self.maps_alone.load_state_dict(state["maps"])
        self.averaged.load_state_dict(state["averaged"])
        self.judge_alone.load_state_dict(state["judge"])
        for optimiser, part in zip(
            (self.maps_optimiser, self.judge_optimiser), state["optimisers"], strict=True
        ):
            optimiser.load_state_dict(part)
        rank, alone = self.fabric.global_rank, self.fabric.world_size == 1
        for pool, part in zip(self.pools, state["pools"], strict=False):
            images, domains = (v if alone else v[rank] for v in part)
            pool.images.copy_(images)
            pool.domains.copy_(domains)
        for pool, filled in zip(self.pools, state["filled"], strict=True):
            pool.filled = filled
        self._losses = [(v if alone else v[rank]).to(self.fabric.device) for v in state["losses"]]

    def _chance(self, batch: Batch) -> Chance:
        """Draw what this step leaves to chance; it depends on seed, step and process alone."""
        # Drawn on the CPU: the same numbers on every kind of device.
        key = mix(self.seed, self.step, self.fabric.global_rank)
        generator = torch.Generator().manual_seed(key)
        noises = [
            self.preset.cycle_noise
            * torch.randn(part[:, :1].shape, generator=generator).to(part.device)
            * part[:, 1:2]
            for part in (batch.source, batch.reference)
        ]
        hidden = torch.rand(len(batch.site), generator=generator) < self.preset.unknown
        told = torch.where(hidden.to(batch.site.device), self.n_sites, batch.site)
        reach = self.preset.shift
        rows, columns = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
        return Chance(noises[0], noises[1], told, (rows, columns), generator)


def mix(*numbers: int) -> int:
    """Mix numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _with(x: Tensor, image: Tensor) -> Tensor:
    """Replace an input's slice, keeping the other channels."""
    return torch.cat([image, x[:, 1:]], dim=1)
