"""The training cache, splits, balanced sampling and overlap of covariates."""

from __future__ import annotations

import pickle
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from training_heads import AFFINE, write_scans

from bids_harmony.bids_tables import Columns, Table, describe
from bids_harmony.errors import HarmonyError, NoInputError, UsageError
from bids_harmony.training.balance import balance
from bids_harmony.training.cache import open_training_set
from bids_harmony.training.config import TrainScan
from bids_harmony.training.data import TrainingSet, scan_table
from bids_harmony.training.fit_filter import select_scans
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


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[TrainScan]:
    return write_scans(tmp_path_factory.mktemp("scans"), {"REF": 6, "A": 4}, {"A": 1.8})


@pytest.fixture(scope="module")
def data(scans: list[TrainScan], tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    return open_training_set(scans, tmp_path_factory.mktemp("cache"))


def people(table: pd.DataFrame, n_slices: int = 12) -> TrainingSet:
    """Return a set whose scans differ in their table only, brain in slices 2 to 9."""
    masks = np.zeros((len(table), n_slices, 4, 4), dtype=bool)
    masks[:, 2:10] = True
    images = np.broadcast_to(np.arange(n_slices)[:, None, None] / 10, masks.shape)
    return TrainingSet.from_arrays(images, masks, table)


def table(sites: dict[str, list[float]], sex: str | None = None) -> pd.DataFrame:
    rows = [{"site": site, "age": age, "sex": sex} for site, ages in sites.items() for age in ages]
    return pd.DataFrame(rows)


# --- cache --------------------------------------------------------------------------------------


def test_stored_scans_are_the_volumes_in_the_box(
    scans: list[TrainScan], data: TrainingSet
) -> None:
    assert data.size[0] % 16 == data.size[1] % 16 == 0
    (a, b), (c, d) = data.box
    for i, scan in enumerate(scans):
        volume = np.asarray(nib.load(scan.t1w).dataobj)
        mask = np.asarray(nib.load(scan.mask).dataobj) > 0
        images, masks = data.stack(i)
        assert images.dtype == np.float32
        assert masks.sum() == mask.sum()
        k = 15
        inside = np.pad(volume[:, :, k], 64)[a + 64 : b + 64, c + 64 : d + 64]
        assert np.allclose(images[k], inside, atol=1e-3)
        assert np.allclose(data.filled[i], masks.mean(axis=(1, 2)))
    assert list(data.ages[:6]) == [20, 30, 40, 50, 60, 70]
    assert data.heights[0] == AFFINE[2, 3]


def test_slices_come_with_their_neighbours_and_the_ends_are_repeated(data: TrainingSet) -> None:
    stack, masks = data.stack(3)
    last = len(data.heights) - 1
    images, inside = data.slices([3, 3, 3], [0, 14, last], around=1)
    assert images.shape == (3, 3, *data.size)
    for got, wanted in zip(images, ([0, 0, 1], [13, 14, 15], [last - 1, last, last]), strict=True):
        assert np.array_equal(got, stack[wanted])
    assert np.array_equal(inside, masks[[0, 14, last]])


def test_arrays_in_memory_are_read_like_a_cache(data: TrainingSet) -> None:
    stacks = [data.stack(i) for i in range(len(data))]
    other = TrainingSet.from_arrays(
        np.stack([s[0] for s in stacks]), np.stack([s[1] for s in stacks]), data.table,
        affine=data.affine, box=data.box, shape=data.shape,
    )  # fmt: skip
    read = [d.slices([0, 7], [3, 29], around=2) for d in (data, other)]
    assert np.array_equal(read[0][0], read[1][0])
    assert np.array_equal(read[0][1], read[1][1])
    assert np.array_equal(data.heights, other.heights)
    assert np.allclose(data.filled, other.filled)


def test_a_fluid_voxel_of_0_stays_inside_the_mask() -> None:
    masks = np.ones((1, 2, 3, 3), dtype=bool)
    data = TrainingSet.from_arrays(np.zeros(masks.shape), masks, table({"A": [30.0]}))
    assert data.stack(0)[1].all()
    assert data.slices([0], [1])[1].all()


def test_the_cache_is_a_zarr_store_and_is_used_again(
    scans: list[TrainScan], tmp_path: Path
) -> None:
    lines: list[str] = []
    one = open_training_set(scans, tmp_path, say=lines.append)
    assert any("10 of 10 scans" in line for line in lines)
    (folder,) = tmp_path.glob("train_cache-*")
    stored = np.asarray(zarr.open_group(folder, mode="r")["volumes"])
    assert np.array_equal(stored[4], one.volumes[4], equal_nan=True)
    lines.clear()
    open_training_set([replace(s, age=33.0) for s in scans], tmp_path, say=lines.append)
    assert lines == []
    image = nib.load(scans[0].t1w)
    moved = tmp_path / "other_T1w.nii.gz"
    nib.save(image, moved)
    open_training_set([replace(scans[0], t1w=moved), *scans[1:]], tmp_path)
    assert len(list(tmp_path.glob("train_cache-*"))) == 2
    assert not list(tmp_path.glob(".*.part"))


def test_a_cache_that_was_not_finished_is_made_again(
    scans: list[TrainScan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bids_harmony.training import cache

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_cut", full)
    with pytest.raises(HarmonyError, match="No space left"):
        open_training_set(scans, tmp_path)
    assert not list(tmp_path.glob("train_cache-*"))
    monkeypatch.undo()
    assert len(open_training_set(scans, tmp_path)) == 10


def test_bad_scans_are_left_out_with_a_reason(scans: list[TrainScan], tmp_path: Path) -> None:
    volume, mask = (np.asarray(nib.load(p).dataobj) for p in (scans[0].t1w, scans[0].mask))

    def bad(name: str, volume: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> TrainScan:
        paths = tmp_path / f"{name}_T1w.nii.gz", tmp_path / f"{name}_mask.nii.gz"
        for path, array in zip(paths, (volume, mask), strict=True):
            nib.save(nib.Nifti1Image(array, affine), path)
        return TrainScan(name, "A", *paths, 40.0)

    shifted = AFFINE.copy()
    shifted[0, 3] += 4
    worse = [
        bad("shifted", volume, mask, shifted),
        bad("empty", volume, 0 * mask, AFFINE),
        bad("nan", np.where(volume > 0, np.nan, 0).astype(np.float32), mask, AFFINE),
        bad("raw", 300 * volume, mask, AFFINE),
        bad("cut", volume, mask, AFFINE),
        TrainScan("gone", "A", tmp_path / "gone.nii.gz", scans[0].mask),
    ]
    cut = worse[4].t1w
    cut.write_bytes(cut.read_bytes()[:2000])
    lines: list[str] = []
    data = open_training_set([worse[0], *scans, *worse[1:]], tmp_path, say=lines.append)
    assert list(data.table["subject"]) == [s.subject for s in scans]
    stack = np.asarray(nib.load(scans[3].mask).dataobj) > 0
    assert data.stack(3)[1].sum() == stack.sum()
    text = "\n".join(line for line in lines if "left out" in line)
    for words in (
        "not on the grid",
        "empty",
        "no numbers",
        "not scaled",
        "cut_T1w.nii.gz",
        "gone",
    ):
        assert words in text
    with pytest.raises(NoInputError, match="mask is empty"):
        open_training_set([worse[1]], tmp_path)


def test_a_damaged_cache_says_what_to_delete(scans: list[TrainScan], tmp_path: Path) -> None:
    data = open_training_set(scans, tmp_path)
    (folder,) = tmp_path.glob("train_cache-*")
    chunk = folder / "volumes" / "c.2.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    data.slices([2], [3])
    with pytest.raises(HarmonyError, match=f"Delete {folder}"):
        data.stack(2)


def test_a_training_set_on_disk_travels_to_other_processes_without_its_images(
    data: TrainingSet,
) -> None:
    sent = pickle.dumps(data)
    assert len(sent) < 20_000
    assert np.array_equal(pickle.loads(sent).stack(5)[0], data.stack(5)[0])


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


# --- the table of scans -----------------------------------------------------------------------


@pytest.fixture
def asked() -> TrainingSet:
    rows = table({"A": [20.0, 30, 40, np.nan]})
    rows["diagnosis"] = ["control", "schizophrenia", None, "control"]
    rows["bmi"] = [20.5, 21, 22, 23]
    rows["smoker"] = [0, 1, 1, 0]
    return people(rows)


def test_scans_are_selected_by_conditions_on_the_table(asked: TrainingSet) -> None:
    def met(condition: str | None) -> list[bool]:
        return select_scans(asked.table, condition).tolist()

    assert met(None) == [True] * 4
    assert met('diagnosis == "control"') == [True, False, False, True]
    assert met("age > 25 and bmi < 22") == [False, True, False, False]
    assert met("site in ['A'] and not smoker") == [True, False, False, True]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("diagnosis = 'control'", "cannot be understood"),
        ("diagnosis ==", "cannot be understood"),
        ("height > 3", "height"),
        ("bmi + 1", "cannot be understood"),
        ("bmi > 'a'", "cannot be understood"),
        ("@pd.read_csv('x')", "may not hold"),
        ("bmi.__class__ == 1", "may not hold"),
        ("age > 200", "No scan meets"),
        ("", "cannot be understood"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(
    asked: TrainingSet, condition: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        select_scans(asked.table, condition)
    assert "diagnosis" in str(caught.value)


@given(st.text(max_size=30))
def test_any_condition_selects_or_is_refused(condition: str) -> None:
    rows = table({"A": [20.0, 30.0]})
    with suppress(UsageError):
        assert select_scans(rows, condition).dtype == bool


def test_other_columns_of_the_tables_reach_the_training_set(tmp_path: Path) -> None:
    people_table = Table(
        "participants.tsv", ("participant_id", "age", "bmi", "hand"),
        {"01": {"participant_id": "sub-01", "age": "30", "bmi": "21.5", "hand": "n/a"}},
    )  # fmt: skip
    sessions = Table("sessions.tsv", ("session_id", "bmi"), {"a": {"bmi": "23"}})
    person = describe([(sessions, "a"), (people_table, "01")], Columns())
    assert person.columns == {"participant_id": "sub-01", "age": "30", "bmi": "23"}
    scan = TrainScan("01", "A", tmp_path, tmp_path, 30.0, {"snr": 3.0}, columns=person.columns)
    found = scan_table([scan, replace(scan, subject="02", columns={"bmi": "20"})])
    assert found["bmi"].tolist() == [23, 20]
    assert found["age"].tolist() == [30, 30]
    assert found["metrics"][1] == {"snr": 3.0}
