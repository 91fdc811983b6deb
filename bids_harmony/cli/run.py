"""The ``bids_harmony`` command: parse arguments, run a level and return the exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bids_harmony.cli.parser import PROGRAM, parse_args
from bids_harmony.console import (
    flush,
    log_settings,
    prepare_streams,
    set_up_logging,
    stop_logging,
)
from bids_harmony.errors import EXIT_OK, HarmonyError, machine_error

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

LOGGER = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
#: Module and function of each level; only the module in use is imported.
LEVELS = {
    "participant": ("run.participant", "run_participant"),
    "calibrate": ("run.calibrate", "run_calibrate"),
    "group": ("run.group", "run_group"),
    "train": ("training.bundle", "run_train"),
    "evaluate": ("evaluation.run", "run_evaluate"),
}
#: Signals that interrupt a run.
SIGNALS: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bids_harmony``.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the command line.

    Returns
    -------
    int
        Exit code: 0 all scans completed, 1 some failed, 2 usage error, 66 no T1w scan, 70 internal
        error, 78 bundle error, 127 missing program, 130 interrupted.
    """
    if argv is None:
        use_utf8()
    return exit_code(PROGRAM, lambda: run_level(sys.argv[1:] if argv is None else argv))


def exit_code(program: str, function: Callable[[], int]) -> int:
    """Call a program's main function, log any error, and return the exit code."""
    prepare_streams()
    set_up_logging(program=program)
    error: HarmonyError | None = None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # Shut down as cleanly on SIGTERM, sent when a cluster job is cancelled, as on Ctrl-C.
    for number in SIGNALS:
        signal.signal(number, interrupt_once)
    try:
        return function()
    except KeyboardInterrupt:
        remedy = "The same command continues where it stopped." if program == PROGRAM else ""
        error = HarmonyError("Interrupted.", remedy)
        error.exit_code = EXIT_INTERRUPTED
    except HarmonyError as raised:
        error = raised
    except Exception as raised:  # noqa: BLE001
        report = log_settings().file or f"this:\n{traceback.format_exc()}"
        error = machine_error(raised) or HarmonyError(
            f"Internal error ({type(raised).__name__}: {raised}).",
            f"Please report it with {report}",
        )
        error.__cause__ = raised
    finally:
        if error is not None:
            # The log file has the traceback, too.
            LOGGER.error(f"{error.cause}\n  {error.remedy}".rstrip(), exc_info=error.__cause__)
        stop_logging()
        flush()
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt_once:
                signal.signal(number, handler)
    return error.exit_code


def run_level(argv: Sequence[str]) -> int:
    """Run the level given in the arguments, and return its exit code."""
    config = parse_args(argv)
    set_environment(config)
    set_up_logging(level=config.log_level if config.verbose else logging.CRITICAL)
    if config.dry_run:
        from bids_harmony.bids.dataset import find_scans
        from bids_harmony.cli.dryrun import render

        LOGGER.info(render(find_scans(config), config))
        return EXIT_OK
    module, function = LEVELS[config.level]
    try:
        code: int = getattr(import_module(f"bids_harmony.{module}"), function)(config)
        return code
    except Exception as raised:
        if not isinstance(raised, HarmonyError) and machine_error(raised) is None:
            set_up_logging(file=config.log_file)
        raise


def interrupt_once(*_: object) -> None:
    """Raise KeyboardInterrupt, and ignore further signals during the shutdown.

    Slurm, a job script and Apptainer may each send a signal, and users may press Ctrl-C again.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def set_environment(config: RunConfig) -> None:
    """Set environment variables read by libraries, before these are imported.

    Worker processes inherit them. They disable network access, and limit the threads of BLAS and
    OpenMP to ``--omp-nthreads`` and those of ITK to one; the default is one thread per CPU core.
    """
    threads = str(config.omp_nthreads)
    os.environ |= {f"{n}_NUM_THREADS": threads for n in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    # With several threads, ITK sums in varying order and results are not reproducible.
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    os.environ |= {"NO_ET": "1", "NIPYPE_NO_ET": "1", "FSLOUTPUTTYPE": "NIFTI_GZ"}
    # Settings of the calling notebook or shell must not affect the run.
    os.environ["MPLBACKEND"] = "Agg"
    for name in ("MATPLOTLIBRC", "PYTHONHOME", "PYTHONWARNINGS"):
        os.environ.pop(name, None)
    sys.warnoptions.clear()  # otherwise inherited by subprocesses
    warnings.simplefilter("ignore")
    # niworkflows asks TemplateFlow for the existing spaces. A local skeleton with the only space
    # in use needs no network access and no writable home, and is read five times as fast.
    skeleton = Path(__file__).resolve().parents[1] / "data" / "templateflow"
    os.environ |= {"TEMPLATEFLOW_HOME": str(skeleton), "TEMPLATEFLOW_AUTOUPDATE": "off"}


def use_utf8() -> None:
    """Restart the command in Python's UTF-8 mode if the locale has another encoding.

    nireports, pybids and ITK read files, save names and open paths in the encoding of the locale.
    With ``PYTHONUTF8=0 LC_ALL=C`` or a Latin-1 locale, each of them fails on a path with ``ä``.
    The process ID stays the same, so signals still reach the process.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8" or not sys.executable:
        return
    # The variable is for subprocesses; `-X` also works if Python ignores its variables.
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606


def command() -> NoReturn:
    """Run the console script and exit.

    After an interrupt it exits immediately: when a cluster job is cancelled, the container's file
    system may disappear during Python's cleanup, which would cause a bus error.
    """
    code = main()  # --help and --version exit in here
    if code == EXIT_INTERRUPTED:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
