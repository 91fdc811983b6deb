"""Site, age, sex and diagnosis from a dataset's tables, read as they come.

Tables are typed by hand and saved by spreadsheets, so the reader takes what can be understood,
says what it had to guess, and never stops a run: a table that makes no sense is left out with
a warning.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_harmony.errors import UsageError
from bids_harmony.files import why_unread

MISSING = frozenset({"", "n/a", "na", "nan", "none", "null"})
MAX_AGE = 120.0
#: Column names tried, in this order and whatever their case, where none is given.
DEFAULT_COLUMNS = {
    "site": (
        *("site", "site_id", "siteid", "site_name", "scan_site", "acquisition_site"),
        *("center", "centre", "center_id", "centre_id", "scanner", "scanner_id"),
    ),
    "age": ("age", "age_years", "age_at_scan", "age_at_mri", "age_at_visit", "scan_age"),
    "sex": ("sex", "gender"),
    "diagnosis": ("diagnosis", "dx", "diag", "dx_group", "patient_group", "group"),
}
YEARS_PER_UNIT = {"d": 1 / 365.25, "w": 7 / 365.25, "m": 1 / 12, "y": 1.0}
_AGE = re.compile(
    r"(?P<open>[<>]=?)?\s*(?P<number>[-+]?\d+(?:[.,]\d+)?)\s*(?P<plus>\+)?\s*"
    r"(?P<unit>[dwmy]|days?|weeks?|months?|years?|yrs?)?\.?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Table:
    """A table's rows by their id.

    Attributes
    ----------
    name : str
        ``participants.tsv``, ``sessions.tsv`` or ``scans.tsv``.
    columns : tuple of str
        Column names as written; empty where the table cannot be used.
    rows : dict of str to dict
        Cells as text, by row id: the label without ``sub-`` or ``ses-``, the file's name in
        ``scans.tsv``, ``label_session`` where ``participants.tsv`` has a row per session.
    age_units : dict of str to str
        ``Units`` of columns in the table's data dictionary.
    warnings : tuple of str
        What had to be guessed or left out.
    """

    name: str
    columns: tuple[str, ...] = ()
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    age_units: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Columns the user named, None where the usual names are to be tried."""

    site: str | None = None
    age: str | None = None
    sex: str | None = None
    diagnosis: str | None = None


@dataclass(frozen=True)
class Person:
    """What the tables say about one scan (see :class:`bids_harmony.bids.Scan`)."""

    site: str | None = None
    site_source: str = "none"
    age: float | None = None
    sex: str | None = None
    diagnosis: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_table(path: Path, id_column: str) -> Table:
    """Read a BIDS table, tolerating what spreadsheets do to one.

    Parameters
    ----------
    path : pathlib.Path
        ``..._participants.tsv``, ``..._sessions.tsv`` or ``..._scans.tsv``.
    id_column : str
        ``participant_id``, ``session_id`` or ``filename``.

    Returns
    -------
    Table
        Without columns, and with the reason among its warnings, where it cannot be used.
    """
    name = path.name.rpartition("_")[2]
    where = path.name
    try:
        text, notes = _decode(path.read_bytes())
    except (OSError, UnicodeError) as error:
        return Table(
            name, warnings=(f"{where} cannot be read ({why_unread(path, error)}): not used.",)
        )
    # Not splitlines(), which also splits at characters that names and sites may contain.
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if not lines or "\0" in text:
        why = "is not a text table" if lines else "is empty"
        return Table(name, warnings=(f"{where} {why}: not used.",))
    delimiter = "\t"
    if "\t" not in lines[0] and (other := re.search(r"[,;]", lines[0])):
        delimiter = other.group()
        notes.append(f"is separated by '{delimiter}' instead of tabs")
    header, *body = [[_strip(c) for c in row] for row in _split(lines, delimiter)]
    lowered = [c.lower().replace(" ", "_") for c in header]
    if id_column not in lowered:
        columns = ", ".join(header[:10])
        return Table(name, warnings=(f"{where} has no {id_column} column ({columns}): not used.",))
    by_session = id_column == "participant_id" and "session_id" in lowered
    rows: dict[str, dict[str, str]] = {}
    repeated, ragged = [], 0
    for cells in body:
        ragged += len(cells) != len(header)
        row: dict[str, str] = {}
        for column, cell in zip(header, cells, strict=False):
            row.setdefault(column, cell)
        row_id = _row_id(row.get(header[lowered.index(id_column)], ""), id_column)
        if by_session:
            session = row.get(header[lowered.index("session_id")], "")
            if not is_missing(session):
                row_id += "_" + _row_id(session, "session_id")
        if row_id in rows:
            repeated.append(row_id)
        elif not is_missing(row_id):
            rows[row_id] = row
    if repeated:
        shown = ", ".join(sorted(set(repeated))[:5])
        notes.append(f"has several rows for {shown}; the first was used")
    if ragged:
        notes.append(f"has {ragged} rows with too few or too many cells")
    if len(set(header)) < len(header):
        notes.append("has columns of the same name; the first was used")
    return Table(
        name=name,
        columns=tuple(dict.fromkeys(header)),
        rows=rows,
        age_units=_units(path.with_suffix(".json")),
        warnings=tuple(f"{where} {note}." for note in notes),
    )


