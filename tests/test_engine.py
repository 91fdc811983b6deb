"""The execution engine: failures are read back, killed workers do not hang a run."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.cli.run import SIGNALS, end_silently, interrupt_once, main
from bids_harmony.config import RunConfig
from bids_harmony.engine import (
    Progress,
    SurvivingMultiProcPlugin,
    run_graph,
)
from bids_harmony.errors import EXIT_NO_INPUT
from bids_harmony.failures import failure_text, read_failures


def write_mark(path: str, seconds: float) -> str:
    import time
    from pathlib import Path

    time.sleep(seconds)
    Path(path).touch()
    return path


def run_program(path: str) -> None:
    import subprocess
    from pathlib import Path

    deaf = "trap '' TERM INT; exec sleep 60"
    with subprocess.Popen(["sh", "-c", deaf]) as program:
        Path(path).write_text(str(program.pid))


def refuse() -> None:
    from bids_harmony.errors import ScanError

    raise ScanError("scan_T1w.nii.gz is empty (0.0 bytes).", "Convert it again.")


def divide() -> float:
    return 1 / 0


def die() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def scan_wf(name: str, crash_dir: Path, *functions: tuple) -> pe.Workflow:
    """Make a workflow of independent nodes that stands for a scan."""
    workflow = pe.Workflow(name=name)
    for i, (function, inputs) in enumerate(functions):
        node = pe.Node(
            niu.Function(function=function, output_names=["out"]), name=f"step{i}", mem_gb=0.1
        )
        for key, value in inputs.items():
            setattr(node.inputs, key, value)
        workflow.add_nodes([node])
        node.config = {"execution": {"crashdump_dir": str(crash_dir)}}
    return workflow


def run(tmp_path: Path, *scans: pe.Workflow, n_procs: int = 2) -> list[str]:
    lines: list[str] = []
    workflow = pe.Workflow(name="harmony_wf", base_dir=str(tmp_path / "work"))
    workflow.add_nodes(list(scans))
    workflow.config["execution"].update(crashfile_format="txt", poll_sleep_duration="0.05")
    for node in workflow._get_all_nodes():
        node.config = {
            **workflow.config,
            "execution": {**workflow.config["execution"], **(node.config or {})["execution"]},
        }
    names = {scan.name: scan.name for scan in scans}
    progress = Progress(names, "step0", lines.append, done=0, total=len(scans))
    plugin = SurvivingMultiProcPlugin(
        plugin_args={"n_procs": n_procs, "status_callback": progress, "raise_insufficient": False}
    )
    with pytest.raises(RuntimeError):
        workflow.run(plugin=plugin)
    return lines


def test_one_scan_fails_and_the_other_is_done(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    crash = tmp_path / "crash"
    lines = run(
        tmp_path,
        scan_wf("sub_01_wf", crash, (write_mark, {"path": str(mark), "seconds": 0.0})),
        scan_wf("sub_02_wf", crash, (refuse, {})),
        scan_wf("sub_03_wf", crash, (divide, {})),
    )
    assert mark.exists()
    failures = read_failures(crash)
    assert sorted(failures) == ["sub_02_wf", "sub_03_wf"]
    assert failures["sub_02_wf"].cause == "scan_T1w.nii.gz is empty (0.0 bytes)."
    assert failures["sub_02_wf"].remedy == "Convert it again."
    assert "ZeroDivisionError" in failures["sub_03_wf"].cause
    assert failures["sub_03_wf"].crash_file is not None
    assert failures["sub_03_wf"].crash_file.name in failures["sub_03_wf"].remedy
    assert sorted(line.split("] ")[1].split(" (")[0] for line in lines) == [
        "sub_01_wf: done",
        "sub_02_wf: failed",
        "sub_03_wf: failed",
    ]


def test_killed_worker_costs_only_its_own_scan(tmp_path: Path) -> None:
    crash = tmp_path / "crash"
    marks = [tmp_path / f"mark{i}" for i in range(4)]
    run(
        tmp_path,
        scan_wf("sub_01_wf", crash, (write_mark, {"path": str(marks[0]), "seconds": 2.0})),
        scan_wf("sub_02_wf", crash, (die, {})),
        *(
            scan_wf(f"sub_1{i}_wf", crash, (write_mark, {"path": str(mark), "seconds": 0.0}))
            for i, mark in enumerate(marks[1:])
        ),
    )
    assert all(mark.exists() for mark in marks)
    failures = read_failures(crash)
    assert list(failures) == ["sub_02_wf"]
    assert "killed" in failures["sub_02_wf"].cause
    assert "--nprocs" in failures["sub_02_wf"].remedy


def interrupted(tmp_path: Path) -> None:
    """Run a long and a short scan as the command does, as the leader of a group of processes."""
    os.setsid()
    sys.stderr = (tmp_path / "said").open("w", buffering=1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt_once)
    os.register_at_fork(after_in_child=end_silently)
    steps = {
        "long": (run_program, {"path": str(tmp_path / "long")}),
        "short": (write_mark, {"path": str(tmp_path / "short"), "seconds": 0.0}),
    }
    workflow = pe.Workflow(name="harmony_wf", base_dir=str(tmp_path / "work"))
    workflow.add_nodes(
        [scan_wf(f"sub_{name}_wf", tmp_path / "crash", step) for name, step in steps.items()]
    )
    workflow.config["execution"]["poll_sleep_duration"] = "0.05"
    for node in workflow._get_all_nodes():
        node.config = workflow.config
    config = RunConfig(bids_dir=tmp_path, output_dir=tmp_path, nprocs=2)
    try:
        run_graph(workflow, config, Progress({}, "step0", print, done=0, total=2))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_ends_them_at_once(tmp_path: Path, number: int) -> None:
    """As a cluster or a terminal does: workers, busy or idle, are hit before they are stopped.

    A job's script hands the signal on, so that the main process has it several times.
    """
    run = multiprocessing.get_context("fork").Process(target=interrupted, args=(tmp_path,))
    run.start()
    end = time.monotonic() + 60
    while not all((tmp_path / name).exists() for name in ("short", "long")):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.3)  # until its worker waits for more
    os.kill(run.pid, signal.SIGSTOP)  # so that the workers come first
    os.killpg(run.pid, number)
    time.sleep(0.5)
    os.kill(run.pid, signal.SIGCONT)
    for _ in range(500):
        if run.is_alive():
            os.kill(run.pid, number)
        time.sleep(0.001)
    run.join(10)
    assert run.exitcode == 130, (tmp_path / "said").read_text()
    end = time.monotonic() + 5  # one that was killed may not be gone yet
    while is_alive(run.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_alive(run.pid)
    # A program that a worker started, such as FSL's, would write on into the work folder.
    program = Path("/proc") / (tmp_path / "long").read_text() / "stat"
    while running(program) and time.monotonic() < end:
        time.sleep(0.1)
    assert not running(program)
    assert "Traceback" not in (tmp_path / "said").read_text()


def test_killing_the_command_ends_the_programs_of_its_workers(tmp_path: Path) -> None:
    run = multiprocessing.get_context("fork").Process(target=interrupted, args=(tmp_path,))
    run.start()
    end = time.monotonic() + 60
    while not (tmp_path / "long").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.2)
    run.kill()
    run.join(10)
    program = Path("/proc") / (tmp_path / "long").read_text() / "stat"
    end = time.monotonic() + 10
    while running(program) and time.monotonic() < end:
        time.sleep(0.1)
    assert not running(program)


def test_signals_do_after_a_run_what_they_did_before(tmp_path: Path) -> None:
    (tmp_path / "bids").mkdir()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    assert main([str(tmp_path / "bids"), str(tmp_path / "out"), "group"]) == EXIT_NO_INPUT
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def running(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x\nbids_harmony.errors.ScanError: A is bad. Mend B.\n\n", ("A is bad.", "Mend B.")),
        ("Traceback:\n\tValueError: no\n\n", ("ValueError: no", "")),
        ("nothing known", ("nothing known", "")),
    ],
)
def test_failure_text(text: str, expected: tuple[str, str]) -> None:
    assert failure_text(text) == expected


def test_the_scheduler_does_not_search_its_graph_for_garbage(tmp_path: Path) -> None:
    steps = [(write_mark, {"path": str(tmp_path / "mark"), "seconds": 0.0})] * 2
    workflow = pe.Workflow(name="harmony_wf", base_dir=str(tmp_path / "work"))
    workflow.add_nodes([scan_wf("sub_01_wf", tmp_path / "crash", *steps)])
    searched: list[bool] = []

    def note(node: pe.Node, status: str) -> None:
        searched.append(any(thing is node for thing in gc.get_objects()))

    workflow.run(
        plugin=SurvivingMultiProcPlugin(plugin_args={"n_procs": 1, "status_callback": note})
    )
    assert searched
    assert not any(searched)
    assert gc.get_freeze_count() == 0


def test_scans_are_finished_one_after_the_other(tmp_path: Path) -> None:
    crash = tmp_path / "crash"
    steps = [(write_mark, {"path": str(tmp_path / "mark"), "seconds": 0.01})] * 3
    ended: list[str] = []
    workflow = pe.Workflow(name="harmony_wf", base_dir=str(tmp_path / "work"))
    workflow.add_nodes([scan_wf(f"sub_0{i}_wf", crash, *steps) for i in (2, 1, 3)])
    workflow.config["execution"]["poll_sleep_duration"] = "0.05"
    for node in workflow._get_all_nodes():
        node.config = workflow.config

    def note(node: pe.Node, status: str) -> None:
        if status == "end":
            ended.append(node.fullname.split(".")[1])

    plugin = SurvivingMultiProcPlugin(plugin_args={"n_procs": 1, "status_callback": note})
    workflow.run(plugin=plugin)
    assert ended == sorted(ended)
    assert len(ended) == 9
    # What nodes returned is let go, or memory would grow with every scan.
    assert not plugin._taskresult
    assert not plugin._task_obj
