"""One simulated head: a deformed template with an age, a sex and a diagnosis, and its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from bids_harmony.simulation.atlas import (
    ORIGIN,
    PULL_MM,
    SHAPE,
    Atlas,
    bounding_box,
    load_atlas,
    sample,
    upsample,
)
from bids_harmony.simulation.layers import Tissue, label_voxels

DIAGNOSES = ("control", "schizophrenia")
AGE_RANGE = (18.0, 85.0)
#: Order of the maps in :attr:`Head.fractions`.
BRAIN_TISSUES = ("gm", "wm", "csf")


@dataclass(frozen=True)
class Head:
    """A head on an isotropic RAS+ grid, before any scanner saw it.

    Attributes
    ----------
    labels : numpy.ndarray
        uint8 :class:`Tissue` per voxel.
    fractions : numpy.ndarray
        (3, x, y, z) float32 fractions of grey matter, white matter and CSF in the box ``box``;
        they sum to 1 in brain voxels and are 0 elsewhere.
    box : tuple of slice
        Where in ``labels`` the box lies.
    affine : numpy.ndarray
        4 x 4 voxel-to-mm matrix.
    truth : dict
        ``age``, ``sex``, ``diagnosis``, and volumes in ml: ``brain_ml`` (the brain mask),
        ``gm_ml``, ``wm_ml``, ``csf_ml``, ``ventricle_ml``.
    """

    labels: np.ndarray
    fractions: np.ndarray
    box: tuple[slice, slice, slice]
    affine: np.ndarray
    truth: dict[str, Any]

    @property
    def brain_mask(self) -> np.ndarray:
        """Boolean brain mask on the head's grid."""
        return np.asarray(self.labels == Tissue.BRAIN)

    def tissue(self, name: str) -> np.ndarray:
        """Fraction of ``gm``, ``wm`` or ``csf`` on the head's whole grid."""
        full = np.zeros(self.labels.shape, dtype=np.float32)
        full[self.box] = self.fractions[BRAIN_TISSUES.index(name)]
        return full


@dataclass(frozen=True)
class Traits:
    """What makes one head differ from the template.

    Attributes
    ----------
    scale : tuple of float
        Size along x, y, z relative to the template.
    ventricle_mm : float
        Outward shift of the ventricles' walls.
    cortex : float
        Odds (natural log) by which CSF gains on cortex: 0 is the template's sharpened cortex.
    diagnosis_cortex : float
        The same, added in the places the diagnosis affects.
    skull_mm, scalp_mm : float
        Thickness of the bone and of what covers it.
    """

    scale: tuple[float, float, float]
    ventricle_mm: float
    cortex: float
    diagnosis_cortex: float
    skull_mm: float
    scalp_mm: float


def draw_traits(rng: np.random.Generator, *, age: float, sex: str, diagnosis: str) -> Traits:
    """Draw a head's traits given age, sex and diagnosis.

    Ventricles and cortex follow the shape of lifespan curves: from 25 to 75 years ventricles
    about double, faster late, and grey matter loses about an eighth, steadily. The diagnosis
    widens the ventricles and thins frontal and temporal cortex; it is made up, and larger than
    in patients, so that a few dozen heads show it.
    """
    size = (0.965 if sex == "M" else 0.925) * np.exp(0.02 * rng.standard_normal())
    axes = size * np.exp(0.02 * rng.standard_normal(3))
    years = (age - 25.0) / 50.0
    ill = float(diagnosis == "schizophrenia") * np.exp(0.3 * rng.standard_normal())
    ventricle = -0.3 + 0.5 * years + 0.9 * max(years, 0.0) ** 2 + 0.6 * ill
    return Traits(
        scale=(float(axes[0]), float(axes[1]), float(axes[2])),
        ventricle_mm=float(np.clip(ventricle + 0.3 * rng.standard_normal(), -1.5, 4.0)),
        cortex=float(1.0 + 1.6 * years + 0.2 * rng.standard_normal()),
        diagnosis_cortex=float(1.2 * ill),
        skull_mm=float(6.5 + 0.8 * rng.standard_normal()),
        scalp_mm=float(np.clip(5.5 + 1.0 * rng.standard_normal(), 3.5, 8.0)),
    )


def make_head(
    seed: Any, *, age: float, diagnosis: str = "control", sex: str = "F", spacing: int = 1
) -> Head:
    """Make one head.

    Parameters
    ----------
    seed : int or sequence of int
        The same seed and arguments make the same head.
    age : float
        Years, 18 to 85.
    diagnosis : str
        ``control`` or ``schizophrenia`` (a simulated effect).
    sex : str
        ``F`` or ``M``.
    spacing : int
        Voxel size in mm, 1 or 2; 2 is eight times faster.

    Returns
    -------
    Head

    Raises
    ------
    ValueError
        When the diagnosis, the sex or the spacing is none of these.
    """
    if diagnosis not in DIAGNOSES or sex not in ("F", "M") or spacing not in (1, 2):
        raise ValueError(f"cannot make a head with {diagnosis=}, {sex=}, {spacing=}")
    rng = np.random.default_rng(seed)
    traits = draw_traits(rng, age=age, sex=sex, diagnosis=diagnosis)
    atlas = load_atlas()
    points = _to_atlas(rng, atlas, traits)
    labels = label_voxels(
        atlas,
        points,
        _noise(rng, 3, 2),
        skull_mm=traits.skull_mm,
        scalp_mm=traits.scalp_mm,
        times=2 - spacing,
    )
    box, fractions, ventricle_ml = _brain(atlas, points, labels == Tissue.BRAIN, traits)
    truth = _truth(fractions, ventricle_ml, spacing)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = ORIGIN
    return Head(
        labels=labels,
        fractions=fractions,
        box=box,
        affine=affine,
        truth={"age": age, "sex": sex, "diagnosis": diagnosis, **truth},
    )


