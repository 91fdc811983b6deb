"""The group level beside its dataset: what is missing, what is twice, what was made differently.

Nothing that a scan's record does not list is shown as the scan's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_scans import write_scan
from PIL import Image

from bids_harmony.bids.dataset import find_scans, list_scans
from bids_harmony.bids.outputs import write_dataset_files
from bids_harmony.bids.records import find_records, listed_files
from bids_harmony.cli.run import main
from bids_harmony.config import RunConfig
from bids_harmony.qc.dataset import read_scans
from bids_harmony.reports.participant import write_participant_report

Capture = pytest.CaptureFixture[str]

BUNDLE = {"name": "b", "version": "1", "sha256": "0", "reference_site": "A"}
AGE = {"brain_age": {"raw": 61.5, "harmonized": 62.5, "training_data": "real scans"}}
PROCESSING = {
    "version": "1.0", "registration": "auto", "template": "T", "on_guard_fail": "warn",
    "contract": {"registration": "ants", "resolution": 2, "grey": 0.55, "shading_order": 3},
    "tools": {"antspyx": "0.5.4", "deepbet": "1.0"},
}  # fmt: skip


def dataset(root: Path, keys: Iterable[str]) -> Path:
    """Write a dataset of empty files."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for key in keys:
        subject, *rest = key.split("_")
        session = rest[0] if rest and rest[0].startswith("ses-") else ""
        path = root / subject / session / "anat" / f"{key}_T1w.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    return dataset(tmp_path / "bids", [])


@pytest.fixture
def out(bids: Path) -> Path:
    out = bids.parent / "out"
    write_dataset_files(out, bids)
    return out


def group(bids: Path, out: Path) -> str:
    """Run the level; return its page."""
    assert main([str(bids), str(out), "group", "-w", str(bids.parent / "work")]) == 0
    return (out / "group_T1w.html").read_text()


def warned(page: str, told: str, *warnings: str) -> None:
    for warning in warnings:
        assert f"Warning: {warning}" in told
        assert f"<li>{warning}</li>" in page


def rows_of(out: Path) -> pd.DataFrame:
    path = out / "group_T1w.tsv"
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, index_col="scan")


def draw(out: Path, key: str, *kinds: str) -> list[str]:
    """Put pictures of a scan where they belong; return their paths in the output folder."""
    paths = []
    for kind in kinds:
        path = out / key.split("_")[0] / "figures" / f"{key}_desc-{kind}_T1w.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
        paths.append(path.relative_to(out).as_posix())
    return paths


def predict(record: Path) -> str:
    """Write predictions beside a record; return their path below the participant's folder."""
    path = record.with_name(record.name.replace("_qc", "_predictions"))
    path.write_text(json.dumps(AGE))
    return path.name


def test_files_of_a_scan_are_told_by_all_their_entities() -> None:
    names = [
        "sub-01/anat/sub-01_space-T_res-2_desc-preproc_T1w.nii.gz",
        "sub-01/anat/sub-01_from-T1w_to-T_mode-image_xfm.txt",
        "sub-01/anat/sub-01_acq-b_space-T_res-2_desc-preproc_T1w.nii.gz",
        "sub-01/figures/sub-01_desc-norm_T1w.png",
        "sub-01/figures/sub-01_chunk-1_desc-norm_T1w.png",
        "sub-010/figures/sub-010_desc-norm_T1w.png",
    ]
    chunk = "sub-01/anat/sub-01_run-1_space-T_chunk-2_res-2_desc-brain_mask.nii.gz"
    record: dict[str, Any] = {"outputs": [*names, chunk]}
    assert listed_files(record, "sub-01") == [names[0], names[1], names[3]]
    assert listed_files(record, "sub-01_acq-b") == [names[2]]
    assert listed_files(record, "sub-01_run-1_chunk-2") == [chunk]
    assert listed_files({}, "sub-01") == []


