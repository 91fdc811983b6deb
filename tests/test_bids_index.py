"""Where a dataset is looked into, and the index of it that may be kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bids_dataset import find, keys, write

from bids_harmony.bids_index import INDEX_FILE, list_subjects
from bids_harmony.errors import NoInputError, UsageError


def test_wrong_folders_get_a_hint(dataset: Path) -> None:
    with pytest.raises(UsageError) as error:
        list_subjects(dataset / "sub-01")
    assert error.value.remedy == f"Give the dataset: {dataset}."
    with pytest.raises(UsageError) as error:
        list_subjects(dataset.parent)
    assert str(dataset) in error.value.remedy
    (dataset / "nothing").mkdir()
    with pytest.raises(NoInputError):
        list_subjects(dataset / "nothing")
    with pytest.raises(UsageError, match="cannot be listed"):
        list_subjects(dataset / "absent")


def test_other_subjects_are_not_looked_into(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    write(dataset, "sub-01/func/sub-01_bold.nii.gz")
    write(dataset, "sub-01/anat/deeper/sub-01_T1w.nii.gz")
    write(dataset, "derivatives/a/sub-01/anat/sub-01_T1w.nii.gz")
    listed = set()
    plain = LocalFileSystem.ls

    def ls(self: object, path: str, *args: object, **kwargs: object) -> object:
        listed.add(Path(path))
        return plain(self, path, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    assert keys(find(dataset, participant_label=("01",))) == ["sub-01"]
    assert listed == {dataset, dataset / "sub-01", dataset / "sub-01/anat"}


def test_saved_index_serves_the_next_call(dataset: Path, tmp_path: Path) -> None:
    saved = tmp_path / "index"
    assert keys(find(dataset, bids_database_dir=saved, participant_label=("01",))) == ["sub-01"]
    assert [p.name for p in saved.iterdir()] == [INDEX_FILE]
    again = find(dataset, bids_database_dir=saved)
    assert keys(again) == ["sub-01", "sub-02"]
    assert again.warnings == ()
    write(dataset, "sub-03/anat/sub-03_T1w.nii.gz")
    later = (saved / INDEX_FILE).stat().st_mtime + 5
    os.utime(dataset, (later, later))
    inventory = find(dataset, bids_database_dir=saved)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert "older than the dataset" in inventory.warnings[0]


def test_unusable_saved_index_is_refused(dataset: Path, tmp_path: Path) -> None:
    saved = tmp_path / "index"
    find(dataset, bids_database_dir=saved)
    other = tmp_path / "other"
    write(other, "sub-01/anat/sub-01_T1w.nii.gz")
    with pytest.raises(UsageError, match="is of"):
        find(other, bids_database_dir=saved)
    (saved / INDEX_FILE).write_text("no database")
    with pytest.raises(UsageError, match="cannot be read"):
        find(dataset, bids_database_dir=saved)


def test_nothing_is_written_without_a_saved_index(dataset: Path) -> None:
    before = sorted(p for p in dataset.parents[2].rglob("*"))
    find(dataset)
    assert sorted(p for p in dataset.parents[2].rglob("*")) == before
