"""The anatomy guard: what passes, what fails, and what a run does with the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from random_bundle import GUARD, made_calibration, write_random_bundle
from scipy import ndimage

from bids_harmony.anat.affine import write_affine
from bids_harmony.anat.template import load_template
from bids_harmony.bids.outputs import scans_row
from bids_harmony.bids.records import scan_record
from bids_harmony.interfaces.models import Harmonize
from bids_harmony.models.bundle import load_bundle
from bids_harmony.qc.guard import (
    CENTRAL_MM,
    FAIL_FACTOR,
    MEASURES,
    guard_record,
    limits,
    measure,
    tissue_limits,
    tissue_ml,
)
from bids_harmony.reports.participant import participant_page, scan_view

TEMPLATE = load_template(2)
AFFINE = TEMPLATE.t1w.affine
#: From quantiles of a site's deep voxels to the reference's, as far apart as real sites lie.
SITE, REFERENCE = (0, 0.18, 0.43, 0.53, 0.63, 0.73, 0.84, 1.0, 1.12), (
    0, 0.14, 0.48, 0.6, 0.7, 0.8, 0.9, 1.01, 1.08,
)  # fmt: skip


@pytest.fixture(scope="module")
def brain() -> tuple[np.ndarray, np.ndarray]:
    """Return a scaled brain made of the template's own tissue maps, and its mask."""
    v = 0.55 * TEMPLATE.tissues["gm"] + TEMPLATE.tissues["wm"]
    v = v + 0.02 * np.random.default_rng(0).standard_normal(v.shape)
    return np.where(TEMPLATE.mask, np.clip(v, 1e-3, 2), 0).astype(np.float32), TEMPLATE.mask


