"""The maps between sites: the default residual generator and the article's.

Both take inputs of :func:`bids_harmony.models.slices.slice_input` (slice, mask, height, then the
slice's neighbours) and return the slice at the other site, 0 outside the mask. The forward map
takes no site, so that it works on sites never seen; with ``n_sites`` a network is the backward
map and is told the site to lead to. Site number ``n_sites`` stands for an unknown site.
"""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels of a generator's input besides the neighbours: slice, mask, height.
INPUT_CHANNELS = 3
#: Intensities end here: fluid is 0, white matter 1 (``anat/intensity.py``).
MAX_INTENSITY = 2.0
#: Range of intensities the bins of the bilateral grid are spread over.
GRID_RANGE = 1.5

Layer = TypeVar("Layer", bound=nn.Module)


class _Block(nn.Module):
    """Two 3 x 3 convolutions; the second may be modulated by a site (FiLM)."""

    def __init__(self, n_in: int, n_out: int, embedding: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.film = _zeros(nn.Linear(embedding, 2 * n_out)) if embedding else None

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        x = F.leaky_relu(self.conv1(x), 0.1)
        x = self.conv2(x)
        if self.film is not None and code is not None:
            gain, offset = self.film(code)[:, :, None, None].chunk(2, dim=1)
            x = x * (1 + gain) + offset
        return F.leaky_relu(x, 0.1)


class _ToneGrid(nn.Module):
    """Gain and offset for each place and intensity: a bilateral grid (science.md §9, §10).

    A small network sees the slice at a quarter of its resolution and gives, on a grid of cells
    of 16 pixels and ``bins`` intensities, by how much to scale and shift. Each pixel reads the
    grid at its place and intensity, so that tone and shading can change and no edge can appear.
    """

    def __init__(self, n_in: int, bins: int, embedding: int) -> None:
        super().__init__()
        self.bins = bins
        self.blocks = nn.ModuleList(
            _Block(a, b, embedding) for a, b in itertools.pairwise((n_in, 32, 64, 96))
        )
        self.head = _zeros(nn.Conv2d(96, 2 * bins, 1))

    def forward(self, x: Tensor, code: Tensor | None) -> Tensor:
        h = F.avg_pool2d(x, 4)
        for i, block in enumerate(self.blocks):
            h = block(F.avg_pool2d(h, 2) if i else h, code)
        # Half precision would quantise the tone curve: from here on in single precision.
        grid = F.interpolate(
            self.head(h).float(), size=x.shape[2:], mode="bilinear", align_corners=False
        )
        gain, offset = grid.chunk(2, dim=1)
        image = x[:, :1].float()
        place = image.clamp(0, GRID_RANGE) * ((self.bins - 1) / GRID_RANGE)
        bins = torch.arange(self.bins, device=x.device, dtype=torch.float32)[None, :, None, None]
        near = F.relu(1 - (place - bins).abs())
        return (near * (gain * image + offset)).sum(dim=1, keepdim=True)


class ResidualGenerator(nn.Module):
    """The default: a slice plus a bounded change that starts at zero (science.md §10).

    The change is a bilateral grid's, for tone and shading, plus a light U-Net's, for noise and
    sharpness. Untrained it is the identity, and anatomy need not be drawn anew. There is no
    instance normalisation, which would discard absolute intensity slice by slice. The U-Net's
    blocks of 2 x 2 pixels become channels first: three times faster on a CPU than at full
    resolution.

    Parameters
    ----------
    channels : sequence of int
        Width of each level of the U-Net, from half resolution on; none: no U-Net.
    bins : int
        Intensities of the bilateral grid; 0: no grid.
    around : int
        Neighbouring slices seen on each side.
    n_sites : int
        0 for the forward map.
    embedding : int
        Length of a site's learnt code, which modulates every block; 0: planes that mark the site
        are put beside the slice.
    limit : float
        Largest change of intensity (white matter is 1).
    """

    def __init__(
        self,
        channels: list[int],
        bins: int = 0,
        around: int = 0,
        n_sites: int = 0,
        embedding: int = 16,
        limit: float = 0.5,
    ) -> None:
        super().__init__()
        self.around, self.n_sites, self.limit = around, n_sites, limit
        size = embedding if n_sites else 0
        self.sites = nn.Embedding(n_sites + 1, size) if size else None
        n_in = INPUT_CHANNELS + 2 * around + (0 if self.sites is not None else n_sites)
        self.grid = _ToneGrid(n_in, bins, size) if bins else None
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.head: nn.Module | None = None
        if channels:
            widths = [4 * n_in, *channels]
            self.down.extend(_Block(a, b, size) for a, b in itertools.pairwise(widths))
            self.up.extend(
                _Block(a + b, b, size)
                for a, b in zip(channels[:0:-1], channels[-2::-1], strict=True)
            )
            self.head = _zeros(nn.Conv2d(channels[0], 4, 1))

    @property
    def stride(self) -> int:
        """Slices' sides must be a multiple of this."""
        return max(int(2 ** len(self.down)), 16 if self.grid is not None else 1)

    def forward(self, x: Tensor, site: Tensor | None = None) -> Tensor:
        """Map slices.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 3 + 2 * around, rows, columns): slice, mask, height, neighbours.
        site : torch.Tensor, optional
            (batch,) site numbers, for the backward map.

        Returns
        -------
        torch.Tensor
            float32 (batch, 1, rows, columns), 0 to 2, 0 outside the mask.
        """
        code = self.sites(site) if self.sites is not None and site is not None else None
        seen = x
        if self.n_sites and self.sites is None and site is not None:
            seen = torch.cat([x, site_planes(site, self.n_sites, x)], dim=1)
        image, mask = x[:, :1].float(), x[:, 1:2].float()
        change = torch.zeros_like(image)
        if self.grid is not None:
            change = change + self.grid(seen, code)
        if self.head is not None:
            change = change + self._details(seen, code)
        change = self.limit * torch.tanh(change / self.limit)
        return torch.clamp(image + change, 0, MAX_INTENSITY) * mask

    def _details(self, x: Tensor, code: Tensor | None) -> Tensor:
        """Change of each pixel by the U-Net."""
        skips, h = [], F.pixel_unshuffle(x, 2)
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, code)
            skips.append(h)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = block(torch.cat([h, skip], dim=1), code)
        assert self.head is not None
        return _without_finest(F.pixel_shuffle(self.head(h).float(), 2))


