"""Choosing scans by participant, session and filter file, and what is said when none is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bids_dataset import find, keys, write

from bids_harmony.bids.filters import read_filters
from bids_harmony.errors import NoInputError, UsageError


def test_labels_that_are_not_there(dataset: Path) -> None:
    assert keys(find(dataset, participant_label=("02",))) == ["sub-02"]
    with pytest.raises(UsageError, match="no participant 2") as error:
        find(dataset, participant_label=("01", "2"))
    assert error.value.remedy == "Did you mean 02?"
    with pytest.raises(UsageError) as error:
        find(dataset, participant_label=("xyz",))
    assert error.value.remedy == "There are 01, 02."
    for ses in ("01", "02"):
        write(dataset, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
    inventory = find(dataset, session_label=("02",))
    assert keys(inventory) == ["sub-01_ses-02"]
    assert [s.what for s in inventory.skipped] == ["sub-02"]
    with pytest.raises(UsageError, match="no session 2") as error:
        find(dataset, session_label=("2",))
    assert error.value.remedy == "Did you mean 02?"


A, B = "sub-01_acq-a_run-01", "sub-01_acq-b"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"acquisition": "a"}, [A]), ({"acq": ["a", "b"]}, [A, B]),
        ({"acquisition": None}, ["sub-01", "sub-02"]),
        ({"acquisition": "Query.NONE"}, ["sub-01", "sub-02"]),
        ({"acquisition": "*"}, [A, B]), ({"acquisition": "Query.ANY"}, [A, B]),
        ({"acquisition": [None, "b"], "subject": "sub-01"}, ["sub-01", B]),
        ({"acquisition": "Query.OPTIONAL", "run": "Query.NONE"}, ["sub-01", B, "sub-02"]),
        ({"run": 1}, [A]), ({"run": "1", "suffix": "T1w", "datatype": "anat"}, [A]),
        ({"extension": ".nii.gz", "subject": "02"}, ["sub-02"]),
    ],
)  # fmt: skip
def test_filters(dataset: Path, tmp_path: Path, filters: dict, expected: list[str]) -> None:
    for name in (A, B):
        write(dataset, f"sub-01/anat/{name}_T1w.nii.gz")
    file = write(tmp_path, "f.json", json.dumps({"T1w": filters, "bold": {"task": "x"}}))
    assert set(keys(find(dataset, bids_filters=read_filters(file)))) == set(expected)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "cannot be read"),
        ("[1]", "does not hold a JSON object"),
        ('{"t1w": 3}', "the value 3"),
        ('{"t1w": {"acqisition": "x"}}', "'acqisition'"),
        ('{"t1w": {"run": {"a": 1}}}', "'run' {\"a\": 1}"),
    ],
)
def test_wrong_filters(tmp_path: Path, text: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as error:
        read_filters(write(tmp_path, "f.json", text))
    assert error.value.remedy
    if "acqisition" in text:
        assert "acquisition" in error.value.remedy


def test_filters_without_effect_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_filters(write(tmp_path, "f.json", '{"t1": {"run": 1}}')) == {}
    assert "has no filters for t1w" in capsys.readouterr().out


def test_nothing_found_names_the_filters(dataset: Path, tmp_path: Path) -> None:
    filters = {"acquisition": ["mprage"]}
    with pytest.raises(NoInputError) as error:
        find(dataset, bids_filters=filters, participant_label=("01",))
    assert error.value.exit_code == 66
    assert "--participant-label 01" in error.value.remedy
    assert '--bids-filter-file {"acquisition": ["mprage"]}' in error.value.remedy
    write(tmp_path, "empty/sub-01/anat/sub-01_part-phase_T1w.nii.gz")
    with pytest.raises(NoInputError, match="part-phase is not a magnitude"):
        find(tmp_path / "empty")