@pytest.mark.parametrize("status", ["pass", "error"])
def test_what_an_earlier_run_left_is_not_shown(bids: Path, out: Path, status: str) -> None:
    """After ``--bundle none``, or where the scan was damaged meanwhile."""
    dataset(bids, ["sub-01"])
    drawn = draw(out, "sub-01", "norm", "harmonized", "predictions", "histogram")
    error = {"error": {"cause": "Broken."}} if status == "error" else {}
    now = drawn[:1]
    record = write_scan(out, "sub-01", "A", {}, status=status, outputs=now, **error)
    predict(record)
    stale = out / "sub-01" / "anat" / "sub-01_space-T_res-2_desc-harmonized_T1w.nii.gz"
    stale.touch()
    (row,) = read_scans(find_records(out), out)
    assert (row.figures, row.volumes, row.targets, row.problem) == (tuple(now), {}, {}, None)
    group(bids, out)
    assert "brain_age_raw" not in rows_of(out)
    page = write_participant_report(out, "01").read_text()
    assert page.count("<figure>") == len(now)
    for gone in ("Brain age, slice by slice", "Before and after", "61.5", "62.5"):
        assert gone not in page


def test_predictions_that_should_be_there_are_missed(bids: Path, out: Path) -> None:
    dataset(bids, ["sub-01", "sub-02", "sub-03"])
    predict(write_scan(out, "sub-01", "A", {}, predicted=True, bundle=BUNDLE))
    write_scan(out, "sub-02", "A", {}, predicted=True, bundle=BUNDLE)
    predict(write_scan(out, "sub-03", "A", {}, bundle=BUNDLE))
    group(bids, out)
    rows = rows_of(out)
    assert list(rows["brain_age_raw"]) == ["61.5", "n/a", "n/a"]
    assert "cannot be read (No such file or directory)" in rows["reasons"]["sub-02"]
    assert "lists no predictions" in rows["reasons"]["sub-03"]
    assert "cannot be read" in write_participant_report(out, "02").read_text()


def test_scans_that_were_never_done_are_named(bids: Path, out: Path, capsys: Capture) -> None:
    completed = ["sub-01_acq-b", "sub-02_ses-1"]
    never = ["sub-01", "sub-02_ses-2", "sub-03", *(f"sub-1{i}" for i in range(10))]
    dataset(bids, [*completed, *never])
    (bids / "sub-04").mkdir()
    (bids / "sub-05" / "anat").mkdir(parents=True)
    (bids / "sub-05" / "anat" / "sub-05_part-phase_T1w.nii.gz").touch()
    for key in (*completed, "sub-06"):
        write_scan(out, key, "A", {})
    page, told = group(bids, out), capsys.readouterr().err
    first = "sub-01, sub-02_ses-2, sub-03, sub-10, sub-11, sub-12, sub-13, sub-14, sub-15, sub-16"
    warned(
        page, told,
        f"Scans of the dataset without a record (13): {first} and 3 more.",
        "Participants of the dataset without a usable T1w scan (2): sub-04, sub-05.",
        "Scans that are no longer in the dataset, but have a record (1): sub-06.",
    )  # fmt: skip
    assert "its folder is empty (in a DataLad dataset, run `datalad get` on it)" in page
    assert "part-phase is not a magnitude image" in page
    for name in (*never, "sub-04", "sub-05", "sub-06"):
        assert f'<tr><th scope="row">{name}</th><td>' in page
    assert list(rows_of(out).index) == ["sub-01_acq-b", "sub-02_ses-1", "sub-06"]


def test_a_dataset_that_is_all_there_is_not_remarked_upon(
    bids: Path, out: Path, capsys: Capture
) -> None:
    keys = ["sub-01", "sub-01_acq-b", "sub-02_ses-1_run-01"]
    dataset(bids, keys)
    for key in keys:
        write_scan(out, key, "A", {})
    page = group(bids, out)
    assert "Warning" not in capsys.readouterr().err
    assert 'id="warnings"' not in page
    assert 'id="absent"' not in page


