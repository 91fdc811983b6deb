"""Run calls side by side, each in a process of its own."""

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
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, cast

from bids_harmony.errors import HarmonyError

KILLED = "A process was killed, most likely because memory ran out."
MORE_MEMORY = "Lower --nprocs, or give the job more memory; the same command continues."
#: Longest folder of temporary files in which a fork server's socket can have its name.
LONGEST_TMPDIR = 70


class Ended(NamedTuple):
    """A call that ended: its place among the calls, its arguments, and what it returned or raised.

    The error is a :class:`KilledError` where its process was killed.
    """

    number: int
    call: tuple[Any, ...]
    result: Any
    error: Exception | None


class KilledError(HarmonyError):
    """A process ended without an answer, as the kernel ends one that uses too much memory."""


def in_processes(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    nprocs: int,
    *,
    preload: Sequence[str] = (),
) -> Iterator[Ended]:
    """Call a function several times, each time in a process of its own.

    Whatever ends the loop over this generator asks the processes that still run to end (SIGTERM),
    waits for them, and kills the programs that they started.

    Parameters
    ----------
    function : callable
        A function of a module.
    calls : iterable of tuple
        Arguments of each call, which can be pickled.
    nprocs : int
        Most calls at a time.
    preload : sequence of str
        Modules that are imported once for all processes.

    Yields
    ------
    Ended
        Each call as it ends.
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
                process = context.Process(
                    target=_answer, args=(theirs, dict(os.environ), function, call)
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
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], nprocs: int
) -> Iterator[tuple[int, Any]]:
    """Call a function several times as :func:`in_processes` does; raise what one of them raised.

    Yields
    ------
    number : int
        Place of a call among ``calls``, in the order in which they end.
    result
        What it returned.
    """
    for ended in in_processes(function, calls, nprocs):
        if ended.error is not None:
            raise ended.error
        yield ended.number, ended.result


def prefixed(say: Callable[[str], None], prefix: str, line: str) -> None:
    """Say a line of one of several processes."""
    say(prefix + line)


def end_with_parent() -> None:
    """Make a process end when the one that started it was killed, whatever it is doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        if os.getpgrp() == os.getpid():  # with the programs that it started
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answer(
    answer: Connection,
    environment: dict[str, str],
    function: Callable[..., Any],
    call: tuple[Any, ...],
) -> None:
    """Call the function in a new process, the leader of a process group of its own."""
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    end_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    try:
        answer.send((function(*call), None))
    except KeyboardInterrupt:  # it was told to end, and has saved what it had
        return
    except Exception as error:  # noqa: BLE001
        error.add_note("".join(traceback.format_exception(error)))
        try:
            answer.send((None, error))
        except (TypeError, AttributeError, ValueError, pickle.PicklingError):
            answer.send((None, RuntimeError(f"{type(error).__name__}: {error}")))
