"""Simulate heads, and the effect of a diagnosis on real brains.

An average head is deformed into individual ones, with age and diagnosis. The average brain is the
template shipped with nilearn (MNI ICBM152 2009a symmetric: T1w, grey and white matter maps, brain
mask). Skull, scalp, face and neck are modelled with distance maps and ellipsoids.

No public schizophrenia scans are available for training, so the binary network is trained on a
simulated effect (:func:`apply_effect`) instead, and its outputs say so. The regions are those
reported in the literature (preprint, discussion); the effect size is chosen, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
import torch
from nibabel.affines import from_matvec
from numpy.random import Generator
from scipy import ndimage

Triple = tuple[float, float, float]

#: Voxels added to nilearn's 1 mm grid, in front and below, to make room for nose and neck.
MARGIN = ((0, 0), (0, 24), (78, 0))
#: First voxel (mm, RAS+) of every head's grid, and its shape at 1 mm and 2 mm. The 2 mm grid has
#: every second voxel of the 1 mm grid.
ORIGIN = np.array([-98.0, -134.0, -150.0], dtype=np.float32)
SHAPES = {1: (197, 257, 267), 2: (99, 129, 134)}
#: Shape of the 8 mm grid, with the same corners, on which random fields are drawn.
DRAWN_SHAPE = (25, 33, 34)
DIAGNOSES = ("control", "schizophrenia")
AGE_RANGE = (18.0, 85.0)
#: Tissues in the rows of :attr:`Head.fractions`.
BRAIN_TISSUES = ("gm", "wm", "csf", "lesion")

#: T1w intensities of the template for pure CSF, and for tissue without CSF.
T1_CSF, T1_TISSUE = 0.28, 0.62
#: CSF deeper below the brain surface than this (mm) is ventricle.
DEEP_MM = 22.0
#: Gaussian width (mm) of the tissue displacement around growing ventricles.
PULL_MM = 14.0
#: Thickness (mm) of the CSF around the brain, the skull, the scalp and the skin.
CSF_MM, SKULL_MM, SCALP_MM, SKIN_MM = 1.8, 6.5, 5.5, 2.4
#: Range of a lesion's radius, and width of its soft edge (mm).
LESION_MM, LESION_EDGE_MM = (15.0, 22.5), 5.0


#: Tissue labels of a head; ``BRAIN`` voxels are mixtures (:attr:`Head.fractions`).
Tissue = IntEnum("Tissue", "AIR BRAIN CSF BONE MARROW FAT MUSCLE SKIN CORD", start=0)
#: Ellipsoids (centre and radii in mm, mirrored) that add face, jaw, nose, ears and neck.
FACE: tuple[tuple[Triple, Triple], ...] = (
    ((0, 30, -62), (64, 66, 58)),
    ((0, 44, -98), (48, 50, 42)),
    ((0, 96, -62), (14, 18, 20)),
    ((78, -24, -42), (6, 16, 28)),
    ((0, -32, -160), (64, 70, 110)),
)
#: Ellipsoids (centre and radii in mm, mirrored) of nose, sinuses, mouth, throat, orbits and eyes.
CAVITIES: tuple[tuple[Tissue, Triple, Triple], ...] = (
    (Tissue.AIR, (0, 66, -54), (9, 30, 18)),
    (Tissue.AIR, (25, 58, -64), (11, 13, 13)),
    (Tissue.AIR, (0, 28, -56), (11, 11, 9)),
    (Tissue.AIR, (0, 56, -92), (20, 24, 3)),
    (Tissue.AIR, (0, 14, -104), (9, 7, 44)),
    (Tissue.FAT, (32, 62, -36), (21.5, 21.5, 21.5)),
    (Tissue.CSF, (32, 62, -36), (12.5, 12.5, 12.5)),
)
#: Radii (mm) of the layers of the spine, from outside to inside.
SPINE = {Tissue.MARROW: 16.0, Tissue.BONE: 11.0, Tissue.CSF: 9.0, Tissue.CORD: 5.5}

#: Regions of the diagnosis effect: centres (MNI mm, left hemisphere; mirrored) and Gaussian widths
#: (mm).
VENTRICLE = ((-14.0, -8.0, 15.0), (9.0, 26.0, 12.0))
CORTEX = (((-32.0, 38.0, 16.0), (24.0, 26.0, 28.0)), ((-54.0, -8.0, -14.0), (20.0, 30.0, 18.0)))
#: Relative widening of the ventricles, and cortical thinning in mm, at strength 1.
WIDENING, THINNING_MM = 0.45, 1.2
#: Random displacement (individual shape): standard deviation and width of the smoothing, in mm.
JITTER_MM, JITTER_SMOOTH_MM = 0.6, 14.0


@dataclass(frozen=True)
class Head:
    """Tissues of a simulated head on an isotropic RAS+ grid.

    Attributes
    ----------
    labels : numpy.ndarray
        (x, y, z) uint8 :class:`Tissue` labels.
    fractions : numpy.ndarray
        (4, n) float32 fractions of grey matter, white matter, CSF and lesion (0 without one) in
        the n brain voxels, in the order of ``labels``; they sum to 1 per voxel.
    affine : numpy.ndarray
        4 x 4 voxel-to-mm matrix.
    truth : dict
        Volumes in ml (``brain_ml``, ``gm_ml``, ``wm_ml``, ``csf_ml``, ``ventricle_ml``,
        ``lesion_ml``), and effects of age (relative to 25 years) and diagnosis: outward shift of
        the ventricle walls (``ventricle_age_mm``, ``ventricle_diagnosis_mm``) and change of the
        log odds of CSF against tissue (``cortex_age_log_odds``, ``cortex_diagnosis_log_odds``).
    """

    labels: np.ndarray
    fractions: np.ndarray
    affine: np.ndarray
    truth: dict[str, float]

    @property
    def brain_mask(self) -> np.ndarray:
        """Boolean brain mask on the head's grid."""
        return np.asarray(self.labels == Tissue.BRAIN)