def test_group_goes_on_without_its_dataset(bids: Path, out: Path, capsys: Capture) -> None:
    write_scan(out, "sub-01", "A", {})
    why = "Which scans of the dataset have no record is not known"
    warned(group(bids, out), capsys.readouterr().err, f"{why}: {bids} holds no sub-* folder.")
    shutil.rmtree(bids)
    group(bids, out)
    assert f"Warning: {why}: {bids} cannot be listed" in capsys.readouterr().err


def test_scans_are_listed_as_the_participant_level_finds_them(tmp_path: Path) -> None:
    keys = ["sub-01", "sub-01_ses-a_run-2", "sub-02_part-phase", "sub-02_part-mag", "sub-3_foo-1"]
    root = dataset(tmp_path / "bids", keys)
    (root / "sub-01" / "anat" / "sub-01_T1w.nii").touch()
    (root / "sub-04").mkdir()
    config = RunConfig(bids_dir=root, output_dir=tmp_path / "out", participant_label=("01",))
    found = find_scans(RunConfig(bids_dir=root, output_dir=tmp_path / "out"))
    there, skipped = list_scans(config)
    assert there == ["sub-01", "sub-01_ses-a_run-2", "sub-02_part-mag"]
    assert there == [scan.key for scan in found.scans]
    assert skipped == list(found.skipped)


def test_the_same_image_twice_is_said(bids: Path, out: Path) -> None:
    images = {"sub-01": "aa", "sub-02_ses-1": "aa", "sub-03_run-1": "bb", "sub-03_run-2": "bb",
              "sub-04": "cc", "sub-05": None, "sub-06": None}  # fmt: skip
    dataset(bids, [*images, "sub-07", "sub-08"])
    for i in (7, 8):  # of equal voxels in files of another compression
        write_scan(
            out, f"sub-0{i}", "A", {}, check={"voxels_sha256": "v"}, input_sha256=f"file {i}"
        )
    for key, digest in images.items():
        known = {} if digest is None else {"input_sha256": digest}
        write_scan(out, key, "A", {}, **known)
    group(bids, out)
    rows = rows_of(out)
    assert rows["reasons"]["sub-01"] == "Same image as sub-02_ses-1"
    assert rows["reasons"]["sub-03_run-2"] == "Same image as sub-03_run-1"
    assert list(rows["reasons"][["sub-04", "sub-05", "sub-06"]]) == ["n/a"] * 3
    assert list(rows["input_sha256"][["sub-01", "sub-06"]]) == ["aa", "n/a"]


def test_files_of_one_name_are_told_by_their_content(bids: Path, out: Path) -> None:
    """A template and atlases of the same name, and the image of a scan that failed."""
    processing = PROCESSING | {"template": "custom"}
    for i, digest in enumerate(("a" * 64, "b" * 64, "b" * 64)):
        inputs = {"template": digest, "atlases": digest, "T1w": "c" * 64, "brain_mask": None}
        status = {"status": "error", "error": {"cause": "Broken."}} if i == 2 else {}
        write_scan(out, f"sub-0{i}", "A", {}, processing=processing, inputs=inputs, **status)
    page = group(bids, out)
    assert f"template: custom {'a' * 12} (1), custom {'b' * 12} (1)." in page
    assert f"options: --on-guard-fail warn --atlas-dir {'a' * 12} (1), " in page
    assert "Same image as sub-00, sub-01" in page


