"""Prediction targets: numeric and two-class columns of the dataset's tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bids_harmony.bids.tables import CONTROLS
from bids_harmony.errors import UsageError
from bids_harmony.training.data import TrainingSet

SIMULATED = "simulated-schizophrenia"
#: Columns of a training set's table that cannot be targets.
NO_TARGETS = frozenset({"subject", "person", "site", "metrics", "_source", "qc_status"})
#: Names reserved by bundles and predictions. Outputs make statements about the last two that hold
#: only for age and for simulated labels.
TAKEN = frozenset(
    {"harmonizer", "backward", "bundle", "in_training", "brain_age", "schizophrenia_probability"}
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
                f"The columns {other.column} and {column} would both be called {target.name}.",
                "Leave one of them out of --target, or rename it.",
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
            f"There is no column {column} to train a predictor for.",
            f"Columns of the dataset's tables: {', '.join(columns)}; "
            f"{SIMULATED} makes its own labels.",
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
            "Name other columns with --target, or check "
            f"{'--age-column' if column == 'age' else '--reference-site'}.",
        )
    if len(kinds) < 2 or (len(kinds) > 2 and not numeric):
        raise UsageError(
            f"The column {column} has {len(kinds)} different values at {reference}.",
            "A target is a number, or one of two classes that both occur at the reference site: "
            "check --reference-site, or keep two classes with --fit-filter.",
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
