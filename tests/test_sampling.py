"""Splits, balanced sampling and overlap of covariates."""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from training_heads import people, table

from bids_harmony.errors import HarmonyError, UsageError
from bids_harmony.training.balance import balance
from bids_harmony.training.cache import StoredVolumes, chunk_name, create_store
from bids_harmony.training.overlap import check_overlap, covariate_overlap
from bids_harmony.training.sampling import LEAST_BRAIN, PairSampler, Prefetcher
from bids_harmony.training.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    make_folds,
    split_subjects,
    splits_record,
)

# --- sampling -----------------------------------------------------------------------------------


def test_pairs_agree_in_height_age_and_sex() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "site": ["REF"] * 200 + ["A"] * 40,
            "age": [*rng.uniform(20, 80, 200), *rng.uniform(55, 75, 40)],
            "sex": [*rng.choice(["M", "F"], 200), *["F"] * 30, *["M"] * 10],
        }
    )
    data = people(rows)
    sampler = PairSampler(data, np.arange(200), [np.arange(200, 240)], batch=8, seed=0)
    drawn = [sampler.draw() for _ in range(100)]
    ref, src = (
        np.concatenate([getattr(d, f"{name}_scans") for d in drawn])
        for name in ("reference", "source")
    )
    assert ref.max() < 200 <= src.min()
    assert abs(data.ages[ref].mean() - data.ages[src].mean()) < 1.5
    assert (data.sexes[ref] == data.sexes[src]).mean() > 0.9
    here, there = (
        np.concatenate([getattr(d, f"{name}_slices") for d in drawn])
        for name in ("source", "reference")
    )
    assert set(here) == set(range(2, 10)) == set(there)
    assert np.abs(here - there).max() == 2
    assert abs(np.mean(here - there)) < 0.2


def test_source_scans_without_a_counterpart_are_hardly_drawn() -> None:
    data = people(table({"REF": [20, 25, 30, 35, 40], "A": [30, 31, 32, 70, 75]}))
    found = balance(data, np.arange(5, 10), np.arange(5))
    assert found.chance[:3].sum() > 0.999
    assert found.chance.sum() == pytest.approx(1)
    # A site with no counterpart at all still has pairs: the nearest ages.
    far = balance(data, np.array([8, 9]), np.arange(5))
    assert np.allclose(far.partners(0), [0, 0, 0, 0, 1], atol=0.01)


def test_unknown_ages_are_paired_with_anyone() -> None:
    data = people(table({"REF": [20.0, 60.0], "A": [np.nan], "B": [40.0]}))
    assert np.allclose(balance(data, np.array([2]), np.arange(2)).partners(0), 0.5)
    none = people(table({"REF": [np.nan, np.nan], "A": [40.0]}))
    assert np.allclose(balance(none, np.array([2]), np.arange(2)).partners(0), 0.5)


def test_small_sites_are_drawn_more_often_than_their_size() -> None:
    ages = {"REF": [30.0] * 5, "A": [30.0] * 64, "B": [30.0] * 4}
    data = people(table(ages))
    sampler = PairSampler(
        data, np.arange(5), [np.arange(5, 69), np.arange(69, 73)], batch=500, seed=1
    )
    assert sampler.draw().sites.mean() == pytest.approx(2 / 10, abs=0.06)


def test_slices_without_brain_and_scans_without_slices_are_never_drawn() -> None:
    data = people(table({"REF": [30.0] * 3, "A": [30.0] * 3}))
    data.filled[0] = data.filled[3] = LEAST_BRAIN / 2
    sampler = PairSampler(data, np.arange(3), [np.arange(3, 6)], batch=200, seed=1)
    drawn = sampler.draw()
    assert set(drawn.reference_scans) == {1, 2}
    assert set(drawn.source_scans) == {4, 5}
    assert min(drawn.source_slices.min(), drawn.reference_slices.min()) == 2