@dataclass(frozen=True)
class Template:
    """Average head on the 1 mm or 2 mm grids that begin at :data:`ORIGIN`.

    Attributes
    ----------
    labels : numpy.ndarray
        (x, y, z) uint8 :class:`Tissue` labels at 1 mm.
    fractions : numpy.ndarray
        (3, x, y, z) uint8 fractions (255 is 1) of grey matter, white matter and CSF at 1 mm; pure
        CSF outside the brain.
    brain, ventricle : numpy.ndarray
        (x, y, z) signed distance (mm, negative inside) at 2 mm to the brain mask, and to the
        lateral ventricles with the connected part of the third.
    pull : numpy.ndarray
        (3, x, y, z) displacement at 2 mm (mm) that grows the ventricles by 1 mm.
    diagnosis : numpy.ndarray
        (x, y, z) weight, 0 to 1, of the diagnosis effect on cortex at 2 mm.
    """

    labels: np.ndarray
    fractions: np.ndarray
    brain: np.ndarray
    ventricle: np.ndarray
    pull: np.ndarray
    diagnosis: np.ndarray


def make_head(
    seed: Any,
    *,
    age: float,
    diagnosis: str = "control",
    sex: str = "F",
    spacing: int = 1,
    lesion: bool = False,
    diagnosis_effect: float = 1.0,
) -> Head:
    """Simulate one head.

    Ventricles and cortex follow the shape of lifespan curves: from 25 to 75 years, ventricles
    about double, faster late in life, and grey matter steadily loses about an eighth. The
    diagnosis widens the ventricles and thins frontal and temporal cortex. This effect is larger
    than in patients, so that a few dozen heads show it.

    Parameters
    ----------
    seed : int or sequence of int
        Random seed. The same seed and arguments give the same head; ``lesion`` adds a lesion to
        it and changes nothing else.
    age : float
        Age in years, 18 to 85.
    diagnosis : str
        ``control`` or ``schizophrenia`` (a simulated effect).
    sex : str
        ``F`` or ``M``.
    spacing : int
        Voxel size in mm, 1 or 2; 2 is several times faster.
    lesion : bool
        Whether to add a white matter lesion.
    diagnosis_effect : float
        Factor of the diagnosis effect; 0 is none.

    Returns
    -------
    Head
        Tissue maps and ground truth.
    """
    rng, template = np.random.default_rng(seed), load_template()
    size = (0.965 if sex == "M" else 0.925) * np.exp(0.02 * rng.standard_normal())
    scale = size * np.exp(0.02 * rng.standard_normal(3))
    years = (age - 25.0) / 50.0
    ill = diagnosis_effect * (diagnosis == "schizophrenia") * np.exp(0.3 * rng.standard_normal())
    effects = {
        "ventricle_age_mm": 0.5 * years + 0.9 * max(years, 0.0) ** 2,
        "ventricle_diagnosis_mm": 0.6 * ill,
        "cortex_age_log_odds": 1.6 * years,
        "cortex_diagnosis_log_odds": 1.2 * ill,
    }
    ventricle_mm = effects["ventricle_age_mm"] + effects["ventricle_diagnosis_mm"] - 0.3
    ventricle_mm = np.clip(ventricle_mm + 0.3 * rng.standard_normal(), -1.5, 4.0)
    cortex = 1.0 + effects["cortex_age_log_odds"] + 0.2 * rng.standard_normal()

    where = _refine(_deformation(rng, template, scale, ventricle_mm), SHAPES[spacing])
    labels = _sample(template.labels, where, order=0)
    inside = labels == Tissue.BRAIN
    where = where[:, inside]
    # Squares sharpen the template, whose averaged edges are softer than a person's.
    gm, wm, csf = (_sample(part, where) ** 2 for part in template.fractions)
    cortex = cortex + effects["cortex_diagnosis_log_odds"] * _sample(template.diagnosis, where)
    csf *= np.exp(cortex)
    fractions = np.stack([gm, wm, csf, np.zeros_like(csf)]) / (gm + wm + csf)
    if lesion:
        share = _lesion_share(rng, template, where, fractions[1], spacing * np.argwhere(inside))
        fractions *= 1.0 - share
        fractions[3] = share

    ventricle = fractions[2, _sample(template.ventricle, where) < 2.0]
    sums = dict(zip(BRAIN_TISSUES, fractions.sum(axis=1, dtype=float), strict=True))
    sums = {"brain": where.shape[1], **sums, "ventricle": ventricle.sum(dtype=float)}
    volumes = {f"{name}_ml": value * spacing**3 / 1000.0 for name, value in sums.items()}
    truth = {name: round(float(value), 4) for name, value in (volumes | effects).items()}
    affine = from_matvec(spacing * np.eye(3), ORIGIN)
    return Head(labels, fractions.astype(np.float32), affine, truth)


