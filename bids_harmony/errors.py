"""Errors users see: one sentence of cause, one of remedy, and the exit code that goes with it."""

from __future__ import annotations

EXIT_OK = 0
EXIT_SCAN_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_INPUT = 66
EXIT_SOFTWARE = 70
EXIT_BUNDLE = 78
EXIT_MISSING_PROGRAM = 127


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
