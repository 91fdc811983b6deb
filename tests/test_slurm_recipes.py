"""The job scripts of recipes/slurm, with stand-ins for sbatch and for what they start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bids_dataset import write
from command_line import run, wait_for

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "slurm"
DONE = "completed, nothing to do"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder on the PATH with an sbatch that records its arguments, one job per line."""
    folder = tmp_path / "bin"
    program(folder, "sbatch", f'echo "$LEVEL $*" >> "{tmp_path}/jobs"; wc -l < "{tmp_path}/jobs"')
    program(folder, "bids_harmony", f'exec "{sys.executable}" -m bids_harmony "$@"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in ("SCRATCH", "SLURM_TMPDIR", "PER_TASK", "CPUS", "MEM_GB", "ALL", "LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONTAINER", "none")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    write(folder, name, f"#!/bin/bash\n{script}\n").chmod(0o755)


def submit(*args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = run(RECIPE / "submit.sh", *args)
    assert result.returncode == code, result.stderr
    return result


def jobs(tmp_path: Path) -> list[str]:
    """What was submitted since the last call."""
    path = tmp_path / "jobs"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def plan(programs: Path, *notes: str) -> None:
    """Have the dry run print notes of scans, ``sub-01`` first."""
    rows = [f"sub-{n:02}  A  Site, {DONE}  {note}" for n, note in enumerate(notes, 1)]
    text = "\n".join(["bids_harmony, dry run", "scan  site  notes", *rows, "Left out:", " sub-99"])
    program(programs, "bids_harmony", f"cat <<'END'\n{text}\nEND")


def test_only_participants_with_scans_to_do_are_submitted(
    dataset: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    plan(
        programs, DONE, "failed before", "completed before but for its report",
        "completed before, with other options or inputs", "", f"{DONE}; no sidecar",
        f"no age in '{DONE}'",
    )  # fmt: skip
    submit(dataset, out, "--bundle", "none", "--output-spaces", "T1w")
    assert next(out.glob("logs/*/participant.txt")).read_text() == "02\n03\n04\n05\n07\n"
    array, group = jobs(tmp_path)
    assert "--array=0-4%100" in array
    assert array.endswith("participant.sbatch --bundle none --output-spaces T1w")
    assert "--dependency=afterany:1" in group
    # Scans are compared with the reference of the bundle they were processed with.
    assert group.endswith("level.sbatch --bundle none")

    plan(programs, *[DONE] * 3)
    assert "all scans are completed" in submit(dataset, out, "--bundle", "none").stdout
    assert "--dependency" not in jobs(tmp_path)[-1]
    monkeypatch.setenv("ALL", "1")
    monkeypatch.setenv("PER_TASK", "2")
    assert "3 participants in 2 tasks" in submit(dataset, out, "--bundle", "none").stdout


@pytest.mark.parametrize(
    "given", ["--participant-label 01 02", "--participant_label=01 --participant-label=02"]
)
def test_sites_are_calibrated_between_two_passes(
    dataset: Path, programs: Path, tmp_path: Path, given: str
) -> None:
    plan(programs, DONE, "")
    condition, out = "diagnosis == 'control'", tmp_path / "out"
    submit(dataset, out, "--fit-filter", condition, *given.split(), "--nprocs", "3")
    first, calibrate, second, group = jobs(tmp_path)
    assert "--array=0-0%" in first
    assert calibrate.startswith("calibrate ")
    assert calibrate.endswith(f"level.sbatch --fit-filter {condition}")
    assert "--array=0-1%" in second  # the site's other scans have another calibration too
    assert second.endswith(f"participant.sbatch --fit-filter {condition} --nprocs 3")
    assert group.startswith("group ")
    for number, job in enumerate((calibrate, second, group), 1):
        assert f"--dependency=afterany:{number}" in job
    submit(dataset, out, "--calibration", dataset)
    assert len(jobs(tmp_path)) == 2


def test_what_cannot_run_submits_nothing(
    dataset: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bids").mkdir()
    assert "no sub-* folder" in submit(tmp_path / "bids", tmp_path / "out", code=66).stderr
    monkeypatch.setenv("CONTAINER", str(tmp_path / "absent.sif"))
    assert "absent.sif" in submit(dataset, tmp_path / "out", code=2).stderr
    assert jobs(tmp_path) == []


@pytest.fixture
def task(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Command of the array's second task; its scratch disk is ``node``."""
    (tmp_path / "node").mkdir()
    labels = write(tmp_path, "logs/participant.txt", "01\n02\n03\n04\n05\n")
    for name, value in {
        "RECIPE": RECIPE, "BIDS": tmp_path, "OUT": tmp_path / "out", "PER_TASK": 2, "LIST": labels,
        "SLURM_ARRAY_TASK_ID": 1, "SLURM_ARRAY_JOB_ID": 7, "SCRATCH": tmp_path / "node",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    return ["bash", str(RECIPE / "participant.sbatch"), "--sloppy"]


@pytest.mark.parametrize(("script", "code"), [("exit 1", 1), ("kill -BUS $$", 128 + 7)])
def test_a_task_takes_its_participants_and_leaves_the_scratch_disk_clean(
    task: list[str], programs: Path, tmp_path: Path, script: str, code: int
) -> None:
    program(programs, "bids_harmony", f'echo "$@"; {script}')
    result = run(*task)
    assert result.returncode == code
    said = result.stdout.splitlines()[-1]
    assert said.startswith(f"{tmp_path} {tmp_path}/out participant --participant-label 03 04 -w ")
    assert f"-w {tmp_path / 'node'}/" in said
    assert said.endswith("--nprocs 1 --mem 3 --sloppy")
    assert list((tmp_path / "node").iterdir()) == []


# The second as when the container's file system disappears while the command reads from it.
@pytest.mark.parametrize("then", ["exit 130", "kill -BUS $$"])
@pytest.mark.parametrize("level", ["participant", "train"])
def test_a_job_hands_sigterm_on_and_ends_with_130(
    task: list[str], programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    level: str, then: str,
) -> None:  # fmt: skip
    ready, loop = tmp_path / "ready", "for i in {1..300}; do sleep 0.1; done"
    program(programs, "bids_harmony", f"trap 'echo $*; {then}' TERM; touch {ready}; {loop}")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    if level == "train":
        places = [str(tmp_path / name) for name in ("bids", "out", "w")]
        task = ["bash", str(RECIPE / "train.sbatch"), *places, "--reference-site", "A"]
    job = subprocess.Popen(task, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(ready.exists)
    job.send_signal(signal.SIGTERM)
    said, errors = job.communicate(timeout=20)
    assert job.returncode == 130
    assert errors == ""
    assert list((tmp_path / "node").iterdir()) == []
    if level == "train":
        bids, out, work = places
        assert said == f"{bids} {out} train -w {work} --nprocs 2 --reference-site A\n"
    # Without B:, Slurm signals every process, also the one that serves the container's files.
    assert "#SBATCH --signal=B:TERM@" in (RECIPE / f"{level}.sbatch").read_text()


@pytest.mark.parametrize(
    ("words", "mounted"),
    [
        (["--bundle", "{}/mine"], ["mine"]),
        (["--bundle={}/mine"], ["mine"]),
        (["--bundle", "default"], []),
        (["-d", "X={}/mine", "{}/a b"], ["mine", "a b"]),
        (["--template", "{}/a=b/t.nii"], ["a=b/t.nii"]),
        (["--template", "./absent"], []),
    ],
    ids=lambda words: " ".join(words),
)
def test_the_container_sees_the_folders_of_the_task_and_paths_in_options(
    words: list[str], mounted: list[str], task: list[str], programs: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    here, image = tmp_path / "here", write(tmp_path, "app.sif")
    for name in ("mine/x", "a b/x", "a=b/t.nii"):
        write(here, name)
    monkeypatch.chdir(here)
    for name, value in {"CONTAINER": image, "GPU": 1, "CUDA_VISIBLE_DEVICES": "1,2"}.items():
        monkeypatch.setenv(name, str(value))
    called = 'printf "%s\\n" "$@" "$APPTAINERENV_CUDA_VISIBLE_DEVICES"'
    program(programs, "apptainer", f'{called} > "{tmp_path}/called"')
    assert run(*task[:2], *(word.format(".") for word in words)).returncode == 0
    *argv, gpus = (tmp_path / "called").read_text().splitlines()
    end = argv.index(str(image))
    assert argv[:4] == ["run", "--cleanenv", "--contain", "--nv"]
    assert gpus == "1,2"
    work = argv[argv.index("-w") + 1]
    inputs = [f"{here}/{name}" for name in mounted]
    # The output folder inside the dataset is mounted after it, as later mounts hide earlier ones.
    assert argv[5:end:2] == [
        f"{tmp_path}:{tmp_path}:ro", *(f"{path}:{path}:ro" for path in inputs),
        f"{tmp_path}/out:{tmp_path}/out", f"{work}:{work}",
    ]  # fmt: skip
    assert argv[-len(words) :] == [word.format(here) for word in words]
