"""The job scripts of recipes/slurm, with stand-ins for sbatch and for what they start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bids_dataset import write

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "slurm"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder on the PATH with an sbatch that records its arguments, one job per line."""
    folder = tmp_path / "bin"
    program(folder, "sbatch", f'echo "$@" >> "{tmp_path}/jobs"; wc -l < "{tmp_path}/jobs"')
    program(folder, "bids_harmony", f'exec "{sys.executable}" -m bids_harmony "$@"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in ("SCRATCH", "SLURM_TMPDIR", "PER_TASK", "CPUS", "MEM_GB", "ALL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONTAINER", "none")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = write(folder, name, f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def submit(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RECIPE / "submit.sh", *map(str, args)], capture_output=True, text=True, check=False
    )


def test_only_participants_with_scans_to_do_are_submitted(
    dataset: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(dataset, "sub-03/ses-a/anat/sub-03_ses-a_T1w.nii.gz")
    write(dataset, "sub-03/ses-b/anat/sub-03_ses-b_T1w.nii.gz")
    out = tmp_path / "out"

    def record(key: str, folder: str, status: str) -> None:
        write(out / folder, f"anat/{key}_desc-harmony_qc.json", json.dumps({"status": status}))

    def report(subject: str) -> None:
        write(out, f"sub-{subject}.html")

    record("sub-01", "sub-01", "pass")
    report("01")
    record("sub-02", "sub-02", "error")
    record("sub-03_ses-a", "sub-03/ses-a", "pass")
    result = submit(dataset, out, "--bundle", "none")
    assert result.returncode == 0, result.stderr
    assert next(out.glob("logs/*/participants.txt")).read_text() == "02\n03\n"
    array, group = (tmp_path / "jobs").read_text().splitlines()
    assert "--array=0-1%100" in array
    assert array.endswith("participant.sbatch --bundle none")
    assert "--dependency=afterany:1" in group

    for key, folder in (("sub-02", "sub-02"), ("sub-03_ses-b", "sub-03/ses-b")):
        record(key, folder, "warn")
    report("02")
    # A job that was ended between a scan and its report.
    assert "1 participants in 1 tasks" in submit(dataset, out, "--bundle", "none").stdout
    report("03")
    assert "all scans are done" in submit(dataset, out, "--bundle", "none").stdout
    assert "--dependency" not in (tmp_path / "jobs").read_text().splitlines()[-1]
    monkeypatch.setenv("ALL", "1")
    monkeypatch.setenv("PER_TASK", "2")
    assert "3 participants in 2 tasks" in submit(dataset, out, "--bundle", "none").stdout


@pytest.mark.parametrize(
    "given",
    [("--participant-label", "01", "02"), ("--participant_label=01", "--participant-label=02")],
)
def test_participants_are_shared_out_among_the_tasks(
    dataset: Path, programs: Path, tmp_path: Path, given: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    result = submit(dataset, out, "--bundle", "none", *given, "--sloppy")
    assert result.returncode == 0, result.stderr
    assert next(out.glob("logs/*/participants.txt")).read_text() == "01\n02\n"
    array = (tmp_path / "jobs").read_text().splitlines()[0]
    assert array.endswith("participant.sbatch --bundle none --sloppy")


def test_a_dataset_that_cannot_be_read_submits_nothing(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "bids").mkdir()
    result = submit(tmp_path / "bids", tmp_path / "out")
    assert result.returncode == 66
    assert "no sub-* folder" in result.stderr
    assert not (tmp_path / "jobs").exists()


def test_a_container_that_is_not_there_submits_nothing(
    dataset: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINER", str(tmp_path / "absent.sif"))
    result = submit(dataset, tmp_path / "out")
    assert result.returncode == 2
    assert "absent.sif" in result.stderr
    assert not (tmp_path / "jobs").exists()


@pytest.fixture
def task(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Command of the array's second task; its scratch disk is ``node``."""
    (tmp_path / "node").mkdir()
    write(tmp_path, "logs/participants.txt", "01\n02\n03\n04\n05\n")
    for name, value in {
        "RECIPE": RECIPE, "BIDS": "/bids", "OUT": "/out", "LOGS": tmp_path / "logs",
        "PER_TASK": 2, "SLURM_ARRAY_TASK_ID": 1, "SLURM_ARRAY_JOB_ID": 7,
        "SCRATCH": tmp_path / "node",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    return ["bash", str(RECIPE / "participant.sbatch"), "--sloppy"]


def test_a_task_takes_its_participants_and_leaves_the_scratch_disk_clean(
    task: list[str], programs: Path, tmp_path: Path
) -> None:
    program(programs, "bids_harmony", 'echo "$@"; exit 1')
    result = subprocess.run(task, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    said = result.stdout.splitlines()[-1]
    assert said.startswith("/bids /out participant --participant-label 03 04 -w ")
    assert f"-w {tmp_path / 'node'}/" in said
    assert said.endswith("--nprocs 1 --mem 3 --sloppy")
    assert list((tmp_path / "node").iterdir()) == []


def test_a_task_hands_sigterm_on_and_ends_with_the_commands_code(
    task: list[str], programs: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    program(
        programs,
        "bids_harmony",
        f'trap "echo told; exit 130" TERM; touch {ready}; for i in {{1..300}}; do sleep 0.1; done',
    )
    run = subprocess.Popen(task, stdout=subprocess.PIPE, text=True)
    for _ in range(300):
        if ready.exists():
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=20)[0].endswith("told\n")
    assert run.returncode == 130
    assert list((tmp_path / "node").iterdir()) == []


def test_the_container_sees_the_folders_of_the_task(
    task: list[str], programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write(tmp_path, "app.sif")
    monkeypatch.setenv("CONTAINER", str(image))
    program(programs, "apptainer", 'echo "$@"')
    said = subprocess.run(task, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    assert said.startswith(f"run --contain -B /bids -B /out -B {tmp_path / 'node'}/")
    assert f" {image} /bids /out participant" in said


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    scripts = [*RECIPE.glob("*.sh"), *RECIPE.glob("*.sbatch")]
    assert len(scripts) == 6
    result = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
