"""Simulated datasets: valid BIDS, tables that agree, the same bytes again."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_harmony.simulation.dataset import simulate_dataset
from bids_harmony.simulation.describe import sidecar
from bids_harmony.simulation.scanner import draw_scanner

SMALL = {"n_sites": 2, "n_subjects": 2, "seed": 7, "resolution": 3.0}


def digests(folder: Path) -> dict[str, str]:
    """Hash of each file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def validator_errors(folder: Path, tmp_path: Path) -> list[dict]:
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    assert program, "bids-validator-deno is part of the test requirements"
    report = tmp_path / "validator.json"
    command = [program, str(folder), "--format", "json", "--ignoreWarnings", "-o", str(report)]
    subprocess.run(command, check=False, capture_output=True, timeout=120)
    issues = json.loads(report.read_text())["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "bids"
    simulate_dataset(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def travelling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "travelling"
    simulate_dataset(out, **{**SMALL, "n_subjects": 1}, travelling=True, stripped_sites=[2])
    return out


def test_the_dataset_and_its_truth_are_valid_bids(small: Path, tmp_path: Path) -> None:
    assert validator_errors(small, tmp_path) == []
    assert validator_errors(small / "derivatives" / "truth", tmp_path) == []


def test_travelling_is_valid_bids(travelling: Path, tmp_path: Path) -> None:
    assert validator_errors(travelling, tmp_path) == []
    assert validator_errors(travelling / "derivatives" / "truth", tmp_path) == []


def test_the_validator_would_notice(small: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(small, tmp_path / "broken")
    (broken / "dataset_description.json").write_text("{}")
    assert validator_errors(broken, tmp_path)


def test_same_seed_same_bytes_whatever_the_number_of_processes(
    small: Path, tmp_path: Path
) -> None:
    simulate_dataset(tmp_path / "again", **SMALL, nprocs=2)
    assert digests(tmp_path / "again") == digests(small)


def test_another_seed_makes_other_scans(small: Path, tmp_path: Path) -> None:
    simulate_dataset(tmp_path / "other", **{**SMALL, "seed": 8, "n_subjects": 1, "n_sites": 1})
    scan = Path("sub-01/anat/sub-01_T1w.nii.gz")
    other = np.asarray(nib.load(tmp_path / "other" / scan).dataobj)
    assert not np.array_equal(other, np.asarray(nib.load(small / scan).dataobj))


def test_tables_agree_and_say_that_all_is_simulated(small: Path) -> None:
    people = pd.read_csv(small / "participants.tsv", sep="\t")
    truth = pd.read_csv(small / "derivatives" / "truth" / "participants.tsv", sep="\t")
    sites = pd.read_csv(small / "derivatives" / "truth" / "sites.tsv", sep="\t")
    shared = ["participant_id", "age", "sex", "site", "diagnosis"]
    assert list(people.columns) == shared
    pd.testing.assert_frame_equal(people, truth[shared])
    assert list(sites["site"]) == sorted(set(people["site"])) == ["site1", "site2"]
    assert set(people["diagnosis"]) == {"control", "schizophrenia"}
    total = truth["gm_ml"] + truth["wm_ml"] + truth["csf_ml"]
    np.testing.assert_allclose(total, truth["brain_ml"], atol=0.01)
    assert (truth["ventricle_ml"] < truth["csf_ml"]).all()
    for stem in ("participants", "scans", "sites"):
        table = pd.read_csv(small / "derivatives" / "truth" / f"{stem}.tsv", sep="\t")
        about = json.loads((small / "derivatives" / "truth" / f"{stem}.json").read_text())
        assert set(table.columns) - {"participant_id"} == set(about)
    described = json.loads((small / "participants.json").read_text())
    assert "imulated" in described["diagnosis"]["Description"]
    assert "no person was scanned" in (small / "README").read_text()
    for path in small.glob("sub-*/anat/*_T1w.json"):
        assert json.loads(path.read_text())["Simulated"] is True


def test_every_scan_has_a_sidecar_of_its_scanner_and_a_mask_of_the_true_volume(
    small: Path,
) -> None:
    truth = pd.read_csv(small / "derivatives" / "truth" / "participants.tsv", sep="\t")
    for row in truth.itertuples():
        stem = f"{row.participant_id}/anat/{row.participant_id}"
        scan = nib.load(small / f"{stem}_T1w.nii.gz")
        mask = nib.load(small / "derivatives" / "truth" / f"{stem}_desc-brain_mask.nii.gz")
        scanner = draw_scanner(7, int(row.site.removeprefix("site")), min_voxel_mm=3.0)
        assert json.loads((small / f"{stem}_T1w.json").read_text()) == sidecar(scanner)
        assert scan.get_data_dtype() == np.int16
        assert "".join(nib.aff2axcodes(scan.affine)) == scanner.orientation
        assert int(scan.header["qform_code"]) == int(scan.header["sform_code"]) == 1
        np.testing.assert_allclose(sorted(scan.header.get_zooms()), sorted(scanner.voxel_mm))
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)
        millilitres = mask.get_fdata().sum() * np.prod(mask.header.get_zooms()) / 1000
        assert millilitres == pytest.approx(row.brain_ml, rel=0.01)


def test_travelling_heads_are_the_same_head_at_every_site(travelling: Path) -> None:
    sessions = pd.read_csv(travelling / "sub-01" / "sub-01_sessions.tsv", sep="\t")
    assert dict(zip(sessions["session_id"], sessions["site"], strict=True)) == {
        "ses-site1": "site1",
        "ses-site2": "site2",
    }
    assert "site" not in pd.read_csv(travelling / "participants.tsv", sep="\t").columns
    masks = sorted((travelling / "derivatives" / "truth").rglob("*_mask.nii.gz"))
    volumes = [
        nib.load(m).get_fdata().sum() * np.prod(nib.load(m).header.get_zooms()) for m in masks
    ]
    assert len(volumes) == 2
    assert volumes[0] == pytest.approx(volumes[1], rel=0.01)


def test_a_stripped_site_has_no_head_around_the_brain(travelling: Path) -> None:
    whole, stripped = (
        np.asarray(nib.load(path).dataobj) for path in sorted(travelling.rglob("*_T1w.nii.gz"))
    )
    truth = travelling / "derivatives" / "truth"
    mask = np.asarray(nib.load(next(truth.rglob("*site2*_mask.nii.gz"))).dataobj) > 0
    assert not stripped[~mask].any()
    assert (stripped[mask] > 0).mean() > 0.99
    assert (whole > 0).mean() > 0.9