def _deformation(
    rng: Generator, template: Template, scale: np.ndarray, ventricle_mm: float
) -> np.ndarray:
    """Return template coordinates (3, x, y, z), in 1 mm voxels, of each 2 mm voxel of a head."""
    axes = [(ORIGIN[k] + 2.0 * np.arange(SHAPES[2][k])) / scale[k] - ORIGIN[k] for k in range(3)]
    places = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    places += 2.4 * _random_field(rng, 3, smooth_mm=24.0)
    folds = np.clip(-template.brain / 8.0, 0.0, 1.0)  # fine shifts fade out towards the skull
    places += 1.6 * folds * _random_field(rng, 3, smooth_mm=10.0)
    pull = np.stack([_sample(part, places) for part in template.pull])
    return np.asarray(places + np.float32(ventricle_mm) * pull)


def _lesion_share(
    rng: Generator, template: Template, where: np.ndarray, white: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Return the lesion fraction (n,), 0 to 1, of each brain voxel.

    The lesion is an uneven ball in cerebral white matter. ``where`` has the template coordinates
    of the voxels (3, n), ``white`` their white matter fractions (n,), and ``places`` their
    positions in mm from the head's first voxel (n, 3).
    """
    radius = rng.uniform(*LESION_MM)
    x, _, z = where + ORIGIN.reshape(3, 1)
    deep = _sample(template.brain, where) < -0.8 * radius
    middle = rng.choice(places[deep & (white > 0.9) & (z > 4.0) & (abs(x) > 16.0)])
    uneven = radius * (1.0 + 0.12 * _sample(_random_field(rng, 1, smooth_mm=6.0)[0], places.T))
    depth = np.linalg.norm(places - middle, axis=1) - uneven
    return np.asarray(np.clip(0.5 - depth / LESION_EDGE_MM, 0.0, 1.0))


def _random_field(rng: Generator, channels: int, *, smooth_mm: float) -> np.ndarray:
    """Draw smooth noise of unit variance on the 2 mm grid, (channels, x, y, z)."""
    drawn = rng.standard_normal((channels, *DRAWN_SHAPE), dtype=np.float32)
    smooth = ndimage.gaussian_filter(drawn, (0.0, *[smooth_mm / 8.0] * 3))
    return _refine(smooth / smooth.std(), SHAPES[2])


def _refine(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Interpolate (channels, x, y, z) maps linearly to a finer grid with the same corners."""
    fine = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None], size=shape, mode="trilinear", align_corners=True
    )
    return np.asarray(fine[0].numpy())


def _sample(values: np.ndarray, where: np.ndarray, order: int = 1) -> np.ndarray:
    """Interpolate a 1 mm or 2 mm map at (3, ...) coordinates in 1 mm voxels."""
    where = where / 2.0 if values.shape == SHAPES[2] else where
    kind = np.float32 if order else values.dtype
    return np.asarray(ndimage.map_coordinates(values, where, kind, order, mode="nearest"))


