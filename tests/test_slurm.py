"""Nodes as Slurm jobs by nipype's plugin, with recording stand-ins in Slurm's place."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.config import RunConfig
from bids_harmony.errors import MissingProgramError, UsageError
from bids_harmony.run.engine import Failure, Job, load_plugin, run_jobs

STANDIN = Path(__file__).parent / "standins" / "slurm.py"


class Slurm:
    """The stand-ins, seen from a test."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def set(self, name: str, text: str = "") -> None:
        (self.home / name).write_text(text)

    def unset(self, name: str) -> None:
        (self.home / name).unlink()

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


def write_number(path: str, number: int) -> int:
    with open(path, "a") as stream:
        stream.write(f"{number}\n")
    return number


def refuse() -> None:
    from bids_harmony.errors import ScanError

    raise ScanError("scan_T1w.nii.gz is empty (0.0 bytes).", "Convert it again.")


def wait_for_file(path: str) -> None:
    import time
    from pathlib import Path

    end = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.05)


def made_up_wf(*, name: str, function: Callable, inputs: dict) -> pe.Workflow:
    """Make a workflow of one node that stands for a scan's."""
    workflow = pe.Workflow(name=name)
    node = pe.Node(niu.Function(function=function, output_names=["out"]), name="publish")
    for key, value in inputs.items():
        setattr(node.inputs, key, value)
    workflow.add_nodes([node])
    return workflow


class Runner:
    """Graphs of scans of one step each, run on the stand-in."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path
        self.plugin = tmp_path / "plugin.yml"
        self.write_plugin("SLURM", poll_seconds=0.05, grace_seconds=3, sbatch_args="--mem=2G")

    def write_plugin(self, name: str, **arguments: object) -> None:
        self.plugin.write_text(json.dumps({"plugin": name, "plugin_args": arguments}))

    def start(self, **scans: tuple[Callable, dict]) -> dict[str, Failure]:
        """Run the scans; return why some failed."""
        config = RunConfig(
            bids_dir=self.root, output_dir=self.root / "out", work_dir=self.root / "work",
            use_plugin=self.plugin,
        )  # fmt: skip
        jobs = [
            Job("preprocess", name, {"name": name, "function": function, "inputs": inputs})
            for name, (function, inputs) in scans.items()
        ]
        ended = run_jobs(jobs, len(jobs), config, on_gpu=False)
        return {job.name: failure for job, failure in ended if failure is not None}

    @property
    def go(self) -> Path:
        """Ends the steps that wait."""
        return self.root / "go"

    def wait(self) -> tuple[Callable, dict]:
        return wait_for_file, {"path": str(self.go)}

    def write(self, number: int, name: str = "mark") -> tuple[Callable, dict]:
        return write_number, {"path": str(self.root / name), "number": number}


@pytest.fixture
def runner(tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr("bids_harmony.workflows.scan.init_preprocess_wf", made_up_wf)
    return Runner(tmp_path)


def test_nodes_are_jobs_and_a_failed_one_costs_its_scan_alone(
    runner: Runner, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = runner.start(sub_01_wf=runner.write(1), sub_02_wf=(refuse, {}))
    assert (runner.root / "mark").read_text() == "1\n"
    assert list(failures) == ["sub_02_wf"]
    assert failures["sub_02_wf"].cause == "scan_T1w.nii.gz is empty (0.0 bytes)."
    assert failures["sub_02_wf"].remedy == "Convert it again."
    submitted = slurm.calls("sbatch")
    assert len(submitted) == 2
    assert all("--mem=2G" in call for call in submitted)
    assert slurm.calls("scancel") == []


@pytest.mark.parametrize("state", ["CANCELLED", "OUT_OF_MEMORY"])
def test_a_job_that_ends_without_result_fails_its_scan_and_the_same_command_continues(
    runner: Runner, slurm: Slurm, state: str
) -> None:
    slurm.set("end_as", f"publish.sub_02_wf {state}")
    slurm.set("forget")
    failures = runner.start(sub_01_wf=runner.write(1), sub_02_wf=runner.write(2))
    assert (runner.root / "mark").read_text() == "1\n"
    assert list(failures) == ["sub_02_wf"]
    assert "The step publish failed: " in failures["sub_02_wf"].cause
    assert "results file does not exist" in failures["sub_02_wf"].cause
    slurm.unset("end_as")
    assert runner.start(sub_02_wf=runner.write(2)) == {}
    assert (runner.root / "mark").read_text() == "1\n2\n"


def test_an_interrupted_run_leaves_no_job(runner: Runner, slurm: Slurm) -> None:
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
            runner.start(sub_01_wf=runner.wait(), sub_02_wf=runner.wait())
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
        ("plugin: SLURMGraph", "does not see how they end"),
    ],
)
def test_a_plugin_file_that_cannot_work_is_refused(
    runner: Runner, content: str, word: str
) -> None:
    runner.plugin.write_text(content)
    with pytest.raises(UsageError, match=r"plugin\.yml") as info:
        load_plugin(runner.plugin)
    assert word in info.value.cause
    assert info.value.remedy


def test_without_sbatch_slurm_is_a_missing_program(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingProgramError, match="sbatch"):
        load_plugin(runner.plugin)


def test_other_plugins_of_nipype_are_taken_as_they_are(runner: Runner) -> None:
    runner.write_plugin("MultiProc", n_procs=1, memory_gb=3)
    chosen = load_plugin(runner.plugin)
    assert type(chosen).__name__ == "MultiProcPlugin"
    assert (chosen.processors, chosen.memory_gb) == (1, 3)
