"""Descriptors of one scan: what can be said of its scanner's intensities from the scan alone.

They are plain numbers in the scan's record, so that a site is calibrated from a few kilobytes a
scan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

#: Depth under the surface of the brain mask, in mm, of the voxels that are compared. Nearer to the
#: surface sites differ by their brain masks and the CSF that these keep; deeper lie mostly the
#: ventricles (site-effects.md §3).
DEEP_MM = (14.0, 22.0)
#: Probabilities of the intensity quantiles.
LEVELS = tuple(round(0.01 + 0.02 * k, 2) for k in range(50))
#: Texture is measured in voxels at least so deep, in mm.
INNER_MM = 6.0
#: Values of the texture: sharpness along each axis, and noise.
N_TEXTURE = 4
#: Intensities that are white matter beyond doubt.
WHITE = (0.92, 1.12)


def describe(volume: np.ndarray, brain_mask: np.ndarray, zoom_mm: float) -> dict[str, Any]:
    """Describe how a scan's intensities are distributed.

    Parameters
    ----------
    volume : numpy.ndarray
        3-D volume on the template grid as :func:`bids_harmony.anat.intensity.normalize` makes
        it (CSF 0, white matter 1, background 0).
    brain_mask : numpy.ndarray
        Boolean mask of the whole brain, with the CSF at its surface.
    zoom_mm : float
        Isotropic voxel size.

    Returns
    -------
    dict
        ``quantiles``: intensities at the probabilities :data:`LEVELS` of the voxels that lie
        :data:`DEEP_MM` under the surface of the filled mask. ``texture``: along each axis, the
        logarithm of how far neighbours differ over how far voxels two apart do, which blurring
        lowers and noise raises; and the logarithm of the roughness of white matter.
    """
    filled = np.pad(ndimage.binary_fill_holes(brain_mask), 1)
    depth = ndimage.distance_transform_edt(filled)[1:-1, 1:-1, 1:-1] * zoom_mm
    # In a brain that is cut off or far too small, the deepest there is.
    deep = (depth >= min(DEEP_MM[0], 0.5 * float(depth.max()))) & (depth <= DEEP_MM[1])
    return {
        "quantiles": np.quantile(volume[deep], LEVELS).round(4).tolist(),
        "texture": [
            round(v, 4) for v in _texture(volume, depth >= min(INNER_MM, depth.max() / 2))
        ],
    }


def vector(descriptors: Mapping[str, Any]) -> np.ndarray:
    """Put what :func:`describe` found into one row: quantiles, then texture."""
    return np.array([*descriptors["quantiles"], *descriptors["texture"]], dtype=float)


def _texture(volume: np.ndarray, inner: np.ndarray) -> list[float]:
    found, roughness = [], 6 * volume
    for axis in range(3):
        before, after = np.roll(volume, 1, axis), np.roll(volume, -1, axis)
        near = np.abs(after - volume)[inner].mean(dtype=np.float64)
        far = np.abs(after - before)[inner].mean(dtype=np.float64)
        found.append(float(np.log(max(near, 1e-6) / max(far, 1e-6))))
        roughness = roughness - before - after
    white = ndimage.binary_erosion(inner & (volume > WHITE[0]) & (volume < WHITE[1]))
    where = white if white.any() else inner
    found.append(float(np.log(np.abs(roughness[where]).mean(dtype=np.float64) / 6 + 1e-3)))
    return found
