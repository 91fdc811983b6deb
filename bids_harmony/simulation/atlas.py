"""The anatomy that every simulated head is a deformation of, in template coordinates.

The brain is the one nilearn ships (MNI ICBM152 2009a symmetric: T1w, grey and white matter maps,
brain mask). Skull, scalp, face and neck around it are made of distances to simple shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from bids_harmony.anat.intensity import largest_component
from bids_harmony.simulation.effect import CORTEX

#: First voxel (mm, RAS+) and shape of the head's lattice of 2 mm; it reaches down to the neck.
#: Shapes of the form 16 n + 1 can be refined and coarsened by :func:`upsample` exactly.
ORIGIN = np.array([-96.0, -136.0, -150.0], dtype=np.float32)
SHAPE = (97, 129, 129)
#: Template T1w values taken as pure CSF and as no CSF at all.
T1_CSF, T1_TISSUE = 0.28, 0.62
#: Below this height (mm) the cord and the spine leave the skull.
FORAMEN_Z = -58.0
#: CSF deeper than this below the brain's surface (mm) is ventricle.
DEEP_MM = 22.0
#: Reach (mm) of the tissue shift around growing ventricles.
PULL_MM = 14.0


@dataclass(frozen=True)
class Shapes:
    """What lies around the brain, as signed distances (mm, negative inside).

    Each is given at every second point of the lattice of :data:`ORIGIN` and :data:`SHAPE`.

    Attributes
    ----------
    skull, skin, air, eye, spine : numpy.ndarray
        Distance to the brain's smooth hull, the head's outside, sinuses and throat, eyeballs,
        and the spinal cord (to its axis).
    """

    skull: np.ndarray
    skin: np.ndarray
    air: np.ndarray
    eye: np.ndarray
    spine: np.ndarray


@dataclass(frozen=True)
class Mapped:
    """What lies around the brain, as a label map.

    Attributes
    ----------
    labels : numpy.ndarray
        uint8 :class:`bids_harmony.simulation.layers.Tissue` on the lattice refined to 1 mm.
    """

    labels: np.ndarray


@dataclass(frozen=True)
class Atlas:
    """Template-space maps from which heads are sampled.

    Attributes
    ----------
    tissues : numpy.ndarray
        (3, x, y, z) float32 fractions of grey matter, white matter and CSF on a 1 mm grid, which
        sum to 1 everywhere (CSF outside the brain).
    tissue_origin : numpy.ndarray
        mm coordinates of the first voxel of ``tissues``.
    brain, ventricle : numpy.ndarray
        Signed distance (mm, negative inside) to the brain mask and to the lateral ventricles
        with what of the third joins them, on the lattice of :data:`ORIGIN` and :data:`SHAPE`.
    around : Shapes or Mapped
        Skull, scalp, face and neck.
    pull : numpy.ndarray
        (3, ...) direction and falloff of the shift that grows the ventricles by one mm.
    diagnosis : numpy.ndarray
        Weight, 0 to 1, of the diagnosis's thinning of cortex, on the 2 mm lattice.
    """

    tissues: np.ndarray
    tissue_origin: np.ndarray
    brain: np.ndarray
    ventricle: np.ndarray
    around: Shapes | Mapped
    pull: np.ndarray
    diagnosis: np.ndarray


def lattice(step: int = 1) -> np.ndarray:
    """Return the (3, ...) float32 mm coordinates of every ``step``-th lattice point."""
    axes = [ORIGIN[k] + 2.0 * np.arange(0, SHAPE[k], step, dtype=np.float32) for k in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def upsample(values: np.ndarray, times: int = 1) -> np.ndarray:
    """Halve the spacing of a 3-D lattice by linear interpolation, ``times`` times.

    n points become 2 n − 1: a separable mean of neighbours, ten times faster than a general
    interpolator.
    """
    for _ in range(times):
        for axis in (2, 1, 0):  # the costly stride first, while there is little to move
            shape = list(values.shape)
            shape[axis] = 2 * shape[axis] - 1
            fine = np.empty(shape, dtype=np.float32)
            fine[_along(axis, slice(None, None, 2))] = values
            between = fine[_along(axis, slice(1, None, 2))]
            left = values[_along(axis, slice(None, -1))]
            np.add(left, values[_along(axis, slice(1, None))], out=between)
            between *= 0.5
            values = fine
    return values


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Smallest box that holds all of a boolean 3-D mask."""
    x, y, z = ndimage.find_objects(mask.view(np.uint8), max_label=1)[0]
    return x, y, z


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if k == axis else slice(None) for k in range(3))


