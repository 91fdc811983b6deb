"""Processes that end together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from bids_harmony.errors import HarmonyError

Found = TypeVar("Found")


def side_by_side(
    function: Callable[..., Found], calls: Sequence[tuple[Any, ...]], nprocs: int
) -> Iterator[tuple[int, Found]]:
    """Call a function several times, each time in a process of its own.

    Parameters
    ----------
    function : callable
        A function of a module.
    calls : sequence of tuple
        Arguments of each call, which can be pickled.
    nprocs : int
        Most calls at a time.

    Yields
    ------
    number : int
        Place of a call among ``calls``, in the order in which they end.
    found
        What it returned. What a call raised is raised here, once the others have been told to
        stop and have kept what they had.

    Raises
    ------
    HarmonyError
        When one of the processes was killed.
    """
    context = multiprocessing.get_context("spawn")
    workers = min(nprocs, len(calls))
    with ProcessPoolExecutor(workers, context, end_with_parent) as pool, _ended_together(pool):
        futures = {pool.submit(function, *call): number for number, call in enumerate(calls)}
        for future in as_completed(futures):
            try:
                found = future.result()
            except BrokenProcessPool as error:
                raise HarmonyError(
                    "One of several processes was killed, most likely because memory ran out.",
                    "Lower --nprocs, or give the job more memory; the same command goes on from "
                    "what was kept.",
                ) from error
            yield futures[future], found


def prefixed(say: Callable[[str], None], prefix: str, line: str) -> None:
    """Say a line of one of several processes."""
    say(prefix + line)


@contextmanager
def _ended_together(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Have the workers keep what they have and end, whatever ends this process."""
    try:
        yield
    except BaseException:
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        # Once is not enough: a worker that has kept its work takes up the next, which waits in
        # the pool's queue and cannot be cancelled any more.
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.terminate()
                worker.join(1)
        raise


def end_with_parent() -> None:
    """Make a worker end when the process that started it was killed, whatever it is doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        if os.getpgrp() == os.getpid():  # with the programs that it started
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
