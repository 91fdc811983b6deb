"""Which columns of the tables hold site, age, sex and diagnosis."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from bids_harmony.bids_ages import age_units
from bids_harmony.errors import UsageError
from bids_harmony.text import CODE, has_word, is_missing, plain_number

if TYPE_CHECKING:
    from bids_harmony.bids_tables import Table

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
#: Words by which a column of another name may be the one wanted, and words that speak against it.
LIKELY = {
    "site": (r"sites?|cent(er|re)s?|scanners?|hospital|siteno",
             r"model|manufacturer|software|version|serial|type|strength|sequence"),
    "age": (r"ages?|age(yrs?|years?|months?|days?|scan|mri|at.*|in.*)|(scan|mri)age",
            r"onset|groups?|brain|bone|predicted|diagnosis|dx"),
    "sex": (r"sex|gender", r"age"),
    "diagnosis": (r"diagnos[ie]s|diagnostic|dx|diag", r"age|date|onset|years?"),
}  # fmt: skip


def named_person(cells: Mapping[str, str]) -> str | None:
    """Read whom a column ``person`` or ``person_id`` names behind a label; None where none does.

    Parameters
    ----------
    cells : mapping of str to str
        A scan's cells by column (:attr:`bids_harmony.bids.Scan.columns`).
    """
    lowered = {name.lower(): cell for name, cell in cells.items()}
    named = lowered.get("person") or lowered.get("person_id")
    if not named or CODE.fullmatch(named.strip()):
        return None
    return named.strip().removeprefix("sub-")


@dataclass(frozen=True)
class Columns:
    """Columns the user named, None where the usual names are to be tried."""

    site: str | None = None
    age: str | None = None
    sex: str | None = None
    diagnosis: str | None = None

    def among(self, there: tuple[str, ...], what: str) -> list[str]:
        """Pick a table's columns for one of these four, the preferred one first."""
        return _among(getattr(self, what), there, what)


@lru_cache
def _among(named: str | None, there: tuple[str, ...], what: str) -> list[str]:
    if named in there:  # as written, before any spelling that differs in case only
        return [named]
    lowered = {name.lower(): name for name in reversed(there)}
    wanted = (named.lower(),) if named else DEFAULT_COLUMNS[what]
    return [lowered[name] for name in wanted if name in lowered]


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


def _differ(table: Table, first: str, other: str) -> bool:
    """Tell whether two columns say different things of anybody."""
    pairs = ((row.get(first, ""), row.get(other, "")) for row in table.rows.values())
    return any(
        not (is_missing(a) or is_missing(b)) and plain_number(a) != plain_number(b)
        for a, b in pairs
    )


def column_warnings(columns: Columns, tables: Collection[Table]) -> list[str]:
    """Say which ages cannot be used, and which columns look like one that is not found."""
    said: dict[str, None] = {}
    for table in tables:
        for column in columns.among(table.columns, "age")[:1]:
            if why := age_units(column, table.units, table.broken)[1]:
                said[f"The column {column} of {table.name} is not used: {why}."] = None
        first, *others = columns.among(table.columns, "age") or [""]
        if other := next((c for c in others if _differ(table, first, c)), None):
            said[
                f"{table.name} has other ages in {other} than in {first}, which is used: give "
                f'--age-column "{other}" to use that.'
            ] = None
    for table in tables:
        name, there = table.name, table.columns
        for what, (words, against) in LIKELY.items():
            known = columns.among(there, what)
            if getattr(columns, what) or any(
                not is_missing(row.get(c, "")) for row in table.rows.values() for c in known
            ):
                continue
            likely = [
                f'"{c}"' for c in there
                if c not in known and has_word(c, words) and not has_word(c, against)
            ]  # fmt: skip
            if likely:
                said[
                    f"{name} has no {what} in a column of a usual name, but {', '.join(likely)} "
                    f"looks like it: give --{what}-column {likely[0]} to use it."
                ] = None
    return list(said)
