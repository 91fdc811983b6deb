"""The command: parse, run one level, report, and return an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bids_harmony.cli.parser import parse_args
from bids_harmony.cli.utf8 import use_utf8
from bids_harmony.console import flush, prepare_streams, say
from bids_harmony.errors import EXIT_SOFTWARE, HarmonyError, machine_error

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

EXIT_INTERRUPTED = 130
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
        0 all done, 1 some scans failed, 2 usage, 66 no T1w, 70 internal, 78 bundle, 127 missing
        program, 130 interrupted.
    """
    if argv is None:
        use_utf8()
    config = None
    prepare_streams()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        config = parse_args(sys.argv[1:] if argv is None else list(argv))
        set_environment(config)
        # What ends a cluster job must end this one as cleanly as the keyboard does.
        for number in SIGNALS:
            signal.signal(number, interrupt_once)
        return run_level(config)
    except HarmonyError as error:
        complain(error.cause, error.remedy)
        return error.exit_code
    except KeyboardInterrupt:
        complain("Interrupted.", "The same command continues where it stopped.")
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001
        code = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        if refused := machine_error(code, getattr(error, "filename", None)):
            complain(refused.cause, refused.remedy)
            return refused.exit_code
        where = write_crash(config)
        complain(
            f"Internal error ({type(error).__name__}: {error}).",
            f"Please report it with {where}." if where else traceback.format_exc(),
        )
        return EXIT_SOFTWARE
    finally:
        flush()
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt_once:
                signal.signal(number, handler)


def run_level(config: RunConfig) -> int:
    """Run the level asked for."""
    if config.level == "group":
        from bids_harmony.group import run_group

        return run_group(config)
    if config.level == "calibrate":
        from bids_harmony.calibrate import run_calibrate

        return run_calibrate(config)
    if config.dry_run:
        from bids_harmony.bids import find_scans
        from bids_harmony.cli.dryrun import render

        say(render(find_scans(config), config))
        return 0
    if config.level == "train":
        from bids_harmony.training.bundle import run_train

        return run_train(config)
    if config.level == "evaluate":
        from bids_harmony.evaluation.run import run_evaluate

        return run_evaluate(config)
    from bids_harmony.participant import run_participant

    return run_participant(config)


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
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = str(config.omp_nthreads)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"  # with more it sums in any order
    os.environ["NO_ET"] = os.environ["NIPYPE_NO_ET"] = "1"
    os.environ["FSLOUTPUTTYPE"] = "NIFTI_GZ"
    # What belongs to the notebook or the shell that the command was started from.
    os.environ["MPLBACKEND"] = "Agg"
    for name in ("MATPLOTLIBRC", "PYTHONHOME", "PYTHONWARNINGS"):
        os.environ.pop(name, None)
    if sys.warnoptions:
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
    # niworkflows asks TemplateFlow which spaces exist. A skeleton of the one space in use needs
    # no network and no writable home, and is read in a fifth of the time.
    skeleton = Path(__file__).resolve().parents[1] / "data" / "templateflow"
    os.environ["TEMPLATEFLOW_HOME"] = str(skeleton)
    os.environ["TEMPLATEFLOW_AUTOUPDATE"] = "off"


def complain(cause: str, remedy: str) -> None:
    """Print an error as one sentence of cause and one of remedy."""
    say(f"bids_harmony: error: {cause}", error=True)
    if remedy:
        say(f"  {remedy}", error=True)


def write_crash(config: RunConfig | None) -> Path | None:
    """Write the traceback in flight to the run's log folder, if there is one."""
    if config is None or config.dry_run:
        return None
    path = config.log_dir / "crash.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = traceback.format_exc()
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return None
    return path


def command() -> NoReturn:
    """Run the console script, and end at once.

    Where a cluster cancels a job, the container's file system may go away before Python has
    cleaned up behind itself, which would end in a bus error.
    """
    try:
        code = main()
    except SystemExit as error:  # --help, --version
        code = error.code if isinstance(error.code, int) else 0
    if code == EXIT_INTERRUPTED:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
