"""An evaluation that is told to stop ends, and so do the units that were waiting."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from bids_harmony.training.fabric import StopSignal
from bids_harmony.training.side_by_side import _ended_together


def keep_when_told(begun: Path, kept: Path) -> None:
    """Work until a signal comes, then keep what there is, as a unit does."""
    with StopSignal() as stop:
        begun.touch()
        for _ in range(6000):
            time.sleep(0.1)
            if stop.received:
                kept.touch()
                raise KeyboardInterrupt


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
