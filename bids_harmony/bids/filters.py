"""Which scans are used: ``--bids-filter-file``, by their names; ``--fit-filter``, by tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.bids.sidecars import ENTITIES
from bids_harmony.console import say
from bids_harmony.errors import UsageError, mount_hint
from bids_harmony.files import TextError, read_json

#: Entities whose labels are numbers, so that ``1`` means ``01`` too.
NUMBERED = ("run", "echo", "chunk")
#: What a filter may name, and the long name that pybids has for it.
NAMES = {**ENTITIES, **{name: name for name in ENTITIES.values()}}
NAMES |= {name: name for name in ("suffix", "datatype", "extension")}
#: pybids's queries, as the values that stand for them in JSON.
QUERIES = {"Query.NONE": None, "Query.ANY": "*", "Query.REQUIRED": "*"}
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
        Lists of allowed labels by long entity name; None and ``"*"`` as above.

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
        raise UsageError(cause, f"Check the path. {remedy}{mount_hint()}") from error
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
        values = value if isinstance(value, list) else [value]
        if entity not in NAMES or not all(isinstance(v, str | int | None) for v in values):
            cause = f"{path} filters by '{entity}' {json.dumps(value)}, which no T1w scan has."
            raise UsageError(cause, f"Filter by {', '.join(NAMES)}.")
        if "Query.OPTIONAL" not in values:
            filters[NAMES[entity]] = [_plain(NAMES[entity], v) for v in values]
    return filters


def _plain(entity: str, wanted: str | int | None) -> str | None:
    """Bring pybids's queries, labels with their prefix and numbers to one spelling."""
    if wanted is None or wanted in QUERIES:
        return QUERIES.get(str(wanted))
    label = str(wanted).removeprefix("sub-").removeprefix("ses-")
    return label.lstrip("0") or "0" if entity in NUMBERED else label


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
    labels |= {"suffix": "T1w", "datatype": "anat", "extension": name[name.index(".") :]}
    return all(
        _plain(entity, labels.get(entity)) in [_plain(entity, value) for value in values]
        or ("*" in values and entity in labels)
        for entity, values in filters.items()
    )


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
