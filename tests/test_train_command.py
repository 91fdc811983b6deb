"""The train level by its command, on a small dataset of made-up heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bids_dataset import write
from training_heads import write_scans

from bids_harmony.cli.run import main
from bids_harmony.config import Contract
from bids_harmony.models.bundle import load_bundle

STEM = "sub-{0}/anat/sub-{0}_space-MNI152NLin2009aSym_res-2_desc-"


def preprocessed_dataset(root: Path, counts: dict[str, int], tones: dict[str, float]) -> None:
    """Write a BIDS dataset and what the participant level would have made of it by FSL flirt."""
    rows = ["participant_id\tage\tsex\tsite"]
    processing = {"contract": Contract().to_dict(), "skull_strip": "auto", "registration": "flirt"}
    names = (f"{STEM}preproc_T1w.nii.gz", f"{STEM}brain_mask.nii.gz")
    for i, scan in enumerate(write_scans(root / "out", counts, tones, names)):
        label = f"sub-{scan.subject}"
        rows.append(f"{label}\t{scan.age:.1f}\t{'MF'[i % 2]}\t{scan.site}")
        write(root / "bids", f"{label}/anat/{label}_T1w.nii.gz")
        record = {"status": "pass", "metrics": scan.metrics, "processing": processing}
        write(root / "out", f"{label}/anat/{label}_desc-harmony_qc.json", json.dumps(record))
    write(root / "bids", "participants.tsv", "\n".join(rows) + "\n")
    about = {"Name": "heads", "BIDSVersion": "1.10.0", "License": "CC0"}
    write(root / "bids", "dataset_description.json", json.dumps(about))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    preprocessed_dataset(folder, {"REF": 14, "A": 4, "NEW": 3}, {"A": 1.8, "NEW": 0.6})
    return folder


def train(root: Path, *options: str) -> int:
    return main(
        [
            *(str(root / "bids"), str(root / "out"), "train", "--nprocs", "1"),
            *("--work-dir", str(root / "work"), "--fast-dev-run", *options),
        ]
    )


def test_a_bundle_is_trained(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(root, "--target", "age", "--fit-filter", "site != 'NEW'") == 0
    told = "".join(capfd.readouterr())
    assert "measuring NEW" in told
    folder = root / "out" / "models" / "harmony"
    bundle = load_bundle(folder)
    # As the records of the scans say, not as the program would do it by itself.
    assert bundle.contract.registration == "flirt"
    assert bundle.contract.skull_strip == "deepbet"
    assert bundle.info["licences"] == ["CC0"]
    assert bundle.info["sites"]["NEW"]["n"] == 0  # measured, and not fitted to
    assert "NEW, not in --fit-filter" in bundle.info["metrics"]["brain_age"]["sites"]
    assert "NEW" not in bundle.info["map"]["acceptance"]["text"]
    assert bundle.info["map"]["acceptance"]["text"] in told
    # What cannot be trained is refused before anything is.
    assert train(root, "--target", "age", "--reference-site", "NOWHERE") == 2
    told, err = capfd.readouterr()
    assert "3 of NEW" in err
    assert "Internal" not in err
    assert "network 1" not in told
