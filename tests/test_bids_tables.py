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
        ("participant_id|age\nsub-01|30\nsub-02|40\n", "separated by '|'"),
        ("participant_id\tage\nsub-01\t30\nsub-01\t30.0\nsub-02\t40\n", "01 (lines 2 and 3)"),
        ("participant_id\tage\n\nsub-01\t30\nsub-02\t40\n\t99\n", "participant_id in line 5"),
        ("participant\u00a0id\tage\nSUB-01 \t\u00a030\nSub-02\u200b\t40\n", None),
        ("participant_id\tage\t\nsub-01\t30\t\t\nsub-02\t40\t\n", None),
        ("participant_id\tage\rsub-01\t30\rsub-02\t40", None),
        ("participant_id\tage\tx\nsub-01\t30\nsub-02\t40\ty\n", "too few cells in line 2"),
        ("participant_id\tage\tage\nsub-01\t30\t1\nsub-02\t40\t2\n", "columns of the same name"),
        (
            "participant_id\tage\tname\nsub-01\t30\tJos\xe9\nsub-02\t40\tx\n".encode("latin-1"),
            "Latin-1",
        ),
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
    if warning is None:
        assert inventory.warnings == ()
    else:
        (note,) = inventory.warnings
        assert warning in note


def test_a_subject_without_row_is_told(dataset: Path) -> None:
    write(dataset, "participants.tsv", "participant_id\tage\nsub-01\t30\nsub-2\t40\n")
    inventory = find(dataset)
    first, second = inventory.scans
    assert first.warnings == ()
    said = "sub-02 has no row in participants.tsv: did you mean 'sub-2'?"
    assert second.warnings == (said,)
    assert inventory.warnings == (f"1 participant without a row in participants.tsv: {said}",)
    write(dataset, "participants.tsv", "participant_id\tage\nsub-01\t30\nsub-12\t40\n")
    assert find(dataset).scans[1].warnings == ("sub-02 has no row in participants.tsv.",)


Facts = dict[str, tuple[float | None, str, str | None]]


def facts(root: Path) -> tuple[Facts, dict[str, str]]:
    """Age, site and sex of the scans of sub-01, and what is said about each."""
    scans = find(root, participant_label=("01",)).scans
    return (
        {s.key.removeprefix("sub-01_"): (s.age, s.site, s.sex) for s in scans},
        {s.key.removeprefix("sub-01_"): " ".join(s.warnings) for s in scans},
    )


