"""Calls in processes of their own: one that is killed costs itself alone, and none is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bids_harmony.errors import HarmonyError, ScanError
from bids_harmony.processes import KilledError, in_processes, side_by_side


def work(what: str, path: Path | None = None) -> str:
    """Do one of the things that happen to processes."""
    if what == "killed":  # as by the kernel, when memory runs out
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "error":
        raise ScanError("It is broken.", "Mend it.")
    if what == "odd error":
        error = RuntimeError("odd")
        error.odd = lambda: None  # type: ignore[attr-defined]
        raise error
    if what == "variable":
        return os.environ["VARIABLE"]
    if what == "program":  # which does not listen to signals, as some
        with subprocess.Popen(["sh", "-c", "trap '' TERM INT; exec sleep 60"]) as program:
            path.write_text(str(program.pid))
    if what == "checkpoint":
        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
        path.touch()
        while not told:
            time.sleep(0.05)
        path.with_suffix(".checkpoint").touch()
        raise KeyboardInterrupt
    return what


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not (path.exists() and (path.suffix or path.read_text())):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_happens_to_one_call_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VARIABLE", "here")
    calls = [("one",), ("killed",), ("error",), ("odd error",), ("variable",), ("two",)]
    found = {n: (result, error) for n, _, result, error in in_processes(work, calls, 2)}
    assert [found[n][0] for n in (0, 4, 5)] == ["one", "here", "two"]
    assert isinstance(found[1][1], KilledError)
    assert "memory ran out" in found[1][1].cause
    assert str(found[2][1]) == "It is broken. Mend it."
    assert "RuntimeError: odd" in str(found[3][1].__cause__)  # which could not be pickled


def test_an_error_ends_the_others() -> None:
    with pytest.raises(HarmonyError, match="memory ran out"):
        list(side_by_side(work, [("killed",), ("one",)], 1))


def test_calls_save_what_they_have_when_the_loop_ends(tmp_path: Path) -> None:
    running, waiting = tmp_path / "a.mark", tmp_path / "b.mark"
    calls = [("one",), ("checkpoint", running), ("checkpoint", waiting)]
    for _ in in_processes(work, calls, 2):
        wait_for(running)
        break
    assert running.with_suffix(".checkpoint").exists()
    assert not waiting.with_suffix(".checkpoint").exists()


def start(path: Path) -> None:
    list(side_by_side(work, [("program", path), ("program", path)], 1))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_program_outlives_the_command(tmp_path: Path, number: int) -> None:
    path = tmp_path / "number"
    parent = multiprocessing.get_context("spawn").Process(target=start, args=(path,))
    parent.start()
    wait_for(path)
    os.kill(parent.pid, number)
    parent.join()
    stat = Path(f"/proc/{path.read_text()}/stat")
    end = time.monotonic() + 60
    while is_running(stat):
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(stat: Path) -> bool:
    """Whether a process is there and does more than wait to be collected."""
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_long_name_of_the_temporary_folder_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    assert list(side_by_side(work, [("one",)], 1)) == [(0, "one")]
