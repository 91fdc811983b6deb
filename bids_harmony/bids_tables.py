"""Site, age, sex and diagnosis from a dataset's tables, read as they come.

Tables are typed by hand and saved by spreadsheets, so the reader takes what can be understood,
says what it had to guess, and never stops a run: a table that makes no sense is left out with
a warning. What is not understood is never replaced by a guess.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bids_harmony.bids_ages import age_units, column_key, parse_age, units_of
from bids_harmony.bids_columns import Columns
from bids_harmony.bids_sidecars import Folders, inherited
from bids_harmony.text import (
    CODE,
    TextError,
    id_key,
    is_missing,
    look_alikes,
    plain_number,
    read_text,
    split_table,
)

#: Columns of ``participants.tsv`` that say of which session a row is: the first that is there.
SESSION_COLUMNS = ("session_id", "session", "ses", "ses_id", "visit_id", "visit", "timepoint")
#: Other spellings of them.
_SESSION = re.compile(
    r"(?:session|sess?|visit|time_?point|tp|wave)_?(?:id|label|name|no|num|number|nr|code|idx)?"
    r"|viscode2?|event_?name|redcap_event_name"
)
_PREFIX = {"participant_id": "sub-", "session_id": "ses-"}


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
        Cells as text, by row id: the label without ``sub-`` or ``ses-``, the file's name without
        ``.nii[.gz]`` in ``scans.tsv``. Where ``participants.tsv`` has a row per session,
        ``label_session``, or ``label_`` for rows that name none, and in ``label`` what all rows
        of the participant say. Cells in which several rows of one id differ are left out.
    conflicts : dict of str to dict
        Those cells, by row id and column: which lines differ.
    units : dict of str to tuple of str
        By :func:`~bids_harmony.bids_ages.column_key`, the units its data dictionary gives, and
        how it says so.
    broken : str
        A data dictionary that cannot be read, and why; ``units`` has what does not depend on it.
    file : str
        The table's own name, such as ``sub-01_sessions.tsv``.
    written : dict of str to str
        By row id, the id as written.
    warnings : tuple of str
        What had to be guessed or left out.
    """

    name: str
    columns: tuple[str, ...] = ()
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    conflicts: dict[str, dict[str, str]] = field(default_factory=dict)
    units: dict[str, tuple[str, str]] = field(default_factory=dict)
    broken: str = ""
    file: str = ""
    written: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """What to call it in a message."""
        return self.file or self.name

    @cached_property
    def sessions(self) -> dict[str, list[str]]:
        """By participant, the rows of single sessions in ``participants.tsv``."""
        found = defaultdict(list)
        for row_id in self.rows if self.name == "participants.tsv" else ():
            label, _, session = row_id.partition("_")
            if session:
                found[label].append(row_id)
        return dict(found)

    @cached_property
    def _similar(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for row_id in self.rows:
            found[id_key(row_id)].append(row_id)
        return dict(found)

    def ids_of(self, sub: str, ses: str | None) -> list[str]:
        """Ids of the rows of ``participants.tsv`` that are a scan's, the most specific first."""
        general = [f"{sub}_"] if f"{sub}_" in self.rows else []
        if ses and sub in self.sessions:
            return [f"{sub}_{ses}", *general]
        return general or [sub]

    def absent(self, row_id: str) -> str:
        """Say that there is no row of an id, and which may be the one."""
        label, session = row_id, ""
        if self.name == "participants.tsv":
            label, _, session = row_id.partition("_")
        prefix = {"participants.tsv": "sub-", "sessions.tsv": "ses-"}.get(self.name, "")
        who = f"ses-{session} of sub-{label}" if session else f"{prefix}{label}"
        near = look_alikes(row_id, self._similar.get(id_key(row_id), ()))[:3]
        meant = " or ".join(f"'{self.written.get(other, other)}'" for other in near)
        return f"{who} has no row in {self.where}" + (f": did you mean {meant}?" if near else ".")

    def has_ages(self, row_id: str, names: Collection[str]) -> bool:
        """Tell whether it may hold ages of single sessions of a person, one of whose is asked."""
        if self.name == "participants.tsv":
            ids: Collection[str] = self.sessions.get(row_id.partition("_")[0], ())
        else:
            ids = self.rows
        return (not self.columns and self.name == "sessions.tsv") or any(
            name in self.conflicts.get(i, ()) or not is_missing(self.rows[i].get(name, ""))
            for i in ids
            for name in names
        )


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


def read_table(
    path: Path, id_column: str, root: Path | None = None, folders: Folders | None = None
) -> Table:
    """Read a BIDS table, tolerating what spreadsheets do to one.

    Parameters
    ----------
    path : pathlib.Path
        ``..._participants.tsv``, ``..._sessions.tsv`` or ``..._scans.tsv``.
    id_column : str
        ``participant_id``, ``session_id`` or ``filename``.
    root : pathlib.Path, optional
        The dataset, from which on data dictionaries apply; the table's own folder by default.
    folders : Folders, optional
        Listings shared between tables.

    Returns
    -------
    Table
        Without columns, and with the reason among its warnings, where it cannot be used.
    """
    name, where = path.name.rpartition("_")[2], path.name

    def unusable(why: str) -> Table:
        return Table(name, file=where, warnings=(f"{where} {why}: not used.",))

    try:
        text, notes = read_text(path)
    except TextError as error:
        return unusable(f"cannot be read ({error})")
    header, body, more = split_table(text)
    notes += more
    while header and not header[-1]:
        header.pop()
    lowered = [c.lower().replace(" ", "_") for c in header]
    if id_column not in lowered:
        columns = ", ".join(header[:10])
        return unusable(f"has no {id_column} column ({columns})" if header else "is empty")
    id_name = header[lowered.index(id_column)]
    ses_name = _session_column(header) if id_column == "participant_id" else None
    found: dict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
    whole: dict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
    written: dict[str, str] = {}
    short, long, nameless = [], [], []
    for line, cells in body:
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if len(cells) < len(header):
            short.append(line)
        row: dict[str, str] = {}
        for column, cell in zip(header, cells, strict=False):
            row.setdefault(column, cell)
        if is_missing(row.get(id_name, "")):
            nameless.append(line)
            continue
        if len(cells) > len(header):
            long.append(line)
            row = {id_name: row[id_name]}
        row_id = _row_id(row[id_name], id_column)
        written[row_id] = row[id_name]
        if ses_name is not None:
            whole[row_id].append((line, row))
            session = row.get(ses_name, "")
            row_id += "_" + ("" if is_missing(session) else _row_id(session, "session_id"))
            written[row_id] = f"{row[id_name]} {session}"
        found[row_id].append((line, row))
    rows, conflicts = {}, {}
    for row_id, several in (found | whole).items():
        rows[row_id], conflicts[row_id] = _agreed(several, where)
    if repeated := [(i, several) for i, several in found.items() if len(several) > 1]:
        shown = "; ".join(
            f"{i.rstrip('_').replace('_', ' ses-')} ({_lines(n for n, _ in several)})"
            for i, several in repeated[:5]
        )
        notes.append(f"has several rows for {shown}: cells in which they differ are not used")
    if nameless:
        notes.append(f"has no {id_column} in {_lines(nameless)}: not used")
    if short:
        notes.append(f"has too few cells in {_lines(short)}: what is missing may be in the middle")
    if long:
        notes.append(f"has more cells than columns in {_lines(long)}: not used")
    if len(set(lowered)) < len(header):
        notes.append("has columns of the same name; the first was used")
    units, broken, said = _units(path, root or path.parent, folders or Folders())
    return Table(
        name=name,
        columns=tuple(dict.fromkeys(filter(None, header))),
        rows=rows,
        conflicts={row_id: cells for row_id, cells in conflicts.items() if cells},
        units=units,
        broken=broken,
        file=where,
        written=written,
        warnings=(*(f"{where} {note}." for note in notes), *said),
    )


def _session_column(header: list[str]) -> str | None:
    """Find the column that says of which session a row is."""
    keys = [column_key(name) for name in header]
    usual = [keys.index(c) for c in SESSION_COLUMNS if c in keys]
    others = [n for n, key in enumerate(keys) if _SESSION.fullmatch(key)]
    return header[(usual + others)[0]] if usual or others else None


def _row_id(value: str, id_column: str) -> str:
    if id_column == "filename":
        return re.sub(r"(?i)\.nii(\.gz)?$", "", value.replace("\\", "/").rpartition("/")[2])
    return re.sub(f"(?i)^{_PREFIX[id_column]}", "", value)


def _lines(numbers: Iterable[int]) -> str:
    """``line 2``, ``lines 2 and 5``, ``lines 2, 3, 4, 5, 6 and 20 more``."""
    first = [str(n) for n in numbers]
    if len(first) > 6:
        first[5:] = [f"{len(first) - 5} more"]
    said = ", ".join(first[:-1]) + " and " + first[-1] if len(first) > 1 else first[0]
    return f"line{'s' * (len(first) > 1)} {said}"


def _agreed(
    several: list[tuple[int, dict[str, str]]], where: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Merge rows that cannot be told apart: the cells they agree on, and which others differ."""
    if len(several) == 1:
        return several[0][1], {}
    merged, conflicts = {}, {}
    for column in dict.fromkeys(c for _, row in several for c in row):
        said = [(n, row[column]) for n, row in several if not is_missing(row.get(column, ""))]
        cells = {plain_number(cell).casefold(): cell for _, cell in said}
        if len(cells) > 1:
            shown = ", ".join([*cells.values()][:5])
            conflicts[column] = f"{_lines(n for n, _ in said)} of {where} differ ({shown})"
        else:
            merged[column] = said[0][1] if said else "n/a"
    return merged, conflicts


def _units(
    path: Path, root: Path, folders: Folders
) -> tuple[dict[str, tuple[str, str]], str, list[str]]:
    """Units of the columns by the data dictionaries of a table, with BIDS inheritance."""
    units: dict[str, tuple[str, str]] = {}
    broken, warnings = "", []
    for file, content, note in inherited(path, root, folders):
        if note:
            warnings.append(f"{file.name} {note}.")
        if content is None:
            units, broken = {}, f"{file.name} {note}"
            continue
        here: dict[str, tuple[str, str]] = {}
        for name, entry in content.items():
            if (found := units_of(entry)) is not None:
                key, (text, how) = column_key(name), found
                if key in here and here[key][0] != text:
                    text, how = "?", "gives it several Units"
                here[key] = text, f"{file.name} {how}"
        units |= here
    return units, broken, warnings


def describe(rows: Iterable[tuple[Table, str]], columns: Columns) -> Person:
    """Say what the tables hold about one scan.

    A value that the most specific table lacks comes from the next one, with a warning. An age
    does not come from a person's row where a table has ages of single sessions: it may be the age
    at another time. Neither do further columns that a more specific table has.

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
    warnings = [table.absent(i) for table, i in found if table.columns and i not in table.rows]
    warnings += [f"{table.where} cannot be used." for table, _ in found if not table.columns]
    site, source = _label(_find(found, columns, "site", warnings), "site", warnings)
    diagnosis, _ = _label(_find(found, columns, "diagnosis", warnings), "diagnosis", warnings)
    age = None
    if cell := _find(found, columns, "age", warnings):
        units, why = age_units(cell.column, cell.table.units, cell.table.broken)
        if why:
            warnings.append(f"{cell.source}: {why}, so it was not used.")
        else:
            age, note = parse_age(cell.text, units)
            warnings += [f"{cell.source}: {note}"] if note else []
    sex = None
    if (cell := _find(found, columns, "sex", warnings)) and not (sex := parse_sex(cell.text)):
        warnings.append(f"{cell.source}: sex '{cell.text}' is not M or F, so it was not used.")
    cells: dict[str, str] = {}
    for n, (table, row_id) in enumerate(found):
        taken = {c.lower() for other, _ in found[:n] if other is not table for c in other.columns}
        for name, text in table.rows.get(row_id, {}).items():
            if name and name.lower() not in taken and not is_missing(text):
                cells.setdefault(name, text)
    return Person(site, source, age, sex, diagnosis, cells, tuple(warnings))


@dataclass(frozen=True)
class _Cell:
    text: str
    table: Table
    column: str

    @property
    def source(self) -> str:
        return f"{self.table.name}:{self.column}"


def _find(
    rows: list[tuple[Table, str]], columns: Columns, what: str, warnings: list[str]
) -> _Cell | None:
    """Find the most specific value there is, and say what was passed over for it."""
    passed: list[str] = []
    other_ages: Table | None = None
    for table, row_id in rows:
        names = columns.among(table.columns, what)
        row = table.rows.get(row_id)
        for name in names:
            if conflict := table.conflicts.get(row_id, {}).get(name):
                warnings.append(f"{table.name}:{name}: {conflict}, so it was not used.")
                return None
            if row is None or is_missing(row.get(name, "")):
                continue
            cell = _Cell(row[name], table, name)
            of_person = table.name == "participants.tsv" and (
                "_" not in row_id or row_id.endswith("_")
            )
            if other_ages and of_person:
                warnings.append(
                    f"{cell.source} may be the age at another time, as {other_ages.where} has "
                    "ages of single sessions and none of this one, so it was not used."
                )
                return None
            if passed:
                warnings.append(
                    f"{what}: taken from {cell.source}, as it is missing in {', '.join(passed)}."
                )
            return cell
        if names and row is not None:
            passed.append(f"{table.where}:{names[0]}")
        if what == "age" and table.has_ages(row_id, names):
            other_ages = table
    return None


def _label(cell: _Cell | None, what: str, warnings: list[str]) -> tuple[str | None, str]:
    """Read a site or a diagnosis: equal numbers are one, and codes for no value are none."""
    if cell is None:
        return None, "none"
    if CODE.fullmatch(cell.text):
        warnings.append(f"{cell.source}: '{cell.text}' is taken for a missing {what}.")
        return None, "none"
    return plain_number(cell.text), cell.source


def parse_sex(text: str | None) -> str | None:
    """Read ``M`` or ``F``; other words, and numbers, which have no fixed meaning, give None."""
    word = (text or "").strip().lower()
    if word in {"m", "male", "man"}:
        return "M"
    if word in {"f", "female", "woman"}:
        return "F"
    return None
