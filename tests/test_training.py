"""Splits, losses, augmentation, and a whole small training."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from bids_dataset import write
from training_heads import AFFINE, write_scans

from bids_harmony.anat.template import load_template
from bids_harmony.config import TrainOptions
from bids_harmony.errors import NoInputError, UsageError
from bids_harmony.models.apply import calibrate, harmonize, predict
from bids_harmony.simulation.anatomy import apply_effect
from bids_harmony.training.bundle import train_bundle
from bids_harmony.training.data import TrainingSet, TrainScan, open_training_set
from bids_harmony.training.harmonizer import accept, acceptance
from bids_harmony.training.predictor import augment


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
    y = augment(x, generator, plain=0.0)
    assert (y.shape, float(y.min())) == (x.shape, 0)
    assert float((y == 0).float().mean()) > 0.2
    assert not torch.allclose(x, y)
    z = augment(x, generator, plain=1.0)
    assert torch.equal(torch.sort(z.flatten(1))[0], torch.sort(x.flatten(1))[0])


def test_simulated_effect_widens_ventricles_thins_cortex_and_is_repeatable() -> None:
    template = load_template(4)
    mask, affine = template.mask, template.t1w.affine
    t1w = np.asarray(template.t1w.dataobj)
    volume = np.where(mask, t1w / np.percentile(t1w, 97), 0)

    def made(strength: float, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
        return apply_effect(volume, mask, affine, strength=strength, seed=seed)

    assert np.array_equal(made(0.7)[0], made(0.7)[0])
    assert not np.array_equal(made(0.7)[0], made(0.7, seed=6)[0])
    mm = nib.affines.apply_affine(affine, np.argwhere(np.ones(mask.shape, bool)))
    central = (np.abs(mm - (0, -8, 15)) < (26, 40, 18)).all(axis=1).reshape(mask.shape)
    each = [made(strength) for strength in (0.0, 0.7, 1.4)]
    assert (np.diff([int(((v < 0.6) & central & m).sum()) for v, m in each]) > 0).all()
    assert (np.diff([float(v.sum()) for v, _ in each]) < 0).all()


@pytest.mark.parametrize(
    ("network", "curve", "kind"),
    [(1.0, 2.0, "network"), (6.0, 2.0, "intensity-mapping"), (6.0, 7.0, "network")],
)
def test_a_network_that_fails_where_the_curve_passes_is_left_out(
    network: float, curve: float, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def figures(offset: float) -> dict:
        return {"offset": offset, "offset_95": [offset - 1, offset + 1]}

    def measured(which: str) -> dict:
        ours = network if which == "network" else curve
        ways = {"none": figures(-10.0), "harmonized": figures(ours)}
        ways |= {"intensity_mapping": figures(curve)} if which == "network" else {}
        return {"brain_age": {"sites": {"A": ways, "A, not in --fit-filter": ways}}}

    used, metrics, accepted, left_out = accept("network", measured)
    assert used == kind
    offset = metrics["brain_age"]["sites"]["A"]["harmonized"]["offset"]
    assert accepted["removed"] == pytest.approx(1 - abs(offset) / 10)
    assert (left_out is not None) == bool(caplog.messages) == (kind != "network")
    if left_out is not None:
        assert left_out["sites"]["A"]["harmonized"]["offset"] == network
        assert "intensity mapping alone" in caplog.text


def test_whole_training_writes_a_bundle_that_runs(
    scans: list[TrainScan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = TrainOptions(
        reference_site="REF", predictor_steps=3, folds=2, model_name="small", map="cyclegan",
        fast_dev_run=True, holdout=0.3,
    )  # fmt: skip
    bundle = train_bundle(scans, tmp_path / "b", options, work_dir=tmp_path, licences=["CC0"])
    info = bundle.info
    assert (bundle.name, bundle.reference_site, info["licences"]) == ("small", "REF", ["CC0"])
    counts = {site: row["n"] + row["n_held_out"] for site, row in info["sites"].items()}
    assert counts == {"REF": 16, "A": 8, "B": 3}
    splits = json.loads((bundle.path / "splits.json").read_text())
    assert not any(set(part["train"]) & set(part["test"]) for part in splits.values())
    figures = info["metrics"]["brain_age"]["sites"]
    assert figures["REF"]["harmonized"]["n"] == info["sites"]["REF"]["n_held_out"]
    # What the fine-tuned map has seen, it is not tested on.
    assert set(info["map"]["known_truth"]) <= {"intensity-mapping", "network", "cyclegan"}
    n = 8 - (len(splits["A"]["train"]) if info["map"]["kind"] == "cyclegan" else 0)
    methods = ["none", "histogram_matching", "harmonized", "harmonized_known_ages"]
    # The curve alone is a method of its own where something follows it.
    methods += ["intensity_mapping"] * (info["map"]["kind"] != "intensity-mapping")
    assert {name: row["n"] for name, row in figures["A"].items()} == dict.fromkeys(methods, n)
    assert "training the map on real sites" in caplog.text
    row = figures["A"]["harmonized"]
    for name in ("offset", "coverage", "mae"):
        assert row[f"{name}_95"][0] <= row[name] <= row[f"{name}_95"][1]
    assert info["targets"]["schizophrenia_probability"]["training_data"] == "simulated"
    assert info["targets"]["brain_age"]["interval"]["method"].startswith("empirical")
    reference = bundle.qc_reference()
    assert reference["metrics"]["sites"]["A"]["snr_wm"]["n"] == info["sites"]["A"]["n"]
    assert set(reference["histograms"]) == {"REF"}
    card = json.loads((bundle.path / "model_card.json").read_text())
    assert card["metrics"] == info["metrics"]
    page = (bundle.path / "model_card.html").read_text()
    assert all(part in page for part in (info["map"]["acceptance"]["text"], "<svg", ">offset<"))

    # A is calibrated from its own scans, and moves towards the reference.
    assert bundle.appearance().n == info["sites"]["REF"]["n"]
    of_a = [scan for scan in scans if scan.site == "A"]
    images, masks = ([nib.load(getattr(scan, kind)) for scan in of_a] for kind in ("t1w", "mask"))
    calibration = calibrate(images, bundle, masks=masks, ages=[s.age for s in of_a], site="A")
    mapped = harmonize(images[4], bundle, calibration)
    volume = np.asarray(images[4].dataobj)
    grey = (volume > 0.5) & (volume < 0.72)
    assert np.asarray(mapped.dataobj)[grey].mean() == pytest.approx(0.75, abs=0.03)
    result = predict(images[4], bundle, harmonized=mapped, site="A", calibration=calibration)
    assert np.isfinite(result["brain_age"]["harmonized"])
    assert result["in_training"]["site"] is True
    assert result["calibration"]["sha256"] == calibration.sha256


@pytest.mark.slow
def test_a_test_scan_changes_neither_appearance_nor_weights(tmp_path: Path) -> None:
    scans = write_scans(tmp_path, {"REF": 16, "A": 8}, {"A": 1.8})
    options = TrainOptions(reference_site="REF", targets=("age",), predictor_steps=2, folds=2)
    found = []
    for name in ("before", "after"):
        bundle = train_bundle(scans, tmp_path / name, options, work_dir=tmp_path / f"{name}-work")
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
        ({"fit_filter": "age > 60"}, UsageError, "REF has 3 scans for training"),
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
    assert "adds one at C" in worse["text"]
    assert acceptance({"A": {"none": {"offset": 1.0, "offset_95": None}}})["passed"] is None


def test_recipe_links_the_datasets_into_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "recipes")
    import default_bundle

    for folder in default_bundle.SOURCES:
        write(tmp_path / folder, "sub-01/anat/sub-01_T1w.nii.gz", folder)
        people = f"participant_id\tage\tsex\tsite\nsub-01\t30\tF\t{folder}\n"
        write(tmp_path / folder, "participants.tsv", people)
        write(tmp_path / folder, "dataset_description.json", '{"Name": "d", "License": "CC0"}')
    write(tmp_path / "ixi_hh", "T1w.json", '{"MagneticFieldStrength": 3}')
    merged = tmp_path / "merged"
    assert default_bundle.merge(tmp_path, merged) == default_bundle.merge(tmp_path, merged) == 3
    rows = pd.read_csv(merged / "participants.tsv", sep="\t")
    assert rows["participant_id"].tolist() == ["sub-IXI01", "sub-NSK01", "sub-UCLA01"]
    assert rows["site"].tolist() == list(default_bundle.SOURCES)
    link = merged / "sub-NSK01" / "anat" / "sub-NSK01_T1w.nii.gz"
    assert (link.is_symlink(), link.read_bytes()) == (True, b"ds002748")
    assert (merged / "sub-IXI01" / "anat" / "sub-IXI01_T1w.json").is_file()
