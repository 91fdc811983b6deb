"""Completed before or not: the run and its dry run go by the content of every input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids_dataset import write

from bids_harmony.bids import outputs
from bids_harmony.bids.dataset import find_scans
from bids_harmony.bids.outputs import publish_scan, write_dataset_files
from bids_harmony.bids.records import PREPROCESSED, load_record
from bids_harmony.cli.dryrun import COMPLETED, render
from bids_harmony.cli.run import main, set_environment
from bids_harmony.config import RunConfig
from bids_harmony.files import sha256_of, write_json, write_text
from bids_harmony.run.base import Run
from bids_harmony.run.resume import NOTHING, survey


def image(path: Path, value: int = 1) -> Path:
    """A brain of one value, which differs in its content alone."""
    data = np.zeros((60, 72, 60), np.uint8)
    data[10:50, 10:60, 10:50] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([3.0, 3.0, 3.0, 1.0])), path)
    return path


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Two participants, one mask found earlier, a template and an atlas."""
    root = tmp_path / "bids"
    write(root, "dataset_description.json", '{"Name": "d", "BIDSVersion": "1.10.0"}')
    for label in ("01", "02"):
        image(root / f"sub-{label}/anat/sub-{label}_T1w.nii")
    image(tmp_path / "masks/sub-01/anat/sub-01_desc-brain_mask.nii")
    image(tmp_path / "atlases/a_T1w.nii")
    image(tmp_path / "atlases/a_mask.nii")
    age(tmp_path)
    return RunConfig(
        bids_dir=root,
        output_dir=tmp_path / "out",
        work_dir=tmp_path / "work",
        bundle="none",
        derivatives=(tmp_path / "masks",),
        template=image(tmp_path / "one/tpl-Mine_T1w.nii"),
        skull_strip="multi-atlas",
        atlas_dir=tmp_path / "atlases",
    )


def age(folder: Path) -> None:
    """Set the times of files back: they were written long before the run."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 100, time.time() - 100))


def complete(config: RunConfig) -> None:
    """Leave what a run leaves that completed every scan."""
    run = Run(config)
    write_dataset_files(config.output_dir, config.bids_dir)
    for scan in find_scans(config).scans:
        record = run.record_of(scan)
        image = record.with_name(f"{scan.key}_desc-brain_mask.nii.gz")
        write_text(image, "mask")
        found = {key: {} for key in PREPROCESSED}
        facts = run.facts(scan) | found | {"inputs": run.inputs(scan), "status": "pass"}
        outputs = [image.relative_to(config.output_dir).as_posix()]
        write_json(record, facts | {"outputs": outputs})
        write_text(config.output_dir / f"sub-{scan.entities['subject']}.html", "report")


def completed(config: RunConfig) -> list[str]:
    """Scans that the dry run says would be left as they are, which the run agrees to."""
    scans = find_scans(config)
    states = survey(Run(config), scans.scans)
    found = [key for key, state in states.items() if state == NOTHING]
    plan = render(scans, config).splitlines()
    assert found == [line.split()[0] for line in plan if COMPLETED in line]
    return found


def edit(path: Path) -> None:
    """Change one byte, and set the time of the change back."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def another(path: Path) -> None:
    """Put another file of the same name and size in the place of one."""
    other = image(path.with_name(f"other_{path.name}"), 2)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)


