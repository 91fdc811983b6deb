"""The anatomy guard: style, limits, verdicts, and what a run does with them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_bundle import write_random_bundle
from scipy import ndimage

from bids_harmony.interfaces.models import Guard, Harmonize, Predict
from bids_harmony.models.apply import cycle_error, harmonize_volume, model_measures
from bids_harmony.models.bundle import Bundle
from bids_harmony.outputs import scans_row
from bids_harmony.qc.guard import (
    MEASURES,
    calibrate,
    excess,
    guard_record,
    judge_harmonization,
)
from bids_harmony.qc.harmonization import harmonization_metrics, tissue_shares, ventricle_ml
from bids_harmony.qc.record import scan_record
from bids_harmony.qc.style import FEATURES, StyleReference, style_features
from bids_harmony.reports.reportlets import ScanView, render

AFFINE = np.array([[2.0, 0, 0, -98], [0, 2, 0, -134], [0, 0, 2, -72], [0, 0, 0, 1]])
SHAPE = (99, 117, 95)


def brain(
    ventricle_mm: float = 14.0, seed: int = 0, blur: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """Return a ball of white matter with a grey rim and a ventricle, and its mask."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    mm = 2.0 * index + AFFINE[:3, 3][:, None, None, None]
    r = np.sqrt(((mm - np.array([0, -14, 12])[:, None, None, None]) ** 2).sum(axis=0))
    volume = np.select([r < ventricle_mm, r < 52, r < 60], [0.02, 1.0, 0.55], 0.0)
    mask = r < 60
    volume = ndimage.gaussian_filter(volume, blur)
    volume += 0.02 * np.random.default_rng(seed).standard_normal(SHAPE)
    return np.where(mask, np.clip(volume, 1e-3, 2), 0).astype(np.float32), mask


@pytest.fixture(scope="module")
def ball() -> tuple[np.ndarray, np.ndarray]:
    return brain()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_random_bundle(tmp_path_factory.mktemp("guard") / "bundle")


def test_volumes_of_tissue_are_those_of_the_shapes() -> None:
    volume, mask = brain(blur=0.0)
    sphere = 4 / 3 * np.pi / 1000
    assert ventricle_ml(volume, mask, AFFINE) == pytest.approx(sphere * 14**3, rel=0.05)
    fluid, _, white = tissue_shares(volume[mask], (0.275, 0.775))
    assert fluid == pytest.approx((14 / 60) ** 3, rel=0.05)
    assert white == pytest.approx((52**3 - 14**3) / 60**3, rel=0.03)
    flipped = np.diag([-1.0, 1, 1, 1]) @ AFFINE
    assert ventricle_ml(volume[::-1], mask[::-1], AFFINE) == pytest.approx(
        ventricle_ml(volume, mask, flipped), rel=0.05
    )


def test_a_grown_ventricle_fails_and_a_small_change_of_tone_passes(
    ball: tuple[np.ndarray, np.ndarray],
) -> None:
    volume, mask = ball
    limits = calibrate([])
    grown = harmonization_metrics(volume, brain(20.0)[0], mask, AFFINE)
    verdict = judge_harmonization(grown, limits)
    assert verdict.status == "fail"
    assert "harmonized_ventricle_change" in verdict.flagged
    said = next(r for r in verdict.reasons if "entricle" in r)
    assert "+" in said
    assert "the limit is 8.0 %, more than 2 times as far" in said
    toned = np.where(mask, np.interp(volume, [0, 0.55, 1, 2], [0, 0.62, 1, 2]), 0)
    metrics = harmonization_metrics(volume, toned, mask, AFFINE)
    assert judge_harmonization(metrics, limits).status == "pass"


def test_what_a_segmentation_would_find_is_judged_beside_what_the_limits_find() -> None:
    volume, mask = brain(blur=2.0)
    # The limit of fluid stays where it was; the classes' centres do not.
    toned = np.interp(volume, [0, 0.33, 0.55, 1, 2], [0, 0.33, 0.8, 1, 2])
    metrics = harmonization_metrics(volume, np.where(mask, toned, 0), mask, AFFINE)
    assert metrics["harmonized_ventricle_change"] == pytest.approx(0, abs=0.002)
    assert abs(metrics["segmented_ventricle_change"] or 0) > 0.1
    verdict = judge_harmonization(metrics, calibrate([]))
    assert verdict.status == "fail"
    said = " ".join(r for r in verdict.reasons if "segmented anew" in r)
    assert "the limit is 12.0 %" in said
    assert "the limit is at least 0.88" in said


def test_limits_come_from_unseen_scans_within_bounds() -> None:
    rows = [{"harmonized_change": 0.001 * i, "harmonized_edge_agreement": 0.8} for i in range(60)]
    limits = calibrate(rows)
    assert limits["harmonized_change"] == {"limit": 0.059, "calibrated": 0.059, "n": 60}
    # A map that breaks edges on every scan cannot make that the rule.
    assert limits["harmonized_edge_agreement"]["limit"] == 0.06
    assert limits["harmonized_edge_agreement"]["calibrated"] == 0.2
    assert limits["training_distance"] == {"limit": 5.0, "calibrated": None, "n": 0}
    assert json.loads(json.dumps(limits)) == limits


