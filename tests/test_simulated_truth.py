"""The recipe that measures maps on simulated heads: its figures tell good maps from bad ones."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_heads import AFFINE, SHAPE, people, table

from bids_harmony.simulation.dataset import plan_subjects
from bids_harmony.simulation.scanner import draw_scanner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
import simulated_truth
import truth_figures
from truth_figures import Figure, Visit

sys.path.pop(0)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth_figures, "N_BOOTSTRAP", 20)


AGES = {"01": 20.0, "02": 35.0, "03": 50.0, "04": 65.0, "05": 80.0}
MM = np.stack(np.meshgrid(*[np.arange(n) * 4.0 for n in SHAPE], indexing="ij"))
RADIUS = np.linalg.norm(MM + AFFINE[:3, 3][:, None, None, None], axis=0)
MASK = RADIUS < 56
BRAIN = np.where(RADIUS < 44, 1.0, 0.55) * MASK


def head(age: float, tone: float, wider: float = 0.0) -> np.ndarray:
    """Return a brain whose ventricle grows with age; the tone moves its grey matter."""
    noise = 0.02 * np.random.default_rng(int(age)).standard_normal(SHAPE)
    volume = np.where(RADIUS < 44, 1.0, 0.55 + tone)
    volume[8 + age / 8 + wider > RADIUS] = 0.02
    return np.where(MASK, np.clip(volume + noise, 0.001, 2), 0).astype(np.float32)


def visits(wider: float = 0.0, tone: float = 0.0) -> list[Visit]:
    """Scans at the reference and at a site with brighter grey matter, mapped to ``tone``."""
    return [
        Visit(name, site, age, head(age, scanner), head(age, mapped, grown), MASK, AFFINE)
        for site, scanner, mapped, grown in (("A", 0.08, tone, wider), ("site1", 0.0, 0.0, 0.0))
        for name, age in AGES.items()
    ]


def found(rows: list[Figure], text: str) -> list[Figure]:
    rows = [row for row in rows if text in row.what]
    assert rows
    return rows


def test_a_map_that_only_changes_tone_meets_every_target() -> None:
    truth = {name: age**2 for name, age in AGES.items()}
    rows = truth_figures.anatomy_figures(visits(), "site1", truth)
    assert {row.met for row in rows} == {True, None}
    true = found(rows, "with the true ventricles")
    assert [row.value for row in true] == pytest.approx([1] * 6)
    quantiles = np.quantile(head(50, 0.04)[MASK], np.linspace(0, 1, 256))
    rows = truth_figures.pair_figures(visits(), "site1", quantiles)
    assert all(row.met for row in found(rows, "pairs closer"))
    assert found(rows, "removes")[0].value > 80


def test_a_map_that_widens_ventricles_is_found_out() -> None:
    rows = truth_figures.anatomy_figures(visits(wider=6), "site1", dict.fromkeys(AGES, 1.0))
    for text in ("Dice of fluid", "ventricle change", "slope on age after/before, A"):
        assert not any(row.met for row in found(rows, text)), text
    assert all(row.met for row in found(rows, "slope on age after/before, site1"))


def test_a_map_that_equalises_ventricles_is_found_out() -> None:
    same = [replace(v, mapped=head(50, 0) if v.site == "A" else v.mapped) for v in visits()]
    rows = truth_figures.anatomy_figures(same, "site1", dict.fromkeys(AGES, 1.0))
    slopes = found(rows, "slope on age after/before, A")
    assert [row.value for row in slopes] == pytest.approx([0] * 3, abs=0.01)
    assert not any(row.met for row in slopes + found(rows, "ventricles' rank correlation"))


def test_a_map_the_wrong_way_is_closer_in_no_pair() -> None:
    quantiles = np.quantile(head(50, 0.0)[MASK], np.linspace(0, 1, 256))
    rows = truth_figures.pair_figures(visits(tone=0.16), "site1", quantiles)
    assert [row.value for row in found(rows, "pairs closer")] == [0, 0]


def test_no_tone_curve_is_closer_than_the_best_one() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, 5000)
    wanted = image**2 + 0.05 * rng.standard_normal(5000)
    best = np.abs(truth_figures.best_tone(image, wanted) - wanted).mean()
    assert best < np.abs(image**2 - wanted).mean() * 1.02 < np.abs(image - wanted).mean()


def test_a_painted_brain_shows_and_a_new_tone_does_not() -> None:
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 1, SHAPE) * MASK
    limits = truth_figures.NO_BRAIN
    for before in (noise, 0.5 * MASK, 0 * BRAIN):
        drawn = truth_figures.painted(before, before + 0.2 * BRAIN, BRAIN, MASK)
        assert drawn["brain"] == pytest.approx(0.2, rel=1e-6)
        assert all(drawn[name] > limits[name] for name in limits)
        tone = truth_figures.painted(before, 1.1 * before, BRAIN, MASK)
        assert all(tone[name] < limits[name] for name in limits)
    # Structure that is not where the mean brain has it is found by its size.
    folds = 0.1 * np.sin((MM[0] + AFFINE[0, 3]) / 12)
    drawn = truth_figures.painted(noise, noise + folds, BRAIN, MASK)
    assert drawn["brain"] < limits["brain"] < limits["structure"] < drawn["structure"]


def test_a_head_without_brain_is_empty_where_it_is_looked_at() -> None:
    given = truth_figures.nothings(MASK, AFFINE, 3)
    volume, mask, where = given["a head without brain"]
    assert where.sum() > 5000
    assert mask[where].all()
    assert not volume[where].any()
    assert (volume > 0.5).sum() > 2000
    assert (
        len({what for what, (v, m, w) in given.items() if m[w].all() and v[~m].max() < 0.2}) == 4
    )


def test_travelling_heads_are_new_heads_on_the_same_scanners() -> None:
    scanners = [draw_scanner(3, site) for site in (1, 2, 3)]
    plans = [plan_subjects(scanners, 8, seed=3, travelling=flag) for flag in (False, True)]
    heads = [{subject.key for subject in plan} for plan in plans]
    assert not heads[0] & heads[1]
    assert {s for subject in plans[0] for s in subject.scanners} == set(scanners)
    assert all(subject.scanners == tuple(scanners) for subject in plans[1])


def test_the_older_reference_is_older_and_still_overlaps() -> None:
    ages = [20.0, 30, 40, 50, 60, 70]
    data = people(table({"site1": ages, "site2": ages[::-1]}))
    used = simulated_truth.older_reference(data)
    assert sorted(data.ages[used & (data.sites == "site1")]) == [40, 50, 60, 70]
    assert sorted(data.ages[used & (data.sites == "site2")]) == [20, 30, 40, 50]


def test_the_table_says_what_is_missed() -> None:
    rows = [Figure(3, "x", 0.5, (0.4, 0.6), 9, low=0.9), Figure(3, "y", 1, (np.nan, np.nan), 1)]
    lines = truth_figures.show(rows).splitlines()
    assert ["NO" in line for line in lines[2:]] == [True, False]
    assert rows[1].to_dict()["interval_95"] == [None, None]
    assert rows[0].to_dict()["high"] is None