def describe(rows: Iterable[tuple[Table, str]], columns: Columns) -> Person:
    """Say what the tables hold about one scan.

    Parameters
    ----------
    rows : iterable of (Table, str)
        Tables with the scan's row id, the most specific table first: a session's own age wins
        over the participant's.
    columns : Columns
        Columns to read.

    Returns
    -------
    Person
    """
    found = list(rows)
    warnings = []
    site, source, _ = _lookup(found, columns.site, "site")
    age_text, age_source, unit = _lookup(found, columns.age, "age")
    age, age_note = parse_age(age_text, unit) if age_text is not None else (None, None)
    if age_note:
        warnings.append(f"{age_source}: {age_note}")
    sex_text, sex_source, _ = _lookup(found, columns.sex, "sex")
    sex = parse_sex(sex_text)
    if sex_text is not None and sex is None:
        warnings.append(f"{sex_source}: sex '{sex_text}' is not M or F, so it was not used.")
    diagnosis, _, _ = _lookup(found, columns.diagnosis, "diagnosis")
    cells: dict[str, str] = {}
    for table, row_id in found:
        for name, cell in table.rows.get(row_id, {}).items():
            if not is_missing(cell):
                cells.setdefault(name, cell)
    return Person(site, source, age, sex, diagnosis, cells, tuple(warnings))


def check_columns(columns: Columns, tables: Iterable[Table]) -> None:
    """Refuse a column name that no table has.

    Raises
    ------
    UsageError
        Naming the columns there are.
    """
    there = list(dict.fromkeys(c for table in tables for c in table.columns))
    lowered = {c.lower() for c in there}
    for what in DEFAULT_COLUMNS:
        name = getattr(columns, what)
        if name is not None and name.lower() not in lowered:
            raise UsageError(
                f"--{what}-column {name}: no table of the dataset has this column.",
                f"Columns there are: {', '.join(there)}."
                if there
                else "The dataset has no usable participants.tsv, sessions.tsv or scans.tsv.",
            )


def parse_age(text: str, units: str | None = None) -> tuple[float | None, str | None]:
    """Read an age in years.

    Parameters
    ----------
    text : str
        A cell such as ``35``, ``35.4``, ``035Y``, ``89+`` (how ages over 89 are published).
    units : str or None
        Units from the column's data dictionary; years where it has none.

    Returns
    -------
    age : float or None
        Years, 0 to 120; None where the cell holds no such age.
    note : str or None
        What had to be assumed, or why there is no age.

    Examples
    --------
    >>> parse_age("35.5")
    (35.5, None)
    >>> parse_age("89+")
    (89.0, "age '89+' was read as 89.")
    """
    if is_missing(text):
        return None, None
    match = _AGE.fullmatch(text.strip())
    if not match or (match["open"] or "").startswith("<"):
        return None, f"age '{text}' is not a number of years, so it was not used."
    unit = (match["unit"] or units or "y").strip().lower()[:1]
    factor = YEARS_PER_UNIT.get(unit, 1.0)
    age = round(float(match["number"].replace(",", ".")) * factor, 4)
    if not 0 <= age <= MAX_AGE:
        return None, f"age '{text}' is outside 0 to {MAX_AGE:.0f} years, so it was not used."
    if match["plus"] or match["open"] or "," in text or (match["unit"] and factor != 1):
        return age, f"age '{text}' was read as {age:g}."
    return age, None


def parse_sex(text: str | None) -> str | None:
    """Read ``M`` or ``F``; other words, and numbers, which have no fixed meaning, give None."""
    word = (text or "").strip().lower()
    if word in {"m", "male", "man"}:
        return "M"
    if word in {"f", "female", "woman"}:
        return "F"
    return None


def is_missing(text: str) -> bool:
    """Tell whether a cell says that there is no value."""
    return text.strip().lower() in MISSING


def _lookup(
    rows: list[tuple[Table, str]], column: str | None, what: str
) -> tuple[str | None, str, str | None]:
    """Find the first value there is, where it stood (``participants.tsv:age``), its units."""
    wanted = (column.lower(),) if column else DEFAULT_COLUMNS[what]
    for table, row_id in rows:
        row = table.rows.get(row_id)
        if row is None:
            continue
        names = {name.lower(): name for name in reversed(row)}
        if column in row:  # as written, before any spelling that differs in case only
            names[wanted[0]] = column
        for low in wanted:
            name = names.get(low)
            if name is not None and not is_missing(row[name]):
                return row[name], f"{table.name}:{name}", table.age_units.get(name)
    return None, "none", None


def _decode(raw: bytes) -> tuple[str, list[str]]:
    """Decode as UTF-8 with or without a mark, as UTF-16 with one, else as Latin-1."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16"), ["is UTF-16 instead of UTF-8"]
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return raw.decode("latin-1"), ["is not UTF-8 and was read as Latin-1"]


def _split(lines: list[str], delimiter: str) -> Iterable[list[str]]:
    """Split lines into cells; only CSV quotes its cells."""
    if delimiter == "\t":
        return (line.split("\t") for line in lines)
    return csv.reader(lines, delimiter=delimiter)


def _strip(cell: str) -> str:
    cell = cell.strip()
    return cell[1:-1].strip() if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _row_id(value: str, id_column: str) -> str:
    if id_column == "filename":
        return value.replace("\\", "/").rpartition("/")[2]
    return value.removeprefix({"participant_id": "sub-", "session_id": "ses-"}[id_column])


def _units(dictionary: Path) -> dict[str, str]:
    """Units of the columns in a table's data dictionary, where it has a readable one."""
    try:
        entries = json.loads(dictionary.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, Mapping):
        return {}
    units: dict[str, Any] = {
        name: entry.get("Units") for name, entry in entries.items() if isinstance(entry, Mapping)
    }
    return {name: unit for name, unit in units.items() if isinstance(unit, str)}
