"""``--bids-filter-file``: which T1w images of a subject are used."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_harmony.bids_sidecars import ENTITIES
from bids_harmony.console import say
from bids_harmony.errors import UsageError, mount_hint
from bids_harmony.text import TextError, parse_json, read_text

#: Queries a filter file shared with other BIDS Apps may hold; all but t1w have no effect here.
QUERIES = (
    *("t1w", "t2w", "flair", "bold", "sbref", "dwi", "fmap", "roi", "pet", "asl", "meg", "eeg"),
    *("pdw", "m0scan", "t2star", "perf"),
)
#: What is fixed here, and may be repeated in a filter.
FIXED = {"suffix": "T1w", "datatype": "anat"}
#: Entities whose labels are numbers, so that ``1`` means ``01`` too.
NUMBERED = ("run", "echo", "chunk")
_QUERY = re.compile(r"<?Query\.(NONE|ANY|REQUIRED|OPTIONAL)\b.*")
_LONG = {**ENTITIES, **{name: name for name in ENTITIES.values()}, "extension": "extension"}


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
        text, notes = read_text(path)
    except TextError as error:
        raise UsageError(
            f"The filter file {path} cannot be read ({error}).",
            f"Check its path.{mount_hint()}",
        ) from error
    for note in notes:
        say(f"Warning: {path} {note}.")
    try:
        content = parse_json(text)
    except TextError as error:
        raise UsageError(f"JSON syntax error in {path}: {error}.", "Correct the file.") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise UsageError(f"{path} does not hold filters by query.", remedy)
    queries = {name.lower(): filters for name, filters in content.items()}
    if unknown := [name for name in content if name.lower() not in QUERIES]:
        raise UsageError(
            f"{path} has an unknown query '{unknown[0]}'.",
            f"Only 't1w' has an effect; of other apps, {', '.join(QUERIES[1:])} are accepted.",
        )
    filters: dict[str, Any] = {}
    for entity, value in queries.get("t1w", {}).items():
        values = [_normal(v) for v in (value if isinstance(value, list) else [value])]
        if entity in FIXED:
            if FIXED[entity] not in values:
                raise UsageError(
                    f"{path} asks for {entity} {json.dumps(value)}.",
                    f"Only {FIXED[entity]} can be used: take '{entity}' out of the file.",
                )
        elif entity not in _LONG:
            names = ", ".join(sorted(set(_LONG.values()) | set(FIXED)))
            raise UsageError(
                f"{path} filters by '{entity}', which T1w names do not have.",
                f"Valid are {names}.",
            )
        elif not all(v is None or isinstance(v, str | int) for v in values):
            raise UsageError(f"{path} gives {entity} the value {json.dumps(value)}.", remedy)
        else:
            filters[_LONG[entity]] = values
    return filters


def _normal(value: Any) -> Any:
    """Bring the ways of writing pybids's queries, and labels with their prefix, to one."""
    if not isinstance(value, str):
        return value
    if match := _QUERY.fullmatch(value):
        queries = {"NONE": None, "ANY": "*", "REQUIRED": "*", "OPTIONAL": "Query.OPTIONAL"}
        return queries[match[1]]
    return value.removeprefix("sub-").removeprefix("ses-")


def matches(name: str, entities: Mapping[str, str], filters: Mapping[str, Any]) -> bool:
    """Tell whether an image passes the filters.

    The filters are applied here and not by a pybids query, whose entities come from the whole
    path: below ``/data/sub-projects/`` every scan would belong to subject ``projects``.

    Parameters
    ----------
    name : str
        The file's name.
    entities : mapping of str to str
        Its entities by short name.
    filters : mapping
        What :func:`read_filters` returned.
    """
    long = {ENTITIES[entity]: label for entity, label in entities.items()}
    long["extension"] = name[name.index(".") :]
    return all(
        any(_allows(value, entity, long.get(entity)) for value in values)
        for entity, values in filters.items()
    )


def _allows(wanted: Any, entity: str, label: str | None) -> bool:
    if wanted == "Query.OPTIONAL":
        return True
    if wanted is None or label is None:
        return wanted is None and label is None
    if wanted == "*" or str(wanted) == label:
        return True
    number = str(wanted)
    return (
        entity in NUMBERED and number.isdigit() and label.isdigit() and int(number) == int(label)
    )
