"""Selection of scans: ``--bids-filter-file`` by file name, ``--fit-filter`` by table columns."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.errors import UsageError, mount_hint
from bids_harmony.files import TextError, plain_number, read_json

LOGGER = logging.getLogger(__name__)

#: Entities of T1w file names (BIDS 1.10), in the order of the standard, and their pybids names.
ENTITIES = {
    "sub": "subject", "ses": "session", "task": "task", "acq": "acquisition", "ce": "ceagent",
    "rec": "reconstruction", "run": "run", "echo": "echo", "part": "part", "chunk": "chunk",
}  # fmt: skip
#: Short and long names allowed in a filter file, and their long names.
NAMES = {**ENTITIES, **{name: name for name in ENTITIES.values()}}
NAMES |= {name: name for name in ("suffix", "datatype", "extension")}
#: JSON values that represent the queries of pybids.
QUERIES = {"Query.NONE": None, "Query.ANY": "*", "Query.REQUIRED": "*"}
#: Columns of the scan table that ``--fit-filter`` cannot use.
NO_COLUMNS = ["metrics", "_source"]


def parse_entities(name: str) -> dict[str, str]:
    """Return the entities of a T1w file's name, parsed by pybids.

    Parameters
    ----------
    name : str
        File name, such as ``sub-01_run-1_T1w.nii.gz``.

    Returns
    -------
    dict of str to str
        Labels as written, by pybids's long names.

    Raises
    ------
    ValueError
        If pybids does not know a part of the name. Two scans that differ only in that part would
        have the same output names.
    """
    from bids.layout import parse_file_entities

    found = parse_file_entities(f"/{name}", entities=_pybids_entities())
    labels = {entity: str(found[entity]) for entity in ENTITIES.values() if entity in found}
    known = [f"{short}-{labels[entity]}" for short, entity in ENTITIES.items() if entity in labels]
    for part in name.split("_")[:-1]:
        if part not in known:
            raise ValueError(f"'{part}' in its name is not a BIDS entity of T1w images")
    return labels


@cache
def _pybids_entities() -> list[Any]:
    from bids.layout import Config

    entities = Config.load("bids").entities
    return [entities[name] for name in ENTITIES.values()]


def read_filters(path: Path) -> dict[str, Any]:
    """Read the ``t1w`` part of a filter file.

    Parameters
    ----------
    path : pathlib.Path
        JSON as for fMRIPrep and MRIQC: ``{"t1w": {"acquisition": "mprage"}}``. ``null`` or
        ``"Query.NONE"`` means that the entity is absent, ``"*"`` or ``"Query.ANY"`` that it is
        present, and ``"Query.OPTIONAL"`` either.

    Returns
    -------
    dict
        Lists of allowed labels by long entity name, with None for absent and ``"*"`` for any.

    Raises
    ------
    UsageError
        If the file cannot be read, or contains an unknown query or entity.
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
        LOGGER.warning(f"{path} {note}.")
    t1w = queries.get("t1w", {})
    if not isinstance(t1w, dict):
        raise UsageError(f"In {path}, the value of t1w is {json.dumps(t1w)}.", remedy)
    filters: dict[str, Any] = {}
    for entity, value in t1w.items():
        values = value if isinstance(value, list) else [value]
        if entity not in NAMES or not all(isinstance(v, str | int | None) for v in values):
            cause = f"{path}: {json.dumps({entity: value})} is not a filter for T1w images."
            raise UsageError(cause, f"Filter by {', '.join(NAMES)}.")
        if "Query.OPTIONAL" not in values:
            filters[NAMES[entity]] = [QUERIES.get(str(v), v) for v in values]
    return filters


def matches(name: str, entities: Mapping[str, str], filters: Mapping[str, Any]) -> bool:
    """Return whether an image passes the filters.

    Parameters
    ----------
    name : str
        File name.
    entities : mapping of str to str
        Entities of the name, as returned by :func:`parse_entities`.
    filters : mapping
        Filters as returned by :func:`read_filters`. Leading zeros of numbers and the prefixes
        ``sub-`` and ``ses-`` are ignored.
    """
    labels = {
        **entities,
        "suffix": "T1w",
        "datatype": "anat",
        "extension": name[name.index(".") :],
    }
    return all(
        _plain(labels.get(entity)) in map(_plain, wanted) or ("*" in wanted and entity in labels)
        for entity, wanted in filters.items()
    )


def _plain(label: str | int | None) -> str | None:
    if label is None:
        return None
    return plain_number(str(label).removeprefix("sub-").removeprefix("ses-"))


def select_scans(table: pd.DataFrame, expression: str | None) -> np.ndarray:
    """Return a mask of the scans that meet a condition, at least one; see :func:`meets`.

    Raises
    ------
    UsageError
        If the condition is invalid, or no scan meets it.
    """
    met = meets(table, expression)
    if not met.any():
        raise UsageError(f"No scan meets --fit-filter {expression!r}.", _columns(table))
    return met


def meets(table: pd.DataFrame, expression: str | None) -> np.ndarray:
    """Return which scans meet a condition such as ``diagnosis == "control" and age > 18``.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per scan.
    expression : str or None
        Condition on the table's columns, in the syntax of :meth:`pandas.DataFrame.eval`. None
        selects all scans.

    Returns
    -------
    numpy.ndarray
        Boolean array of shape (n_scans,).

    Raises
    ------
    UsageError
        If the condition is invalid.
    """
    if expression is None:
        return np.ones(len(table), dtype=bool)
    # Expressions must not access variables or attributes of the program.
    if "@" in expression or "__" in expression:
        raise UsageError(
            f"--fit-filter {expression!r} must not contain '@' or '__'.", _columns(table)
        )
    usable = table.drop(columns=NO_COLUMNS, errors="ignore")
    try:
        met = usable.eval(expression, engine="python", local_dict={}, global_dict={})
        met = pd.Series(met, index=usable.index)
        if met.dtype != bool:
            raise TypeError("it is not a condition")
    except Exception as error:  # pandas raises many types of errors here
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"--fit-filter {expression!r} cannot be understood ({why}).",
            f"An example is 'diagnosis == \"control\"'. {_columns(table)}",
        ) from error
    return met.to_numpy(dtype=bool)


def _columns(table: pd.DataFrame) -> str:
    return f"Columns are {', '.join(str(name) for name in table if name not in NO_COLUMNS)}."
