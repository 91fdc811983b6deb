"""The job scripts of recipes/slurm, with stand-ins for sbatch and for what they start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from bids_dataset import write

from bids_harmony.cli.parser import parse_args

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


def runs_until_term(folder: Path, then: str) -> Path:
    """Have bids_harmony wait for SIGTERM; return the file it makes when it does."""
    ready = folder.parent / "ready"
    loop = "for i in {1..300}; do sleep 0.1; done"
    program(folder, "bids_harmony", f"trap '{then}' TERM; touch {ready}; {loop}")
    return ready


def until(path: Path) -> None:
    for _ in range(300):
        if path.exists():
            return
        time.sleep(0.05)


def submit(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RECIPE / "submit.sh", *map(str, args)], capture_output=True, text=True, check=False
    )


def plan(programs: Path, *notes: str) -> None:
    """Have the dry run say what is noted of each scan, ``sub-01`` first."""
    rows = "\n".join(f"sub-{n:02}  A  Site, completed, nothing to do  {x}" for n, x in
                     enumerate(notes, 1))  # fmt: skip
    text = f"bids_harmony, dry run\n\nscan  site  notes\n{rows}\n\nLeft out:\n  sub-99  x"
    program(programs, "bids_harmony", f"cat <<'END'\n{text}\nEND")


def test_only_participants_with_scans_to_do_are_submitted(
    dataset: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    notes = [
        "completed, nothing to do",
        "failed before",
        "completed before but for its report",
        "completed before, with other options or inputs",
        "",
        "completed, nothing to do; no sidecar",
        "no age in 'completed, nothing to do'",
    ]
    plan(programs, *notes)
    result = submit(dataset, out, "--bundle", "none", "--output-spaces", "T1w")
    assert result.returncode == 0, result.stderr
    assert next(out.glob("logs/*/participants.txt")).read_text() == "02\n03\n04\n05\n07\n"
    array, group = (tmp_path / "jobs").read_text().splitlines()
    assert "--array=0-4%100" in array
    assert array.endswith("participant.sbatch --bundle none --output-spaces T1w")
    assert "--dependency=afterany:1" in group
    # Scans are held against the reference of the bundle they were made with.
    assert group.endswith("group.sbatch --bundle none")

    plan(programs, *["completed, nothing to do"] * 3)
    assert "all scans are done" in submit(dataset, out, "--bundle", "none").stdout
    assert "--dependency" not in (tmp_path / "jobs").read_text().splitlines()[-1]
    monkeypatch.setenv("ALL", "1")
    monkeypatch.setenv("PER_TASK", "2")
    assert "3 participants in 2 tasks" in submit(dataset, out, "--bundle", "none").stdout


def test_sites_are_calibrated_between_two_passes(
    dataset: Path, programs: Path, tmp_path: Path
) -> None:
    rows = ["sub-01  A  x  completed, nothing to do", "sub-02  A  x"]
    program(programs, "bids_harmony", "cat <<'END'\n" + "\n".join(rows) + "\nEND")
    condition = "diagnosis == 'control'"
    given = ["--fit-filter", condition, "--participant-label", "01", "02", "--nprocs", "3"]
    result = submit(dataset, tmp_path / "out", *given)
    assert result.returncode == 0, result.stderr
    first, calibrate, second, group = (tmp_path / "jobs").read_text().splitlines()
    assert "--array=0-0%" in first
    assert "--dependency=afterany:1" in calibrate
    assert calibrate.endswith(f"calibrate.sbatch --fit-filter {condition}")
    assert "--dependency=afterany:2" in second
    assert "--array=0-1%" in second  # the site's other scans have another calibration too
    assert second.endswith(f"participant.sbatch --fit-filter {condition} --nprocs 3")
    assert "--dependency=afterany:3" in group
    (tmp_path / "jobs").unlink()
    assert submit(dataset, tmp_path / "out", "--calibration", "given").returncode == 0
    assert len((tmp_path / "jobs").read_text().splitlines()) == 2


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
        "RECIPE": RECIPE, "BIDS": "/bids", "OUT": "/out", "PER_TASK": 2,
        "LIST": tmp_path / "logs/participants.txt", "SLURM_ARRAY_TASK_ID": 1,
        "SLURM_ARRAY_JOB_ID": 7,
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
    ready = runs_until_term(programs, "echo told; exit 130")
    run = subprocess.Popen(task, stdout=subprocess.PIPE, text=True)
    until(ready)
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=20)[0].endswith("told\n")
    assert run.returncode == 130
    assert list((tmp_path / "node").iterdir()) == []


def test_a_task_told_to_end_ends_with_130_whatever_kills_its_command(
    task: list[str], programs: Path, tmp_path: Path
) -> None:
    """As where the container's file system goes away while the command still reads from it."""
    ready = runs_until_term(programs, "kill -BUS $$")
    run = subprocess.Popen(task, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(ready)
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=20)[1] == ""
    assert run.returncode == 130


