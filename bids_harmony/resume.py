"""What an earlier run completed, and what need not be computed again."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bids_harmony.files import sha256_of, write_json
from bids_harmony.outputs import load_record
from bids_harmony.qc.record import PREPROCESSED, preprocessed, subject_records

#: A file read less than this long (ns) after a change may change again in one tick of its clock.
RECENT = 2_000_000_000
#: What a record says that preprocessing does not depend on.
LATER = frozenset({"warnings", "bundle", "calibration", "harmonization"})


class Digests:
    """SHA-256 of input files, each computed once for as long as the file stays as it is.

    A file stays as it is while its size, its inode and the times of its last changes do. One JSON
    file per participant remembers that, so that jobs on other participants write other files.

    Parameters
    ----------
    folder : pathlib.Path
        Where the JSON files are; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, dict[str, Any]] = {}
        self._new: set[str] = set()

    def of(self, path: Path, subject: str) -> str:
        """Return the digest of one of a participant's files.

        Raises
        ------
        OSError
            When the file cannot be read, or is none (a pipe would never end).
        """
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a file")
        if subject not in self._known:
            self._known[subject] = load_record(self._file(subject)) or {}
        known = self._known[subject]
        state = [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
        entry = known.get(str(path), {})
        # What was read at once after a change may have changed again, unseen by the times.
        if entry.get("state") == state and entry.get("read", 0) - max(state[2:]) > RECENT:
            return str(entry["sha256"])
        read = time.time_ns()
        digest = sha256_of(path)
        known[str(path)] = {"state": state, "sha256": digest, "read": read}
        self._new.add(subject)
        return digest

    def save(self) -> None:
        """Remember what was computed since the last call."""
        for subject in self._new:
            write_json(self._file(subject), self._known[subject])
        self._new.clear()

    def _file(self, subject: str) -> Path:
        return self.folder / f"sub-{subject}.json"


def report_is_new(out: Path, subject: str) -> bool:
    """Tell whether a participant's report was written after all its records."""
    report = out / f"sub-{subject}.html"
    return report.exists() and all(
        time <= report.stat().st_mtime_ns for time in record_times(out, subject).values()
    )


def record_times(out: Path, subject: str) -> dict[Path, int]:
    """List a participant's records with the times they were written (ns)."""
    times = {}
    for path in subject_records(out / f"sub-{subject}"):
        with suppress(FileNotFoundError):  # another job is replacing it
            times[path] = path.stat().st_mtime_ns
    return times


def is_preprocessed(
    out: Path,
    record: dict[str, Any] | None,
    facts: dict[str, Any],
    inputs: Callable[[], dict[str, str | None]],
) -> bool:
    """Tell whether a scan was preprocessed before, from the same inputs with the same settings.

    Parameters
    ----------
    out : pathlib.Path
        Root of the derivatives.
    record : dict or None
        The scan's, also where what followed has failed.
    facts : dict
        What the record would say before anything is computed; all must agree but the warnings and
        what concerns harmonization.
    inputs : callable
        Returns the digest of every file the results depend on. Asked last, as it may have to read
        them.

    Returns
    -------
    bool
        The record is written after every output; all of them must still be there.
    """
    if record is None or not record.keys() >= {*PREPROCESSED, "outputs"}:
        return False
    expected = json.loads(json.dumps(facts))
    if any(record.get(k) != v for k, v in expected.items() if k not in LATER):
        return False
    if not all((out / path).exists() for path in preprocessed(record)["outputs"]):
        return False
    return bool(record.get("inputs") == inputs())
