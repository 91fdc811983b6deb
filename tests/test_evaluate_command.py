"""The evaluate level by its command, on a small dataset of made-up heads."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_train_command import preprocessed_dataset
from training_data import balls

from bids_harmony.anat.affine import write_affine
from bids_harmony.cli.run import main
from bids_harmony.config import EvaluateOptions, TrainOptions
from bids_harmony.errors import HarmonyError
from bids_harmony.evaluation import methods, run, tables
from bids_harmony.evaluation.unit import Study, Unit


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    preprocessed_dataset(folder, {"REF": 14, "A": 9, "B": 9}, {"A": 1.8, "B": 0.6})
    with_raw_scans(folder)
    return folder


def with_raw_scans(folder: Path) -> None:
    """Write a raw scan, and its transform to the template, behind each preprocessed one."""
    for path in (folder / "out").rglob("*preproc_T1w.nii.gz"):
        label, image = path.name.split("_")[0], nib.load(path)
        raw = nib.Nifti1Image(600 * np.asarray(image.dataobj) + 50, image.affine)
        nib.save(raw, folder / "bids" / label / "anat" / f"{label}_T1w.nii.gz")
        transform = path.with_name(f"{label}_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt")
        write_affine(np.eye(4), transform)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("N_BOOTSTRAP", "N_PERMUTATIONS"):
        monkeypatch.setattr(tables, name, 5)


def evaluate(root: Path, *options: str) -> int:
    return main(
        [
            *(str(root / "bids"), str(root / "out"), "evaluate", "--reference-site", "REF"),
            *("--work-dir", str(root / "work"), "--fast-dev-run", "--cv-folds", "2"),
            *("--nprocs", "1", *options),
        ]
    )


def test_tables_and_page(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("sites", "size")
    assert evaluate(root, "--experiments", *names) == 0
    out = root / "out" / "evaluation"
    table = pd.read_csv(out / "experiments.tsv", sep="\t")
    assert set(table["experiment"]) == set(names)
    for (experiment, _, _), cell in table.groupby(["experiment", "train_sites", "test_site"]):
        # ComBat wants three persons of a site.
        assert set(cell["method"]) == set(methods.METHODS) or experiment == "size"
    few = table[table["experiment"] == "size"].set_index(["n_source", "method"])
    assert (few.loc[1, "harmonized"]["n_persons"] == 9).all()
    assert (1, "combat") not in few.index
    sites = table[table["experiment"] == "sites"].set_index("test_site")
    assert set(sites.index) == {"REF", "A", "B", "A+B"}
    assert (sites.loc["A+B", "n_persons"] == 18).all()
    rows = pd.read_csv(out / "predictions.tsv", sep="\t")
    once = rows[rows["experiment"] == "sites"].groupby("method")["scan"]
    assert (once.count() == 32).all()
    assert (once.nunique() == 32).all()
    for path in out.glob("*.tsv"):
        described = json.loads(path.with_suffix(".json").read_text())
        assert set(pd.read_csv(path, sep="\t")) == set(described)
        assert all(entry["Description"] != name for name, entry in described.items())
    page = (root / "out" / "evaluation.html").read_text()
    for sentence in ("<h2>Results", "Training was not repeated", "A has 9 persons", "<svg"):
        assert sentence in page
    assert not re.search(r'(src|href)="http', page)

    # The same again: everything is there, and the same bytes come of it.
    capsys.readouterr()
    before = {path: path.read_bytes() for path in (root / "out").rglob("*eval*") if path.is_file()}
    assert evaluate(root, "--experiments", *names) == 0
    assert capsys.readouterr().out.count("Already completed") == 2 * (1 + 3)
    assert before == {path: path.read_bytes() for path in before}


def test_wrong_options_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(root, "--train-sites", "A+Q") == 2
    assert "A+Q is not a possible rotation" in capsys.readouterr().err
    assert evaluate(root, "--target", "simulated-schizophrenia") == 2
    assert "no true values" in capsys.readouterr().err
    assert evaluate(root, "--target", "bmi") == 2
    assert "no column bmi" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_find_the_same_and_rotate_the_sites(root: Path, tmp_path: Path) -> None:
    options = ("--experiments", "rotations", "size", "--cv-folds", "3")
    tables = []
    for n in ("1", "2"):
        assert evaluate(root, *options, "--nprocs", n, "--work-dir", str(tmp_path / n)) == 0
        tables.append((root / "out" / "evaluation" / "experiments.tsv").read_bytes())
    assert tables[0] == tables[1]
    found = pd.read_csv(root / "out" / "evaluation" / "experiments.tsv", sep="\t", dtype=str)
    rotations = found["experiment"] == "rotations"
    assert set(found["experiment"][~rotations]) == {"size"}
    assert set(found["n_source"][~rotations]) == {"1", "2", "4"}  # of the six that are not tested
    assert set(found["train_sites"][rotations]) == {
        "REF", "A", "B", "REF+A", "REF+B", "A+REF", "A+B", "B+REF", "B+A",
    }  # fmt: skip
    page = (root / "out" / "evaluation.html").read_text()
    assert "rotations, brain_age: of " in page
    assert "In rotations, the first training site is the reference." in page
    assert ("<h2>Figures" in page) == ("<figure>" in page)
    assert " comparisons below, harmonized scans are significantly better (worse) than" in page


def test_what_cannot_be_had_in_a_fold_is_left_out_there_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of five persons of A two or three are left to fit ComBat on, of C nobody while it is tested.
    preprocessed_dataset(tmp_path, {"REF": 14, "A": 5, "C": 1}, {"A": 1.8})
    table = tmp_path / "bids" / "participants.tsv"
    table.write_text(re.sub(r"(?<=sub-REF5\t)[\d.]+", "n/a", table.read_text()))
    assert evaluate(tmp_path) == 0
    out = "".join(capsys.readouterr())
    assert "brain_age: 1 scan of REF without a value in the column age will not be tested." in out
    assert "20 of 20 scans have no raw image or no transform" in out
    assert "Not tested: ComBat at C (1 scan): ComBat needs 3 persons of each site" in out
    folder = tmp_path / "out" / "evaluation"
    table = pd.read_csv(folder / "experiments.tsv", sep="\t")
    assert np.isfinite(table["mae"]).all()
    table = table.set_index(["method", "test_site"])
    counts = table["n_folds"]
    assert counts["harmonized"].to_dict() == {"A": 2, "REF": 2}  # nobody calibrates C
    assert counts["combat"].to_dict() == {"A": 1, "REF": 1}
    assert table["n_scans"]["harmonized", "REF"] == 13
    left = pd.read_csv(folder / "left_out.tsv", sep="\t").groupby("test_site")["n_scans"]
    assert left.sum()["C"] == 4  # ComBat, and the three methods of calibration
    assert left.sum()["A"] == 5 - table["n_scans"]["combat", "A"]
    assert set(json.loads((folder / "left_out.json").read_text())) >= {"reason", "n_scans"}
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "ComBat at A was not available in 1 of the trainings" in page
    assert "without harmonization were not available" in page
    assert "Not evaluated: diagnosis." in page
    assert "1 scan of REF without a value" in page


def test_a_unit_is_run_anew_where_anything_it_depends_on_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, unit = balls(), Unit("sites", 1, 0, ("REF",), ("REF", "A"))
    study = Study(data, [], TrainOptions(), EvaluateOptions(), Path("nowhere"))
    before = run._digest(study, unit)
    assert before == run._digest(replace(study, train=TrainOptions(threads=4)), unit)
    older = data.table.assign(age=data.table["age"] + 1)
    for other in (
        replace(study, data=replace(data, digests=("other image", *data.digests[1:]))),
        replace(study, data=replace(data, table=older)),
        replace(study, train=TrainOptions(predictor="article")),
        replace(study, options=EvaluateOptions(cv_folds=5)),
        replace(study, unharmonized=data),
    ):
        assert run._digest(other, unit) != before
    assert run._digest(study, replace(unit, fold=1)) != before
    monkeypatch.setattr(run, "combat_available", lambda: not methods.combat_available())
    assert run._digest(study, unit) != before


def test_a_unit_that_fails_does_not_affect_the_others(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_unit = run._run_unit

    def fail(study: Study, unit: Unit) -> run.Result:
        if unit.fold == 1:
            raise HarmonyError("The loss is not finite.", "Try another --random-seed.")
        return run_unit(study, unit)

    monkeypatch.setattr(run, "_run_unit", fail)
    assert evaluate(root) == 1
    assert "fold 2): The loss is not finite." in capsys.readouterr().err
    assert "The loss is not finite." in (root / "out" / "evaluation.html").read_text()
    folder = root / "out" / "evaluation"
    assert (pd.read_csv(folder / "experiments.tsv", sep="\t")["n_folds"] == 1).all()
    assert set(pd.read_csv(folder / "predictions.tsv", sep="\t")["fold"]) == {0}


@pytest.mark.parametrize("level", ["train", "evaluate"])
def test_an_image_under_two_participants_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str
) -> None:
    preprocessed_dataset(tmp_path, {"REF": 3, "A": 2}, {})
    for label in ("REF2", "A1"):
        path = tmp_path / "out" / f"sub-{label}" / "anat" / f"sub-{label}_desc-harmony_qc.json"
        same = {"check": {"voxels_sha256": "0" * 64}, "input_sha256": label}
        path.write_text(json.dumps(json.loads(path.read_text()) | same))
    args = [str(tmp_path / "bids"), str(tmp_path / "out"), level, "-w", str(tmp_path / "work")]
    assert main(args) == 2
    told = capsys.readouterr()
    assert "Two participants have the same image: sub-A1 and sub-REF2." in told.err
    assert "network" not in told.out
