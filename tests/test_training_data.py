"""The training cache, the table of scans, and what is refused before training."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids_dataset import write
from hypothesis import given
from hypothesis import strategies as st
from training_heads import AFFINE, table, write_scans

from bids_harmony.bids.dataset import Scan
from bids_harmony.bids.filters import select_scans
from bids_harmony.bids.tables import Table, describe
from bids_harmony.config import RunConfig
from bids_harmony.errors import HarmonyError, NoInputError, UsageError
from bids_harmony.training.data import (
    TrainingSet,
    TrainScan,
    find_training_scans,
    open_training_set,
    scan_table,
    without_rejected,
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[TrainScan]:
    return write_scans(tmp_path_factory.mktemp("scans"), {"REF": 6, "A": 4}, {"A": 1.8})


@pytest.fixture(scope="module")
def data(scans: list[TrainScan], tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    return open_training_set(scans, tmp_path_factory.mktemp("cache"))


# --- cache --------------------------------------------------------------------------------------


def test_stored_scans_are_the_volumes_in_the_box(
    scans: list[TrainScan], data: TrainingSet
) -> None:
    assert data.size[0] % 16 == data.size[1] % 16 == 0
    (a, b), (c, d) = data.box
    for i, scan in enumerate(scans):
        images, masks = data.stack(i)
        assert images.dtype == np.float32
        assert masks.sum() == (np.asarray(nib.load(scan.mask).dataobj) > 0).sum()
        middle = np.pad(np.asarray(nib.load(scan.t1w).dataobj)[:, :, 15], 64)
        assert np.allclose(images[15], middle[a + 64 : b + 64, c + 64 : d + 64], atol=1e-3)
    assert list(data.ages[:6]) == [20, 30, 40, 50, 60, 70]
    assert data.heights[0] == AFFINE[2, 3]
    # It travels to other processes without its images.
    sent = pickle.dumps(data)
    assert len(sent) < 30_000
    assert np.array_equal(pickle.loads(sent).stack(5)[0], data.stack(5)[0])


def test_the_cache_is_used_again(
    scans: list[TrainScan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = open_training_set(scans, tmp_path)
    assert "10 of 10" in caplog.text
    (path,) = tmp_path.glob("scans-*.npy")
    assert np.array_equal(np.load(path)[4], one.volumes[4], equal_nan=True)
    caplog.clear()
    open_training_set([replace(s, age=33.0) for s in scans], tmp_path)
    assert not caplog.messages
    image = nib.load(scans[0].t1w)
    moved = tmp_path / "other_T1w.nii.gz"
    nib.save(image, moved)
    open_training_set([replace(scans[0], t1w=moved), *scans[1:]], tmp_path)
    assert len(list(tmp_path.glob("scans-*.npy"))) == 2
    assert not list(tmp_path.glob(".*.part"))


def test_a_cache_that_was_not_finished_is_made_again(
    scans: list[TrainScan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bids_harmony.training.data.vector", full)
    with pytest.raises(HarmonyError, match="No space left"):
        open_training_set(scans, tmp_path)
    assert not list(tmp_path.glob("scans-*.npy"))
    monkeypatch.undo()
    assert len(open_training_set(scans, tmp_path)) == 10


def test_of_several_processes_one_makes_the_cache(
    scans: list[TrainScan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The lock holds between threads as it does between processes.
    with ThreadPoolExecutor(3) as pool:
        for data in pool.map(lambda _: open_training_set(scans, tmp_path), range(3)):
            assert data.stack(9)[1].any()
    assert caplog.text.count("writing the training cache: 0 of 10") == 1


def test_bad_scans_are_left_out_with_a_reason(
    scans: list[TrainScan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume, mask = (np.asarray(nib.load(p).dataobj) for p in (scans[0].t1w, scans[0].mask))
    shifted = AFFINE.copy()
    shifted[0, 3] += 4
    worse = []
    for name, image, inside, affine in (
        ("shifted", volume, mask, shifted),
        ("empty", volume, 0 * mask, AFFINE),
        ("nan", np.where(volume > 0, np.nan, 0).astype(np.float32), mask, AFFINE),
        ("raw", 300 * volume, mask, AFFINE),
        ("cut", volume, mask, AFFINE),
        ("gone", volume, mask, AFFINE),
    ):
        paths = tmp_path / f"{name}_T1w.nii.gz", tmp_path / f"{name}_mask.nii.gz"
        for path, array in zip(paths, (image, inside), strict=True):
            nib.save(nib.Nifti1Image(array, affine), path)
        worse.append(TrainScan(name, "A", *paths, 40.0))
    cut = worse[4].t1w
    cut.write_bytes(cut.read_bytes()[:2000])
    worse[5].t1w.unlink()
    data = open_training_set([worse[0], *scans, *worse[1:]], tmp_path)
    assert list(data.table["subject"]) == [s.subject for s in scans]
    stack = np.asarray(nib.load(scans[3].mask).dataobj) > 0
    assert data.stack(3)[1].sum() == stack.sum()
    text = "\n".join(line for line in caplog.messages if "excluded" in line)
    for words in ("grid differs", "empty", "not finite", "cut_T1w.nii.gz or", "gone_T1w"):
        assert words in text
    assert text.count("or not normalized") == 2
    for alone, reason in ((worse[1], "mask is empty"), (worse[3], "not normalized")):
        with pytest.raises(NoInputError, match=reason):
            open_training_set([alone], tmp_path)
        assert len(list(tmp_path.glob("scans-*.npy"))) == 1


# --- the table of scans -----------------------------------------------------------------------


CONDITIONS = {
    "all": (None, [True] * 4),
    "a class": ('diagnosis == "control"', [True, False, False, True]),
    "numbers": ("age > 25 and bmi < 22", [False, True, False, False]),
    "0 and 1": ("site in ['A'] and not smoker", [True, False, False, True]),
    "no comparison": ("diagnosis = 'control'", "cannot be understood"),
    "no column": ("height > 3", "height"),
    "no condition": ("bmi + 1", "cannot be understood"),
    "another type": ("bmi > 'a'", "cannot be understood"),
    "code": ("@pd.read_csv('x')", "must not contain"),
    "attributes": ("bmi.__class__ == 1", "must not contain"),
    "none": ("age > 200", "No scan meets"),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_scans_are_selected_by_conditions_on_the_table(name: str) -> None:
    rows = table({"A": [20.0, 30, 40, np.nan]})
    rows["diagnosis"] = ["control", "schizophrenia", None, "control"]
    rows["bmi"], rows["smoker"] = [20.5, 21, 22, 23], [0, 1, 1, 0]
    condition, expected = CONDITIONS[name]
    if isinstance(expected, list):
        assert select_scans(rows, condition).tolist() == expected
        return
    with pytest.raises(UsageError, match=expected) as caught:
        select_scans(rows, condition)
    assert "diagnosis" in str(caught.value)


@given(st.text(max_size=30))
def test_any_condition_selects_or_is_refused(condition: str) -> None:
    rows = table({"A": [20.0, 30.0]})
    with suppress(UsageError):
        assert select_scans(rows, condition).dtype == bool


def test_preprocessed_scans_are_found_with_what_is_known_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stem, scans = "space-MNI152NLin2009aSym_res-2_desc-", []
    for label, status in (("01", "pass"), ("02", "fail"), ("03", None), ("04", "warn")):
        key = f"sub-{label}_ses-a"
        anat = Path("out", f"sub-{label}", "ses-a", "anat", key).as_posix()
        write(tmp_path, f"{anat}_{stem}preproc_T1w.nii.gz")
        if label != "04":
            write(tmp_path, f"{anat}_{stem}brain_mask.nii.gz")
        if status:
            record = {"status": status, "metrics": {"snr": 3.0}}
            write(tmp_path, f"{anat}_desc-harmony_qc.json", json.dumps(record))
        scans.append(
            Scan(
                path=Path(f"{key}_T1w.nii.gz"), key=key, site="A", age=30.0, sex="F",
                diagnosis="control", entities={"subject": label, "session": "a"},
                columns={"bmi": "21"},
            )
        )  # fmt: skip
    config = RunConfig(bids_dir=tmp_path, output_dir=tmp_path / "out", level="train")
    found, missing = find_training_scans(tmp_path / "out", scans, config)
    assert missing == ["sub-04_ses-a"]
    assert [(s.subject, s.qc_status, s.metrics) for s in found] == [
        ("01", "pass", {"snr": 3.0}), ("02", "fail", {"snr": 3.0}), ("03", None, {}),
    ]  # fmt: skip
    assert (found[0].sex, found[0].diagnosis, found[0].columns) == ("F", "control", {"bmi": "21"})
    assert [s.subject for s in without_rejected(found)] == ["01", "03"]
    assert "sub-02_ses-a" in caplog.text
    assert "'fail'" in caplog.text


def test_other_columns_of_the_tables_reach_the_training_set(tmp_path: Path) -> None:
    people_table = Table(
        "participants.tsv", ("participant_id", "age", "bmi", "hand"),
        {"01": {"participant_id": "sub-01", "age": "30", "bmi": "21.5", "hand": "n/a"}},
    )  # fmt: skip
    sessions = Table("sessions.tsv", ("session_id", "bmi"), {"a": {"bmi": "23"}})
    columns = describe([(sessions, "a"), (people_table, "01")])["columns"]
    assert columns == {"participant_id": "sub-01", "age": "30", "bmi": "23"}
    scan = TrainScan("01", "A", tmp_path, tmp_path, 30.0, {"snr": 3.0}, columns=columns)
    found = scan_table([scan, replace(scan, subject="02", columns={"bmi": "20"})])
    assert found["bmi"].tolist() == [23, 20]
    assert found["age"].tolist() == [30, 30]
    assert found["metrics"][1] == {"snr": 3.0}
