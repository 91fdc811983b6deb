"""The person is the unit of training: splits, folds, probes, figures and intervals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_heads import people, table

from bids_harmony.config import TrainOptions
from bids_harmony.errors import NoInputError, UsageError
from bids_harmony.training.data import (
    TrainingRun,
    TrainScan,
    scan_table,
    without_copies,
    without_rejected,
)
from bids_harmony.training.predictor import PREDICTORS
from bids_harmony.training.predictors import empirical_half_width, plan_ensemble
from bids_harmony.training.targets import Target, figures

HERE = Path("nowhere")


def scan(subject: str, site: str = "A", name: str = "", **more: object) -> TrainScan:
    t1w = HERE / f"sub-{subject}{name}_T1w.nii.gz"
    return TrainScan(subject, site, t1w, HERE / "mask.nii.gz", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["person", "Person_ID"])
def test_the_datasets_column_names_persons(column: str) -> None:
    scans = [scan("01", columns={column: "07"}), scan("02", columns={column: "sub-07"}),
             scan("03"), scan("04", columns={column: "03"})]  # fmt: skip
    rows = scan_table(scans)
    data = people(rows)
    assert data.persons.tolist() == ["07", "07", "03", "03"]
    assert people(scan_table([scan("01"), scan("02")])).persons.tolist() == ["01", "02"]
    # Codes for no value make no one person of all whom they stand for.
    assert [scan("01", columns={column: cell}).person for cell in ("-9", "-999.0")] == [None] * 2


def test_a_person_who_falls_ill_is_in_one_fold() -> None:
    rows = table({"REF": [30.0 + i for i in range(24)]})
    rows["subject"] = [f"s{i // 2}" for i in range(24)]
    data = people(rows)
    ill = np.tile([0.0, 1.0], 12)  # healthy at the first session, ill at the second
    ill[12:] = 1
    target = Target("dx", "dx_probability", ill, ("no", "yes"))
    split, everything = np.full(24, "train"), np.ones(24, bool)
    run = TrainingRun(data, split, everything, "REF", TrainOptions(folds=3), HERE)
    ensemble = plan_ensemble(run, target, PREDICTORS["fast"])
    assert ensemble.examples.scans.tolist() == list(range(24))
    assert (ensemble.folds[::2] == ensemble.folds[1::2]).all()
    # Six persons begin healthy: seven folds are too many, though there are more scans.
    with pytest.raises(UsageError, match=r"6 persons .* of one class"):
        plan_ensemble(replace(run, options=TrainOptions(folds=7)), target, PREDICTORS["fast"])


def test_intervals_of_repeated_scans_are_those_of_persons() -> None:
    rng = np.random.default_rng(0)
    truth, error = np.repeat(rng.uniform(20, 80, 12), 10), np.repeat(rng.normal(0, 5, 12), 10)
    persons = np.repeat(np.arange(12), 10)
    once = figures((truth + error)[::10], truth[::10], False, 1)
    many = figures(truth + error, truth, False, 1, persons)
    as_scans = figures(truth + error, truth, False, 1)
    assert (many["n"], many["n_persons"]) == (120, 12)
    assert many["bias_95"] == once["bias_95"]  # the same persons drawn, ten equal scans each
    width = [np.ptp(found["bias_95"]) for found in (many, as_scans)]
    assert width[0] > 2 * width[1]
    assert figures(truth[:20], truth[:20], False, 1, persons[:20])["mae_95"] is None


def test_the_empirical_interval_counts_each_person_once() -> None:
    # Nine persons with an error of 1 each, and one with 91 scans that are 5 off: of ten persons
    # the ceil(11 * 0.8) = 9th error is 1. By scans it would be 5.
    errors, persons = np.r_[np.ones(9), np.full(91, -5.0)], np.r_[np.arange(9), np.full(91, 9)]
    assert empirical_half_width(errors, persons, 0.8) == 1
    assert empirical_half_width(errors, level=0.8) == 5
    assert empirical_half_width(errors, persons, 0.9) == 5


# --- what stands twice --------------------------------------------------------------------------


def test_a_persons_second_copy_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    scans = [scan("01", sha256="x"), scan("01", name="_run-2", sha256="x"), scan("02"),
             scan("03"), scan("04", sha256="z", columns={"person": "p"}),
             scan("05", sha256="z", columns={"person": "p"})]  # fmt: skip
    kept = without_copies(scans)
    assert [s.t1w.name for s in kept] == [scans[i].t1w.name for i in (0, 2, 3, 4)]
    assert caplog.messages[0] == (
        "sub-01_run-2_T1w.nii.gz is excluded: it is a duplicate of sub-01_T1w.nii.gz."
    )
    assert "sub-05" in caplog.messages[1]


def test_ratings_that_leave_nothing_are_named() -> None:
    with pytest.raises(NoInputError, match="rejected all of 1 scan"):
        without_rejected([scan("01", qc_status="fail")])
    assert without_rejected([]) == []
