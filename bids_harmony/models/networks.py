"""The predictors: the paper's slice network, and a linear one on maps of grey matter."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def repeatable() -> Iterator[None]:
    """Run torch without gradients and on one thread.

    How work is shared between threads decides in which order sums are taken; a second thread
    would save a quarter of a second per scan, and bit-identical results are promised.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


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
        return F.relu(F.max_pool2d(h + self.skip(x), 2))  # the same, on a quarter of the pixels


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
            nn.MaxPool2d(2),
            nn.ReLU(),
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


class GreyMatterNetwork(nn.Module):
    """A linear layer on a coarse map of grey matter: ridge regression, as in studies of VBM.

    Parameters
    ----------
    shape : sequence of int
        Slices, rows and columns of a whole scan in the bundle's box.
    cell : int
        Voxels along a side of the map's cells.
    mean, scale : float
        The output is ``mean + scale * unit``: the targets' distribution.
    """

    def __init__(self, shape: list[int], cell: int, mean: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.cell, self.mean, self.scale = cell, mean, scale
        points = grey_matter_map(torch.zeros(1, *shape), cell).shape[1]
        self.linear = nn.Linear(points, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict (n,) values from (n, slices, rows, columns) whole scans."""
        value: Tensor = self.linear(grey_matter_map(x, self.cell))[:, 0]
        return self.mean + self.scale * value


def grey_matter_map(x: Tensor, cell: int) -> Tensor:
    """Amount of grey matter around each point of a coarse grid, left and right averaged.

    Age shows alike on both sides, and noise does not.

    Parameters
    ----------
    x : torch.Tensor
        (n, slices, rows, columns) normalized intensities, background 0.
    cell : int
        Voxels along a side of the grid's cells.

    Returns
    -------
    torch.Tensor
        (n, points) of the first half of the rows, between 0 and 1.
    """
    grey = (1 - (x - 0.6).abs() / 0.4).clamp(min=0)[:, None]
    half = 0.5 * (grey + grey.flip(3))[:, :, :, : x.shape[2] // 2]
    cells = F.avg_pool3d(half, cell, ceil_mode=True)
    for dim in (2, 3, 4):  # the kernel [1, 2, 1] / 4 along each axis
        shape = [3 if d == dim else 1 for d in range(5)]
        kernel = torch.tensor([0.25, 0.5, 0.25]).to(cells).reshape(shape)
        cells = F.conv3d(cells, kernel, padding=[int(d == dim) for d in (2, 3, 4)])
    return cells.flatten(1)
