"""Predictors: targets, schedules, calibration, and going on after an interruption."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bids_dataset import write
from random_bundle import write_random_bundle
from training_data import balls

from bids_harmony.bids.outputs import scans_dictionary, scans_row, write_scans_tables
from bids_harmony.config import TrainOptions
from bids_harmony.console import set_up_logging
from bids_harmony.models.apply import predict
from bids_harmony.models.networks import predict_slices, predict_value
from bids_harmony.training.data import TrainingRun, TrainingSet
from bids_harmony.training.predictor import (
    ARTICLE,
    FAST,
    Ensemble,
    Examples,
    PredictorConfig,
    is_over,
)
from bids_harmony.training.predictors import (
    Predictor,
    age_bias,
    empirical_half_width,
    fit_line,
    train_predictors,
)
from bids_harmony.training.targets import figures

SMALL = replace(FAST, channels=(4, 4, 4, 4, 4), hidden=8, batch=8, steps=4, acquisitions=1)
SLICE_MM = (20.0, 90.0)


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    """Return 16 scans of a reference and 4 of another site."""
    found = balls({"REF": 16, "A": 4}, (30, 32, 32))
    illness = ["patient" if i % 3 == 0 else "control" for i in range(20)]
    table = found.table.assign(iq=100 + np.arange(20.0), diagnosis=illness)
    return replace(found, table=table, affine=np.diag([4.0, 4.0, 4.0, 1.0]))


def run_of(data: TrainingSet, work_dir: Path, targets: tuple[str, ...]) -> TrainingRun:
    split = (["train"] * 3 + ["validation"] + ["train"] * 3 + ["test"]) * 3
    fit, options = np.ones(len(data), bool), TrainOptions(targets=targets, folds=2)
    return TrainingRun(data, np.array(split)[: len(data)], fit, "REF", options, work_dir)


def train(
    data: TrainingSet,
    work_dir: Path,
    targets: tuple[str, ...],
    config: PredictorConfig = SMALL,
    **changes: Any,
) -> dict[str, Predictor]:
    return train_predictors(replace(run_of(data, work_dir, targets), **changes), config)


def weights(predictor: Predictor) -> torch.Tensor:
    return torch.cat([v.flatten().float() for members in predictor.ensembles
                      for m in members for v in m.state_dict().values()])  # fmt: skip


def test_numbers_and_classes_are_trained_and_described(data: TrainingSet, tmp_path: Path) -> None:
    fit = (data.table["diagnosis"] == "control").to_numpy()  # which leaves classes alone
    found = train(data, tmp_path, ("age", "iq", "diagnosis"), fit=fit)
    assert list(found) == ["brain_age", "iq", "diagnosis_probability"]
    age = found["brain_age"]
    used = fit[:16] & (np.arange(16) % 8 != 7)  # every eighth is a test scan
    assert age.target["interval"]["n"] == age.metrics["folds"]["n"] == used.sum()
    assert set(age.target["age_bias"]) == {"slope", "intercept", "n"}
    assert {name: len(each) for name, each in age.networks.items()} == {
        "brain_age": 2, "brain_age_grey_matter": 2,
    }  # fmt: skip
    assert "age_bias" not in found["iq"].target
    diagnosis = found["diagnosis_probability"]
    assert list(diagnosis.networks) == ["diagnosis_probability"]
    assert diagnosis.target["classes"] == ["control", "patient"]
    assert diagnosis.target["output"] == "logit"
    assert sum(diagnosis.target["counts"]) == 14
    assert "auc" in diagnosis.metrics["folds"]


def test_finished_networks_are_kept_and_the_rest_is_the_same(
    data: TrainingSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(data, tmp_path, ("age",))
    assert "loaded from" not in caplog.text
    files = sorted((tmp_path / "predictors").iterdir())
    assert [file.name[:11] for file in files] == ["brain_age-0", "brain_age-1", "brain_age_g"]
    files[1].unlink()  # as if the run had been killed in the second network
    again = train(data, tmp_path, ("age",))
    assert caplog.text.count("loaded from") == 1
    assert torch.equal(weights(whole["brain_age"]), weights(again["brain_age"]))
    # Other scans, targets or settings are another training.
    aged = data.table.assign(age=data.table["age"] + 1)
    train(replace(data, table=aged), tmp_path, ("age",))
    train(data, tmp_path, ("age",), replace(SMALL, learning_rate=1e-3))
    assert caplog.text.count("loaded from") == 1


def test_what_is_predicted_is_the_mean_of_slices_and_grey_matter(
    data: TrainingSet, tmp_path: Path
) -> None:
    age = train(data, tmp_path, ("age",))["brain_age"]
    slices, grey = age.ensembles
    assert [entry["kind"] for entry in age.entries.values()] == ["slice", "grey_matter"]
    for name, networks in age.networks.items():  # the stretch is part of them
        options = age.entries[name]["options"]
        assert all((n.mean, n.scale) == (options["mean"], options["scale"]) for n in networks)
    volume = data.volume(15)[0]
    parts = [volume, data.affine, data.box, SLICE_MM]
    whole = torch.from_numpy(data.stack(15)[0])[None]
    alone = float(np.mean([float(network(whole)) for network in grey]))
    of_slices = predict_slices([slices], *parts)
    both = predict_slices(age.ensembles, *parts)
    assert predict_value(age.ensembles, *parts) == pytest.approx(
        (np.median(of_slices) + alone) / 2
    )
    assert np.allclose(both - np.median(both), of_slices - np.median(of_slices))
    # The article's recipe has slices alone.
    article = replace(SMALL, acquisitions=ARTICLE.acquisitions)
    assert list(train(data, tmp_path, ("age",), article)["brain_age"].networks) == ["brain_age"]


def test_networks_trained_at_once_are_the_same(data: TrainingSet, tmp_path: Path) -> None:
    targets, log = ("age", "simulated-schizophrenia"), tmp_path / "execution.log"
    set_up_logging(file=log)
    found = train_predictors(run_of(data, tmp_path / "2", targets), SMALL, nprocs=2)
    for prefix in ("[brain_age 1] ", "[brain_age 2] ", "[schizophrenia_probability 1] "):
        assert f" INFO: {prefix}training a predictor: 4 of 4 steps" in log.read_text()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = train(data, tmp_path / "1", targets)
    finally:
        torch.set_num_threads(threads)
    for name, predictor in alone.items():
        assert torch.equal(weights(found[name]), weights(predictor))
        assert found[name].metrics == predictor.metrics
    simulated = found["schizophrenia_probability"]
    assert simulated.target["training_data"] == "simulated"
    assert simulated.truth is None
    assert simulated.metrics["held_out_simulated"]["labels"] == "simulated"


def test_the_paper_s_schedule_ends() -> None:
    falling = [1.0 - 0.1 * k for k in range(4)]
    assert not is_over([], [])
    # Still for ten epochs.
    assert [is_over(falling + [0.7] * k, []) for k in (9, 10)] == [False, True]
    assert not is_over([*falling, *[0.7] * 9, 0.69], [])
    losses = [1 / k for k in range(1, 21)]
    assert [is_over(losses[:k], losses[::-1][:k]) for k in (5, 6)] == [False, True]
    assert not any(is_over(losses[:k], [float(i % 5) for i in range(k)]) for k in range(21))


def trained(ensemble: Ensemble) -> torch.nn.Module:
    """Train the network that leaves out the scans of fold 0."""
    ensemble.train(0, "cpu")
    return ensemble.load()[0]


def test_article_recipe_runs_over_whole_epochs_keeps_the_best_and_lowers_the_rate(
    data: TrainingSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ref = np.flatnonzero(data.sites == "REF")
    examples = Examples(data, ref[::2], data.ages[ref[::2]], SLICE_MM)
    watched = Examples(data, ref[1:4:2], data.ages[ref[1:4:2]], SLICE_MM)
    config = replace(ARTICLE, channels=(4, 4, 4, 4, 4), hidden=8, batch=16, steps=30)
    monkeypatch.setattr("bids_harmony.training.predictor.STILL", 0.9)
    monkeypatch.setattr("bids_harmony.training.predictor.SLOW_AFTER", 2)
    everything = np.ones(8, int)
    ensemble = Ensemble("age", examples, watched, everything, 1, False, 0, config, tmp_path)
    network, lines = trained(ensemble), caplog.messages
    per_epoch = -(-8 * len(examples.numbers) // 16)
    assert f"epoch 1 (step {per_epoch})" in lines[1]
    assert "(step 30)" in lines[-1]
    rates = [float(line.split("rate ")[1]) for line in lines[1:]]
    assert rates[:3] == pytest.approx([3e-4, 3e-4, 3e-5])
    losses = [float(line.split("validation ")[1].split(";")[0]) for line in lines[1:]]
    stacks = [data.volume(scan)[0] for scan in watched.scans]
    off = [predict_slices([[network]], stack, data.affine, data.box, SLICE_MM) - age
           for stack, age in zip(stacks, watched.targets, strict=True)]  # fmt: skip
    assert np.mean((np.array(off) / network.scale) ** 2) == pytest.approx(min(losses), abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [FAST, ARTICLE])
def test_slice_network_learns_what_the_slices_show(
    data: TrainingSet, tmp_path: Path, recipe: PredictorConfig
) -> None:
    ref = np.flatnonzero(data.sites == "REF")
    examples = Examples(data, ref, data.ages[ref], SLICE_MM)
    config = replace(
        recipe, channels=(8, 8, 8, 8, 8), hidden=32, learning_rate=5e-3, steps=120, batch=32
    )
    held = np.arange(16) % 2
    ensemble = Ensemble("age", examples, None, 1 - held, 1, False, 0, config, tmp_path)
    found = ensemble.unseen([trained(ensemble)])[held == 1]
    assert np.corrcoef(found, examples.targets[held == 1])[0, 1] > 0.8


def test_lines_and_intervals_of_predictions_on_ages() -> None:
    rng = np.random.default_rng(0)
    covered = [
        np.mean(np.abs(rng.standard_normal(500)) <= empirical_half_width(rng.standard_normal(40)))
        for _ in range(200)
    ]
    assert np.mean(covered) == pytest.approx(0.91, abs=0.02)
    assert empirical_half_width(np.array([1.0, -3.0, 2.0])) == 3.0
    age = np.linspace(20, 80, 30)
    assert age_bias(0.8 * age + 11, age) == {"slope": -0.2, "intercept": 11.0, "n": 30}
    assert age_bias(age, np.full(30, 50.0))["slope"] == 0
    # A line undoes shrinking, within bounds.
    assert fit_line(50 + 0.8 * (age - 50), age) == pytest.approx((1.25, -12.5))
    assert fit_line(50 + 0.1 * (age - 50), age)[0] == 2
    assert fit_line(-age, age)[0] == 0.5
    assert fit_line(np.full(30, 50.0), age) == pytest.approx((1.0, 0.0), abs=1e-9)


def test_figures_have_intervals_that_hold_the_value() -> None:
    age = np.linspace(20, 80, 30)
    found = figures(age + 5 + np.random.default_rng(0).standard_normal(30), age, False, 0)
    assert found["bias"] == pytest.approx(5, abs=0.7)
    for name in ("mae", "bias", "r"):
        low, high = found[f"{name}_95"]
        assert low - 0.005 <= found[name] <= high + 0.005
    assert figures(age[:2], age[:2], False, 0)["r"] is None
    logits = np.where(age > 50, 1.0, -1.0)
    classes = figures(logits, (age > 50).astype(float), True, 0)
    assert classes["auc"] == classes["balanced_accuracy"] == 1
    assert figures(logits, np.ones(30), True, 0)["auc_95"] is None
    score, ill = np.array([2.0, 3.0, 1.0, 2.0]), np.array([1.0, 1, 0, 0])
    assert figures(score, ill, True, 0)["auc"] == 0.875


def test_predictions_of_any_target_reach_json_and_table(tmp_path: Path) -> None:
    bundle = write_random_bundle(tmp_path / "bundle")
    targets = deepcopy(bundle.targets)
    targets["iq"] = targets["brain_age"] | {}
    targets["brain_age"]["age_bias"] = {"slope": -0.2, "intercept": 9.0, "n": 10}
    targets["diagnosis_probability"] = {
        "networks": ["schizophrenia"], "output": "logit", "training_data": "real",
        "classes": ["control", "patient"],
    }  # fmt: skip
    bundle = replace(bundle, info=bundle.info | {"targets": targets})
    volume = np.zeros((99, 117, 95), np.float32)
    volume[30:70, 30:80, 20:70] = 1.0
    grid = np.diag([2.0, 2, 2, 1])
    grid[:3, 3] = -98, -134, -72
    raw = nib.Nifti1Image(volume, grid)
    found = predict(raw, bundle, age=30.0, correct_age_bias=True)
    entry = found["brain_age"]
    # 9 - 0.2 * 30: three years of the gap are age's alone.
    assert entry["gap_corrected_raw"] == pytest.approx(entry["gap_raw"] - 3.0, abs=0.011)
    assert entry["gap_corrected_harmonized"] is None
    assert "interval_90" in found["iq"]
    assert not {"gap_raw", "gap_corrected_raw"} & set(found["iq"])
    assert found["diagnosis_probability"]["probability_of"] == "patient"
    assert 0 < found["diagnosis_probability"]["raw"] < 1

    stem = "sub-01/anat/sub-01_desc-"
    outputs = [f"{stem}preproc_T1w.nii.gz", f"{stem}harmony_predictions.json"]
    record = write(tmp_path, f"{stem}harmony_qc.json",
                   json.dumps({"status": "pass", "outputs": outputs}))  # fmt: skip
    write(tmp_path, outputs[1], json.dumps(found))
    row = scans_row(record)
    assert row is not None
    assert row["iq_raw"] == str(found["iq"]["raw"])
    assert row["brain_age_gap_corrected"] == str(entry["gap_corrected_raw"])
    write_scans_tables(tmp_path, "01")
    header = (tmp_path / "sub-01" / "sub-01_scans.tsv").read_text().splitlines()[0].split("\t")
    assert header == list(scans_dictionary(targets))
