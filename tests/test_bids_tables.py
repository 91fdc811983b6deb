"""Which row of which table belongs to a scan, and what it says of age, sex, site and diagnosis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bids_dataset import find, table, write
from command_line import parse

from bids_harmony.bids.tables import parse_age
from bids_harmony.errors import UsageError


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
    assert found["sub-01_ses-a"].columns["site"] == "F"


BOTH, SECOND, NONE = [30.0, 40.0], [None, 40.0], [None, None]


@pytest.mark.parametrize(
    ("text", "ages", "warning"),
    [
        ("participant_id\tage\r\nsub-01\t30\r\nsub-02\t40\r\n", BOTH, None),
        ("\ufeffparticipant_id\tage\n01\t30\n02\t40\n", BOTH, None),
        ('"Participant_ID"\t"Age"\n"sub-01"\t"30"\n"sub-02"\t"40"\n\n', BOTH, None),
        ("participant\u00a0id\tage\nSUB-01 \t\u00a030\nSub-02\u200b\t40\n", BOTH, None),
        ("participant_id\tage\t\nsub-01\t30\t\t\nsub-02\t40\t\n", BOTH, None),
        ("participant_id\tage\tage\rsub-01\t30\t1\rsub-02\t40\t2", BOTH, None),
        ('participant_id,age,x\nsub-01,30,"a,b"\nsub-02,40,c\n', BOTH, "separated by ','"),
        ("participant_id;age\nsub-01;30\nsub-02;40\n", BOTH, "separated by ';'"),
        ("participant_id\tage\nsub-01\t30\nsub-01\t30\nsub-02\t40\n", BOTH, "rows for 01:"),
        ("participant_id\tage\n\nsub-01\t30\nsub-02\t40\n\t9\n", BOTH, "participant_id in line 5"),
        ("participant_id\tage\tx\nsub-01\t30\nsub-02\t40\ty\n", BOTH, "columns in line 2"),
        (b"participant_id\tage\tx\nsub-01\t30\tJos\xe9\nsub-02\t40\tx\n", BOTH, "Latin-1"),
        ("participant_id\tage\nsub-01\t30\nsub-02\t40\n".encode("utf-16"), BOTH, "UTF-16"),
        # A doubled tab made a weight of 70 an age.
        ("participant_id\tweight\tage\nsub-01\t\t70\t35\nsub-02\t60\t40\n", SECOND, "more cells"),
        (b"", NONE, "participants.tsv cannot be read"),
        (b"\x00\x01\x02", NONE, "participants.tsv cannot be read"),
        ("age\tsex\n30\tM\n", NONE, "participants.tsv cannot be read"),
    ],
)  # fmt: skip
def test_tables_as_spreadsheets_save_them(
    dataset: Path, text: str | bytes, ages: list[float | None], warning: str | None
) -> None:
    write(dataset, "participants.tsv", text)
    inventory = find(dataset)
    assert [s.age for s in inventory.scans] == ages
    assert [warning in note for note in inventory.warnings] == ([True] if warning else [])


def test_a_warning_names_subjects_without_row(dataset: Path) -> None:
    table(dataset, "participants.tsv", "participant_id age; sub-01 30; sub-2 40")
    inventory = find(dataset)
    absent = "participants.tsv has no row for sub-02"
    assert [s.warnings for s in inventory.scans] == [(), (f"{absent}: did you mean sub-2?",)]
    assert inventory.warnings == inventory.scans[1].warnings
    table(dataset, "participants.tsv", "participant_id age; sub-01 30; sub-12 40")
    write(dataset, "sub-03/anat/sub-03_T1w.nii.gz")
    inventory = find(dataset)
    assert inventory.scans[1].warnings == (f"{absent}.",)
    assert inventory.warnings == (f"{absent}. The same applies to 1 more.",)


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


def test_values_that_differ_between_rows_of_an_id_are_not_used(sessions: Path) -> None:
    """Also if a column names the session: values of a session belong in ``sessions.tsv``."""
    rows = "sub-01 30 M 1 HC 01; ; sub-01 33 M 1 n/a 02; sub-02 5 F 2 HC 01"
    table(sessions, "participants.tsv", f"participant_id age sex site group session_id; {rows}")
    inventory = find(sessions)
    scan = inventory.scans[0]
    assert (scan.age, scan.sex, scan.site, scan.diagnosis) == (None, "M", "1", None)
    assert inventory.warnings == (
        "participants.tsv has several rows for 01: cells in which they differ are not used.",
    )
    assert "age" not in scan.columns
    table(
        sessions, "sub-01/sub-01_sessions.tsv", "session_id age; ses-01 30; ses-01 31; ses-02 33"
    )
    assert facts(sessions)[0] == {"ses-01": (None, "1", "M"), "ses-02": (33.0, "1", "M")}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("session_id\tage\n1\t31\n2\t33\n", "sub-01_sessions.tsv has no row for ses-02: did you "
         "mean ses-2?"),
        ("session_id\tage\nses-01\t31\nses-02\tn/a\n", "sub-01_sessions.tsv has ages by session"),
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
    assert "the age at another session" in notes["ses-02"]


def test_rows_of_scans_are_found_by_file_name(sessions: Path) -> None:
    name = "sub-02/sub-02_scans.tsv"
    for other in ("anat/sub-02_T1w.nii", "sub-02_T1w", "anat\\sub-02_T1w.nii.gz"):
        write(sessions, name, f"filename\tage\n{other}\t41\n")
        scan = find(sessions).scans[2]
        assert (scan.age, scan.warnings) == (41, ())
    write(sessions, name, "filename\tage\nanat/sub-02_T2w.nii.gz\t41\n")
    scan = find(sessions).scans[2]
    assert scan.age is None
    assert scan.warnings[0] == "sub-02_scans.tsv has no row for sub-02_T1w."
    # One table may list the scans of all sessions.
    name = "sub-01/sub-01_scans.tsv"
    write(sessions, name, "filename\tage\nses-01/anat/sub-01_ses-01_T1w.nii.gz\t41\n")
    assert facts(sessions)[0]["ses-01"] == (41.0, "unknown", "M")
    write(sessions, name, "filename\tage\nses-1/anat/sub-01_ses-1_T1w.nii.gz\t41\n")
    found, notes = facts(sessions)
    assert found["ses-01"] == (None, "unknown", "M")
    assert "did you mean sub-01_ses-1_T1w?" in notes["ses-01"]


def test_equal_warnings_about_many_subjects_are_merged(dataset: Path) -> None:
    for sub in ("01", "02", "03"):
        write(dataset, f"sub-{sub}/anat/sub-{sub}_T1w.nii.gz")
        row = f"anat/sub-{sub}_T1w.nii.gz,31\n"
        write(dataset, f"sub-{sub}/sub-{sub}_scans.tsv", f"filename,age\n{row}")
        write(dataset, f"sub-{sub}/sub-{sub}_scans.json", '{"age": {"Units": "furlongs"}}')
    separator, unit = (note for note in find(dataset).warnings if "scans" in note)
    first = "sub-01_scans.tsv is separated by ',' instead of tabs."
    assert separator == f"{first} The same applies to 2 more."
    assert "'furlongs'" in unit


# What a cell says


def people(root: Path, header: str, *rows: str) -> None:
    """Write ``participants.tsv`` of sub-01, sub-02 ...; cells are separated by blanks."""
    named = [f"sub-{n:02d} {row}" for n, row in enumerate(rows, start=1)]
    table(root, "participants.tsv", "; ".join([f"participant_id {header}", *named]))


def test_named_columns(dataset: Path) -> None:
    people(dataset, "site Scanner years age", "A T1 5 30", "B T2 6 40")
    first = find(dataset).scans[0]
    assert (first.site, first.age) == ("A", 30.0)
    first = find(dataset, site_column="scanner", age_column="years").scans[0]
    assert (first.site, first.site_source, first.age) == ("T1", "participants.tsv:Scanner", 5.0)
    with pytest.raises(UsageError, match="--site-column where") as error:
        find(dataset, site_column="where")
    assert error.value.remedy == "Existing columns: participant_id, site, Scanner, years, age."
    (dataset / "participants.tsv").unlink()
    with pytest.raises(UsageError) as error:
        find(dataset, sex_column="sex")
    assert "no table can be read" in error.value.remedy


@pytest.mark.parametrize(
    ("text", "age", "note"),
    [
        ("35", 35.0, ""), (" 35.25 ", 35.25, ""), ("035Y", 35.0, ""), ("0", 0.0, ""),
        ("35 years old", 35.0, ""), ("35 y.o.", 35.0, ""), ("35 yrs.", 35.0, ""),
        ("89+", 89.0, "was read as 89"), (">89", 89.0, "was read as 89"),
        ("35,5", 35.5, "was read as 35.5"), ("26 weeks", 0.4983, "was read as"),
        ("18M", 1.5, "was read as 1.5"), ("18 mo", 1.5, "was read as 1.5"),
        ("-3", None, "outside"), ("121", None, "outside"),
        *((text, None, "not a number") for text in (
            "35 decimal units", "35 s", "2 y 3 m", "12,345 days", "1e9", "<5", "20-25", "old",
        )),
    ],
)  # fmt: skip
def test_ages(text: str, age: float | None, note: str) -> None:
    found, said = parse_age(text)
    assert found == age
    assert note in said if note else not said


@pytest.mark.parametrize(
    ("units", "age"),
    [
        *dict.fromkeys(
            ("Years", "yr", "yrs.", "y", "decimal years", "years old", "years (decimal)",
             "Age in years", "year(s)", "y/o", "n/a", ""),
            24.0,
        ).items(),
        *dict.fromkeys(("months", "Month", "mo", "m", "decimal months", "in months"), 2.0).items(),
        ("weeks", 0.46), ("days", 0.0657), ("d", 0.0657),
    ],
)  # fmt: skip
def test_spellings_of_units(dataset: Path, units: str, age: float) -> None:
    """24 months are 2 years; 24 weeks 24 * 7 / 365.25; 24 days 24 / 365.25."""
    people(dataset, "age", "24", "24")
    write(dataset, "participants.json", json.dumps({"Age": {"Units": units}, "x": 1}))
    inventory = find(dataset)
    assert [s.age for s in inventory.scans] == [pytest.approx(age, abs=1e-4)] * 2
    assert inventory.warnings == ()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        *(({"Units": units}, repr(units)[:12]) for units in (
            "Measurement units. [<prefix symbol>] <unit symbol> format", "years or months",
            "decades", "1/12 year", "mm",
        )),
        *((entry, "do not clearly state") for entry in (
            "age of the child (days)", {"Description": "Age in months"},
            {"LongName": "Age in completed full months (not years)"},
        )),
        *(({"Description": text}, None) for text in (
            "Age in years on the day of the scan", "Age within 3 days of the scan",
            "Age at 6 months", "Age in decimal years, computed from months",
        )),
    ],
)  # fmt: skip
def test_units_that_are_not_understood_make_their_column_unusable(
    dataset: Path, entry: object, said: str | None
) -> None:
    write(dataset, "participants.json", json.dumps({"height": {"Units": "mm"}, "age": entry}))
    inventory = find(dataset)
    assert [s.sex for s in inventory.scans] == ["M", "F"]
    if said is None:
        assert [s.age for s in inventory.scans] == [30.0, 40.5]
        assert inventory.warnings == ()
    else:
        assert [s.age for s in inventory.scans] == [None, None]
        (warning,) = inventory.warnings
        assert warning.startswith("The column age of participants.tsv is not used: its ")
        assert said in warning
        assert said in inventory.scans[0].warnings[0]


@pytest.mark.parametrize(
    ("column", "age"),
    [("age_months_at_scan", 2.0), ("ageMonthsV1", 2.0), ("Age_(months)", 2.0), ("age_mo", 2.0),
     ("age_month_6", 24.0), ("age_12_months", 24.0), ("age_yrs", 24.0),
     ("age_years_months", None)],
)  # fmt: skip
def test_a_unit_in_the_name_of_a_column_counts(
    dataset: Path, column: str, age: float | None
) -> None:
    """24 months are 2 years; of a name that may mean both, none is used."""
    people(dataset, column, "24")
    scan = find(dataset, age_column=column).scans[0]
    assert scan.age == age
    assert any("not clearly state" in note for note in scan.warnings) == (age is None)
    write(dataset, "participants.json", json.dumps({column: {"Units": "months"}}))
    assert find(dataset, age_column=column).scans[0].age == 2.0


@pytest.mark.parametrize("content", ["{", b"\0", "/annex/objects/MD5E-s1--0\n"])
@pytest.mark.parametrize("name", ["participants.json", "sessions.json", "sub-01/sessions.json"])
def test_a_dictionary_that_cannot_be_read_makes_ages_unusable(
    dataset: Path, name: str, content: str | bytes
) -> None:
    write(dataset, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")
    if "sessions" in name:
        write(dataset, "sub-01/sub-01_sessions.tsv", "session_id\tage\nses-a\t24\n")
    write(dataset, name, content)
    inventory = find(dataset)
    age = {s.key: s.age for s in inventory.scans}
    assert age["sub-01_ses-a"] is None
    assert age["sub-02"] == (None if "participants" in name else 40.5)
    assert {s.sex for s in inventory.scans} == {"M", "F"}
    assert any("json cannot be read" in note for note in inventory.warnings)
    assert any(note.startswith("The column age of") for note in inventory.warnings)


def test_units_are_inherited_like_sidecars(dataset: Path) -> None:
    write(dataset, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")
    write(dataset, "sub-01/sub-01_sessions.tsv", "session_id\tAge at scan\nses-a\t24\n")
    for name, text, age in (
        ("participants.json", '{"Age at scan": {"Units": "days"}}', 24),
        ("sessions.json", '{"age_at_scan": {"Units": "months"}}', 2),
        ("sub-01/sub-01_sessions.json", '{"AgeAtScan": {"Description": "Age"}}', 2),
        ("sub-01/sub-01_sessions.json", '{"age-at-scan": {"Units": "years"}}', 24),
        # What is said nearer to the table holds, whatever stands further up.
        ("sessions.json", "{", 24),
    ):
        write(dataset, name, text)
        assert find(dataset, age_column="Age at scan").scans[1].age == age


@pytest.mark.parametrize("cell", ["", "-", "n/a", "#N/A", "Unknown", "\u2014", "-9", "-999.0"])
def test_a_cell_without_value_is_no_site_and_no_class(dataset: Path, cell: str) -> None:
    people(dataset, "site dx age sex", f"{cell} {cell} {cell} {cell}", "A HC 30 F")
    first = find(dataset).scans[0]
    assert (first.site, first.diagnosis, first.age, first.sex) == ("unknown", None, None, None)
    assert bool(first.warnings) == cell.startswith("-9")
    write(dataset, "sub-01/anat/sub-01_T1w.json", '{"Manufacturer": "GE"}')
    first = find(dataset).scans[0]
    assert (first.site, first.site_source) == ("GE", "sidecar")


def test_sites_and_classes_are_one_however_they_are_spelled(
    dataset: Path, paths: list[str]
) -> None:
    for one, other in (("1", "1.0"), ("01", "1"), ("1,0", "1.00")):
        people(dataset, "site dx", f"{one} 1", f"{other} 1.0")
        assert {(s.site, s.diagnosis) for s in find(dataset).scans} == {("1", "1")}
    assert parse(paths, "--reference-site", "01", level="train").train.reference_site == "1"
    for one, other in (("Site-A", "site_a"), ("Site01", "Site1")):
        people(dataset, "site", one, other)
        (warning,) = find(dataset).warnings
        assert warning.endswith(f"treated as different sites: {one}, {other}.")
    people(dataset, "site", "A10", "B\u00a0\u00a0x")
    inventory = find(dataset)
    assert [s.site for s in inventory.scans] == ["A10", "B x"]
    assert inventory.warnings == ()


@pytest.mark.parametrize(
    ("column", "what"),
    [("Age (years)", "age"), ("AgeAtVisit", "age"), ("Site of scan", "site"),
     ("Sex at birth", "sex"), ("diagnostic_code", "diagnosis"), ("language", None)],
)  # fmt: skip
def test_columns_that_look_like_the_one_wanted_are_named(
    dataset: Path, column: str, what: str | None
) -> None:
    write(dataset, "participants.tsv", f"participant_id\t{column}\nsub-01\t1\nsub-02\t2\n")
    said = f'Give --{what}-column if "{column}" of participants.tsv is the {what}.'
    assert find(dataset).warnings == ((said,) if what else ())
    if what:
        assert find(dataset, **{f"{what}_column": column}).warnings == ()


def test_odd_cells_warn_their_scan(dataset: Path) -> None:
    people(dataset, "age sex", "89+ 1", "4 female", "5 man")
    write(dataset, "sub-03/anat/sub-03_T1w.nii.gz")
    first, second, third = find(dataset).scans
    assert (first.age, first.sex) == (89.0, None)
    assert first.warnings[0].startswith("participants.tsv:age: age '89+'")
    assert first.warnings[1].startswith("participants.tsv:sex: sex '1' is not M or F")
    assert (second.sex, second.warnings, third.sex) == ("F", (), "M")
