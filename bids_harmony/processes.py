"""Run function calls in parallel, each in its own process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, cast

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
    error: Exception | None


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
    waiting = iter(enumerate(calls))
    running: dict[Connection, tuple[int, tuple[Any, ...], BaseProcess]] = {}
    try:
        while True:
            while len(running) < nprocs and (following := next(waiting, None)):
                number, call = following
                ours, theirs = context.Pipe(duplex=False)
                logs = replace(log_settings(), prefix=f"[{names[number]}] " if names else "")
                process = context.Process(
                    target=_answer, args=(theirs, dict(os.environ), logs, function, call)
                )
                process.start()
                theirs.close()
                running[ours] = number, call, process
            if not running:
                return
            for answered in cast("list[Connection]", wait(list(running))):
                number, call, process = running.pop(answered)
                try:
                    with answered:
                        result, error = answered.recv()
                except EOFError:
                    result, error = None, KilledError(KILLED, MORE_MEMORY)
                process.join()
                yield Ended(number, call, result, error)
    finally:
        for *_, process in running.values():
            process.terminate()
        for connection, (*_, process) in running.items():
            process.join()
            connection.close()
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


def end_with_parent() -> None:
    """Start a thread that ends this process when its parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        if os.getpgrp() == os.getpid():  # also ends programs it started
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answer(
    answer: Connection,
    environment: dict[str, str],
    logs: LogSettings,
    function: Callable[..., Any],
    call: tuple[Any, ...],
) -> None:
    """Call the function in a new process, which leads its own process group."""
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    end_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    try:
        set_up_logging(logs)
        answer.send((function(*call), None))
    except KeyboardInterrupt:  # terminated on request; its progress is saved
        return
    except Exception as error:  # noqa: BLE001
        error.add_note("".join(traceback.format_exception(error)))
        try:
            answer.send((None, error))
        except (TypeError, AttributeError, ValueError, pickle.PicklingError):
            answer.send((None, RuntimeError(f"{type(error).__name__}: {error}")))
