"""Which scans are used: ``--bids-filter-file``, by their names; ``--fit-filter``, by tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.bids_sidecars import ENTITIES
from bids_harmony.console import say
from bids_harmony.errors import UsageError, mount_hint
from bids_harmony.text import TextError, read_json

#: What is fixed here, and may be repeated in a filter.
FIXED = {"suffix": "T1w", "datatype": "anat"}
#: Entities whose labels are numbers, so that ``1`` means ``01`` too.
NUMBERED = ("run", "echo", "chunk")
#: pybids's queries, as the values that stand for them in JSON; OPTIONAL has no other spelling.
_PYBIDS = {"Query.NONE": None, "Query.ANY": "*", "Query.REQUIRED": "*"}
_LONG = {**ENTITIES, **{name: name for name in ENTITIES.values()}, "extension": "extension"}
#: What a table of scans holds that no condition can ask for.
NO_COLUMNS = ["metrics", "_source"]


def read_filters(path: Path) -> dict[str, Any]:
    """Read the ``t1w`` part of a filter file.

    Parameters
    ----------
    path : pathlib.Path
        JSON as fMRIPrep and MRIQC take it: ``{"t1w": {"acquisition": "mprage"}}``. ``null`` or
        ``"Query.NONE"`` means that the entity is absent, ``"*"`` or ``"Query.ANY"`` that it is
        there, ``"Query.OPTIONAL"`` either.

    Returns
    -------
    dict
        Lists of allowed values by long entity name; None and ``"*"`` as above.

    Raises
    ------
    UsageError
        When the file cannot be read, or names a query or an entity that does not exist.
    """
    remedy = 'Expected is for example {"t1w": {"acquisition": "mprage", "run": [1, 2]}}.'
    try:
        content, notes = read_json(path)
    except TextError as error:
        cause = f"The filter file {path} cannot be read ({error})."
        raise UsageError(cause, f"{remedy}{mount_hint()}") from error
    queries = {name.lower(): wanted for name, wanted in content.items()}
    if "t1w" not in queries:
        notes.append("has no filters for t1w, and has no effect")
    for note in notes:
        say(f"Warning: {path} {note}.")
    t1w = queries.get("t1w", {})
    if not isinstance(t1w, dict):
        raise UsageError(f"{path} gives t1w the value {json.dumps(t1w)}.", remedy)
    filters: dict[str, Any] = {}
    for entity, value in t1w.items():
        values = [_value(v) for v in (value if isinstance(value, list) else [value])]
        if not all(v is None or isinstance(v, str | int) for v in values):
            raise UsageError(f"{path} gives {entity} the value {json.dumps(value)}.", remedy)
        if entity in _LONG:
            filters[_LONG[entity]] = values
        elif FIXED.get(entity) not in values:
            names = ", ".join([*ENTITIES.values(), "extension"])
            raise UsageError(
                f"{path} filters by '{entity}' {json.dumps(value)}, which no T1w scan has.",
                f"Valid are {names}.",
            )
    return filters


def _value(value: Any) -> Any:
    """Bring pybids's queries, and labels with their prefix, to one spelling."""
    if not isinstance(value, str):
        return value
    return _PYBIDS.get(value, value.removeprefix("sub-").removeprefix("ses-"))


def matches(name: str, entities: Mapping[str, str], filters: Mapping[str, Any]) -> bool:
    """Tell whether an image passes the filters.

    Parameters
    ----------
    name : str
        The file's name.
    entities : mapping of str to str
        Its entities by short name.
    filters : mapping
        What :func:`read_filters` returned.
    """
    labels = {ENTITIES[entity]: label for entity, label in entities.items()}
    labels["extension"] = name[name.index(".") :]
    return all(
        any(_allows(value, entity, labels.get(entity)) for value in values)
        for entity, values in filters.items()
    )


def _allows(wanted: Any, entity: str, label: str | None) -> bool:
    if wanted == "Query.OPTIONAL":
        return True
    if wanted is None or label is None:
        return wanted is label
    number = str(wanted)
    if entity in NUMBERED and number.isdecimal() and label.isdecimal():
        return int(number) == int(label)
    return number in ("*", label)


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
    # Names of the program are no part of the language.
    if "@" in expression or "__" in expression:
        raise UsageError(f"--fit-filter {expression!r} may not hold '@' or '__'.", _columns(table))
    usable = table.drop(columns=NO_COLUMNS, errors="ignore")
    try:
        met = usable.eval(expression, engine="python", local_dict={}, global_dict={})
        met = pd.Series(met, index=usable.index)
        if met.dtype != bool:
            raise TypeError("it is no condition")
    except Exception as error:  # whatever the expression makes pandas raise
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"--fit-filter {expression!r} cannot be understood ({why}).",
            f"Write for example 'diagnosis == \"control\"'. {_columns(table)}",
        ) from error
    return met.to_numpy(dtype=bool)


def _columns(table: pd.DataFrame) -> str:
    return f"Columns are {', '.join(str(name) for name in table if name not in NO_COLUMNS)}."
