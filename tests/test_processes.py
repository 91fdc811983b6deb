"""Processes side by side end together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from bids_harmony.errors import HarmonyError
from bids_harmony.processes import _ended_together, side_by_side


def keep_when_told(begun: Path, kept: Path) -> None:
    """Work until a signal comes, then keep what there is, as a unit does."""

    def keep(number: int, frame: object) -> None:
        kept.touch()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, keep)
    begun.touch()
    time.sleep(600)


def work(names: list[Path]) -> None:
    """Have one worker begin the first of some units, and be told to stop."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool, _ended_together(pool):
        for name in names:
            pool.submit(keep_when_told, name, name.with_suffix(".kept"))
        while not names[0].exists():
            time.sleep(0.05)
        raise KeyboardInterrupt


def test_units_that_wait_do_not_run_after_a_stop(tmp_path: Path) -> None:
    names = [tmp_path / f"{i}" for i in range(4)]
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work(names)
    assert time.monotonic() - begin < 300  # a unit works for 600 s
    assert names[0].with_suffix(".kept").exists()
    assert not names[-1].exists()


def run_out_of_memory(seconds: int) -> None:
    """End as the kernel ends a process, or wait."""
    if seconds == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(seconds)


def test_a_training_that_was_killed_ends_the_others_with_a_word() -> None:
    begin = time.monotonic()
    with pytest.raises(HarmonyError, match="memory ran out"):
        list(side_by_side(run_out_of_memory, [(600,), (0,), (600,)], 2))
    assert time.monotonic() - begin < 300


def start_another(found: Path) -> None:
    """Start a process that works for long, and wait for it."""
    list(side_by_side(write_own_number, [(found,), (found,)], 1))


def write_own_number(found: Path) -> None:
    found.with_suffix(".part").write_text(str(os.getpid()))
    found.with_suffix(".part").rename(found)
    time.sleep(600)


def test_processes_do_not_outlive_a_killed_one(tmp_path: Path) -> None:
    found = tmp_path / "number"
    parent = multiprocessing.get_context("spawn").Process(target=start_another, args=(found,))
    parent.start()
    while not found.exists():
        assert parent.is_alive()
        time.sleep(0.05)
    number = int(found.read_text())
    parent.kill()
    parent.join()
    end = time.monotonic() + 60
    while _running(number):
        assert time.monotonic() < end
        time.sleep(0.05)


def _running(number: int) -> bool:
    """Whether a process is there and does more than wait to be collected."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