def test_a_prefetcher_goes_on_from_the_batch_last_handed_out() -> None:
    data = people(table({"REF": list(range(20, 60)), "A": list(range(30, 50))}))

    def sampler() -> PairSampler:
        return PairSampler(data, np.arange(40), [np.arange(40, 60)], batch=3, seed=4)

    def load(pairs: object) -> bytes:
        return pickle.dumps(pairs)

    plain = sampler()
    wanted = [load(plain.draw()) for _ in range(12)]
    with Prefetcher(sampler(), load, ahead=3) as batches:
        got = [next(batches) for _ in range(5)]
        state = batches.state_dict()
    with Prefetcher(sampler(), load, ahead=2) as batches:
        batches.load_state_dict(state)
        assert batches.state_dict() == state
        got += [next(batches) for _ in range(7)]
    assert got == wanted


def test_a_prefetcher_measures_waiting_and_passes_errors_on() -> None:
    data = people(table({"REF": [30.0], "A": [30.0]}))
    sampler = PairSampler(data, np.array([0]), [np.array([1])], batch=1, seed=4)

    def slow(_: object) -> int:
        time.sleep(0.03)
        return 1

    with Prefetcher(sampler, slow) as batches:
        for _ in range(5):
            next(batches)
        assert batches.waited_share > 0.5
    with Prefetcher(sampler, lambda _: 1) as batches:
        for _ in range(5):
            next(batches)
            time.sleep(0.03)
        assert batches.waited_share < 0.2

    def broken(_: object) -> int:
        raise HarmonyError("The disk is gone.")

    with Prefetcher(sampler, broken) as batches, pytest.raises(HarmonyError, match="disk"):
        next(batches)


def test_a_million_slices_are_drawn_in_flat_memory(tmp_path: Path) -> None:
    size, n_scans = (95, 32, 32), 10_527
    _, volumes = create_store(tmp_path / "cache", n_scans, size)
    volumes[0] = np.random.default_rng(0).random(size)
    folder = tmp_path / "cache" / "volumes"
    for row in range(1, n_scans):
        os.link(folder / chunk_name(0), folder / chunk_name(row))
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({
        "site": rng.choice(["REF", "A"], n_scans), "age": rng.uniform(20, 80, n_scans),
    })  # fmt: skip
    data = replace(
        people(rows[:1]), volumes=StoredVolumes(folder, np.arange(n_scans), size),
        table=people(rows).table, filled=np.ones((n_scans, 95)), heights=np.arange(95.0),
        box=((0, 32), (0, 32)),
    )  # fmt: skip
    parts = [np.flatnonzero(data.sites == site) for site in ("REF", "A")]
    sampler = PairSampler(data, parts[0], parts[1:], batch=16, seed=0)

    def memory() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    with Prefetcher(sampler, lambda p: data.slices(p.source_scans, p.source_slices, 1)) as feed:
        for _ in range(50):
            next(feed)
        before = memory()
        for _ in range(600):
            next(feed)
        # What was read: 600 batches of 16 * 3 slices in float32, 118 MB.
        assert memory() - before < 8_000


# --- splits -------------------------------------------------------------------------------------


