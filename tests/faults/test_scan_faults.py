"""Scans that cannot be used cost themselves only; unusual ones are used like any other."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import harmony, label_of, new_dataset, place, record_of
from faulty_scans import ODD, UNUSABLE, odd_scans

from bids_harmony.anat.check import load_t1w
from bids_harmony.errors import ScanError


@pytest.mark.parametrize("row", [*UNUSABLE, "folder", "absent"])
def test_unusable_files_are_refused_with_their_reason(tmp_path: Path, row: str) -> None:
    path = tmp_path / "sub-01_T1w.nii.gz"
    make, reason = UNUSABLE.get(row) or {
        "folder": (Path.mkdir, "cannot be read"), "absent": (Path, "does not exist"),
    }[row]  # fmt: skip
    make(path)
    path = path.with_suffix("") if path.with_suffix("").exists() else path
    with pytest.raises(ScanError) as raised:
        load_t1w(path)
    assert reason in raised.value.cause
    assert path.name in raised.value.cause
    assert raised.value.remedy
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def mixed(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Outputs and log of a run over every unusable file, every odd scan and a plain one."""
    root = new_dataset(tmp_path_factory.mktemp("mixed") / "bids")
    for row, (make, _) in UNUSABLE.items():
        make(place(root, label_of(row)))
    plain = nib.load(heads / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    nib.save(plain, place(root, "plain"))
    for row, img in odd_scans(plain).items():
        nib.save(img, place(root, label_of(row)))
    out = root.parent / "out"
    done = harmony(
        root, out, "participant", "-w", root.parent / "work", "--sloppy", "--bundle", "none",
        "--nprocs", 2,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_unusable_scans_fail_alone_with_their_reason(mixed: tuple[Path, str]) -> None:
    out, log = mixed
    table = {line.split()[0]: line for line in log.splitlines() if " failed  " in line}
    assert set(table) == {f"sub-{label_of(row)}" for row in UNUSABLE}
    for row, (_, says) in UNUSABLE.items():
        assert says in table[f"sub-{label_of(row)}"]
        record = record_of(out, label_of(row))
        assert record["status"] == "error"
        assert says in record["error"]["cause"]
        assert says in (out / f"sub-{label_of(row)}.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("row", ODD)
def test_odd_scans_are_done_like_a_plain_one(mixed: tuple[Path, str], row: str) -> None:
    out, _ = mixed

    def brain(label: str) -> np.ndarray:
        name = f"sub-{label}_space-MNI152NLin2009aSym_res-2_desc-preproc_T1w.nii.gz"
        data: np.ndarray = nib.load(out / f"sub-{label}" / "anat" / name).get_fdata()
        return data

    record, plain = record_of(out, label_of(row)), record_of(out, "plain")
    assert record["status"] in ("pass", "warn")
    if warning := ODD[row]:
        assert any(warning in found for found in record["warnings"])
    assert record["metrics"]["template_ncc"] == pytest.approx(
        plain["metrics"]["template_ncc"], abs=0.1
    )
    found, wanted = brain(label_of(row)), brain("plain")
    alike = np.corrcoef(found.ravel(), wanted.ravel())[0, 1]
    # What is made good before anything is computed leaves no trace.
    assert alike > (0.999 if warning else 0.93)
    # Left is still left.
    assert alike > np.corrcoef(found[::-1].ravel(), wanted.ravel())[0, 1] + 0.01
