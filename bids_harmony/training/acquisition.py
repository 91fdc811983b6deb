"""Simulated acquisitions: a reference scan as another scanner might have acquired it.

The original is known, so harmonized scans can be compared with it (:func:`known_truth`). At
``strength`` 1, acquisitions differ from the reference as much as real sites do. At three of four
real sites, the middle quantiles of the descriptors are .07 to .085 below those of the reference at
equal age; here they differ by .09 (root mean square). Differences in the correlation of
neighbouring voxels are also of similar size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.integrate import cumulative_trapezoid
from scipy.stats import norm

from bids_harmony.anat.brain import dice
from bids_harmony.anat.intensity import class_means
from bids_harmony.models.networks import MapNetwork, SiteMap, crop, uncrop
from bids_harmony.qc.guard import TISSUES, measure, tissue_limits, tissue_ml
from bids_harmony.sites.code import Appearance, SiteCode, describe, site_code, vector
from bids_harmony.sites.statistics import Scans, with_intervals
from bids_harmony.training.data import TrainingSet

#: Number of knots of the log slope of the intensity mapping.
KNOTS = 9
#: Upper end of the curve: the maximum of scaled intensities.
TOP = 2.0
#: Number of intensities at which the curve is tabulated.
TABLE = 257
#: Distance of the deep brain from the background, in voxels.
CORE = 7
#: Structuring element: a voxel and its 26 neighbours.
BLOCK = np.ones((3, 3, 3), bool)
#: Number of cosines of the bias field along each axis.
FREQUENCIES = 4
#: Standard deviations (or half-ranges) of the effects at strength 1.
CURVE_SD, DEEP_GREY_SD, BIAS_SD = 0.5, 0.08, 0.04
BLUR, SHARPEN, NOISE, COARSE = 0.4, 0.5, 0.02, 1.25
#: Kinds of effects, and the attributes of :class:`Acquisition` that define them.
KINDS = {
    "all": ("curve", "deep_grey", "bias", "blur", "sharpen", "noise", "rim"),
    "all but blur": ("curve", "deep_grey", "bias", "noise", "rim"),
    "intensity mapping": ("curve",),
}
#: Number of scans used to estimate each simulated site's code, each of a different person.
GROUP = 8
N_BOOTSTRAP = 1000
FIGURES = (
    "distance_raw", "distance_harmonized", "dice_raw", "dice_harmonized",
    "ventricle_raw", "ventricle_harmonized",
)  # fmt: skip


@dataclass(frozen=True)
class Acquisition:
    """Acquisition effects shared by all scans of a site. The default changes nothing.

    Attributes
    ----------
    curve : tuple of float
        Log slope of the intensity mapping at :data:`KNOTS` intensities from 0 to 2.
    deep_grey : float
        Intensity added to deep grey matter.
    bias : tuple of float
        Cosine coefficients of the residual bias field.
    blur : tuple of float
        Standard deviation of the Gaussian blur along each axis, in voxels.
    sharpen : float
        Strength of unsharp masking: the share of the detail removed by a Gaussian of 1 voxel that
        is added.
    noise : float
        Standard deviation of white noise.
    rim : float
        Change of the brain surface. If negative, surface voxels darker than ``-rim`` are removed,
        as by a tight brain mask. If positive, CSF of this intensity fills the sulci.
    """

    curve: tuple[float, ...] = (0.0,) * KNOTS
    deep_grey: float = 0.0
    bias: tuple[float, ...] = (0.0,) * FREQUENCIES**3
    blur: tuple[float, ...] = (0.0, 0.0, 0.0)
    sharpen: float = 0.0
    noise: float = 0.0
    rim: float = 0.0

    @classmethod
    def draw(cls, generator: torch.Generator, strength: float = 1.0) -> Acquisition:
        """Draw a random acquisition."""

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        def normal(n: int) -> np.ndarray:
            return torch.randn(n, generator=generator).double().numpy()

        # Neighbouring slopes are correlated, and low frequencies are strongest.
        curve = np.convolve(normal(KNOTS + 2), [0.4, 0.8, 0.4], mode="valid")
        order = np.indices((FREQUENCIES,) * 3).sum(axis=0).ravel()
        falling = np.where((order > 0) & (order < FREQUENCIES), 1 / np.maximum(order, 1), 0)
        bias = normal(order.size) * falling
        bias *= uniform(0, 2) * BIAS_SD / np.sqrt((bias**2).sum() / 2)
        sharpness = uniform(-1, 1)
        blur = [max(-sharpness, 0.0) * BLUR] * 3
        if uniform(0, 1) < 0.5:  # anisotropic voxels
            blur[int(uniform(0, 3)) % 3] += uniform(0, COARSE)
        return cls(
            curve=tuple(strength * CURVE_SD * curve),
            deep_grey=float(strength * DEEP_GREY_SD * normal(1)[0]),
            bias=tuple(strength * bias),
            blur=tuple(strength * sd for sd in blur),
            sharpen=strength * SHARPEN * max(sharpness, 0.0),
            noise=strength * uniform(0, NOISE),
            rim=strength * uniform(-0.4, 0.1),
        )

    def only(self, *kinds: str) -> Acquisition:
        """Return an acquisition with only the effects of the named attributes."""
        return replace(Acquisition(), **{kind: getattr(self, kind) for kind in kinds})


def apply(
    acquisition: Acquisition, volume: np.ndarray, generator: torch.Generator, grey: np.ndarray
) -> np.ndarray:
    """Apply an acquisition to a volume and rescale it as preprocessing does.

    Parameters
    ----------
    acquisition : Acquisition
        Acquisition to simulate.
    volume : numpy.ndarray
        3-D scaled volume: CSF 0, grey matter .55, white matter 1, background exactly 0.
    generator : torch.Generator
        Random number generator of the noise.
    grey : numpy.ndarray
        Weight of deep grey matter on the same grid, 0 to 1.

    Returns
    -------
    numpy.ndarray
        float32 volume of the same shape and scaling; background exactly 0.
    """
    a, mask = acquisition, volume > 0
    wanted = _tissue_means(volume, volume, mask)
    # Exclude CSF and white matter from the deep grey matter.
    grey = grey * np.clip((volume - 0.2) / 0.3, 0, 1) * np.clip((1.1 - volume) / 0.15, 0, 1)
    v = (_curve(volume, a.curve) + a.deep_grey * grey) * _field(a.bias, volume.shape)
    if a.rim > 0:
        grown = _closed(mask)
        v, mask = np.where(grown & ~mask, a.rim, v), grown
    elif a.rim < 0:
        hugging = mask
        for _ in range(2):
            hugging = hugging & ~(ndimage.binary_dilation(~hugging, BLOCK) & (volume < -a.rim))
        mask = mask & _closed(hugging)
    v = _blur(v * mask, mask, a.blur)
    v = v + a.sharpen * (v - _blur(v, mask, (1.0, 1.0, 1.0))) if a.sharpen else v
    if a.noise:
        v = v + a.noise * torch.randn(v.shape, generator=generator).numpy()
    csf, grey_matter, white = found = _tissue_means(v, volume, mask)
    # Map the tissue means to those of the original, linearly in between.
    below = wanted[0] - (wanted[1] - wanted[0]) / (grey_matter - csf)
    v = np.interp(v, [csf - 1, *found, white + 1], [below, *wanted, wanted[2] * (1 + 1 / white)])
    return np.where(mask, np.clip(v, 1e-3, TOP), 0).astype(np.float32)


def _curve(volume: np.ndarray, curve: tuple[float, ...]) -> np.ndarray:
    """Apply the intensity mapping with the given log slopes, which keeps 0 and 1 fixed."""
    x = np.linspace(0, TOP, TABLE)
    slopes = np.exp(np.interp(x, np.linspace(0, TOP, len(curve)), curve))
    y = cumulative_trapezoid(slopes, x, initial=0)
    return np.asarray(np.interp(volume, x, y / np.interp(1.0, x, y)))


def _field(bias: tuple[float, ...], shape: Sequence[int]) -> np.ndarray:
    """Return the multiplicative bias field: the exponential of a sum of cosine products."""
    k = np.arange(FREQUENCIES)
    cosines = [np.cos(np.pi * np.outer(k, (np.arange(n) + 0.5) / n)) for n in shape]
    coefficients = np.reshape(bias, (FREQUENCIES,) * 3)
    field = np.einsum("ijk,ix,jy,kz->xyz", coefficients, *cosines, optimize=True)
    return np.asarray(np.exp(field))


def _closed(mask: np.ndarray) -> np.ndarray:
    """Close gaps of up to two voxels."""
    return np.asarray(ndimage.grey_closing(mask.astype(np.uint8), 3) > 0)


def _blur(volume: np.ndarray, mask: np.ndarray, sd: tuple[float, ...]) -> np.ndarray:
    """Blur inside the mask with a Gaussian; ``sd`` of each axis in voxels."""
    parts = [volume * mask, mask.astype(float)]
    for axis, width in enumerate(sd):
        if width > 0:
            # The Gaussian is narrow, so it is integrated over each voxel.
            kernel = np.diff(norm.cdf(np.arange(-4.5, 5), scale=width))
            parts = [ndimage.convolve1d(part, kernel, axis, mode="constant") for part in parts]
    return np.asarray(parts[0] / np.maximum(parts[1], 1e-3) * mask)


def _tissue_means(values: np.ndarray, original: np.ndarray, mask: np.ndarray) -> list[float]:
    """Return mean intensities of CSF, grey and white matter, as scaling estimates them.

    CSF is the intensity in the deep brain at the rank that CSF has in the original.
    """
    deep = ndimage.minimum_filter(mask, 2 * CORE + 1, mode="constant", cval=1)
    rank = int((original[deep] <= 0.005).sum())
    csf = float(np.sort(values[deep])[rank - 1]) if rank else 0.0
    inside, grey, white = values[mask], 0.55, 1.0
    for _ in range(2):
        tissue = inside[inside > csf + 0.35 * (white - csf)]
        if tissue.size > 1:
            grey, white = (float(c) for c in class_means(tissue, 2))
    return [csf, max(grey, csf + 0.05), max(white, csf + 0.1)]


def acquire(
    data: TrainingSet, scan: int, acquisition: Acquisition, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate an acquisition of a scan of the training set.

    Returns
    -------
    stack : numpy.ndarray
        (slices, rows, columns) intensities; background 0.
    descriptors : numpy.ndarray
        (descriptors,) descriptors of the simulated scan.
    """
    stack = apply(acquisition, data.stack(scan)[0], generator, crop(data.deep_grey, data.box))
    whole = uncrop(stack, data.box, data.shape)
    return stack, vector(describe(whole, data.brain_mask(scan), data.zoom_mm))


