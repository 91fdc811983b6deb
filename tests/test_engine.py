"""Scans' workflows in processes or as Slurm jobs: what happens to one costs that scan alone.

Recording stand-ins take the place of Slurm's programs.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.cli.run import SIGNALS, main
from bids_harmony.config import RunConfig
from bids_harmony.errors import EXIT_NO_INPUT, MissingProgramError, UsageError, machine_error
from bids_harmony.processes import Ended, KilledError
from bids_harmony.run import engine
from bids_harmony.run.engine import Failure, Job, failure_text, load_plugin, run_jobs

STANDIN = Path(__file__).parent / "standins" / "slurm.py"


def mark(path: str) -> None:
    with open(path, "a") as stream:
        stream.write("done\n")


def refuse(path: str) -> None:
    from bids_harmony.errors import ScanError

    raise ScanError("scan_T1w.nii.gz is empty (0.0 bytes).", "Convert it again.")


def divide(path: str) -> float:
    return 1 / 0


def wait(path: str) -> None:
    import time

    time.sleep(60)


def made_up_wf(*, name: str, function: Any, path: Path) -> pe.Workflow:
    """Make a workflow of one node that stands for a scan's."""
    workflow = pe.Workflow(name=name)
    node = pe.Node(niu.Function(function=function, output_names=["out"]), name="publish")
    node.inputs.path = str(path)
    workflow.add_nodes([node])
    return workflow


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr("bids_harmony.workflows.preprocess.init_preprocess_wf", made_up_wf)
    out, work = tmp_path / "out", tmp_path / "work"
    return RunConfig(bids_dir=tmp_path, output_dir=out, work_dir=work, nprocs=2)


def job(tmp_path: Path, name: str, function: Any = mark) -> Job:
    return Job("preprocess", name, {"name": name, "function": function, "path": tmp_path / name})


def test_a_node_that_fails_says_why_and_the_other_scans_are_completed(
    config: RunConfig, tmp_path: Path
) -> None:
    functions = {"sub_01_wf": mark, "sub_02_wf": refuse, "sub_03_wf": divide, "sub_04_wf": mark}
    jobs = [job(tmp_path, *one) for one in functions.items()]
    engine.run_workflows(jobs, config)
    assert (tmp_path / "sub_01_wf").exists()
    assert (tmp_path / "sub_04_wf").exists()
    folders = [engine.crash_folder(config, one) for one in jobs]
    failures = [engine.read_failure(*one) for one in zip(folders, functions, strict=True)]
    refused = Failure(
        "scan_T1w.nii.gz is empty (0.0 bytes).", "Convert it again.", "sub_02_wf-publish.txt"
    )
    assert [failures[0], failures[1], failures[3]] == [None, refused, None]
    assert "The step publish failed: ZeroDivisionError" in failures[2].cause
    assert failures[2].crash_file == "sub_03_wf-publish.txt"
    assert failures[2].crash_file in failures[2].remedy
    assert (folders[2] / failures[2].crash_file).exists()
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
    config: RunConfig, nprocs: int, mem_gb: float | None, threads: int, n_jobs: int, on_gpu: bool,
    expected: tuple[int, int],
) -> None:  # fmt: skip
    config = replace(config, nprocs=nprocs, mem_gb=mem_gb, omp_nthreads=threads)
    assert engine.resources(config, n_jobs, on_gpu=on_gpu) == expected


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
        ("OSError: [Errno 28] No space: '/x.json'", "The disk is full: /x.json.", "Free some"),
        ("OSError: [Errno 28] No space left", "The disk is full.", "Free some"),
        ("OSError: [Errno 27] Too large", "The file size limit is exceeded.", "Raise"),
        ("OSError: [Errno 122] Disk quota exceeded", "The disk quota is exceeded.", "Free some"),
        ("numpy._core._exceptions._ArrayMemoryError: 3 GiB", "Out of memory.", "Lower --nprocs"),
        ("MemoryError", "Out of memory.", "Lower --nprocs"),
    ],
)
def test_failures_have_their_cause_and_remedy(text: str, cause: str, remedy: str) -> None:
    found = failure_text(f"Traceback (most recent call last):\n  File x\n{text}\n")
    assert found[0] == cause
    assert found[1].startswith(remedy)
    assert bool(found[1]) == bool(remedy)
    assert machine_error(OSError(errno.ENOENT, "")) is None


