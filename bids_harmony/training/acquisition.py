"""Made-up acquisitions: how a reference scan might have looked on some other scanner.

The original is known, so whatever is mapped back can be compared with it. At ``strength`` 1 they
differ from the reference as much as real sites do: at three of four, the descriptors' middle
quantiles lie .07 to .085 below the reference's at equal age, here they differ by .09 (root mean
square). How alike neighbouring voxels are differs as much, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bids_harmony.anat.intensity import class_means

#: Intensities between which the logarithm of the tone curve's slope is drawn.
KNOTS = 9
#: Where the curve ends: the ceiling of scaled volumes.
TOP = 2.0
#: The curve is tabled at this many intensities.
TABLE = 257
#: How far from the background the deep brain begins, in voxels.
CORE = 7
#: Cosines of the bias field along each axis.
FREQUENCIES = 4
#: Standard deviations (or half-ranges) of the effects at strength 1.
TONE_SD, DEEP_GREY_SD, BIAS_SD, BLUR, SHARPEN, NOISE, COARSE = (
    0.5,
    0.08,
    0.04,
    0.4,
    0.5,
    0.02,
    1.25,
)


@dataclass(frozen=True)
class Acquisition:
    """What sets a scanner apart, the same for all scans of a site; the default changes nothing.

    Attributes
    ----------
    tone : tuple of float
        Logarithm of the slope of the intensity mapping at :data:`KNOTS` intensities from 0 to 2.
    deep_grey : float
        Added to the intensity of deep grey matter.
    bias : tuple of float
        Coefficients of the smooth field that remains after bias correction.
    blur : tuple of float
        Standard deviation along each axis in voxels.
    sharpen : float
        Share of what a blur by one voxel takes away that is added.
    noise : float
        Standard deviation of white noise.
    rim : float
        Below 0, voxels at the surface that are darker than this (with its sign changed) are taken
        off, as by a mask that hugs the cortex; above 0, CSF so bright is kept in the sulci.
    """

    tone: tuple[float, ...] = (0.0,) * KNOTS
    deep_grey: float = 0.0
    bias: tuple[float, ...] = (0.0,) * FREQUENCIES**3
    blur: tuple[float, ...] = (0.0, 0.0, 0.0)
    sharpen: float = 0.0
    noise: float = 0.0
    rim: float = 0.0

    @classmethod
    def draw(cls, generator: torch.Generator, strength: float = 1.0) -> Acquisition:
        """Draw an acquisition at random."""

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        def normal(n: int) -> np.ndarray:
            return torch.randn(n, generator=generator).double().numpy()

        # Neighbouring slopes go together, and low frequencies are the strongest.
        tone = np.convolve(normal(KNOTS + 2), [0.4, 0.8, 0.4], mode="valid")
        order = np.indices((FREQUENCIES,) * 3).sum(axis=0).ravel()
        falling = np.where((order > 0) & (order < FREQUENCIES), 1 / np.maximum(order, 1), 0)
        bias = normal(order.size) * falling
        bias *= uniform(0, 2) * BIAS_SD / np.sqrt((bias**2).sum() / 2)
        sharpness = uniform(-1, 1)
        blur = [max(-sharpness, 0.0) * BLUR] * 3
        if uniform(0, 1) < 0.5:  # voxels that are longer one way
            blur[int(uniform(0, 3)) % 3] += uniform(0, COARSE)
        return cls(
            tone=tuple(strength * TONE_SD * tone),
            deep_grey=float(strength * DEEP_GREY_SD * normal(1)[0]),
            bias=tuple(strength * bias),
            blur=tuple(strength * sd for sd in blur),
            sharpen=strength * SHARPEN * max(sharpness, 0.0),
            noise=strength * uniform(0, NOISE),
            rim=strength * uniform(-0.4, 0.1),
        )

    def only(self, *kinds: str) -> Acquisition:
        """Keep some of the effects, by the names of their attributes."""
        if unknown := set(kinds) - {field.name for field in fields(self)}:
            raise ValueError(f"An acquisition has no {sorted(unknown)}.")
        return replace(Acquisition(), **{kind: getattr(self, kind) for kind in kinds})


def apply(
    acquisition: Acquisition,
    volume: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    grey: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Acquire volumes anew, and bring them back to the scaling that preprocessing gives.

    Parameters
    ----------
    acquisition : Acquisition
        The same for all.
    volume : torch.Tensor
        (n, 1, x, y, z) scaled volumes, or (n, 1, x, y) slices of them: CSF 0, grey matter .55,
        white matter 1, background exactly 0.
    mask : torch.Tensor
        Their boolean foreground, of the same shape.
    generator : torch.Generator
        Draws each its own noise.
    grey : torch.Tensor, optional
        :func:`bids_harmony.anat.template.deep_grey` at the same places, of shape (1 or n, 1,
        ...); needed where ``deep_grey`` is not 0.

    Returns
    -------
    volume, mask : torch.Tensor
        Of the same shape and scaling; background exactly 0.

    Raises
    ------
    ValueError
        When deep grey matter is to change and ``grey`` is missing.
    """
    a, space = acquisition, volume.shape[2:]
    levels = _levels(volume, volume, mask)
    v = _curve(volume, a.tone)
    if a.deep_grey:
        if grey is None:
            raise ValueError("Deep grey matter is to change, and its map is missing.")
        # Neither CSF nor white matter.
        v = v + a.deep_grey * grey * ((volume - 0.2) / 0.3).clamp(0, 1) * (
            (1.1 - volume) / 0.15
        ).clamp(0, 1)
    v = v * _field(a.bias, space).to(v)
    if a.rim > 0:
        grown = _closed(mask)
        v = torch.where(grown & ~mask, torch.full_like(v, a.rim), v)
        mask = grown
    elif a.rim < 0:
        hugging = mask
        for _ in range(2):
            hugging = hugging & ~(_dilated(~hugging) & (volume < -a.rim))
        mask = mask & _closed(hugging)
    v = v * mask
    if any(a.blur):
        v = _blur(v, mask, a.blur)
    if a.sharpen:
        v = v + a.sharpen * (v - _blur(v, mask, (1.0,) * 3))
    if a.noise:
        v = v + a.noise * torch.randn(v.shape, generator=generator).to(v)
    v = _rescaled(v, _levels(v, volume, mask), levels)
    return torch.where(mask, v.clamp(1e-3, TOP), torch.zeros_like(v)), mask


