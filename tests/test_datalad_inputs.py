"""Datasets kept by DataLad: files are links into .git/annex/objects, and read-only."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import t1w_images
from bids_dataset import find, keys, write

from bids_harmony.bids.dataset import check_description
from bids_harmony.errors import ScanError
from bids_harmony.interfaces.anat import BrainMask


def annex(root: Path, name: str, *, fetched: bool = True) -> Path:
    """Replace a file by git-annex's link to its content; both, and their folders, read-only."""
    path = root / name
    content = path.read_bytes()
    suffix = "".join(path.suffixes)
    key = f"MD5E-s{len(content)}--{hashlib.md5(content).hexdigest()}{suffix}"
    store = root / ".git/annex/objects" / key[-8:-6] / key[-6:-4] / key
    path.unlink()
    up = "/".join([".."] * len(path.relative_to(root).parts[:-1])) or "."
    path.symlink_to(f"{up}/{(store / key).relative_to(root)}")
    if fetched:
        store.mkdir(parents=True)
        (store / key).write_bytes(content)
        (store / key).chmod(0o444)
        store.chmod(0o555)
    path.parent.chmod(0o555)
    return path


@pytest.fixture
def superdataset(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone as BABS makes it, being the current folder: the dataset in inputs/data/BIDS."""
    clone = tmp_path / "clone"
    bids = clone / "inputs/data/BIDS"
    bids.parent.mkdir(parents=True)
    dataset.rename(bids)
    (clone / ".git").mkdir()
    monkeypatch.chdir(clone)
    return bids


def test_files_that_were_not_fetched_are_named_with_what_fetches_them(superdataset: Path) -> None:
    write(superdataset, "sub-01/anat/sub-01_T1w.json", '{"Manufacturer": "GE"}')
    for name in (
        "participants.tsv", "dataset_description.json", "sub-01/anat/sub-01_T1w.json",
        "sub-01/anat/sub-01_T1w.nii.gz",
    ):  # fmt: skip
        annex(superdataset, name, fetched=False)
    inventory = find(superdataset)
    assert keys(inventory) == ["sub-01", "sub-02"]
    warnings = [*inventory.warnings, *inventory.scans[0].warnings]
    for name in ("participants.tsv", "sub-01_T1w.json"):
        assert any(name in note and "datalad get" in note for note in warnings), name
    assert "datalad get" in check_description(superdataset)[0]


def test_fetched_tables_and_sidecars_are_read_through_their_links(superdataset: Path) -> None:
    write(superdataset, "sub-01/anat/sub-01_T1w.json", '{"Manufacturer": "GE"}')
    for name in ("participants.tsv", "dataset_description.json", "sub-01/anat/sub-01_T1w.json"):
        annex(superdataset, name)
    inventory = find(superdataset)
    assert [scan.age for scan in inventory.scans] == [30, 40.5]
    assert inventory.scans[0].site == "GE"
    assert not any("datalad" in note for note in inventory.warnings)


def test_a_mask_that_was_not_fetched_costs_its_scan_and_says_so(tmp_path: Path) -> None:
    t1w_images.write(tmp_path / "t1w.nii.gz", t1w_images.scan())
    mask = tmp_path / "sub-01_desc-brain_mask.nii.gz"
    mask.symlink_to("../.git/annex/objects/nothing")
    interface = BrainMask(
        in_file=str(tmp_path / "t1w.nii.gz"), source_file=str(tmp_path / "t1w.nii.gz"),
        in_mask=str(mask), scan_key="sub-01", prefix=str(tmp_path / "sub-01"),
    )  # fmt: skip
    with pytest.raises(ScanError, match="datalad get"):
        interface.run(cwd=str(tmp_path))


def harmony(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bids_harmony", *args],
        capture_output=True, text=True, timeout=600, check=False, env=os.environ,
    )  # fmt: skip


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Kind, permissions and time of everything in a folder, which a reader must not change."""
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in root.rglob("*")
    }


@pytest.mark.slow
def test_one_session_of_annexed_inputs_by_relative_paths(superdataset: Path) -> None:
    """As BABS calls it: one participant or session, within a clone, inputs as links."""
    from bids_harmony.simulation.dataset import simulate_dataset

    clone = superdataset.parents[2]
    simulate_dataset(clone.parent / "sim", n_sites=2, n_subjects=1, seed=5, resolution=2.0)
    head = (clone.parent / "sim/sub-01/anat/sub-01_T1w.nii.gz").read_bytes()
    for session, fetched in (("a", True), ("b", False)):
        name = f"sub-03/ses-{session}/anat/sub-03_ses-{session}_T1w.nii.gz"
        write(superdataset, name, head if fetched else head + b"another scan")
        annex(superdataset, name, fetched=fetched)
    before = state(superdataset)
    command = [
        "inputs/data/BIDS", "outputs", "participant", "--participant-label", "sub-03",
        "-w", ".git/tmp/wkdir", "--nprocs", "1", "--bundle", "none", "--sloppy",
    ]  # fmt: skip

    result = harmony(*command, "--session-label", "a")
    assert result.returncode == 0, result.stdout + result.stderr
    out = clone / "outputs"
    assert sorted(p.name for p in out.iterdir() if p.name.startswith("sub-")) == [
        "sub-03",
        "sub-03.html",
    ]
    anat = out / "sub-03/ses-a/anat"
    names = [p.name for p in anat.iterdir()]
    assert all(name.startswith("sub-03_ses-a_") for name in names)
    record = json.loads((anat / "sub-03_ses-a_desc-harmony_qc.json").read_text())
    assert record["input_sha256"] == hashlib.sha256(head).hexdigest()
    # Other clones lie elsewhere, and must write the same.
    texts = [p for p in out.rglob("*") if p.suffix in (".json", ".tsv", ".html", ".txt", ".md")]
    for path in texts:
        if "logs" not in path.parts:
            assert str(clone) not in path.read_text(), path
            assert "annex" not in path.read_text(), path
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": "../inputs/data/BIDS"}
    sidecar = anat / "sub-03_ses-a_space-MNI152NLin2009aSym_res-2_desc-preproc_T1w.json"
    assert json.loads(sidecar.read_text())["Sources"] == [
        "bids:raw:sub-03/ses-a/anat/sub-03_ses-a_T1w.nii.gz"
    ]

    result = harmony(*command, "--session-label", "b")
    assert result.returncode == 1
    assert "datalad get" in result.stdout
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert state(superdataset) == before

    # `datalad save` turns outputs into links to read-only content; a later run replaces these.
    saved = annex(clone, "outputs/sub-03.html")
    saved.parent.chmod(0o755)
    result = harmony(*command, "--session-label", "a", "--reports-only")
    assert result.returncode == 0, result.stdout + result.stderr
    assert not saved.is_symlink()
    assert "ses-a" in saved.read_text()
