"""Scans' workflows in processes of their own: what happens to one costs that scan alone."""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.cli.run import SIGNALS, main
from bids_harmony.config import RunConfig
from bids_harmony.errors import EXIT_NO_INPUT, machine_error
from bids_harmony.processes import Ended, KilledError
from bids_harmony.run import engine
from bids_harmony.run.engine import (
    Job,
    crash_folder,
    failure_text,
    read_failure,
    run_jobs,
    run_workflows,
)


def mark(path: str) -> str:
    from pathlib import Path

    Path(path).touch()
    return path


def refuse(path: str) -> None:
    from bids_harmony.errors import ScanError

    raise ScanError("scan_T1w.nii.gz is empty (0.0 bytes).", "Convert it again.")


def divide(path: str) -> float:
    return 1 / 0


def made_up_wf(*, name: str, function: Any, path: Path) -> pe.Workflow:
    """Make a workflow of one node that stands for a scan's."""
    workflow = pe.Workflow(name=name)
    node = pe.Node(niu.Function(function=function, output_names=["out"]), name="publish")
    node.inputs.path = str(path)
    workflow.add_nodes([node])
    return workflow


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr("bids_harmony.workflows.scan.init_preprocess_wf", made_up_wf, raising=True)
    out, work = tmp_path / "out", tmp_path / "work"
    return RunConfig(bids_dir=tmp_path, output_dir=out, work_dir=work, nprocs=2)


def job(tmp_path: Path, name: str, function: Any = mark) -> Job:
    return Job("preprocess", name, {"name": name, "function": function, "path": tmp_path / name})


def test_a_node_that_fails_says_why_and_the_other_scans_are_completed(
    config: RunConfig, tmp_path: Path
) -> None:
    functions = {"sub_01_wf": mark, "sub_02_wf": refuse, "sub_03_wf": divide, "sub_04_wf": mark}
    jobs = [job(tmp_path, *one) for one in functions.items()]
    run_workflows(jobs, config)
    assert (tmp_path / "sub_01_wf").exists()
    assert (tmp_path / "sub_04_wf").exists()
    failures = [read_failure(crash_folder(config, one), one.name) for one in jobs]
    assert failures[0] is failures[3] is None
    assert failures[1].cause == "scan_T1w.nii.gz is empty (0.0 bytes)."
    assert failures[1].remedy == "Convert it again."
    assert "The step publish failed: ZeroDivisionError" in failures[2].cause
    assert failures[2].crash_file == "sub_03_wf-publish.txt"
    assert failures[2].crash_file in failures[2].remedy
    assert (crash_folder(config, jobs[2]) / failures[2].crash_file).exists()
    assert "ZeroDivisionError" in (config.log_dir / "execution.log").read_text()


def test_a_killed_process_costs_its_own_scan_and_a_full_disk_all(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: dict[str, Exception | None] = {
        "a": None, "b": KilledError("It was killed.", "Lower --nprocs."), "c": ValueError("odd"),
    }  # fmt: skip

    def in_processes(function: Any, calls: Any, nprocs: int, **_: Any) -> Any:
        for number, call in enumerate(calls):
            yield Ended(number, call, None, errors[call[0][0].name])

    monkeypatch.setattr(engine, "in_processes", in_processes)
    jobs = [job(tmp_path, name) for name in errors]
    ended = {one.name: why for one, why in run_jobs(jobs, 3, config, on_gpu=False)}
    assert ended["a"] is None
    assert (ended["b"].cause, ended["b"].remedy) == ("It was killed.", "Lower --nprocs.")
    assert "ValueError('odd')" in ended["c"].cause
    errors["c"] = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        list(run_jobs(jobs, 3, config, on_gpu=False))


@pytest.mark.parametrize(
    ("nprocs", "mem_gb", "threads", "n_jobs", "on_gpu", "expected"),
    [
        (8, 100.0, 7, 40, False, (8, 1)),
        (8, 100.0, 7, 1, False, (1, 7)),
        (8, 100.0, 7, 3, False, (3, 2)),
        (8, 7.0, 1, 40, False, (3, 1)),
        (8, 1.0, 1, 40, False, (1, 1)),
        (8, 100.0, 1, 40, True, (4, 1)),
        (1, None, 1, 40, False, (1, 1)),
    ],
)
def test_scans_at_once_fit_into_processors_memory_and_gpu(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nprocs: int,
    mem_gb: float | None,
    threads: int,
    n_jobs: int,
    on_gpu: bool,
    expected: tuple[int, int],
) -> None:
    found = []

    def in_processes(function: Any, calls: Any, nprocs: int, **_: Any) -> Any:
        found.append((nprocs, next(iter(calls))[1].omp_nthreads))
        yield from ()

    monkeypatch.setattr(engine, "in_processes", in_processes)
    config = replace(config, nprocs=nprocs, mem_gb=mem_gb, omp_nthreads=threads)
    jobs = [job(tmp_path, "a")] * n_jobs
    assert list(run_jobs(jobs, n_jobs, config, on_gpu=on_gpu)) == []
    assert found == [expected]


def test_a_signal_ends_the_command_once_and_signals_do_afterwards_what_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: RunConfig) -> int:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        time.sleep(10)
        return 0

    (tmp_path / "bids").mkdir()
    argv = [str(tmp_path / "bids"), str(tmp_path / "out"), "group"]
    before = {number: signal.getsignal(number) for number in SIGNALS}
    assert main(argv) == EXIT_NO_INPUT
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    monkeypatch.setattr("bids_harmony.run.group.run_group", interrupted)
    try:
        assert main(argv) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "Interrupted. " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        ("bids_harmony.errors.ScanError: A is bad. Mend B.\n", "A is bad.", "Mend B."),
        ("Traceback:\n\tValueError: no\n\n", "ValueError: no", ""),
        ("nothing known", "nothing known", ""),
        (
            "OSError: [Errno 28] No space left: '/x.json'",
            "The disk is full: /x.json.",
            "Free some",
        ),
        ("OSError: [Errno 28] No space left", "The disk is full.", "Free some"),
        ("OSError: [Errno 122] Disk quota exceeded", "The disk quota is used up.", "Free some"),
        ("numpy._core._exceptions._ArrayMemoryError: 3 GiB", "Memory ran out.", "Lower --nprocs"),
        ("MemoryError", "Memory ran out.", "Lower --nprocs"),
    ],
)
def test_failures_have_their_cause_and_remedy(text: str, cause: str, remedy: str) -> None:
    found = failure_text(f"Traceback (most recent call last):\n  File x\n{text}\n")
    assert found[0] == cause
    assert found[1].startswith(remedy)
    assert bool(found[1]) == bool(remedy)
    assert machine_error(OSError(errno.ENOENT, "")) is None