def _curve(volume: Tensor, tone: tuple[float, ...]) -> Tensor:
    """Intensity mapping with the given logarithms of slopes; 0 stays 0 and 1 stays 1."""
    x = np.linspace(0, TOP, TABLE)
    slopes = np.exp(np.interp(x, np.linspace(0, TOP, len(tone)), tone))
    y = np.concatenate([[0.0], np.cumsum((slopes[1:] + slopes[:-1]) / 2)]) * (x[1] - x[0])
    table = torch.from_numpy(y / np.interp(1.0, x, y)).to(volume)
    place = (volume / TOP).clamp(0, 1) * (TABLE - 1)
    below = place.long().clamp(max=TABLE - 2)
    return torch.lerp(table[below], table[below + 1], place - below)


def _field(bias: tuple[float, ...], space: torch.Size) -> Tensor:
    """Product of cosines along each axis, as a factor; slices have no third axis."""
    field = torch.tensor(bias, dtype=torch.float32).reshape((FREQUENCIES,) * 3)
    for n in reversed([*space, *[1] * (3 - len(space))]):
        angle = torch.pi * torch.outer(torch.arange(FREQUENCIES), (torch.arange(n) + 0.5) / n)
        field = torch.tensordot(torch.cos(angle), field, dims=([0], [-1]))
    return torch.exp(field.reshape(*space))


def _dilated(mask: Tensor) -> Tensor:
    """Grow a mask by a voxel along the axes and diagonals."""
    pool = F.max_pool2d if mask.dim() == 4 else F.max_pool3d
    return pool(mask.float(), 3, stride=1, padding=1) > 0


def _closed(mask: Tensor) -> Tensor:
    """Fill clefts that are up to two voxels wide."""
    return ~_dilated(~_dilated(mask))


def _blur(volume: Tensor, mask: Tensor, sd: tuple[float, ...]) -> Tensor:
    """Gaussian average of the voxels inside the mask; ``sd`` of each axis in voxels."""
    x = torch.arange(-4, 5, device=volume.device)
    conv = F.conv2d if volume.dim() == 4 else F.conv3d
    parts = [volume * mask, mask.to(volume)]
    for axis, width in zip(range(2, volume.dim()), sd, strict=False):
        if width <= 0:
            continue
        # So narrow a Gaussian is not seen by its value in the middle of the next voxel.
        weights = _between((x + 0.5) / width) - _between((x - 0.5) / width)
        shape, padding = [1] * volume.dim(), [0] * (volume.dim() - 2)
        shape[axis], padding[axis - 2] = len(x), len(x) // 2
        kernel = weights.to(volume).reshape(shape)
        parts = [conv(part, kernel, padding=padding) for part in parts]
    return parts[0] / parts[1].clamp(min=1e-3) * mask


def _between(x: Tensor) -> Tensor:
    """Distribution function of the standard normal."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _levels(values: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """Intensities of CSF, grey and white matter of each volume, (n, 3), as scaling finds them.

    CSF is what has the rank, in the deep brain, of what was CSF in the original.
    """
    pool, dims = (F.max_pool2d, 2) if values.dim() == 4 else (F.max_pool3d, 3)
    outside = (~mask).float()
    for axis in range(dims):
        size, padding = [1] * dims, [0] * dims
        size[axis], padding[axis] = 2 * CORE + 1, CORE
        outside = pool(outside, size, stride=1, padding=padding)
    found = []
    for v, o, m, deep in zip(values, original, mask, outside == 0, strict=True):
        rank = int((o[deep] <= 0.005).sum())
        fluid = float(v[deep].kthvalue(rank).values) if rank else 0.0
        inside = v[m].cpu().numpy()
        grey, white = 0.55, 1.0
        for _ in range(2):
            tissue = inside[inside > fluid + 0.35 * (white - fluid)]
            if tissue.size > 1:
                grey, white = (float(c) for c in class_means(tissue, 2))
        found.append([fluid, max(grey, fluid + 0.05), max(white, fluid + 0.1)])
    return torch.tensor(found).to(values)


def _rescaled(values: Tensor, found: Tensor, wanted: Tensor) -> Tensor:
    """Map each volume's levels to those wanted, linearly in between."""
    shape = (3, -1, *[1] * (values.dim() - 1))
    f, g, w = found.T.reshape(shape)
    to_f, to_g, to_w = wanted.T.reshape(shape)
    dark = to_f + (torch.minimum(values, g) - f) * (to_g - to_f) / (g - f)
    bright = (torch.minimum(values, w) - g).clamp(min=0) * (to_w - to_g) / (w - g)
    scaled: Tensor = dark + bright + (values - w).clamp(min=0) * to_w / w
    return scaled
