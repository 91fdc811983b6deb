"""Run function calls in parallel, each in its own process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from bids_harmony.console import LogSettings, log_settings, set_up_logging
from bids_harmony.errors import HarmonyError

KILLED = "A process was killed, most likely because memory ran out."
MORE_MEMORY = "Lower --nprocs, or give the job more memory; the same command continues."
#: Longest path of the temporary folder that leaves room for the fork server's socket name.
LONGEST_TMPDIR = 70


class Ended(NamedTuple):
    """A finished call: its index, arguments, and return value or exception.

    The error is a :class:`KilledError` if the process was killed.
    """

    number: int
    call: tuple[Any, ...]
    result: Any
    error: BaseException | None


class KilledError(HarmonyError):
    """A process ended without a result, for example killed by the kernel for lack of memory."""


def in_processes(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    nprocs: int,
    *,
    preload: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Iterator[Ended]:
    """Run several calls of a function in parallel, each in its own process.

    Each call has a pool of one process, because a process that is killed breaks its whole pool.
    If the loop over this generator ends early, the processes still running are terminated
    (SIGTERM) and waited for, and programs they started are killed.

    Parameters
    ----------
    function : callable
        A module-level function.
    calls : iterable of tuple
        Arguments of each call; must be picklable.
    nprocs : int
        Maximum number of processes at a time.
    preload : sequence of str
        Modules to import once in the fork server. Ignored if the processes are spawned, as with a
        temporary folder longer than :data:`LONGEST_TMPDIR`.
    names : sequence of str
        Names of the calls, shown before their log messages.

    Yields
    ------
    Ended
        Each call, in the order in which they finish.
    """
    context: Any = multiprocessing.get_context("spawn")
    if len(tempfile.gettempdir()) <= LONGEST_TMPDIR:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
    waiting, others = enumerate(calls), set(multiprocessing.active_children())
    running: dict[Future[Any], tuple[int, tuple[Any, ...], ProcessPoolExecutor]] = {}
    try:
        while True:
            while len(running) < nprocs and (following := next(waiting, None)):
                number, call = following
                logs = replace(log_settings(), prefix=f"[{names[number]}] " if names else "")
                pool = ProcessPoolExecutor(1, context, _start, (dict(os.environ), logs))
                running[pool.submit(function, *call)] = number, call, pool
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, call, pool = running.pop(future)
                pool.shutdown()
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    error = KilledError(KILLED, MORE_MEMORY)
                yield Ended(number, call, None if error else future.result(), error)
    finally:
        processes = set(multiprocessing.active_children()) - others
        for process in processes:
            process.terminate()
        for *_, pool in running.values():
            pool.shutdown()
        for process in processes:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid or 0, signal.SIGKILL)


def side_by_side(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    nprocs: int,
    names: Sequence[str] = (),
) -> Iterator[tuple[int, Any]]:
    """Run several calls in parallel as :func:`in_processes` does, and raise their first error.

    Yields
    ------
    number : int
        Index of a call in ``calls``, in the order in which they finish.
    result
        Its return value.
    """
    for ended in in_processes(function, calls, nprocs, names=names):
        if ended.error is not None:
            raise ended.error
        yield ended.number, ended.result


def _start(environment: dict[str, str], logs: LogSettings) -> None:
    """Set up a new process: it leads a process group, and ends if its parent is killed."""
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    set_up_logging(logs)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os.killpg(0, signal.SIGKILL)  # also ends programs it started

    threading.Thread(target=end_with_parent, daemon=True).start()
