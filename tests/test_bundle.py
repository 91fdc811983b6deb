"""The bundle that ships with the package."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from random_bundle import made_calibration

from bids_harmony.anat.intensity import normalize
from bids_harmony.anat.template import load_template
from bids_harmony.config import Contract
from bids_harmony.models.apply import harmonize, predict
from bids_harmony.models.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from bids_harmony.qc.guard import MEASURES

SOURCES = ("NSK", "UCLA")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(None)


def test_it_is_small_and_made_for_this_version(bundle: Bundle) -> None:
    sizes = [file.stat().st_size for file in DEFAULT_BUNDLE.iterdir() if file.is_file()]
    assert sum(sizes) < 25e6
    assert max(sizes) < 4e6
    assert bundle.contract == Contract()
    assert bundle.reference_site == "IXI-HH"
    assert set(bundle.info["sites"]) == {"IXI-HH", *SOURCES}
    assert "simulated" in bundle.targets["schizophrenia_probability"]["training_data"]
    assert "real" in bundle.targets["brain_age"]["training_data"]
    text = json.dumps(bundle.info["licences"])
    assert all(name in text for name in ("CC BY-SA 3.0", "CC0", "PDDL"))


def test_nothing_held_out_was_trained_on(bundle: Bundle) -> None:
    splits = json.loads((bundle.path / "splits.json").read_text())
    for site, part in splits.items():
        assert part["test"]
        groups = [set(part[name]) for name in ("train", "validation", "test")]
        assert len(set.union(*groups)) == sum(map(len, groups))
        # Of NSK the controls alone calibrate.
        assert len(groups[0] | groups[1]) >= bundle.info["sites"][site]["n"]
    assert bundle.appearance().n == bundle.info["sites"]["IXI-HH"]["n"] == 102


def test_its_own_figures_are_sound(bundle: Bundle) -> None:
    figures = bundle.info["metrics"]["brain_age"]["sites"]
    folds = bundle.info["metrics"]["brain_age"]["folds"]
    assert folds["n"] >= 100
    assert folds["mae"] <= 6.0
    assert folds["r"] >= 0.88
    reference = figures["IXI-HH"]
    # Eighteen scans: the interval of this error reaches from five to ten years.
    assert reference["none"]["n"] >= 18
    known = reference["harmonized_known_ages"]
    assert abs(reference["none"]["mae"] - known["mae"]) < 0.1
    assert abs(reference["none"]["offset"] - known["offset"]) < 0.1
    # Without ages it may move, by far less than chance.
    assert abs(reference["none"]["offset"] - reference["harmonized"]["offset"]) < 0.5
    # The map moves a site; nothing was trained on it, and no age of it used.
    raw, harmonized = (figures["UCLA"][way] for way in ("none", "harmonized"))
    assert raw["offset"] < -8
    assert abs(harmonized["offset"]) < 0.5 * abs(raw["offset"])
    assert harmonized["scatter"] < raw["scatter_95"][1]  # seven scans
    assert bundle.info["map"]["acceptance"]["passed"] is True
    # What the network adds to the curve, where the truth is known.
    removed = {
        kind: next(r["value"] for r in rows if (r["kind"], r["figure"]) == ("all", "removed"))
        for kind, rows in bundle.info["map"]["known_truth"].items()
    }
    assert removed["network"] > removed["intensity-mapping"] + 0.05
    assert bundle.info["map"]["acceptance"]["removed"] > 0.5


def test_its_guard_card_and_reference_statistics_are_there(bundle: Bundle) -> None:
    guard = bundle.guard()
    assert guard is not None
    assert set(guard["limits"]) == set(MEASURES)
    assert all(row["n"] >= 20 for row in guard["limits"].values())
    card = json.loads((bundle.path / "model_card.json").read_text())
    assert card["metrics"] == bundle.info["metrics"]
    page = (bundle.path / "model_card.html").read_text()
    assert "CC BY-SA 3.0" in page
    assert "simulated" in page
    reference = bundle.qc_reference()
    assert set(reference["histograms"]) == {"IXI-HH"}
    assert set(reference["metrics"]["sites"]) == set(bundle.info["sites"])
    assert reference["metrics"]["all"]["snr_wm"]["n"] > 100


def test_the_template_looks_like_an_adult_and_threads_change_nothing(bundle: Bundle) -> None:
    template = load_template(2)
    brain = np.asarray(template.t1w.dataobj)
    volume, used, _ = normalize(brain, template.mask, 2.0)
    raw = nib.Nifti1Image(np.where(used, volume, 0).astype(np.float32), template.t1w.affine)
    images, found = [], []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        mapped = harmonize(raw, bundle, made_calibration(bundle))
        found.append(predict(raw, bundle, harmonized=mapped, age=40.0))
        images.append(mapped.get_fdata())
    torch.set_num_threads(before)
    assert np.array_equal(*images)
    assert found[0] == found[1]
    assert all(10 < found[0]["brain_age"][kind] < 95 for kind in ("raw", "harmonized"))
    assert 0.001 < np.abs(images[0] - volume)[used].mean() < 0.2
