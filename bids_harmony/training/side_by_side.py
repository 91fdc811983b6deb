"""Trainings that do not need each other, in processes that end together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

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
    """
    context = multiprocessing.get_context("spawn")
    workers = min(nprocs, len(calls))
    with ProcessPoolExecutor(workers, mp_context=context) as pool, _ended_together(pool):
        futures = {pool.submit(function, *call): number for number, call in enumerate(calls)}
        for future in as_completed(futures):
            yield futures[future], future.result()


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
