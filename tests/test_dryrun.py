"""What ``--dry-run`` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from random_bundle import write_random_bundle

from bids_harmony.bids.dataset import find_scans
from bids_harmony.cli.dryrun import render
from bids_harmony.cli.run import main
from bids_harmony.config import RunConfig
from bids_harmony.errors import BundleError, UsageError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_bundle(tmp_path_factory.mktemp("bundle") / "b").path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two good scans, an empty file, a broken link, a phase image, a subject without T1w."""
    root = tmp_path / "in"
    for name in ("sub-01/anat/sub-01", "sub-02/ses-a/anat/sub-02_ses-a", "sub-03/anat/sub-03"):
        path = root / f"{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_text("" if "03" in name else "image")
    (root / "sub-01/anat/sub-01_part-phase_T1w.nii.gz").write_text("image")
    (root / "sub-04/anat").mkdir(parents=True)
    (root / "sub-04/anat/sub-04_T1w.nii.gz").symlink_to("nowhere")
    (root / "sub-05/func").mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\tsite\nsub-01\t30\tM\tA\nsub-02\t89+\tF\tA\nsub-03\t5\tF\tB\n"
    )
    mask = tmp_path / "fmriprep/sub-02/ses-a/anat/sub-02_ses-a_desc-brain_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    mask.write_text("mask")
    return root


def show(root: Path, **options: object) -> str:
    config = RunConfig(bids_dir=root, output_dir=root.parent / "out", **options)
    return render(find_scans(config), config)


def line(text: str, start: str) -> str:
    (found,) = [row for row in text.splitlines() if row.strip().startswith(start)]
    return " ".join(found.split())


def test_every_scan_has_its_line(root: Path) -> None:
    text = show(root, bundle="none", derivatives=(root.parent / "fmriprep",))
    assert "dataset_description.json is missing" not in text
    assert line(text, "sub-01 ") == "sub-01 A 30 M to be made"
    odd = "participants.tsv:age: age '89+' was read as 89."
    assert line(text, "sub-02_ses-a") == f"sub-02_ses-a A 89 F fmriprep {odd}"
    assert line(text, "sub-03") == "sub-03 B 5 F to be made the file is empty"
    assert line(text, "sub-04").startswith("sub-04 unknown n/a n/a to be made it is a broken link")
    assert "part-phase is not a magnitude image" in line(text, "sub-01/anat/sub-01_part-phase")
    assert line(text, "sub-05") == "sub-05 no T1w scan"
    assert "4 scans of 4 participants would be processed, 2 skipped." in text
    assert "Sites: A 2, B 1, unknown 1, 1 without site, 1 without age, 1 without sex." in text


def test_the_plan_follows_the_options(root: Path, bundle: str, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    text = show(root, bundle=bundle)
    assert (
        line(text, "brain mask")
        == "brain mask deepbet (auto), unless the scan is already skull-stripped"
    )
    assert line(text, "registration").startswith(
        "registration ants, 12 degrees of freedom, to MNI152NLin2009aSym"
    )
    assert "brain_age" in line(text, "predictions")
    assert "'random' 0" in line(text, "predictions")
    assert "missing" not in text
    text = show(root, bundle="none", skull_strip="bet", registration="flirt")
    assert line(text, "brain mask") == "brain mask bet"
    assert "--bundle none" in line(text, "predictions")
    assert "needs FSL's program bet" in text
    assert "would end with code 127" in text
    with pytest.raises(BundleError):
        show(root, bundle=str(root))


def test_earlier_failures_and_masks_that_were_not_fetched_are_seen(root: Path) -> None:
    (mask,) = (root.parent / "fmriprep").rglob("*_mask.nii.gz")
    mask.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    record = root.parent / "out/sub-03/anat/sub-03_desc-harmony_qc.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"status": "error"}))
    text = show(root, bundle="none", derivatives=(root.parent / "fmriprep",))
    assert "failed before" in line(text, "sub-03")
    row = line(text, "sub-02_ses-a")
    assert "A 89 F fmriprep brain mask: its content is not present" in row
    assert "before" not in row


@pytest.mark.parametrize("level", ["calibrate", "group", "train", "evaluate"])
def test_other_levels_show_the_scans_and_warnings(root: Path, level: str) -> None:
    (root / "dataset_description.json").unlink()
    text = show(root, level=level)
    assert f"dry run of the {level} level" in text
    assert "dataset_description.json is missing" in text
    assert line(text, "sub-01 ") == "sub-01 A 30 M to be made"


def test_command_prints_the_list_and_writes_nothing(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(root.parent)
    before = sorted(root.parent.rglob("*"))
    out = str(root.parent / "out")
    assert main([str(root), out, "participant", "--dry-run", "--bundle", "none"]) == 0
    assert "4 scans of 4 participants" in capsys.readouterr().out
    argv = [str(root), out, "participant", "--dry-run", "--participant-label", "05"]
    assert main(argv) == 66
    assert "--participant-label 05" in capsys.readouterr().err
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the device asked for is there")
def test_a_device_that_is_not_there_ends_the_dry_run_as_it_would_the_run(
    root: Path, bundle: str
) -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        show(root, bundle=bundle, device="cuda")
    assert "device cpu" in show(root, bundle=bundle, device="cpu")
