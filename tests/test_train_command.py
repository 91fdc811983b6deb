"""The train level by its command, on a small dataset of made-up heads."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from training_heads import AFFINE, head

from bids_harmony.cli.run import main
from bids_harmony.config import Contract
from bids_harmony.models.bundle import load_bundle

STEM = "space-MNI152NLin2009aSym_res-2_desc-"


def preprocessed_dataset(root: Path, counts: dict[str, int], tones: dict[str, float]) -> None:
    """Write a BIDS dataset and what the participant level would have made of it by FSL flirt."""
    rng = np.random.default_rng(0)
    rows = ["participant_id\tage\tsex\tsite"]
    processing = {"contract": Contract().to_dict(), "skull_strip": "auto", "registration": "flirt"}
    for site, n in counts.items():
        for i in range(n):
            age = 20 + 50 * i / max(n - 1, 1)
            label = f"sub-{site}{i}"
            rows.append(f"{label}\t{age:.1f}\t{'MF'[i % 2]}\t{site}")
            raw, out = (root / part / label / "anat" for part in ("bids", "out"))
            raw.mkdir(parents=True)
            out.mkdir(parents=True)
            nib.save(nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), raw / f"{label}_T1w.nii.gz")
            volume, mask = head(age, rng, tones.get(site, 1.0))
            for name, data in (("preproc_T1w", volume), ("brain_mask", mask.astype(np.uint8))):
                nib.save(nib.Nifti1Image(data, AFFINE), out / f"{label}_{STEM}{name}.nii.gz")
            record = {"status": "pass", "metrics": {"snr_wm": 10.0 + i}, "processing": processing}
            (out / f"{label}_desc-harmony_qc.json").write_text(json.dumps(record))
    (root / "bids" / "participants.tsv").write_text("\n".join(rows) + "\n")
    (root / "bids" / "dataset_description.json").write_text(
        json.dumps({"Name": "heads", "BIDSVersion": "1.10.0", "License": "CC0"})
    )


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
    told = capfd.readouterr().out
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
