"""Names, tables and sizes of datasets that nobody should have made."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest
from bids_dataset import write
from command_line import assert_sentences, harmony, new_dataset

from bids_harmony.cli.run import main

LABELS = {
    "space": "01 copy",
    "quotes": "0'1\"",
    "HTML": "<b onclick=x>",
    "dots": "..",
    "look-alike": "０１а",
    "terminal": "\x1b[2J\n01",
    "long": "a" * 200,
}


@pytest.mark.parametrize("kind", LABELS)
def test_names_that_are_not_bids_are_left_out_and_told(
    dataset: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label = LABELS[kind]
    write(dataset, f"sub-{label}/anat/sub-{label}_T1w.nii.gz", "x")
    argv = [str(dataset), str(dataset.parent / "out"), "participant", "--dry-run"]
    assert main([*argv, "--bundle", "none"]) == 0
    said = capsys.readouterr().out
    assert "2 scans of 2 participants would be processed" in said
    assert ("its name is longer than" if kind == "long" else "not a BIDS entity") in said
    assert "\x1b" not in said


@pytest.mark.parametrize("label", ["../x", "..", "/etc", "01/../../x", "0 1", "<b>", "*", "０１"])
def test_labels_that_lead_elsewhere_are_refused(
    dataset: Path, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(dataset), str(dataset.parent / "out"), "participant", "--dry-run"]
    assert main([*argv, "--participant-label", label]) == 2
    said = capsys.readouterr().err
    assert_sentences(said)
    assert "has no participant" in said


@pytest.mark.slow
def test_ten_thousand_participants_are_listed_in_bounded_time_and_memory(tmp_path: Path) -> None:
    root = new_dataset(tmp_path / "bids")
    for n in range(10_000):
        for name in ("anat/sub-{}_T1w.nii.gz", "anat/sub-{}_T1w.json", "dwi/sub-{}_dwi.nii.gz"):
            write(root / f"sub-{n:05d}", name.format(f"{n:05d}"), "{}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = harmony(root, tmp_path / "out", "participant", "--dry-run", "--bundle", "none")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Left to pytest, they would go when another run starts.
    shutil.rmtree(root)
    assert ran.returncode == 0, ran.stderr
    assert "10000 scans of 10000 participants would be processed" in ran.stdout
    # CPU time, which other work on the machine does not lengthen; kB of the largest child so far.
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 60
    assert used.ru_maxrss < 1e6
