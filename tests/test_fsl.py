"""The FSL paths, with recording stand-ins in FSL's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import nitransforms as nt
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from bids_harmony.anat.fsl import bet_interface, check_programs, flirt_interface, fsl_to_itk
from bids_harmony.errors import MissingProgramError, ScanError

STANDINS = Path(__file__).parent / "standins"


@pytest.fixture
def fsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-ins on the PATH; returns the file they record their arguments in."""
    folder = tmp_path / "fsl"
    folder.mkdir()
    for name in ("bet", "flirt"):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STANDINS / name}.py" "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "calls"))
    monkeypatch.setenv("FSLOUTPUTTYPE", "NIFTI_GZ")
    return tmp_path / "calls"


def image(path: Path, shape: tuple[int, int, int], affine: np.ndarray) -> nib.Nifti1Image:
    img = nib.Nifti1Image(np.ones(shape, np.uint8), affine)
    nib.save(img, path)
    return img


def oblique(zooms: tuple[float, float, float], signs: tuple[int, int, int]) -> np.ndarray:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag(np.array(zooms) * signs)
    affine[:3, 3] = (-40, 30, 12)
    return affine


@pytest.mark.parametrize("moving_signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("reference_signs", [(1, 1, 1), (-1, 1, 1)])
def test_flirt_matrix_becomes_the_same_transform(
    tmp_path: Path, moving_signs: tuple[int, int, int], reference_signs: tuple[int, int, int]
) -> None:
    """FSL's own definition of its matrix is computed here by hand and must come back."""
    moving_file, reference_file = tmp_path / "m.nii.gz", tmp_path / "r.nii.gz"
    moving = image(moving_file, (40, 50, 30), oblique((0.9, 1.0, 1.5), moving_signs))
    reference = image(
        reference_file, (44, 46, 36), np.diag([2.0 * reference_signs[0], 2.0, 2.0, 1.0])
    )

    def scaled_voxels(img: nib.Nifti1Image) -> np.ndarray:
        """Voxel indices to FSL's coordinates in mm: x flipped unless stored radiologically."""
        zooms = img.header.get_zooms()[:3]
        to_fsl = np.diag([*zooms, 1.0])
        if np.linalg.det(img.affine) > 0:
            to_fsl = np.diag([-1.0, 1, 1, 1]) @ to_fsl
            to_fsl[0, 3] = (img.shape[0] - 1) * zooms[0]
        return to_fsl

    true = np.eye(4)  # moving RAS to reference RAS
    true[:3, :3] = Rotation.from_euler("xyz", [5, 8, -12], degrees=True).as_matrix() * 1.1
    true[0, 1] += 0.05
    true[:3, 3] = (3, -7, 11)
    to_reference_voxels = np.linalg.inv(reference.affine) @ true @ moving.affine
    flirt = scaled_voxels(reference) @ to_reference_voxels @ np.linalg.inv(scaled_voxels(moving))
    np.savetxt(tmp_path / "a.mat", flirt, fmt="%.10f")
    fsl_to_itk(tmp_path / "a.mat", moving_file, reference_file, tmp_path / "a.txt")

    found = nt.linear.load(
        str(tmp_path / "a.txt"), fmt="itk", reference=str(reference_file), moving=str(moving_file)
    ).matrix
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in reference.shape])).reshape(3, -1).T
    points = apply_affine(reference.affine, corners)
    error = np.abs(apply_affine(found, points) - apply_affine(np.linalg.inv(true), points))
    assert error.max() < 0.01


@pytest.mark.parametrize("text", ["", "1 0 0 0\n", "0 0 0 0\n" * 4, "nan 0 0 0\n" * 4, "a b\n"])
def test_useless_matrix_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.mat").write_text(text)
    with pytest.raises(ScanError, match="FLIRT"):
        fsl_to_itk(tmp_path / "a.mat", "m.nii.gz", "r.nii.gz", tmp_path / "a.txt")


def test_missing_program_is_named_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingProgramError, match="flirt") as raised:
        check_programs(["flirt"])
    assert raised.value.exit_code == 127
    assert "--registration ants" in raised.value.remedy


def test_programs_on_the_path_are_found(fsl: Path) -> None:
    check_programs(["bet", "flirt"])


def test_commands_are_the_papers(tmp_path: Path, fsl: Path) -> None:
    """12 degrees of freedom, correlation ratio (FLIRT's defaults, science.md §1b)."""
    for name in ("m", "r"):
        image(tmp_path / f"{name}.nii.gz", (8, 8, 8), np.eye(4))
    flirt = flirt_interface()
    flirt.inputs.in_file = str(tmp_path / "m.nii.gz")
    flirt.inputs.reference = str(tmp_path / "r.nii.gz")
    command = flirt.cmdline.split()
    assert command[command.index("-dof") + 1] == "12"
    assert command[command.index("-cost") + 1] == "corratio"
    bet = bet_interface()
    bet.inputs.in_file = str(tmp_path / "m.nii.gz")
    assert {"-m", "-R"} <= set(bet.cmdline.split())


@pytest.mark.slow
def test_participant_runs_through_bet_and_flirt(tmp_path: Path, fsl: Path) -> None:
    from bids_harmony.simulation.dataset import simulate_dataset

    bids, out = tmp_path / "bids", tmp_path / "out"
    simulate_dataset(bids, n_sites=1, n_subjects=1, seed=8, resolution=2.0)
    result = subprocess.run(
        [
            sys.executable, "-m", "bids_harmony", bids, out, "participant", "-w",
            tmp_path / "work", "--skull-strip", "bet", "--registration", "flirt",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    calls = [json.loads(line) for line in fsl.read_text().splitlines()]
    assert sorted(call[0] for call in calls) == ["bet", "flirt"]
    record = json.loads((out / "sub-01" / "anat" / "sub-01_desc-harmony_qc.json").read_text())
    assert record["mask"]["method"] == "bet"
    assert record["metrics"]["template_dice"] > 0.9
    assert any("bet" in warning for warning in record["warnings"])
    assert (out / "sub-01.html").exists()


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