def sample(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Sample a 3-D map at (3, ...) indices, linearly; beyond the edge, the edge's value."""
    return np.asarray(
        ndimage.map_coordinates(values, points, order=1, mode="nearest", output=np.float32)
    )


@cache
def load_atlas() -> Atlas:
    """Build the atlas from nilearn's template, once per process."""
    from nilearn import datasets

    images = [
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_brain_mask(resolution=1),
    ]
    box = bounding_box(np.asarray(images[3].dataobj) > 0)
    origin = images[0].affine[:3, 3] + np.array([part.start for part in box])
    grey, white, t1w, mask = (np.asarray(img.dataobj[box], dtype=np.float32) for img in images)
    tissues = _tissue_fractions(grey, white, t1w, mask > 0)

    coarse = on_lattice(mask, origin)
    brain = signed_distance(coarse > 0.5)
    # The skull follows the brain's smooth outline, not its fissures.
    skull = signed_distance((ndimage.gaussian_filter(coarse, 3.0) > 0.5) | (coarse > 0.5))
    wet = on_lattice(tissues[2] * mask, origin) > 0.5
    ventricle = signed_distance(largest_component(wet & (brain < -DEEP_MM)))
    points = lattice(2)
    skull = skull[::2, ::2, ::2]
    return Atlas(
        tissues=tissues,
        tissue_origin=origin.astype(np.float32),
        brain=brain,
        ventricle=ventricle,
        around=Shapes(
            skull=skull,
            skin=_skin(points, skull),
            air=_air(points),
            eye=_pair(points, (32.0, 62.0, -36.0), (12.5, 12.5, 12.5)),
            spine=_spine_distance(points),
        ),
        pull=ventricle_pull(ventricle),
        diagnosis=diagnosis_weight(),
    )


def _tissue_fractions(
    grey: np.ndarray, white: np.ndarray, t1w: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Complete nilearn's two tissue maps with CSF.

    The maps alone leave hardly any CSF in the sulci and line the ventricles with grey matter;
    the T1w template's dark voxels say where CSF is.
    """
    dark = np.clip((T1_TISSUE - t1w) / (T1_TISSUE - T1_CSF), 0.0, 1.0)
    csf = np.where(mask, np.maximum(dark, 1.0 - grey - white), 1.0)
    np.clip(csf, 0.0, 1.0, out=csf)
    solid = (1.0 - csf) / np.maximum(grey + white, 1e-3)
    return np.stack([grey * solid, white * solid, csf]).astype(np.float32)


def on_lattice(values: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Smooth a 1 mm map and sample it on the head's 2 mm lattice (0 outside the map)."""
    smooth = ndimage.gaussian_filter(values.astype(np.float32), 0.7)
    return np.asarray(
        ndimage.affine_transform(
            smooth, 2.0 * np.eye(3), offset=ORIGIN - origin, output_shape=SHAPE, order=0
        ),
        dtype=np.float32,
    )


def signed_distance(inside: np.ndarray) -> np.ndarray:
    """Distance in mm to a mask on the 2 mm lattice, negative inside, smoothed by a voxel."""
    outside = ndimage.distance_transform_edt(~inside)
    depth = ndimage.distance_transform_edt(inside)
    distance = 2.0 * (np.maximum(outside - 0.5, 0) - np.maximum(depth - 0.5, 0))
    return np.asarray(ndimage.gaussian_filter(distance.astype(np.float32), 0.7))


def ventricle_pull(distance: np.ndarray) -> np.ndarray:
    """Shift, per mm of growth, from a point to the template's tissue that moved there."""
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.0), 2.0))
    gradient /= np.maximum(np.sqrt((gradient**2).sum(axis=0)), 0.5)
    beyond = np.maximum(distance - 2.0, 0.0)
    fall = np.exp(-0.5 * (beyond / PULL_MM) ** 2)
    fall *= np.clip(1.0 + distance / 4.0, 0.0, 1.0)
    return np.asarray(-gradient * fall, dtype=np.float32)


