"""Three tissue classes and a smooth bias field from brain intensities, in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_harmony.anat.classes import mixture, posterior, tissue_centres

BIAS_STEPS = 2
MAX_SAMPLE = 60_000


@dataclass(frozen=True)
class Tissues:
    """Gaussian mixture of CSF, GM and WM intensities (in this order, darkest first).

    Attributes
    ----------
    mean, sd, fraction : numpy.ndarray
        Shape (3,). Mean and standard deviation in the image's units (bias removed), and the
        share of the brain's voxels.
    bias_range : float
        Spread (99th minus 1st percentile) of the fitted field over the brain, relative to its
        median: 0 for a field that is constant.
    field : numpy.ndarray
        Shape (n_terms,). Coefficients of the log field; see :func:`bias_field`.
    """

    mean: np.ndarray
    sd: np.ndarray
    fraction: np.ndarray
    bias_range: float
    field: np.ndarray


def fit_tissues(image: np.ndarray, mask: np.ndarray) -> Tissues:
    """Fit three intensity classes and a quadratic log bias field to a brain, alternately.

    This is a cheap relative of the segmentations behind MRIQC's measures: every voxel counts
    by its intensity alone. It serves to compare scans, not to measure atrophy.

    Parameters
    ----------
    image : numpy.ndarray
        3-D intensities.
    mask : numpy.ndarray
        Boolean brain mask of the same shape with at least 100 voxels.

    Returns
    -------
    Tissues
        The fit. It depends on the input only: no random numbers.
    """
    where = np.flatnonzero(mask)
    where = where[:: max(1, where.size // MAX_SAMPLE)]
    values = np.take(image, where).astype(np.float64)
    terms = bias_terms(np.stack(np.unravel_index(where, mask.shape), axis=1), mask.shape)
    floor = max(float(np.percentile(values, 99)) * 1e-3, 1e-12)
    logs = np.log(np.maximum(values, floor))
    start = tissue_centres(values)
    coefficients = np.zeros(terms.shape[1])
    for step in range(BIAS_STEPS + 1):
        corrected = values / np.exp(terms @ coefficients)
        mean, sd, fraction = mixture(corrected, start)
        if step == BIAS_STEPS:
            break
        # White matter alone should be even: grey matter and CSF differ from place to place by
        # anatomy and by mixing, which the field would take up.
        weight = posterior(corrected, mean, sd, fraction)[:, 2]
        residual = logs - np.log(max(float(mean[2]), floor))
        # einsum sums in one fixed order whatever the number of threads.
        normal = np.einsum("ni,n,nj->ij", terms, weight, terms)
        right = np.einsum("ni,n,n->i", terms, weight, residual)
        coefficients = np.linalg.lstsq(normal, right, rcond=None)[0]
        start = mean
    field = np.exp(terms @ coefficients)
    low, middle, high = np.percentile(field, [1, 50, 99])
    return Tissues(mean, sd, fraction, float((high - low) / middle), coefficients)


def bias_terms(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Quadratic polynomial terms, without the constant, of voxel indices scaled to [-1, 1]."""
    x, y, z = (2.0 * index / np.maximum(np.array(shape) - 1, 1) - 1.0).T
    return np.stack([x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)
