"""The recipe that leaves out one part of the fast preset after the other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from training_data import TINY_FAST, balls

from bids_harmony.training.config import TrainOptions
from bids_harmony.training.fabric import Engine
from bids_harmony.training.harmonizer import Plan

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
import ablation

sys.path.pop(0)


def test_each_part_is_left_out_once_per_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "FULL", TINY_FAST)
    trained = []
    real = ablation.train_harmonizer

    def spy(data, among, reference, preset, **kwargs):  # type: ignore[no-untyped-def]
        trained.append((preset.bins, preset.ema, kwargs["plan"].seed))
        return real(data, among, reference, preset, **kwargs)

    monkeypatch.setattr(ablation, "train_harmonizer", spy)
    rows = ablation.ablate(
        balls({"REF": 8, "A": 5}), "REF", ["bilateral grid", "EMA"], [1, 2], Plan(2, 1), tmp_path,
        options=TrainOptions(), engine=Engine("cpu"), say=lambda _: None,
    )  # fmt: skip
    assert trained == [(4, 0.9, 1), (4, 0.9, 2), (0, 0.9, 1), (0, 0.9, 2), (4, 0, 1), (4, 0, 2)]
    assert {part: [row["seed"] for row in found] for part, found in rows.items()} == {
        "nothing": [1, 2], "bilateral grid": [1, 2], "EMA": [1, 2],
    }  # fmt: skip
    text = ablation.show(rows).splitlines()
    assert len({line.count("|") for line in text}) == 1
    assert text[3].startswith("| bilateral grid | ")


@pytest.mark.parametrize(
    ("distances", "found"),
    [((0.9, 0.8, 0.6), 1.5), ((0.7, 0.6), 0.5), ((1.0, 0.9), None), ((0.95, 1.02, 0.85), 3.0)],
)
def test_anatomy_is_compared_where_maps_come_equally_near(
    distances: tuple[float, ...], found: float | None
) -> None:
    table = [
        {"tissue_distance": distance, "violation": float(n)}
        for n, distance in enumerate(distances, 1)
    ]
    assert ablation.violation_at(0.85, table) == (found and pytest.approx(found))
