"""One simulated head: a deformed template with an age, a sex and a diagnosis, and its truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from bids_harmony.simulation.pathology import KINDS, Blob, draw_atrophy, draw_blob, push_away

DIAGNOSES = ("control", "schizophrenia")
AGE_RANGE = (18.0, 85.0)
#: Order of the maps in :attr:`Head.fractions`.
BRAIN_TISSUES = ("gm", "wm", "csf", "lesion")


@dataclass(frozen=True)
class Head:
    """A head on an isotropic RAS+ grid, before any scanner saw it.

    Attributes
    ----------
    labels : numpy.ndarray
        uint8 :class:`Tissue` per voxel.
    fractions : numpy.ndarray
        (3, x, y, z) float32 fractions of grey matter, white matter and CSF in the box ``box``,
        and a fourth of the lesion where there is one; they sum to 1 in brain voxels and are 0
        elsewhere.
    box : tuple of slice
        Where in ``labels`` the box lies.
    affine : numpy.ndarray
        4 x 4 voxel-to-mm matrix.
    truth : dict
        ``age``, ``sex``, ``diagnosis``; volumes in ml: ``brain_ml`` (the brain mask),
        ``gm_ml``, ``wm_ml``, ``csf_ml``, ``ventricle_ml``; the effects of :class:`Traits`;
        ``pathology`` and ``pathology_ml``, its volume: of the lesion, of the cavity, or of the
        CSF that atrophy left in the place of tissue.
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
        """Fraction of ``gm``, ``wm``, ``csf`` or ``lesion`` on the head's whole grid."""
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
    effects : dict
        What age (since 25 years) and diagnosis put into the two above: ``ventricle_age_mm``,
        ``ventricle_diagnosis_mm``, ``cortex_age_log_odds``, ``cortex_diagnosis_log_odds``.
    """

    scale: tuple[float, float, float]
    ventricle_mm: float
    cortex: float
    diagnosis_cortex: float
    skull_mm: float
    scalp_mm: float
    effects: dict[str, float]


def draw_traits(
    rng: np.random.Generator, *, age: float, sex: str, diagnosis: str, effect: float
) -> Traits:
    """Draw a head's traits given age, sex and diagnosis.

    Ventricles and cortex follow the shape of lifespan curves: from 25 to 75 years ventricles
    about double, faster late, and grey matter loses about an eighth, steadily. The diagnosis
    widens the ventricles and thins frontal and temporal cortex; it is made up, and larger than
    in patients, so that a few dozen heads show it; ``effect`` times as large.
    """
    size = (0.965 if sex == "M" else 0.925) * np.exp(0.02 * rng.standard_normal())
    axes = size * np.exp(0.02 * rng.standard_normal(3))
    years = (age - 25.0) / 50.0
    ill = effect * float(diagnosis == "schizophrenia") * np.exp(0.3 * rng.standard_normal())
    ventricle = -0.3 + 0.5 * years + 0.9 * max(years, 0.0) ** 2 + 0.6 * ill
    return Traits(
        scale=(float(axes[0]), float(axes[1]), float(axes[2])),
        ventricle_mm=float(np.clip(ventricle + 0.3 * rng.standard_normal(), -1.5, 4.0)),
        cortex=float(1.0 + 1.6 * years + 0.2 * rng.standard_normal()),
        diagnosis_cortex=float(1.2 * ill),
        skull_mm=float(6.5 + 0.8 * rng.standard_normal()),
        scalp_mm=float(np.clip(5.5 + 1.0 * rng.standard_normal(), 3.5, 8.0)),
        effects={
            "ventricle_age_mm": round(0.5 * years + 0.9 * max(years, 0.0) ** 2, 4),
            "ventricle_diagnosis_mm": round(float(0.6 * ill), 4),
            "cortex_age_log_odds": round(1.6 * years, 4),
            "cortex_diagnosis_log_odds": round(float(1.2 * ill), 4),
        },
    )


def make_head(
    seed: Any,
    *,
    age: float,
    diagnosis: str = "control",
    sex: str = "F",
    spacing: int = 1,
    pathology: str = "none",
    atlas: Atlas | None = None,
    diagnosis_effect: float = 1.0,
) -> Head:
    """Make one head.

    Parameters
    ----------
    seed : int or sequence of int
        The same seed and arguments make the same head; a pathology is put into the head that
        the seed makes without it.
    age : float
        Years, 18 to 85.
    diagnosis : str
        ``control`` or ``schizophrenia`` (a simulated effect).
    sex : str
        ``F`` or ``M``.
    spacing : int
        Voxel size in mm, 1 or 2; 2 is eight times faster.
    pathology : str
        ``none`` or one of :data:`bids_harmony.simulation.pathology.KINDS`.
    atlas : Atlas, optional
        Anatomy the head is a deformation of; nilearn's template by default.
    diagnosis_effect : float
        Size of what the diagnosis does; 0 is nothing.

    Returns
    -------
    Head

    Raises
    ------
    ValueError
        When the diagnosis, the sex, the spacing or the pathology is none of these.
    """
    if diagnosis not in DIAGNOSES or sex not in ("F", "M") or spacing not in (1, 2):
        raise ValueError(f"cannot make a head with {diagnosis=}, {sex=}, {spacing=}")
    if pathology not in ("none", *KINDS):
        raise ValueError(f"cannot make a head with {pathology=}")
    rng = np.random.default_rng(seed)
    traits = draw_traits(rng, age=age, sex=sex, diagnosis=diagnosis, effect=diagnosis_effect)
    atlas = atlas or load_atlas()
    rigid = _deform(rng, atlas, traits)
    noise = _noise(rng, 3, 2)
    points = _grow_ventricles(rigid, atlas, traits.ventricle_mm)
    blob, wasted = None, None
    if pathology == "atrophy":
        healthy = points
        wider, odds = draw_atrophy(rng)
        points = _grow_ventricles(rigid, atlas, traits.ventricle_mm + wider)
        wasted = replace(traits, cortex=traits.cortex + odds)
    elif pathology != "none":
        blob = draw_blob(pathology, rng, atlas, points, _noise(rng, 3, 2))
        if pathology == "lesion":
            push_away(points, blob, atlas)
    labels = label_voxels(
        atlas,
        points,
        noise,
        skull_mm=traits.skull_mm,
        scalp_mm=traits.scalp_mm,
        times=2 - spacing,
    )
    mask = labels == Tissue.BRAIN
    box, fractions, volumes = _brain(atlas, points, mask, wasted or traits, blob)
    if wasted:
        before = _brain(atlas, healthy, mask, traits)[2]
        volumes["pathology_ml"] = volumes["csf_ml"] - before["csf_ml"]
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = ORIGIN
    volumes = {name: round(value, 3) for name, value in volumes.items()}
    affected_ml = volumes.pop("pathology_ml")
    truth = {"age": age, "sex": sex, "diagnosis": diagnosis, **volumes, **traits.effects}
    truth |= {"pathology": pathology, "pathology_ml": affected_ml}
    return Head(labels=labels, fractions=fractions, box=box, affine=affine, truth=truth)


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


def _deform(rng: np.random.Generator, atlas: Atlas, traits: Traits) -> np.ndarray:
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
    return points


def _grow_ventricles(points: np.ndarray, atlas: Atlas, by_mm: float) -> np.ndarray:
    """Sample from nearer the ventricles' middle, so that their walls move outwards."""
    points = points.copy()
    reach = bounding_box(atlas.ventricle < 3.0 * PULL_MM)
    near = points[(slice(None), *reach)]  # a view: further away, the ventricles move nothing
    shift = np.stack([sample(part, near) for part in atlas.pull])
    near += np.float32(by_mm / 2.0) * shift
    return points


