"""Read site, age, sex and diagnosis from a dataset's tables.

Tables are often typed by hand and saved by spreadsheets. The reader tolerates common defects,
warns about every assumption, and never stops a run: unreadable tables are skipped with a warning.
Ambiguous values are left out rather than guessed, since a wrong value may look valid, such as an
age in months read as years.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bids_harmony.bids.sidecars import Sidecars
from bids_harmony.errors import UsageError
from bids_harmony.files import (
    CODE,
    TextError,
    id_key,
    is_missing,
    look_alikes,
    plain_number,
    read_text,
    split_table,
)

#: Column names tried if none is given, in this order, ignoring case.
DEFAULT_COLUMNS = {
    "site": "site site_id siteid site_name scan_site acquisition_site center centre center_id "
    "centre_id scanner scanner_id",
    "age": "age age_years age_at_scan age_at_mri age_at_visit scan_age",
    "sex": "sex gender",
    "diagnosis": "diagnosis dx diag dx_group patient_group group",
}
#: Labels of the control group.
CONTROLS = frozenset(
    {"control", "controls", "con", "hc", "healthy", "healthy control", "cn", "nc", "normal", "no",
     "none", "false", "0", "0.0"}
)  # fmt: skip
SEXES = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F"}
MAX_AGE = 120.0
#: Length of each unit of time in years, by its first letter.
YEARS = {"y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}
#: Units in text normalized by :func:`column_key`, but not durations such as "12_months".
_UNITS = re.compile(
    r"(?<!\d)(?<!\d_)(?:(?:year|month|week|day)s?(?!s?_?\d)"
    r"|(?<![a-z])(?:y|yo|yrs?|m|mos?|mons?|mths?|w|wks?|d)(?![a-z]))"
)
_AGE = re.compile(
    r"(?:>=?)?\s*(?P<number>[-+]?\d+(?:\.\d+|,\d{1,2})?)\s*\+?\s*"
    r"(?P<unit>[a-z][a-z\s./()]*)?\.?",
    re.IGNORECASE,
)
#: Column names given by the user (or None) for ``site``, ``age``, ``sex`` and ``diagnosis``.
Columns = dict[str, str | None]


@dataclass(frozen=True)
class Table:
    """Rows of a table by their ID.

    Attributes
    ----------
    file : str
        File name, such as ``sub-01_sessions.tsv``.
    columns : tuple of str
        Column names as written; empty if the table cannot be used.
    rows : dict of str to dict
        Cells as text by column, for each row ID: the label without ``sub-`` or ``ses-``, or for
        ``scans.tsv`` the file name without ``.nii[.gz]``. If several rows have the same ID, only
        cells on which they agree are included.
    dictionary : dict of str to dict
        Entries of the data dictionary, by column name normalized by :func:`column_key`.
    broken : str
        Name of an unreadable data dictionary and the reason; empty if there is none.
    notes : tuple of str
        Warnings about the file: assumptions made and content left out.
    named : Columns
        Column names given by the user.
    """

    file: str
    columns: tuple[str, ...] = ()
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    dictionary: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: str = ""
    notes: tuple[str, ...] = ()
    named: Columns = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Kind of table: ``participants.tsv``, ``sessions.tsv`` or ``scans.tsv``."""
        return self.file.rpartition("_")[2]

    @cached_property
    def _similar(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for row_id in self.rows:
            found[id_key(row_id)].append(row_id)
        return found

    def values_of(self, row_id: str) -> dict[str, tuple[Any, str, str]]:
        """Return value, note and ``table:column`` of each value of a row."""
        row, values = self.rows.get(row_id, {}), {}
        for what, names in self.usable.items():
            if name := next((n for n in names if not is_missing(row.get(n, ""))), None):
                values[what] = (*_value(what, row[name], self, name), f"{self.name}:{name}")
        return values

    def absent(self, row_id: str) -> str:
        """Return a message that an ID has no row, with similar IDs that do."""
        prefix = {"participants.tsv": "sub-", "sessions.tsv": "ses-"}.get(self.name, "")
        near = look_alikes(row_id, self._similar.get(id_key(row_id), ()))[:3]
        meant = f": did you mean {' or '.join(prefix + name for name in near)}?" if near else "."
        return f"{self.file} has no row for {prefix}{row_id}{meant}"

    @cached_property
    def usable(self) -> dict[str, list[str]]:
        """Columns for site, age, sex and diagnosis, in order of preference."""
        lowered = {name.lower(): name for name in reversed(self.columns)}
        usable = {}
        for what, names in DEFAULT_COLUMNS.items():
            named = self.named.get(what)
            wanted = [named.lower()] if named else names.split()
            usable[what] = [lowered[name] for name in wanted if name in lowered]
        return usable

    @property
    def warnings(self) -> list[str]:
        """Notes, unusable ages, and columns that may have been meant."""
        warnings = list(self.notes)
        ages = self.usable["age"]
        if ages and (why := self.age_unit(ages[0])[1]):
            warnings.append(f"The column {ages[0]} of {self.name} is not used: {why}.")
        for what, found in self.usable.items():
            likely = [f'"{c}"' for c in self.columns if column_key(c).startswith(what[:4])]
            if likely and not found and not self.named.get(what):
                names = " or ".join(likely)
                warnings.append(f"Give --{what}-column if {names} of {self.name} is the {what}.")
        return warnings

    def age_unit(self, column: str) -> tuple[float, str]:
        """Return the length of an age column's unit in years, and why it is unusable, or ""."""
        entry = self.dictionary.get(column_key(column), {})
        units = " ".join(str(entry.get("Units", "")).split())
        if not is_missing(units):
            lengths = {*lengths_of_units(units)}
            why = f"its Units in the data dictionary are {units[:60]!r}, not years or months"
        elif self.broken:
            return 1.0, f"{self.broken}, and may define its units"
        else:
            text = f"{entry.get('LongName')} {entry.get('Description')}"
            lengths = {*(lengths_of_units(column) or [1.0]), *lengths_of_units(text)[:1]}
            why = "its name and description do not clearly state that it is in years"
        return (lengths.pop(), "") if len(lengths) == 1 else (1.0, why)


def read_table(
    path: Path, sidecars: Sidecars | None = None, named: Columns | None = None
) -> Table:
    """Read a BIDS table, tolerating common defects of spreadsheet exports.

    Parameters
    ----------
    path : pathlib.Path
        ``participants.tsv``, ``..._sessions.tsv`` or ``..._scans.tsv``.
    sidecars : Sidecars, optional
        JSON files of the dataset. By default, data dictionaries are searched next to the table.
    named : Columns, optional
        Column names given by the user.

    Returns
    -------
    Table
        Without columns, and with the reason in its warnings, if the table cannot be used.
    """
    file = path.name
    ids = {"participants.tsv": "participant_id", "sessions.tsv": "session_id"}
    id_column = ids.get(file.rpartition("_")[2], "filename")
    try:
        text, notes = read_text(path)
        header, body, more = split_table(text)
        if id_column not in map(column_key, header):
            raise TextError(f"it has no {id_column} column")
    except TextError as error:
        return Table(file, notes=(f"{file} cannot be read ({error}): not used.",))
    rows, problems = _rows_by_id(header, body, id_column)
    dictionary, broken, said = _read_dictionary(path, sidecars or Sidecars(path.parent))
    columns = tuple(dict.fromkeys(filter(None, header)))
    notes = [f"{file} {note}." for note in (*notes, *more, *problems)]
    return Table(file, columns, rows, dictionary, broken, (*notes, *said), named or {})


def _rows_by_id(
    header: list[str], body: list[tuple[int, list[str]]], id_column: str
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the rows by ID, merging those of the same ID, and notes on their problems."""
    id_name = next(name for name in header if column_key(name) == id_column)
    positions = {name: header.index(name) for name in header if name}
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    problems: dict[str, list[str]] = defaultdict(list)
    for line, cells in body:
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        row = {name: cells[n] for name, n in positions.items() if n < len(cells)}
        row_id = _row_id(row.get(id_name, ""))
        if is_missing(row_id):
            problems[f"has no {id_column} in line"].append(str(line))
            continue
        if len(cells) > len(header):
            problems["has more cells than columns, which are not used, in line"].append(str(line))
            row = {id_name: row[id_name]}
        elif len(cells) < len(header):
            problems["has fewer cells than columns in line"].append(str(line))
        found[row_id].append(row)
    notes = [f"{problem} {', '.join(lines[:5])}" for problem, lines in problems.items()]
    if several := [row_id for row_id, rows in found.items() if len(rows) > 1]:
        shown = ", ".join(several[:5])
        notes.append(f"has several rows for {shown}: cells in which they differ are not used")
    return {
        row_id: {n: c for n, c in rows[0].items() if all(row.get(n) == c for row in rows)}
        for row_id, rows in found.items()
    }, notes


def _row_id(value: str) -> str:
    """Return an ID without ``sub-`` or ``ses-``, or a file name without folders and extension."""
    name = re.split(r"[/\\]", value)[-1]
    return re.sub(r"(?i)^(sub|ses)-(?!.*_)|\.nii(\.gz)?$", "", name)


def _read_dictionary(
    path: Path, sidecars: Sidecars
) -> tuple[dict[str, dict[str, Any]], str, list[str]]:
    """Return a table's inherited data dictionary, the one that is unreadable, and warnings."""
    entries: dict[str, dict[str, Any]] = defaultdict(dict)
    broken, warnings = "", []
    for file, content, note in sidecars.of(path):
        if note:
            warnings.append(f"{file.name} {note}.")
        if content is None:
            broken = f"{file.name} {note}"
            entries.clear()
        for name, entry in (content or {}).items():
            described = entry if isinstance(entry, dict) else {"Description": entry}
            entries[column_key(name)].update(described)
    return entries, broken, warnings


def column_key(name: str) -> str:
    """Return a column name in lower case, with punctuation replaced by single underscores.

    Column names and the keys of their data dictionary are matched by this form.
    """
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


class Tables:
    """Tables of a dataset, each read on first use.

    Parameters
    ----------
    sidecars : Sidecars
        JSON files of the dataset, including data dictionaries.
    named : Columns
        Column names given by the user.
    """

    def __init__(self, sidecars: Sidecars, named: Columns) -> None:
        self._sidecars, self._named = sidecars, named
        self._read: dict[Path, Table] = {}

    def _table(self, *parts: str) -> Table | None:
        path = self._sidecars.root.joinpath(*parts)
        if path not in self._read and os.path.lexists(path):
            self._read[path] = read_table(path, self._sidecars, self._named)
        return self._read.get(path)

    def rows_of(self, scan: Path, sub: str, ses: str | None) -> list[tuple[Table, str]]:
        """Return the tables that may have a row of a scan with its ID, most specific first."""
        sub_, key = f"sub-{sub}", scan.name.partition(".")[0]
        found = [(self._table(sub_, f"{sub_}_scans.tsv"), key)]
        if ses:
            if own := self._table(sub_, f"ses-{ses}", f"{sub_}_ses-{ses}_scans.tsv"):
                found = [(own, key)]  # otherwise one table may list all sessions
            found.append((self._table(sub_, f"{sub_}_sessions.tsv"), ses))
        found.append((self._table("participants.tsv"), sub))
        return [(table, row_id) for table, row_id in found if table is not None]

    def check_columns(self) -> None:
        """Check that each column given by the user exists in a table that was read.

        Raises
        ------
        UsageError
            If a column does not exist; the message lists the existing ones.
        """
        tables = self._read.values()
        there = ", ".join(dict.fromkeys(c for table in tables for c in table.columns))
        for what, name in self._named.items():
            if name and not any(table.usable[what] for table in tables):
                cause = f"--{what}-column {name}: no table of the dataset has this column."
                remedy = f"Existing columns: {there or 'none, as no table can be read'}."
                raise UsageError(cause, remedy)

    def warnings(self) -> list[str]:
        """Return the warnings about all tables and their columns, without duplicates."""
        return [*dict.fromkeys(note for t in self._read.values() for note in t.warnings)]


def describe(rows: Sequence[tuple[Table, str]]) -> dict[str, Any]:
    """Return what the tables say about one scan.

    A value missing in the most specific table is taken from the next one. Age is an exception: if
    a more specific table has an age column or cannot be read, the participant's age is not used,
    since it may be the age at another session.

    Parameters
    ----------
    rows : sequence of (Table, str)
        Tables with the scan's row ID, most specific first, so that a session's age takes
        precedence over the participant's.

    Returns
    -------
    dict
        The fields ``site``, ``site_source``, ``age``, ``sex`` and ``diagnosis`` of
        :class:`bids_harmony.bids.dataset.Scan` that have a value, ``columns`` and ``warnings``.
    """
    columns: dict[str, str] = {}
    found: dict[str, tuple[Any, str, str]] = {}
    for table, row_id in reversed(rows):
        column = found.get("age", (None, "", ""))[2]
        if column.startswith("participants") and (table.usable["age"] or not table.columns):
            note = (
                "was not used, as it may be the age at another session: "
                f"{table.file} has ages by session, but none for this one."
            )
            found["age"] = (None, note, column)
        found |= table.values_of(row_id)
        row = table.rows.get(row_id, {})
        columns |= {name: cell for name, cell in row.items() if not is_missing(cell)}
    warnings = [
        table.absent(row_id) if table.columns else f"{table.file} cannot be used."
        for table, row_id in rows
        if row_id not in table.rows
    ]
    facts = {what: value for what, (value, _, _) in found.items() if value is not None}
    if "site" in facts:
        facts["site_source"] = found["site"][2]
    notes = [(found[what][2], found[what][1]) for what in DEFAULT_COLUMNS if what in found]
    warnings += [f"{column}: {note}" for column, note in notes if note]
    return {**facts, "columns": columns, "warnings": tuple(warnings)}


def _value(what: str, text: str, table: Table, column: str) -> tuple[Any, str]:
    """Return the value of a cell, and a note if it was not used or not plain."""
    if what == "age":
        years, why = table.age_unit(column)
        return (None, f"{why}; it was not used.") if why else parse_age(text, years)
    if what == "sex":
        sex = SEXES.get(text.lower())
        return sex, "" if sex else f"sex '{text}' is not M or F and was not used."
    if CODE.fullmatch(text):
        return None, f"'{text}' is read as a missing {what}."
    return plain_number(text), ""


def lengths_of_units(text: str) -> list[float]:
    """Return the lengths in years of the units of time in a text, in order of appearance."""
    return [YEARS[unit[0]] for unit in _UNITS.findall(column_key(text))]


def parse_age(text: str, years: float = 1.0) -> tuple[float | None, str]:
    """Parse an age in years.

    Parameters
    ----------
    text : str
        Non-missing cell, such as ``35``, ``35.4``, ``035Y``, or ``89+`` (how ages over 89 are
        published).
    years : float
        Length of the column's unit in years.

    Returns
    -------
    age : float or None
        Age in years, 0 to 120; None if the cell has no valid age.
    note : str
        Assumption made, or the reason why there is no age; empty if the cell is a plain number.

    Examples
    --------
    >>> parse_age("35.5")
    (35.5, '')
    >>> parse_age("89+")
    (89.0, "age '89+' was read as 89.")
    """
    match = _AGE.fullmatch(text.strip())
    units = lengths_of_units(match["unit"]) if match and match["unit"] else [years]
    if not match or len(units) != 1:
        return None, f"age '{text}' is not a number of years and was not used."
    age = round(float(match["number"].replace(",", ".")) * units[0], 4)
    if not 0 <= age <= MAX_AGE:
        return None, f"age '{text}' is outside 0 to {MAX_AGE:.0f} years and was not used."
    plain = not set(">+,") & set(text) and (units[0] == years == 1 or not match["unit"])
    return age, "" if plain else f"age '{text}' was read as {age:g}."


def named_person(cells: Mapping[str, str]) -> str | None:
    """Return the person named in the column ``person`` or ``person_id``, or None.

    The same person may have several participant labels, for example one per site.

    Parameters
    ----------
    cells : mapping of str to str
        A scan's cells by column (:attr:`bids_harmony.bids.dataset.Scan.columns`).
    """
    lowered = {name.lower(): cell for name, cell in cells.items()}
    named = (lowered.get("person") or lowered.get("person_id") or "").strip()
    return None if not named or CODE.fullmatch(named) else named.removeprefix("sub-")
