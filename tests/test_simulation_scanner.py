"""Simulated scanners: contrast, noise, and a brain that is found in their scans."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_harmony.simulation.head import Head, make_head
from bids_harmony.simulation.scanner import RELAXATION, Scanner, draw_scanner, scan_head


@pytest.fixture(scope="module")
def head() -> Head:
    return make_head(3, age=45, spacing=2)


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
