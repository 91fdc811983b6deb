"""No leak: what was trained knows nothing of who is tested."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_data import balls

from bids_harmony.config import Contract, EvaluateOptions, TrainOptions
from bids_harmony.evaluation.run import plan_units
from bids_harmony.evaluation.unit import Study, fit_predictors, measure_unit, prepare_unit
from bids_harmony.models.networks import predict_value
from bids_harmony.training.targets import class_figures, find_target


@pytest.mark.slow
def test_permuted_labels_give_chance_though_networks_overfit_them(tmp_path: Path) -> None:
    data = balls({"REF": 40, "A": 16})
    rng = np.random.default_rng(5)
    ill = np.concatenate([rng.permutation(n // 2 * ["ill"] + n // 2 * ["control"])
                          for n in (40, 16)])  # fmt: skip
    data.table["diagnosis"] = ill
    everything = np.ones(len(data), bool)
    target = find_target(data, "diagnosis", "REF", everything)
    options = TrainOptions(
        reference_site="REF", targets=("diagnosis",), predictor_steps=900, folds=2,
        contract=Contract(slice_mm=(2.0, 9.0)),
    )  # fmt: skip
    study = Study(data, [target], options, EvaluateOptions(cv_folds=2), tmp_path)
    tested, known = [], []
    for unit in plan_units(data, study.options, "REF", replace(options, seed=1)):
        prepared = prepare_unit(study, unit)
        tested += [row for row in measure_unit(study, unit, prepared)["predictions"]
                   if row["method"] == "tissue_scaling" and row["site"] == "REF"]  # fmt: skip
        predictors, _ = fit_predictors(study, unit, data, prepared.split)
        (networks,) = predictors[target.name].ensembles
        for scan in np.flatnonzero((prepared.split != "test") & (data.sites == "REF")):
            value = predict_value([networks], data.volume(int(scan))[0], data.affine, data.box,
                                  options.contract.slice_mm)  # fmt: skip
            known.append((value, target.values[scan]))
    assert sorted(row["scan"] for row in tested) == list(range(40))
    learnt = class_figures(*np.array(known).T)["auc"]
    found = class_figures(*np.array([(r["predicted"], r["truth"]) for r in tested]).T)["auc"]
    assert learnt > 0.8  # each network has seen half of these
    assert 0.25 < found < 0.75
