"""Which row of which table belongs to a scan."""

from __future__ import annotations

from pathlib import Path

import pytest
from bids_dataset import find, keys, table, write


def test_most_specific_table_wins(dataset: Path) -> None:
    for ses in ("a", "b"):
        write(dataset, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
        write(dataset, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_run-2_T1w.nii.gz")
    table(dataset, "participants.tsv", "participant_id age site group; sub-01 30 P HC")
    table(dataset, "sub-01/sub-01_sessions.tsv", "session_id age site; ses-a 31 S; ses-b 32 n/a")
    table(
        dataset,
        "sub-01/ses-a/sub-01_ses-a_scans.tsv",
        "filename site age; anat/sub-01_ses-a_T1w.nii.gz F n/a",
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


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("participant_id\tage\r\nsub-01\t30\r\nsub-02\t40\r\n", None),
        ("\ufeffparticipant_id\tage\n01\t30\n02\t40\n", None),
        ("Participant_ID\tAge\nsub-01\t30\nsub-02\t40\n\n", None),
        ('"participant_id"\t"age"\n"sub-01"\t"30"\n"sub-02"\t"40"\n', None),
        ("participant\u00a0id\tage\nSUB-01 \t\u00a030\nSub-02\u200b\t40\n", None),
        ("participant_id\tage\t\nsub-01\t30\t\t\nsub-02\t40\t\n", None),
        ("participant_id\tage\rsub-01\t30\rsub-02\t40", None),
        ("participant_id\tage\tage\nsub-01\t30\t1\nsub-02\t40\t2\n", None),
        ('participant_id,age,x\nsub-01,30,"a,b"\nsub-02,40,c\n', "separated by ','"),
        ("participant_id;age\nsub-01;30\nsub-02;40\n", "separated by ';'"),
        ("participant_id|age\nsub-01|30\nsub-02|40\n", "separated by '|'"),
        ("participant_id\tage\nsub-01\t30\nsub-01\t30\nsub-02\t40\n", "01 (lines 2, 3)"),
        ("participant_id\tage\n\nsub-01\t30\nsub-02\t40\n\t99\n", "participant_id in line 5"),
        ("participant_id\tage\tx\nsub-01\t30\nsub-02\t40\ty\n", "too few cells in line 2"),
        (b"participant_id\tage\tx\nsub-01\t30\tJos\xe9\nsub-02\t40\tx\n", "Latin-1"),
        ("participant_id\tage\nsub-01\t30\nsub-02\t40\n".encode("utf-16"), "UTF-16"),
        ("participant_id\tage\nsub-01\t30\nsub-02\t40\n".encode("utf-16-le"), "UTF-16"),
    ],
)
def test_tables_as_spreadsheets_save_them(
    dataset: Path, text: str | bytes, warning: str | None
) -> None:
    write(dataset, "participants.tsv", text)
    inventory = find(dataset)
    assert [s.age for s in inventory.scans] == [30.0, 40.0]
    assert [warning in note for note in inventory.warnings] == ([True] if warning else [])


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01\x02", b"nonsense", b"age\tsex\n30\tM\n", b"\xff\xfeab\x00\xd8"]
)
def test_malformed_participants_table_only_warns(dataset: Path, content: bytes) -> None:
    write(dataset, "participants.tsv", content)
    inventory = find(dataset)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert len(inventory.warnings) == 1
    assert "participants.tsv" in inventory.warnings[0]
    assert "not used" in inventory.warnings[0]
    assert inventory.scans[0].age is None


def test_a_subject_without_row_is_told(dataset: Path) -> None:
    table(dataset, "participants.tsv", "participant_id age; sub-01 30; sub-2 40")
    inventory = find(dataset)
    first, second = inventory.scans
    assert first.warnings == ()
    said = "participants.tsv has no row of sub-02: did you mean sub-2?"
    assert second.warnings == inventory.warnings == (said,)
    table(dataset, "participants.tsv", "participant_id age; sub-01 30; sub-12 40")
    write(dataset, "sub-03/anat/sub-03_T1w.nii.gz")
    inventory = find(dataset)
    assert inventory.scans[1].warnings == ("participants.tsv has no row of sub-02.",)
    said = "participants.tsv has no row of sub-02. So it is with 1 more."
    assert inventory.warnings == (said,)


