"""The participant level as users run it: the command on whole datasets, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import assert_same, assert_whole, harmony, start, tree, validator_errors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(heads: Path) -> tuple[Path, str]:
    """Process two simulated heads."""
    out, work = heads.parent / "native", heads.parent / "native_work"
    result = harmony(
        heads, out, "participant", "-w", work, "--nprocs", 2, "--output-spaces", "T1w"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result.stdout


def test_all_outputs_are_there(done: tuple[Path, str]) -> None:
    out, log = done
    anat = out / "sub-01" / "anat"
    space = "sub-01_space-MNI152NLin2009aSym_res-2"
    assert {p.name for p in anat.iterdir()} == {
        "sub-01_desc-brain_mask.nii.gz",
        "sub-01_desc-brain_mask.json",
        "sub-01_desc-harmonized_T1w.nii.gz",
        "sub-01_desc-harmonized_T1w.json",
        "sub-01_desc-harmony_qc.json",
        "sub-01_desc-harmony_predictions.json",
        "sub-01_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt",
        f"{space}_desc-brain_mask.nii.gz",
        f"{space}_desc-brain_mask.json",
        f"{space}_desc-preproc_T1w.nii.gz",
        f"{space}_desc-preproc_T1w.json",
        f"{space}_desc-harmonized_T1w.nii.gz",
        f"{space}_desc-harmonized_T1w.json",
    }
    for page in (out / "sub-01.html", out / "sub-02.html"):
        html = page.read_text()
        assert len(html) < 10_000_000
        assert "data:image/" in html
        assert 'src="http' not in html
        assert "simulated" in html
    assert "[2/2]" in log
    assert "2 completed" in log
    assert not list(out.rglob("*.part"))


def test_validator_finds_no_error(done: tuple[Path, str]) -> None:
    assert validator_errors(done[0]) == []
    assert json.loads((done[0] / "dataset_description.json").read_text())["GeneratedBy"]


def test_volumes_share_the_template_grid_and_a_zero_background(done: tuple[Path, str]) -> None:
    from bids_harmony.anat.template import load_template

    anat = done[0] / "sub-01" / "anat"
    prefix = "sub-01_space-MNI152NLin2009aSym_res-2_desc-"
    template = load_template(2).t1w
    for desc in ("preproc", "harmonized"):
        img = nib.load(anat / f"{prefix}{desc}_T1w.nii.gz")
        assert img.shape == template.shape
        np.testing.assert_allclose(img.affine, template.affine)
        assert int(img.header["sform_code"]) == 4
        data = np.asarray(img.dataobj)
        assert np.isfinite(data).all()
        assert data[0].max() == 0
        assert 0.7 < np.percentile(data[data > 0], 90) < 1.5
        sidecar = json.loads((anat / f"{prefix}{desc}_T1w.json").read_text())
        assert sidecar["SkullStripped"] is True
        assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]


def test_native_outputs_lie_on_the_raw_grid(done: tuple[Path, str], heads: Path) -> None:
    raw = nib.load(heads / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    for name in ("desc-brain_mask", "desc-harmonized_T1w"):
        img = nib.load(done[0] / "sub-01" / "anat" / f"sub-01_{name}.nii.gz")
        assert img.shape == raw.shape
        np.testing.assert_allclose(img.affine, raw.affine, atol=1e-4)
    truth = next((heads / "derivatives" / "truth" / "sub-01").rglob("*_mask.nii.gz"))
    mask = np.asarray(
        nib.load(done[0] / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz").dataobj
    )
    expected = np.asarray(nib.load(truth).dataobj) > 0
    assert 2 * (expected & (mask > 0)).sum() / (expected.sum() + mask.sum()) > 0.93


def test_numbers_agree_between_json_and_table(done: tuple[Path, str]) -> None:
    anat = done[0] / "sub-01" / "anat"
    predictions = json.loads((anat / "sub-01_desc-harmony_predictions.json").read_text())
    record = json.loads((anat / "sub-01_desc-harmony_qc.json").read_text())
    header, row = (done[0] / "sub-01" / "sub-01_scans.tsv").read_text().splitlines()
    table = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    assert float(table["brain_age_raw"]) == predictions["brain_age"]["raw"]
    assert float(table["brain_age_harmonized"]) == predictions["brain_age"]["harmonized"]
    assert predictions["schizophrenia_probability"]["training_data"].startswith("simulated")
    assert table["qc_status"] == record["status"]
    assert record["site"] in table["site"]
    dictionary = json.loads((done[0] / "scans.json").read_text())
    assert set(table) == set(dictionary)


def test_same_command_again_recomputes_nothing(done: tuple[Path, str], heads: Path) -> None:
    out = done[0]
    before = tree(out)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")}
    result = harmony(
        heads, out, "participant", "-w", heads.parent / "other_work", "--output-spaces", "T1w"
    )
    assert result.returncode == 0, result.stderr
    assert "2 unchanged" in result.stdout
    assert tree(out) == before
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")} == times


def test_another_run_with_one_process_writes_the_same_bytes(
    done: tuple[Path, str], heads: Path, tmp_path: Path
) -> None:
    result = harmony(
        heads, tmp_path / "out", "participant", "-w", tmp_path / "work", "--nprocs", 1,
        "--output-spaces", "T1w", "--clean-workdir",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert not list((tmp_path / "work").rglob("sub_*"))
    assert_same(tree(done[0]), tree(tmp_path / "out"))


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    done: tuple[Path, str], heads: Path, tmp_path: Path
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    command = (heads, out, "participant", "-w", work, "--nprocs", 2, "--output-spaces", "T1w")
    moments = np.random.default_rng(int(os.environ.get("FAULT_SEED", 0)))
    kills = 0
    while kills < int(os.environ.get("FAULT_KILLS", 3)):
        run = start(*command)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(timeout=moments.uniform(1, 25))
            # Done before its time had come: all over again.
            assert run.returncode == 0
            shutil.rmtree(out)
            shutil.rmtree(work)
            continue
        # The whole group, as a cluster's out-of-time does.
        os.killpg(run.pid, signal.SIGKILL)
        assert run.wait(timeout=60) != 0
        kills += 1
        assert_whole(out)
    result = harmony(*command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_same(tree(done[0]), tree(out))


def test_real_stripped_scan_is_recognised(shared_data: Path, tmp_path: Path) -> None:
    result = harmony(
        shared_data / "ds002748", tmp_path / "out", "participant", "--participant-label", "01",
        "-w", tmp_path / "work", "--nprocs", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    anat = tmp_path / "out" / "sub-01" / "anat"
    record = json.loads((anat / "sub-01_desc-harmony_qc.json").read_text())
    assert record["mask"]["method"] == "skip"
    assert record["site"] == "NSK"
    predictions = json.loads((anat / "sub-01_desc-harmony_predictions.json").read_text())
    assert 10 < predictions["brain_age"]["harmonized"] < 95
