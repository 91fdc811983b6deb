"""What lies beside a scan: sidecars, the site made of them, and masks of other programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bids_dataset import find, write

from bids_harmony.bids.sidecars import SCANNER, site_label


def test_metadata_are_inherited(dataset: Path) -> None:
    write(dataset, "sub-01/ses-a/anat/sub-01_ses-a_acq-x_T1w.nii.gz")
    levels = {
        "T1w.json": {"Manufacturer": "root", "EchoTime": 1, "FlipAngle": 1, "Other": 1},
        "acq-x_T1w.json": {"EchoTime": 2, "FlipAngle": 2},
        "acq-y_T1w.json": {"EchoTime": 99},
        "T2w.json": {"EchoTime": 98},
        "task-x_bold.json": {"EchoTime": 97},
        "sub-01/sub-01_T1w.json": {"FlipAngle": 3, "RepetitionTime": 3},
        "sub-01/ses-a/sub-01_ses-a_T1w.json": {"RepetitionTime": 4, "InversionTime": 4},
        "sub-01/ses-a/anat/sub-01_ses-a_acq-x_T1w.json": {"InversionTime": 5},
        "sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.json": {"InversionTime": 96},
    }
    for name, content in levels.items():
        write(dataset, name, json.dumps(content))
    scan = next(s for s in find(dataset).scans if s.key == "sub-01_ses-a_acq-x")
    assert scan.metadata == {
        "Manufacturer": "root",
        "EchoTime": 2,
        "FlipAngle": 3,
        "RepetitionTime": 4,
        "InversionTime": 5,
    }
    assert (scan.site, scan.site_source) == ("root", "sidecar")


@pytest.mark.parametrize(
    ("maker", "model", "tesla", "label"),
    [
        ("Siemens", "Allegra", 3, "Siemens Allegra 3T"),
        ("SIEMENS", "Prisma_fit", 2.89362, "Siemens Prisma fit 3T"),
        ("Siemens Healthineers", "Prisma fit", "3.0", "Siemens Prisma fit 3T"),
        ("GE MEDICAL SYSTEMS", "DISCOVERY MR750", 30000, "GE DISCOVERY MR750 3T"),
        ("Philips Medical Systems", "Intera", 1.494, "Philips Intera 1.5T"),
        ("Hyperfine", "", 0.064, "Hyperfine 0.064T"), ("n/a", "unknown", "3 T", "3T"),
        ("GE", ["x"], "1,5", "GE 1.5T"), (None, None, "high", None),
        ("", " ", float("nan"), None), (None, None, None, None),
    ],
)  # fmt: skip
def test_site_labels(maker: object, model: object, tesla: object, label: str | None) -> None:
    facts = dict(zip(SCANNER, (maker, model, tesla), strict=True))
    assert site_label({k: v for k, v in facts.items() if v is not None}) == label


SCANNER_FACTS = {"Manufacturer": "GE", "ManufacturersModelName": "X", "MagneticFieldStrength": 3}


@pytest.mark.parametrize(
    "field",
    [
        b'"InstitutionName": "K\xf6ln"', b'"Comment": "two\nlines\tand\x01"',
        b'"FlipAngle": NaN, "InversionTime": "\\ud800"',
    ],
)  # fmt: skip
def test_a_bad_byte_in_one_field_costs_no_other(dataset: Path, field: bytes) -> None:
    write(dataset, "T1w.json", '{"Manufacturer": "GE", "EchoTime": 1}')
    write(dataset, "sub-01/anat/sub-01_T1w.json", b'{"Manufacturer": "Philips", ' + field + b"}")
    first = find(dataset).scans[0]
    assert (first.site, first.metadata) == ("Philips", {"EchoTime": 1, "Manufacturer": "Philips"})
    assert bool(first.warnings) == (b"\xf6" in field)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\0", b"/annex/objects/MD5E-s1--0.json\n"])
def test_a_broken_sidecar_hides_what_it_may_replace(dataset: Path, content: bytes) -> None:
    write(dataset, "T1w.json", json.dumps({**SCANNER_FACTS, "EchoTime": 1}))
    write(dataset, "sub-01/anat/sub-01_T1w.json", content)
    first, second = find(dataset).scans
    assert (first.site, first.site_source, first.metadata) == ("unknown", "none", {})
    assert "sub-01/anat/sub-01_T1w.json cannot be read" in first.warnings[0]
    assert (second.site, second.warnings) == ("GE X 3T", ())
    # Further up it leaves what is said nearer; "3T" alone would be another scanner.
    write(dataset, "T1w.json", content)
    write(dataset, "sub-01/anat/sub-01_T1w.json", '{"MagneticFieldStrength": 3, "EchoTime": 1}')
    write(dataset, "sub-02/anat/sub-02_T1w.json", json.dumps(SCANNER_FACTS))
    first, second = find(dataset).scans
    assert (first.site, first.metadata) == ("unknown", {"EchoTime": 1})
    assert (second.site, second.metadata) == ("GE X 3T", SCANNER_FACTS)


def test_masks_of_derivatives(dataset: Path, tmp_path: Path) -> None:
    write(dataset, "sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.nii.gz")
    one, two = tmp_path / "one", tmp_path / "two"
    for name in (
        "sub-01/anat/sub-01_space-MNI152NLin6Asym_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_run-1_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_desc-brain_mask.json",
        "sub-01/anat/sub-01_desc-head_mask.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz",
        "sub-02/anat/sub-02_space-orig_desc-brain_mask.nii.gz",
        "sub-02/anat/sub-02_space-T1w_desc-brain_mask.nii.gz",
    ):
        write(one, name)
    inventory = find(dataset, derivatives=(one,))
    assert {s.key: s.mask for s in inventory.scans} == {
        "sub-01": None,
        "sub-01_ses-a_run-1": None,
        "sub-02": one / "sub-02/anat/sub-02_space-T1w_desc-brain_mask.nii.gz",
    }
    assert inventory.warnings == (
        "No *_desc-brain_mask.nii.gz in native space was found for 2 of 3 scans (sub-01, "
        f"sub-01_ses-a_run-1) in {one}: --skull-strip auto computes those masks.",
    )
    write(two, "sub-01/ses-a/anat/sub-01_ses-a_run-1_desc-brain_mask.nii.gz")
    write(two, "sub-01/anat/sub-01_desc-brain_mask.nii")
    write(two, "sub-02/anat/sub-02_desc-brain_mask.nii.gz")
    inventory = find(dataset, derivatives=(one, two))
    masks = {s.key: s.mask for s in inventory.scans}
    assert masks["sub-01"] == two / "sub-01/anat/sub-01_desc-brain_mask.nii"
    assert masks["sub-01_ses-a_run-1"].name == "sub-01_ses-a_run-1_desc-brain_mask.nii.gz"
    assert masks["sub-02"].is_relative_to(one)
    assert inventory.warnings == ()
