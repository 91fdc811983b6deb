"""Logging to the terminal and to the log file of a run, and progress bars.

Every module logs to ``logging.getLogger(__name__)``. The command sets up the handlers once with
:func:`set_up_logging`; :mod:`bids_harmony.processes` does the same in each process it starts.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

LOGGER = logging.getLogger(__name__)
#: Seconds between two progress messages of a long loop, if there is no terminal.
EVERY = 10.0
Item = TypeVar("Item")


@dataclass(frozen=True)
class LogSettings:
    """Where log messages go.

    Attributes
    ----------
    program : str
        Name of the command, shown with errors.
    level : int
        Minimum level of messages of other packages, such as nipype, on the terminal.
    file : pathlib.Path or None
        Log file, which messages are appended to.
    prefix : str
        Text before each message, which identifies one of several processes.
    """

    program: str = "bids_harmony"
    level: int = logging.CRITICAL
    file: Path | None = None
    prefix: str = ""


class TerminalHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Print messages to standard output, and warnings and errors to standard error.

    A message that cannot be printed never ends a run.
    """

    def filter(self, record: logging.LogRecord) -> bool:  # type: ignore[override]
        """Return whether a message is printed: all of this package, others by level."""
        return record.name.startswith("bids_harmony") or record.levelno >= _settings.level

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a message; those of other packages have time and origin."""
        if not record.name.startswith("bids_harmony"):
            return super().format(record)
        levels = {logging.WARNING: "Warning: ", logging.ERROR: f"{_settings.program}: error: "}
        return _settings.prefix + levels.get(record.levelno, "") + record.getMessage()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message, above any progress bars."""
        self.stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        bars = sys.modules.get("tqdm")
        with bars.tqdm.external_write_mode(self.stream) if bars else contextlib.nullcontext():
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Discard further output after a broken pipe, full disk or closed file."""
        discard(self.stream)


_settings = LogSettings()
_handlers: list[logging.Handler] = []


def set_up_logging(settings: LogSettings | None = None, **changes: Any) -> None:
    """Set up the handlers of all loggers, in place of those of an earlier call.

    Parameters
    ----------
    settings : LogSettings, optional
        Settings; those of the last call if None.
    **changes
        Attributes of the settings to change.
    """
    global _settings
    before = _settings
    stop_logging()
    _settings = replace(settings or before, **changes)
    logging.raiseExceptions = False  # on a full disk, each message would print a traceback
    _handlers.append(TerminalHandler())
    if _settings.file is not None:
        _settings.file.parent.mkdir(parents=True, exist_ok=True)
        _handlers.append(logging.FileHandler(_settings.file, encoding="utf-8"))
    line = f"%(asctime)s,%(msecs)d %(name)s %(levelname)s: {_settings.prefix}%(message)s"
    for handler in _handlers:
        handler.setFormatter(logging.Formatter(line, "%y%m%d-%H:%M:%S"))  # as nipype's
        logging.getLogger().addHandler(handler)
    logging.getLogger("bids_harmony").setLevel(min(logging.INFO, _settings.level))
    logging.getLogger("nipype").handlers = [logging.NullHandler()]  # instead of its own


def log_settings() -> LogSettings:
    """Return the current settings, to be used in another process."""
    return _settings


def stop_logging() -> None:
    """Remove the handlers and forget their settings."""
    global _settings
    while _handlers:
        handler = _handlers.pop()
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
    _settings = LogSettings()


class _LogLines:
    """A file that turns the output of tqdm into log messages."""

    def write(self, text: str) -> None:
        """Log a line, if there is text in it."""
        if text.strip():
            LOGGER.info(text.strip())

    def flush(self) -> None:
        """Do nothing: messages are not buffered."""


def progress(
    items: Iterable[Item], what: str, unit: str = "scans", total: int | None = None
) -> tqdm[Item]:
    """Iterate over items and show the progress: a bar on a terminal, else log messages.

    Parameters
    ----------
    items : iterable
        Scans, or other items named by ``unit``.
    what : str
        Description of the loop.
    unit : str
        Plural name of the items.
    total : int, optional
        Number of items; by default, the length of ``items``.

    Returns
    -------
    tqdm.tqdm
        Iterable progress bar. Without a terminal, it logs at most one message every :data:`EVERY`
        seconds, and one at the end.
    """
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no additional thread, and no lock between processes
    tqdm.set_lock(threading.RLock())
    bar = sys.stderr.isatty() and not _settings.prefix
    return tqdm(
        items, what, total, unit=f" {unit}", miniters=1, mininterval=0.1 if bar else EVERY,
        file=sys.stderr if bar else _LogLines(), dynamic_ncols=bar,
        bar_format=None if bar else "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, "
        "{remaining} left{postfix}",
    )  # fmt: skip


def discard(stream: TextIO) -> None:
    """Redirect a stream to the null device, so that the flush at exit cannot fail either."""
    with contextlib.suppress(OSError, ValueError):
        # Other code holds references to the stream, so its file descriptor is replaced instead.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def flush() -> None:
    """Flush both standard streams; discard the output if its reader has closed the pipe."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)


def prepare_streams() -> None:
    """Escape characters that a terminal cannot encode, and replace missing standard streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the calling process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
