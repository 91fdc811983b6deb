"""Figures of predictions on scans that nothing was trained on, with n and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from bids_harmony.sites.statistics import drawn_persons

N_BOOTSTRAP = 2000
#: With fewer persons, or persons of a class, drawing them again says nothing; and with fewer a
#: correlation does not.
LEAST_DRAWN, LEAST_R = 3, 5
#: Values that differ by less are the same but for rounding.
SAME = 1e-9


def figures(
    predicted: np.ndarray,
    truth: np.ndarray,
    binary: bool,
    rng: np.random.Generator,
    persons: np.ndarray | None = None,
) -> dict[str, Any]:
    """Figures of predictions with 95 % bootstrap intervals over persons.

    Parameters
    ----------
    predicted, truth : numpy.ndarray
        (scans,) predicted and true values; logits and 0/1 when ``binary``.
    binary : bool
        Area under the curve and balanced accuracy, instead of mean absolute error, bias (mean
        error) and correlation.
    rng : numpy.random.Generator
        Draws the bootstrap samples.
    persons : numpy.ndarray, optional
        (scans,) whose scan it is; each another person's when None.

    Returns
    -------
    dict
        ``n`` scans, ``n_persons``, each figure, and its interval under the name with ``_95``. What
        cannot be had is None: a correlation below :data:`LEAST_R` persons, a class without scans,
        an interval below :data:`LEAST_DRAWN` persons, or persons of a class.
    """
    persons = np.arange(len(truth)) if persons is None else persons
    n_persons = len(np.unique(persons))

    def measure(p: np.ndarray, t: np.ndarray) -> dict[str, float]:
        return class_figures(p, t) if binary else value_figures(p, t)

    values = measure(predicted, truth)
    enough = can_be_drawn(persons, truth, binary)
    draws = drawn_persons(persons, N_BOOTSTRAP, rng) if enough else []
    drawn = [measure(predicted[d], truth[d]) for d in draws]
    out: dict[str, Any] = {"n": len(truth), "n_persons": n_persons}
    for name, value in values.items():
        known = np.isfinite(value) and (name != "r" or n_persons >= LEAST_R)
        out[name] = round(float(value), 3) if known else None
        samples = [row[name] for row in drawn if known and np.isfinite(row[name])]
        ends = np.percentile(samples, (2.5, 97.5)) if samples else ()
        out[f"{name}_95"] = [round(float(v), 3) for v in ends] or None
    return out


def can_be_drawn(persons: np.ndarray, truth: np.ndarray, binary: bool) -> bool:
    """Whether there are :data:`LEAST_DRAWN` persons to draw again, in each class of two.

    One person is in every draw that has his class: an interval would leave out that another
    person might be elsewhere.
    """
    groups = [persons[truth == k] for k in (0, 1)] if binary else [persons]
    return min(len(np.unique(group)) for group in groups) >= LEAST_DRAWN


def value_figures(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean absolute error, bias and correlation (NaN below five scans or without spread)."""
    error = predicted - truth
    r = np.nan
    if len(truth) >= LEAST_R and min(np.ptp(predicted), np.ptp(truth)) > SAME:
        r = float(np.corrcoef(predicted, truth)[0, 1])
    return {"mae": float(np.abs(error).mean()), "bias": float(error.mean()), "r": r}


def class_figures(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Area under the curve and balanced accuracy of logits; NaN without both classes."""
    cases, controls = score[truth == 1], score[truth == 0]
    if not len(cases) or not len(controls):
        return {"auc": np.nan, "balanced_accuracy": np.nan}
    return {
        "auc": area_under_curve(cases, controls),
        "balanced_accuracy": float(((cases > 0).mean() + (controls <= 0).mean()) / 2),
    }


def area_under_curve(cases: np.ndarray, controls: np.ndarray) -> float:
    """Chance that a case scores above a control, ties counting half."""
    difference = cases[:, None] - controls[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
