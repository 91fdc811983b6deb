"""Read, merge and apply visual QC ratings.

A rating file is a table with the columns scan, rater, time, verdict and comment, as saved by the
group report. Only the newest verdict of each rater counts. If raters disagree, the verdict is
``disputed`` and has no effect.
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
#: Verdict on a scan whose raters disagree.
DISPUTED = "disputed"
#: Status of a scan rejected by its raters.
REJECTED = "rejected"
OLDEST = datetime.min.replace(tzinfo=UTC)
#: Parts of the path of a scan or its derivatives that are not the scan's key.
NOT_KEY = re.compile(r"(?i)^.*[/\\]|_(T1w|desc-).*|\.(nii(\.gz)?|html|json)$|_(space|res)-[^_]*")


class Rating(NamedTuple):
    """Common verdict of a scan's raters: one of :data:`VERDICTS`, or :data:`DISPUTED`."""

    verdict: str
    n_raters: int


def rating_files(config: RunConfig) -> list[Path]:
    """List the rating files of a run: the output folder's, if it exists, then ``--qc-ratings``."""
    own = config.output_dir / FILE
    return list(dict.fromkeys([*([own] if own.is_file() else []), *config.qc_ratings]))


def read_ratings(paths: Iterable[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Read rating files, including those edited in spreadsheets.

    Text encoding, separators, line endings, quotes and the order of columns may vary, and
    additional columns are ignored.

    Parameters
    ----------
    paths : iterable of pathlib.Path
        Rating files; rows found in several files count once.

    Returns
    -------
    ratings : pandas.DataFrame
        All rows, with the columns :data:`COLUMNS` (str, empty where missing), sorted by scan,
        rater and time. Rows with an unknown verdict are kept unchanged.
    problems : list of str
        Invalid rows, by file and line, and assumptions made to read a file.

    Raises
    ------
    UsageError
        When a file cannot be read or lacks the columns scan and verdict.
    """
    rows: dict[tuple[str, ...], None] = {}
    problems: list[str] = []
    for path in paths:
        rows |= dict.fromkeys(_read_file(path, problems))
    # The sort is stable: rows of the same time keep their order.
    ordered = sorted(rows, key=lambda row: (row[0], row[1], _when(row[2])))
    return pd.DataFrame(ordered, columns=list(COLUMNS), dtype=object), problems


def _read_file(path: Path, problems: list[str]) -> list[tuple[str, ...]]:
    try:
        text, notes = read_text(path)
    except TextError as error:
        raise UsageError(
            f"The rating file {path} cannot be read ({error}).",
            "Give --qc-ratings a text file saved by the group report.",
        ) from error
    header, lines, more = split_table(text)
    header = [name.lower() for name in header]
    if not {"scan", "verdict"} <= set(header):
        raise UsageError(
            f"The rating file {path} has no columns scan and verdict.",
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
    """Return the text of a cell, empty if missing; N. A. may be a rater's initials."""
    free = name in ("rater", "comment")
    return "" if text.lower() == "n/a" or (is_missing(text) and not free) else text


def _fault(row: Mapping[str, str]) -> str:
    """Describe the problem with a row; return an empty string if it is valid."""
    if not row["scan"]:
        return "the scan is missing"
    if row["verdict"] not in ("", *VERDICTS):
        return f"the verdict '{row['verdict']}' is not one of {', '.join(VERDICTS)}"
    if row["time"] and _when(row["time"]) == OLDEST:
        return f"the time '{row['time']}' is invalid and counts as the oldest"
    return ""


def _when(text: str) -> datetime:
    """Parse an ISO 8601 time, by default in UTC; an invalid one counts as the oldest."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return OLDEST
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def merge_ratings(ratings: pd.DataFrame) -> dict[str, Rating]:
    """Merge the ratings of each scan.

    Parameters
    ----------
    ratings : pandas.DataFrame
        Ratings from :func:`read_ratings`, with the newest row of each rater last.

    Returns
    -------
    dict of str to Rating
        Common verdict by scan. Only the newest row of each rater counts; if its verdict is empty,
        the earlier one is withdrawn. Scans without a verdict are omitted.
    """
    counts = ratings["verdict"].isin(["", *VERDICTS]) & (ratings["scan"] != "")
    newest = ratings[counts].drop_duplicates(["scan", "rater"], keep="last")
    held = newest[newest["verdict"] != ""].groupby("scan")["verdict"]
    return {
        str(scan): Rating(found.iloc[0] if found.nunique() == 1 else DISPUTED, len(found))
        for scan, found in held
    }


def unmatched(ratings: pd.DataFrame, there: Iterable[str]) -> str:
    """Return a message on rated scans missing from ``there``, or an empty string."""
    unknown = sorted(set(ratings["scan"]) - set(there) - {""})
    if not unknown:
        return ""
    return f"{counted(len(unknown), 'rated scan')} without a record here: {named(unknown)}."


def rated_status(status: str | None, rating: Rating | None) -> str | None:
    """Override the automatic status of a scan with the raters' verdict.

    Parameters
    ----------
    status : str or None
        Status in the scan's record: pass, warn, fail, error or None.
    rating : Rating or None
        Rating from :func:`merge_ratings`.

    Returns
    -------
    str or None
        :data:`REJECTED` if the raters reject the scan, ``pass`` if they accept it, otherwise
        ``status``. An accepted scan keeps the status ``error``, as it has no results.
    """
    if rating and rating.verdict == "reject":
        return REJECTED
    return "pass" if rating and rating.verdict == "accept" and status != "error" else status


def write_ratings(path: Path, ratings: pd.DataFrame) -> None:
    """Write ratings as a tab-separated file in the format of the group report."""
    rows = [COLUMNS, *ratings[list(COLUMNS)].itertuples(index=False)]
    write_text(path, "".join("\t".join(cell or "n/a" for cell in row) + "\n" for row in rows))