def _noise(rng: np.random.Generator, coarse: int, levels: int) -> np.ndarray:
    """Smooth unit-variance noise on the 2 mm lattice.

    Drawn on every ``2**coarse``-th point and again on the next finer ones, ``levels`` in all,
    each with half the amplitude of the one before.
    """
    shape = tuple((n - 1) // 2**coarse + 1 for n in SHAPE)
    total = rng.standard_normal(shape, dtype=np.float32)
    for level in range(1, levels):
        total = ndimage.gaussian_filter(upsample(total), 0.7)
        total += np.float32(0.5**level) * rng.standard_normal(total.shape, dtype=np.float32)
    rest = coarse - levels + 1
    if rest:
        total = ndimage.gaussian_filter(upsample(total), 1.0)
    total /= total.std()
    return upsample(total, max(rest - 1, 0))


def _to_atlas(rng: np.random.Generator, atlas: Atlas, traits: Traits) -> np.ndarray:
    """For each point of the head's 2 mm lattice, the atlas lattice index it is sampled from."""
    points = np.empty((3, *SHAPE), dtype=np.float32)
    scale = np.asarray(traits.scale, dtype=np.float32)
    folds = np.clip(-atlas.brain / 8.0, 0.0, 1.0)  # fine shifts fade out towards the skull
    for k in range(3):
        axis = (ORIGIN[k] + 2.0 * np.arange(SHAPE[k], dtype=np.float32)) / scale[k]
        line = (axis - ORIGIN[k]) / 2.0
        points[k] = line.reshape([-1 if j == k else 1 for j in range(3)])
        points[k] += np.float32(1.2) * _noise(rng, 5, 2)
        points[k] += np.float32(0.8) * folds * _noise(rng, 4, 3)
    reach = bounding_box(atlas.ventricle < 3.0 * PULL_MM)
    near = points[(slice(None), *reach)]  # a view: further away, the ventricles move nothing
    shift = np.stack([sample(part, near) for part in atlas.pull])
    near += np.float32(traits.ventricle_mm / 2.0) * shift
    return points


def _on_points(box: tuple[slice, ...], factor: int) -> tuple[slice, ...]:
    """Smallest box of lattice points whose refinement holds a box of the refined grid."""
    return tuple(slice(s.start // factor, -(-(s.stop - 1) // factor) + 1) for s in box)


def _brain(
    atlas: Atlas, points: np.ndarray, mask: np.ndarray, traits: Traits
) -> tuple[tuple[slice, slice, slice], np.ndarray, float]:
    """Sample the tissues at every brain voxel, with ageing and diagnosis applied."""
    factor = (mask.shape[0] - 1) // (SHAPE[0] - 1)
    times = factor - 1  # 1 mm: the lattice refined once; 2 mm: the lattice itself
    rough = _on_points(bounding_box(mask), factor)
    x, y, z = (slice(s.start * factor, (s.stop - 1) * factor + 1) for s in rough)
    box = (x, y, z)
    inside = mask[box]
    where = np.stack([upsample(part[rough], times)[inside] for part in points])
    near = upsample(sample(atlas.ventricle, points[(slice(None), *rough)]), times)[inside]
    weight = upsample(sample(atlas.diagnosis, points[(slice(None), *rough)]), times)[inside]

    start = ((atlas.tissue_origin - ORIGIN) / 2.0).reshape(3, 1)
    where = (where - start) * 2.0
    parts = [sample(tissue, where) for tissue in atlas.tissues]
    odds = np.exp(np.float32(traits.cortex) + np.float32(traits.diagnosis_cortex) * weight)
    # Sharpened: the template's averaged edges are softer than any one person's.
    parts = [part * part for part in parts]
    parts[2] *= odds
    total = parts[0] + parts[1] + parts[2]
    fractions = np.zeros((3, *inside.shape), dtype=np.float32)
    for k in range(3):
        fractions[k][inside] = parts[k] / total
    spacing = 2.0 / factor
    ventricle = fractions[2][inside][near < 2.0].sum(dtype=np.float64) * spacing**3 / 1000.0
    return box, fractions, float(ventricle)


def _truth(fractions: np.ndarray, ventricle_ml: float, spacing: int) -> dict[str, float]:
    litres = [float(part.sum(dtype=np.float64)) * spacing**3 / 1000.0 for part in fractions]
    names = [f"{name}_ml" for name in BRAIN_TISSUES]
    volumes = {"brain_ml": sum(litres), **dict(zip(names, litres, strict=True))}
    volumes["ventricle_ml"] = ventricle_ml
    return {name: round(value, 3) for name, value in volumes.items()}