Facts = dict[str, tuple[float | None, str, str | None]]


def facts(root: Path) -> tuple[Facts, dict[str, str]]:
    """Age, site and sex of the scans of sub-01, and what is said about each."""
    scans = find(root, participant_label=("01",)).scans
    return (
        {s.key.removeprefix("sub-01_"): (s.age, s.site, s.sex) for s in scans},
        {s.key.removeprefix("sub-01_"): " ".join(s.warnings) for s in scans},
    )


@pytest.fixture
def sessions(dataset: Path) -> Path:
    """The same dataset, sub-01 with two sessions."""
    (dataset / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    for ses in ("01", "02"):
        write(dataset, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
    return dataset


@pytest.mark.parametrize(
    "column",
    ["session_id", "Session", "SES", "visit", "session-id", "Session Label", "VISCODE", "Wave"],
)
def test_the_row_of_the_session_counts_whatever_its_column_is_called(
    sessions: Path, column: str
) -> None:
    write(
        sessions,
        "participants.tsv",
        f"participant_id\t{column}\tage\tsex\tsite\n"
        "sub-01\tses-02\t33\tM\tB\nsub-01\t01\t30\tM\tA\nsub-02\tn/a\t5\tF\tA\n",
    )
    assert facts(sessions) == (
        {"ses-01": (30.0, "A", "M"), "ses-02": (33.0, "B", "M")},
        {"ses-01": "", "ses-02": ""},
    )
    assert find(sessions, participant_label=("02",)).scans[0].age == 5
    # A scan without a session takes what all rows say, as long as they agree.
    write(sessions, "sub-01/anat/sub-01_T1w.nii.gz")
    assert facts(sessions)[0]["sub-01"] == (None, "unknown", "M")


def test_a_session_without_a_row_of_its_own_takes_no_other(sessions: Path) -> None:
    table(sessions, "participants.tsv", "participant_id session age sex site; sub-01 1 30 M A")
    found, said = facts(sessions)
    assert found == {"ses-01": (None, "unknown", None), "ses-02": (None, "unknown", None)}
    assert said["ses-01"] == (
        "participants.tsv has no row of sub-01_ses-01: did you mean sub-01_ses-1?"
    )
    assert said["ses-02"] == "participants.tsv has no row of sub-01_ses-02."


def test_rows_that_cannot_be_told_apart_count_where_they_agree(sessions: Path) -> None:
    rows = "sub-01 30 M 1 HC; ; sub-01 33 M 1 n/a; sub-02 5 F 2 HC"
    table(sessions, "participants.tsv", f"participant_id age sex site group; {rows}")
    inventory = find(sessions)
    scan = inventory.scans[0]
    assert (scan.age, scan.sex, scan.site, scan.diagnosis) == (None, "M", "1", None)
    assert inventory.warnings == (
        "participants.tsv has several rows for 01 (lines 2, 4): cells in which they differ are "
        "not used.",
    )
    assert "age" not in scan.columns
    table(
        sessions, "sub-01/sub-01_sessions.tsv", "session_id age; ses-01 30; ses-01 31; ses-02 33"
    )
    assert facts(sessions)[0] == {"ses-01": (None, "1", "M"), "ses-02": (33.0, "1", "M")}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("session_id\tage\n1\t31\n2\t33\n", "sub-01_sessions.tsv has no row of ses-02: did you "
         "mean ses-2?"),
        ("session_id\tage\nses-01\t31\nses-02\tn/a\n", "sub-01_sessions.tsv has ages of single"),
        ("session_id\tage\nses-01\t31\n", "sub-01_sessions.tsv has no row of ses-02."),
        ("session\tage\nses-02\t31\n", "sub-01_sessions.tsv cannot be used"),
        (b"\0", "sub-01_sessions.tsv cannot be used"),
    ],
)  # fmt: skip
def test_the_age_at_another_time_is_not_used(
    sessions: Path, table: str | bytes, said: str
) -> None:
    write(sessions, "sub-01/sub-01_sessions.tsv", table)
    found, notes = facts(sessions)
    assert found["ses-02"] == (None, "unknown", "M")
    assert said in notes["ses-02"]
    assert "the age at another time" in notes["ses-02"]


