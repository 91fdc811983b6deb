"""Simulated datasets and their command: valid BIDS, tables that agree, the same bytes again."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_harmony.cli import simulate
from bids_harmony.simulation import KINDS
from bids_harmony.simulation.dataset import plan_kinds, plan_people, sidecar, simulate_dataset
from bids_harmony.simulation.scanner import draw_scanner

SMALL = {"n_sites": 2, "n_subjects": 4, "seed": 7, "resolution": 3.0, "bad": 7 / 8}


def digests(folder: Path) -> dict[str, str]:
    """Hash of each file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def validator_errors(folder: Path, tmp_path: Path) -> list[dict]:
    program = Path(sys.executable).with_name("bids-validator-deno")
    report = tmp_path / "validator.json"
    command = [
        str(program),
        str(folder),
        "--format",
        "json",
        "--ignoreWarnings",
        "-o",
        str(report),
    ]
    subprocess.run(command, check=False, capture_output=True, timeout=120)
    issues = json.loads(report.read_text())["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight heads of two sites, one scan of them good and one bad of each kind."""
    out = tmp_path_factory.mktemp("simulated") / "bids"
    simulate_dataset(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def travelling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "travelling"
    simulate_dataset(out, **{**SMALL, "n_subjects": 1, "bad": 0}, travelling=True)
    return out


def truth_of(dataset: Path, table: str) -> pd.DataFrame:
    return pd.read_csv(dataset / "derivatives" / "truth" / f"{table}.tsv", sep="\t")


def test_all_datasets_are_valid_bids(small: Path, travelling: Path, tmp_path: Path) -> None:
    for dataset in (small, travelling):
        for folder in (dataset, *(dataset / "derivatives").iterdir()):
            assert validator_errors(folder, tmp_path) == []
    broken = shutil.copytree(travelling, tmp_path / "broken")
    (broken / "dataset_description.json").write_text("{}")
    assert validator_errors(broken, tmp_path)


def test_same_seed_same_bytes_whatever_the_number_of_processes(
    small: Path, tmp_path: Path
) -> None:
    simulate_dataset(tmp_path / "again", **SMALL, nprocs=2)
    assert digests(tmp_path / "again") == digests(small)


def test_tables_agree_and_say_that_all_is_simulated(small: Path) -> None:
    people = pd.read_csv(small / "participants.tsv", sep="\t")
    truth, sites = truth_of(small, "participants"), truth_of(small, "sites")
    assert list(people.columns) == ["participant_id", "age", "sex", "site", "diagnosis"]
    pd.testing.assert_frame_equal(people, truth[list(people.columns)])
    assert list(sites["site"]) == sorted(set(people["site"])) == ["site1", "site2"]
    total = truth[["gm_ml", "wm_ml", "csf_ml", "lesion_ml"]].sum(axis=1)
    np.testing.assert_allclose(total, truth["brain_ml"], atol=0.01)
    for path in (small / "participants.tsv", *(small / "derivatives" / "truth").glob("*.tsv")):
        about = json.loads(path.with_suffix(".json").read_text())
        assert {*pd.read_csv(path, sep="\t")} - {"participant_id"} == set(about)
    described = json.loads((small / "participants.json").read_text())
    assert "imulated" in described["diagnosis"]["Description"]
    assert "no person was scanned" in (small / "README").read_text()
    for path in small.glob("sub-*/anat/*_T1w.json"):
        assert json.loads(path.read_text())["Simulated"] is True


def test_the_truth_says_what_is_wrong_with_each_scan(small: Path) -> None:
    scans = truth_of(small, "scans")
    about = json.loads((small / "derivatives" / "truth" / "scans.json").read_text())
    assert (
        sorted(scans["quality"]) == sorted(about["quality"]["Levels"]) == sorted(["good", *KINDS])
    )
    assert (scans["severity"] > 0).tolist() == (scans["quality"] != "good").tolist()
    lesions = truth_of(small, "participants")["lesion_ml"]
    expected = scans["severity"].where(scans["quality"] == "lesion", 0.0)
    np.testing.assert_allclose(lesions, expected)
    # Only the wrong mask is offered beside the truth.
    wrong = scans.loc[scans["quality"] == "wrong-mask", "filename"].item()
    masks = small / "derivatives" / "masks"
    expected = Path(wrong.replace("_T1w.nii.gz", "_desc-brain_mask.nii.gz"))
    assert [p.relative_to(masks) for p in masks.rglob("*.nii.gz")] == [expected]


def test_every_scan_has_a_sidecar_of_its_scanner_and_a_mask_of_the_true_volume(
    small: Path,
) -> None:
    people = truth_of(small, "participants").set_index("participant_id")
    for row in truth_of(small, "scans").itertuples():
        scan = nib.load(small / row.filename)
        stem = row.filename.removesuffix("_T1w.nii.gz")
        mask = nib.load(small / "derivatives" / "truth" / f"{stem}_desc-brain_mask.nii.gz")
        scanner = draw_scanner(7, int(row.site.removeprefix("site")), min_voxel_mm=3.0)
        assert json.loads((small / f"{stem}_T1w.json").read_text()) == sidecar(scanner)
        assert scan.get_data_dtype() == np.int16
        assert int(scan.header["qform_code"]) == int(scan.header["sform_code"]) == 1
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)
        if row.quality == "wrong-orientation":
            continue
        assert "".join(nib.aff2axcodes(scan.affine)) == scanner.orientation
        np.testing.assert_allclose(sorted(scan.header.get_zooms()), sorted(scanner.voxel_mm))
        millilitres = mask.get_fdata().sum() * np.prod(mask.header.get_zooms()) / 1000
        lost = row.severity if row.quality == "cropped" else 0
        volume = people.loc[row.filename.split("/")[0], "brain_ml"]
        assert millilitres == pytest.approx(volume * (1 - lost), rel=0.01)


def test_travelling_heads_are_the_same_head_at_every_site(travelling: Path) -> None:
    sessions = pd.read_csv(travelling / "sub-01" / "sub-01_sessions.tsv", sep="\t")
    assert sessions["session_id"].tolist() == ["ses-site1", "ses-site2"]
    assert sessions["site"].tolist() == ["site1", "site2"]
    assert "site" not in pd.read_csv(travelling / "participants.tsv", sep="\t").columns
    masks = [nib.load(path) for path in (travelling / "derivatives").rglob("*_mask.nii.gz")]
    one, two = (mask.get_fdata().sum() * np.prod(mask.header.get_zooms()) for mask in masks)
    assert one == pytest.approx(two, rel=0.01)


def test_ages_cover_the_range_and_groups_are_balanced_at_every_site() -> None:
    people = plan_people(2, 20, seed=5)
    assert people["participant_id"].nunique() == 40
    for _, here in people.groupby("site"):
        ages = np.sort(here["age"])
        assert ages[0] < 23 < 80 < ages[-1]
        assert np.diff(ages).max() < 7
        assert (here["diagnosis"] == "control").sum() == (here["sex"] == "M").sum() == 10
    # More sites change nobody.
    pd.testing.assert_frame_equal(plan_people(3, 20, seed=5).iloc[:40], people)


def test_bad_scans_are_spread_over_sites_and_kinds() -> None:
    names = plan_kinds(340, 0.21, tuple(KINDS), seed=5)
    counts = Counter(names)
    assert counts.pop("good") == 340 - round(0.21 * 340)
    assert set(counts) == set(KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert [170 - names[k : k + 170].count("good") for k in (0, 170)] == pytest.approx(
        [36, 36], abs=2
    )
    assert plan_kinds(340, 0.21, tuple(KINDS), seed=5) == names
    assert plan_kinds(3, 0.0, ("noise",), seed=5) == ["good"] * 3


def test_command_writes_a_dataset_and_says_what_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bids"
    argv = [str(out), "--sites", "1", "--subjects", "1", "--resolution", "4", "--nprocs", "1"]
    assert simulate.main([*argv, "--bad", "1", "--bad-kinds", "wrong-mask"]) == 0
    said = capsys.readouterr().out
    assert "[1/1] sub-01" in said
    derivatives = out / "derivatives"
    assert f"bids_harmony {out} {derivatives / 'bids_harmony'} participant" in said
    assert f"--derivatives {derivatives / 'masks'}" in said
    before = digests(out)
    assert simulate.main(argv) == 2
    assert f"{out} is not empty" in capsys.readouterr().err
    assert digests(out) == before


@pytest.mark.parametrize(
    "wrong",
    [
        ["--sites", "0"], ["--subjects", "-1"], ["--seed", "-1"], ["--seed", "one"],
        ["--resolution", "9"], ["--resolution", "nan"], ["--nprocs", "0"], ["--bad", "-0.1"],
        ["--bad", "nan"], ["--diagnosis-effect", "-0.1"], ["--bad-kinds", "ugly"],
    ],
)  # fmt: skip
def test_wrong_values_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        simulate.main([str(tmp_path / "bids"), *wrong])
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert wrong[0] in complaint
    assert wrong[1] in complaint
    assert not (tmp_path / "bids").exists()


def test_what_stops_the_command_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert simulate.main([str(path)]) == 2
        assert str(path) in capsys.readouterr().err
    monkeypatch.setattr(simulate, "find_spec", lambda name: None)
    assert simulate.main([str(tmp_path / "bids")]) == 127
    assert "pip install 'bids_harmony[simulate]'" in capsys.readouterr().err
    assert not (tmp_path / "bids").exists()
