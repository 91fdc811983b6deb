"""Losses of the maps between sites, all of them inside the brain mask.

Images and masks are (batch, 1, rows, columns). Each loss is a mean over slices of a mean over
each slice's brain: it is the same however a batch is shared between devices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Where fuzzy C-means begins: fluid, grey and white matter (``anat/intensity.py``).
TISSUES = (0.05, 0.55, 1.0)
#: Side in pixels of the cells whose tissue fractions are compared.
CELL = 8


def adversarial(scores: Tensor, mask: Tensor, wanted: float) -> Tensor:
    """Least squares between patch scores and 1 (real) or 0 (mapped), weighted by brain.

    Parameters
    ----------
    scores : torch.Tensor
        (batch, r, c) of a discriminator.
    mask : torch.Tensor
        Of the slices judged.
    wanted : float
        What the scores should be.
    """
    scores = scores.float()
    weight = F.adaptive_avg_pool2d(mask.float(), (scores.shape[1], scores.shape[2]))[:, 0]
    return _mean((scores - wanted) ** 2 * weight, weight)


def masked_l1(image: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference inside the mask (cycle and identity)."""
    return _mean((image - target).abs() * mask, mask)


def edge_loss(mapped: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """One minus the correlation of both images' gradients inside the mask, 0 to 2.

    Contrast and shading may change; an edge that moves, appears or goes costs.
    """
    # Only between two voxels inside: the outline is the same in both and would hide the rest.
    inner = 1 - F.max_pool2d(1 - mask, 3, 1, 1)
    total = torch.zeros((), device=image.device)
    for dim in (2, 3):
        a, b = (torch.diff(v, dim=dim) for v in (mapped, image))
        w = inner.narrow(dim, 1, inner.shape[dim] - 1)
        product = (a * b * w).sum(dim=(1, 2, 3))
        size = ((a * a * w).sum(dim=(1, 2, 3)) * (b * b * w).sum(dim=(1, 2, 3)) + 1e-8).sqrt()
        total = total + (1 - product / size).mean() / 2
    return total


def tissue_loss(mapped: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Mean change of the local fractions of fluid, grey and white matter, 0 to 2.

    Each image's own fuzzy C-means gives its tissues (science.md §10), so a map may move their
    intensities; it may not turn one into another. Fractions are taken over cells, not over the
    slice, so that a ventricle cannot grow at the expense of a sulcus.
    """
    changed = memberships(mapped, mask) - memberships(image, mask)
    weight = F.avg_pool2d(mask, CELL, ceil_mode=True)
    fractions = F.avg_pool2d(changed * mask, CELL, ceil_mode=True)
    return _mean(fractions.abs(), weight)


def memberships(image: Tensor, mask: Tensor, rounds: int = 4) -> Tensor:
    """Fuzzy C-means with exponent 2: (batch, 3, rows, columns), summing to 1.

    Gradients pass through the memberships, not through the centres.
    """
    batch = image.shape[0]
    centres = torch.tensor(TISSUES, device=image.device).expand(batch, 3)
    with torch.no_grad():
        # Centres need few voxels; a slice without fluid keeps the centre it began with.
        few, inside = image[..., ::2, ::2].flatten(2), mask[..., ::2, ::2].flatten(2)
        for _ in range(rounds):
            weight = _memberships(few, centres[:, :, None]) ** 2 * inside
            prior = 0.01 * inside.sum(dim=2).clamp(min=1.0)
            centres = ((weight * few).sum(dim=2) + prior * centres) / (weight.sum(dim=2) + prior)
    return _memberships(image, centres[:, :, None, None])


def _memberships(image: Tensor, centres: Tensor) -> Tensor:
    near = 1 / ((image - centres) ** 2 + 1e-3)
    return near / near.sum(dim=1, keepdim=True)


def _mean(weighted: Tensor, weight: Tensor) -> Tensor:
    """Mean over slices of weighted means."""
    return (weighted.flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1).clamp(min=1e-3)).mean()
