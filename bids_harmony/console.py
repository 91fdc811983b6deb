"""Messages to the user on the standard streams."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

#: Seconds between two progress lines of a long loop.
EVERY = 10.0

Item = TypeVar("Item")


def say(text: str, *, error: bool = False) -> None:
    """Print a line and flush it; a line that cannot be printed never ends a run.

    Parameters
    ----------
    text : str
        Text to print.
    error : bool
        Print to standard error instead of standard output.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # broken pipe, full disk or closed file
        let_go(stream)


def let_go(stream: TextIO) -> None:
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
            let_go(stream)


def prepare_streams() -> None:
    """Escape characters that a terminal cannot encode, and replace missing standard streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the calling process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def counted_off(
    items: Iterable[Item], n: int, what: str, say: Callable[[str], None], unit: str = "scans"
) -> Iterator[Item]:
    """Iterate over items and report progress with the estimated time left.

    Parameters
    ----------
    items : iterable
        Scans, or other items named by ``unit``.
    n : int
        Number of items.
    what : str
        Description of the loop, the start of each line.
    say : callable
        Called with a line of text, at most once per :data:`EVERY` seconds and at the end.
    unit : str
        Plural name of the items.

    Yields
    ------
    Item
        Each of ``items``.
    """
    begun = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told > EVERY or done == n:
            told, rate = now, done / max(now - begun, 1e-6)
            say(f"{what}: {done} of {n} {unit}, {rate:.1f}/s, {(n - done) / rate:.0f} s left")
