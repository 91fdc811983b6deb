"""The FSL paths, with stand-ins in FSL's place that behave as FSL's own programs do."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import nitransforms as nt
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation
from standins.fsl import install

from bids_harmony.anat import tool_versions
from bids_harmony.anat.fsl import (
    bet,
    check_programs,
    flirt,
    fsl_to_itk,
    fsl_version,
)
from bids_harmony.errors import MissingProgramError, ScanError
from bids_harmony.interfaces.anat import BrainMask


@pytest.fixture
def fsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-ins in place; returns FSLDIR, beside which ``calls`` lists what was called."""
    for name, value in install(tmp_path / "programs").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    return tmp_path / "programs" / "fsl"


def replace(program: Path, script: str) -> None:
    """Put a script in a stand-in's place."""
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def ball(path: Path, radius: float, size: int = 60, zoom: float = 1.0) -> str:
    """Write a ball of ones in zeros, ``radius`` in voxels."""
    grid = np.indices((size,) * 3) - (size - 1) / 2
    data = (np.sqrt((grid**2).sum(axis=0)) < radius).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([zoom, zoom, zoom, 1])), path)
    return str(path)


def oblique(zooms: tuple[float, float, float], signs: tuple[int, int, int]) -> np.ndarray:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag(np.array(zooms) * signs)
    affine[:3, 3] = (-40, 30, 12)
    return affine


def scaled_voxels(img: nib.Nifti1Image) -> np.ndarray:
    """Voxel indices to FSL's coordinates in mm: x flipped unless stored radiologically."""
    zooms = img.header.get_zooms()[:3]
    to_fsl = np.diag([*zooms, 1.0])
    if np.linalg.det(img.affine) > 0:
        to_fsl = np.diag([-1.0, 1, 1, 1]) @ to_fsl
        to_fsl[0, 3] = (img.shape[0] - 1) * zooms[0]
    return to_fsl


@pytest.mark.parametrize("moving_signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("reference_sign", [1, -1])
def test_flirt_matrix_becomes_the_same_transform(
    tmp_path: Path, moving_signs: tuple[int, int, int], reference_sign: int
) -> None:
    """FSL's own definition of its matrix is computed here by hand and must come back."""
    files = moving_file, reference_file = tmp_path / "m.nii.gz", tmp_path / "r.nii.gz"
    moving, reference = (
        nib.Nifti1Image(np.ones(shape, np.uint8), affine)
        for shape, affine in (
            ((40, 50, 30), oblique((0.9, 1.0, 1.5), moving_signs)),
            ((44, 46, 36), np.diag([2.0 * reference_sign, 2.0, 2.0, 1.0])),
        )
    )
    for img, path in zip((moving, reference), files, strict=True):
        nib.save(img, path)
    true = np.eye(4)  # moving RAS to reference RAS
    true[:3, :3] = Rotation.from_euler("xyz", [5, 8, -12], degrees=True).as_matrix() * 1.1
    true[0, 1] += 0.05
    true[:3, 3] = (3, -7, 11)
    to_reference_voxels = np.linalg.inv(reference.affine) @ true @ moving.affine
    matrix = scaled_voxels(reference) @ to_reference_voxels @ np.linalg.inv(scaled_voxels(moving))
    np.savetxt(tmp_path / "a.mat", matrix, fmt="%.10f")
    fsl_to_itk(tmp_path / "a.mat", moving_file, reference_file, tmp_path / "a.txt")

    found = nt.linear.load(str(tmp_path / "a.txt"), fmt="itk").matrix
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in reference.shape])).reshape(3, -1).T
    points = apply_affine(reference.affine, corners)
    error = np.abs(apply_affine(found, points) - apply_affine(np.linalg.inv(true), points))
    assert error.max() < 0.01


@pytest.mark.parametrize("text", ["", "1 0 0 0\n", "0 0 0 0\n" * 4, "nan 0 0 0\n" * 4, "a b\n"])
@pytest.mark.filterwarnings("error")
def test_useless_matrix_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.mat").write_text(text)
    with pytest.raises(ScanError, match="FLIRT"):
        fsl_to_itk(tmp_path / "a.mat", tmp_path / "m", tmp_path / "r", tmp_path / "a.txt")


def test_programs_that_are_there_are_found(fsl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_programs(["bet", "flirt"])
    monkeypatch.delenv("FSLDIR")
    check_programs(["flirt"])  # a program, which calls no other
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingProgramError, match="flirt") as raised:
        check_programs(["flirt"])
    assert raised.value.exit_code == 127
    assert "--registration ants" in raised.value.remedy


