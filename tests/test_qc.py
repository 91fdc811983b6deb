"""QC: metrics react to what they are named for, limits and verdicts say why."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_harmony.anat.template import load_template
from bids_harmony.bids import records
from bids_harmony.errors import ScanError
from bids_harmony.qc import guard, metrics
from bids_harmony.qc import reference as references
from bids_harmony.qc.metrics import fit_tissues

AFFINE = np.array([[2.0, 0, 0, -98], [0, 2, 0, -134], [0, 0, 2, -72], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def template():
    return load_template(2)


@pytest.fixture(scope="module")
def head(template):
    """A T1w-like brain on the template grid: tissue means, blur and noise."""
    rng = np.random.default_rng(0)
    gm, wm = template.tissues["gm"], template.tissues["wm"]
    sharp = np.where(template.mask, 300 + 350 * gm + 700 * wm, 20.0)
    noisy = sharp + rng.normal(0, 15, sharp.shape)
    return np.abs(noisy).astype(np.float32)


def measure(template, image, mask=None, matrix=None):
    mask = template.mask if mask is None else mask
    return metrics.scan_metrics(
        native=nib.Nifti1Image(image, AFFINE),
        native_mask=mask,
        registered=image,
        registered_mask=mask,
        template=template,
        scaled=image / 1000,
        scaled_mask=mask,
        transform=np.eye(3) if matrix is None else matrix,
    )


@pytest.fixture(scope="module")
def good(template, head):
    return measure(template, head)


def test_every_metric_is_described_and_every_description_is_used(template, good, head):
    mapped = guard.measure(head / 1000, head / 900, template.mask, AFFINE)
    mapped |= references.reference_distances(head, head, template.mask, None)
    assert set(good) | set(mapped) == set(references.dictionary())
    assert set(guard.MEASURES) < set(mapped)
    for facts in references.dictionary().values():
        assert set(facts) == {"LongName", "Description", "Units", "Direction", "Group"}
        assert facts["Direction"] in ("higher is better", "lower is better", "neither")


def test_a_lesion_on_one_side_is_an_asymmetry(template, head, good):
    ball = np.zeros(head.shape, bool)
    ball[70:82, 60:72, 45:57] = True  # 14 ml
    assert measure(template, np.where(ball, 350, head))["asymmetry"] > 1.5 * good["asymmetry"]
    assert measure(template, head, mask=np.zeros_like(template.mask))["asymmetry"] is None
    mirrored = measure(template, head[::-1], mask=template.mask[::-1])
    assert mirrored["asymmetry"] == pytest.approx(good["asymmetry"], rel=1e-3)


def test_an_image_on_the_templates_grid_has_its_volume_and_geometry(template, head, good):
    assert good["brain_volume_ml"] == pytest.approx(template.mask.sum() * 8 / 1000, rel=1e-4)
    assert good["affine_determinant"] == good["template_dice"] == 1
    assert good["affine_rotation_deg"] == pytest.approx(0, abs=1e-5)
    assert good["centroid_offset_mm"] == 0
    assert json.dumps(measure(template, head)) == json.dumps(good)  # plain, and repeatable
    assert all(type(v) is float for v in good.values())


def test_affine_metrics_recover_a_known_affine(tmp_path):
    rotation = Rotation.from_euler("xyz", [20, 0, 0], degrees=True).as_matrix()
    symmetric = np.array([[0.9, 0.02, 0], [0.02, 1.1, 0.05], [0, 0.05, 0.8]])
    numbers = " ".join(f"{x:.17g}" for x in (rotation @ symmetric).ravel())
    (tmp_path / "x.txt").write_text(f"#Insight\nParameters: {numbers} 10 11 12\n")
    found = metrics.affine_metrics(metrics.read_itk_matrix(tmp_path / "x.txt"))
    assert found["affine_scale_y"] == pytest.approx(1.1)
    assert found["affine_shear_yz"] == pytest.approx(0.05)
    assert found["affine_rotation_deg"] == pytest.approx(20)
    assert found["affine_determinant"] == pytest.approx(np.linalg.det(symmetric))


def test_noise_blur_bias_and_spikes_move_the_metric_named_for_them(template, head, good):
    rng = np.random.default_rng(1)
    noisy = measure(template, np.abs(head + rng.normal(0, 60, head.shape)).astype(np.float32))
    assert noisy["noise"] > 2 * good["noise"]
    assert noisy["cnr"] < good["cnr"]
    assert noisy["cjv"] > good["cjv"]
    blurred = measure(template, ndimage.gaussian_filter(head, 1.5))
    assert blurred["sharpness"] < 0.8 * good["sharpness"]
    ramp = np.linspace(0.7, 1.3, head.shape[1], dtype=np.float32)[None, :, None]
    biased = measure(template, head * ramp)
    assert biased["bias_range"] > good["bias_range"] + 0.2
    spiked = head.copy()
    spiked[:, :, 40] *= 1.5
    assert measure(template, spiked)["slice_jump"] > 3 * good["slice_jump"]


def test_bias_field_is_removed_before_tissues_are_measured(template, head):
    ramp = np.linspace(0.75, 1.25, head.shape[1], dtype=np.float32)[None, :, None]
    plain, biased = (fit_tissues(image, template.mask) for image in (head, head * ramp))
    within = np.broadcast_to(ramp, head.shape)[template.mask]
    true_range = np.subtract(*np.percentile(within, [99, 1])) / np.median(within)
    assert biased.bias_range == pytest.approx(true_range, abs=0.08)
    assert plain.bias_range < 0.12
    np.testing.assert_allclose(biased.fraction, plain.fraction, atol=0.06)


def test_degenerate_input_gives_none_not_a_crash(template, head, good):
    empty = np.zeros(template.mask.shape, bool)
    values = measure(template, np.zeros(template.mask.shape, np.float32), empty)
    assert values["template_dice"] == 0
    assert values["template_ncc"] is None
    assert values["efc"] is None
    with pytest.raises(ScanError, match="could not be computed"):
        references.check_registration(values, "sub-01")
    flat = measure(template, np.ones(template.mask.shape, np.float32))
    assert flat["cnr"] is None or np.isfinite(flat["cnr"])
    assert good["fber"] > 100
    assert measure(template, np.where(template.mask, head, 0))["fber"] is None  # zeroed air


BROKEN = {
    "shifted by 2 cm": lambda x: ndimage.shift(x, (0, 10, 0), order=1),
    "turned by 90 degrees": lambda x: ndimage.rotate(x, 90, (1, 2), reshape=False, order=1),
    "upside down": lambda x: x[:, :, ::-1],
}


@pytest.mark.parametrize("breakage", BROKEN)
def test_a_broken_registration_is_seen(template, head, good, breakage):
    images = (head * template.mask, template.mask)
    brain, mask = (BROKEN[breakage](x.astype(np.float32)) for x in images)
    values = measure(template, brain, mask > 0.5)
    with pytest.raises(ScanError, match="sub-01 to the template failed: Correlation with"):
        references.check_registration(values, "sub-01")
    references.check_registration(good, "sub-01")


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.diag([-1, 1, 1]), "Affine determinant is -1.00, below the limit of 0.30"),
        (np.diag([0.5, 1, 1]), "Head size, left-right is 0.50"),
        (np.eye(3) * 1.5, "Head size, bottom-top is 1.50"),
    ],
)
def test_impossible_affines_are_refused(template, head, matrix, words):
    values = measure(template, head, matrix=matrix)
    with pytest.raises(ScanError, match=words):
        references.check_registration(values, "sub-01")


@pytest.fixture
def reference():
    rng = np.random.default_rng(2)
    rows = [
        {"brain_volume_ml": v, "snr_wm": s, "efc": None}
        for v, s in zip(rng.normal(1400, 100, 200), rng.normal(12, 1, 200), strict=True)
    ]
    return references.reference_statistics({"A": rows[:100], "B": rows[100:]})


def test_reference_statistics_by_site_and_over_all(reference):
    assert reference["all"]["brain_volume_ml"]["n"] == 200
    assert reference["sites"]["A"]["snr_wm"]["n"] == 100
    assert reference["all"]["brain_volume_ml"]["median"] == pytest.approx(1400, rel=0.02)
    assert "efc" not in reference["all"]


def test_verdict_names_what_is_out_of_range_on_its_bad_side(reference):
    def flagged(known=reference, **values):
        return list(references.out_of_range(values, known))

    assert flagged(brain_volume_ml=1400.0, snr_wm=12.0) == flagged(snr_wm=40.0) == []
    assert flagged(snr_wm=2.0) == ["snr_wm"]
    few = references.reference_statistics({"A": [{"snr_wm": 12.0 + i} for i in range(5)]})
    assert flagged(few, snr_wm=0.1) == flagged(None, snr_wm=0.1) == []
    found = references.out_of_range({"brain_volume_ml": 870.0, "snr_wm": None}, reference)
    assert list(found) == ["brain_volume_ml"]
    assert found["brain_volume_ml"].startswith(
        "Brain volume 870 mL is below the reference range 1"
    )
    assert found["brain_volume_ml"].endswith(" mL")


def test_histogram_distance_is_the_shift_of_a_shifted_histogram(template):
    mask = np.ones((40, 40, 40), bool)
    rng = np.random.default_rng(3)
    values = rng.uniform(0.2, 0.8, mask.shape)
    a, b = (references.brain_histogram(v, mask) for v in (values, values + 0.3))
    assert references.histogram_distance(a, b) == pytest.approx(0.3, abs=0.01)
    both = references.mean_histogram([a, b])
    assert references.histogram_distance(a, both) == pytest.approx(0.15, abs=0.01)


FACTS = {"name": "sub-01", "site": "A", "warnings": ["no sidecar"], "bundle": None}


def test_records_of_finished_and_failed_scans():
    done = records.scan_record(
        FACTS,
        check={"notes": ["a"]},
        mask={"method": "bet", "notes": ["b"]},
        affine={"method": "flirt", "tool": "FSL", "notes": ["c"]},
        scale={},
        metrics={"brain_volume_ml": 870.0},
        descriptors={"quantiles": [0.5]},
        reasons=["Brain volume"],
        flagged=["brain_volume_ml"],
        outputs=["b", "a"],
    )
    assert (done["status"], done["flagged"]) == ("warn", ["brain_volume_ml"])
    assert done["outputs"] == ["a", "b"]
    assert done["warnings"] == ["no sidecar", "a", "b", "c"]
    assert done["affine"]["tool"] == "FSL"
    assert FACTS["warnings"] == ["no sidecar"]
    failed = records.failed_record(FACTS, "It broke.", "Mend it.", "crash-1.txt")
    assert failed["status"] == "error"
    error = {"cause": "It broke.", "remedy": "Mend it.", "crash_file": "crash-1.txt"}
    assert failed["error"] == error
    json.dumps([done, failed], allow_nan=False)
