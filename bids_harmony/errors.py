"""Errors users see: one sentence of cause, one of remedy, and the exit code that goes with it."""

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

#: Set by our image, as by fMRIPrep's, and by Apptainer and Singularity in every container.
CONTAINER_VARIABLES = ("IS_DOCKER_8395080871", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")


def mount_hint(*, write: bool = False) -> str:
    """Say, in a container, why a path that is there on the host may fail; else nothing.

    Parameters
    ----------
    write : bool
        Whether the path is there and cannot be written.
    """
    if not any(name in os.environ for name in CONTAINER_VARIABLES):
        return ""
    if write:
        return (
            " In a container, mount a folder of yours there and run it as yourself "
            "(docker -v HOST:CONTAINER --user $(id -u):$(id -g), apptainer -B HOST:CONTAINER)."
        )
    return (
        " In a container only mounted folders are seen: bind it "
        "(docker -v HOST:CONTAINER, apptainer -B HOST:CONTAINER)."
    )


class HarmonyError(Exception):
    """Something the user can act on.

    Parameters
    ----------
    cause : str
        What is wrong, naming the file or the value.
    remedy : str
        What to do about it.
    """

    exit_code = EXIT_SOFTWARE

    def __init__(self, cause: str, remedy: str = "") -> None:
        # What it quotes of a file may hold line breaks: a cause is one sentence, on one line.
        cause = " ".join(cause.splitlines())
        # Both go to Exception's args so that the error survives pickling between processes.
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause} {self.remedy}".strip()


class UsageError(HarmonyError):
    """A wrong path, label, filter or flag value: nothing has run."""

    exit_code = EXIT_USAGE


class NoInputError(HarmonyError):
    """No T1w scan matched."""

    exit_code = EXIT_NO_INPUT


class BundleError(HarmonyError):
    """A model bundle that is missing, altered or incomplete."""

    exit_code = EXIT_BUNDLE


class MissingProgramError(HarmonyError):
    """An external program the chosen options need is not installed."""

    exit_code = EXIT_MISSING_PROGRAM


class ScanError(HarmonyError):
    """One scan cannot be used; the others go on."""

    exit_code = EXIT_SCAN_FAILED


#: What a machine refuses, by errno: cause and remedy. Bugs raise other errors.
_MACHINE = {
    errno.ENOSPC: ("The disk is full", "Free some space; the same command continues."),
    errno.EDQUOT: ("The disk quota is used up", "Free some space; the same command continues."),
    errno.EFBIG: ("A file may not become so large", "Raise the limit (ulimit -f), or move it."),
    errno.EROFS: ("The disk is read-only", "Give a folder that can be written."),
    errno.EACCES: ("Access is denied", "Change the permissions, or give another folder."),
    errno.EIO: ("The disk does not answer", "Look after the disk; the same command continues."),
    errno.ESTALE: ("The network disk went away", "Mount it again; the same command continues."),
    errno.EMFILE: ("Too many files are open", "Raise the limit (ulimit -n), or lower --nprocs."),
    errno.ENOMEM: ("Memory ran out", "Lower --nprocs, or give the job more memory."),
}


def machine_error(error: BaseException) -> HarmonyError | None:
    """Say what the machine refused; None for an error that means something else."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number not in _MACHINE:
        return None
    (cause, remedy), path = _MACHINE[number], getattr(error, "filename", None)
    return HarmonyError(f"{cause}: {path}." if path else f"{cause}.", remedy)


def concerns_all(error: BaseException) -> bool:
    """Tell whether an error is the machine's, so that the next file would meet it too."""
    return machine_error(error) is not None and getattr(error, "errno", 0) != errno.EACCES