def remapped(v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    # Beyond the last the curve keeps its distance, as a site's does.
    x, y = np.append(SITE, SITE[-1] + 10), np.append(REFERENCE, REFERENCE[-1] + 10)
    return np.where(mask, np.interp(v, x, y), 0)


def central(mask: np.ndarray) -> np.ndarray:
    mm = [AFFINE[a, 3] + AFFINE[a, a] * np.arange(n) for a, n in enumerate(mask.shape)]
    inside = [(m >= lo) & (m <= hi) for m, (lo, hi) in zip(mm, CENTRAL_MM, strict=True)]
    return mask & inside[0][:, None, None] & inside[1][:, None] & inside[2]


def wider_ventricles(v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Paint a tenth more of ventricles, at their border."""
    box = central(mask)
    csf = box & (v < tissue_limits(v, mask, AFFINE)[2])
    shell = np.flatnonzero(ndimage.binary_dilation(csf) & box & ~csf)
    more = np.random.default_rng(0).choice(shell, round(0.1 * csf.sum()), replace=False)
    new = v.copy()
    new.flat[more] = 0.02
    return new


def thinner_cortex(v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Turn the cortex' outmost voxels to CSF."""
    dark, bright, _ = tissue_limits(v, mask, AFFINE)
    grey = mask & (v >= dark) & (v < bright)
    return np.where(grey & ndimage.binary_dilation(~mask | (v < dark)), 0.02, v)


def lesion(v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Put a hole 16 mm wide into the white matter of one side."""
    depth = ndimage.distance_transform_edt(v > 0.85)
    depth[: v.shape[0] // 2] = 0
    middle = np.array(np.unravel_index(depth.argmax(), v.shape))
    far = np.sqrt(((np.indices(v.shape).T - middle) ** 2).sum(axis=-1)).T
    return np.where(mask & (far < 4), 0.1, v)


def smoothed_hemisphere(v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    weight = np.maximum(ndimage.gaussian_filter(mask.astype(float), 2), 1e-3)
    half = v.shape[0] // 2
    new = v.copy()
    new[:half] = np.where(mask, ndimage.gaussian_filter(v, 2) / weight, 0)[:half]
    return new


DAMAGE = (wider_ventricles, thinner_cortex, lesion, smoothed_hemisphere)


def status(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> str:
    """Judge by the limits of the bundle that is shipped."""
    found = guard_record(measure(before, after, mask, AFFINE), load_bundle().guard())
    return str(found["status"])


def test_a_site_s_intensity_mapping_passes(brain: tuple[np.ndarray, np.ndarray]) -> None:
    v, mask = brain
    assert status(v, v, mask) == "pass"
    assert np.abs(remapped(v, mask) - v)[mask].mean() > 0.03
    assert status(v, remapped(v, mask), mask) == "pass"


@pytest.mark.parametrize("damage", DAMAGE)
def test_changed_anatomy_fails_under_any_intensity_mapping(
    brain: tuple[np.ndarray, np.ndarray], damage: Callable[..., np.ndarray]
) -> None:
    v, mask = brain
    assert status(v, damage(v, mask), mask) == "fail"
    assert status(v, remapped(damage(v, mask), mask), mask) == "fail"


def test_volumes_are_those_of_the_shapes() -> None:
    points = apply_affine(AFFINE, np.moveaxis(np.indices(TEMPLATE.mask.shape), 0, -1))
    r = np.linalg.norm(points - (0, -14, 12), axis=-1)
    volume, mask = np.select([r < 14, r < 52, r < 60], [0.02, 1.0, 0.55], 0.0), r < 60
    flipped = AFFINE @ np.diag([-1, 1, 1, 1])
    flipped[0, 3] += AFFINE[0, 0] * (mask.shape[0] - 1)
    balls = [4 / 3 * np.pi / 1000 * radius**3 for radius in (14, 52, 60)]
    wanted = [balls[0], balls[2] - balls[1], balls[1] - balls[0], balls[0]]
    for step, affine in ((1, AFFINE), (-1, flipped)):  # of the first axis
        found = tissue_ml(volume[::step], mask[::step], affine, np.array([0.27, 0.77, 0.3]))
        assert found == pytest.approx(wanted, rel=0.05)


def test_limits_are_the_99th_percentile_of_known_errors() -> None:
    rows = [{"harmonized_csf_change": 0.001 * (-1) ** i * i} for i in range(200)]
    found = limits(rows)
    assert found == {"harmonized_csf_change": {"limit": 0.198, "n": 200}}
    # One odd scan of a few sets no limit.
    few = [*rows[:40], {"harmonized_csf_change": 0.5}]
    assert limits(few)["harmonized_csf_change"]["limit"] == pytest.approx(0.036 * 1.566, rel=1e-3)
    assert limits([]) == {}


@given(st.dictionaries(st.sampled_from(MEASURES), st.none() | st.floats(-3, 3)))
def test_a_verdict_is_fail_only_beyond_twice_a_limit(metrics: dict[str, float | None]) -> None:
    over = [
        abs(value) / GUARD["limits"][name]["limit"]
        for name, value in metrics.items()
        if value is not None
    ]
    worst = max(over, default=0.0)
    found = guard_record(metrics, GUARD)
    assert found["status"] == ("fail" if worst > FAIL_FACTOR else "warn" if worst > 1 else "pass")
    assert len(found["reasons"]) == len(found["flagged"]) == sum(o > 1 for o in over)


def test_the_node_measures_and_judges(
    brain: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    v, mask = brain
    bundle = write_random_bundle(tmp_path / "bundle")
    preproc, mask_file = (str(tmp_path / f"{name}.nii.gz") for name in ("preproc", "mask"))
    for path, data in ((preproc, v), (mask_file, mask.astype(np.uint8))):
        nib.save(nib.Nifti1Image(data, AFFINE), path)
    node = Harmonize(
        in_file=preproc, in_mask=mask_file, in_xfm=write_affine(np.eye(4), tmp_path / "a.txt"),
        metrics={"snr": 1.0}, bundle=str(bundle.path), site="SRC", native=True,
        calibration=made_calibration(bundle).to_dict(), prefix=str(tmp_path / "sub-01"),
    )  # fmt: skip
    judged = node.run(cwd=str(tmp_path)).outputs
    np.testing.assert_allclose(
        *(nib.load(file).get_fdata() for file in (judged.native_file, judged.out_file)), atol=1e-3
    )
    drawn = {path.name.split("_desc-")[1] for path in tmp_path.glob("*.png")}
    assert drawn == {f"{name}_T1w.png" for name in ("harmonized", "histogram", "predictions")}
    assert set(MEASURES) < set(judged.metrics)
    assert judged.metrics["snr"] == 1.0
    assert judged.metrics["raw_gm_ml"] > 500
    assert judged.metrics["reference_distance_raw"] > 0
    assert judged.guard["status"] == "pass"
    assert set(judged.guard["limits"]) == set(MEASURES)


def test_record_table_and_report_say_what_the_guard_found(tmp_path: Path) -> None:
    metrics = {"harmonized_ventricle_change": -0.3, "harmonized_change": 0.01}
    found = guard_record(metrics, GUARD)
    parts = {
        "check": {}, "mask": {}, "scale": {}, "metrics": metrics, "descriptors": {},
        "outputs": [
            "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
            "sub-01/anat/sub-01_desc-harmony_predictions.json",
        ],
    }  # fmt: skip
    facts = {"name": "sub-01", "site": "S", "age": 48.0, "warnings": []}
    record = scan_record(facts, guard=found, **parts)
    assert record["status"] == "warn"
    assert record["reasons"][0].endswith(" is -30.0 %, more than 2 times the limit of 3.0 %")
    assert record["flagged"] == ["harmonized_ventricle_change"]
    predictions = {
        "brain_age": {
            "raw": 50.0, "harmonized": None, "gap_raw": 2.0, "gap_harmonized": None,
            "interval_90": [40.0, 60.0], "interval_90_raw": [40.0, 60.0],
        }
    }  # fmt: skip
    (tmp_path / "sub-01_desc-harmony_qc.json").write_text(json.dumps(record))
    (tmp_path / "sub-01_desc-harmony_predictions.json").write_text(json.dumps(predictions))
    row = scans_row(tmp_path / "sub-01_desc-harmony_qc.json")
    assert row is not None
    assert row["harmonization_status"] == "fail"
    assert row["brain_age_gap"] == "2.0"
    assert row["brain_age_harmonized_low"] == "n/a"
    page = participant_page("01", [scan_view("sub-01", record, predictions)])
    assert "<strong>50.0</strong>" in page
    assert "+2.0" in page
    assert "was not used" in page
    assert "-30.0 %" in page
    without = scan_record(facts, **parts)
    assert without["status"] == "pass"
    page = participant_page("01", [scan_view("sub-01", without, {})])
    assert "Anatomy guard" not in page
    assert guard_record(metrics, None)["status"] is None
