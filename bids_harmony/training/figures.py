"""Metrics of predictions on held-out scans, with sample sizes and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from bids_harmony.sites.statistics import placements, with_intervals

N_BOOTSTRAP = 2000
#: Minimum number of persons (in each class) for a bootstrap interval, and for a correlation.
LEAST_DRAWN, LEAST_R = 3, 5
#: Values with a smaller range are constant up to rounding.
SAME = 1e-9


def figures(
    predicted: np.ndarray,
    truth: np.ndarray,
    binary: bool,
    seed: int,
    persons: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute metrics of predictions with 95 % bootstrap intervals over persons.

    Parameters
    ----------
    predicted, truth : numpy.ndarray
        (scans,) predicted and true values; logits and 0/1 if ``binary``.
    binary : bool
        Whether to compute area under the curve and balanced accuracy, instead of mean absolute
        error, bias (mean error) and correlation.
    seed : int
        Random seed of the bootstrap.
    persons : numpy.ndarray, optional
        (scans,) person of each scan; if None, each scan is of a different person.

    Returns
    -------
    dict
        Number of scans ``n``, ``n_persons``, each metric, and its interval with the suffix
        ``_95``. Undefined values are None: a correlation of fewer than :data:`LEAST_R` persons,
        any metric if a class is missing, an interval of fewer than :data:`LEAST_DRAWN` persons (in
        either class).
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
    """Round metrics and combine interval ends under the suffix ``_95``; None for NaN."""
    out: dict[str, Any] = {}
    for name in (name for name in found if not name.endswith(("_low", "_high"))):
        out[name] = round(found[name], 3) if np.isfinite(found[name]) else None
        if f"{name}_low" in found:
            ends = [round(float(found[f"{name}_{end}"]), 3) for end in ("low", "high")]
            out[f"{name}_95"] = None if np.isnan(ends).any() else ends
    return out


def can_be_drawn(persons: np.ndarray, truth: np.ndarray, binary: bool) -> bool:
    """Return whether there are at least :data:`LEAST_DRAWN` persons (in each class).

    With a single person in a class, every bootstrap draw contains that person, and the interval
    would ignore the variation between persons.
    """
    groups = [persons[truth == k] for k in (0, 1)] if binary else [persons]
    return min(len(np.unique(group)) for group in groups) >= LEAST_DRAWN


def value_figures(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compute mean absolute error, bias and correlation.

    The correlation is NaN for fewer than five scans or constant values.
    """
    error = predicted - truth
    r = np.nan
    if len(truth) >= LEAST_R and min(np.ptp(predicted), np.ptp(truth)) > SAME:
        r = float(np.corrcoef(predicted, truth)[0, 1])
    return {"mae": float(np.abs(error).mean()), "bias": float(error.mean()), "r": r}


def class_figures(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compute area under the curve and balanced accuracy of logits.

    Both are NaN if a class is missing.
    """
    cases, controls = score[truth == 1], score[truth == 0]
    if not len(cases) or not len(controls):
        return {"auc": np.nan, "balanced_accuracy": np.nan}
    return {
        "auc": float(placements(score, truth)[truth == 1].mean()),
        "balanced_accuracy": float(((cases > 0).mean() + (controls <= 0).mean()) / 2),
    }
