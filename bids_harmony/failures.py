"""Why a scan failed, from nipype's crash files."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path

from bids_harmony.errors import machine_error


@dataclass(frozen=True)
class Failure:
    """Why a scan failed.

    Attributes
    ----------
    cause, remedy : str
        One sentence each; the remedy may be empty.
    crash_file : pathlib.Path or None
        Nipype's crash file with the traceback.
    """

    cause: str
    remedy: str
    crash_file: Path | None


def read_failures(crash_dir: Path) -> dict[str, Failure]:
    """Read the crash files of a folder: workflow name of the scan to the first failure.

    The files are renamed after scan and step, without nipype's time and random number: the
    name goes to the scan's record, which must be the same in every run.

    Parameters
    ----------
    crash_dir : pathlib.Path
        Folder with nipype's ``crash-*.txt``.
    """
    failures: dict[str, Failure] = {}
    for path in sorted(crash_dir.glob("crash-*.txt")):
        text = path.read_text(errors="replace")
        node = re.search(r"^Node: (\S+)", text, flags=re.MULTILINE)
        if node is None:
            continue
        scan = next((part for part in node[1].split(".")[1:] if part.startswith("sub_")), "")
        path = path.rename(crash_dir / f"{scan}-{node[1].split('.')[-1]}.txt")
        cause, remedy = failure_text(text)
        if not remedy:
            remedy = f"The traceback is in {path.name}."
            cause = f"The step {node[1].split('.')[-1]} failed: {cause}"
        failures.setdefault(scan, Failure(cause, remedy, path))
    return failures


def failure_text(crash: str) -> tuple[str, str]:
    r"""Find cause and remedy in a crash file's text; an empty remedy means an unforeseen error.

    >>> failure_text("Traceback...\\n\\tbids_harmony.errors.ScanError: It is broken. Mend it.\\n")
    ('It is broken.', 'Mend it.')
    """
    known = re.findall(r"bids_harmony\.errors\.\w+: (.+)", crash)
    if known:
        cause, _, remedy = known[-1].strip().partition(". ")
        return (cause.rstrip(".") + ".", remedy)
    refused = re.findall(r"\[Errno (\d+)\][^\n']*(?:'([^'\n]+)')?", crash)
    if not refused and re.search(r"^\s*(?:\w+\.)*_?\w*MemoryError\b", crash, re.MULTILINE):
        refused = [(str(errno.ENOMEM), "")]
    if refused and (error := machine_error(int(refused[-1][0]), refused[-1][1])):
        return (error.cause, error.remedy)
    raised = re.findall(
        r"^\s*((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$", crash, re.MULTILINE
    )
    return (raised[-1].strip() if raised else crash.strip().splitlines()[-1].strip(), "")