CHANGES: dict[str, tuple[Callable[[RunConfig], RunConfig | None], list[str]]] = {
    "nothing": (lambda c: None, ["sub-01", "sub-02"]),
    "a T1w edited in place": (
        lambda c: edit(c.bids_dir / "sub-01/anat/sub-01_T1w.nii"), ["sub-02"],
    ),
    "another T1w of the same size and time": (
        lambda c: another(c.bids_dir / "sub-02/anat/sub-02_T1w.nii"), ["sub-01"],
    ),
    "a mask edited in place": (
        lambda c: edit(c.derivatives[0] / "sub-01/anat/sub-01_desc-brain_mask.nii"),
        ["sub-02"],
    ),
    "the same mask elsewhere": (
        lambda c: replace(c, derivatives=(image(
            c.work_dir.parent / "m3/sub-01/anat/sub-01_desc-brain_mask.nii"
        ).parents[2],)), ["sub-01", "sub-02"],
    ),
    "no masks": (lambda c: replace(c, derivatives=()), ["sub-02"]),
    "a template edited in place": (lambda c: another(c.template), []),
    "another atlas": (lambda c: another(c.atlas_dir / "a_T1w.nii"), []),
    "options of harmonization, without a bundle": (
        lambda c: replace(c, output_spaces=("template", "T1w")), ["sub-01", "sub-02"],
    ),
    "an age, which preprocessing does not use": (
        lambda c: write(c.bids_dir, "participants.tsv", "participant_id\tage\nsub-01\t3\n")
        and None, ["sub-01", "sub-02"],
    ),
    "a lost output": (
        lambda c: (c.output_dir / "sub-02/anat/sub-02_desc-brain_mask.nii.gz").unlink(),
        ["sub-01"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_could_change_a_result_makes_it_be_computed_again(
    config: RunConfig, change: str
) -> None:
    complete(config)
    run = Run(config)
    for scan in find_scans(config).scans:
        run.inputs(scan)
    run.digests.save()
    act, expected = CHANGES[change]
    assert completed(act(config) or config) == expected


def test_hashing_is_paid_once(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    complete(config)
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(outputs, "sha256_of", counted)
    monkeypatch.setattr(outputs, "RECENT", -1)
    for _ in range(3):
        run = Run(config)
        assert set(survey(run, find_scans(config).scans).values()) == {NOTHING}
        run.digests.save()
    scans = sorted(name for name in read if name.startswith("sub-"))
    assert scans == ["sub-01_T1w.nii", "sub-01_desc-brain_mask.nii", "sub-02_T1w.nii"]


def test_a_dry_run_remembers_nothing(config: RunConfig) -> None:
    complete(config)
    assert completed(config) == ["sub-01", "sub-02"]
    assert not (config.output_dir / "logs").exists()


# The outputs of a scan


def staged(folder: Path, **record: object) -> Path:
    """Outputs of a scan that are ready to be put in place."""
    path = folder / "sub-01/anat/sub-01_desc-harmony_qc.json"
    for name in (
        "desc-brain_mask.nii.gz",
        "desc-brain_mask.json",
        "from-T1w_to-X_mode-image_xfm.txt",
    ):
        write_text(path.with_name(f"sub-01_{name}"), "new")
    outputs = ["desc-brain_mask.nii.gz", "from-T1w_to-X_mode-image_xfm.txt"]
    values = {
        "name": "sub-01", "entities": {"subject": "01"}, "status": "pass", "warnings": [],
        "outputs": [f"sub-01/anat/sub-01_{name}" for name in outputs], **record,
    }  # fmt: skip
    write_json(path, values)
    return path


OLD = (
    "anat/sub-01_desc-brain_mask.nii.gz",
    "anat/sub-01_desc-harmony_predictions.json",
    "anat/sub-01_desc-harmony_qc.json",
    "anat/sub-01_from-T1w_to-Old_mode-image_xfm.txt",
    "anat/sub-01_space-Old_res-2_desc-harmonized_T1w.json",
    "anat/sub-01_space-Old_res-2_desc-harmonized_T1w.nii.gz",
    "figures/sub-01_desc-slices_T1w.png",
)
NEIGHBOURS = (
    "anat/sub-01_acq-b_desc-brain_mask.nii.gz",
    "anat/sub-01_acq-b_desc-harmony_qc.json",
    "anat/sub-01_desc-mine_mask.nii.gz",
    "anat/notes.txt",
    "figures/sub-01_run-1_desc-slices_T1w.png",
    "ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz",
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """What an earlier run left for a scan, beside others' files."""
    for name in OLD + NEIGHBOURS:
        write_text(tmp_path / "out/sub-01" / name, "{}" if "qc.json" in name else "old")
    return tmp_path / "out"


def names(out: Path) -> set[str]:
    return {p.relative_to(out / "sub-01").as_posix() for p in out.rglob("*") if p.is_file()}


def test_new_outputs_replace_all_that_the_scan_had(out: Path, tmp_path: Path) -> None:
    record = staged(tmp_path / "stage")
    assert publish_scan(tmp_path / "stage", out, record).read_bytes() == record.read_bytes()
    assert names(out) - set(NEIGHBOURS) == {
        "anat/sub-01_desc-brain_mask.nii.gz",
        "anat/sub-01_desc-brain_mask.json",
        "anat/sub-01_desc-harmony_qc.json",
        "anat/sub-01_from-T1w_to-X_mode-image_xfm.txt",
    }
    assert names(out) >= set(NEIGHBOURS)
    assert (out / "sub-01/anat/sub-01_desc-brain_mask.nii.gz").read_text() == "new"


def test_outputs_that_cannot_be_copied_leave_what_there_was(out: Path, tmp_path: Path) -> None:
    record = staged(tmp_path / "stage")
    (tmp_path / "stage/sub-01/anat/sub-01_from-T1w_to-X_mode-image_xfm.txt").unlink()
    with pytest.raises(FileNotFoundError):
        publish_scan(tmp_path / "stage", out, record)
    assert names(out) == {*OLD, *NEIGHBOURS}
    assert (out / "sub-01/anat/sub-01_desc-brain_mask.nii.gz").read_text() == "old"


def test_a_run_that_ends_between_two_files_leaves_no_record_of_both(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(part: Path, target: Path) -> None:
        os.replace(part, target)
        raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed):
        publish_scan(tmp_path / "stage", out, staged(tmp_path / "stage", metrics={"snr": 1.0}))
    record = load_record(out / "sub-01/anat/sub-01_desc-harmony_qc.json")
    assert record is not None
    assert record["status"] == "error"
    assert not {"outputs", "metrics"} & set(record)


# One dataset, one output folder


def dataset(root: Path, *labels: str, name: str | None = "d", value: int = 1) -> Path:
    """A dataset whose scans cannot be processed: runs end early."""
    description = {"BIDSVersion": "1.10.0"} | ({"Name": name} if name else {})
    write(root, "dataset_description.json", json.dumps(description))
    for label in labels or ("01",):
        write(root, f"sub-{label}/anat/sub-{label}_T1w.nii.gz", bytes([value]) * 100)
    return root


def owned(out: Path, bids: Path) -> dict[Path, bytes]:
    """An output folder with a completed scan of a dataset; its files."""
    write_dataset_files(out, bids)
    source = "sub-01/anat/sub-01_T1w.nii.gz"
    write_json(
        out / "sub-01/anat/sub-01_desc-harmony_qc.json",
        {"status": "pass", "source": source, "input_sha256": sha256_of(bids / source)},
    )
    return contents(out)


def contents(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("level", ["participant", "group", "train", "evaluate"])
@pytest.mark.parametrize("name", ["second", None])
def test_another_dataset_is_refused(
    tmp_path: Path, name: str | None, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = owned(tmp_path / "out", dataset(tmp_path / "a"))
    other = dataset(tmp_path / "b", name=name, value=2)
    argv = [str(other), str(tmp_path / "out"), level, "-w", str(tmp_path / "work")]
    assert main(argv) == 2
    assert "belongs to another dataset" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("change", ["moved", "replaced scan", "moved and grown"])
def test_the_same_dataset_is_known_again(tmp_path: Path, change: str) -> None:
    bids = dataset(tmp_path / "a")
    owned(tmp_path / "out", bids)
    if "moved" in change:
        bids = bids.rename(tmp_path / "b")
    if change == "replaced scan":
        dataset(bids, value=3)
    if "grown" in change:
        dataset(bids, "03")
        (bids / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    argv = [str(bids), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
    assert main([*argv, "--dry-run", "--bundle", "none"]) == 0


# Printing, and folders of others


HARMONY = f"{sys.executable} -m bids_harmony"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("HARMONY", HARMONY)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("sink", ["| head -c 1", "> /dev/full", ">&-"])
def test_printing_never_ends_a_run(tmp_path: Path, sink: str) -> None:
    bids = dataset(tmp_path / "bids", "01", "02", "03")
    out = tmp_path / "out"
    done = shell(
        f"HARMONY {bids} {out} participant --bundle none -w {tmp_path / 'work'} --nprocs 1 {sink}"
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert len([*out.rglob("*_desc-harmony_qc.json")]) == 3
    assert len([*out.glob("sub-*.html")]) == 3


@pytest.mark.parametrize(
    ("what", "sink"),
    [("--help", "| true"), ("BIDS OUT participant --dry-run --bundle none", "> /dev/full")],
)
def test_what_is_shown_and_not_read_is_no_error(tmp_path: Path, what: str, sink: str) -> None:
    bids = dataset(tmp_path / "bids")
    what = what.replace("BIDS", str(bids)).replace("OUT", str(tmp_path / "out"))
    done = shell(f"cd {tmp_path}; HARMONY {what} {sink}", PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("taken", ["out/sub-01", "work/bids_harmony/sub_01_wf"])
def test_a_folder_that_cannot_be_written_costs_its_scan_alone(tmp_path: Path, taken: str) -> None:
    bids = dataset(tmp_path / "bids", "01", "02")
    out = tmp_path / "out"
    write(tmp_path, taken, "not a folder")
    done = shell(f"HARMONY {bids} {out} participant --bundle none -w {tmp_path / 'work'}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [row for row in done.stdout.splitlines() if row.strip().startswith("sub-01  failed")]
    assert ("Its record could not be written" in line) == (taken == "out/sub-01")
    labels = ("02",) if taken == "out/sub-01" else ("01", "02")
    for label in labels:
        record = json.loads(
            (out / f"sub-{label}/anat/sub-{label}_desc-harmony_qc.json").read_text()
        )
        assert ("sub_01_wf" in str(record["error"])) == (label == "01")
        assert (out / f"sub-{label}.html").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("wrong", ["use-plugin", "template", "atlas-dir"])
def test_what_is_refused_costs_no_record(tmp_path: Path, wrong: str, dry: list[str]) -> None:
    bids, out = dataset(tmp_path / "bids"), tmp_path / "out"
    before = owned(out, bids)
    (tmp_path / "empty").mkdir()
    path = tmp_path / "empty" if wrong == "atlas-dir" else write(tmp_path, "notes.txt", "text")
    argv = [bids, out, "participant", "-w", tmp_path / "work", "--bundle", "none", *dry]
    method = ["--skull-strip", "multi-atlas"] if wrong == "atlas-dir" else []
    assert main([*map(str, argv), f"--{wrong}", str(path), *method]) == 2
    assert contents(out) == before


def test_what_the_users_shell_sets_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": "/nowhere",
        "PYTHONHOME": "/usr", "PYTHONWARNINGS": "error", "TEMPLATEFLOW_HOME": "/nowhere",
        "FSLOUTPUTTYPE": "NIFTI", "OMP_NUM_THREADS": "64",
    }  # fmt: skip
    monkeypatch.setattr(os, "environ", {**os.environ, **hostile})
    set_environment(RunConfig(bids_dir=Path("/b"), output_dir=Path("/o"), omp_nthreads=3))
    found = [os.environ[name] for name in ("MPLBACKEND", "FSLOUTPUTTYPE", "OMP_NUM_THREADS")]
    assert found == ["Agg", "NIFTI_GZ", "3"]
    assert not {"MATPLOTLIBRC", "PYTHONHOME", "PYTHONWARNINGS"} & set(os.environ)
    assert (Path(os.environ["TEMPLATEFLOW_HOME"]) / "tpl-MNI152NLin2009aSym").is_dir()