def _on_points(box: tuple[slice, ...], factor: int) -> tuple[slice, ...]:
    """Smallest box of lattice points whose refinement holds a box of the refined grid."""
    return tuple(slice(s.start // factor, -(-(s.stop - 1) // factor) + 1) for s in box)


def _brain(
    atlas: Atlas, points: np.ndarray, mask: np.ndarray, traits: Traits, blob: Blob | None = None
) -> tuple[tuple[slice, slice, slice], np.ndarray, dict[str, float]]:
    """Sample the tissues at every brain voxel, with ageing, diagnosis and blob applied.

    Returns
    -------
    box : tuple of slice
        Where in the mask the fractions lie.
    fractions : numpy.ndarray
        As in :class:`Head`.
    volumes : dict
        Volumes in ml, ``pathology_ml`` that of the blob.
    """
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
    parts = [part / total for part in parts]
    fluid = parts[2]
    affected = np.zeros(1, dtype=np.float32)
    if blob:
        affected = blob.share(upsample(blob.depth[rough], times)[inside])
        parts = [part * (1.0 - affected) for part in parts]
        fluid = parts[2].copy()
        if blob.hollow:
            parts[2] += affected
        else:
            parts.append(affected)
    fractions = np.zeros((len(parts), *inside.shape), dtype=np.float32)
    for part, full in zip(parts, fractions, strict=True):
        full[inside] = part
    amounts = {
        **dict(zip(BRAIN_TISSUES[:3], fractions[:3], strict=True)),
        "ventricle": fluid[near < 2.0],
        "pathology": affected,
    }
    voxel_ml = (2.0 / factor) ** 3 / 1000.0
    volumes = {f"{k}_ml": float(v.sum(dtype=np.float64)) * voxel_ml for k, v in amounts.items()}
    return box, fractions, {"brain_ml": float(inside.sum()) * voxel_ml, **volumes}
