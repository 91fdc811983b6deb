"""The recipe that evaluates a bundle: no scan is mapped by a map that saw it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from training_heads import write_scans

from bids_harmony.training.cache import open_training_set
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.run import train_bundle

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
import evaluate_bundle

sys.path.pop(0)


def test_every_source_scan_is_measured_by_maps_that_did_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = write_scans(tmp_path, {"REF": 16, "A": 6}, {"A": 1.6})
    options = TrainOptions(
        reference_site="REF", targets=("age",), harmonizer_steps=2, epoch_steps=2,
        predictor_steps=2, folds=2,
    )  # fmt: skip
    say = lambda _: None  # noqa: E731
    bundle = train_bundle(scans, tmp_path / "b", options, work_dir=tmp_path, say=say)
    data = open_training_set(scans, tmp_path, say=say)
    split = evaluate_bundle.split_from(bundle, data)
    assert set(split[data.sites == "REF"]) == {"train", "validation", "test"}

    fitted: list[np.ndarray] = []
    real = evaluate_bundle.train_harmonizer

    def spy(data, among, *args, **kwargs):  # type: ignore[no-untyped-def]
        fitted.append(among)
        return real(data, among, *args, **kwargs)

    seen: list[tuple[int, int]] = []
    measure = evaluate_bundle.measure_scan

    def note(data, scan, *args):  # type: ignore[no-untyped-def]
        seen.append((scan, len(fitted)))
        return measure(data, scan, *args)

    monkeypatch.setattr(evaluate_bundle, "train_harmonizer", spy)
    monkeypatch.setattr(evaluate_bundle, "measure_scan", note)
    study = evaluate_bundle.Study(bundle, data, split, tmp_path)
    measured = evaluate_bundle.cross_validate(study, 2, say)
    reference = np.flatnonzero((data.sites == "REF") & (split == "test"))
    sources = np.flatnonzero(data.sites == "A")
    assert sorted(measured) == sorted([*reference, *sources])
    for scan, n_fits in seen:
        if scan in sources:
            assert scan not in fitted[n_fits - 1]
        else:
            assert n_fits == 0
        assert all(not np.isin(reference, among).any() for among in fitted)
    table = evaluate_bundle.summarize(data, measured, 0)
    assert table["A"]["harmonized"]["n"] == 6
    text = evaluate_bundle.show(table)
    assert len(text.splitlines()) == 1 + 2 * 3
    assert "histogram_matching" in text