class Slurm:
    """The stand-ins, seen from a test."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def calls(self, command: str) -> list[list[str]]:
        path = self.home / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [c[1:] for c in map(json.loads, lines) if c[0] == command]

    def wait_for(self, command: str, n: int = 1, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while len(self.calls(command)) < n:
            assert time.monotonic() < end, f"{command} was not called {n} times"
            time.sleep(0.05)

    def running(self) -> list[int]:
        """Numbers of jobs that wait or run."""
        found = []
        for path in (self.home / "jobs").glob("*.json"):
            waits = json.loads(path.read_text())["state"] in ("RUNNING", "PENDING")
            if waits and not path.with_suffix(".code").exists():
                found.append(int(path.stem))
        return found


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Put the stand-ins on the PATH."""
    folder, home = tmp_path / "bin", tmp_path / "slurm"
    folder.mkdir()
    (home / "jobs").mkdir(parents=True)
    for name in ("sbatch", "squeue", "scancel"):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STANDIN}" {name} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN_SLURM", str(home))
    monkeypatch.delenv("LOGNAME", raising=False)
    return Slurm(home)


Submit = Callable[..., dict[str, Failure]]


def write_plugin(path: Path, name: str, **arguments: object) -> Path:
    path.write_text(json.dumps({"plugin": name, "plugin_args": arguments}))
    return path


@pytest.fixture
def submit(slurm: Slurm, config: RunConfig, tmp_path: Path) -> Submit:
    """Run scans of one step each on the stand-in; return why some failed."""
    plugin = write_plugin(
        tmp_path / "plugin.yml", "SLURM", poll_seconds=0.05, grace_seconds=3,
        sbatch_args="--mem=2G",
    )  # fmt: skip

    def run(**functions: Callable[[str], object]) -> dict[str, Failure]:
        jobs = [job(tmp_path, *one) for one in functions.items()]
        ended = run_jobs(jobs, len(jobs), replace(config, use_plugin=plugin), on_gpu=False)
        return {job.name: failure for job, failure in ended if failure is not None}

    return run


def test_nodes_are_jobs_and_a_failed_one_costs_its_scan_alone(
    submit: Submit, slurm: Slurm, tmp_path: Path
) -> None:
    failures = submit(sub_01_wf=mark, sub_02_wf=refuse)
    assert (tmp_path / "sub_01_wf").exists()
    assert list(failures) == ["sub_02_wf"]
    assert failures["sub_02_wf"].cause == "scan_T1w.nii.gz is empty (0.0 bytes)."
    submitted = slurm.calls("sbatch")
    assert len(submitted) == 2
    assert all("--mem=2G" in call for call in submitted)
    assert slurm.calls("scancel") == []


@pytest.mark.parametrize("state", ["CANCELLED", "OUT_OF_MEMORY"])
def test_a_job_that_ends_without_result_fails_its_scan_and_the_same_command_continues(
    submit: Submit, slurm: Slurm, tmp_path: Path, state: str
) -> None:
    (slurm.home / "end_as").write_text(f"publish.sub_02_wf {state}")
    (slurm.home / "forget").touch()
    failures = submit(sub_01_wf=mark, sub_02_wf=mark)
    assert (tmp_path / "sub_01_wf").exists()
    assert list(failures) == ["sub_02_wf"]
    assert "The step publish failed: " in failures["sub_02_wf"].cause
    assert "results file does not exist" in failures["sub_02_wf"].cause
    (slurm.home / "end_as").unlink()
    assert submit(sub_02_wf=mark) == {}
    assert (tmp_path / "sub_02_wf").read_text() == "done\n"


def test_an_interrupted_run_leaves_no_job(submit: Submit, slurm: Slurm) -> None:
    def interrupt() -> None:
        slurm.wait_for("sbatch", 2)
        slurm.wait_for("squeue", len(slurm.calls("squeue")) + 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    # Python swallows an interrupt in a callback of the garbage collector, as Hypothesis has one.
    callbacks = gc.callbacks.copy()
    gc.callbacks.clear()
    try:
        with pytest.raises(KeyboardInterrupt):
            submit(sub_01_wf=wait, sub_02_wf=wait)
    finally:
        gc.callbacks.extend(callbacks)
    assert slurm.running() == []


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "cannot be used"),
        ("plugin: [", "cannot be used"),
        ("plugin_args: {}", "cannot be used"),
        ("- plugin", "cannot be used"),
        ("plugin: Slurm", "no attribute 'SlurmPlugin'"),
        ("plugin: SLURM\nplugin_args: 3", "not a mapping"),
        ("plugin: SLURMGraph", "does not report failed jobs"),
    ],
)
def test_a_plugin_file_that_cannot_work_is_refused(
    tmp_path: Path, content: str, word: str
) -> None:
    (tmp_path / "plugin.yml").write_text(content)
    with pytest.raises(UsageError, match=r"plugin\.yml") as info:
        load_plugin(tmp_path / "plugin.yml")
    assert word in info.value.cause
    assert info.value.remedy


def test_plugins_of_nipype_are_loaded_and_slurm_needs_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_plugin(tmp_path / "plugin.yml", "MultiProc", n_procs=1, memory_gb=3)
    chosen = load_plugin(path)
    assert type(chosen).__name__ == "MultiProcPlugin"
    assert (chosen.processors, chosen.memory_gb) == (1, 3)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingProgramError, match="sbatch"):
        load_plugin(write_plugin(path, "SLURM"))