@given(st.dictionaries(st.sampled_from(sorted(MEASURES)), st.none() | st.floats(-3, 3)))
def test_a_verdict_is_fail_only_beyond_twice_a_limit(metrics: dict[str, float | None]) -> None:
    limits = calibrate([])
    over = [
        excess(name, value) / limits[name]["limit"]
        for name, value in metrics.items()
        if value is not None
    ]
    worst = max(over, default=0.0)
    verdict = judge_harmonization(metrics, limits)
    assert verdict.status == ("fail" if worst > 2 else "warn" if worst > 1 else "pass")
    assert len(verdict.reasons) == len(verdict.flagged) == sum(o > 1 for o in over)


def test_style_tells_scanners_apart_whatever_the_anatomy() -> None:
    features, sites = [], []
    for seed in range(4):
        volume, mask = brain(10 + 3 * seed, seed)
        rough = np.random.default_rng(10 + seed).standard_normal(SHAPE)
        for site, other in (
            ("A", volume),
            ("B", np.where(mask, volume**1.3 + 0.05 * rough, 0)),
        ):
            features.append(style_features(other, mask, 2.0))
            sites.append(site)
    style = StyleReference.fit(np.array(features[:-2]), sites[:-2])
    assert len(features[0]) == len(FEATURES)
    assert style.nearest(features[-2])[0] == "A"
    assert style.nearest(features[-1])[0] == "B"
    assert style.nearest(features[-1], ["A"])[1] > 3 * style.nearest(features[-1])[1]
    again = StyleReference.from_dict(json.loads(json.dumps(style.to_dict())))
    assert again.nearest(features[-1])[1] == pytest.approx(
        style.nearest(features[-1])[1], rel=1e-3
    )
    with pytest.raises(ValueError, match="other features"):
        StyleReference.from_dict({**style.to_dict(), "features": ["height"]})


def test_cycle_runs_from_the_scan_s_own_side(
    bundle: Bundle, ball: tuple[np.ndarray, np.ndarray]
) -> None:
    volume, mask = ball
    networks = bundle.networks()
    maps = (networks["harmonizer"][0], networks["backward"][0])
    harmonized = harmonize_volume(bundle, volume, mask, AFFINE)
    change = float(np.abs(harmonized - volume)[mask].mean())
    # The backward map is untrained and so the identity: the cycle leaves the forward change.
    for given_volume in (harmonized, None):
        error = cycle_error(maps, volume, given_volume, mask, AFFINE, bundle.box, 0)
        assert error == pytest.approx(change, rel=1e-4)
    measures, site = model_measures(bundle, volume, harmonized, mask, AFFINE)
    assert measures["harmonized_cycle_error"] == pytest.approx(change, rel=1e-4)
    assert measures["training_distance"] is not None
    assert site in ("REF", "SRC")


def test_nodes_pass_the_verdict_on_and_set_a_failed_scan_aside(
    bundle: Bundle, ball: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    volume, mask = ball
    files = {}
    for name, data in (("raw", volume), ("mask", mask.astype(np.uint8))):
        files[name] = str(tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(data, AFFINE), files[name])
    model = {"bundle": str(bundle.path), "bundle_sha256": bundle.sha256}
    mapped = Harmonize(in_file=files["raw"], in_mask=files["mask"], **model).run(
        cwd=str(tmp_path)
    ).outputs  # fmt: skip
    judged = Guard(
        raw=files["raw"], harmonized=mapped.out_file, in_mask=files["mask"], metrics={"snr": 1.0},
        measures=mapped.measures, nearest_site=mapped.nearest_site, **model,
    ).run(cwd=str(tmp_path)).outputs  # fmt: skip
    assert set(MEASURES) < set(judged.metrics)
    assert judged.metrics["snr"] == 1.0
    # The random bundle's style reference is made up: every real scan is far from it.
    assert judged.guard["status"] == "fail"
    assert "training_distance" in judged.guard["flagged"]
    assert set(judged.guard["limits"]) == set(MEASURES)
    numbers = {}
    for choice in ("flag", "raw"):
        result = Predict(
            raw=files["raw"], harmonized=mapped.out_file, site="SRC", age=40.0,
            guard=judged.guard, on_guard_fail=choice, **model,
        ).run(cwd=str(tmp_path))  # fmt: skip
        numbers[choice] = result.outputs.predictions["brain_age"]
    assert numbers["flag"]["harmonized"] is not None
    assert numbers["raw"]["harmonized"] is None
    assert numbers["raw"]["raw"] == numbers["flag"]["raw"]


def test_record_table_and_report_say_what_the_guard_found(tmp_path: Path) -> None:
    metrics = {"harmonized_ventricle_change": -0.3, "harmonized_change": 0.01}
    found = guard_record(metrics, {"limits": calibrate([])}, "A")
    parts = {
        "check": {}, "mask": {}, "scale": {}, "metrics": metrics,
        "outputs": [
            "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
            "sub-01/anat/sub-01_desc-harmony_predictions.json",
        ],
    }  # fmt: skip
    facts = {"name": "sub-01", "site": "S", "age": 48.0, "warnings": []}
    record = scan_record(facts, guard=found, **parts)
    assert record["status"] == "warn"
    assert any("-30.0 %" in reason for reason in record["reasons"])
    assert "harmonized_ventricle_change" in record["flagged"]
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
    overview = render("overview", [ScanView("scan-1", record, predictions)], "", "")
    assert "<strong>50.0</strong>" in overview
    assert "+2.0" in overview
    page = render("guard", ScanView("scan-1", record, predictions))
    assert "set aside" in page
    assert "-30.0 %" in page
    assert "looks most like\nA" in page
    without = scan_record(facts, **parts)
    assert without["status"] == "pass"
    assert render("guard", ScanView("scan-1", without, {})) == ""
    assert guard_record(metrics, None)["status"] is None
