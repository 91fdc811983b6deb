"""A scan that is computed again: nothing of the earlier run shows, and nothing is lost midway."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import start

pytestmark = pytest.mark.slow


def harmony(*args: object, code: int = 0, **environment: str) -> str:
    run = start(*args, **environment)
    said, _ = run.communicate(timeout=900)
    assert run.returncode == code, said
    return said


@pytest.fixture(scope="module")
def head(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one simulated head, which is there as another acquisition too."""
    root = tmp_path_factory.mktemp("rerun") / "bids"
    shutil.copytree(heads, root, ignore=shutil.ignore_patterns("sub-02"))
    scan = root / "sub-01/anat/sub-01_T1w.nii.gz"
    shutil.copy(scan, scan.with_name("sub-01_acq-b_T1w.nii.gz"))
    return root


@pytest.fixture
def first(head: Path, tmp_path: Path) -> tuple[Path, list[object]]:
    """Its outputs, native images included, and the command that made them."""
    made = head.parent / "made"
    if not made.exists():
        harmony(
            head, made / "out", "participant", "-w", made / "work", "--nprocs", 2, "--sloppy",
            "--output-spaces", "T1w",
            # What a notebook or a careful shell hands on.
            MPLBACKEND="module://backend_that_is_not_there", PYTHONWARNINGS="error",
            FSLOUTPUTTYPE="NIFTI",
        )  # fmt: skip
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    shutil.copytree(head, tmp_path / "bids", dirs_exist_ok=True)
    command = [tmp_path / "bids", tmp_path / "out", "participant", "-w", tmp_path / "work"]
    return tmp_path / "out", [*command, "--nprocs", 2, "--sloppy"]


def files(out: Path) -> set[str]:
    return {p.relative_to(out).as_posix() for p in (out / "sub-01").rglob("*") if p.is_file()}


def record(out: Path, key: str = "sub-01") -> dict[str, object]:
    values = json.loads((out / f"sub-01/anat/{key}_desc-harmony_qc.json").read_text())
    assert isinstance(values, dict)
    return values


def test_other_options_leave_nothing_of_the_earlier_ones(first: tuple[Path, list[object]]) -> None:
    out, command = first
    assert "desc-harmonized_T1w" in " ".join(files(out))
    assert "\t4" in (out / "sub-01/sub-01_scans.tsv").read_text()
    harmony(*command, "--bundle", "none")
    left = files(out)
    assert not [name for name in left if "harmonized" in name or "predictions" in name]
    # Every file that is there is one that the new run made.
    for key in ("sub-01", "sub-01_acq-b"):
        assert record(out, key)["bundle"] is None
    named = {name for key in ("sub-01", "sub-01_acq-b") for name in record(out, key)["outputs"]}
    images = {name for name in left if name.endswith((".gz", ".txt", ".png", ".webp"))}
    assert images == {name for name in named if not name.endswith(".json")}
    table = (out / "sub-01/sub-01_scans.tsv").read_text().splitlines()
    columns = table[0].split("\t")
    for row in table[1:]:
        cells = dict(zip(columns, row.split("\t"), strict=True))
        assert cells["brain_age_raw"] == cells["brain_age_harmonized"] == "n/a"
        assert cells["bundle"] == "n/a"
    page = (out / "sub-01.html").read_text()
    assert "slice by slice" not in page


def test_a_scan_that_fails_now_keeps_nothing_and_costs_its_neighbour_nothing(
    first: tuple[Path, list[object]],
) -> None:
    out, command = first
    before = {name: (out / name).read_bytes() for name in files(out) if "_acq-b_" in name}
    scan = Path(str(command[0])) / "sub-01/anat/sub-01_T1w.nii.gz"
    scan.write_bytes(scan.read_bytes()[: scan.stat().st_size // 2])
    said = harmony(*command, "--output-spaces", "T1w", code=1)
    # Its site is calibrated without it, so that its neighbour is harmonized again, and no more.
    assert "1 to process, 1 to harmonize only" in said
    assert "1 completed, 1 failed" in said
    left = files(out)
    assert {name for name in left if "_acq-b_" not in name} == {
        "sub-01/anat/sub-01_desc-harmony_qc.json", "sub-01/sub-01_scans.tsv",
    }  # fmt: skip
    # The same head, so that the site is as before; its record is of another run of that part.
    after = {name: (out / name).read_bytes() for name in left if "_acq-b_" in name}
    assert after.keys() == before.keys()
    assert [n for n in after if after[n] != before[n] and not n.endswith("_qc.json")] == []
    assert record(out)["status"] == "error"


def test_a_replaced_scan_is_not_taken_from_the_work_folder(
    first: tuple[Path, list[object]],
) -> None:
    out, command = first
    old = record(out)
    scan = Path(str(command[0])) / "sub-01/anat/sub-01_T1w.nii.gz"
    img = nib.load(scan)
    data = np.asanyarray(img.dataobj)[:, ::-1].copy()
    flip = nib.affines.from_matvec(np.diag([1, -1, 1]), [0, data.shape[1] - 1, 0])
    nib.save(nib.Nifti1Image(data, img.affine @ flip, img.header), scan)
    plan = harmony(*command, "--output-spaces", "T1w", "--dry-run")
    assert "would be processed" in plan
    harmony(*command, "--output-spaces", "T1w")
    new = record(out)
    assert new["input_sha256"] != old["input_sha256"]
    # The same head, stored front to back: the mask must follow the file.
    mask = nib.load(out / "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    np.testing.assert_allclose(mask.affine, nib.load(scan).affine, atol=1e-4)


def test_a_rerun_that_is_interrupted_loses_nothing(first: tuple[Path, list[object]]) -> None:
    out, command = first
    before = {name: (out / name).read_bytes() for name in files(out)}
    # Another seed: registered anew, from the beginning.
    run = start(*command, "--random-seed", 7)
    work = Path(str(command[4]))
    end = time.monotonic() + 120
    while not [*work.glob("bids_harmony/sub_01_wf/register/_0x*_unfinished.json")]:
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    # And the old command finds everything as it was.
    assert "2 unchanged" in harmony(*command, "--output-spaces", "T1w")
