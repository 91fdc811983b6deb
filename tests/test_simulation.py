"""Simulated heads, scanners and datasets: what they look like, and what is true about them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from bids_harmony.cli import simulate
from bids_harmony.simulation.atlas import upsample
from bids_harmony.simulation.dataset import plan_subjects, sidecar, simulate_dataset
from bids_harmony.simulation.head import Head, make_head
from bids_harmony.simulation.layers import Tissue
from bids_harmony.simulation.scanner import RELAXATION, Scanner, draw_scanner, scan_head

SMALL = {"n_sites": 2, "n_subjects": 2, "seed": 7, "resolution": 3.0}


def digests(folder: Path) -> dict[str, str]:
    """Hash of each file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def validator_errors(folder: Path, tmp_path: Path) -> list[dict]:
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    assert program, "bids-validator-deno is part of the test requirements"
    report = tmp_path / "validator.json"
    command = [program, str(folder), "--format", "json", "--ignoreWarnings", "-o", str(report)]
    subprocess.run(command, check=False, capture_output=True, timeout=120)
    issues = json.loads(report.read_text())["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "bids"
    simulate_dataset(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def travelling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "travelling"
    simulate_dataset(out, **{**SMALL, "n_subjects": 1}, travelling=True, stripped_sites=[2])
    return out


@pytest.fixture(scope="module")
def head() -> Head:
    return make_head(3, age=45, spacing=2)


def test_the_dataset_and_its_truth_are_valid_bids(small: Path, tmp_path: Path) -> None:
    assert validator_errors(small, tmp_path) == []
    assert validator_errors(small / "derivatives" / "truth", tmp_path) == []


def test_travelling_is_valid_bids(travelling: Path, tmp_path: Path) -> None:
    assert validator_errors(travelling, tmp_path) == []
    assert validator_errors(travelling / "derivatives" / "truth", tmp_path) == []


def test_the_validator_would_notice(small: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(small, tmp_path / "broken")
    (broken / "dataset_description.json").write_text("{}")
    assert validator_errors(broken, tmp_path)


def test_same_seed_same_bytes_whatever_the_number_of_processes(
    small: Path, tmp_path: Path
) -> None:
    simulate_dataset(tmp_path / "again", **SMALL, nprocs=2)
    assert digests(tmp_path / "again") == digests(small)


def test_another_seed_makes_other_scans(small: Path, tmp_path: Path) -> None:
    simulate_dataset(tmp_path / "other", **{**SMALL, "seed": 8, "n_subjects": 1, "n_sites": 1})
    scan = Path("sub-01/anat/sub-01_T1w.nii.gz")
    other = np.asarray(nib.load(tmp_path / "other" / scan).dataobj)
    assert not np.array_equal(other, np.asarray(nib.load(small / scan).dataobj))


def test_tables_agree_and_say_that_all_is_simulated(small: Path) -> None:
    people = pd.read_csv(small / "participants.tsv", sep="\t")
    truth = pd.read_csv(small / "derivatives" / "truth" / "participants.tsv", sep="\t")
    sites = pd.read_csv(small / "derivatives" / "truth" / "sites.tsv", sep="\t")
    shared = ["participant_id", "age", "sex", "site", "diagnosis"]
    assert list(people.columns) == shared
    pd.testing.assert_frame_equal(people, truth[shared])
    assert list(sites["site"]) == sorted(set(people["site"])) == ["site1", "site2"]
    assert set(people["diagnosis"]) == {"control", "schizophrenia"}
    total = truth["gm_ml"] + truth["wm_ml"] + truth["csf_ml"]
    np.testing.assert_allclose(total, truth["brain_ml"], atol=0.01)
    assert (truth["ventricle_ml"] < truth["csf_ml"]).all()
    described = json.loads((small / "participants.json").read_text())
    assert "imulated" in described["diagnosis"]["Description"]
    assert "no person was scanned" in (small / "README").read_text()
    for path in small.glob("sub-*/anat/*_T1w.json"):
        assert json.loads(path.read_text())["Simulated"] is True


def test_every_scan_has_a_sidecar_of_its_scanner_and_a_mask_of_the_true_volume(
    small: Path,
) -> None:
    truth = pd.read_csv(small / "derivatives" / "truth" / "participants.tsv", sep="\t")
    for row in truth.itertuples():
        stem = f"{row.participant_id}/anat/{row.participant_id}"
        scan = nib.load(small / f"{stem}_T1w.nii.gz")
        mask = nib.load(small / "derivatives" / "truth" / f"{stem}_desc-brain_mask.nii.gz")
        scanner = draw_scanner(7, int(row.site.removeprefix("site")), min_voxel_mm=3.0)
        assert json.loads((small / f"{stem}_T1w.json").read_text()) == sidecar(scanner)
        assert scan.get_data_dtype() == np.int16
        assert "".join(nib.aff2axcodes(scan.affine)) == scanner.orientation
        assert int(scan.header["qform_code"]) == int(scan.header["sform_code"]) == 1
        np.testing.assert_allclose(sorted(scan.header.get_zooms()), sorted(scanner.voxel_mm))
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)
        millilitres = mask.get_fdata().sum() * np.prod(mask.header.get_zooms()) / 1000
        assert millilitres == pytest.approx(row.brain_ml, rel=0.01)


def test_travelling_heads_are_the_same_head_at_every_site(travelling: Path) -> None:
    sessions = pd.read_csv(travelling / "sub-01" / "sub-01_sessions.tsv", sep="\t")
    assert dict(zip(sessions["session_id"], sessions["site"], strict=True)) == {
        "ses-site1": "site1",
        "ses-site2": "site2",
    }
    assert "site" not in pd.read_csv(travelling / "participants.tsv", sep="\t").columns
    masks = sorted((travelling / "derivatives" / "truth").rglob("*_mask.nii.gz"))
    volumes = [
        nib.load(m).get_fdata().sum() * np.prod(nib.load(m).header.get_zooms()) for m in masks
    ]
    assert len(volumes) == 2
    assert volumes[0] == pytest.approx(volumes[1], rel=0.01)


def test_a_stripped_site_has_no_head_around_the_brain(travelling: Path) -> None:
    whole, stripped = (
        np.asarray(nib.load(path).dataobj) for path in sorted(travelling.rglob("*_T1w.nii.gz"))
    )
    truth = travelling / "derivatives" / "truth"
    mask = np.asarray(nib.load(next(truth.rglob("*site2*_mask.nii.gz"))).dataobj) > 0
    assert not stripped[~mask].any()
    assert (stripped[mask] > 0).mean() > 0.99
    assert (whole > 0).mean() > 0.9


def test_ventricles_grow_and_cortex_thins_with_age() -> None:
    truths = [make_head(11, age=age, spacing=2).truth for age in (20, 40, 60, 80)]
    table = pd.DataFrame(truths)
    assert table["ventricle_ml"].is_monotonic_increasing
    assert table["ventricle_ml"].iloc[-1] > 1.5 * table["ventricle_ml"].iloc[0]
    assert table["gm_ml"].is_monotonic_decreasing
    assert 0.80 < table["gm_ml"].iloc[-1] / table["gm_ml"].iloc[0] < 0.92
    # The skull does not age.
    np.testing.assert_allclose(table["brain_ml"], table["brain_ml"].iloc[0], rtol=0.002)


def test_the_diagnosis_widens_ventricles_and_thins_cortex() -> None:
    well, ill = (
        make_head(12, age=40, diagnosis=diagnosis, spacing=2)
        for diagnosis in ("control", "schizophrenia")
    )
    assert ill.truth["ventricle_ml"] > 1.1 * well.truth["ventricle_ml"]
    assert ill.truth["gm_ml"] < 0.995 * well.truth["gm_ml"]


def test_heads_of_different_seeds_differ_in_shape(head: Head) -> None:
    other = make_head(4, age=45, spacing=2)
    a, b = head.brain_mask, other.brain_mask
    assert 0.80 < 2 * (a & b).sum() / (a.sum() + b.sum()) < 0.985


def test_a_coarse_head_is_the_fine_head(head: Head) -> None:
    fine = make_head(3, age=45)
    assert fine.labels.shape == tuple(2 * n - 1 for n in head.labels.shape)
    np.testing.assert_array_equal(fine.labels[::2, ::2, ::2], head.labels)
    for name in ("brain_ml", "gm_ml", "wm_ml", "csf_ml", "ventricle_ml"):
        assert fine.truth[name] == pytest.approx(head.truth[name], rel=0.02)


def test_fractions_fill_the_brain_and_nothing_else(head: Head) -> None:
    total = sum(head.tissue(name) for name in ("gm", "wm", "csf"))
    np.testing.assert_allclose(total[head.brain_mask], 1, atol=1e-5)
    assert not total[~head.brain_mask].any()


def test_a_head_is_wrapped_in_fluid_bone_and_skin(head: Head) -> None:
    """Walking upwards from the brain's middle meets them in this order."""
    x, y, z = (int(c.mean()) for c in np.nonzero(head.brain_mask))
    up = head.labels[x, y, z:]
    runs = [Tissue(int(up[0]))]
    runs += [Tissue(int(b)) for a, b in itertools.pairwise(up) if a != b]
    assert runs[0] is Tissue.BRAIN
    assert runs[-2:] == [Tissue.SKIN, Tissue.AIR]
    assert Tissue.BONE in runs
    assert Tissue.FAT in runs
    assert runs.index(Tissue.BONE) < runs.index(Tissue.FAT)


@pytest.mark.parametrize("site", [1, 2, 3, 4])
def test_contrast_is_that_of_t1w(head: Head, site: int) -> None:
    scanner = dataclasses.replace(
        draw_scanner(1, site), voxel_mm=(2.0, 2.0, 2.0), tilt_deg=0.0, orientation="RAS"
    )
    signals = {name: scanner.signal(name) for name in RELAXATION}
    assert signals["fat"] > signals["wm"] == 1.0 > signals["gm"] > abs(signals["csf"])
    assert 0.5 < signals["gm"] < 0.9
    assert signals["bone"] < 0.1
    scan, mask = scan_head(head, scanner, 1)
    data, inside = np.asarray(scan.dataobj), np.asarray(mask.dataobj) > 0
    corner = data[:6, :6, :6]
    assert 0 < corner.mean() < 0.2 * np.median(data[inside])
    deep = ndimage.binary_erosion(inside, iterations=8)
    assert np.median(data[deep]) > 0.5 * scanner.wm_level


def test_noise_in_air_is_rayleigh(head: Head) -> None:
    scanner = dataclasses.replace(draw_scanner(1, 1), wm_level=5000.0, noise=0.05, blur_mm=0.5)
    data = np.asarray(scan_head(head, scanner, 1)[0].dataobj)
    corner = data[:10, -12:, -12:].astype(float)
    assert corner.mean() / corner.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.05)


def test_signal_equation_agrees_with_a_pulse_by_pulse_simulation() -> None:
    scanner = draw_scanner(2, 3)
    for tissue in ("wm", "gm", "csf", "fat"):
        assert scanner.signal(tissue) == pytest.approx(
            bloch(scanner, tissue) / bloch(scanner, "wm"), rel=1e-6
        )


def bloch(scanner: Scanner, tissue: str) -> float:
    """Follow the longitudinal magnetisation through inversions and pulses to steady state."""
    high = scanner.field_strength > 2
    t1_low, t1_high, t2_low, t2_high, density = RELAXATION[tissue]
    t1, t2 = (t1_high, t2_high) if high else (t1_low, t2_low)
    angle = np.deg2rad(scanner.flip_deg)
    half = scanner.train // 2
    first = scanner.inversion_ms - half * scanner.spacing_ms
    rest = scanner.repetition_ms - first - scanner.train * scanner.spacing_ms
    m, seen = 1.0, 0.0
    for _ in range(60):
        m = 1 - (1 + m) * np.exp(-first / t1)
        for pulse in range(scanner.train):
            if pulse == half:
                seen = m * np.sin(angle)
            m = 1 - (1 - m * np.cos(angle)) * np.exp(-scanner.spacing_ms / t1)
        m = 1 - (1 - m) * np.exp(-rest / t1)
    return float(density * seen * np.exp(-scanner.echo_ms / t2))


def test_scanners_differ_and_do_not_depend_on_each_other() -> None:
    scanners = [draw_scanner(5, site) for site in range(1, 7)]
    assert scanners[0].voxel_mm == (1.0, 1.0, 1.0)
    assert not scanners[0].stripped
    assert len({s.voxel_mm for s in scanners}) >= 5
    assert len({s.wm_level for s in scanners}) == len({s.bias for s in scanners}) == 6
    assert draw_scanner(5, 3) == scanners[2] != draw_scanner(6, 3)
    for scanner in scanners:  # the readout train fits between inversions
        late = (scanner.train - scanner.train // 2) * scanner.spacing_ms
        assert scanner.inversion_ms > scanner.train // 2 * scanner.spacing_ms
        assert scanner.repetition_ms > scanner.inversion_ms + late


def test_ages_cover_the_range_and_groups_are_balanced_at_every_site() -> None:
    scanners = [draw_scanner(5, site) for site in (1, 2)]
    subjects = plan_subjects(scanners, 20, seed=5, travelling=False)
    assert len({s.label for s in subjects}) == 40
    for scanner in scanners:
        here = [s for s in subjects if s.scanners == (scanner,)]
        ages = sorted(s.age for s in here)
        assert ages[0] < 23
        assert ages[-1] > 80
        assert max(np.diff(ages)) < 7
        for field, value in (("diagnosis", "control"), ("sex", "M")):
            assert sum(getattr(s, field) == value for s in here) == 10
    more = plan_subjects([*scanners, draw_scanner(5, 3)], 20, seed=5, travelling=False)
    assert more[:40] == subjects


def test_upsample_is_linear_interpolation() -> None:
    values = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    places = np.meshgrid(*[np.arange(2 * n - 1) / 2 for n in values.shape], indexing="ij")
    expected = ndimage.map_coordinates(values, places, order=1)
    np.testing.assert_allclose(upsample(values), expected, atol=1e-6)


@pytest.mark.slow
def test_deepbet_finds_the_true_brain_and_it_registers(tmp_path: Path) -> None:
    """At 1 mm with skull and scalp, as the demo's first site (a prototype reached 0.97)."""
    from bids_harmony.anat.affine import register_affine, resample
    from bids_harmony.anat.brain import deepbet_mask, dice
    from bids_harmony.anat.template import load_template

    scan, mask = scan_head(make_head(21, age=60), draw_scanner(3, 1), 1)
    truth = np.asarray(mask.dataobj) > 0
    found = deepbet_mask(scan)
    assert dice(found, truth) >= 0.95
    brain = nib.Nifti1Image(np.asarray(scan.dataobj) * found, scan.affine)
    template = load_template(2)
    transform = register_affine(brain, template.t1w, tmp_path / "affine.txt")
    outline = nib.Nifti1Image(truth.astype(np.float32), scan.affine)
    moved = np.asarray(resample(outline, template.t1w, transform).dataobj) > 0.5
    assert dice(moved, template.mask) > 0.93


def test_command_writes_a_dataset_and_says_what_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bids"
    argv = [str(out), "--sites", "1", "--subjects", "1", "--resolution", "4", "--nprocs", "1"]
    assert simulate.main(argv) == 0
    said = capsys.readouterr().out
    assert "[1/1] sub-01" in said
    assert f"bids_harmony {out} {out / 'derivatives' / 'bids_harmony'} participant" in said
    before = digests(out)

    assert simulate.main(argv) == 2
    complaint = capsys.readouterr().err
    assert "is not empty" in complaint
    assert "--overwrite" in complaint
    assert digests(out) == before

    kept = out / "derivatives" / "bids_harmony" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("a result")
    (out / "sub-99").mkdir()
    assert simulate.main([*argv, "--overwrite"]) == 0
    assert digests(out) == before | {str(kept.relative_to(out)): digests(kept.parent)["kept.txt"]}
    assert not (out / "sub-99").exists()


def test_overwrite_replaces_nothing_but_simulated_datasets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset_description.json").write_text('{"Name": "real"}')
    (tmp_path / "sub-01").mkdir()
    assert simulate.main([str(tmp_path), "--overwrite"]) == 2
    assert "did not write" in capsys.readouterr().err
    assert (tmp_path / "sub-01").is_dir()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--sites", "0"],
        ["--subjects", "-1"],
        ["--seed", "-1"],
        ["--resolution", "9"],
        ["--resolution", "nan"],
        ["--stripped-sites", "4"],
        ["--nprocs", "0"],
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    out = tmp_path / "bids"
    assert simulate.main([str(out), *wrong]) == 2
    assert wrong[1] in capsys.readouterr().err
    assert not out.exists()


def test_an_output_that_cannot_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert simulate.main([str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_help_is_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        simulate.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for title in ("Size:", "What is simulated:", "Running:"):
        assert title in said
