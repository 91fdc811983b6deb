"""Nodes as Slurm jobs, with recording stand-ins in Slurm's place."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.config import RunConfig
from bids_harmony.engine import (
    Progress,
    SurvivingMultiProcPlugin,
    plugin,
    run_graph,
)
from bids_harmony.errors import MissingProgramError, UsageError
from bids_harmony.failures import read_failures
from bids_harmony.slurm import _slurm

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
            job = json.loads(path.read_text())
            ended = path.with_suffix(".code").exists() or job["state"] not in (
                "RUNNING",
                "PENDING",
            )
            found += [] if ended else [int(path.stem)]
        return found


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Put the stand-ins on the PATH."""
    folder, home = tmp_path / "bin", tmp_path / "slurm"
    folder.mkdir()
    (home / "jobs").mkdir(parents=True)
    for name in ("sbatch", "squeue", "sacct", "scancel"):
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


class Runner:
    """Graphs of scans of one step each, run on the stand-in."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path
        self.lines: list[str] = []
        self.config = RunConfig(
            bids_dir=tmp_path, output_dir=tmp_path, use_plugin=tmp_path / "plugin.yml"
        )
        self.write_plugin("SLURM", poll_seconds=0.05, grace_seconds=0.3, sbatch_args="--mem=2G")

    def write_plugin(self, name: str, **arguments: object) -> None:
        content = {"plugin": name, "plugin_args": arguments}
        (self.root / "plugin.yml").write_text(json.dumps(content))

    def start(self, **scans: tuple[Callable, dict]) -> tuple[Exception | None, dict]:
        """Return what the run raised, and why scans failed."""
        workflow = pe.Workflow(name="harmony_wf", base_dir=str(self.root / "work"))
        settings = {
            "crashfile_format": "txt",
            "poll_sleep_duration": "0.02",
            "hash_method": "content",
            "crashdump_dir": str(self.root / "crash"),
        }
        workflow.config["execution"].update(settings)
        for name, (function, inputs) in scans.items():
            node = pe.Node(niu.Function(function=function, output_names=["out"]), name="step")
            for key, value in inputs.items():
                setattr(node.inputs, key, value)
            scan_wf = pe.Workflow(name=name)
            scan_wf.add_nodes([node])
            workflow.add_nodes([scan_wf])
            node.config = {**workflow.config, "execution": dict(workflow.config["execution"])}
        self.lines.clear()
        progress = Progress(
            {n: n for n in scans}, "step", self.lines.append, done=0, total=len(scans)
        )
        return run_graph(workflow, self.config, progress), read_failures(self.root / "crash")

    @property
    def go(self) -> Path:
        """Ends the steps that wait."""
        return self.root / "go"

    def wait(self) -> tuple[Callable, dict]:
        return wait_for_file, {"path": str(self.go)}

    def write(self, number: int, name: str = "mark") -> tuple[Callable, dict]:
        return write_number, {"path": str(self.root / name), "number": number}


@contextlib.contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Do something beside a run; what it raises is raised here."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(action)
        yield
        future.result(timeout=60)


@pytest.fixture
def runner(tmp_path: Path, slurm: Slurm) -> Runner:
    return Runner(tmp_path)


def test_nodes_are_jobs_and_a_failed_one_costs_its_scan_alone(
    runner: Runner, slurm: Slurm
) -> None:
    _, failures = runner.start(sub_01_wf=runner.write(1), sub_02_wf=(refuse, {}))
    assert (runner.root / "mark").read_text() == "1\n"
    assert list(failures) == ["sub_02_wf"]
    assert failures["sub_02_wf"].cause == "scan_T1w.nii.gz is empty (0.0 bytes)."
    assert failures["sub_02_wf"].remedy == "Convert it again."
    submitted = slurm.calls("sbatch")
    assert len(submitted) == 2
    assert all("--mem=2G" in call and "--parsable" in call for call in submitted)
    assert all(str(runner.root / "work/harmony_wf/batch") in call[-1] for call in submitted)
    assert slurm.calls("scancel") == []


@pytest.mark.parametrize(
    ("state", "how", "remedy", "forgotten"),
    [
        ("CANCELLED", "was cancelled", "The same command continues.", False),
        ("CANCELLED", "was cancelled", "The same command continues.", True),
        ("TIMEOUT", "reached its time limit", "Raise --time", False),
        ("OUT_OF_MEMORY", "ran out of memory", "Raise --mem", True),
        ("NODE_FAIL", "lost its node", "--requeue", False),
        ("FAILED", "ended without a result", "slurm-", False),
    ],
)
def test_a_job_that_ends_without_result_fails_its_scan_and_says_how(
    runner: Runner, slurm: Slurm, state: str, how: str, remedy: str, forgotten: bool
) -> None:
    slurm.set("end_as", f"step.sub_02_wf {state}")
    if forgotten:
        slurm.set("forget")
    _, failures = runner.start(sub_01_wf=runner.write(1), sub_02_wf=runner.write(2))
    assert (runner.root / "mark").read_text() == "1\n"
    assert list(failures) == ["sub_02_wf"]
    assert how in failures["sub_02_wf"].cause
    assert "(step step)" in failures["sub_02_wf"].cause
    assert remedy in failures["sub_02_wf"].remedy


def test_one_question_asks_about_all_jobs_and_seldom(runner: Runner, slurm: Slurm) -> None:
    runner.write_plugin("SLURM", poll_seconds=0.5)

    def end_them() -> None:
        slurm.wait_for("sbatch", 3)
        time.sleep(1.2)
        runner.go.touch()

    began = time.monotonic()
    with meanwhile(end_them):
        error, _ = runner.start(**{f"sub_0{i}_wf": runner.wait() for i in range(3)})
    assert error is None
    # One at the start, then one in half a second.
    assert len(slurm.calls("squeue")) <= 3 + (time.monotonic() - began) / 0.5


def test_a_silent_controller_is_waited_for(runner: Runner, slurm: Slurm) -> None:
    def go_down_and_come_back() -> None:
        slurm.wait_for("sbatch", 2)
        slurm.set("down")
        slurm.wait_for("squeue", len(slurm.calls("squeue")) + 4)
        runner.go.touch()
        slurm.wait_for("squeue", len(slurm.calls("squeue")) + 4)
        slurm.unset("down")

    with meanwhile(go_down_and_come_back):
        error, failures = runner.start(sub_01_wf=runner.wait(), sub_02_wf=runner.wait())
    assert error is None
    assert failures == {}
    assert slurm.calls("scancel") == []
    assert [line for line in runner.lines if "does not answer" in line and "contact" in line]
    assert sum("answer" in line for line in runner.lines) == 2


def test_a_submission_that_slurm_cannot_take_now_is_tried_again(
    runner: Runner, slurm: Slurm
) -> None:
    slurm.set("refuse", "Slurm temporarily unable to accept job, sleeping and retrying")

    def accept() -> None:
        slurm.wait_for("sbatch", 3)
        slurm.unset("refuse")

    with meanwhile(accept):
        error, _ = runner.start(sub_01_wf=runner.write(1))
    assert error is None
    assert (runner.root / "mark").read_text() == "1\n"
    assert sum("temporarily unable" in line for line in runner.lines) == 1


def test_a_submission_whose_answer_was_lost_runs_once(runner: Runner, slurm: Slurm) -> None:
    slurm.set("lose_answer")

    def end_it() -> None:
        slurm.wait_for("sbatch", 2)
        runner.go.touch()

    with meanwhile(end_it):
        error, _ = runner.start(sub_01_wf=runner.wait())
    assert error is None
    assert slurm.calls("scancel") == [["1"]]
    assert slurm.running() == []


def test_arguments_that_slurm_refuses_are_a_usage_error(runner: Runner, slurm: Slurm) -> None:
    def refuse_the_second() -> None:
        slurm.wait_for("sbatch", 1)
        slurm.set("refuse", "Invalid partition name specified")
        runner.go.touch()

    runner.write_plugin("SLURM", poll_seconds=0.05, max_jobs=1)
    with meanwhile(refuse_the_second):
        error, _ = runner.start(sub_01_wf=runner.wait(), sub_02_wf=runner.write(2))
    assert isinstance(error, UsageError)
    assert "Invalid partition name specified" in error.cause
    assert "sbatch_args" in error.remedy
    assert slurm.running() == []


def test_a_job_that_never_started_does_not_pass_off_an_older_result(
    runner: Runner, slurm: Slurm
) -> None:
    runner.start(sub_01_wf=runner.write(1))
    slurm.set("never_start", "sub_01_wf")

    def cancel() -> None:
        slurm.wait_for("sbatch", 2)
        slurm.wait_for("squeue", len(slurm.calls("squeue")) + 3)
        subprocess.run(["scancel", "2"], check=True)

    with meanwhile(cancel):
        _, failures = runner.start(sub_01_wf=runner.write(2))
    assert "was cancelled" in failures["sub_01_wf"].cause
    assert (runner.root / "mark").read_text() == "1\n"
    assert sum("scontrol release 2" in line for line in runner.lines) == 1
    slurm.unset("never_start")
    assert runner.start(sub_01_wf=runner.write(2))[0] is None
    assert (runner.root / "mark").read_text() == "1\n2\n"


@pytest.mark.parametrize("down", [False, True])
def test_an_interrupted_run_leaves_no_job_or_says_which(
    runner: Runner, slurm: Slurm, down: bool
) -> None:
    def interrupt() -> None:
        slurm.wait_for("sbatch", 2)
        slurm.wait_for("squeue", len(slurm.calls("squeue")) + 2)
        if down:
            slurm.set("down")
        os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(interrupt), pytest.raises(KeyboardInterrupt):
        runner.start(sub_01_wf=runner.wait(), sub_02_wf=runner.wait())
    if down:
        assert any("run: scancel 1 2" in line for line in runner.lines)
        slurm.unset("down")
        runner.go.touch()
    else:
        assert slurm.running() == []


def test_jobs_of_a_killed_run_do_not_run_beside_those_of_the_next(
    runner: Runner, slurm: Slurm
) -> None:
    run = multiprocessing.get_context("fork").Process(
        target=runner.start, kwargs={"sub_01_wf": runner.wait()}
    )
    run.start()
    slurm.wait_for("sbatch", 1)
    while not slurm.running():
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    assert slurm.running() == [1]
    error, _ = runner.start(sub_01_wf=runner.write(1))
    assert error is None
    assert slurm.calls("scancel") == [["1"]]
    assert slurm.running() == []


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "cannot be used"),
        ("plugin: [", "cannot be used"),
        ("plugin_args: {}", "cannot be used"),
        ("- plugin", "cannot be used"),
        ("plugin: Slurm", "no plugin of nipype (Slurm)"),
        ("plugin: SLURM\nplugin_args: 3", "no plugin"),
        ("plugin: SLURMGraph", "does not see how they end"),
    ],
)
def test_a_plugin_file_that_cannot_work_is_refused(
    runner: Runner, content: str, word: str
) -> None:
    (runner.root / "plugin.yml").write_text(content)
    with pytest.raises(UsageError, match=r"plugin\.yml") as info:
        plugin(runner.config, Progress({}, "step", print, done=0, total=0))
    assert word in info.value.cause
    assert info.value.remedy


def test_without_sbatch_slurm_is_a_missing_program(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingProgramError, match="sbatch"):
        plugin(runner.config, Progress({}, "step", print, done=0, total=0))


def test_nipypes_names_of_multiproc_mean_the_one_that_survives(runner: Runner) -> None:
    runner.write_plugin("LegacyMultiProc", n_procs=1, memory_gb=3)
    chosen = plugin(runner.config, Progress({}, "step", print, done=0, total=0))["plugin"]
    assert isinstance(chosen, SurvivingMultiProcPlugin)
    assert chosen.processors == 1
    assert chosen.memory_gb == 3


def test_what_slurm_says_may_have_many_lines_and_any_letters() -> None:
    script = r"printf 'sbatch: error: no partition gr\374n\nsbatch: error: failed.\n' >&2; exit 1"
    said = "sbatch: error: no partition gr\ufffdn; sbatch: error: failed"
    assert _slurm("sh", "-c", script) == ("", said)
    assert _slurm("sh", "-c", "exit 3") == ("", "sh: code 3")
    assert _slurm("no-such-program")[1] == "no-such-program: No such file or directory"
