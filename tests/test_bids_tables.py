"""Which row of which table belongs to a scan."""

from __future__ import annotations

from pathlib import Path

import pytest
from bids_dataset import find, write


def test_most_specific_table_wins(dataset: Path) -> None:
    for ses in ("a", "b"):
        write(dataset, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
        write(dataset, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_run-2_T1w.nii.gz")
    write(dataset, "participants.tsv", "participant_id\tage\tsite\tgroup\nsub-01\t30\tP\tHC\n")
    write(
        dataset,
        "sub-01/sub-01_sessions.tsv",
        "session_id\tage\tsite\nses-a\t31\tS\nses-b\t32\tn/a\n",
    )
    write(
        dataset,
        "sub-01/ses-a/sub-01_ses-a_scans.tsv",
        "filename\tsite\tage\nanat/sub-01_ses-a_T1w.nii.gz\tF\tn/a\n",
    )
    found = {s.key: s for s in find(dataset, participant_label=("01",)).scans}
    facts = {key: (s.site, s.site_source, s.age) for key, s in found.items()}
    assert facts == {
        "sub-01": ("P", "participants.tsv:site", 30.0),
        "sub-01_ses-a": ("F", "scans.tsv:site", 31.0),
        "sub-01_ses-a_run-2": ("S", "sessions.tsv:site", 31.0),
        "sub-01_ses-b": ("P", "participants.tsv:site", 32.0),
        "sub-01_ses-b_run-2": ("P", "participants.tsv:site", 32.0),
    }
    assert {s.diagnosis for s in found.values()} == {"HC"}


def test_participants_table_with_a_row_per_session(dataset: Path) -> None:
    for ses in ("a", "b"):
        write(dataset, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
    write(
        dataset,
        "participants.tsv",
        "participant_id\tsession_id\tage\nsub-01\tses-a\t30\nsub-01\tses-b\t33\nsub-02\tn/a\t5\n",
    )
    inventory = find(dataset)
    assert inventory.warnings == ()
    assert {s.key: s.age for s in inventory.scans} == {
        "sub-01": None,
        "sub-01_ses-a": 30.0,
        "sub-01_ses-b": 33.0,
        "sub-02": 5.0,
    }


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("participant_id\tage\r\nsub-01\t30\r\nsub-02\t40\r\n", None),
        ("\ufeffparticipant_id\tage\nsub-01\t30\nsub-02\t40\n", None),
        ("participant_id\tage\n01\t30\n02\t40\n", None),
        ("Participant_ID\tAge\nsub-01\t30\nsub-02\t40\n\n", None),
        ('"participant_id"\t"age"\n"sub-01"\t"30"\n"sub-02"\t"40"\n', None),
        ('participant_id,age,x\nsub-01,30,"a,b"\nsub-02,40,c\n', "separated by ','"),
        ("participant_id;age\nsub-01;30\nsub-02;40\n", "separated by ';'"),
        ("participant_id\tage\nsub-01\t30\nsub-01\t99\nsub-02\t40\n", "several rows for 01"),
        ("participant_id\tage\tx\nsub-01\t30\nsub-02\t40\ty\tz\n", "2 rows with too few"),
        ("participant_id\tage\tage\nsub-01\t30\t1\nsub-02\t40\t2\n", "columns of the same name"),
        (
            "participant_id\tage\tname\nsub-01\t30\tJos\xe9\nsub-02\t40\tx\n".encode("latin-1"),
            "Latin-1",
        ),
        ("participant_id\tage\nsub-01\t30\nsub-02\t40\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_tables_as_spreadsheets_save_them(
    dataset: Path, text: str | bytes, warning: str | None
) -> None:
    write(dataset, "participants.tsv", text)
    inventory = find(dataset)
    assert [s.age for s in inventory.scans] == [30.0, 40.0]
    if warning is None:
        assert inventory.warnings == ()
    else:
        (note,) = inventory.warnings
        assert warning in note


def test_a_subject_without_row_is_told(dataset: Path) -> None:
    write(dataset, "participants.tsv", "participant_id\tage\nsub-01\t30\nsub-2\t40\n")
    first, second = find(dataset).scans
    assert first.warnings == ()
    assert second.warnings == ("sub-02 has no row in participants.tsv.",)
