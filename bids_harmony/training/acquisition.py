"""Made-up acquisitions: how a reference scan might have looked on some other scanner.

The original is known, so whatever is mapped back can be compared with it (:func:`known_truth`).
At ``strength`` 1 they differ from the reference as much as real sites do: at three of four, the
descriptors' middle quantiles lie .07 to .085 below the reference's at equal age, here they differ
by .09 (root mean square). How alike neighbouring voxels are differs as much, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from bids_harmony.anat.brain import dice
from bids_harmony.anat.intensity import class_means
from bids_harmony.models.mapnetwork import MapNetwork, SiteMap
from bids_harmony.models.slices import uncrop
from bids_harmony.qc.guard import TISSUES, measure, tissue_limits, tissue_ml
from bids_harmony.sites.code import Appearance, SiteCode, describe, site_code, vector
from bids_harmony.sites.statistics import drawn_persons
from bids_harmony.training.data import TrainingSet

#: Intensities between which the logarithm of the intensity mapping's slope is drawn.
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
TONE_SD, DEEP_GREY_SD, BIAS_SD = 0.5, 0.08, 0.04
BLUR, SHARPEN, NOISE, COARSE = 0.4, 0.5, 0.02, 1.25
#: Kinds of change, and the attributes of :class:`Acquisition` that make them.
KINDS = {
    "all": ("tone", "deep_grey", "bias", "blur", "sharpen", "noise", "rim"),
    "all but blur": ("tone", "deep_grey", "bias", "noise", "rim"),
    "intensity mapping": ("tone",),
    "deep grey": ("deep_grey",),
}
#: Scans that a site's code is estimated from for known truth, all of other persons.
GROUP = 8
N_BOOTSTRAP = 1000
FIGURES = (
    "distance_raw", "distance_harmonized", "dice_raw", "dice_harmonized",
    "ventricle_raw", "ventricle_harmonized",
)  # fmt: skip


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
        off, as by a mask that hugs the cortex; above 0, CSF so bright stays in the sulci.
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
        if uniform(0, 1) < 0.5:  # anisotropic voxels
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
        return replace(Acquisition(), **{kind: getattr(self, kind) for kind in kinds})


def apply(
    acquisition: Acquisition,
    volume: Tensor,
    generator: torch.Generator,
    grey: Tensor | None = None,
) -> Tensor:
    """Acquire volumes anew, and bring them back to the scaling that preprocessing gives.

    Parameters
    ----------
    acquisition : Acquisition
        The same for all.
    volume : torch.Tensor
        (n, 1, x, y, z) scaled volumes: CSF 0, grey matter .55, white matter 1, background
        exactly 0.
    generator : torch.Generator
        Draws each its own noise.
    grey : torch.Tensor, optional
        :func:`bids_harmony.anat.template.deep_grey` on their grid, (1, 1, x, y, z); needed where
        ``deep_grey`` is not 0.

    Returns
    -------
    torch.Tensor
        Of the same shape and scaling; background exactly 0.

    Raises
    ------
    ValueError
        When deep grey matter is to change and ``grey`` is missing.
    """
    a, mask = acquisition, volume > 0
    wanted = _tissue_means(volume, volume, mask)
    v = _curve(volume, a.tone)
    if a.deep_grey:
        if grey is None:
            raise ValueError("Deep grey matter is to change, and its map is missing.")
        # Neither CSF nor white matter.
        above, below = ((volume - 0.2) / 0.3).clamp(0, 1), ((1.1 - volume) / 0.15).clamp(0, 1)
        v = v + a.deep_grey * grey * above * below
    v = v * _field(a.bias, volume.shape[2:]).to(v)
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
    v = _rescaled(v, _tissue_means(v, volume, mask), wanted)
    return torch.where(mask, v.clamp(1e-3, TOP), torch.zeros_like(v))


def _curve(volume: Tensor, tone: tuple[float, ...]) -> Tensor:
    """Intensity mapping with the given logarithms of slopes; 0 stays 0 and 1 stays 1."""
    x = np.linspace(0, TOP, TABLE)
    slopes = np.exp(np.interp(x, np.linspace(0, TOP, len(tone)), tone))
    y = np.concatenate([[0.0], np.cumsum((slopes[1:] + slopes[:-1]) / 2)]) * (x[1] - x[0])
    table = torch.from_numpy(y / np.interp(1.0, x, y)).to(volume)
    place = (volume / TOP).clamp(0, 1) * (TABLE - 1)
    below = place.long().clamp(max=TABLE - 2)
    return torch.lerp(table[below], table[below + 1], place - below)


def _field(bias: tuple[float, ...], space: Sequence[int]) -> Tensor:
    """Product of cosines along each axis, as a factor."""
    field = torch.tensor(bias, dtype=torch.float32).reshape((FREQUENCIES,) * 3)
    for n in reversed(space):
        angle = torch.pi * torch.outer(torch.arange(FREQUENCIES), (torch.arange(n) + 0.5) / n)
        field = torch.tensordot(torch.cos(angle), field, dims=([0], [-1]))
    return torch.exp(field)


def _dilated(mask: Tensor) -> Tensor:
    """Grow a mask by a voxel along the axes and diagonals."""
    return F.max_pool3d(mask.float(), 3, stride=1, padding=1) > 0


def _closed(mask: Tensor) -> Tensor:
    """Fill clefts that are up to two voxels wide."""
    return ~_dilated(~_dilated(mask))


def _along(axis: int, value: int, others: int) -> list[int]:
    """Give one axis of three a value."""
    return [value if i == axis else others for i in range(3)]


def _blur(volume: Tensor, mask: Tensor, sd: tuple[float, ...]) -> Tensor:
    """Gaussian average of the voxels inside the mask; ``sd`` of each axis in voxels."""
    x = torch.arange(-4, 5, device=volume.device)
    parts = [volume * mask, mask.to(volume)]
    for axis, width in enumerate(sd):
        if width > 0:
            # The Gaussian is so narrow that its integral over each voxel is needed.
            ends = [0.5 * (1 + torch.erf((x + k) / width / math.sqrt(2))) for k in (0.5, -0.5)]
            kernel = (ends[0] - ends[1]).to(volume).reshape(1, 1, *_along(axis, len(x), 1))
            padding = _along(axis, len(x) // 2, 0)
            parts = [F.conv3d(part, kernel, padding=padding) for part in parts]
    return parts[0] / parts[1].clamp(min=1e-3) * mask


def _tissue_means(values: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """Intensities of CSF, grey and white matter of each volume, (n, 3), as scaling finds them.

    CSF is what has the rank, in the deep brain, of what was CSF in the original.
    """
    outside = (~mask).float()
    for axis in range(3):
        size, padding = _along(axis, 2 * CORE + 1, 1), _along(axis, CORE, 0)
        outside = F.max_pool3d(outside, size, stride=1, padding=padding)
    found = []
    for v, o, m, deep in zip(values, original, mask, outside == 0, strict=True):
        rank = int((o[deep] <= 0.005).sum())
        csf = float(v[deep].kthvalue(rank).values) if rank else 0.0
        inside = v[m].cpu().numpy()
        grey, white = 0.55, 1.0
        for _ in range(2):
            tissue = inside[inside > csf + 0.35 * (white - csf)]
            if tissue.size > 1:
                grey, white = (float(c) for c in class_means(tissue, 2))
        found.append([csf, max(grey, csf + 0.05), max(white, csf + 0.1)])
    return torch.tensor(found).to(values)


def _rescaled(values: Tensor, found: Tensor, wanted: Tensor) -> Tensor:
    """Map each volume's tissue means to those wanted, linearly in between."""
    shape = (3, -1, *[1] * (values.dim() - 1))
    f, g, w = found.T.reshape(shape)
    to_f, to_g, to_w = wanted.T.reshape(shape)
    dark = to_f + (torch.minimum(values, g) - f) * (to_g - to_f) / (g - f)
    bright = (torch.minimum(values, w) - g).clamp(min=0) * (to_w - to_g) / (w - g)
    scaled: Tensor = dark + bright + (values - w).clamp(min=0) * to_w / w
    return scaled


