"""Which scans of a dataset are flagged, and that good ones are left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_scans import TYPICAL, made_metrics, made_row, made_site, outliers_of

from bids_harmony.qc.outliers import MAX_SIZE, site_norms
from bids_harmony.qc.reference import reference_statistics


def odd(site: str = "A", scan: str = "sub-odd", seed: int = 7, **values: float | None):
    return made_row(scan, site, made_metrics(np.random.default_rng(seed), **values))


@pytest.fixture(scope="module")
def reference():
    rng = np.random.default_rng(3)
    return reference_statistics({s: [made_metrics(rng) for _ in range(60)] for s in "XY"})


@pytest.mark.parametrize("n", [40, 120])
def test_few_good_scans_are_flagged(n: int) -> None:
    rows = [row for s in range(5) for row in made_site(f"S{s}", n, seed=s, snr_wm=2.0 * s)]
    assert len(outliers_of(rows).flags) <= 0.03 * len(rows)


def test_a_median_of_few_scans_is_unsure() -> None:
    few = pd.DataFrame({"snr_wm": np.random.default_rng(0).normal(size=8)})
    many = pd.concat([few] * 10, ignore_index=True)
    z = [site_norms(v, pd.Series("A", index=v.index), None).z[:8] for v in (few, many)]
    np.testing.assert_allclose(z[1] / z[0], np.sqrt((1 + np.pi / 16) / (1 + np.pi / 160)))


def test_a_small_site_whose_scans_are_all_off_the_common_course_flags_none() -> None:
    rng = np.random.default_rng(0)

    def course(n: int, own: float) -> list[dict[str, float | None]]:
        """Metrics that follow one cause, but for their own part."""
        cause = rng.standard_normal(n)
        return [
            {k: m + s * (x + own * rng.standard_normal()) for k, (m, s) in TYPICAL.items()}
            for x in cause
        ]

    rows = [made_row(f"sub-A{i}", "A", values) for i, values in enumerate(course(120, 0.2))]
    rows += [made_row(f"sub-NEW{i}", "NEW", values) for i, values in enumerate(course(8, 0.5))]
    assert not any(key.startswith("sub-NEW") for key in outliers_of(rows).flags)


def test_reasons_say_value_site_and_distance() -> None:
    rows = [*made_site("A", 40), odd(template_ncc=0.5, noise=0.05, snr_wm=40.0)]
    found = outliers_of(rows)
    flags = {flag.metric: flag for flag in found.flags["sub-odd"]}
    assert set(flags) >= {"template_ncc", "noise"}
    assert "snr_wm" not in flags  # the good side
    text = flags["template_ncc"].text
    assert text.startswith("Correlation with the template 0.5 is far below the median of A, 0.7")
    assert "robust z -" in text
    sizes = [flag.size for flag in found.flags["sub-odd"]]
    assert sizes == sorted(sizes, reverse=True)
    assert 1 < sizes[0] <= MAX_SIZE
    assert found.score[-1] == max(found.score) == sizes[0]


@pytest.mark.parametrize("n", [40, 120])
def test_metrics_that_do_not_go_together_are_seen(n: int) -> None:
    # Each metric is within two deviations; their shared cause never does this.
    signs = np.resize([1, -1], len(TYPICAL))
    values = {
        name: middle + 2.2 * spread * sign
        for sign, (name, (middle, spread)) in zip(signs, TYPICAL.items(), strict=True)
    }
    found = outliers_of([*made_site("A", n), odd(**values)])
    (flag,) = found.flags["sub-odd"]
    assert flag.metric == "multivariate"
    assert "the other scans of A (Mahalanobis distance" in flag.text


def test_many_bad_scans_of_a_site_do_not_hide_each_other() -> None:
    rows = [*made_site("A", 28), *made_site("B", 40)]
    rows += [odd("A", f"sub-bad{i}", i, template_dice=0.88, noise=0.04) for i in range(12)]
    found = outliers_of(rows)
    assert {f"sub-bad{i}" for i in range(12)} <= set(found.flags)
    assert len(found.flags) <= 14


def test_a_skewed_metric_flags_few() -> None:
    rng = np.random.default_rng(0)
    rows = [
        made_row(f"sub-{i}", "A", {"centroid_offset_mm": float(rng.gamma(4.0))})
        for i in range(400)
    ]
    assert len(outliers_of(rows).flags) <= 0.03 * len(rows)


def test_a_small_site_leans_on_the_others_and_the_reference(reference) -> None:
    rows = [*made_site("A", 60), *made_site("B", 7, seed=2), odd("B", noise=0.04)]
    assert "noise" in {f.metric for f in outliers_of(rows).flags["sub-odd"]}
    small = rows[60:]
    found = outliers_of(small, reference)
    assert "noise" in {f.metric for f in found.flags["sub-odd"]}
    assert len(found.flags) <= 2


def test_heads_that_a_datasets_other_sites_show_too_are_none(reference) -> None:
    small = [*made_site("B", 2, seed=2), odd("B", brain_volume_ml=2200.0)]
    flagged = {flag.metric for flag in outliers_of(small, reference).flags["sub-odd"]}
    assert flagged == {"brain_volume_ml"}
    large = made_site("A", 60, brain_volume_ml=700.0)
    assert "sub-odd" not in outliers_of([*large, *small], reference).flags
    small[-1] = odd("B", brain_volume_ml=2900.0)
    assert "sub-odd" in outliers_of([*large, *small], reference).flags


def test_a_lone_scan_is_held_against_the_reference(reference) -> None:
    (flag,) = outliers_of([odd(snr_wm=5.0)], reference).flags["sub-odd"]
    assert flag.metric == "snr_wm"
    assert "is below the reference range" in flag.text
    assert outliers_of([odd(snr_wm=5.0)]).flags == {}


def test_what_a_whole_site_shows_is_said_once_and_flags_nobody(reference) -> None:
    found = outliers_of(made_site("NEW", 8, noise=0.02), reference)
    assert len(found.flags) <= 1
    assert any("8 of 8 scans of NEW" in note and "Noise" in note for note in found.notes)


def test_a_large_site_of_bad_registrations_is_still_seen(reference) -> None:
    rows = made_site("A", 30)
    bad = [
        replace(row, values={**row.values, "scan": f"sub-bad{i}", "template_dice": 0.88 + i / 1e4})
        for i, row in enumerate(made_site("A", 14, seed=1))
    ]
    assert {f"sub-bad{i}" for i in range(14)} <= set(outliers_of([*rows, *bad], reference).flags)


def test_failed_scans_and_failed_maps_are_flagged_and_disturb_nobody() -> None:
    rows = made_site("A", 20)
    before = outliers_of(rows)
    failed = made_row("sub-f", "A", {}, "error", error="No brain.")
    guard = replace(rows[0], guard_reasons=("ventricles grew",))
    guard.values["harmonization_status"] = "fail"
    lost = replace(rows[1], problem="The predictions cannot be read")
    found = outliers_of([guard, lost, *rows[2:], failed])
    assert found.flags["sub-f"][0].text == "Processing failed: No brain."
    assert found.score[-1] == MAX_SIZE
    metrics = {scan: {flag.metric for flag in found.flags[scan]} for scan in found.flags}
    assert "guard" in metrics["sub-A000"]
    assert "ventricles grew" in found.flags["sub-A000"][0].text
    assert "predictions" in metrics["sub-A001"]
    assert np.array_equal(found.score[2:20], before.score[2:])


def test_a_metric_that_is_missing_where_others_have_it_is_a_reason() -> None:
    flags = outliers_of([*made_site("A", 20), odd(snr_wm=None)]).flags["sub-odd"]
    assert [f.metric for f in flags] == ["snr_wm"]
    assert "could not be computed" in flags[0].text
    rows = [made_row(f"sub-{i}", "A", {"fber": None}) for i in range(12)]
    assert outliers_of(rows).flags == {}


def test_identical_scans_and_sites_without_numbers_are_no_trouble(reference) -> None:
    metrics = made_metrics(np.random.default_rng(0))
    same = [made_row(f"sub-s{i}", "SAME", metrics) for i in range(12)]
    none = [made_row(f"sub-n{i}", "NONE", dict.fromkeys(metrics)) for i in range(3)]
    for rows in (same, none, [*same, *none], [*made_site("A", 30), *same, *none], []):
        for known in (None, reference):
            found = outliers_of(rows, known)
            assert not {scan for scan in found.flags if scan[:5] in ("sub-s", "sub-n")}
            assert np.isfinite(found.score).all()
