"""What a run tells its user."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

#: Seconds between two lines of a long loop.
EVERY = 10.0

Item = TypeVar("Item")


def say(text: str) -> None:
    """Print a line of progress at once."""
    print(text, flush=True)


def counted_off(
    scans: Iterable[Item], n: int, what: str, say: Callable[[str], None]
) -> Iterator[Item]:
    """Pass scans on; say now and then how many are done, and how long the rest takes.

    Parameters
    ----------
    scans : iterable
        One item per scan.
    n : int
        Number of scans.
    what : str
        What is done to them.
    say : callable
        Takes a line: every :data:`EVERY`, and at the end.
    """
    begun = told = time.monotonic()
    for done, scan in enumerate(scans, 1):
        yield scan
        now = time.monotonic()
        if now - told > EVERY or done == n:
            told, rate = now, done / max(now - begun, 1e-6)
            say(f"{what}: {done} of {n} scans, {rate:.1f}/s, {(n - done) / rate:.0f} s left")
