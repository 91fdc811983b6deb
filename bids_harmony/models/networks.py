"""The networks: forward map, backward map, discriminator, slice predictor."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels of a generator's input: slice, mask, height.
INPUT_CHANNELS = 3
#: Largest change of intensity a generator can make (white matter is 1).
MAX_RESIDUAL = 0.6


class _Block(nn.Module):
    """Two 3 x 3 convolutions; the second may be modulated by a site (FiLM)."""

    def __init__(self, n_in: int, n_out: int, embedding: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * n_out) if embedding else None
        if self.film is not None:
            for parameter in self.film.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, site: Tensor | None = None) -> Tensor:
        x = F.leaky_relu(self.conv1(x), 0.1)
        x = self.conv2(x)
        if self.film is not None and site is not None:
            gain, offset = self.film(site)[:, :, None, None].chunk(2, dim=1)
            x = x * (1 + gain) + offset
        return F.leaky_relu(x, 0.1)


class Generator(nn.Module):
    """Residual U-Net that changes the intensities of a slice inside its mask.

    The output is the slice plus a bounded change that starts at zero, so that an untrained map
    is the identity and anatomy need not be drawn anew; there is no instance normalisation,
    which would discard absolute intensity slice by slice (science.md §2, §10). Blocks of 2 x 2
    pixels become channels first: three times faster on a CPU than full resolution. With
    ``n_sites`` it is the backward map: each block is modulated by a learnt code of the site.

    Parameters
    ----------
    channels : sequence of int
        Width of each level, from half resolution on.
    n_sites : int
        0 for the forward map, which takes no site and so works on sites never seen.
    embedding : int
        Length of a site's code.
    """

    def __init__(self, channels: list[int], n_sites: int = 0, embedding: int = 16) -> None:
        super().__init__()
        size = embedding if n_sites else 0
        self.sites = nn.Embedding(n_sites, embedding) if n_sites else None
        widths = [4 * INPUT_CHANNELS, *channels]
        self.down = nn.ModuleList(_Block(a, b, size) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(
            _Block(a + b, b, size) for a, b in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(channels[0], 4, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    @property
    def stride(self) -> int:
        """Slices' sides must be a multiple of this."""
        return int(2 ** len(self.down))

    def forward(self, x: Tensor, site: Tensor | None = None) -> Tensor:
        """Map slices.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 3, rows, columns), see :data:`INPUT_CHANNELS`.
        site : torch.Tensor, optional
            (batch,) site numbers, for the backward map.

        Returns
        -------
        torch.Tensor
            (batch, 1, rows, columns), 0 outside the mask.
        """
        code = self.sites(site) if self.sites is not None and site is not None else None
        skips, h = [], F.pixel_unshuffle(x, 2)
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, code)
            skips.append(h)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = block(torch.cat([h, skip], dim=1), code)
        change = F.pixel_shuffle(self.head(h).float(), 2)
        change = MAX_RESIDUAL * torch.tanh(change / MAX_RESIDUAL)
        image, mask = x[:, :1].float(), x[:, 1:2].float()
        return torch.relu(image + change) * mask


class Discriminator(nn.Module):
    """Patch discriminator with one output for the reference and one per source site.

    Parameters
    ----------
    width : int
        Channels of the first layer.
    n_sites : int
        Number of outputs.
    """

    def __init__(self, width: int, n_sites: int) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.layers = nn.ModuleList(
            [
                norm(nn.Conv2d(3, width, 4, 2, 1)),
                norm(nn.Conv2d(width, 2 * width, 4, 2, 1)),
                norm(nn.Conv2d(2 * width, 4 * width, 3, 1, 1)),
            ]
        )
        self.head = nn.Conv2d(4 * width, n_sites, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Score patches of (batch, 3, rows, columns) inputs; (batch, sites, r, c)."""
        h = x
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
        scores: Tensor = self.head(h)
        return scores


class _Residual(nn.Module):
    """Basic residual block followed by max-pooling."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.skip = nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        return F.max_pool2d(F.relu(h + self.skip(x)), 2)


class SliceNetwork(nn.Module):
    """The paper's predictor: a 10-layer residual network on single slices (preprint §4).

    Convolution and max-pooling blocks, flattened into a fully connected layer of ``hidden``
    units (ReLU, dropout 0.5) and one output. The slice's height is a second input channel.

    Parameters
    ----------
    channels : sequence of int
        Width of the stem and of the four residual blocks.
    shape : sequence of int
        Rows and columns of a slice.
    hidden : int
        Units of the fully connected layer.
    mean, scale : float
        The output is ``mean + scale * unit``: the targets' distribution.
    """

    def __init__(
        self,
        channels: list[int],
        shape: list[int],
        hidden: int = 512,
        mean: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.mean, self.scale = mean, scale
        self.stem = nn.Sequential(
            nn.Conv2d(2, channels[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.blocks = nn.Sequential(*(_Residual(a, b) for a, b in itertools.pairwise(channels)))
        shrink = 2 ** len(channels)
        features = channels[-1] * (shape[0] // shrink) * (shape[1] // shrink)
        self.dense = nn.Linear(features, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict (batch,) values from (batch, 2, rows, columns) slices and heights."""
        h = self.blocks(self.stem(x)).flatten(1)
        h = F.dropout(F.relu(self.dense(h)), 0.5, self.training)
        value: Tensor = self.head(h)[:, 0]
        return self.mean + self.scale * value
