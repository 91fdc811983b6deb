"""What values on unseen scans say of a predictor: its stretch, its interval, its age bias."""

from __future__ import annotations

import numpy as np

#: A network is never stretched beyond this, either way.
MOST_STRETCH = 2.0


def fit_line(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Slope and intercept that bring predictions nearest to the truth, by least squares.

    Parameters
    ----------
    predicted, truth : numpy.ndarray
        (scans,) of scans the network had not seen.

    Returns
    -------
    slope, intercept : float
        The slope lies within 1/2 and 2 (:data:`MOST_STRETCH`); where there is nothing to fit, the
        predictions are left as they are.
    """
    if len(truth) < 3 or np.ptp(predicted) == 0:
        return 1.0, 0.0
    slope = float(np.clip(np.polyfit(predicted, truth, 1)[0], 1 / MOST_STRETCH, MOST_STRETCH))
    return slope, float(truth.mean() - slope * predicted.mean())


def empirical_half_width(
    errors: np.ndarray, persons: np.ndarray | None = None, level: float = 0.9
) -> float:
    """Half-width of an empirical interval: a quantile of absolute errors on unseen scans.

    Parameters
    ----------
    errors : numpy.ndarray
        (scans,) predicted minus true values.
    persons : numpy.ndarray, optional
        (scans,) whose scan it is: the scans of a person count as one together. Each scan is
        another person's when None.
    level : float
        Share of persons whose errors lie within. Of n persons the ceil((n + 1) level)-th smallest
        error is taken, the largest where n is too small for the level.
    """
    labels = np.arange(len(errors)) if persons is None else persons
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(np.abs(errors), kind="stable")
    share = np.cumsum(1 / counts[inverse][order])
    place = int(np.searchsorted(share, (len(counts) + 1) * level - 1e-9))
    return float(np.abs(errors)[order[min(place, len(order) - 1)]])


def age_bias(predicted: np.ndarray, age: np.ndarray) -> dict[str, float]:
    """Fit how the gap depends on age: gap = intercept + slope * age (de Lange, Beheshti).

    Parameters
    ----------
    predicted, age : numpy.ndarray
        (scans,) years, of scans the network had not seen.

    Returns
    -------
    dict
        ``slope``, ``intercept`` (years) and ``n``.
    """
    if len(age) < 3 or np.ptp(age) == 0:
        return {"slope": 0.0, "intercept": 0.0, "n": len(age)}
    slope, intercept = np.polyfit(age, predicted - age, 1)
    return {"slope": round(float(slope), 4), "intercept": round(float(intercept), 3),
            "n": len(age)}  # fmt: skip