def test_parts_are_whole_subjects_of_every_age_at_each_site() -> None:
    ages = {"REF": np.linspace(20, 80, 40).tolist(), "A": [30.0] * 8, "B": [30.0] * 3}
    data = people(table(ages))
    split = split_subjects(data, 0.15, 0.25, np.random.default_rng(3))
    sizes = {s: [int((split[data.sites == s] == part).sum()) for part in (TRAIN, VALIDATION, TEST)]
             for s in ages}  # fmt: skip
    assert sizes == {"REF": [24, 6, 10], "A": [5, 1, 2], "B": [3, 0, 0]}
    for part in (VALIDATION, TEST):
        found = np.sort(data.ages[(split == part) & (data.sites == "REF")])
        assert found[0] < 35
        assert found[-1] > 65
        assert np.diff(found).max() < 25
    assert np.array_equal(split, split_subjects(data, 0.15, 0.25, np.random.default_rng(3)))
    record = splits_record(data, split)
    assert {part: len(v) for part, v in record["A"].items()} == {
        "train": 5, "validation": 1, "test": 2,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_scans_of_a_subject_are_never_parted_even_between_sites(seed: int) -> None:
    rows = table({"REF": [30.0 + i for i in range(24)], "A": [30.0 + i for i in range(24)]})
    # Two scans each at the reference; every other subject also travelled to the other site.
    rows["subject"] = [f"s{i // 2}" for i in range(24)] + [f"s{i}" for i in range(24)]
    data = people(rows)
    rng = np.random.default_rng(seed)
    split = split_subjects(data, 0.2, 0.2, rng)
    ref = np.flatnonzero(data.sites == "REF")
    folds = make_folds(data, ref, 3, rng)
    for subject in set(rows["subject"]):
        here = np.flatnonzero(rows["subject"] == subject)
        assert len(set(split[here])) == 1
        assert len(set(folds[here][data.sites[here] == "REF"])) <= 1
    assert set(folds[ref]) == {0, 1, 2}
    assert set(np.delete(folds, ref)) == {-1}


# --- covariates ---------------------------------------------------------------------------------


def overlap(ages: dict[str, list[float]], sex: str | None = None) -> dict[str, dict[str, object]]:
    data = people(table(ages, sex))
    parts = {site: np.flatnonzero(data.sites == site) for site in ages}
    return covariate_overlap(data, parts.pop("REF"), parts)


def test_balancing_brings_ages_together_and_the_report_says_so() -> None:
    rng = np.random.default_rng(0)
    report = overlap(
        {"REF": rng.uniform(40, 80, 80).tolist(), "A": rng.uniform(20, 60, 80).tolist()}, "F"
    )["A"]
    smd = report["smd"]
    assert smd["age"]["before"] < -1.5
    assert abs(smd["age"]["after"]) < 0.25
    assert smd["women"] == {"before": 0, "after": 0}
    assert report["age_ks_p"] < 1e-6
    assert report["site"]["age"]["range"][1] < 60
    assert report["site"]["n"] == 80 > report["site"]["n_effective"] > 20


def test_the_report_is_what_the_sampler_does() -> None:
    rng = np.random.default_rng(1)
    rows = pd.DataFrame({
        "site": ["REF"] * 60 + ["A"] * 40,
        "age": [*rng.uniform(30, 80, 60), *rng.uniform(20, 60, 40)],
        "sex": [*rng.choice(["M", "F"], 60), *["F"] * 28, *["M"] * 12],
    })  # fmt: skip
    data = people(rows)
    ref, src = np.arange(60), np.arange(60, 100)
    report = covariate_overlap(data, ref, {"A": src})["A"]
    sampler = PairSampler(data, ref, [src], batch=4000, seed=1)
    drawn = sampler.draw()
    for side, scans in (("site", drawn.source_scans), ("reference", drawn.reference_scans)):
        assert data.ages[scans].mean() == pytest.approx(
            report[side]["age"]["mean_balanced"], abs=0.6
        )
        assert (data.sexes[scans] == "F").mean() == pytest.approx(
            report[side]["women"]["share_balanced"], abs=0.03
        )


def test_hopeless_sites_are_refused_unless_forced_and_others_told() -> None:
    report = overlap({"REF": [60.0, 65, 70, 75], "A": [20.0, 22, 25], "B": [61.0, 66, 74]})
    lines: list[str] = []
    with pytest.raises(UsageError, match=r"A \(age -"):
        check_overlap(report, force=False, say=lines.append)
    check_overlap(report, force=True, say=lines.append)
    assert any(line.startswith("Warning: A differs in age") for line in lines)
    assert not any(line.startswith("Warning: B") for line in lines)
    assert any("women unknown, not balanced" in line for line in lines)


def test_unknown_covariates_are_told_not_invented() -> None:
    report = overlap({"REF": [30.0, 40], "A": [np.nan, np.nan]})["A"]
    assert report["smd"] == {"age": None, "women": None}
    assert report["age_ks_p"] is None
