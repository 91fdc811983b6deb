"""Splits, losses, augmentation, and a whole small training."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from training_heads import AFFINE, write_scans

from bids_harmony.errors import NoInputError, UsageError
from bids_harmony.models.apply import harmonize_volume, predict_scan
from bids_harmony.models.bundle import load_bundle
from bids_harmony.simulation.effect import apply_effect
from bids_harmony.training.augment import Augmentation, augment
from bids_harmony.training.cache import open_training_set
from bids_harmony.training.config import TrainOptions, TrainScan
from bids_harmony.training.data import TrainingSet, hold_out, make_folds
from bids_harmony.training.evaluate import age_figures, match_histogram
from bids_harmony.training.harmonizer import (
    HarmonizerConfig,
    _edge_loss,
    _of_age,
    train_harmonizer,
)
from bids_harmony.training.predictor import (
    Examples,
    PredictorConfig,
    conformal_half_width,
    network_options,
    predict_stack,
    train_predictor,
)
from bids_harmony.training.predictors import area_under_curve
from bids_harmony.training.run import train_bundle


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[TrainScan]:
    folder = tmp_path_factory.mktemp("scans")
    return write_scans(folder, {"REF": 16, "A": 8, "B": 3}, {"A": 1.8, "B": 0.6})


@pytest.fixture(scope="module")
def data(scans: list[TrainScan], tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    return open_training_set(scans, tmp_path_factory.mktemp("cache"))


def test_scans_are_cut_to_a_box_that_holds_every_brain(
    scans: list[TrainScan], data: TrainingSet
) -> None:
    assert data.size[0] % 16 == data.size[1] % 16 == 0
    for i, scan in enumerate(scans):
        assert data.stack(i)[1].sum() == (np.asarray(nib.load(scan.mask).dataobj) > 0).sum()
    assert data.heights[0] == AFFINE[2, 3]


def test_held_out_subjects_are_whole_and_cover_every_age(data: TrainingSet) -> None:
    held = hold_out(data, 0.25, np.random.default_rng(3))
    assert [int(held[data.sites == s].sum()) for s in ("REF", "A", "B")] == [4, 2, 0]
    ages = np.sort(data.ages[held & (data.sites == "REF")])
    assert (np.diff(ages) < 35).all()
    assert ages[0] < 35 < 55 < ages[-1]
    assert np.array_equal(held, hold_out(data, 0.25, np.random.default_rng(3)))


def test_two_scans_of_a_subject_are_never_parted(data: TrainingSet) -> None:
    from dataclasses import replace

    table = data.table.assign(subject=[f"s{i // 2}" for i in range(len(data))])
    twice = replace(data, table=table)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        held = hold_out(twice, 0.25, rng)
        ref = np.flatnonzero(twice.sites == "REF")
        folds = make_folds(twice, ref, 3, rng)
        for part in (held, folds):
            assert all(len(set(part[ref][[i, i + 1]])) == 1 for i in range(0, 16, 2))
        assert set(folds[ref]) == {0, 1, 2}
        assert set(np.delete(folds, ref)) == {-1}


def test_reference_scans_are_drawn_near_the_age_of_the_source(data: TrainingSet) -> None:
    rng = np.random.default_rng(0)
    ref = np.flatnonzero(data.sites == "REF")
    drawn = [data.ages[_of_age(data, ref, 25.0, 5.0, rng)] for _ in range(200)]
    assert abs(np.mean(drawn) - 25) < 4
    anywhere = [data.ages[_of_age(data, ref, np.nan, 5.0, rng)] for _ in range(200)]
    assert abs(np.mean(anywhere) - 45) < 4
    assert data.ages[_of_age(data, ref, 500.0, 1.0, rng)] == 70


def test_edge_loss_ignores_contrast_and_sees_moved_edges(data: TrainingSet) -> None:
    image, mask = (torch.from_numpy(v[10:20].astype(np.float32))[:, None] for v in data.stack(0))
    x = torch.cat([image, mask, torch.zeros_like(mask)], dim=1)
    same = _edge_loss(0.5 * image * mask + 0.2 * mask, x)
    moved = _edge_loss(torch.roll(image, 3, dims=2) * mask, x)
    assert float(same) == pytest.approx(0, abs=1e-4)
    assert float(moved) > 0.3


def test_augmentation_keeps_background_and_leaves_some_slices_alone(data: TrainingSet) -> None:
    x = torch.from_numpy(data.slices(range(8), [15] * 8)[0])
    chance = torch.Generator().manual_seed(0)
    y = augment(x, Augmentation(plain=0.0), chance)
    assert y.shape == x.shape
    assert float(y.min()) == 0
    assert float((y == 0).float().mean()) > 0.2
    assert not torch.allclose(x, y)
    z = augment(x, Augmentation(plain=1.0), chance)
    assert torch.equal(torch.sort(z.flatten(1))[0], torch.sort(x.flatten(1))[0])


def test_matched_scan_has_the_reference_histogram(data: TrainingSet) -> None:
    quantiles = np.linspace(0.2, 1.2, 256)
    stack, mask = data.stack(20)
    matched = match_histogram(stack, mask, quantiles)
    got = np.quantile(matched[mask], [0.1, 0.5, 0.9])
    assert np.allclose(got, [0.3, 0.7, 1.1], atol=0.03)
    assert not matched[~mask].any()


def test_conformal_interval_covers_new_draws() -> None:
    rng = np.random.default_rng(0)
    covered = [
        np.mean(np.abs(rng.standard_normal(500)) <= conformal_half_width(rng.standard_normal(40)))
        for _ in range(200)
    ]
    assert np.mean(covered) == pytest.approx(0.91, abs=0.02)
    assert conformal_half_width(np.array([1.0, -3.0, 2.0])) == 3.0


def test_age_figures_have_intervals_that_hold_the_value() -> None:
    rng = np.random.default_rng(0)
    age = np.linspace(20, 80, 30)
    figures = age_figures(age + 5 + rng.standard_normal(30), age, rng)
    assert figures["bias"] == pytest.approx(5, abs=0.7)
    for name in ("mae", "bias", "r"):
        low, high = figures[f"{name}_95"]
        assert low - 0.005 <= figures[name] <= high + 0.005
    assert age_figures(age[:2], age[:2], rng)["r"] is None


def test_area_under_curve_counts_ties_half() -> None:
    assert area_under_curve(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(0.875)


def test_simulated_effect_widens_ventricles_thins_cortex_and_is_repeatable() -> None:
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    t1 = load_mni152_template(resolution=4)
    mask = np.asarray(load_mni152_brain_mask(resolution=4).dataobj) > 0
    volume = np.where(mask, np.asarray(t1.dataobj) / np.percentile(t1.dataobj, 97), 0)
    made = {s: apply_effect(volume, mask, t1.affine, strength=s, seed=5) for s in (0.0, 0.7, 1.4)}
    again = apply_effect(volume, mask, t1.affine, strength=0.7, seed=5)
    assert np.array_equal(made[0.7][0], again[0])
    assert not np.array_equal(
        made[0.7][0], apply_effect(volume, mask, t1.affine, strength=0.7, seed=6)[0]
    )
    mm = nib.affines.apply_affine(t1.affine, np.argwhere(np.ones(mask.shape, bool)))
    central = (np.abs(mm - (0, -8, 15)) < (26, 40, 18)).all(axis=1).reshape(mask.shape)
    fluid = [int(((v < 0.6) & central & m).sum()) for v, m in made.values()]
    brain = [float(v.sum()) for v, _ in made.values()]
    assert fluid[0] < fluid[1] < fluid[2]
    assert brain[0] > brain[1] > brain[2]


@pytest.mark.slow
def test_slice_network_learns_what_the_slices_show(data: TrainingSet) -> None:
    ref = np.flatnonzero(data.sites == "REF")
    middle = slice(10, 20)
    stacks = np.stack([data.stack(i)[0][middle] for i in ref])
    examples = Examples(stacks, data.ages[ref], data.heights[middle])
    config = PredictorConfig(channels=[8, 8, 8, 8, 8], hidden=32, learning_rate=5e-3)
    options = network_options(examples, config, binary=False)
    train = np.arange(0, 16, 2)
    network = train_predictor(
        examples, train, options, config, binary=False, steps=60, minutes=5, seed=0,
        say=lambda _: None,
    )  # fmt: skip
    test = np.arange(1, 16, 2)
    got = [
        np.median(
            predict_stack([network], examples.images[i].astype(np.float32), examples.heights)
        )
        for i in test
    ]
    assert np.corrcoef(got, examples.targets[test])[0, 1] > 0.8


def test_harmonizer_training_is_bounded_told_and_repeatable(data: TrainingSet) -> None:
    config = HarmonizerConfig(channels=[4, 4], discriminator_width=4, batch=2, ema=0.5)
    runs = []
    for seed in (1, 1, 2):
        lines: list[str] = []
        maps = train_harmonizer(
            data, np.arange(len(data.sites)), "REF", config,
            steps=12, minutes=5, seed=seed, say=lines.append,
        )  # fmt: skip
        assert maps.record["steps"] == 12
        assert "pairs/s" in lines[-1]
        assert maps.sites == ["A", "B"]
        runs.append(torch.cat([p.flatten() for p in maps.forward.parameters()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    start = time.monotonic()
    train_harmonizer(
        data, np.arange(len(data.sites)), "REF", config,
        steps=10**9, minutes=0.01, seed=1, say=lines.append,
    )  # fmt: skip
    assert time.monotonic() - start < 20


def test_whole_training_writes_a_bundle_that_runs(scans: list[TrainScan], tmp_path: Path) -> None:
    options = TrainOptions(
        reference_site="REF", harmonizer_steps=3, predictor_steps=3, folds=2, model_name="small"
    )
    lines: list[str] = []
    bundle = train_bundle(
        scans, tmp_path / "b", options, work_dir=tmp_path, licences=["CC0"], say=lines.append
    )
    info = bundle.info
    assert (bundle.name, bundle.reference_site, info["licences"]) == ("small", "REF", ["CC0"])
    assert {s: v["n"] + v["n_held_out"] for s, v in info["sites"].items()} == {
        "REF": 16, "A": 8, "B": 3,
    }  # fmt: skip
    splits = json.loads((bundle.path / "splits.json").read_text())
    for part in splits.values():
        assert not set(part["trained_on"]) & set(part["held_out"])
    figures = info["metrics"]["brain_age"]["sites"]
    assert figures["REF"]["held_out"]["harmonized"]["n"] == 4
    assert figures["A"]["all"]["histogram_matching"]["n"] == 8
    assert info["targets"]["schizophrenia_probability"]["training_data"] == "simulated"
    reference = bundle.qc_reference()
    assert reference["metrics"]["sites"]["A"]["snr_wm"]["n"] == 6
    assert set(reference["histograms"]) == {"REF", "A", "B"}

    volume = np.asarray(nib.load(scans[20].t1w).dataobj)
    mask = np.asarray(nib.load(scans[20].mask).dataobj) > 0
    mapped = harmonize_volume(bundle, volume, mask, AFFINE)
    result = predict_scan(bundle, volume, mapped, AFFINE, site="C")
    assert np.isfinite(result["brain_age"]["harmonized"])
    assert result["in_training"]["site"] is False
    # What was measured was measured with the weights as stored.
    again = load_bundle(bundle.path).networks()["brain_age"]
    for value in again[0].state_dict().values():
        if value.is_floating_point():
            assert torch.equal(value, value.half().float())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({}, NoInputError, "No preprocessed scan"),
        ({"targets": ("height",)}, UsageError, "height"),
        ({"reference_site": "A"}, UsageError, "site A has 8"),
        ({"reference_site": "Nowhere"}, UsageError, "Nowhere has 0"),
    ],
)
def test_training_that_makes_no_sense_is_refused(
    scans: list[TrainScan], tmp_path: Path, change: dict[str, object], error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        train_bundle(
            scans if change else [],
            tmp_path / "b",
            TrainOptions(**change),  # type: ignore[arg-type]
            work_dir=tmp_path,
        )
    with pytest.raises(UsageError, match="no site besides REF"):
        train_bundle(
            [s for s in scans if s.site == "REF"],
            tmp_path / "b",
            TrainOptions(),
            work_dir=tmp_path,
        )


def test_recipe_links_the_datasets_into_one(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
    try:
        import default_bundle
    finally:
        sys.path.pop(0)
    for folder in default_bundle.SOURCES:
        anat = tmp_path / folder / "sub-01" / "anat"
        anat.mkdir(parents=True)
        (anat / "sub-01_T1w.nii.gz").write_bytes(folder.encode())
        (tmp_path / folder / "participants.tsv").write_text(
            f"participant_id\tage\tsex\tsite\nsub-01\t30\tF\t{folder}\n"
        )
        (tmp_path / folder / "dataset_description.json").write_text(
            json.dumps({"Name": folder, "License": "CC0"})
        )
    (tmp_path / "ixi_hh" / "T1w.json").write_text('{"MagneticFieldStrength": 3}')
    merged = tmp_path / "merged"
    assert default_bundle.merge(tmp_path, merged) == 3
    assert default_bundle.merge(tmp_path, merged) == 3
    with (merged / "participants.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(r["participant_id"], r["site"], r["diagnosis"]) for r in rows] == [
        ("sub-IXI01", "ixi_hh", "n/a"),
        ("sub-NSK01", "ds002748", "n/a"),
        ("sub-UCLA01", "ds000011", "n/a"),
    ]
    link = merged / "sub-NSK01" / "anat" / "sub-NSK01_T1w.nii.gz"
    assert link.is_symlink()
    assert link.read_bytes() == b"ds002748"
    assert (merged / "sub-IXI01" / "anat" / "sub-IXI01_T1w.json").is_file()
