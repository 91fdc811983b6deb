"""Three tissue classes and a smooth bias field from brain intensities, in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_harmony.anat.intensity import class_means

BINS = 256
EM_STEPS = 60
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
    start = class_means(values)
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


def mixture(values: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit three Gaussians to the histogram of values by expectation and maximisation.

    Parameters
    ----------
    values : numpy.ndarray
        Intensities.
    start : numpy.ndarray
        Shape (3,). Means to begin with.

    Returns
    -------
    mean, sd, fraction : numpy.ndarray
        Shape (3,) each, darkest class first.
    """
    low, high = np.percentile(values, [0.1, 99.9])
    counts, edges = np.histogram(values, bins=BINS, range=(low, max(high, low + 1e-9)))
    centres = (edges[1:] + edges[:-1]) / 2
    smallest = edges[1] - edges[0]
    mean = np.sort(start)
    sd = np.full(3, max(float(values.std()) / 3, smallest))
    fraction = np.full(3, 1 / 3)
    for _ in range(EM_STEPS):
        weight = posterior(centres, mean, sd, fraction) * counts[:, None]
        total = np.maximum(weight.sum(axis=0), 1e-9)
        mean = (weight * centres[:, None]).sum(axis=0) / total
        variance = (weight * (centres[:, None] - mean) ** 2).sum(axis=0) / total
        sd = np.sqrt(np.maximum(variance, smallest**2))
        fraction = total / total.sum()
    order = np.argsort(mean)
    return mean[order], sd[order], fraction[order]


def posterior(
    values: np.ndarray, mean: np.ndarray, sd: np.ndarray, fraction: np.ndarray
) -> np.ndarray:
    """Probability of each class, shape (n, 3)."""
    density = fraction / sd * np.exp(-0.5 * ((values[:, None] - mean) / sd) ** 2)
    return np.asarray(density / np.maximum(density.sum(axis=1, keepdims=True), 1e-300))


def mixture_limits(mean: np.ndarray, sd: np.ndarray, fraction: np.ndarray) -> tuple[float, float]:
    """Intensities between neighbouring classes where the brighter one becomes the likelier."""
    limits = []
    for k in (0, 1):
        between = np.linspace(mean[k], mean[k + 1], BINS)
        likely = posterior(between, mean, sd, fraction)
        limits.append(float(between[np.argmax(likely[:, k + 1] > likely[:, k])]))
    return limits[0], limits[1]