@cache
def load_template() -> Template:
    """Return the average head, built from nilearn's template once per process."""
    from nilearn import datasets

    mask = np.pad(datasets.load_mni152_brain_mask(resolution=1).get_fdata() > 0, MARGIN)
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    t1w, grey, white = (
        np.pad(load(resolution=1).get_fdata(dtype=np.float32), MARGIN)[box]
        for load in (
            datasets.load_mni152_template, datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )  # fmt: skip
    # The tissue maps have hardly any CSF in the sulci, and grey matter around the ventricles. The
    # dark voxels of the T1w template show where CSF is.
    dark = (T1_TISSUE - t1w) / (T1_TISSUE - T1_CSF)
    csf = np.where(mask[box], np.maximum(dark, 1.0 - grey - white), 1.0).clip(0.0, 1.0)
    solid = (1.0 - csf) / np.maximum(grey + white, 1e-3)
    fractions = np.zeros((3, *SHAPES[1]), dtype=np.uint8)
    fractions[2] = 255
    fractions[:, *box] = np.rint(255.0 * np.stack([grey * solid, white * solid, csf]))

    coarse, wet = (_halve(part) for part in (mask, mask * (fractions[2] / np.float32(255.0))))
    brain = _distance(coarse > 0.5)
    # The skull follows the smooth hull of the brain, not its fissures.
    hull = _distance((ndimage.gaussian_filter(coarse, 3.0) > 0.5) | (coarse > 0.5))
    parts, _ = ndimage.label((wet > 0.5) & (brain < -DEEP_MM))
    ventricle = _distance(parts == np.bincount(parts[parts > 0]).argmax())
    thinned = [np.exp(-0.5 * _ellipsoid(middle, width, 2)) for middle, width in CORTEX]
    labels = np.where(mask, np.uint8(Tissue.BRAIN), _draw_head(hull))
    pull = _pull(ventricle)
    return Template(labels, fractions, brain, ventricle, pull, np.maximum.reduce(thinned))


def _halve(values: np.ndarray) -> np.ndarray:
    """Smooth a 1 mm map and downsample it to 2 mm."""
    smooth = ndimage.gaussian_filter(values.astype(np.float32), 0.7)
    return np.ascontiguousarray(smooth[::2, ::2, ::2])


def _distance(inside: np.ndarray) -> np.ndarray:
    """Compute the smoothed signed distance (mm, negative inside) to a mask on the 2 mm grid."""
    distance = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    distance -= np.copysign(0.5, distance)
    return np.asarray(ndimage.gaussian_filter(2.0 * distance.astype(np.float32), 0.7))


def _pull(distance: np.ndarray) -> np.ndarray:
    """Return the displacement into the template, per mm of growth of the ventricles."""
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.0), 2.0))
    gradient /= np.maximum(np.linalg.norm(gradient, axis=0), 0.5)
    fall = np.exp(-0.5 * (np.maximum(distance - 2.0, 0.0) / PULL_MM) ** 2)
    fall *= np.clip(1.0 + distance / 4.0, 0.0, 1.0)
    return np.asarray(-gradient * fall, dtype=np.float32)


def _ellipsoid(middle: Triple, radii: Triple, spacing: int) -> np.ndarray:
    """Return the squared distance to the centre of a mirrored ellipsoid, 1 on its surface."""
    axes = (ORIGIN[k] + np.arange(0, SHAPES[1][k], spacing, dtype=np.float32) for k in range(3))
    x, y, z = np.ix_(*axes)
    away = (abs(x) - abs(middle[0]), y - middle[1], z - middle[2])
    return np.asarray(sum((step / radius) ** 2 for step, radius in zip(away, radii, strict=True)))


