"""What can be predicted: any numeric and any two-class column of the dataset's tables."""

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
#: Columns of a training set's table that are no targets.
NO_TARGETS = frozenset({"subject", "person", "site", "metrics", "_source", "qc_status"})
#: Names that bundles and predictions use themselves; what outputs say of the last two holds for
#: the age and for simulated labels alone.
TAKEN = frozenset(
    {"harmonizer", "backward", "bundle", "in_training", "brain_age", "schizophrenia_probability"}
)


@dataclass(frozen=True)
class Target:
    """A column to predict.

    Attributes
    ----------
    column : str
        In the training set's table.
    name : str
        In bundles and outputs: ``brain_age`` for the age, ``<column>_probability`` for two
        classes, else the column's own; with ``column_`` before it where it would be one of
        :data:`TAKEN`. Letters, digits and ``_`` only.
    values : numpy.ndarray
        (scans,) numbers, or 0 and 1; NaN where unknown.
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
    """Read columns as targets, as :func:`find_target` does; a column named twice counts once.

    Raises
    ------
    UsageError
        Also when two columns would go by one name.
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
    """Read a column as a target.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    column : str
        Of its table.
    reference : str
        The site predictors are trained at.
    fit : numpy.ndarray, optional
        (scans,) whether ``--fit-filter`` lets a scan be fitted on: of words of more than two
        kinds, those of these scans count.

    Returns
    -------
    Target
        A column of two different values has classes; 0 is the one that tables usually give to
        controls, else the one with most scans, else the first by name.

    Raises
    ------
    UsageError
        When there is no such column, the reference site has no value of it, or it has words of
        more than two kinds.
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
    """Name a target so that files and columns can be called by it."""
    name = re.sub(r"\W+", "_", wanted)
    return f"column_{name}" if name in TAKEN else name


def _rank(kind: object, cells: pd.Series) -> tuple[bool, int, str]:
    return str(kind).strip().lower() not in CONTROLS, -int((cells == kind).sum()), str(kind)
