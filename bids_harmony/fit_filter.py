"""Which scans to fit on, by a condition on the dataset's tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bids_harmony.errors import UsageError

#: What a table of scans holds that no condition can ask for.
NO_COLUMNS = ["metrics", "_source"]


def select_scans(table: pd.DataFrame, expression: str | None) -> np.ndarray:
    """Choose the scans that meet a condition; see :func:`meets`.

    Raises
    ------
    UsageError
        When the condition cannot be understood, or no scan meets it.
    """
    met = meets(table, expression)
    if not met.any():
        raise UsageError(f"No scan meets --fit-filter {expression!r}.", _columns(table))
    return met


def meets(table: pd.DataFrame, expression: str | None) -> np.ndarray:
    """Say which scans meet a condition such as ``diagnosis == "control" and age > 18``.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per scan.
    expression : str or None
        As :meth:`pandas.DataFrame.eval` takes it, on the table's columns; None is all scans.

    Returns
    -------
    numpy.ndarray
        Boolean, one entry per scan.

    Raises
    ------
    UsageError
        When the condition cannot be understood.
    """
    if expression is None:
        return np.ones(len(table), dtype=bool)
    usable = table.drop(columns=NO_COLUMNS, errors="ignore")
    columns = _columns(table)
    # Names of the program are no part of the language.
    if "@" in expression or "__" in expression:
        raise UsageError(f"--fit-filter {expression!r} may not hold '@' or '__'.", columns)
    try:
        met = usable.eval(expression, engine="python", local_dict={}, global_dict={})
        met = pd.Series(met, index=usable.index)
        if met.dtype != bool:
            raise TypeError("it is no condition")
    except Exception as error:  # whatever the expression makes pandas raise
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"--fit-filter {expression!r} cannot be understood ({why}).",
            f"Write for example 'diagnosis == \"control\"'. {columns}",
        ) from error
    return met.to_numpy(dtype=bool)


def _columns(table: pd.DataFrame) -> str:
    return f"Columns are {', '.join(str(name) for name in table if name not in NO_COLUMNS)}."
