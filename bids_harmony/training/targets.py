"""Prediction targets: numeric and two-class columns of the dataset's tables, and their metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.bids.tables import CONTROLS
from bids_harmony.errors import UsageError
from bids_harmony.sites.statistics import placements, with_intervals
from bids_harmony.training.data import TrainingSet

N_BOOTSTRAP = 2000
#: Minimum number of persons (in each class) for a bootstrap interval, and for a correlation.
LEAST_DRAWN, LEAST_R = 3, 5
#: Values with a smaller range are constant up to rounding.
SAME = 1e-9
SIMULATED = "simulated-schizophrenia"
#: Columns of a training set's table that cannot be targets.
NO_TARGETS = frozenset({"subject", "person", "site", "metrics", "_source", "qc_status"})
#: Names reserved by bundles and predictions. Outputs make statements about the last two that hold
#: only for age and for simulated labels.
TAKEN = frozenset(
    {"map", "bundle", "calibration", "in_training", "brain_age", "schizophrenia_probability"}
)


@dataclass(frozen=True)
class Target:
    """A column to predict.

    Attributes
    ----------
    column : str
        Column of the training set's table.
    name : str
        Name in bundles and outputs: ``brain_age`` for age, ``<column>_probability`` for two
        classes, otherwise the column name. The prefix ``column_`` is added to names in
        :data:`TAKEN`. Only letters, digits and ``_``.
    values : numpy.ndarray
        (scans,) numbers, or 0 and 1; NaN if unknown.
    classes : tuple of str
        Names of classes 0 and 1; empty for numbers.
    """

    column: str
    name: str
    values: np.ndarray
    classes: tuple[str, ...] = ()

    @property
    def binary(self) -> bool:
        """Whether there are two classes."""
        return bool(self.classes)


def find_targets(
    data: TrainingSet, columns: Sequence[str], reference: str, fit: np.ndarray
) -> list[Target]:
    """Return the targets of several columns (:func:`find_target`), without duplicates.

    Raises
    ------
    UsageError
        If a column is not a valid target, or two columns would have the same target name.
    """
    targets: dict[str, Target] = {}
    for column in dict.fromkeys(columns):
        target = find_target(data, column, reference, fit)
        if (other := targets.setdefault(target.name, target)) is not target:
            raise UsageError(
                f"The columns {other.column} and {column} share the target name {target.name}.",
                "Remove one of them from --target, or rename it.",
            )
    return list(targets.values())


def find_target(
    data: TrainingSet, column: str, reference: str, fit: np.ndarray | None = None
) -> Target:
    """Return the target of a column.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    column : str
        Column of its table.
    reference : str
        Reference site, on which predictors are trained.
    fit : numpy.ndarray, optional
        (scans,) whether ``--fit-filter`` selects a scan. If a text column has more than two
        values, only those of the selected scans count.

    Returns
    -------
    Target
        Target with classes if the column has two values. Class 0 is a common name of controls if
        there is one, otherwise the class with more scans, otherwise the first by name.

    Raises
    ------
    UsageError
        If there is no such column, it has no or only one value at the reference site, or it is
        text with more than two values.
    """
    columns = sorted(set(map(str, data.table)) - NO_TARGETS)
    if column not in columns:
        raise UsageError(
            f"The dataset's tables have no column {column} (--target).",
            f"Choose one of {', '.join(columns)}, or {SIMULATED}.",
        )
    cells = data.table[column]
    here = data.sites == reference
    kinds = cells[here].dropna().unique()
    numeric = pd.api.types.is_numeric_dtype(cells)
    if len(kinds) > 2 and not numeric and fit is not None:
        kinds = cells[here & fit].dropna().unique()
    if not len(kinds):
        raise UsageError(
            f"No scan of {reference} has a value in the column {column}.",
            "Choose another --target, or check "
            f"{'--age-column' if column == 'age' else '--reference-site'}.",
        )
    if len(kinds) < 2 or (len(kinds) > 2 and not numeric):
        raise UsageError(
            f"The column {column} has {len(kinds)} different values at {reference}.",
            "A target must be numeric or have two classes at the reference site: check "
            "--reference-site, or select two classes with --fit-filter.",
        )
    if numeric and (len(kinds) > 2 or column == "age"):
        values = cells.to_numpy(dtype=float)
        return Target(column, "brain_age" if column == "age" else _name(column), values)
    first, second = sorted(kinds, key=lambda kind: _rank(kind, cells))
    values = np.select([cells == first, cells == second], [0.0, 1.0], np.nan)
    return Target(column, _name(f"{column}_probability"), values, (str(first), str(second)))


def _name(wanted: str) -> str:
    """Return a target name that is safe in file and column names."""
    name = re.sub(r"\W+", "_", wanted)
    return f"column_{name}" if name in TAKEN else name


def _rank(kind: object, cells: pd.Series) -> tuple[bool, int, str]:
    return str(kind).strip().lower() not in CONTROLS, -int((cells == kind).sum()), str(kind)


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
