"""Classes of brain intensities: k-means centres, and a mixture of three Gaussians."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Bins of the histogram that the mixture is fitted to, and its rounds.
BINS = 256
EM_STEPS = 60


def tissue_centres(
    values: np.ndarray, n_classes: int = 3, start: Sequence[float] | None = None
) -> np.ndarray:
    """Centres of intensity classes by one-dimensional k-means.

    Parameters
    ----------
    values : numpy.ndarray
        Brain intensities.
    n_classes : int
        Number of classes; 3 for CSF, grey and white matter.
    start : sequence of float, optional
        Ascending centres to begin with, in place of fixed quantiles.

    Returns
    -------
    numpy.ndarray
        ``n_classes`` ascending centres.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    # Sums over sorted values make each iteration a look-up, exact and independent of order.
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    if start is None:
        centres = np.quantile(ordered, (np.arange(n_classes) + 0.5) / n_classes)
    else:
        centres = np.array(start, dtype=np.float64)
    for _ in range(100):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(ordered)]])
        counts = np.diff(edges)
        new = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centres)
        if np.allclose(new, centres, rtol=1e-6, atol=0):
            break
        centres = new
    return np.asarray(centres)


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
