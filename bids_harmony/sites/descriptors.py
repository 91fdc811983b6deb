"""Descriptors of one scan: what can be said of its scanner's intensities from the scan alone.

They are plain numbers in the scan's record, so that a site is calibrated from a few kilobytes a
scan.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

#: Depth under the surface of the brain mask, in mm, of the voxels that are compared. Nearer to the
#: surface sites differ by their brain masks and the CSF that these keep; deeper lie mostly the
#: ventricles (site-effects.md §3).
DEEP_MM = (14.0, 22.0)
#: Probabilities of the intensity quantiles.
LEVELS = tuple(round(0.01 + 0.02 * k, 2) for k in range(50))


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
        :data:`DEEP_MM` under the surface of the filled mask.
    """
    filled = np.pad(ndimage.binary_fill_holes(brain_mask), 1)
    depth = ndimage.distance_transform_edt(filled)[1:-1, 1:-1, 1:-1] * zoom_mm
    # In a brain that is cut off or far too small, the deepest there is.
    deep = (depth >= min(DEEP_MM[0], 0.5 * float(depth.max()))) & (depth <= DEEP_MM[1])
    return {"quantiles": np.quantile(volume[deep], LEVELS).round(4).tolist()}
