"""What can be predicted: any numeric and any two-class column of the dataset's tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bids_harmony.errors import UsageError
from bids_harmony.training.data import TrainingSet

SIMULATED = "simulated-schizophrenia"
#: Columns of a training set's table that are no targets.
NO_TARGETS = frozenset({"subject", "site", "metrics", "qc_status"})
#: What tables call the class without the condition.
CONTROLS = frozenset(
    {"control", "controls", "con", "hc", "healthy", "healthy control", "cn", "nc", "normal", "no",
     "none", "false", "0", "0.0"}
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A column to predict.

    Attributes
    ----------
    column : str
        In the training set's table.
    name : str
        In bundles and outputs: ``brain_age`` for the age, ``<column>_probability`` for two
        classes, else the column's own.
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


def find_target(data: TrainingSet, column: str, reference: str) -> Target:
    """Read a column as a target.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    column : str
        Of its table.
    reference : str
        The site predictors are trained at.

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
    kinds = cells[data.sites == reference].dropna().unique()
    numeric = pd.api.types.is_numeric_dtype(cells)
    if len(kinds) < 2 or (len(kinds) > 2 and not numeric):
        raise UsageError(
            f"The column {column} has {len(kinds)} different values at {reference}.",
            "A target is a number, or one of two classes that both occur at the reference site: "
            "check --reference-site, or keep two classes with --fit-filter.",
        )
    if numeric and (len(kinds) > 2 or column == "age"):
        values = cells.to_numpy(dtype=float)
        return Target(column, "brain_age" if column == "age" else column, values)
    first, second = sorted(kinds, key=lambda kind: _rank(kind, cells))
    values = np.select([cells == first, cells == second], [0.0, 1.0], np.nan)
    return Target(column, f"{column}_probability", values, (str(first), str(second)))


def _rank(kind: object, cells: pd.Series) -> tuple[bool, int, str]:
    return str(kind).strip().lower() not in CONTROLS, -int((cells == kind).sum()), str(kind)
