"""Networks: two predictors (slices and grey matter maps) and the harmonization map.

:class:`MapNetwork` corrects what an intensity mapping cannot: sharpness, noise, bias field and
deep grey matter. It is conditioned on the site code. At each position it predicts a gain for each
frequency band of the scan, so that it can sharpen, smooth and shift intensities, but cannot draw
structures.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_harmony.anat.intensity import MAX_SCALED
from bids_harmony.sites.code import LEVELS, N_TEXTURE, Appearance, IntensityMapping, SiteCode

#: First and last (exclusive) row and column of the template grid that the networks use.
Box = tuple[tuple[int, int], tuple[int, int]]
#: Scale of slice heights in mm: heights divided by this are about -1 to 1.
HEIGHT_MM = 70.0
#: Size of the network's site code: every fifth quantile, the texture, and the uncertainty due to
#: the number of persons.
COARSE = 5
CODE_SIZE = len(LEVELS[COARSE // 2 :: COARSE]) + N_TEXTURE + 1
#: Differences are clipped at this many standard deviations between persons.
MOST = 16.0
#: Number of frequency bands: the detail removed by smoothing along each axis, and two coarser
#: isotropic bands.
N_BANDS = 5
#: Smallest intensity in the brain, because 0 marks the background.
LEAST = 1e-3
#: Sides of volumes are padded to multiples of this for the network.
STRIDE = 8
#: Intensity between grey and white matter, subtracted from the network's input; and the scales of
#: its output gains and shifts.
MIDDLE, GAIN, SHIFT = 0.6, 5.0, 0.2


@contextmanager
def repeatable() -> Iterator[None]:
    """Run torch in inference mode and on one thread, for bit-identical results.

    The number of threads determines the order of summation. A second thread would save only a
    quarter of a second per scan.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def slice_heights(n_slices: int, affine: np.ndarray) -> np.ndarray:
    """Return the height of each axial slice (template z, in mm)."""
    return np.asarray(affine[2, 3] + affine[2, 2] * np.arange(n_slices))


def middle_slices(n_slices: int, affine: np.ndarray, slice_mm: tuple[float, float]) -> np.ndarray:
    """Return the indices of slices with a height within ``slice_mm`` (inclusive)."""
    heights = slice_heights(n_slices, affine)
    return np.flatnonzero((heights >= slice_mm[0]) & (heights <= slice_mm[1]))


def crop(volume: np.ndarray, box: Box) -> np.ndarray:
    """Crop a volume to a box and move the slice axis first: (slices, rows, columns).

    Parts of the box outside the grid are filled with 0.
    """
    out = np.zeros((volume.shape[2], *(b - a for a, b in box)), volume.dtype)
    grid, within = _common(box, volume.shape)
    out[:, within[0], within[1]] = np.moveaxis(volume[grid], 2, 0)
    return out