@pytest.mark.parametrize("missing", ["$FSLDIR/bin/bet2", "dc"])
def test_all_that_bet_needs_is_checked(
    fsl: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "dc":
        monkeypatch.setenv("PATH", str(fsl / "bin"))
    else:
        (fsl / "bin" / "bet2").chmod(0o644)  # not executable
    with pytest.raises(MissingProgramError, match="--skull-strip bet needs") as raised:
        check_programs(["bet"])
    assert os.path.expandvars(missing) in os.path.expandvars(raised.value.cause)
    assert "--skull-strip deepbet" in raised.value.remedy


def test_bet_runs_where_the_work_folder_has_spaces_and_may_warn(tmp_path: Path, fsl: Path) -> None:
    """The script quotes nothing; messages on stderr are no failure."""
    folder = tmp_path / "my 'work' & (more)"
    head = nib.load(ball(folder / "head.nii", 12, size=40))
    mask, record = bet(head, folder)
    assert (np.asarray(nib.load(mask).dataobj) > 0).sum() == head.get_fdata().sum()
    assert record == {"command": "bet t1w.nii t1w_brain.nii.gz -f 0.50 -m -R"}


@pytest.mark.parametrize(
    ("program", "script", "cause"),
    [
        ("bet", "echo; echo 'Error: input image x not valid'; echo; exit 1",
         "bet failed with exit code 1: 'Error: input image x not valid'."),
        ("bet", r"printf 'Zu wenig Platz \374brig\n' >&2; exit 1", "'Zu wenig Platz \ufffdbrig'."),
        # FSL's script ends with 0 whatever the programs in it do.
        ("bet2", "echo 'Cannot open volume x for reading!' >&2; exit 1",
         "bet failed with exit code 0: 'Cannot open volume x for reading!'."),
        ("flirt", "yes | head -c 9999 >&2; exit 2", "flirt failed with exit code 2: 'y y y"),
        ("flirt", "echo 'gave up'", "flirt failed with exit code 0: 'gave up'."),
        ("flirt", ": > brain_flirt.mat", "FLIRT did not find an invertible transform."),
        ("flirt", "kill -9 $$", "flirt failed with exit code "),
    ],
)  # fmt: skip
def test_the_message_of_a_failing_program_is_the_cause(
    tmp_path: Path, fsl: Path, program: str, script: str, cause: str
) -> None:
    replace(fsl / "bin" / program, script)
    head = nib.load(ball(tmp_path / "head.nii", 12, size=40))
    with pytest.raises(ScanError) as raised:
        flirt(head, head, tmp_path / "a.txt") if program == "flirt" else bet(head, tmp_path)
    assert cause in raised.value.cause
    assert len(raised.value.cause) < 400


def test_tools_are_those_of_the_run_and_none_is_imported(
    fsl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always = {"nipype", "torch", "nilearn"}
    assert set(tool_versions("multi-atlas", "flirt")) == always | {"antspyx", "FSL"}
    versions = tool_versions("skip", "flirt")
    assert versions["FSL"] == "6.0.0"
    assert all(v and "+" not in v for v in versions.values())
    monkeypatch.delenv("FSLDIR")  # then FSL is where flirt is
    (fsl / "etc" / "fslversion").write_bytes(b"6.0.7.4:\xe9\nmore\n")
    assert fsl_version() == "6.0.7.4:\ufffd"
    (fsl / "etc" / "fslversion").unlink()
    assert fsl_version() == "unknown"
    code = (
        "import sys; from bids_harmony.anat import tool_versions as f\n"
        "f('bet', 'ants')\n"
        "sys.exit(bool({'torch', 'ants', 'nipype', 'nilearn', 'deepbet'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bet_is_named_in_the_record(tmp_path: Path, fsl: Path) -> None:
    head = ball(tmp_path / "head.nii", 16, zoom=4)
    node = BrainMask(
        in_file=head, source_file=head, method="bet", scan_key="sub-01",
        prefix=str(tmp_path / "sub-01"),
    )  # fmt: skip
    record = node.run(cwd=str(tmp_path)).outputs.record
    assert (record["method"], record["tool"], record["version"]) == ("bet", "FSL", "6.0.0")


def test_flirt_is_called_as_in_the_paper(tmp_path: Path, fsl: Path) -> None:
    """12 degrees of freedom, correlation ratio (FLIRT's defaults, science.md §1b)."""
    replace(fsl / "bin" / "flirt", "printf '1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n' > $8")
    head = nib.load(ball(tmp_path / "head.nii", 12, size=40))
    record = flirt(head, head, tmp_path / "a.txt")
    assert record["command"].startswith("flirt -in brain.nii.gz -ref template.nii.gz ")
    assert record["command"].endswith(" -cost corratio -dof 12")
    found = nt.linear.load(str(tmp_path / "a.txt"), fmt="itk").matrix
    np.testing.assert_allclose(found, np.eye(4), atol=1e-6)


@pytest.mark.slow
def test_participant_runs_through_bet_and_flirt(tmp_path: Path, fsl: Path) -> None:
    from bids_harmony.simulation.dataset import simulate_dataset

    bids, out = tmp_path / "bids", tmp_path / "out"
    simulate_dataset(bids, n_sites=1, n_subjects=1, seed=8, resolution=2.0)
    result = subprocess.run(
        [
            sys.executable, "-m", "bids_harmony", bids, out, "participant", "-w",
            tmp_path / "my work", "--skull-strip", "bet", "--registration", "flirt",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    calls = [shlex.split(line) for line in (fsl.parent / "calls").read_text().splitlines()]
    assert sorted(call[0] for call in calls) == ["bet", "flirt"]
    record = json.loads((out / "sub-01" / "anat" / "sub-01_desc-harmony_qc.json").read_text())
    for step, method in (("mask", "bet"), ("affine", "flirt")):
        assert record[step]["method"] == method
        assert record[step]["version"] == "6.0.0"
        assert record[step]["command"].startswith(f"{method} ")
        assert str(tmp_path) not in record[step]["command"]
    assert record["metrics"]["template_dice"] > 0.9
    assert any("differs from the bundle's" in warning for warning in record["warnings"])
    report = (out / "sub-01.html").read_text()
    assert "(FSL 6.0.0, <code>bet t1w.nii" in report
    assert "(FSL 6.0.0, <code>flirt -in" in report


def test_run_without_fsl_stops_before_anything(tmp_path: Path) -> None:
    bids = tmp_path / "bids"
    anat = bids / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (bids / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    (anat / "sub-01_T1w.nii.gz").touch()
    result = subprocess.run(
        [
            sys.executable, "-m", "bids_harmony", bids, tmp_path / "out", "participant",
            "-w", tmp_path / "work", "--registration", "flirt",
        ],
        capture_output=True, text=True, check=False, env={**os.environ, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert result.returncode == 127
    assert "flirt" in result.stderr
    assert "Traceback" not in result.stderr
