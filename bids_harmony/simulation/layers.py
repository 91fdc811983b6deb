"""What lies around the brain: CSF, skull, scalp, eyes, sinuses, muscles, neck and spine."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from scipy import ndimage

from bids_harmony.simulation.atlas import SHAPE, Atlas, Shapes, sample, upsample

#: Width (mm) of the CSF between the brain's hull and the bone.
CSF_GAP_MM = 1.8
#: Distance (mm) between the brain's hull and the skin in the atlas.
ATLAS_SKIN_MM = 15.0
#: Lattice planes labelled at once: few enough to stay in the processor's cache.
BLOCK = 8


#: In label maps beside :class:`Tissue`: what is neither brain, bone nor skin, muscle and fat.
SOFT = 255


class Tissue(IntEnum):
    """What a voxel of a head's label map is made of; ``BRAIN`` voxels hold a mixture."""

    AIR = 0
    BRAIN = 1
    CSF = 2
    BONE = 3
    MARROW = 4
    FAT = 5
    MUSCLE = 6
    SKIN = 7
    HUMOUR = 8
    CORD = 9


def label_voxels(
    atlas: Atlas,
    points: np.ndarray,
    noise: np.ndarray,
    *,
    skull_mm: float,
    scalp_mm: float,
    times: int,
) -> np.ndarray:
    """Label every voxel of a head by its depth and by what the face holds.

    Parameters
    ----------
    atlas : Atlas
        Distances in template space.
    points : numpy.ndarray
        (3, ...) atlas lattice index of each point of the head's 2 mm lattice.
    noise : numpy.ndarray
        Smooth unit-variance noise on that lattice: makes the bone's thickness uneven and puts
        fat and bone among the face's muscles.
    skull_mm, scalp_mm : float
        Thickness of the bone and of what covers it.
    times : int
        How often the 2 mm lattice is refined to make the head's grid: 0 or 1.

    Returns
    -------
    numpy.ndarray
        uint8 :class:`Tissue` per voxel of the refined lattice.
    """
    if not isinstance(atlas.around, Shapes):
        return _label_mapped(atlas.around.labels, atlas.brain, points, noise, times)
    # Everything but the brain is smooth enough for every second lattice point.
    half = np.ascontiguousarray(points[:, ::2, ::2, ::2]) / np.float32(2.0)
    names = ("skull", "skin", "air", "eye", "spine")
    fields = {name: upsample(sample(getattr(atlas.around, name), half)) for name in names}
    fields |= {"brain": sample(atlas.brain, points), "noise": noise}
    fields["skull"] += np.float32(0.6) * noise
    fields["skin"] -= np.float32(CSF_GAP_MM + skull_mm + scalp_mm - ATLAS_SKIN_MM)
    factor = 2**times
    labels = np.empty([factor * (n - 1) + 1 for n in SHAPE], dtype=np.uint8)
    for start in range(0, SHAPE[0] - 1, BLOCK):
        stop = min(start + BLOCK, SHAPE[0] - 1)
        block = {k: upsample(v[start : stop + 1], times) for k, v in fields.items()}
        labels[factor * start : factor * stop + 1] = _label_block(block, skull_mm, scalp_mm)
    return labels


def _label_block(at: dict[str, np.ndarray], skull_mm: float, scalp_mm: float) -> np.ndarray:
    """Label voxels by the distances at them; later lines win."""
    skull, skin, noise = at["skull"], at["skin"], at["noise"]
    labels = np.full(skin.shape, Tissue.MUSCLE, dtype=np.uint8)
    bone_end = np.float32(CSF_GAP_MM + skull_mm)
    np.putmask(labels, noise > 1.0, Tissue.FAT)
    np.putmask(labels, noise < -1.2, Tissue.BONE)
    np.putmask(labels, skin > 0.3 - scalp_mm, Tissue.FAT)
    np.putmask(labels, skin > -1.8, Tissue.SKIN)
    np.putmask(labels, at["air"] < 0, Tissue.AIR)
    np.putmask(labels, at["eye"] < 9.0, Tissue.FAT)
    np.putmask(labels, at["eye"] < 0.0, Tissue.HUMOUR)
    np.putmask(labels, skin > 0, Tissue.AIR)
    np.putmask(labels, (skull < bone_end) & (labels != Tissue.AIR), Tissue.BONE)
    middle = np.abs(skull - np.float32(CSF_GAP_MM + 0.5 * skull_mm))
    diploe = np.float32(0.18 * skull_mm) + np.float32(0.1 * skull_mm) * noise
    np.putmask(labels, middle < diploe, Tissue.MARROW)
    np.putmask(labels, skull < CSF_GAP_MM + 1.0, Tissue.BONE)
    np.putmask(labels, skull < CSF_GAP_MM, Tissue.CSF)
    spine, deep = at["spine"], skin < -6.0
    np.putmask(labels, (spine < 16.0) & deep, Tissue.MARROW)
    np.putmask(labels, (spine < 11.0) & deep, Tissue.BONE)
    np.putmask(labels, (spine < 9.0) & deep, Tissue.CSF)
    np.putmask(labels, (spine < 5.5) & deep, Tissue.CORD)
    np.putmask(labels, at["brain"] <= 0, Tissue.BRAIN)
    return labels


def _label_mapped(
    around: np.ndarray, brain: np.ndarray, points: np.ndarray, noise: np.ndarray, times: int
) -> np.ndarray:
    """Take each voxel's label from a label map; the brain's outline is its distance's."""
    depth = sample(brain, points)
    factor = 2**times
    labels = np.empty([factor * (n - 1) + 1 for n in SHAPE], dtype=np.uint8)
    for start in range(0, SHAPE[0] - 1, BLOCK):
        stop = min(start + BLOCK, SHAPE[0] - 1)
        part = (slice(start, stop + 1),)
        where = np.stack([upsample(p[part], times) * np.float32(2.0) for p in points])
        block = ndimage.map_coordinates(around, where, order=0, output=np.uint8)
        uneven = upsample(noise[part], times)
        np.putmask(block, (block == SOFT) & (uneven > 0.9), Tissue.FAT)
        np.putmask(block, block == SOFT, Tissue.MUSCLE)
        np.putmask(block, block == Tissue.BRAIN, Tissue.CSF)
        np.putmask(block, upsample(depth[part], times) <= 0, Tissue.BRAIN)
        labels[factor * start : factor * stop + 1] = block
    return labels