def uncrop(slices: np.ndarray, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """Undo :func:`crop`: insert slices into a volume of ``shape`` that is 0 elsewhere."""
    out = np.zeros(shape, slices.dtype)
    grid, within = _common(box, shape)
    out[grid] = np.moveaxis(slices[:, within[0], within[1]], 0, 2)
    return out


def _common(box: Box, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the overlap of grid and box, in coordinates of the grid and of the box."""
    ends = [(max(a, 0), min(b, n), a) for (a, b), n in zip(box, shape, strict=False)]
    return tuple(slice(a, b) for a, b, _ in ends), tuple(slice(a - o, b - o) for a, b, o in ends)


def predictor_input(stack: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Stack slices with their heights (mm): float32 (slices, 2, rows, columns).

    Channel 0 is the intensity; channel 1 is the height divided by :data:`HEIGHT_MM`.
    """
    height = np.asarray(heights / HEIGHT_MM, np.float32)[:, None, None]
    return np.stack([stack, np.broadcast_to(height, stack.shape)], axis=1).astype(np.float32)


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
        return F.relu(F.max_pool2d(h + self.skip(x), 2))  # pooling first is equivalent, faster


class SliceNetwork(nn.Module):
    """Predictor of the paper: a 10-layer residual network on single slices (preprint §4).

    Convolution and max-pooling blocks are followed by a fully connected layer of ``hidden`` units
    (ReLU, dropout 0.5) and one output. The slice height is a second input channel.

    Parameters
    ----------
    channels : sequence of int
        Number of channels of the stem and of the four residual blocks.
    shape : sequence of int
        Rows and columns of a slice.
    hidden : int
        Number of units of the fully connected layer.
    mean, scale : float
        Mean and standard deviation of the targets. The output is ``mean + scale * unit``.
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
        """Predict (batch,) values from (batch, 2, rows, columns) intensities and heights."""
        h = self.blocks(self.stem(x)).flatten(1)
        h = F.dropout(F.relu(self.dense(h)), 0.5, self.training)
        value: Tensor = self.head(h)[:, 0]
        return self.mean + self.scale * value


class GreyMatterNetwork(nn.Module):
    """Linear model on a coarse grey matter map, as in voxel-based morphometry (VBM).

    Parameters
    ----------
    shape : sequence of int
        Slices, rows and columns of a scan in the bundle's box.
    cell : int
        Side of the map's cells in voxels.
    mean, scale : float
        Mean and standard deviation of the targets. The output is ``mean + scale * unit``.
    """

    def __init__(self, shape: list[int], cell: int, mean: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.cell, self.mean, self.scale = cell, mean, scale
        points = grey_matter_map(torch.zeros(1, *shape), cell).shape[1]
        self.linear = nn.Linear(points, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict (n,) values from (n, slices, rows, columns) scans."""
        value: Tensor = self.linear(grey_matter_map(x, self.cell))[:, 0]
        return self.mean + self.scale * value


def grey_matter_map(x: Tensor, cell: int) -> Tensor:
    """Compute a coarse map of grey matter, averaged over both hemispheres.

    Ageing is similar on both sides, but noise is independent, so the average reduces noise.

    Parameters
    ----------
    x : torch.Tensor
        (n, slices, rows, columns) normalized intensities, background 0.
    cell : int
        Side of the grid's cells in voxels.

    Returns
    -------
    torch.Tensor
        (n, points) amount of grey matter, 0 to 1, on the first half of the rows.
    """
    grey = (1 - (x - 0.6).abs() / 0.4).clamp(min=0)[:, None]
    half = 0.5 * (grey + grey.flip(3))[:, :, :, : x.shape[2] // 2]
    cells = F.avg_pool3d(half, cell, ceil_mode=True)
    for dim in (2, 3, 4):  # the kernel [1, 2, 1] / 4 along each axis
        shape = [3 if d == dim else 1 for d in range(5)]
        kernel = torch.tensor([0.25, 0.5, 0.25]).to(cells).reshape(shape)
        cells = F.conv3d(cells, kernel, padding=[int(d == dim) for d in (2, 3, 4)])
    return cells.flatten(1)


def code_input(shift: np.ndarray, persons: int, appearance: Appearance) -> np.ndarray:
    """Scale a site code for :class:`MapNetwork`.

    Parameters
    ----------
    shift : numpy.ndarray
        (descriptors,) difference from the reference.
    persons : int
        Number of persons the code was estimated from.
    appearance : Appearance
        Appearance model of the reference.

    Returns
    -------
    numpy.ndarray
        float32 (:data:`CODE_SIZE`,), between -4 and 4.
    """
    scaled, n = shift / appearance.person_sd, len(LEVELS)
    values = [*scaled[COARSE // 2 : n : COARSE], *scaled[n:], 8 / persons]
    return np.asarray(np.clip(values, -MOST, MOST) / 4, dtype=np.float32)


class MapNetwork(nn.Module):
    """A small 3-D U-Net that weights frequency bands, conditioned on the site code (FiLM).

    Parameters
    ----------
    channels : sequence of int
        Number of channels at a half, a quarter and an eighth of the resolution.
    embedding : int
        Size of the embedding of the site code.
    """

    def __init__(self, channels: Sequence[int] = (24, 40, 56), embedding: int = 32) -> None:
        super().__init__()
        self.channels = tuple(channels)
        half, quarter, eighth = channels
        self.embed = nn.Sequential(
            nn.Linear(CODE_SIZE, embedding), nn.ReLU(), nn.Linear(embedding, embedding), nn.ReLU()
        )
        self.enter = nn.Conv3d(8 + 1 + 3 + N_BANDS, half, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv3d(a, b, 3, stride=2, padding=1)
            for a, b in ((half, quarter), (quarter, eighth))
        )
        self.up = nn.ModuleList(
            nn.Conv3d(a, b, 1) for a, b in ((eighth, quarter), (quarter, half))
        )
        widths = (half, quarter, quarter, eighth, quarter, half)
        self.blocks = nn.ModuleList(_Block(width, embedding) for width in widths)
        self.local = nn.Conv3d(half, N_BANDS + 1, 3, padding=1)
        self.overall = nn.Linear(embedding, N_BANDS)
        _set_to_zero(self.local, self.overall)  # start from the identity

    def forward(self, x: Tensor, mask: Tensor, code: Tensor) -> Tensor:
        """Map volumes to the reference.

        Parameters
        ----------
        x : torch.Tensor
            (n, 1, slices, rows, columns) volumes after the intensity mapping, background 0.
        mask : torch.Tensor
            Masks of the same shape, 0 or 1.
        code : torch.Tensor
            (n, :data:`CODE_SIZE`) output of :func:`code_input`.

        Returns
        -------
        torch.Tensor
            Volumes of the same shape, 0 outside the mask.
        """
        z = self.embed(code)
        details = bands(x, mask)
        seen = [
            2 * _unshuffle((x - MIDDLE) * mask),
            F.avg_pool3d(mask, 2),
            _places(x),
            10 * F.avg_pool3d(details.abs(), 2),
        ]
        h0 = self.blocks[0](F.relu(self.enter(torch.cat(seen, dim=1))), z)
        h1 = self.blocks[2](self.blocks[1](F.relu(self.down[0](h0)), z), z)
        h2 = self.blocks[3](F.relu(self.down[1](h1)), z)
        h1 = self.blocks[4](h1 + _upsampled(self.up[0](h2)), z)
        h0 = self.blocks[5](h0 + _upsampled(self.up[1](h1)), z)
        local = _upsampled(self.local(h0).float())
        gains = GAIN * (local[:, :-1] + self.overall(z).float()[:, :, None, None, None])
        out: Tensor = (
            x + (gains * details).sum(dim=1, keepdim=True) + SHIFT * local[:, -1:]
        ) * mask
        return out

    def content(self) -> bytes:
        """Return all weights as bytes, for hashing."""
        return b"".join(v.cpu().numpy().tobytes() for v in self.state_dict().values())


class _Block(nn.Module):
    """Residual block with FiLM conditioning on the embedded code."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * width)
        _set_to_zero(self.second, self.film)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale, shift = self.film(z)[:, :, None, None, None].chunk(2, dim=1)
        out: Tensor = x + self.second(F.relu(self.first(x)) * (1 + scale) + shift)
        return out


def _set_to_zero(*layers: nn.Module) -> None:
    for layer in layers:
        for weights in layer.parameters():
            nn.init.zeros_(weights)


def bands(x: Tensor, mask: Tensor) -> Tensor:
    """Split volumes into frequency bands, using only voxels inside the mask.

    Returns
    -------
    torch.Tensor
        (n, :data:`N_BANDS`, slices, rows, columns).
    """
    with torch.no_grad():
        x = x * mask
        found = [x - _ratio(_smooth(x, axis), _smooth(mask, axis), mask) for axis in (2, 3, 4)]
        sums, weights, finer = x, mask, None
        for times in (1, 2, 4):
            for _ in range(times):
                for axis in (2, 3, 4):
                    sums, weights = _smooth(sums, axis), _smooth(weights, axis)
            coarser = _ratio(sums, weights, mask)
            if finer is not None:
                found.append(finer - coarser)
            finer = coarser
        return torch.cat(found, dim=1)


def _ratio(sums: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    return sums / weights.clamp(min=1e-3) * mask


def _smooth(x: Tensor, axis: int) -> Tensor:
    """Convolve with [1, 2, 1] / 4 along an axis, with zero padding."""
    n, out = x.shape[axis], 0.5 * x
    out.narrow(axis, 1, n - 1).add_(x.narrow(axis, 0, n - 1), alpha=0.25)
    out.narrow(axis, 0, n - 1).add_(x.narrow(axis, 1, n - 1), alpha=0.25)
    return out


def _unshuffle(x: Tensor) -> Tensor:
    """Move the 2 x 2 x 2 voxels of each cell to channels: (n, 8, ...) at half resolution."""
    n, _, a, b, c = x.shape
    cells = x.reshape(n, a // 2, 2, b // 2, 2, c // 2, 2)
    return cells.permute(0, 2, 4, 6, 1, 3, 5).reshape(n, 8, a // 2, b // 2, c // 2)


def _places(x: Tensor) -> Tensor:
    """Return coordinates from -1 to 1 at half resolution, (n, 3, ...)."""
    axes = [torch.linspace(-1, 1, size // 2).to(x) for size in x.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].expand(len(x), -1, -1, -1, -1)


def _upsampled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)


def apply_network(
    network: MapNetwork, volume: np.ndarray, code: np.ndarray, box: Box
) -> np.ndarray:
    """Apply the map network to a volume after the intensity mapping.

    Parameters
    ----------
    network : MapNetwork
        Network in evaluation mode.
    volume : numpy.ndarray
        3-D volume on the template grid; background 0.
    code : numpy.ndarray
        Output of :func:`code_input`.
    box : tuple
        Rows and columns that the network uses; the volume is unchanged elsewhere.

    Returns
    -------
    numpy.ndarray
        float32 volume of the same shape; background 0, brain above 0.
    """
    stack = crop(volume, box).astype(np.float32)
    device = next(network.parameters()).device
    x = torch.from_numpy(padded(stack))[None, None].to(device)
    with repeatable():
        out = network(x, (x > 0).float(), torch.from_numpy(code)[None].to(device))
    inner = tuple(slice(size) for size in stack.shape)
    brain = np.where(stack > 0, np.clip(out[0, 0].cpu().numpy()[inner], LEAST, MAX_SCALED), 0)
    mapped = uncrop(brain, box, volume.shape)
    inside = uncrop(np.ones(stack.shape, bool), box, volume.shape)
    return np.where(inside, mapped, volume).astype(np.float32)


def padded(stack: np.ndarray) -> np.ndarray:
    """Pad a (slices, rows, columns) array with zeros at the end to multiples of the stride."""
    return np.pad(stack, [(0, -size % STRIDE) for size in stack.shape])


@dataclass(frozen=True, eq=False)
class SiteMap:
    """Harmonization map of a site: its intensity mapping, then the network.

    Attributes
    ----------
    curve : IntensityMapping
        Intensity mapping of the site.
    code : numpy.ndarray
        Output of :func:`code_input`.
    network : MapNetwork or None
        Network applied after the intensity mapping; None for the intensity mapping alone.
    box : tuple
        Rows and columns that the network uses.
    """

    curve: IntensityMapping
    code: np.ndarray
    network: MapNetwork | None
    box: Box

    @classmethod
    def of(
        cls, code: SiteCode, appearance: Appearance, network: MapNetwork | None, box: Box
    ) -> SiteMap:
        """Create the map of a site from its code."""
        condition = code_input(code.shift, code.n, appearance)
        return cls(IntensityMapping.of(code, appearance), condition, network, box)

    def digest(self) -> str:
        """Return the SHA-256 of everything that the mapped scans depend on."""
        parts = [self.curve.x.tobytes(), self.curve.y.tobytes()]
        if self.network is not None:
            parts += [self.code.tobytes(), self.network.content()]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def __call__(self, volume: np.ndarray) -> np.ndarray:
        """Map a volume on the template grid; returns float32, with background 0 unchanged."""
        mapped = self.curve(volume)
        if self.network is None:
            return mapped
        return apply_network(self.network, mapped, self.code, self.box)


def predict_slices(
    ensembles: Sequence[Sequence[nn.Module]],
    volume: np.ndarray,
    affine: np.ndarray,
    box: Box,
    slice_mm: tuple[float, float],
    device: str = "cpu",
    step: int = 1,
) -> np.ndarray:
    """Predict a value for each slice of a volume.

    The median over slices is the mean prediction of all ensembles. Deviations from the median are
    those of the slice networks.

    Parameters
    ----------
    ensembles : sequence of sequence of torch.nn.Module
        Slice networks, and networks on whole scans if there are any. Values are averaged within an
        ensemble and reduced to their median over slices; the medians are averaged over ensembles.
    volume : numpy.ndarray
        3-D preprocessed volume on the template grid.
    affine : numpy.ndarray
        4 x 4 affine of that grid.
    box : tuple
        Rows and columns that the networks use, from the bundle.
    slice_mm : tuple of float
        Range of slice heights in mm, from the contract.
    device : str
        PyTorch device.
    step : int
        Step between slices; 1 uses all.

    Returns
    -------
    numpy.ndarray
        Predicted values or logits of every ``step``-th slice of :func:`middle_slices`. Their
        median is the prediction for the scan.
    """
    chosen = middle_slices(volume.shape[2], affine, slice_mm)[::step]
    heights = slice_heights(volume.shape[2], affine)[chosen]
    whole = crop(volume, box).astype(np.float32)
    slices, medians = np.zeros(len(chosen)), []
    with repeatable():
        for networks in ensembles:
            on_volumes = isinstance(networks[0], GreyMatterNetwork)
            inputs = whole[None] if on_volumes else predictor_input(whole[chosen], heights)
            x = torch.from_numpy(inputs).to(device)
            values = np.mean([network(x).double().cpu().numpy() for network in networks], axis=0)
            medians.append(float(np.median(values)))
            slices = slices if on_volumes else values
    return np.asarray(slices + np.mean(medians) - np.median(slices))


def predict_value(
    ensembles: Sequence[Sequence[nn.Module]],
    volume: np.ndarray,
    affine: np.ndarray,
    box: Box,
    slice_mm: tuple[float, float],
    device: str = "cpu",
    step: int = 1,
) -> float:
    """Predict one value from a volume: the median of :func:`predict_slices`."""
    values = predict_slices(ensembles, volume, affine, box, slice_mm, device, step)
    return float(np.median(values))
