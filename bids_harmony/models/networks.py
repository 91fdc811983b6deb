"""The slice predictor."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn


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