def diagnosis_weight() -> np.ndarray:
    """Where the diagnosis thins cortex: the places of :mod:`bids_harmony.simulation.effect`."""
    points = lattice()
    points[0] = -np.abs(points[0])
    weight = np.zeros(SHAPE, dtype=np.float32)
    for centre, width in CORTEX:
        place, reach = (np.array(v, np.float32).reshape(3, 1, 1, 1) for v in (centre, width))
        far = (((points - place) / reach) ** 2).sum(axis=0)
        np.maximum(weight, np.exp(-0.5 * far), out=weight)
    return weight


def _ellipsoid(
    points: np.ndarray,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> np.ndarray:
    """Roughly the signed distance (mm) to an ellipsoid, exact on its surface."""
    c = np.asarray(centre, dtype=np.float32).reshape(3, 1, 1, 1)
    r = np.asarray(radii, dtype=np.float32).reshape(3, 1, 1, 1)
    length = np.sqrt((((points - c) / r) ** 2).sum(axis=0))
    slope = np.sqrt((((points - c) / r**2) ** 2).sum(axis=0))
    return np.asarray(length * (length - 1.0) / np.maximum(slope, 1e-3), dtype=np.float32)


def _pair(
    points: np.ndarray,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> np.ndarray:
    """One ellipsoid on each side."""
    sided = points.copy()
    np.abs(sided[0], out=sided[0])
    return _ellipsoid(sided, centre, radii)


def _spine_distance(points: np.ndarray) -> np.ndarray:
    """Distance to the spinal cord's axis, which leans forward below the foramen magnum."""
    x, y, z = points
    axis_y = -44.0 + 0.12 * (FORAMEN_Z - z)
    return np.asarray(np.maximum(np.hypot(x, y - axis_y), 3.0 * (z - FORAMEN_Z)), np.float32)


def _skin(points: np.ndarray, skull: np.ndarray) -> np.ndarray:
    """Outside of the head: cranium, face, jaw, nose, ears and neck."""
    x, y, z = points
    neck = np.hypot(x / 1.05, (y + 30.0 - 0.12 * (z + 100.0)) / 1.15) - 56.0
    neck = np.maximum(neck, z + 50.0)
    shapes = (
        skull - 15.0,
        _ellipsoid(points, (0, 30, -62), (64, 66, 58)),
        _ellipsoid(points, (0, 44, -98), (48, 50, 42)),
        _ellipsoid(points, (0, 96, -62), (14, 18, 20)),
        _pair(points, (78, -24, -42), (6, 16, 28)),
        neck,
    )
    outside = shapes[0]
    for shape in shapes[1:]:  # smooth union, so that the parts blend
        outside = -8.0 * np.logaddexp(-outside / 8.0, -shape / 8.0)
    return np.asarray(outside, dtype=np.float32)


def _air(points: np.ndarray) -> np.ndarray:
    """Nose, sinuses, mastoid cells, mouth and throat."""
    shapes = (
        _ellipsoid(points, (0, 66, -54), (9, 30, 18)),
        _pair(points, (25, 58, -64), (11, 13, 13)),
        _ellipsoid(points, (0, 28, -56), (11, 11, 9)),
        _ellipsoid(points, (0, 78, -8), (10, 3, 6)),
        _pair(points, (52, -30, -52), (7, 9, 9)),
        _ellipsoid(points, (0, 56, -92), (20, 24, 3)),
        _ellipsoid(points, (0, 14, -104), (9, 7, 44)),
    )
    return np.asarray(np.minimum.reduce(shapes), dtype=np.float32)