def _draw_head(hull: np.ndarray) -> np.ndarray:
    """Label the tissues around the hull of the brain; later assignments overwrite earlier ones.

    Parameters
    ----------
    hull : numpy.ndarray
        Signed distance (mm) to the hull, at 2 mm.

    Returns
    -------
    numpy.ndarray
        uint8 :class:`Tissue` labels at 1 mm.
    """
    skull_end = CSF_MM + SKULL_MM
    outline = hull < skull_end + SCALP_MM
    for middle, radii in FACE:
        outline |= _ellipsoid(middle, radii, 2) < 1.0
    # Smooth the outline to blend the ellipsoids.
    skin = _distance(ndimage.gaussian_filter(outline.astype(np.float32), 2.0) > 0.5)
    uneven = _random_field(np.random.default_rng(0), 1, smooth_mm=6.0)
    depth, skin, noise = _refine(np.stack([hull, skin, uneven[0]]), SHAPES[1])
    depth += 0.6 * noise

    labels = np.full(SHAPES[1], Tissue.MUSCLE, dtype=np.uint8)
    labels[noise > 1.0] = Tissue.FAT
    labels[noise < -1.2] = Tissue.BONE
    labels[skin > -SCALP_MM] = Tissue.FAT
    labels[skin > -SKIN_MM] = Tissue.SKIN
    for tissue, middle, radii in CAVITIES:
        labels[_ellipsoid(middle, radii, 1) < 1.0] = tissue
    labels[skin > 0.0] = Tissue.AIR
    labels[(depth < skull_end) & (labels != Tissue.AIR)] = Tissue.BONE
    marrow = SKULL_MM * (0.18 + 0.06 * noise)
    labels[np.abs(depth - CSF_MM - 0.5 * SKULL_MM) < marrow] = Tissue.MARROW
    labels[depth < CSF_MM + 1.5] = Tissue.BONE
    labels[depth < CSF_MM] = Tissue.CSF
    for tissue, radius in SPINE.items():
        labels[_ellipsoid((0, -38, -150), (radius, radius, 92), 1) < 1.0] = tissue
    return labels


def apply_effect(
    volume: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    strength: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the simulated diagnosis effect to a brain volume in template space.

    A random smooth deformation given by ``seed`` is applied at every strength, including 0. So
    patients and controls made from one scan differ only in the effect, and both are interpolated
    once.

    Parameters
    ----------
    volume : numpy.ndarray
        (x, y, z) brain volume in template space; background 0, white matter near 1.
    mask : numpy.ndarray
        Boolean brain mask of the same shape.
    affine : numpy.ndarray
        4 x 4 voxel-to-MNI matrix (diagonal).
    strength : float
        Effect size: 0 for controls, about 1 for patients.
    seed : int
        Random seed of the individual deformation.

    Returns
    -------
    volume, mask : numpy.ndarray
        Deformed float32 volume and boolean mask.
    """
    scale, origin = (values[:3].reshape(3, 1, 1, 1) for values in (np.diag(affine), affine[:, 3]))
    grid, zooms = np.indices(volume.shape, dtype=np.float32), np.abs(scale.ravel())
    noise = np.random.default_rng(seed).standard_normal(grid.shape, dtype=np.float32)
    fields = [ndimage.gaussian_filter(part, JITTER_SMOOTH_MM / zooms) for part in noise]
    move = np.stack([field * (JITTER_MM / field.std()) for field in fields])
    if strength:
        mm = grid * scale + origin
        widen = np.zeros_like(mm)
        for side in (1, -1):
            away, weight = _bump(mm, *VENTRICLE, side)
            # Perpendicular to the length of the ventricle.
            widen[::2] -= weight * WIDENING / (1 + WIDENING) * away[::2]
        move += strength * widen
        move += strength * _thin_cortex(volume, mask, mm, zooms)
    # Displacements point to the source of each voxel's value.
    where = grid + move / scale
    moved = ndimage.map_coordinates(volume.astype(np.float32), where, order=1)
    inside = ndimage.map_coordinates(mask.astype(np.float32), where, order=1) > 0.5
    return np.where(inside, moved, 0).astype(np.float32), inside


def _bump(mm: np.ndarray, centre: Triple, width: Triple, side: int) -> tuple[np.ndarray, ...]:
    """Return offsets (mm) from a centre, left (1) or right (-1), and a Gaussian weight of them."""
    away = mm - np.reshape([side * centre[0], *centre[1:]], (3, 1, 1, 1))
    return away, np.exp(-0.5 * ((away / np.reshape(width, (3, 1, 1, 1))) ** 2).sum(axis=0))


def _thin_cortex(
    volume: np.ndarray, mask: np.ndarray, mm: np.ndarray, zooms: np.ndarray
) -> np.ndarray:
    """Return the displacement that moves the pial surface inwards."""
    weight = np.maximum.reduce([_bump(mm, *part, side)[1] for part in CORTEX for side in (1, -1)])
    smooth = ndimage.gaussian_filter(volume.astype(np.float32), 1.5 / zooms)
    slope = np.array(np.gradient(smooth, *zooms))
    length = np.sqrt((slope**2).sum(axis=0)) + 1e-3
    # Move only the pial side, from background (0) to grey matter (0.55).
    pial = np.clip((0.6 - smooth) / 0.3, 0, 1) * ndimage.binary_dilation(mask, iterations=1)
    return np.asarray(-THINNING_MM * weight * pial * slope / length)
