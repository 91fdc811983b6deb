"""Random appearances and poses of slices, so that a predictor does not lean on one scanner's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Sizes of the random changes made to each training slice.

    Attributes
    ----------
    tone : float
        Standard deviation of the shift of fluid and grey matter (fluid is 0, white matter 1).
    bias : float
        Standard deviation of a smooth multiplicative field's logarithm.
    noise : float
        Largest standard deviation of added noise.
    blur : float
        Largest weight of a 3 x 3 blur; the same weight, negative, sharpens.
    shift, scale, degrees : float
        Standard deviations of shift (fraction of the half-width), scale and rotation.
    edge : float
        Share of slices whose outermost voxels are taken away.
    plain : float
        Share of slices only shifted by whole pixels and reflected: every other one has been
        interpolated, and a network that never saw an untouched slice misjudges it by years.
    """

    tone: float = 0.08
    bias: float = 0.08
    noise: float = 0.04
    blur: float = 0.5
    shift: float = 0.02
    scale: float = 0.03
    degrees: float = 2.0
    edge: float = 0.3
    plain: float = 0.3


def augment(slices: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Change the look and pose of slices at random.

    Parameters
    ----------
    slices : torch.Tensor
        (batch, 1, rows, columns) intensities, background 0.
    how : Augmentation
        Sizes of the changes.
    generator : torch.Generator
        Source of chance.

    Returns
    -------
    torch.Tensor
        Same shape, background 0.
    """
    n, _, rows, columns = slices.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    plain = uniform(n, 1, 1, 1) < how.plain
    rows_by, columns_by = (int(v) for v in torch.randint(-2, 3, (2,), generator=generator))
    untouched = torch.roll(slices, (rows_by, columns_by), dims=(2, 3))
    untouched = torch.where(uniform(n, 1, 1, 1) < 0.5, untouched.flip(2), untouched)
    # Pose: rotation, anisotropic scale, shift and reflection, in one resampling.
    angle = normal(n) * how.degrees * torch.pi / 180
    sx, sy = (1 + how.scale * normal(2, n)).unbind()
    flip = torch.where(uniform(n) < 0.5, -1.0, 1.0)
    dx, dy = (how.shift * normal(2, n)).unbind()
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Columns come first in grid_sample; rows run left to right in the brain, so rows are flipped.
    top = torch.stack([sx * cos, -sin, dx], dim=1)
    bottom = torch.stack([sin, flip * sy * cos, dy], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), [n, 1, rows, columns], False)
    x = F.grid_sample(slices, grid, align_corners=False)
    mask = (x > 5e-4).float()
    # Tone: move fluid (0) and grey matter against white matter (1).
    fluid = how.tone * normal(n, 1, 1, 1)
    x = torch.relu(x - fluid) / (1 - fluid)
    x = x ** torch.exp(2 * how.tone * normal(n, 1, 1, 1))
    x = x * (1 + 0.5 * how.tone * normal(n, 1, 1, 1))
    # Bias field: cubic interpolation of a coarse random grid.
    field = F.interpolate(
        how.bias * normal(n, 1, 3, 3), size=(rows, columns), mode="bicubic", align_corners=True
    )
    x = x * torch.exp(field)
    # Sharpness, then noise.
    weight = how.blur * (2 * uniform(n, 1, 1, 1) - 1)
    smooth = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = x + weight * (smooth - x)
    x = x + how.noise * uniform(n, 1, 1, 1) * normal(n, 1, rows, columns)
    # Mask: on some slices, peel one more voxel where a smooth random field says so.
    inner = 1 - F.max_pool2d(1 - mask, 3, 1, 1)
    patch = F.interpolate(uniform(n, 1, 6, 6), size=(rows, columns), mode="bilinear")
    away = (uniform(n, 1, 1, 1) < how.edge) & (patch < 0.5)
    mask = torch.where(away, inner, mask)
    return torch.where(plain, untouched, torch.clamp(x, 0, 2) * mask)
