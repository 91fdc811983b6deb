"""The command: parse, run one level, report, and return an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bids_harmony.cli.parser import PROGRAM, parse_args
from bids_harmony.console import flush, prepare_streams, say
from bids_harmony.errors import EXIT_OK, HarmonyError, machine_error
from bids_harmony.files import write_text

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

EXIT_INTERRUPTED = 130
#: Where each level is run; only its own module is imported.
LEVELS = {
    "participant": ("run.participant", "run_participant"),
    "calibrate": ("run.calibrate", "run_calibrate"),
    "group": ("run.group", "run_group"),
    "train": ("training.bundle", "run_train"),
    "evaluate": ("evaluation.run", "run_evaluate"),
}
#: What asks a run to end.
SIGNALS: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bids_harmony``.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the command line by default.

    Returns
    -------
    int
        0 all completed, 1 some scans failed, 2 usage, 66 no T1w, 70 internal, 78 bundle, 127
        missing program, 130 interrupted.
    """
    if argv is None:
        use_utf8()
    return exit_code(PROGRAM, lambda: run_level(sys.argv[1:] if argv is None else argv))


def exit_code(program: str, function: Callable[[], int]) -> int:
    """Call what a program does; say what went wrong, and choose the exit code."""
    prepare_streams()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # What ends a cluster job must end this one as cleanly as the keyboard does.
    for number in SIGNALS:
        signal.signal(number, interrupt_once)
    try:
        return function()
    except KeyboardInterrupt:
        remedy = "The same command continues where it stopped." if program == PROGRAM else ""
        error = HarmonyError("Interrupted.", remedy)
        error.exit_code = EXIT_INTERRUPTED
    except HarmonyError as refused:
        error = refused
    except Exception as raised:  # noqa: BLE001
        unforeseen = HarmonyError(
            f"Internal error ({type(raised).__name__}: {raised}).",
            f"Please report it with this:\n{traceback.format_exc()}",
        )
        error = machine_error(raised) or unforeseen
    finally:
        flush()
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt_once:
                signal.signal(number, handler)
    say(f"{program}: error: {error.cause}\n  {error.remedy}".rstrip(), error=True)
    return error.exit_code


def run_level(argv: Sequence[str]) -> int:
    """Run the level that the arguments ask for."""
    config = parse_args(argv)
    set_environment(config)
    if config.dry_run and config.level not in ("group", "calibrate"):
        from bids_harmony.bids.dataset import find_scans
        from bids_harmony.cli.dryrun import render

        say(render(find_scans(config), config))
        return EXIT_OK
    module, function = LEVELS[config.level]
    try:
        code: int = getattr(import_module(f"bids_harmony.{module}"), function)(config)
    except Exception as error:
        if isinstance(error, HarmonyError) or machine_error(error) or config.dry_run:
            raise
        path = config.log_dir / "crash.txt"
        with suppress(OSError):
            write_text(path, traceback.format_exc())
            raise HarmonyError(
                f"Internal error ({type(error).__name__}: {error}).",
                f"Please report it with {path}.",
            ) from error
        raise
    return code


def interrupt_once(*_: object) -> None:
    """Interrupt, and let no further signal disturb the end.

    Slurm, a job script and Apptainer may each send their own, and users press Ctrl-C again.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def set_environment(config: RunConfig) -> None:
    """Set what libraries read from the environment, before any of them is imported.

    Worker processes inherit it. Nothing is looked up on the network; BLAS, OpenMP and ITK, which
    otherwise start as many threads as there are cores, keep to ``--omp-nthreads``.
    """
    threads = str(config.omp_nthreads)
    os.environ |= {f"{n}_NUM_THREADS": threads for n in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    # With more threads ITK sums in any order.
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    os.environ |= {"NO_ET": "1", "NIPYPE_NO_ET": "1", "FSLOUTPUTTYPE": "NIFTI_GZ"}
    # What belongs to the notebook or the shell that the command was started from.
    os.environ["MPLBACKEND"] = "Agg"
    for name in ("MATPLOTLIBRC", "PYTHONHOME", "PYTHONWARNINGS"):
        os.environ.pop(name, None)
    if sys.warnoptions:
        sys.warnoptions.clear()  # which Python passes on to the processes that it starts
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
    # niworkflows asks TemplateFlow which spaces exist. A skeleton of the one space in use needs
    # no network and no writable home, and is read in a fifth of the time.
    skeleton = Path(__file__).resolve().parents[1] / "data" / "templateflow"
    os.environ |= {"TEMPLATEFLOW_HOME": str(skeleton), "TEMPLATEFLOW_AUTOUPDATE": "off"}


def use_utf8() -> None:
    """Start the command anew in Python's UTF-8 mode where the locale has another encoding.

    Names of files are UTF-8 on any disk in use. nireports reads its parts, pybids stores names
    and ITK opens files by the locale: under ``PYTHONUTF8=0 LC_ALL=C`` or a Latin-1 locale each
    of them fails at an ``ä`` in a path. The process stays the same one, for those that signal it.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8" or not sys.executable:
        return
    # The variable is for what the command starts; `-X` holds where Python is told not to read it.
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606


def command() -> NoReturn:
    """Run the console script, and end at once.

    Where a cluster cancels a job, the container's file system may go away before Python has
    cleaned up behind itself, which would end in a bus error.
    """
    code = main()  # --help and --version end by themselves
    if code == EXIT_INTERRUPTED:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