def _without_finest(image: Tensor) -> Tensor:
    """Smooth with (1, 2, 1) / 4 along both axes, which takes away what alternates every pixel.

    Each of a block's four pixels has its own weights in the last layer; a discriminator that
    misses a site's noise would have them draw a chequerboard.
    """
    image = F.avg_pool2d(F.pad(image, (0, 1, 0, 1), mode="replicate"), 2, 1)
    return F.avg_pool2d(F.pad(image, (1, 0, 1, 0), mode="replicate"), 2, 1)


class ResnetGenerator(nn.Module):
    """The article's: the original CycleGAN's residual network (science.md §2).

    Reflection padding, two halvings, residual blocks, two transposed convolutions, instance
    normalisation without weights, and tanh, which draws the whole slice anew. The slice alone is
    seen, moved to -1 to 1; the backward map sees planes that mark the site beside it.

    Parameters
    ----------
    width : int
        Channels of the first layer.
    blocks : int
        Residual blocks.
    n_sites : int
        0 for the forward map.
    """

    around = 0
    stride = 4

    def __init__(self, width: int = 64, blocks: int = 9, n_sites: int = 0) -> None:
        super().__init__()
        self.n_sites = n_sites
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(1 + n_sites, width, 7),
            *_normed(width),
        ]
        for i in (1, 2):
            layers += [nn.Conv2d(i * width, 2 * i * width, 3, 2, 1), *_normed(2 * i * width)]
        layers += [_ResnetBlock(4 * width) for _ in range(blocks)]
        for i in (2, 1):
            layers += [
                nn.ConvTranspose2d(2 * i * width, i * width, 3, 2, 1, output_padding=1),
                *_normed(i * width),
            ]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        normal_weights(self)

    def forward(self, x: Tensor, site: Tensor | None = None) -> Tensor:
        """Map slices; as :meth:`ResidualGenerator.forward`, of which only the slice is seen."""
        middle = MAX_INTENSITY / 2
        seen = x[:, :1] / middle - 1
        if site is not None:
            seen = torch.cat([seen, site_planes(site, self.n_sites, x)], dim=1)
        drawn: Tensor = self.layers(seen).float()
        return middle * (drawn + 1) * x[:, 1:2].float()


class _ResnetBlock(nn.Module):
    """Two convolutions beside a path that skips them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            *_normed(width),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.layers(x)
        return x + changed


Generator = ResidualGenerator | ResnetGenerator
GENERATORS: dict[str, type[ResidualGenerator] | type[ResnetGenerator]] = {
    "residual": ResidualGenerator,
    "resnet": ResnetGenerator,
}


def build_generator(kind: str, options: dict[str, Any]) -> Generator:
    """Build a generator from the name of its kind and its options, as bundles give them."""
    return GENERATORS[kind](**options)


def normal_weights(network: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 0.02), as the original CycleGAN."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _normed(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(width), nn.ReLU()


def _zeros(layer: Layer) -> Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def site_planes(site: Tensor, n_sites: int, x: Tensor) -> Tensor:
    """One plane per site, 1 at the wanted site; none for an unknown site."""
    hot = F.one_hot(site, n_sites + 1)[:, :n_sites].to(x.dtype)
    return hot[:, :, None, None].expand(-1, -1, *x.shape[2:])
