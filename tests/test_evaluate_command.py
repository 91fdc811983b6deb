"""The evaluate level by its command, on a small dataset of made-up heads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_train_command import preprocessed_dataset

from bids_harmony.cli.run import main
from bids_harmony.evaluation import statistics, summaries


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    preprocessed_dataset(folder, {"REF": 14, "A": 9, "B": 9}, {"A": 1.8, "B": 0.6})
    for path in (folder / "out").rglob("*_qc.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"scale": {"fluid_grey_white": [90, 500, 800]}}))
    return folder


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((statistics, "N_BOOTSTRAP"), (statistics, "N_PERMUTATIONS"),
                         (summaries, "N_BOOTSTRAP"), (summaries, "N_PROBES")):  # fmt: skip
        monkeypatch.setattr(module, name, 5)


def evaluate(root: Path, *options: str) -> int:
    return main(
        [
            *(str(root / "bids"), str(root / "out"), "evaluate", "--reference-site", "REF"),
            *("--work-dir", str(root / "work"), "--fast-dev-run", "--cv-folds", "2"),
            *("--nprocs", "1", *options),
        ]
    )


def test_tables_and_page(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("sites", "unseen")
    assert evaluate(root, "--experiments", *names) == 0
    out = root / "out" / "evaluation"
    table = pd.read_csv(out / "experiments.tsv", sep="\t")
    assert set(table["experiment"]) == set(names)
    ways = {"none", "tissue_scaling", "histogram_matching", "combat", "harmonized"}
    for _, cell in table.groupby(["experiment", "train_sites", "test_site"]):
        there = ways - {"combat"} if (cell["experiment"] == "unseen").all() else ways
        assert set(cell["way"]) == there
    sites = table[table["experiment"] == "sites"].set_index("test_site")
    assert set(sites.index) == {"REF", "A", "B", "A+B"}
    assert (sites.loc["A+B", "n_persons"] == 18).all()
    rows = pd.read_csv(out / "predictions.tsv", sep="\t")
    once = rows[rows["experiment"] == "sites"].groupby("way")["scan"]
    assert (once.count() == 32).all()
    assert (once.nunique() == 32).all()
    for path in out.glob("*.tsv"):
        described = json.loads(path.with_suffix(".json").read_text())
        assert set(pd.read_csv(path, sep="\t")) == set(described)
        assert all(entry["Description"] != name for name, entry in described.items())
    page = (root / "out" / "evaluation.html").read_text()
    for sentence in ("What was found", "Everything was trained once", "A has 9 persons", "<svg"):
        assert sentence in page
    assert not re.search(r'(src|href)="http', page)

    # The same again: everything is there, and the same bytes come of it.
    capsys.readouterr()
    before = {path: path.read_bytes() for path in (root / "out").rglob("*eval*") if path.is_file()}
    assert evaluate(root, "--experiments", *names) == 0
    assert capsys.readouterr().out.count("done before") == 2 * (1 + 2)
    assert before == {path: path.read_bytes() for path in before}


def test_wrong_options_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(root, "--unseen-site", "Q") == 2
    assert "Choose among A, B." in capsys.readouterr().err
    assert evaluate(root, "--train-sites", "A+Q") == 2
    assert "A+Q is no rotation" in capsys.readouterr().err
    assert evaluate(root, "--experiments", "sites", "size") == 2
    assert "no other site leaves the maps more than 5" in capsys.readouterr().err
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
    assert set(found["n_source"][~rotations]) == {"5"}  # of the six that are not tested
    assert set(found["train_sites"][rotations]) == {
        "REF", "A", "B", "REF+A", "REF+B", "A+REF", "A+B", "B+REF", "B+A",
    }  # fmt: skip
    page = (root / "out" / "evaluation.html").read_text()
    assert "rotations, brain_age: of " in page
    assert "In rotations the first site trained at is the reference." in page
    assert ("<h2>Figures" in page) == ("<figure>" in page)
    assert " comparisons below, harmonized scans are clearly better (worse) than no harm" in page


def test_scans_without_levels_are_evaluated_without_the_plain_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocessed_dataset(tmp_path, {"REF": 14, "A": 8}, {"A": 1.8})
    assert evaluate(tmp_path) == 0
    assert "how they were scaled" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "evaluation" / "experiments.tsv", sep="\t")
    assert "none" not in set(table["way"])
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "without tissue scaling could not be had" in page
    assert np.isfinite(table["mae"]).all()
