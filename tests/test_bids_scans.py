"""Which files of a dataset are scans, and what is said about those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from bids_dataset import find, keys, write

from bids_harmony.bids import _why_none
from bids_harmony.config import RunConfig


def test_plain_dataset_is_found_with_its_facts(dataset: Path) -> None:
    inventory = find(dataset)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert inventory.skipped == ()
    assert inventory.warnings == ()
    first, second = inventory.scans
    assert first.path == dataset / "sub-01/anat/sub-01_T1w.nii.gz"
    assert first.entities == {"subject": "01"}
    assert (first.age, first.sex, second.age, second.sex) == (30.0, "M", 40.5, "F")
    assert (first.site, first.site_source, first.mask) == ("unknown", "none", None)
    assert first.wf_name == "sub_01_wf"


def test_every_t1w_is_a_scan_of_its_own(dataset: Path) -> None:
    names = [
        "sub-01/anat/sub-01_acq-a_T1w.nii.gz",
        "sub-01/anat/sub-01_rec-a_T1w.nii",
        "sub-01/anat/sub-01_run-1_T1w.nii.gz",
        "sub-01/anat/sub-01_run-01_T1w.nii.gz",
        "sub-01/anat/sub-01_echo-1_part-mag_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_ce-gd_T1w.NII.GZ",
    ]
    for name in names:
        write(dataset, name)
    scans = find(dataset, participant_label=("01",)).scans
    assert {scan.path for scan in scans} == {
        dataset / name for name in [*names, "sub-01/anat/sub-01_T1w.nii.gz"]
    }
    assert len({scan.wf_name for scan in scans}) == len(scans)
    by_key = {scan.key: scan for scan in scans}
    assert by_key["sub-01_run-01"].entities == {"subject": "01", "run": "01"}
    assert by_key["sub-01_ses-b_ce-gd"].entities == {
        "subject": "01",
        "session": "b",
        "ceagent": "gd",
    }


def test_other_files_are_not_scans(dataset: Path) -> None:
    for name in (
        "derivatives/x/sub-01/anat/sub-01_space-T1w_T1w.nii.gz",
        "sourcedata/sub-01/anat/sub-01_run-7_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz.part",
        "sub-01/anat/.git/sub-01_run-8_T1w.nii.gz",
        ".git/sub-01/anat/sub-01_run-9_T1w.nii.gz",
        "sub-01/func/sub-01_T1w.nii.gz",
    ):
        write(dataset, name)
    assert keys(find(dataset)) == ["sub-01", "sub-02"]


def test_what_is_left_out_is_named(dataset: Path) -> None:
    write(dataset, "sub-03/func/sub-03_task-x_bold.nii.gz")
    (dataset / "sub-04").mkdir()
    for name in (
        "sub-01_part-phase",
        "sub-01_part-real",
        "sub-01_inv-1",
        "sub-02",
        "sub-01_foo",
        "sub-01_ses-a",
    ):
        write(dataset, f"sub-01/anat/{name}_T1w.nii.gz")
    write(dataset, "sub-01/anat/sub-01_T1w.nii")
    write(dataset, "sub-02/anat/sub-02_run-1_acq-a_T1w.nii.gz")
    write(dataset, "sub-02/anat/sub-02_acq-a_run-1_T1w.nii.gz")
    inventory = find(dataset)
    assert keys(inventory) == ["sub-01", "sub-02", "sub-02_acq-a_run-1"]
    assert inventory.scans[0].path.name == "sub-01_T1w.nii.gz"
    why = {s.what.rpartition("/")[2]: s.why for s in inventory.skipped}
    assert len(why) == 10
    assert why["sub-01_part-phase_T1w.nii.gz"] == "part-phase is not a magnitude image"
    assert "'inv-'" in why["sub-01_inv-1_T1w.nii.gz"]
    assert "folders" in why["sub-02_T1w.nii.gz"]
    assert "folders" in why["sub-01_ses-a_T1w.nii.gz"]
    assert "'foo'" in why["sub-01_foo_T1w.nii.gz"]
    assert "sub-01_T1w.nii.gz" in why["sub-01_T1w.nii"]
    assert "sub-02_acq-a_run-1_T1w.nii.gz" in why["sub-02_run-1_acq-a_T1w.nii.gz"]
    assert why["sub-03"] == "no T1w scan"
    assert "datalad" in why["sub-04"]


def test_labels_that_output_names_would_lose(dataset: Path) -> None:
    """pybids and niworkflows drop ``run-a``: two such scans would share their outputs."""
    for name in ("run-a", "run-b", "echo-x", "chunk-1a", "part-foo"):
        write(dataset, f"sub-01/anat/sub-01_{name}_T1w.nii.gz")
    inventory = find(dataset)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert len(inventory.skipped) == 5
    assert {s.why for s in inventory.skipped} == {
        "its run- is not a number",
        "its echo- is not a number",
        "its chunk- is not a number",
        "part- is one of mag, phase, real, imag",
    }


def test_linked_subject_folders_are_followed(dataset: Path, tmp_path: Path) -> None:
    write(tmp_path, "store/anat/sub-03_T1w.nii.gz")
    (dataset / "sub-03").symlink_to(tmp_path / "store")
    assert "sub-03" in keys(find(dataset))


@pytest.mark.parametrize(
    ("name", "n", "site"),
    [("ixi_hh", 120, "IXI-HH"), ("ds002748", 24, "NSK"), ("ds000011", 7, "UCLA")],
)
def test_real_datasets(shared_data: Path, name: str, n: int, site: str) -> None:
    if not (shared_data / name).is_dir():
        pytest.skip(f"{name} is not among the shared real scans")
    inventory = find(shared_data / name)
    assert len(inventory.scans) == n
    assert {scan.site for scan in inventory.scans} == {site}
    assert all(scan.age and 18 < scan.age < 90 and scan.sex for scan in inventory.scans)
    assert not any(scan.warnings for scan in inventory.scans)
    if name == "ds002748":
        diagnoses = [scan.diagnosis for scan in inventory.scans]
        assert (diagnoses.count("depression"), diagnoses.count("control")) == (16, 8)


@pytest.mark.parametrize("closed", ["anat", "ses-a", "ses-a/anat"])
def test_a_folder_that_cannot_be_read_is_not_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    folder = tmp_path / "sub-01"
    (folder / closed).mkdir(parents=True)
    monkeypatch.setattr("bids_harmony.bids.os.access", lambda path, _: path != folder / closed)
    config = RunConfig(bids_dir=tmp_path, output_dir=tmp_path / "out")
    assert _why_none(folder, config) == f"its folder {closed} cannot be read"
