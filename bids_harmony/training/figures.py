"""Figures of predictions on scans that nothing was trained on, with n and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from bids_harmony.sites.statistics import placements, with_intervals

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
    seed: int,
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
    seed : int
        Of the draws.
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
    measure, n_persons = class_figures if binary else value_figures, len(np.unique(persons))
    found = with_intervals(
        lambda draw: measure(predicted[draw], truth[draw]), persons, N_BOOTSTRAP, seed,
        enough=can_be_drawn(persons, truth, binary),
    )  # fmt: skip
    if n_persons < LEAST_R:
        found |= {name: np.nan for name in found if name.startswith("r")}
    return {"n": len(truth), "n_persons": n_persons} | paired_ends(found)


def paired_ends(found: dict[str, float]) -> dict[str, Any]:
    """Round figures, the ends of an interval under one name with ``_95``; None for NaN."""
    out: dict[str, Any] = {}
    for name in (name for name in found if not name.endswith(("_low", "_high"))):
        out[name] = round(found[name], 3) if np.isfinite(found[name]) else None
        if f"{name}_low" in found:
            ends = [round(float(found[f"{name}_{end}"]), 3) for end in ("low", "high")]
            out[f"{name}_95"] = None if np.isnan(ends).any() else ends
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
        "auc": float(placements(score, truth)[truth == 1].mean()),
        "balanced_accuracy": float(((cases > 0).mean() + (controls <= 0).mean()) / 2),
    }
