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


def conformal_half_width(errors: np.ndarray, level: float = 0.9) -> float:
    """Half-width of a split-conformal interval from absolute errors on unseen scans.

    The ceil((n + 1) level)-th smallest error (science.md §5); the largest when n is too small
    for the level.
    """
    ordered = np.sort(np.abs(errors))
    rank = int(np.ceil((len(ordered) + 1) * level))
    return float(ordered[min(rank, len(ordered)) - 1])


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
