"""The group level as users run it: from scans' records to tables, report and summary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import validator_errors
from made_scans import made_metrics, write_scan

from bids_harmony.bids.outputs import write_dataset_files
from bids_harmony.cli.run import main

BUNDLE = {"name": "b", "version": "1", "sha256": "0", "reference_site": "A"}
PREDICTIONS = {
    "brain_age": {
        "raw": 50.0, "harmonized": 45.5, "interval_90": [35.0, 56.0], "gap_harmonized": 5.5,
        "training_data": "real scans",
    },
    "schizophrenia_probability": {"raw": 0.5, "harmonized": 0.25, "training_data": "simulated"},
    "bundle": BUNDLE,
}  # fmt: skip


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "dataset_description.json").write_text('{"Name": "x"}')
    return tmp_path / "in"


@pytest.fixture
def out(bids: Path) -> Path:
    """Twelve scans of a site, three of another, and what may be wrong with a scan's files."""
    out = bids.parent / "out"
    write_dataset_files(out, bids)
    rng = np.random.default_rng(0)
    for i in range(15):
        site = "A" if i < 12 else "B"
        path = write_scan(
            out, f"sub-{i:02d}", site, made_metrics(rng), predicted=True, bundle=BUNDLE
        )
        name = path.name.replace("_qc", "_predictions")
        path.with_name(name).write_text(json.dumps(PREDICTIONS))
    write_scan(out, "sub-20", "A", made_metrics(rng, noise=0.09))
    error = {"cause": "No brain\twas found.", "remedy": "Look."}
    write_scan(out, "sub-21_ses-a", "A", None, status="error", error=error)
    write_scan(out, "sub-22_ses-1_run-2", "B", {})
    odd = made_metrics(rng) | {"snr_wm": "many", "efc": float("nan"), "noise": float("inf")}
    write_scan(out, "sub-23", None, odd, age="old", scanner=[], check=None)
    write_scan(out, "sub-24", "B", made_metrics(rng), predicted=True, bundle=BUNDLE)
    for i, content in enumerate(
        (b"", b"{", b"[1]", b'{"status": "odd"}', b"\xff\xfe", b"[" * 9999)
    ):
        write_scan(out, f"sub-3{i}", "A", {}).write_bytes(content)
    return out


def group(bids: Path, out: Path, *options: str) -> int:
    return main([str(bids), str(out), "group", "-w", str(bids.parent / "work"), *options])


def table(out: Path, name: str = "group_T1w.tsv") -> pd.DataFrame:
    return pd.read_csv(out / name, sep="\t", dtype=str, keep_default_na=False, index_col="scan")


