"""What disease and surgery leave in a head: a lesion, a resection, strong atrophy.

A pathology is put into a head before any scanner sees it, with a known volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_harmony.simulation.atlas import ORIGIN, Atlas, bounding_box, lattice, sample

KINDS = ("lesion", "resection", "atrophy")
#: Radii (mm) of lesions and of cavities; volumes are 14 to 48 ml and 24 to 92 ml.
LESION_MM, RESECTION_MM = (15.0, 22.5), (18.0, 28.0)
#: Width (mm) over which each passes into what is around it.
LESION_EDGE_MM, RESECTION_EDGE_MM = 5.0, 2.0
#: Share of a lesion's volume that pushes its surroundings away, and how far the push reaches.
MASS, PUSH_MM = 0.5, 20.0
#: Strong atrophy beyond age: outward shift of the ventricles' walls (mm), and what is added to
#: the odds by which CSF gains on cortex.
ATROPHY_VENTRICLE_MM, ATROPHY_CORTEX = (3.0, 5.0), (1.8, 2.8)


@dataclass(frozen=True)
class Blob:
    """A lesion or a cavity.

    Attributes
    ----------
    centre : tuple of float
        mm in the head.
    radius : float
        mm.
    depth : numpy.ndarray
        Signed distance (mm, negative inside) to its uneven surface, on the head's 2 mm lattice.
    hollow : bool
        A cavity filled with CSF; otherwise diseased tissue.
    """

    centre: tuple[float, float, float]
    radius: float
    depth: np.ndarray
    hollow: bool

    def share(self, depth: np.ndarray) -> np.ndarray:
        """Share, 0 to 1, of the blob at places of a given signed distance."""
        edge = np.float32(RESECTION_EDGE_MM if self.hollow else LESION_EDGE_MM)
        return np.asarray(np.clip(0.5 - depth / edge, 0.0, 1.0))


def draw_atrophy(rng: np.random.Generator) -> tuple[float, float]:
    """Draw how far the ventricles' walls move (mm) and how the odds of CSF rise."""
    return float(rng.uniform(*ATROPHY_VENTRICLE_MM)), float(rng.uniform(*ATROPHY_CORTEX))


def draw_blob(
    kind: str, rng: np.random.Generator, atlas: Atlas, points: np.ndarray, noise: np.ndarray
) -> Blob:
    """Draw where a lesion or a resection lies.

    Parameters
    ----------
    kind : str
        ``lesion``: in white matter of the cerebrum; ``resection``: at the surface of the frontal
        or temporal lobe.
    rng : numpy.random.Generator
        Source of the draws.
    atlas : Atlas
        Anatomy of the head.
    points : numpy.ndarray
        (3, ...) atlas lattice index of each point of the head's 2 mm lattice.
    noise : numpy.ndarray
        Smooth unit-variance noise on that lattice, which makes the surface uneven.
    """
    lesion = kind == "lesion"
    radius = rng.uniform(*(LESION_MM if lesion else RESECTION_MM))
    depth = sample(atlas.brain, points)
    place = points * np.float32(2.0) + ORIGIN.reshape(3, 1, 1, 1)  # mm in the atlas
    if lesion:
        start = (atlas.tissue_origin - ORIGIN).reshape(3, 1, 1, 1)
        white = sample(atlas.tissues[1], points * np.float32(2.0) - start)
        fits = (depth < -0.8 * radius) & (white > 0.8) & (place[2] > 4) & (abs(place[0]) > 16)
    else:
        fits = (depth < -4.0) & (depth > -10.0) & (place[1] > -20) & (abs(place[0]) > 16)
        fits &= (place[2] > -30) & (place[2] < 50)
    spots = np.argwhere(fits)
    spot = spots[rng.integers(len(spots))]
    centre = ORIGIN + 2.0 * spot
    away = lattice() - centre.reshape(3, 1, 1, 1)
    far = np.sqrt(np.einsum("i...,i...->...", away, away))
    uneven = far - np.float32(radius) * (1.0 + 0.12 * noise)
    x, y, z = (float(c) for c in centre)
    return Blob(
        centre=(x, y, z),
        radius=float(radius),
        depth=uneven.astype(np.float32),
        hollow=not lesion,
    )


def push_away(points: np.ndarray, blob: Blob, atlas: Atlas) -> None:
    """Move what is around a lesion outwards, in place.

    A sphere that swells by a volume v moves what was at r to (r³ + 3 v / 4 pi)^(1/3); the push
    fades with the distance and towards the skull, which gives way to nothing.
    """
    reach = bounding_box(blob.depth < 2.5 * PUSH_MM)
    near = points[(slice(None), *reach)]
    centre = np.asarray(blob.centre, np.float32).reshape(3, 1, 1, 1)
    away = lattice()[(slice(None), *reach)] - centre
    far = np.maximum(np.sqrt((away**2).sum(axis=0)), 1.0)
    before = np.cbrt(np.maximum(far**3 - MASS * np.minimum(far, blob.radius) ** 3, 0.0))
    fade = np.exp(-0.5 * (np.maximum(far - blob.radius, 0.0) / PUSH_MM) ** 2)
    fade *= np.clip(-sample(atlas.brain, near) / 10.0, 0.0, 1.0)
    near -= (away / far * ((far - before) * fade / 2.0)).astype(np.float32)