def test_training_is_told_of_its_limit_and_its_options_are_those_of_the_level(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = runs_until_term(programs, "echo $* saved; exit 130")
    monkeypatch.setenv("RECIPE", str(RECIPE))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    places = [tmp_path / name for name in ("bids", "out", "w")]
    job = ["bash", RECIPE / "train.sbatch", *places, "--reference-site", "A"]
    run = subprocess.Popen(job, stdout=subprocess.PIPE, text=True)
    until(ready)
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=20)[0]
    assert run.returncode == 130
    bids, out, work = places
    words = f"{bids} {out} train -w {work} --nprocs 2 --reference-site A"
    assert said == f"{words} saved\n"
    bids.mkdir(exist_ok=True)
    assert parse_args(words.split()).level == "train"


@pytest.mark.parametrize(("code", "grouped"), [(0, True), (1, True), (2, False)])
def test_the_plugins_job_makes_the_group_report_with_the_same_bundle(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, grouped: bool
) -> None:
    monkeypatch.setenv("RECIPE", str(RECIPE))
    monkeypatch.chdir(tmp_path)
    program(programs, "bids_harmony", f'echo "$*"; [[ $3 == group ]] || exit {code}')
    result = subprocess.run(
        [
            "bash",
            RECIPE / "plugin.sbatch",
            "/b",
            "/o",
            "/w",
            "--bundle=mine",
            "-d",
            "masks",
            "--qc-ratings",
            "r.json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code
    here = str(tmp_path)
    assert (
        result.stdout.splitlines()
        == [
            f"/b /o participant -w /w --use-plugin {RECIPE}/plugin.yml --bundle={here}/mine "
            f"-d {here}/masks --qc-ratings {here}/r.json",
            f"/b /o group -w /w --bundle={here}/mine --qc-ratings {here}/r.json",
        ][: 1 + grouped]
    )


def test_a_command_that_dies_untold_keeps_its_code(task: list[str], programs: Path) -> None:
    program(programs, "bids_harmony", "kill -BUS $$")
    assert subprocess.run(task, capture_output=True, check=False).returncode == 128 + 7


def test_only_the_shell_of_a_task_is_told_of_its_time_limit() -> None:
    """Slurm without ``B:`` tells every process, the one that serves the container's files too."""
    for name in ("participant", "plugin"):
        assert "#SBATCH --signal=B:TERM@" in (RECIPE / f"{name}.sbatch").read_text()


@pytest.fixture
def container(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image, and an apptainer that records how it was called, and plans one scan."""
    image = write(tmp_path, "app.sif")
    monkeypatch.setenv("CONTAINER", str(image))
    program(
        programs,
        "apptainer",
        f'"{sys.executable}" -c "import json, os, sys; '
        f"json.dump([sys.argv[1:], dict(os.environ)], open('{tmp_path}/called', 'w'))\" \"$@\"\n"
        "echo 'sub-01  Site  notes'",
    )
    return image


def called(tmp_path: Path) -> tuple[list[str], list[str], list[str], dict[str, str]]:
    """Options of apptainer but its mounts, its mounts, the program's arguments, and variables."""
    argv, variables = json.loads((tmp_path / "called").read_text())
    end = argv.index(str(tmp_path / "app.sif"))
    mounts = [value for flag, value in pairwise(argv) if flag in ("-B", "--mount")]
    return argv[: end - 2 * len(mounts)], mounts, argv[end + 1 :], variables


def test_the_container_sees_the_folders_of_the_task(
    task: list[str],
    container: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = dataset / "derivatives" / "bids_harmony"
    monkeypatch.setenv("BIDS", str(dataset))
    monkeypatch.setenv("OUT", str(out))
    subprocess.run(task, check=True, stdout=subprocess.DEVNULL)
    options, mounts, given, _ = called(tmp_path)
    assert options == ["run", "--cleanenv", "--contain"]
    work = given[given.index("-w") + 1]
    # The output folder inside the dataset comes after it: what is mounted later hides.
    assert [m for m in mounts if work not in m] == [f"{dataset}:{dataset}:ro", f"{out}:{out}"]
    assert f"{work}:{work}" in mounts
    assert given[:4] == [str(dataset), str(out), "participant", "--participant-label"]


def test_the_recipe_knows_every_option_that_takes_a_path() -> None:
    from bids_harmony.cli.parser import build_parser, parse_bundle, parse_path

    text = (RECIPE / "settings.sh").read_text().replace("\\\n", "")
    listed = re.findall(r'^(?:READ|WRITTEN)_PATHS="(.*)"', text, re.MULTILINE)
    names = {
        name.replace("_", "-")
        for action in build_parser()._actions
        for name in action.option_strings
        if action.type in (parse_path, parse_bundle)
        or re.search("PATH|FILE|DIR|FOLDER", str(action.metavar))
    }
    assert "--derivatives" in names
    assert set(" ".join(listed).split()) == names


FORMS = [
    # as written in the folder ``here``, what of it is mounted, and what the program is given
    (["--bundle", "mine"], "mine", ["--bundle", "{}/mine"]),
    (["--bundle=./mine"], "mine", ["--bundle={}/mine"]),
    (["--bundle", "default"], None, ["--bundle", "default"]),
    (["--bundle", "none"], None, ["--bundle", "none"]),
    (["--derivatives", "X=mine", "a b"], "mine|a b", ["--derivatives", "X={}/mine", "{}/a b"]),
    (["-dX=mine"], "mine", ["-dX={}/mine"]),
    (["-d", "mine", "--sloppy", "x"], "mine", ["-d", "{}/mine", "--sloppy", "x"]),
    (["--template", "a b/t.nii.gz"], "a b/t.nii.gz", ["--template", "{}/a b/t.nii.gz"]),
    (["--bids_filter_file", "f.json"], "f.json", ["--bids_filter_file", "{}/f.json"]),
    (["--qc-ratings", "f.json", "mine"], "f.json|mine", ["--qc-ratings", "{}/f.json", "{}/mine"]),
    (["--atlas-dir", "../here/mine/"], "mine", ["--atlas-dir", "{}/mine"]),
    (["--use-plugin", "link"], "link", ["--use-plugin", "{}/link"]),
    (["--template", "odd:, one"], "odd:, one", ["--template", "{}/odd:, one"]),
    (["--template", "absent"], None, ["--template", "{}/absent"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "mounted", "passed"), FORMS, ids=lambda x: str(x)[:40])
def test_what_options_name_is_mounted_read_only(
    words: list[str],
    mounted: str | None,
    passed: list[str],
    dataset: Path,
    container: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    for name in ("mine/x", "a b/t.nii.gz", "f.json", "odd:, one"):
        write(here, name)
    (here / "link").symlink_to("f.json")
    monkeypatch.chdir(here)
    result = submit(dataset, tmp_path / "out", *words)
    assert result.returncode == 0, result.stderr
    _, mounts, given, _ = called(tmp_path)
    wanted = {
        f'type=bind,"src={path}","dst={path}",ro' if ":" in path else f"{path}:{path}:ro"
        for path in (f"{here}/{name}" for name in (mounted.split("|") if mounted else ()))
    }
    assert {m for m in mounts if str(here) in m} == wanted
    assert given[-len(passed) :] == [word.format(here) for word in passed]
    assert " ".join(given[-len(passed) :]) in (tmp_path / "jobs").read_text()


def test_options_mount_what_is_written_to_for_writing_and_hide_nothing(
    dataset: Path, container: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "d" / "out", tmp_path / "d"
    bundle = write(out, "models/mine/bundle.json").parent
    linked = out / "models" / "linked"
    linked.symlink_to(write(tmp_path, "elsewhere/bundle.json").parent)
    config = {
        "work_dir": str(data),
        "template": str(write(tmp_path, "t\u00e4.nii.gz")),
        "bundle": str(linked),
        "bids_database_dir": str(tmp_path / "database"),
        "site_column": "/none",
    }
    write(tmp_path, "old.json", json.dumps(config, indent=2))
    result = submit(
        dataset, out, "--bundle", bundle, "-w", tmp_path / "w", "-d", f"X={data}",
        "--qc-ratings", write(out, "qc_ratings.tsv"), "--config-file", tmp_path / "old.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    mounts = [m for m in called(tmp_path)[1] if f":{tmp_path}" in m]
    read = [str(dataset), str(data), f"{tmp_path}/elsewhere", str(tmp_path / "old.json"),
            config["template"]]  # fmt: skip
    written = [str(out), str(tmp_path / "w"), config["bids_database_dir"]]
    wanted = {path: f"{path}:{path}:ro" for path in read} | {p: f"{p}:{p}" for p in written}
    # A folder comes before what lies in it; the output folder has no mounts inside.
    assert mounts == [wanted[path] for path in sorted(wanted)]
    assert Path(config["bids_database_dir"]).is_dir()


def test_the_container_has_slurms_variables_and_none_of_the_users(
    task: list[str], container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIDS", str(tmp_path))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    monkeypatch.setenv("PYTHONHOME", "")
    subprocess.run(task, check=True, stdout=subprocess.DEVNULL)
    options, _, _, variables = called(tmp_path)
    assert "--cleanenv" in options
    passed = {k: v for k, v in variables.items() if k.startswith("APPTAINERENV_")}
    assert passed["APPTAINERENV_SLURM_PROCID"] == "3"
    assert passed["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "1,2"
    assert "APPTAINERENV_PYTHONHOME" not in passed


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    scripts = [*RECIPE.glob("*.sh"), *RECIPE.glob("*.sbatch")]
    assert len(scripts) == 6
    result = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