def with_sessions(root: Path) -> Path:
    (root / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    for ses in ("01", "02"):
        write(root, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
    return root


@pytest.mark.parametrize(
    "column",
    ["session_id", "session", "Session", "SES", "visit", "session-id", "Session Label", "ses_no",
     "VISCODE", "Wave"],
)  # fmt: skip
def test_the_row_of_the_session_counts_whatever_its_column_is_called(
    dataset: Path, column: str
) -> None:
    write(
        with_sessions(dataset),
        "participants.tsv",
        f"participant_id\t{column}\tage\tsex\tsite\n"
        "sub-01\tses-02\t33\tM\tB\nsub-01\t01\t30\tM\tA\nsub-02\t01\t5\tF\tA\n",
    )
    assert facts(dataset) == (
        {"ses-01": (30.0, "A", "M"), "ses-02": (33.0, "B", "M")},
        {"ses-01": "", "ses-02": ""},
    )


def test_a_session_without_a_row_of_its_own_takes_no_other(dataset: Path) -> None:
    with_sessions(dataset)
    header = "participant_id\tsession\tage\tsex\tsite\n"
    write(dataset, "participants.tsv", header + "sub-01\t1\t30\tM\tA\n")
    found, said = facts(dataset)
    assert found == {"ses-01": (None, "unknown", None), "ses-02": (None, "unknown", None)}
    assert said["ses-01"].endswith("did you mean 'sub-01 1'?")
    assert said["ses-02"] == "ses-02 of sub-01 has no row in participants.tsv."
    rows = "sub-01\tses-01\t30\tM\tA\nsub-01\tn/a\t29\tM\tB\n"
    write(dataset, "participants.tsv", header + rows)
    found, said = facts(dataset)
    assert found == {"ses-01": (30.0, "A", "M"), "ses-02": (None, "B", "M")}
    assert "the age at another time" in said["ses-02"]


def test_rows_that_cannot_be_told_apart_count_where_they_agree(dataset: Path) -> None:
    with_sessions(dataset)
    write(
        dataset,
        "participants.tsv",
        "participant_id\tage\tsex\tsite\tgroup\n"
        "sub-01\t30\tM\t1\tHC\n\nsub-01\t33\tM\t1.0\tn/a\nsub-02\t5\tF\t2\tHC\n",
    )
    scan = find(dataset).scans[0]
    assert (scan.age, scan.sex, scan.site, scan.diagnosis) == (None, "M", "1", "HC")
    assert scan.warnings == (
        "participants.tsv:age: lines 2 and 4 of participants.tsv differ (30, 33), so it was not "
        "used.",
    )
    assert "age" not in scan.columns


def test_rows_of_a_session_or_a_file_that_differ_are_not_used(dataset: Path) -> None:
    with_sessions(dataset)
    write(
        dataset,
        "sub-01/sub-01_sessions.tsv",
        "session_id\tage\tsite\nses-01\t30\tA\nses-01\t31\tA\nses-02\t33\tA\n",
    )
    write(
        dataset,
        "sub-01/ses-02/sub-01_ses-02_scans.tsv",
        "filename\tsite\nanat/sub-01_ses-02_T1w.nii.gz\tB\nsub-01_ses-02_T1w.nii.gz\tC\n",
    )
    found, said = facts(dataset)
    assert found == {"ses-01": (None, "A", "M"), "ses-02": (33.0, "unknown", "M")}
    assert "lines 2 and 3 of sub-01_sessions.tsv differ (30, 31)" in said["ses-01"]
    assert "lines 2 and 3 of sub-01_ses-02_scans.tsv differ (B, C)" in said["ses-02"]


def test_a_scan_without_session_takes_what_all_rows_of_its_person_say(dataset: Path) -> None:
    write(
        dataset,
        "participants.tsv",
        "participant_id\tsession\tage\tsex\nsub-01\ta\t30\tM\nsub-01\tb\t33\tM\n"
        "sub-02\ta\t40\tF\n",
    )
    first, second = find(dataset).scans
    assert (first.age, first.sex, second.age, second.warnings) == (None, "M", 40.0, ())
    assert "lines 2 and 3" in first.warnings[0]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("session_id\tage\n1\t31\n2\t33\n", "ses-02 has no row in sub-01_sessions.tsv: did you "
         "mean '2'?"),
        ("session_id\tage\nses-01\t31\nses-02\tn/a\n", "sub-01_sessions.tsv has ages of single"),
        ("session_id\tage\nses-01\t31\n", "ses-02 has no row in sub-01_sessions.tsv."),
        ("session\tage\nses-02\t31\n", "sub-01_sessions.tsv cannot be used"),
        (b"\0", "sub-01_sessions.tsv cannot be used"),
    ],
)  # fmt: skip
def test_the_age_at_another_time_is_not_used(dataset: Path, table: str | bytes, said: str) -> None:
    write(with_sessions(dataset), "sub-01/sub-01_sessions.tsv", table)
    found, notes = facts(dataset)
    assert found["ses-02"] == (None, "unknown", "M")
    assert said in notes["ses-02"]
    assert "the age at another time" in notes["ses-02"]


