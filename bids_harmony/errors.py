"""Errors shown to users: a one-sentence cause, a remedy and an exit code."""

from __future__ import annotations

import errno
import os

EXIT_OK = 0
EXIT_SCAN_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_INPUT = 66
EXIT_SOFTWARE = 70
EXIT_BUNDLE = 78
EXIT_MISSING_PROGRAM = 127

#: Environment variables set by our Docker image (as by fMRIPrep's), Apptainer and Singularity.
CONTAINER_VARIABLES = ("IS_DOCKER_8395080871", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")


def mount_hint() -> str:
    """Return a hint on mounting folders if running in a container, else an empty string."""
    if not any(name in os.environ for name in CONTAINER_VARIABLES):
        return ""
    return (
        " In a container, only mounted folders can be accessed (docker -v HOST:CONTAINER, "
        "apptainer -B HOST:CONTAINER); to write there, run Docker with --user $(id -u):$(id -g)."
    )


class HarmonyError(Exception):
    """Base class of errors that a user can act on.

    Parameters
    ----------
    cause : str
        What is wrong, including the file or value; line breaks become spaces.
    remedy : str
        How to fix it; may be empty.
    """

    exit_code = EXIT_SOFTWARE

    def __init__(self, cause: str, remedy: str = "") -> None:
        # Text quoted from files may contain line breaks; a cause is a single line.
        cause = " ".join(cause.splitlines())
        # Exceptions are unpickled from their args, so both must be passed on.
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause} {self.remedy}".strip()


class UsageError(HarmonyError):
    """Invalid path, label, filter or option value."""

    exit_code = EXIT_USAGE


class NoInputError(HarmonyError):
    """No T1w scan found."""

    exit_code = EXIT_NO_INPUT


class BundleError(HarmonyError):
    """Missing, modified or incomplete model bundle."""

    exit_code = EXIT_BUNDLE


class MissingProgramError(HarmonyError):
    """A required external program is not installed."""

    exit_code = EXIT_MISSING_PROGRAM


class ScanError(HarmonyError):
    """A scan that cannot be processed; the other scans are not affected."""

    exit_code = EXIT_SCAN_FAILED


#: Cause and remedy of errors of the operating system, by errno. Bugs raise other errors.
_MACHINE = {
    errno.ENOSPC: ("The disk is full", "Free some space; the same command continues."),
    errno.EDQUOT: ("The disk quota is exceeded", "Free some space; the same command continues."),
    errno.EFBIG: ("The file size limit is exceeded", "Raise it (ulimit -f), or use another disk."),
    errno.EROFS: ("The file system is read-only", "Use a folder that can be written."),
    errno.EACCES: ("Permission denied", "Change the permissions, or use another folder."),
    errno.EIO: ("Input/output error", "Check the disk; the same command continues."),
    errno.ESTALE: (
        "Stale file handle",
        "Mount the network disk again; the same command continues.",
    ),
    errno.EMFILE: ("Too many open files", "Raise the limit (ulimit -n), or lower --nprocs."),
    errno.ENOMEM: ("Out of memory", "Lower --nprocs, or give the job more memory."),
}


def machine_error(error: BaseException) -> HarmonyError | None:
    """Return the user-facing error for a system error (full disk, out of memory), else None."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number not in _MACHINE:
        return None
    (cause, remedy), path = _MACHINE[number], getattr(error, "filename", None)
    return HarmonyError(f"{cause}: {path}." if path else f"{cause}.", remedy)


def concerns_all(error: BaseException) -> bool:
    """Return whether a system error, such as a full disk, would affect every other file too.

    Denied access (``EACCES``) does not count, since it may concern one file only.
    """
    return machine_error(error) is not None and getattr(error, "errno", 0) != errno.EACCES