def test_scans_made_in_different_ways_are_counted(bids: Path, out: Path, capsys: Capture) -> None:
    """Ten scans: two by bet, one with a mask of its own, seven by deepbet, and so on."""
    changes: list[dict[str, Any]] = [{} for _ in range(10)]
    for i in range(3):
        changes[i] = {"registration": "flirt"}
    contract = PROCESSING["contract"] | {"resolution": 1}
    tools = {"antspyx": "0.6.1", "deepbet": "1.0"}
    changes[4] = {"tools": tools, "version": "1.1", "contract": contract}
    changes[5] = {"sloppy": True, "template": "U"}
    for i, changed in enumerate(changes):
        method = "bet" if i < 2 else "precomputed" if i == 2 else "deepbet"
        path = write_scan(
            out, f"sub-{i:02d}", "A", {}, mask={"method": method}, predicted=i < 9,
            processing=PROCESSING | changed, bundle=BUNDLE if i < 9 else None,
        )  # fmt: skip
        predict(path)
    # Failed scans were not processed, and records that lack a value are not counted.
    other: dict[str, Any] = {"processing": PROCESSING | {"version": "0.1"}}
    other["bundle"] = BUNDLE | {"name": "c"}
    write_scan(out, "sub-10", "A", None, status="error", error={"cause": "Broken."}, **other)
    write_scan(out, "sub-11", "A", {}, bundle=BUNDLE, mask={}, processing={})
    dataset(bids, [f"sub-{i:02d}" for i in range(12)])
    page, told = group(bids, out), capsys.readouterr().err
    said = (
        "skull_strip: precomputed (1), bet (2), deepbet (7)",
        "registration: flirt (3), ants (7)",
        "template: U (1), T (9)",
        "resolution: 1 (1), 2 (9)",
        "options: --on-guard-fail warn --sloppy (1), --on-guard-fail warn (9)",
        "software_version: 1.1 (1), 1.0 (9)",
        "tools: antspyx 0.6.1; deepbet 1.0 (1), antspyx 0.5.4; deepbet 1.0 (9)",
        "bundle: none (1), b 1 (10)",
    )
    warned(page, told, *(f"Scans differ in {what}." for what in said))
    assert "reference site A:\n10 scans." in page
    rows = rows_of(out)
    assert list(rows.loc["sub-00", ["skull_strip", "registration", "resolution", "tools"]]) == [
        "bet", "flirt", "2", "antspyx 0.5.4; deepbet 1.0",
    ]  # fmt: skip
    assert list(rows.loc["sub-11", ["skull_strip", "template", "tools"]]) == ["n/a"] * 3


def test_the_description_names_the_tools_of_the_scans_that_are_there(
    out: Path, bids: Path
) -> None:
    """An earlier run's FSL made none of them any more; a failed scan was made by nothing."""
    write_dataset_files(out, bids, tools={"FSL": "6.0.0"})
    write_scan(out, "sub-01", "A", {}, processing=PROCESSING)
    other = PROCESSING | {"tools": {"antspyx": "0.6"}}
    write_scan(out, "sub-02", "A", {}, processing=other)
    failed = PROCESSING | {"tools": {"antspyx": "9"}}
    write_scan(out, "sub-03", "A", {}, status="error", error={"cause": "x"}, processing=failed)
    group(bids, out)
    makers = json.loads((out / "dataset_description.json").read_text())["GeneratedBy"]
    assert [(maker["Name"], maker["Version"]) for maker in makers[1:]] == [
        ("antspyx", "0.5.4"), ("antspyx", "0.6"), ("deepbet", "1.0"),
    ]  # fmt: skip


def test_a_record_of_odd_form_costs_its_own_scan_alone(bids: Path, out: Path) -> None:
    for i, odd in enumerate(({}, {"scanner": [1]}, {"guard": "x"}, {"age": 10**400}, {"sex": 2})):
        write_scan(out, f"sub-0{i}", "A", {"noise": [0.02]}, **odd)
    group(bids, out)
    rows = rows_of(out)
    assert list(rows["qc_status"]) == ["pass", "error", "error", "pass", "pass"]
    assert list(rows["age"]) == ["40", "n/a", "n/a", "n/a", "40"]
    assert list(rows["noise"]) == ["n/a"] * 5
    assert "sub-02/anat/sub-02_desc-harmony_qc.json cannot be read" in rows["error"]["sub-02"]