def test_further_columns_come_from_the_most_specific_table_that_has_them(sessions: Path) -> None:
    table(sessions, "participants.tsv", "participant_id age site bmi; sub-01 3 A 20")
    table(sessions, "sub-01/sub-01_sessions.tsv", "session_id site bmi; ses-01 B 21; ses-02 - .")
    assert facts(sessions)[0] == {"ses-01": (3.0, "B", None), "ses-02": (3.0, "A", None)}
    columns = [scan.columns.get("bmi") for scan in find(sessions, participant_label=("01",)).scans]
    assert columns == ["21", None]


def test_a_scan_is_found_under_its_name_without_compression(dataset: Path) -> None:
    name = "sub-01/sub-01_scans.tsv"
    for other in ("anat/sub-01_T1w.nii", "sub-01_T1w", "anat\\sub-01_T1w.nii.gz"):
        write(dataset, name, f"filename\tage\n{other}\t41\n")
        scan = find(dataset).scans[0]
        assert (scan.age, scan.warnings) == (41, ())
    write(dataset, name, "filename\tage\nanat/sub-01_T2w.nii.gz\t41\n")
    scan = find(dataset).scans[0]
    assert scan.age is None
    assert scan.warnings[0] == "sub-01_scans.tsv has no row of sub-01_T1w."


def test_a_subject_may_list_the_scans_of_all_sessions(sessions: Path) -> None:
    name = "sub-01/sub-01_scans.tsv"
    write(sessions, name, "filename\tage\nses-01/anat/sub-01_ses-01_T1w.nii.gz\t41\n")
    assert facts(sessions)[0]["ses-01"] == (41.0, "unknown", "M")
    write(sessions, name, "filename\tage\nses-1/anat/sub-01_ses-1_T1w.nii.gz\t41\n")
    found, said = facts(sessions)
    assert found["ses-01"] == (None, "unknown", "M")
    assert "did you mean sub-01_ses-1_T1w?" in said["ses-01"]
    assert "the age at another time" in said["ses-01"]


@pytest.mark.parametrize(
    "text",
    [
        "participant_id\tweight\tage\nsub-01\t\t70\t35\nsub-02\t60\t40\n",
        "participant_id,age,weight\nsub-01,35,5,70\nsub-02,40,60\n",
    ],
)
def test_a_row_whose_cells_cannot_be_told_apart_is_not_used(dataset: Path, text: str) -> None:
    """A doubled tab made a weight of 70 an age; a comma made 35,5 into 35."""
    write(dataset, "participants.tsv", text)
    inventory = find(dataset)
    assert [s.age for s in inventory.scans] == [None, 40.0]
    said = "participants.tsv has more cells than columns in line 2: not used."
    assert inventory.warnings[-1] == said


def test_what_holds_for_the_tables_of_all_subjects_is_said_once(dataset: Path) -> None:
    for sub in ("01", "02", "03"):
        write(dataset, f"sub-{sub}/anat/sub-{sub}_T1w.nii.gz")
        row = f"anat/sub-{sub}_T1w.nii.gz,31\n"
        write(dataset, f"sub-{sub}/sub-{sub}_scans.tsv", f"filename,age\n{row}")
        write(dataset, f"sub-{sub}/sub-{sub}_scans.json", '{"age": {"Units": "furlongs"}}')
    separator, unit = (note for note in find(dataset).warnings if "scans" in note)
    assert (
        separator == "sub-01_scans.tsv is separated by ',' instead of tabs. So it is with 2 more."
    )
    assert "'furlongs'" in unit
