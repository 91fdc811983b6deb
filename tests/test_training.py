"""Splits, losses, augmentation, and a whole small training."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from training_heads import AFFINE, write_scans

from bids_harmony.errors import NoInputError, UsageError
from bids_harmony.models.apply import calibrate, harmonize, predict
from bids_harmony.models.bundle import load_bundle
from bids_harmony.simulation.effect import apply_effect
from bids_harmony.training.bundle import train_bundle
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.data import TrainingSet, TrainScan, open_training_set
from bids_harmony.training.harmonizer import match_histogram
from bids_harmony.training.measure import accept, acceptance
from bids_harmony.training.predictor import Augmentation, augment


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[TrainScan]:
    folder = tmp_path_factory.mktemp("scans")
    return write_scans(folder, {"REF": 16, "A": 8, "B": 3}, {"A": 1.8, "B": 0.6})


@pytest.fixture(scope="module")
def data(scans: list[TrainScan], tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    return open_training_set(scans, tmp_path_factory.mktemp("cache"))


def test_augmentation_keeps_background_and_leaves_some_slices_alone(data: TrainingSet) -> None:
    x = torch.from_numpy(np.array([data.stack(i)[0][15] for i in range(8)]))[:, None]
    generator = torch.Generator().manual_seed(0)
    y = augment(x, Augmentation(plain=0.0), generator)
    assert y.shape == x.shape
    assert float(y.min()) == 0
    assert float((y == 0).float().mean()) > 0.2
    assert not torch.allclose(x, y)
    z = augment(x, Augmentation(plain=1.0), generator)
    assert torch.equal(torch.sort(z.flatten(1))[0], torch.sort(x.flatten(1))[0])


def test_matched_scan_has_the_reference_histogram(data: TrainingSet) -> None:
    quantiles = np.linspace(0.2, 1.2, 256)
    stack, mask = data.stack(20)
    matched = match_histogram(stack, mask, quantiles)
    got = np.quantile(matched[mask], [0.1, 0.5, 0.9])
    assert np.allclose(got, [0.3, 0.7, 1.1], atol=0.03)
    assert not matched[~mask].any()


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


@pytest.mark.parametrize(
    ("network", "curve", "kind"),
    [(1.0, 2.0, "network"), (6.0, 2.0, "intensity-mapping"), (6.0, 7.0, "network")],
)
def test_a_network_that_fails_where_the_curve_passes_is_left_out(
    network: float, curve: float, kind: str
) -> None:
    def figures(offset: float) -> dict:
        return {"offset": offset, "offset_95": [offset - 1, offset + 1]}

    def measured(which: str) -> dict:
        ours = network if which == "network" else curve
        ways = {"none": figures(-10.0), "harmonized": figures(ours)}
        ways |= {"intensity_mapping": figures(curve)} if which == "network" else {}
        return {"brain_age": {"sites": {"A": ways, "A, not in --fit-filter": ways}}}

    lines: list[str] = []
    used, metrics, accepted, left_out = accept("network", measured, lines.append)
    assert used == kind
    offset = metrics["brain_age"]["sites"]["A"]["harmonized"]["offset"]
    assert accepted["removed"] == pytest.approx(1 - abs(offset) / 10)
    assert (left_out is not None) == bool(lines) == (kind != "network")
    if left_out is not None:
        assert left_out["sites"]["A"]["harmonized"]["offset"] == network
        assert "intensity mapping alone" in lines[0]


def test_whole_training_writes_a_bundle_that_runs(scans: list[TrainScan], tmp_path: Path) -> None:
    options = TrainOptions(
        reference_site="REF", predictor_steps=3, folds=2, model_name="small", map="cyclegan",
        fast_dev_run=True, holdout=0.3, validation=0.2,
    )  # fmt: skip
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
        assert not set(part["train"]) & set(part["test"])
    figures = info["metrics"]["brain_age"]["sites"]
    assert figures["REF"]["harmonized"]["n"] == info["sites"]["REF"]["n_held_out"]
    # What the fine-tuned map has seen, it is not tested on.
    assert set(info["map"]["known_truth"]) <= {"intensity-mapping", "network", "cyclegan"}
    n = 8 - (len(splits["A"]["train"]) if info["map"]["kind"] == "cyclegan" else 0)
    ways = ["none", "histogram_matching", "harmonized", "harmonized_known_ages"]
    # The curve alone is a way of its own where something follows it.
    ways += ["intensity_mapping"] * (info["map"]["kind"] != "intensity-mapping")
    assert {way: row["n"] for way, row in figures["A"].items()} == dict.fromkeys(ways, n)
    assert any("training the map on real sites" in line for line in lines)
    row = figures["A"]["harmonized"]
    assert row["offset_95"][0] <= row["offset"] <= row["offset_95"][1]
    assert 0 <= row["coverage_95"][0] <= row["coverage"] <= row["coverage_95"][1] <= 1
    assert info["targets"]["schizophrenia_probability"]["training_data"] == "simulated"
    assert info["map"]["acceptance"]["text"].endswith(".")
    reference = bundle.qc_reference()
    assert reference["metrics"]["sites"]["A"]["snr_wm"]["n"] == info["sites"]["A"]["n"]
    assert set(reference["histograms"]) == {"REF"}
    method = info["targets"]["brain_age"]["interval"]["method"]
    assert method.startswith("empirical")
    assert "conformal" not in json.dumps(info)
    card = json.loads((bundle.path / "model_card.json").read_text())
    assert card["metrics"] == info["metrics"]
    page = (bundle.path / "model_card.html").read_text()
    assert info["map"]["acceptance"]["text"] in page
    assert "<svg" in page
    assert '<th class="n">offset</th>' in page
    assert 'src="' not in page

    # A is calibrated from its own scans, and moves towards the reference.
    assert bundle.appearance().n == info["sites"]["REF"]["n"]
    of_a = [scan for scan in scans if scan.site == "A"]
    images, masks = ([nib.load(path) for path in paths]
                     for paths in zip(*((s.t1w, s.mask) for s in of_a), strict=True))  # fmt: skip
    calibration = calibrate(images, bundle, masks=masks, ages=[s.age for s in of_a], site="A")
    mapped = harmonize(images[4], bundle, calibration)
    volume = np.asarray(images[4].dataobj)
    grey = (volume > 0.5) & (volume < 0.72)
    assert np.asarray(mapped.dataobj)[grey].mean() == pytest.approx(0.75, abs=0.03)
    result = predict(images[4], bundle, harmonized=mapped, site="A", calibration=calibration)
    assert np.isfinite(result["brain_age"]["harmonized"])
    assert result["in_training"]["site"] is True
    assert result["calibration"]["sha256"] == calibration.sha256
    # What was measured was measured with the weights as stored.
    again = load_bundle(bundle.path).networks()["brain_age"]
    for value in again[0].state_dict().values():
        if value.is_floating_point():
            assert torch.equal(value, value.half().float())


@pytest.mark.slow
def test_a_test_scan_changes_neither_appearance_nor_weights(tmp_path: Path) -> None:
    scans = write_scans(tmp_path, {"REF": 16, "A": 8}, {"A": 1.8})
    options = TrainOptions(reference_site="REF", targets=("age",), predictor_steps=2, folds=2)
    found = []
    for name in ("before", "after"):
        bundle = train_bundle(
            scans, tmp_path / name, options, work_dir=tmp_path / f"{name}-work", say=lambda _: None
        )
        found.append((bundle.appearance(), bundle.info["files"], bundle.info["metrics"]))
        splits = json.loads((bundle.path / "splits.json").read_text())
        for label in (splits["REF"]["test"][0], splits["A"]["test"][0]):
            (path,) = (scan.t1w for scan in scans if scan.subject == label)
            volume = np.asarray(nib.load(path).dataobj)
            wild = np.where(volume > 0, np.clip(volume**3 + 0.05, 0.01, 2), 0).astype(np.float32)
            nib.save(nib.Nifti1Image(wild, AFFINE), path)
    (look, files, metrics), (look_after, files_after, metrics_after) = found
    assert look.to_dict() == look_after.to_dict()
    weights = [name for name in files if name.endswith(".safetensors")]
    assert {name: files[name] for name in weights} == {name: files_after[name] for name in weights}
    assert metrics != metrics_after  # the change was there to be seen


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({}, NoInputError, "No preprocessed scan"),
        ({"targets": ("height",)}, UsageError, "height"),
        ({"reference_site": "A"}, UsageError, "site A has 8"),
        ({"reference_site": "Nowhere"}, UsageError, "Nowhere has 0"),
        ({"fit_filter": "age > 60"}, UsageError, "REF has 3 scans to fit on"),
        ({"fit_filter": "height > 3"}, UsageError, "cannot be understood"),
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


def figure(offset: float, low: float, high: float) -> dict[str, object]:
    return {"offset": offset, "offset_95": [low, high]}


def test_a_map_must_remove_half_of_what_sites_add() -> None:
    raw = {"A": figure(-8.0, -10, -6), "B": figure(4.0, 2, 6), "C": figure(0.5, -2, 3)}

    def judged(**after: dict[str, object]) -> dict[str, object]:
        return acceptance({s: {"none": raw[s], "harmonized": after[s]} for s in raw})

    good = judged(A=figure(-2.0, -4, 0), B=figure(1.0, -1, 3), C=figure(0.6, -2, 3))
    assert (good["passed"], good["removed"], good["moved"]) == (True, 0.75, ["A", "B"])
    idle = judged(**raw)
    assert (idle["passed"], idle["removed"]) == (False, 0.0)
    # A site that adds nothing must be left there.
    worse = judged(A=figure(-2.0, -4, 0), B=figure(1.0, -1, 3), C=figure(5.0, 2, 8))
    assert worse["passed"] is False
    assert "makes one at C" in worse["text"]
    assert acceptance({"A": {"none": {"offset": 1.0, "offset_95": None}}})["passed"] is None


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
