"""Where data may lie and results may go."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import parse, refuse


def test_dataset_must_be_a_folder(paths: list[str], tmp_path: Path, monkeypatch) -> None:
    error = refuse([str(tmp_path / "absent"), paths[1], "participant"])
    assert error.cause == f"The dataset does not exist: {tmp_path}/absent."
    assert "container" not in error.remedy
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refuse([str(tmp_path / "file"), paths[1], "participant"]).cause
    for name in ("IS_DOCKER_8395080871", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.setenv(name, "1")
        remedy = refuse([str(tmp_path / "absent"), paths[1], "participant"]).remedy
        assert "In a container only mounted folders are seen" in remedy
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("out", "work", "cause"),
    [
        ("in", "w", "among the raw data"),
        ("in/out", "w", "among the raw data"),
        ("in/sub-01/out", "w", "among the raw data"),
        ("in/derivatives", "w", "derivatives of all programs"),
        ("link", "w", "among the raw data"),
        ("out", "in/work", "inside the dataset"),
        ("out", "in", "inside the dataset"),
        ("out", "out", "holds the output folder"),
        ("out", ".", "holds the output folder"),
    ],
)
def test_places_that_do_harm(
    paths: list[str], tmp_path: Path, out: str, work: str, cause: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "in")
    error = refuse([paths[0], f"{tmp_path}/{out}", "participant", "-w", f"{tmp_path}/{work}"])
    assert cause in error.cause
    if work == "w":
        assert f"{tmp_path}/in/derivatives/bids_harmony" in error.remedy


def test_work_folder_in_the_dataset_by_default(paths: list[str], monkeypatch) -> None:
    monkeypatch.chdir(paths[0])
    assert "--work-dir" in refuse([*paths, "participant"]).remedy


def test_places_that_are_fine(paths: list[str], tmp_path: Path, capsys) -> None:
    for out in ("in/derivatives/bids_harmony", "in/derivatives/bids_harmony-0.1"):
        parse([paths[0], f"{tmp_path}/{out}"], "-w", f"{tmp_path}/w/x")
    assert capsys.readouterr().err == ""
    parse([paths[0], f"{tmp_path}/in/derivatives/mine"])
    assert "contain 'bids_harmony'" in capsys.readouterr().err
    parse(paths, "-w", f"{paths[1]}/work")
    assert "inside the output folder" in capsys.readouterr().err
    parse(paths, "--nprocs", "1", "--omp-nthreads", "2")
    assert "--omp-nthreads 2 is more than --nprocs 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("description", "cause"),
    [
        ({"Name": "x", "BIDSVersion": "1.8.0"}, "a raw dataset"),
        ({"DatasetType": "raw"}, "a raw dataset"),
        ({"DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}, "fMRIPrep"),
        ({"DatasetType": "derivative", "GeneratedBy": [{"Name": "bids_harmony"}]}, None),
        ({"DatasetType": "derivative"}, None),
        ([], None),
    ],
)
def test_output_of_other_programs_is_left_alone(
    paths: list[str], description: object, cause: str | None
) -> None:
    out = Path(paths[1])
    out.mkdir()
    (out / "dataset_description.json").write_text(json.dumps(description))
    if cause is None:
        parse(paths)
    else:
        assert cause in refuse([*paths, "participant"]).cause


def test_places_must_be_writable(paths: list[str], tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    error = refuse([paths[0], f"{tmp_path}/file/out", "participant"])
    assert "is not a folder" in error.cause
    locked = tmp_path / "locked"
    locked.mkdir()
    real = os.access
    # Tests may run as root, to whom every folder is writable.
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != locked and real(p, mode))
    for argv in (
        [paths[0], f"{locked}/a/out", "participant"],
        [*paths, "participant", "-w", str(locked)],
    ):
        error = refuse(argv)
        assert f"no permission for {locked}" in error.cause
        assert "permissions" in error.remedy


def test_derivatives_must_be_one_pipeline(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "in/derivatives/fmriprep/sub-01").mkdir(parents=True)
    error = refuse([*paths, "participant", "-d", f"{tmp_path}/in/derivatives"])
    assert "holds no sub-* folder" in error.cause
    assert f"{tmp_path}/in/derivatives/fmriprep" in error.remedy


def test_an_output_folder_that_ends_with_the_container_is_warned_of(
    paths: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    parse(paths)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("IS_DOCKER_8395080871", "1")
    for mounted, warned in (([], True), ([tmp_path], False), ([Path("/")], True)):
        monkeypatch.setattr(os.path, "ismount", lambda path, m=mounted: path in m)
        parse(paths)
        assert ("is the container's own" in capsys.readouterr().err) == warned
