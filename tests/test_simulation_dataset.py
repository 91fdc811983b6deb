"""Simulated datasets and their command: valid BIDS, consistent tables, reproducible bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from command_line import tree, validator_errors

from bids_harmony.cli import simulate
from bids_harmony.simulation import KINDS
from bids_harmony.simulation.dataset import plan_kinds, plan_people, sidecar, simulate_dataset
from bids_harmony.simulation.scanner import draw_scanner

SMALL = {"n_sites": 2, "n_subjects": 4, "seed": 7, "resolution": 3.0, "bad": 7 / 8}


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


def read(dataset: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(dataset / f"{name}.tsv", sep="\t")


def volume_ml(mask: nib.Nifti1Image) -> float:
    return float(mask.get_fdata().sum() * np.prod(mask.header.get_zooms()) / 1000)


def test_all_datasets_are_valid_bids(small: Path, travelling: Path, tmp_path: Path) -> None:
    for dataset in (small, travelling):
        for folder in (dataset, *(dataset / "derivatives").iterdir()):
            assert validator_errors(folder) == []
    broken = shutil.copytree(travelling, tmp_path / "broken")
    (broken / "dataset_description.json").write_text("{}")
    assert validator_errors(broken)


def test_same_seed_same_bytes_for_any_number_of_processes(small: Path, tmp_path: Path) -> None:
    simulate_dataset(tmp_path / "again", **SMALL, nprocs=2)
    assert tree(tmp_path / "again") == tree(small)


def test_tables_agree_and_say_that_all_is_simulated(small: Path) -> None:
    truth = small / "derivatives/truth"
    people, known, scans, sites = (
        read(small, "participants"), *(read(truth, x) for x in ("participants", "scans", "sites")),
    )  # fmt: skip
    assert list(people.columns) == ["participant_id", "age", "sex", "site", "diagnosis"]
    pd.testing.assert_frame_equal(people, known[list(people.columns)])
    assert list(sites["site"]) == sorted(set(people["site"])) == ["site1", "site2"]
    total = known[["gm_ml", "wm_ml", "csf_ml", "lesion_ml"]].sum(axis=1)
    np.testing.assert_allclose(total, known["brain_ml"], atol=0.01)
    for path in (small / "participants.tsv", *truth.glob("*.tsv")):
        about = json.loads(path.with_suffix(".json").read_text())
        assert {*pd.read_csv(path, sep="\t")} - {"participant_id"} == set(about)
    levels = json.loads((truth / "scans.json").read_text())["quality"]["Levels"]
    assert sorted(scans["quality"]) == sorted(levels) == sorted(["good", *KINDS])
    assert (scans["severity"] > 0).tolist() == (scans["quality"] != "good").tolist()
    lesions = scans["severity"].where(scans["quality"] == "lesion", 0.0)
    np.testing.assert_allclose(known["lesion_ml"], lesions)
    described = json.loads((small / "participants.json").read_text())
    assert "imulated" in described["diagnosis"]["Description"]
    assert "no person was scanned" in (small / "README").read_text()


def test_every_scan_has_a_sidecar_and_a_mask_of_the_true_volume(small: Path) -> None:
    derivatives = small / "derivatives"
    people = read(derivatives / "truth", "participants").set_index("participant_id")
    wrong_masks = []
    for row in read(derivatives / "truth", "scans").itertuples():
        scan = nib.load(small / row.filename)
        stem = row.filename.removesuffix("_T1w.nii.gz")
        mask = nib.load(derivatives / "truth" / f"{stem}_desc-brain_mask.nii.gz")
        scanner = draw_scanner(7, int(row.site.removeprefix("site")), min_voxel_mm=3.0)
        described = json.loads((small / f"{stem}_T1w.json").read_text())
        assert described == sidecar(scanner)
        assert described["Simulated"] is True
        assert scan.get_data_dtype() == np.int16
        assert int(scan.header["qform_code"]) == int(scan.header["sform_code"]) == 1
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)
        if row.quality == "wrong-mask":
            wrong_masks.append(derivatives / "masks" / f"{stem}_desc-brain_mask.nii.gz")
        if row.quality != "wrong-orientation":
            assert "".join(nib.aff2axcodes(scan.affine)) == scanner.orientation
            np.testing.assert_allclose(sorted(scan.header.get_zooms()), sorted(scanner.voxel_mm))
            lost = row.severity if row.quality == "cropped" else 0
            volume = people.loc[row.filename.split("/")[0], "brain_ml"]
            assert volume_ml(mask) == pytest.approx(volume * (1 - lost), rel=0.01)
    assert list((derivatives / "masks").rglob("*.nii.gz")) == wrong_masks


def test_travelling_heads_are_the_same_head_at_every_site(travelling: Path) -> None:
    sessions = read(travelling, "sub-01/sub-01_sessions")
    assert sessions["session_id"].tolist() == ["ses-site1", "ses-site2"]
    assert sessions["site"].tolist() == ["site1", "site2"]
    assert "site" not in read(travelling, "participants").columns
    one, two = map(nib.load, (travelling / "derivatives").rglob("*_mask.nii.gz"))
    assert volume_ml(one) == pytest.approx(volume_ml(two), rel=0.01)


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
    names = pd.Series(plan_kinds(340, 0.21, tuple(KINDS), seed=5))
    counts = names.value_counts()
    assert counts.pop("good") == 340 - round(0.21 * 340)
    assert set(counts.index) == set(KINDS)
    assert np.ptp(counts) <= 1
    bad = names != "good"
    assert [bad[:170].sum(), bad[170:].sum()] == pytest.approx([36, 36], abs=2)
    assert plan_kinds(340, 0.21, tuple(KINDS), seed=5) == names.tolist()
    assert plan_kinds(3, 0.0, ("noise",), seed=5) == ["good"] * 3


def test_command_writes_a_dataset_and_says_what_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bids"
    argv = [str(out), "--sites", "1", "--subjects", "1", "--resolution", "4", "--nprocs", "1"]
    assert simulate.main([*argv, "--bad", "1", "--bad-kinds", "wrong-mask"]) == 0
    said = capsys.readouterr().out
    assert "[1/1] sub-01" in said
    assert f"bids_harmony {out} {out}/derivatives/bids_harmony participant" in said
    assert f"--derivatives {out}/derivatives/masks" in said
    before = tree(out)
    assert simulate.main(argv) == 2
    assert f"{out} is not empty" in capsys.readouterr().err
    assert tree(out) == before


@pytest.mark.parametrize(
    "wrong",
    [
        "--sites 0", "--subjects -1", "--seed one", "--resolution nan", "--nprocs 0", "--bad -0.1",
        "--diagnosis-effect 3", "--bad-kinds ugly",
    ],
)  # fmt: skip
def test_wrong_values_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        simulate.main([str(tmp_path / "bids"), *wrong.split()])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert all(word in said for word in wrong.split())
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