def test_every_scan_has_its_row_whatever_is_wrong_with_others(
    bids: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert group(bids, out) == 0
    rows = table(out)
    assert len(rows) == 26
    assert (rows == "").sum().sum() == 0
    good = rows.loc["sub-03"]
    assert (good["site"], good["age"], good["manufacturer"], good["field_strength"]) == (
        "A", "40", "Siemens", "3",
    )  # fmt: skip
    assert (good["voxel_z_mm"], good["bundle"], good["error"]) == ("1.2", "b 1", "n/a")
    assert (good["brain_age_raw"], good["brain_age_harmonized_high"]) == ("50", "56")
    assert good["brain_age_gap"] == "5.5"
    failed = rows.loc["sub-21_ses-a"]
    assert (failed["participant_id"], failed["session_id"]) == ("sub-21", "ses-a")
    assert (failed["qc_status"], failed["error"]) == ("error", "No brain was found.")
    assert failed["outlier_score"] == "10"
    strange = rows.loc["sub-23"]
    assert list(strange[["snr_wm", "efc", "noise", "age", "manufacturer"]]) == ["n/a"] * 5
    assert strange["site"] == "unknown"
    assert "cannot be read" in rows.loc["sub-24", "reasons"]
    for i in range(6):
        broken = rows.loc[f"sub-3{i}"]
        assert broken["qc_status"] == "error"
        assert f"sub-3{i}/anat/sub-3{i}_desc-harmony_qc.json" in broken["error"]
    flagged = rows[rows["outlier_rank"] != "n/a"]
    assert "robust z" in flagged.loc["sub-20", "reasons"]
    ranks = flagged["outlier_rank"].astype(int)
    assert sorted(ranks) == list(range(1, len(flagged) + 1))
    told = capsys.readouterr().out
    assert "26 scans of 3 sites: 19 pass, 7 error." in told
    assert f"{len(flagged)} flagged scans, first:" in told
    assert str(out / "group_T1w.html") in told


def test_the_view_has_four_columns_and_everything_is_described_in_the_same_bytes(
    bids: Path, out: Path
) -> None:
    assert group(bids, out) == 0
    first = {path: path.read_bytes() for path in out.glob("group_*")}
    assert group(bids, out) == 0
    assert {path: path.read_bytes() for path in out.glob("group_*")} == first
    assert len(first) == 5
    view = pd.read_csv(out / "group_predictions.tsv", sep="\t", dtype=str)
    assert list(view) == [
        "scan", "site", "age", "brain_age_harmonized", "schizophrenia_probability_harmonized",
    ]  # fmt: skip
    described = json.loads((out / "group_T1w.json").read_text())
    assert list(described) == sorted(["scan", *table(out)])
    assert all(entry["Description"] for entry in described.values())
    assert "simulated" in described["schizophrenia_probability_raw"]["Description"]


def test_ratings_are_kept_merged_and_shown(
    bids: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = bids.parent / "ann.tsv", bids.parent / "bob.tsv"
    header = "scan\trater\ttime\tverdict\tcomment\n"
    first.write_text(f"{header}sub-20\tann\t2026-01-01\treject\tnoisy\nsub-99\tann\t\taccept\t\n")
    second.write_text(f"{header}sub-20\tbob\t2026-01-02\taccept\t\nsub-03\tbob\t\tgood\t\n")
    assert group(bids, out, "--qc-ratings", str(first)) == 0
    assert "1 rated scan without a record here: sub-99." in capsys.readouterr().err
    assert table(out).loc["sub-20", "rating"] == "reject"
    assert group(bids, out, "--qc-ratings", str(second)) == 0
    told = capsys.readouterr().err
    assert f"{second}, line 3: the verdict 'good'" in told
    kept = (out / "qc_ratings.tsv").read_bytes()
    assert group(bids, out) == 0
    assert list(table(out).loc["sub-20", ["rating", "n_raters"]]) == ["disputed", "2"]
    assert table(out).loc["sub-03", "rating"] == "n/a"
    assert (out / "qc_ratings.tsv").read_bytes() == kept


def test_numbers_of_different_bundles_are_not_taken_for_the_same(
    bids: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**BUNDLE, "name": "c", "sha256": "1"}
    write_scan(out, "sub-40", "A", made_metrics(np.random.default_rng(1)), bundle=other)
    assert group(bids, out) == 0
    told = capsys.readouterr().err
    assert "1 of 27 scans come from another bundle than b 1" in told
    assert "the bundle b are compared with the reference of another (--bundle default)" in told
    assert group(bids, out, "--bundle", "none") == 0
    assert "compared with the reference" not in capsys.readouterr().err


def test_without_records_there_is_nothing_to_show(
    bids: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert group(bids, bids.parent / "out") == 66
    assert "participant level first" in capsys.readouterr().out


@pytest.mark.slow
def test_validator_finds_no_error(bids: Path, out: Path) -> None:
    # The participant level writes it beside the tables it describes; there are none here.
    (out / "scans.json").unlink()
    (out / "qc_ratings.tsv").write_text("scan\tverdict\nsub-20\treject\n")
    assert group(bids, out) == 0
    assert validator_errors(out) == []
