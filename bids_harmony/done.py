"""What was done before, and need not be done again."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony.files import sha256_of
from bids_harmony.outputs import load_record, scan_file

if TYPE_CHECKING:
    from bids_harmony.bids import Scan


def report_is_new(out: Path, subject: str) -> bool:
    """Tell whether a participant's report was written after all its records."""
    report = out / f"sub-{subject}.html"
    return report.exists() and all(
        time <= report.stat().st_mtime_ns for time in record_times(out, subject).values()
    )


def record_times(out: Path, subject: str) -> dict[Path, int]:
    """List a participant's records with the times they were written (ns)."""
    times = {}
    for path in (out / f"sub-{subject}").glob("**/anat/*_desc-harmony_qc.json"):
        with suppress(FileNotFoundError):  # another job took it back
            times[path] = path.stat().st_mtime_ns
    return times


def is_complete(out: Path, scan: Scan, facts: dict[str, Any]) -> bool:
    """Tell whether a scan was done before, from the same input with the same settings.

    Its record is written last, so a record means that every output was there; all must be there
    still, and the input's content and everything in ``facts`` must be the same.
    """
    record = load_record(scan_file(out, scan.entities, scan.key, "qc"))
    if record is None or record.get("status") == "error":
        return False
    expected = json.loads(json.dumps(facts))
    if any(record.get(k) != v for k, v in expected.items() if k != "warnings"):
        return False
    if not all((out / path).exists() for path in record.get("outputs", [])):
        return False
    try:
        return bool(record.get("input_sha256") == sha256_of(scan.path))
    except OSError:
        return False