def acquire(
    data: TrainingSet,
    scan: int,
    acquisition: Acquisition,
    generator: torch.Generator,
    deep: Tensor,
) -> tuple[np.ndarray, np.ndarray]:
    """Acquire a scan of a training set anew.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    scan : int
        Number of the scan.
    acquisition : Acquisition
        The new one.
    generator : torch.Generator
        Draws the noise.
    deep : torch.Tensor
        (1, 1, slices, rows, columns) where deep grey matter is.

    Returns
    -------
    stack : numpy.ndarray
        (slices, rows, columns) intensities; background 0.
    descriptors : numpy.ndarray
        Of the new scan.
    """
    x = torch.from_numpy(data.stack(scan)[0])[None, None]
    stack = apply(acquisition, x, generator, deep)[0, 0].numpy()
    whole = uncrop(stack, data.box, data.shape)
    return stack, vector(describe(whole, data.brain_mask(scan), data.zoom_mm))


# --- Known truth -------------------------------------------------------------------------------


def known_truth(
    data: TrainingSet,
    chosen: np.ndarray,
    appearance: Appearance,
    networks: Mapping[str, MapNetwork | None],
    deep_grey: np.ndarray,
    *,
    kinds: Sequence[str] = ("all",),
    sites: int = 10,
    per_site: int = 4,
    strength: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Harmonize reference scans under made-up acquisitions, and compare with the originals.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    chosen : numpy.ndarray
        Numbers of scans of the reference, which no network was fitted to.
    appearance : Appearance
        Of the reference.
    networks : mapping of str to MapNetwork or None
        The maps under test: what follows the intensity mapping.
    deep_grey : numpy.ndarray
        Where deep grey matter is, on the template grid.
    kinds : sequence of str
        Of :data:`KINDS`: the same acquisitions, with all of their effects or with some alone.
    sites : int
        Acquisitions.
    per_site : int
        Scans that are harmonized at each, by maps calibrated on :data:`GROUP` other persons'.
    strength : float
        Of the acquisitions; at 1 they differ as real sites do.
    seed : int
        Random seed.

    Returns
    -------
    pandas.DataFrame
        One row per scan and map: ``map``, ``kind``, ``site``, ``person``; mean absolute
        ``distance_raw`` and ``distance_harmonized`` to the original inside the mask;
        ``dice_raw`` and ``dice_harmonized``, the least of CSF, grey and white matter, and
        ``ventricle_raw`` and ``ventricle_harmonized``, volume relative to the original's, where
        tissues are told apart by each volume's own tissue means; and what
        :func:`bids_harmony.qc.guard.measure` finds between original and harmonized.

    Raises
    ------
    ValueError
        When there are too few persons.
    """
    rng, rows = np.random.default_rng(seed), []
    scan_of = {str(data.persons[scan]): int(scan) for scan in chosen}
    if len(scan_of) < GROUP + per_site:
        raise ValueError(f"Known truth takes {GROUP + per_site} persons, not {len(scan_of)}.")
    deep = torch.from_numpy(deep_grey)[None, None]
    for site in range(sites):
        generator = torch.Generator().manual_seed(seed * 1000 + site)
        acquisition = Acquisition.draw(generator, strength)
        persons = rng.choice(sorted(scan_of), GROUP + per_site, replace=False).tolist()
        scans = [scan_of[person] for person in persons]
        originals = [data.volume(scan)[0] for scan in scans]
        for kind in kinds:
            only = acquisition.only(*KINDS[kind])
            if only == Acquisition():
                continue
            acquired = [
                apply(only, torch.from_numpy(v)[None, None], generator, deep)[0, 0].numpy()
                for v in originals
            ]
            code = _code_of(data, scans[:GROUP], originals, acquired, appearance)
            for name, network in networks.items():
                site_map = SiteMap.of(code, appearance, network, data.box)
                for k in range(GROUP, len(scans)):
                    found = _compare(originals[k], acquired[k], site_map(acquired[k]), data.affine)
                    row = {"map": name, "kind": kind, "site": site, "person": persons[k]}
                    rows.append(row | found)
    return pd.DataFrame(rows)


def _code_of(
    data: TrainingSet,
    scans: Sequence[int],
    originals: Sequence[np.ndarray],
    acquired: Sequence[np.ndarray],
    appearance: Appearance,
) -> SiteCode:
    """Calibrate on scans that were acquired anew, whose ages are known."""
    values = []
    for scan, old, new in zip(scans, originals, acquired, strict=False):
        # What the mask has lost at the surface, the brain mask has lost.
        brain = data.brain_mask(scan) & ~((old > 0) & (new == 0)) | (new > 0)
        values.append(vector(describe(new, brain, data.zoom_mm)))
    return site_code(np.array(values), data.ages[scans], data.persons[scans], appearance)


def _compare(
    original: np.ndarray, raw: np.ndarray, harmonized: np.ndarray, affine: np.ndarray
) -> dict[str, float | None]:
    """Compare a scan before and after with the original, where all have brain."""
    mask = (original > 0) & (raw > 0)
    pairs = [(v, tissue_limits(v, mask, affine)) for v in (original, raw, harmonized)]
    labels = [np.digitize(v, own[:2]) for v, own in pairs]
    ventricles = [tissue_ml(v, mask, affine, own)[TISSUES.index("ventricle")] for v, own in pairs]
    row: dict[str, float | None] = {}
    for i, (kind, volume) in enumerate((("raw", raw), ("harmonized", harmonized)), 1):
        row[f"distance_{kind}"] = float(np.abs(volume - original)[mask].mean(dtype=np.float64))
        row[f"dice_{kind}"] = min(
            dice((labels[0] == k) & mask, (labels[i] == k) & mask) for k in range(3)
        )
        row[f"ventricle_{kind}"] = ventricles[i] / max(ventricles[0], 1.0)
    return row | measure(original, harmonized, mask, affine)


def summarize(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Summarize rows of :func:`known_truth`, with 95 % bootstrap intervals over persons.

    Returns
    -------
    pandas.DataFrame
        For each kind of change and ``figure``: ``value``, ``low``, ``high``, ``n`` scans and
        ``persons``. ``removed`` is the share of the distance that harmonization removed;
        ``ventricle_*`` the mean size of the volume's relative error.
    """
    found = []
    for kind, part in rows.groupby("kind", sort=False):
        values = part[list(FIGURES)].copy()
        for name in FIGURES[-2:]:
            values[name] = (values[name] - 1).abs()
        draws = drawn_persons(part["person"].to_numpy(), N_BOOTSTRAP, np.random.default_rng(seed))
        table = values.to_numpy()
        means = np.vstack([table.mean(axis=0), *(table[draw].mean(axis=0) for draw in draws)])
        means = np.column_stack([means, 1 - means[:, 1] / means[:, 0]])
        low, high = np.percentile(means[1:], (2.5, 97.5), axis=0)
        names = [*FIGURES, "removed"]
        columns = {"kind": kind, "figure": names, "value": means[0], "low": low, "high": high}
        columns |= {"n": len(part), "persons": part["person"].nunique()}
        found.append(pd.DataFrame(columns))
    return pd.concat(found)
