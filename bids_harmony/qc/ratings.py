"""What people who looked at the scans said: reading, merging and honouring their ratings.

A rating file is a table with the columns scan, rater, time, verdict and comment, as the group
report saves it. Of one rater the newest verdict counts; what several raters disagree about is
``disputed`` and decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from bids_harmony.bids.dataset import counted
from bids_harmony.errors import UsageError
from bids_harmony.files import (
    TextError,
    is_missing,
    look_alikes,
    read_text,
    split_table,
    write_text,
)
from bids_harmony.qc.dataset import named

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

FILE = "qc_ratings.tsv"
COLUMNS = ("scan", "rater", "time", "verdict", "comment")
VERDICTS = ("accept", "reject", "unsure")
#: What several raters say of a scan when their verdicts differ.
DISPUTED = "disputed"
#: A scan's status once a rater has rejected it.
REJECTED = "rejected"
OLDEST = datetime.min.replace(tzinfo=UTC)
#: What the path of a scan's file, or of one made of it, has beside the scan's key.
NOT_KEY = re.compile(r"(?i)^.*[/\\]|_(T1w|desc-).*|\.(nii(\.gz)?|html|json)$|_(space|res)-[^_]*")


class Rating(NamedTuple):
    """The raters' common verdict on a scan: one of :data:`VERDICTS`, or :data:`DISPUTED`."""

    verdict: str
    n_raters: int


def rating_files(config: RunConfig) -> list[Path]:
    """List a run's rating files: the output folder's own, if there is one, and those given."""
    own = config.output_dir / FILE
    return list(dict.fromkeys([*([own] if own.is_file() else []), *config.qc_ratings]))


def read_ratings(paths: Iterable[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Read rating files as people and spreadsheets leave them.

    Any encoding, separators and line ends, quotes, columns in any order and further columns do
    no harm.

    Parameters
    ----------
    paths : iterable of pathlib.Path
        The files; a row that stands in several counts once.

    Returns
    -------
    ratings : pandas.DataFrame
        Every row, in the columns of :data:`COLUMNS` (str, empty where missing), sorted by scan,
        rater and time. Rows with a verdict that does not exist are kept as they are.
    problems : list of str
        Such rows, by file and line, and what had to be guessed of a file.

    Raises
    ------
    UsageError
        When a file cannot be read, or lacks the columns scan and verdict.
    """
    rows: dict[tuple[str, ...], None] = {}
    problems: list[str] = []
    for path in paths:
        rows |= dict.fromkeys(_read_file(path, problems))
    # Rows of the same time stay in the order they were read in.
    ordered = sorted(rows, key=lambda row: (row[0], row[1], _when(row[2])))
    return pd.DataFrame(ordered, columns=list(COLUMNS), dtype=object), problems


def _read_file(path: Path, problems: list[str]) -> list[tuple[str, ...]]:
    try:
        text, notes = read_text(path)
    except TextError as error:
        raise UsageError(
            f"The ratings {path} cannot be read ({error}).",
            "Give --qc-ratings a text file saved by the group report.",
        ) from error
    header, lines, more = split_table(text)
    header = [name.lower() for name in header]
    if not {"scan", "verdict"} <= set(header):
        raise UsageError(
            f"The ratings {path} lack the columns scan and verdict.",
            f"Give a table with the columns {', '.join(COLUMNS)}.",
        )
    problems += [f"{path} {note}." for note in notes + more]
    rows = []
    for n, line in lines:
        cells = dict(zip(header, line, strict=False))
        row = {name: _cell(name, cells.get(name, "")) for name in COLUMNS}
        row |= {"scan": NOT_KEY.sub("", row["scan"]), "verdict": row["verdict"].lower()}
        if any(row.values()):
            rows.append(tuple(row.values()))
            if fault := _fault(row):
                problems.append(f"{path}, line {n}: {fault}.")
    return rows


def _cell(name: str, text: str) -> str:
    """One cell's text, empty for none; a rater's initials may be N. A."""
    free = name in ("rater", "comment")
    return "" if text.lower() == "n/a" or (is_missing(text) and not free) else text


def _fault(row: Mapping[str, str]) -> str:
    """Say what is wrong with a row; nothing where it counts."""
    if not row["scan"]:
        return "names no scan"
    if row["verdict"] not in ("", *VERDICTS):
        return f"the verdict '{row['verdict']}' is none of {', '.join(VERDICTS)}"
    if row["time"] and _when(row["time"]) == OLDEST:
        return f"the time '{row['time']}' cannot be read and counts as old"
    return ""


def _when(text: str) -> datetime:
    """Read an ISO 8601 time; without a zone it is UTC, and one that cannot be read is oldest."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return OLDEST
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def merge_ratings(ratings: pd.DataFrame) -> dict[str, Rating]:
    """Put the verdicts on each scan together.

    Parameters
    ----------
    ratings : pandas.DataFrame
        Of :func:`read_ratings`, which puts the newest row of a rater last.

    Returns
    -------
    dict of str to Rating
        By scan. Of one rater the newest row counts, and an empty verdict there takes back an
        earlier one; a scan of which nobody holds a verdict is absent.
    """
    counts = ratings["verdict"].isin(["", *VERDICTS]) & (ratings["scan"] != "")
    newest = ratings[counts].drop_duplicates(["scan", "rater"], keep="last")
    held = newest[newest["verdict"] != ""].groupby("scan")["verdict"]
    return {
        str(scan): Rating(found.iloc[0] if found.nunique() == 1 else DISPUTED, len(found))
        for scan, found in held
    }


def unmatched(ratings: pd.DataFrame, there: Iterable[str]) -> str:
    """Name the rated scans that are none of those there, and which may be meant; or nothing."""
    there = list(there)
    unknown = sorted(set(ratings["scan"]) - set(there) - {""})
    if not unknown:
        return ""
    near = dict.fromkeys(key for name in unknown[:3] for key in look_alikes(name, there))
    meant = f" Did you mean {' or '.join(list(near)[:3])}?" if near else ""
    return f"{counted(len(unknown), 'rated scan')} without a record here: {named(unknown)}.{meant}"


def rated_status(status: str | None, rating: Rating | None) -> str | None:
    """Let the raters' verdict on a scan take the place of the automatic one.

    Parameters
    ----------
    status : str or None
        In the scan's record: pass, warn, fail, error or None.
    rating : Rating or None
        Of :func:`merge_ratings`.

    Returns
    -------
    str or None
        :data:`REJECTED` where the raters reject the scan, ``pass`` where they accept it, and else
        the status it had. A scan that could not be finished stays ``error``: there is nothing to
        accept.
    """
    if rating and rating.verdict == "reject":
        return REJECTED
    return "pass" if rating and rating.verdict == "accept" and status != "error" else status


def write_ratings(path: Path, ratings: pd.DataFrame) -> None:
    """Write ratings as the group report saves them."""
    rows = [COLUMNS, *ratings[list(COLUMNS)].itertuples(index=False)]
    write_text(path, "".join("\t".join(cell or "n/a" for cell in row) + "\n" for row in rows))
