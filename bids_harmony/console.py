"""What a run tells its user."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

#: Seconds between two lines of a long loop.
EVERY = 10.0

Item = TypeVar("Item")


def say(text: str, *, error: bool = False) -> None:
    """Print a line at once; that it cannot be printed never ends a run.

    Parameters
    ----------
    text : str
        What to print.
    error : bool
        Print to standard error.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # the reader is gone, the disk behind it full, the file closed
        let_go(stream)


def let_go(stream: TextIO) -> None:
    """Have what is still printed to a stream go nowhere, at the end of Python too."""
    with contextlib.suppress(OSError, ValueError):
        # The object stays, since others hold it; what it leads to changes.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def flush() -> None:
    """Print what is left, as of argparse, or let it go where its reader is gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            let_go(stream)


def prepare_streams() -> None:
    """Have names that a terminal cannot show printed with escapes; print to no closed stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the command
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def counted_off(
    items: Iterable[Item], n: int, what: str, say: Callable[[str], None], unit: str = "scans"
) -> Iterator[Item]:
    """Pass scans, or others, on; say now and then how many are done, and what time is left.

    Parameters
    ----------
    items : iterable
        Scans, or what ``unit`` calls them.
    n : int
        Number of items.
    what : str
        What is done to them.
    say : callable
        Takes a line: every :data:`EVERY`, and at the end.
    unit : str
        The items' name.
    """
    begun = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told > EVERY or done == n:
            told, rate = now, done / max(now - begun, 1e-6)
            say(f"{what}: {done} of {n} {unit}, {rate:.1f}/s, {(n - done) / rate:.0f} s left")
