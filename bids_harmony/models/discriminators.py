"""What tells real slices of a site from mapped ones, while the maps are trained.

A discriminator sees the masked slice alone: neither mask, which a map cannot change, nor height.
``domain`` is the number of the source site a slice should be of; the reference comes after the
last source.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bids_harmony.models.generators import MAX_INTENSITY, normal_weights, site_planes


def patch_layers(n_in: int, width: int, halvings: int, n_out: int, norm: str) -> nn.Sequential:
    """Build the original CycleGAN's patch discriminator.

    Parameters
    ----------
    n_in, width, n_out : int
        Channels of the input, of the first layer and of the output.
    halvings : int
        Layers of stride 2; 3 judge patches of 70 x 70 pixels, 2 of 34 x 34.
    norm : str
        ``instance``, ``spectral`` or ``none``.
    """

    def layer(a: int, b: int, stride: int, normed: bool) -> list[nn.Module]:
        convolution: nn.Module = nn.Conv2d(a, b, 4, stride, 1)
        if norm == "spectral":
            convolution = nn.utils.parametrizations.spectral_norm(convolution)
        between = [nn.InstanceNorm2d(b)] if normed and norm == "instance" else []
        return [convolution, *between, nn.LeakyReLU(0.2)]

    layers = layer(n_in, width, 2, normed=False)
    for i in range(1, halvings):
        layers += layer(2 ** (i - 1) * width, 2**i * width, 2, normed=True)
    layers += layer(2 ** (halvings - 1) * width, 2**halvings * width, 1, normed=True)
    return nn.Sequential(*layers, nn.Conv2d(2**halvings * width, n_out, 4, 1, 1))


class SharedDiscriminator(nn.Module):
    """One trunk with an output for each source site and one for the reference.

    Parameters
    ----------
    n_sites : int
        Source sites.
    width, halvings, norm : int, int, str
        As of :func:`patch_layers`.
    """

    def __init__(self, n_sites: int, width: int, halvings: int, norm: str) -> None:
        super().__init__()
        self.layers = patch_layers(1, width, halvings, n_sites + 1, norm)

    def forward(self, image: Tensor, domain: Tensor) -> Tensor:
        """Score the patches of (batch, 1, rows, columns) slices: (batch, r, c)."""
        scores = self.layers(image)
        own: Tensor = scores[torch.arange(len(domain), device=domain.device), domain]
        return own


class PairedDiscriminators(nn.Module):
    """The article's: one for the reference, and one for the sources that is told the site.

    Parameters
    ----------
    n_sites : int
        Source sites, marked by planes beside the slice.
    width, halvings, norm : int, int, str
        As of :func:`patch_layers`.
    """

    def __init__(self, n_sites: int, width: int, halvings: int, norm: str) -> None:
        super().__init__()
        self.n_sites = n_sites
        self.reference = patch_layers(1, width, halvings, 1, norm)
        self.source = patch_layers(1 + n_sites, width, halvings, 1, norm)
        normal_weights(self)

    def forward(self, image: Tensor, domain: Tensor) -> Tensor:
        """Score the patches of (batch, 1, rows, columns) slices: (batch, r, c)."""
        seen = 2 / MAX_INTENSITY * image - 1
        told = torch.cat([seen, site_planes(domain, self.n_sites, image)], dim=1)
        reference = domain == self.n_sites
        parts = [self.reference(seen[reference])] if reference.any() else []
        parts += [self.source(told[~reference])] if not reference.all() else []
        order = torch.argsort((~reference).to(torch.int8), stable=True)
        scores: Tensor = torch.cat(parts)[torch.argsort(order)][:, 0]
        return scores


Discriminator = SharedDiscriminator | PairedDiscriminators