# --- Known truth -------------------------------------------------------------------------------


def known_truth(
    data: TrainingSet,
    chosen: np.ndarray,
    appearance: Appearance,
    networks: Mapping[str, MapNetwork | None],
    *,
    kinds: Sequence[str] = ("all",),
    sites: int = 10,
    per_site: int = 4,
    strength: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Harmonize simulated acquisitions of reference scans and compare with the originals.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    chosen : numpy.ndarray
        Indices of reference scans that no network was trained on, of at least :data:`GROUP` plus
        ``per_site`` persons.
    appearance : Appearance
        Appearance model of the reference.
    networks : mapping of str to MapNetwork or None
        Maps to test, by name: the network applied after the intensity mapping, if any.
    kinds : sequence of str
        Keys of :data:`KINDS`: the same acquisitions with all or some of their effects.
    sites : int
        Number of acquisitions.
    per_site : int
        Number of scans harmonized at each site, with maps calibrated on :data:`GROUP` other
        persons.
    strength : float
        Strength of the acquisitions; at 1 they differ as much as real sites do.
    seed : int
        Random seed.

    Returns
    -------
    pandas.DataFrame
        One row per scan and map: ``map``, ``kind``, ``site``, ``person``; ``distance_raw`` and
        ``distance_harmonized``, the mean absolute difference from the original inside the mask;
        ``dice_raw`` and ``dice_harmonized``, the lowest Dice of CSF, grey and white matter;
        ``ventricle_raw`` and ``ventricle_harmonized``, the relative error of ventricle volume; and
        the output of :func:`bids_harmony.qc.guard.measure` for original and harmonized scan.
        Tissues are segmented with the tissue means of each volume.
    """
    rng, rows = np.random.default_rng(seed), []
    scan_of = {str(data.persons[scan]): int(scan) for scan in chosen}
    for site in range(sites):
        generator = torch.Generator().manual_seed(seed * 1000 + site)
        acquisition = Acquisition.draw(generator, strength)
        persons = rng.choice(sorted(scan_of), GROUP + per_site, replace=False).tolist()
        scans = [scan_of[person] for person in persons]
        originals = [data.volume(scan)[0] for scan in scans]
        for kind in kinds:
            only = acquisition.only(*KINDS[kind])
            acquired = [apply(only, v, generator, data.deep_grey) for v in originals]
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
    """Estimate a site code from simulated scans of known age."""
    values = []
    for scan, old, new in zip(scans, originals, acquired, strict=False):
        # Voxels removed at the surface by the acquisition are also removed from the brain mask.
        brain = data.brain_mask(scan) & ~((old > 0) & (new == 0)) | (new > 0)
        values.append(vector(describe(new, brain, data.zoom_mm)))
    return site_code(np.array(values), data.ages[scans], data.persons[scans], appearance)


def _compare(
    original: np.ndarray, raw: np.ndarray, harmonized: np.ndarray, affine: np.ndarray
) -> dict[str, float | None]:
    """Compare raw and harmonized scan with the original inside their common mask."""
    mask = (original > 0) & (raw > 0)
    row: dict[str, float | None] = {}
    for kind, volume in (("original", original), ("raw", raw), ("harmonized", harmonized)):
        own = tissue_limits(volume, mask, affine)
        tissues = np.where(mask, np.digitize(volume, own[:2]), -1)
        ml = tissue_ml(volume, mask, affine, own)[TISSUES.index("ventricle")]
        if kind == "original":
            known, known_ml = tissues, max(ml, 1.0)
            continue
        row[f"distance_{kind}"] = float(np.abs(volume - original)[mask].mean(dtype=np.float64))
        row[f"dice_{kind}"] = min(dice(known == k, tissues == k) for k in range(3))
        row[f"ventricle_{kind}"] = abs(ml / known_ml - 1)
    return row | measure(original, harmonized, mask, affine)


def summarize(rows: pd.DataFrame, seed: int = 0) -> list[dict[str, Any]]:
    """Summarize rows of :func:`known_truth`, with 95 % bootstrap intervals over persons.

    Returns
    -------
    list of dict
        For each kind of effect and ``figure``: ``value``, ``low``, ``high``, number of scans ``n``
        and ``persons``. ``removed`` is the share of the distance that harmonization removed.
    """
    found = []
    for kind, part in rows.groupby("kind", sort=False):
        values, persons = part[list(FIGURES)], part["person"].to_numpy()

        def means(draw: Scans, values: pd.DataFrame = values) -> dict[str, float]:
            mean = {str(name): float(v) for name, v in values.iloc[draw].mean().items()}
            return mean | {"removed": 1 - mean["distance_harmonized"] / mean["distance_raw"]}

        ends = with_intervals(means, persons, N_BOOTSTRAP, seed)
        about = {"n": len(part), "persons": part["person"].nunique()}
        found += [
            {"kind": kind, "figure": name, "value": round(ends[name], 4)}
            | {end: round(ends[f"{name}_{end}"], 4) for end in ("low", "high")}
            | about
            for name in (*FIGURES, "removed")
        ]
    return found
