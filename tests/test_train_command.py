"""The train level by its command, on a small dataset of made-up heads."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from training_heads import AFFINE, head

from bids_harmony.cli.run import main
from bids_harmony.contract import Contract
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


def test_bundle_is_trained_and_then_given_a_site(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(root, "--target", "age", "--fit-filter", "site != 'NEW'") == 0
    told = capfd.readouterr().out
    assert "s left" in told
    folder = root / "out" / "models" / "harmony"
    bundle = load_bundle(folder)
    # As the records of the scans say, not as the program would do it by itself.
    assert bundle.contract.registration == "flirt"
    assert bundle.contract.skull_strip == "deepbet"
    assert bundle.info["licences"] == ["CC0"]
    # Maps that were not fitted on a site do not know it, though figures are measured there.
    assert set(bundle.info["sites"]) == {"REF", "A"}
    assert bundle.info["networks"]["backward"]["sites"] == ["A"]
    assert "NEW" in bundle.info["metrics"]["brain_age"]["sites"]
    (place,) = (root / "work").glob("harmonizer-*")
    rows = (place / "logs" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("adversarial")
    assert list(place.glob("logs/tensorboard/version_0/events*"))
    assert len(list(place.glob("samples/*.png"))) == 2

    add = ("--add-site", "NEW", "--bundle", str(folder))
    assert train(root, *add) == 2
    assert "would take the place" in capfd.readouterr().err
    assert load_bundle(folder).sha256 == bundle.sha256
    assert train(root, *add, "--model-name", "more") == 0
    assert "preprocessed in other ways" not in capfd.readouterr().out
    more = load_bundle(root / "out" / "models" / "more")
    assert more.info["networks"]["backward"]["sites"] == ["A", "NEW"]
    assert more.info["sites"]["NEW"]["n"] == 3
    weights = {name for name in bundle.info["files"] if name.endswith(".safetensors")}
    assert {
        name for name in weights if more.info["files"][name] != bundle.info["files"][name]
    } == {"backward.safetensors"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "3", "--devices", "2"), "cannot be shared by 2 devices"),
        (("--nodes", "2"), "only this one takes part"),
        (("--holdout", "0.8", "--validation", "0.18"), "left to train the maps on"),
        (("--reference-site", "NOWHERE"), "3 of NEW"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    root: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert train(root, "--target", "age", *options) == 2
    out, err = capfd.readouterr()
    assert words in err
    assert "Internal" not in err
    assert "network 1" not in out


def test_a_gpu_that_is_not_there_is_said(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert train(root, "--device", "cuda") == 2
    assert "--devices 1 asks for GPUs, and torch finds 0" in capfd.readouterr().err
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert train(root, "--devices", "2") == 2
    assert "--devices 2 asks for GPUs, and torch finds 1" in capfd.readouterr().err
