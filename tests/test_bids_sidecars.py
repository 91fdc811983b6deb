"""What sidecars say about a scan, and the site made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bids_dataset import find, write

from bids_harmony.bids_sidecars import site_label


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
        ("Hyperfine", "", 0.064, "Hyperfine 0.064T"),
        (None, None, "high", None),
        ("", " ", float("nan"), None),
        (None, None, None, None),
    ],
)
def test_site_labels(maker: object, model: object, tesla: object, label: str | None) -> None:
    facts = {
        "Manufacturer": maker,
        "ManufacturersModelName": model,
        "MagneticFieldStrength": tesla,
    }
    assert site_label({k: v for k, v in facts.items() if v is not None}) == label
