"""Tables and root files are made from the per-scan records alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bids_harmony import __version__
from bids_harmony.bids.outputs import (
    scans_dictionary,
    scans_row,
    write_dataset_files,
    write_scans_tables,
)
from bids_harmony.bids.records import scan_file
from bids_harmony.files import write_json, write_text

PREPROC = "sub-01/ses-a/anat/sub-01_ses-a_space-X_res-2_desc-preproc_T1w.nii.gz"


def record(out: Path, key: str, **values: object) -> Path:
    path = scan_file(out, {"subject": "01", "session": "a"}, key, "qc")
    outputs = [PREPROC, f"sub-01/ses-a/anat/{key}_desc-harmony_predictions.json"]
    facts = {"site": "S\t1", "age": 30.5, "status": "pass", "reasons": [], "outputs": outputs}
    write_json(path, {**facts, **values})
    return path


def test_row_takes_its_numbers_from_the_json(tmp_path: Path) -> None:
    path = record(tmp_path, "sub-01_ses-a", status="warn", reasons=["too bright", "too small"])
    write_json(
        path.with_name("sub-01_ses-a_desc-harmony_predictions.json"),
        {
            "brain_age": {
                "raw": 44.0, "harmonized": 33.25, "interval_90": [20.0, 46.5],
                "gap_harmonized": 2.75,
            },
            "bundle": {"name": "b", "version": "1"},
        },
    )  # fmt: skip
    row = scans_row(path)
    assert row is not None
    assert set(row) == set(scans_dictionary())
    assert row["filename"] == "anat/" + Path(PREPROC).name
    assert row["brain_age_raw"] == "44.0"
    assert row["brain_age_harmonized_high"] == "46.5"
    assert row["brain_age_gap"] == "2.75"
    assert row["schizophrenia_probability_raw"] == "n/a"
    assert row["qc_reasons"] == "too bright; too small"
    assert row["site"] == "S 1", "a tab would break the table"
    assert row["bundle"] == "b 1"


def test_failed_scans_have_no_row_and_no_table(tmp_path: Path) -> None:
    path = record(tmp_path, "sub-01_ses-a")
    write_scans_tables(tmp_path, "01")
    table = tmp_path / "sub-01" / "ses-a" / "sub-01_ses-a_scans.tsv"
    assert len(table.read_text().splitlines()) == 2
    record(tmp_path, "sub-01_ses-a", status="error")
    assert scans_row(path) is None
    write_scans_tables(tmp_path, "01")
    assert not table.exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"status": "pass"}'])
def test_damaged_record_gives_no_row(tmp_path: Path, content: str) -> None:
    path = record(tmp_path, "sub-01_ses-a")
    path.write_text(content)
    assert scans_row(path) is None


def test_root_files_are_the_same_whoever_writes_them(tmp_path: Path) -> None:
    bids, out = tmp_path / "bids", tmp_path / "out"
    bids.mkdir()
    (bids / "dataset_description.json").write_text('{"Name": "heads"}')
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_dataset_files(out, bids), range(16)))
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["Name"] == "bids_harmony derivatives of heads"
    assert description["DatasetType"] == "derivative"
    assert [by["Name"] for by in description["GeneratedBy"]] == ["bids_harmony"]
    for tools in ({"nipype": "1.11.0", "FSL": "6.0.0"}, {"FSL": "6.0.0", "nipype": "1.11.0"}):
        write_dataset_files(out, bids, tools=tools)
        description = json.loads((out / "dataset_description.json").read_text())
        assert description["GeneratedBy"][0]["Name"] == "bids_harmony"
        assert description["GeneratedBy"][1:] == [
            {"Name": "FSL", "Version": "6.0.0"},
            {"Name": "nipype", "Version": "1.11.0"},
        ]
    assert not list(out.glob(".*.part"))
    assert {p.name for p in out.iterdir()} >= {"README.md", "CHANGES", ".bidsignore", "scans.json"}


def test_root_files_keep_the_columns_of_earlier_runs(tmp_path: Path) -> None:
    """A run with a bundle of its own, then one without it on other scans."""
    out = tmp_path / "out"
    write_dataset_files(out, tmp_path, ["tumour"], {"FSL": "6.0.0", "torch": "2.0"})
    write_dataset_files(out, tmp_path, [], {"deepbet": "1.0.2", "torch": "2.1"})
    description = json.loads((out / "dataset_description.json").read_text())
    assert [(by["Name"], by.get("Version")) for by in description["GeneratedBy"]] == [
        ("bids_harmony", __version__), ("deepbet", "1.0.2"), ("torch", "2.1"),
    ]  # fmt: skip
    assert "tumour_raw" in json.loads((out / "scans.json").read_text())


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_text(path, "old\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