def test_a_less_specific_value_is_used_and_said(dataset: Path) -> None:
    with_sessions(dataset)
    write(
        dataset, "participants.tsv", "participant_id\tage\tsex\tsite\tbmi\nsub-01\t3\tM\tA\t20\n"
    )
    write(
        dataset,
        "sub-01/sub-01_sessions.tsv",
        "session_id\tsite\tbmi\nses-01\tB\t21\nses-02\t-\t.\n",
    )
    found, said = facts(dataset)
    assert found == {"ses-01": (3.0, "B", "M"), "ses-02": (3.0, "A", "M")}
    assert said == {
        "ses-01": "",
        "ses-02": "site: taken from participants.tsv:site, as it is missing in "
        "sub-01_sessions.tsv:site.",
    }
    columns = [scan.columns.get("bmi") for scan in find(dataset, participant_label=("01",)).scans]
    assert columns == ["21", None]


def test_a_scan_is_found_under_its_name_without_compression(dataset: Path) -> None:
    name = "sub-01/sub-01_scans.tsv"
    for other in ("anat/sub-01_T1w.nii", "sub-01_T1w", "anat\\sub-01_T1w.nii.gz"):
        write(dataset, name, f"filename\tage\n{other}\t41\n")
        scan = find(dataset).scans[0]
        assert scan.age == 41
        assert bool(scan.warnings) == (not other.endswith(".gz"))
    write(dataset, name, "filename\tage\nanat/sub-01_T2w.nii.gz\t41\n")
    scan = find(dataset).scans[0]
    assert scan.age is None
    assert scan.warnings[0] == "sub-01_T1w has no row in sub-01_scans.tsv."


def test_a_subject_may_list_the_scans_of_all_sessions(dataset: Path) -> None:
    write(
        with_sessions(dataset),
        "sub-01/sub-01_scans.tsv",
        "filename\tage\nses-01/anat/sub-01_ses-01_T1w.nii.gz\t41\n",
    )
    assert facts(dataset)[0]["ses-01"] == (41.0, "unknown", "M")


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


@pytest.mark.parametrize(
    "name",
    ["sub-01/sub-1_sessions.tsv", "sub-01/sessions.tsv", "sub-01/sub-01_sessions.csv",
     "sessions.tsv", "sub-01/ses-01/sub-01_scans.tsv", "Participants.xlsx"],
)  # fmt: skip
def test_a_table_under_another_name_is_told(dataset: Path, name: str) -> None:
    with_sessions(dataset)
    if name == "Participants.xlsx":
        assert find(dataset).warnings == ()
        write(dataset, name, "x")
        assert find(dataset).warnings == ()
        (dataset / "participants.tsv").unlink()
    else:
        write(dataset, name, "session_id\tage\nses-01\t31\n")
    (warning,) = find(dataset).warnings
    assert warning.startswith(f"1 table not read, as BIDS has no such name there ({name}):")


def test_a_table_of_all_sessions_that_has_none_of_a_scan_is_told(dataset: Path) -> None:
    write(
        with_sessions(dataset),
        "sub-01/sub-01_scans.tsv",
        "filename\tage\nses-1/anat/sub-01_ses-1_T1w.nii.gz\t41\n",
    )
    found, said = facts(dataset)
    assert found["ses-01"] == (None, "unknown", "M")
    assert "did you mean 'ses-1/anat/sub-01_ses-1_T1w.nii.gz'?" in said["ses-01"]
    assert "the age at another time" in said["ses-01"]


def test_what_holds_for_the_tables_of_all_subjects_is_said_once(dataset: Path) -> None:
    for sub in ("01", "02", "03"):
        write(dataset, f"sub-{sub}/anat/sub-{sub}_T1w.nii.gz")
        row = f"anat/sub-{sub}_T1w.nii.gz,31\n"
        write(dataset, f"sub-{sub}/sub-{sub}_scans.tsv", f"filename,age\n{row}")
        write(dataset, f"sub-{sub}/sub-{sub}_scans.json", '{"age": {"Units": "furlongs"}}')
    separator, unit = (note for note in find(dataset).warnings if "scans" in note)
    said = "sub-01_scans.tsv is separated by ',' instead of tabs. So it is with 2 more files."
    assert separator == said
    assert "'furlongs'" in unit
    assert unit.endswith("So it is with 2 more files.")
