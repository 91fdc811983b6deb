"""Names and wholeness of outputs; tables and root files are made from the records alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
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
from bids_harmony.interfaces.outputs import DerivativesDataSink

PREPROC = "sub-01/ses-a/anat/sub-01_ses-a_space-X_res-2_desc-preproc_T1w.nii.gz"


def record(out: Path, key: str, **values: object) -> Path:
    path = scan_file(out, {"subject": "01", "session": "a"}, key, "qc")
    outputs = [PREPROC, f"sub-01/ses-a/anat/{key}_desc-harmony_predictions.json"]
    facts = {"site": "S\t1", "age": 30.5, "status": "pass", "reasons": [], "outputs": outputs}
    write_json(path, {**facts, **values})
    return path


def test_row_takes_its_numbers_from_the_json(tmp_path: Path) -> None:
    path = record(tmp_path, "sub-01_ses-a", status="warn", reasons=["too bright", "too small"])
    brain_age = {"raw": 44.0, "harmonized": 33.25, "interval_90": [20.0, 46.5],
                 "gap_harmonized": 2.75}  # fmt: skip
    write_json(
        path.with_name("sub-01_ses-a_desc-harmony_predictions.json"),
        {"brain_age": brain_age, "bundle": {"name": "b", "version": "1"}},
    )
    row = scans_row(path)
    assert row is not None
    assert set(row) == set(scans_dictionary())
    assert {name: row[name] for name in ("filename", "site", "bundle", "qc_reasons")} == {
        "filename": f"anat/{Path(PREPROC).name}", "site": "S 1",  # a tab would break the table
        "bundle": "b 1", "qc_reasons": "too bright; too small",
    }  # fmt: skip
    numbers = ("brain_age_raw", "brain_age_harmonized_high", "brain_age_gap",
               "schizophrenia_probability_raw")  # fmt: skip
    assert [row[name] for name in numbers] == ["44.0", "46.5", "2.75", "n/a"]


def test_failed_scans_have_no_row_and_no_table(tmp_path: Path) -> None:
    path = record(tmp_path, "sub-01_ses-a")
    write_scans_tables(tmp_path, "01")
    table = tmp_path / "sub-01" / "ses-a" / "sub-01_ses-a_scans.tsv"
    assert len(table.read_text().splitlines()) == 2
    record(tmp_path, "sub-01_ses-a", status="error")
    assert scans_row(path) is None
    write_scans_tables(tmp_path, "01")
    assert not table.exists()
    for damaged in ("", "{", "[1]", '{"status": "pass"}'):
        path.write_text(damaged)
        assert scans_row(path) is None


def generated_by(out: Path) -> list[tuple[str, str]]:
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    return [(by["Name"], by["Version"]) for by in description["GeneratedBy"]]


def test_root_files_are_the_same_whoever_writes_them(tmp_path: Path) -> None:
    bids, out = tmp_path / "bids", tmp_path / "out"
    bids.mkdir()
    (bids / "dataset_description.json").write_text('{"Name": "heads"}')
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_dataset_files(out, bids), range(16)))
    ours = ("bids_harmony", __version__)
    assert generated_by(out) == [ours]
    assert '"bids_harmony derivatives of heads"' in (out / "dataset_description.json").read_text()
    assert not list(out.glob(".*.part"))
    assert {p.name for p in out.iterdir()} >= {"README.md", "CHANGES", ".bidsignore", "scans.json"}
    # A run with a bundle of its own, then one without it on other scans.
    write_dataset_files(out, bids, ["tumour"], {"FSL": "6.0.0", "torch": "2.0"})
    write_dataset_files(out, bids, [], {"torch": "2.1", "deepbet": "1.0.2"})
    assert generated_by(out) == [ours, ("deepbet", "1.0.2"), ("torch", "2.1")]
    assert "tumour_raw" in json.loads((out / "scans.json").read_text())


def test_the_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIDS_HARMONY_DOCKER_TAG", "bids_harmony:1.2.3")
    write_dataset_files(tmp_path / "out", tmp_path)
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Container"] == {
        "Type": "docker", "Tag": "bids_harmony:1.2.3",
    }  # fmt: skip


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_text(path, "old\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


# The data sink


IMAGE = {"space": "S", "resolution": "2", "desc": "preproc", "suffix": "T1w"}
XFM = {"suffix": "xfm", "mode": "image", "to": "MNI", "from": "T1w"}
EVERY = "sub-01_ses-a_acq-x_rec-y_run-01_echo-1_part-mag"


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        ("anat/sub-01", IMAGE, "anat/sub-01_space-S_res-2_desc-preproc_T1w.nii.gz"),
        ("anat/sub-01_task-rest_ce-gd", IMAGE,
         "anat/sub-01_task-rest_ce-gd_space-S_res-2_desc-preproc_T1w.nii.gz"),
        (f"ses-a/anat/{EVERY}_chunk-2", IMAGE,
         f"ses-a/anat/{EVERY}_space-S_chunk-2_res-2_desc-preproc_T1w.nii.gz"),
        ("ses-a/anat/sub-01_ses-a_run-1", XFM,
         "ses-a/anat/sub-01_ses-a_run-1_from-T1w_to-MNI_mode-image_xfm.txt"),
        ("anat/sub-01", {"desc": "harmony", "suffix": "qc"}, "anat/sub-01_desc-harmony_qc.json"),
        ("ses-a/anat/sub-01_ses-a_run-1", {"desc": "a", "suffix": "T1w", "datatype": "figures"},
         "figures/sub-01_ses-a_run-1_desc-a_T1w.png"),
    ],
)  # fmt: skip
def test_outputs_keep_every_entity_of_their_scan(
    tmp_path: Path, source: str, settings: dict[str, Any], expected: str
) -> None:
    in_file = tmp_path / f"made.{expected.partition('.')[2]}"
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    image.set_qform(np.eye(4), 4)
    nib.save(image, in_file) if settings is IMAGE else in_file.write_text("{}")
    (tmp_path / "out").mkdir()
    sink = DerivativesDataSink(
        base_directory=str(tmp_path / "out"), in_file=[str(in_file)], **settings,
        source_file=f"{tmp_path}/bids/sub-01/{source}_T1w.nii.gz", SkullStripped=True,
    )  # fmt: skip
    written = Path(sink.run(cwd=str(tmp_path)).outputs.out_file)
    assert written == tmp_path / "out/sub-01" / expected
    if settings is IMAGE:
        sidecar = json.loads(Path(str(written).replace(".nii.gz", ".json")).read_text())
        assert sidecar["SkullStripped"] is True
        assert sidecar["Resolution"] == "2 mm isotropic, on the grid of S"
