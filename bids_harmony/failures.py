"""Why a scan failed, from nipype's crash files."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path

from bids_harmony.errors import machine_error

#: Complaints about the locale, of shells and of perl, over several lines.
_LOCALE = re.compile(
    r"locale|^(LC_\w+|LANG|LANGUAGE) = |^are supported and installed on your system", re.IGNORECASE
)
#: What nipype writes of a program that failed: by the node, whose headings alone are not
#: indented, and in the error itself.
_PROGRAM = (
    re.compile(
        r"\nCmdline:\n(?P<command>.*?)\nStdout:\n(?P<out>.*?)\nStderr:\n(?P<err>.*?)"
        r"\nTraceback:\n(?P<rest>.*)",
        re.DOTALL,
    ),
    re.compile(
        r"\bCommand:\n(?P<command>.*?)\n\t*Standard output:\n(?P<out>.*?)"
        r"\n\t*Standard error:\n(?P<err>.*?)\n(?P<rest>\t*Return code: .*)",
        re.DOTALL,
    ),
)


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
        text = path.read_text(encoding="utf-8", errors="replace")
        node = re.search(r"^Node: (\S+)", text, flags=re.MULTILINE)
        if node is None:
            continue
        scan = next((part for part in node[1].split(".")[1:] if part.startswith("sub_")), "")
        path = path.rename(crash_dir / f"{scan}-{node[1].split('.')[-1]}.txt")
        cause, remedy = failure_text(text)
        if not remedy:
            remedy = f"The traceback and all that was said are in {path.name}."
            cause = f"The step {node[1].split('.')[-1]} failed: {cause}"
        failures.setdefault(scan, Failure(cause, remedy, path))
    return failures


def failure_text(crash: str) -> tuple[str, str]:
    r"""Find cause and remedy in a crash file's text; an empty remedy means an unforeseen error.

    >>> failure_text("Traceback\n\tbids_harmony.errors.ScanError: It is broken. Mend it.\n")
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
    if failure := _program_failure(crash):
        return failure
    raised = re.findall(
        r"^[ \t]*((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$", crash, re.MULTILINE
    )
    return (raised[-1].strip() if raised else crash.strip().splitlines()[-1].strip(), "")


def last_words(said: str) -> str:
    r"""Find what matters in a program's output: its first line that means anything, and its last.

    A script goes on after the program that failed in it, and complains to the end.

    Parameters
    ----------
    said : str
        Output, of any length.

    Returns
    -------
    str
        At most three lines, each cut where it is long, separated by semicolons.

    >>> last_words("bash: warning: setlocale: cannot change locale\n\nOut of disk\n")
    'Out of disk'
    """
    lines = [
        " ".join(line.split())
        for line in f"{said[:20_000]}\n{said[20_000:][-20_000:]}".splitlines()
    ]
    lines = list(dict.fromkeys(line for line in lines if line and not _LOCALE.search(line)))
    if len(lines) > 3:
        lines = [lines[0], *lines[-2:]]
    return "; ".join(line if len(line) <= 160 else f"{line[:160]} …" for line in lines)


def _program_failure(crash: str) -> tuple[str, str] | None:
    """Say how an external program ended, from a crash file; None where none was run."""
    found = next(filter(None, (form.search(crash) for form in _PROGRAM)), None)
    if found is None:
        return None
    said = last_words(found["err"]) or last_words(found["out"])
    code = re.findall(r"(?:Return code: |exited with code )(-?\d+)", found["rest"])
    program = (found["command"].split() or ["The program"])[0]
    if not code:  # it could not be started, or did not leave what it should
        return (f"{program} failed: '{said}'.", "") if said else None
    if code[-1] in ("-9", "137"):
        return (
            f"{program} was killed, most likely because memory ran out.",
            "Lower --nprocs, or give the job more memory.",
        )
    ended = f"{program} ended with code {code[-1]}"
    if code[-1] == "0":
        ended += " and without an output that can be read"
    return (f"{ended}: '{said}'." if said else f"{ended}, saying nothing.", "")
