"""What the columns of the tables say: age, sex, site."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bids_dataset import find, table, write
from command_line import parse
from hypothesis import given
from hypothesis import strategies as st

from bids_harmony.bids.tables import lengths_of_units, parse_age
from bids_harmony.errors import UsageError


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
    assert error.value.remedy == "Columns there are: participant_id, site, Scanner, years, age."
    (dataset / "participants.tsv").unlink()
    with pytest.raises(UsageError) as error:
        find(dataset, sex_column="sex")
    assert "no usable participants.tsv" in error.value.remedy


@pytest.mark.parametrize(
    ("text", "age", "note"),
    [
        ("35", 35.0, ""), (" 35.25 ", 35.25, ""), ("035Y", 35.0, ""), ("0", 0.0, ""),
        ("35 years old", 35.0, ""), ("35 y.o.", 35.0, ""), ("35 yrs.", 35.0, ""),
        ("n/a", None, ""), ("", None, ""),
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
    assert note in said if note else said is None


@pytest.mark.parametrize(
    ("units", "age"),
    [
        *dict.fromkeys(
            ("years", "Years", "year", "yr", "yrs.", "y", "decimal years", "years old",
             "years (decimal)", "Age in years", "year(s)", "y/o", "n/a", ""),
            24.0,
        ).items(),
        *dict.fromkeys(("months", "Month", "mo", "m", "decimal months", "in months"), 2.0).items(),
        ("weeks", 0.46), ("wk", 0.46), ("days", 0.0657), ("d", 0.0657),
    ],
)  # fmt: skip
def test_spellings_of_units(dataset: Path, units: str, age: float) -> None:
    """24 months are 2 years; 24 weeks 24 * 7 / 365.25; 24 days 24 / 365.25."""
    people(dataset, "age", "24", "24")
    write(dataset, "participants.json", json.dumps({"Age": {"Units": units}, "x": 1}))
    inventory = find(dataset)
    assert [s.age for s in inventory.scans] == [pytest.approx(age, abs=1e-4)] * 2
    assert inventory.warnings == ()


@given(st.text(max_size=12) | st.text("dwmyearsonthik .()/0", max_size=12))
def test_no_text_is_taken_for_a_unit_that_it_is_not(units: str) -> None:
    letters = [word for word in re.split(r"[^a-z]+", units.lower()) if word]
    for years in lengths_of_units(units):
        unit = {1.0: "y", 1 / 12: "m", 7 / 365.25: "w", 1 / 365.25: "d"}[years]
        assert any(unit in word for word in letters)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        *(({"Units": units}, repr(units)[:12]) for units in (
            "Measurement units. [<prefix symbol>] <unit symbol> format", "years or months",
            "decades", "1/12 year", "mm", "furlongs",
        )),
        *((entry, "do not say plainly") for entry in (
            "age of the child (days)", {"Description": "Age in months"},
            {"Description": "Months of age"}, {"Description": "Age at scan, weeks"},
            {"LongName": "Age in completed full months (not years)"},
        )),
    ],
)  # fmt: skip
def test_units_that_are_not_understood_make_their_column_unusable(
    dataset: Path, entry: object, said: str
) -> None:
    write(dataset, "participants.json", json.dumps({"age": entry}))
    inventory = find(dataset)
    assert [(s.age, s.sex) for s in inventory.scans] == [(None, "M"), (None, "F")]
    (warning,) = inventory.warnings
    assert warning.startswith("The column age of participants.tsv is not used: its ")
    assert said in warning
    assert said in inventory.scans[0].warnings[0]
    warning.encode()
    entries = {"height": entry, "age": {"Description": "Age"}}
    write(dataset, "participants.json", json.dumps(entries))
    assert [s.age for s in find(dataset).scans] == [30.0, 40.5]


@pytest.mark.parametrize(
    "text",
    ["Age in years on the day of the scan", "Age within 3 days of the scan", "Age at 6 months",
     "Age in decimal years, computed from months"],
)  # fmt: skip
def test_a_length_of_time_in_a_description_is_no_unit(dataset: Path, text: str) -> None:
    write(dataset, "participants.json", json.dumps({"age": {"Description": text}}))
    inventory = find(dataset)
    assert [s.age for s in inventory.scans] == [30.0, 40.5]
    assert inventory.warnings == ()


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
    assert any("not say plainly" in note for note in scan.warnings) == (age is None)
    write(dataset, "participants.json", json.dumps({column: {"Units": "months"}}))
    assert find(dataset, age_column=column).scans[0].age == 2.0


@pytest.mark.parametrize("content", ["{", "[]", b"\0", "/annex/objects/MD5E-s1--0\n"])
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

    def age() -> float | None:
        return find(dataset, age_column="Age at scan").scans[1].age

    assert age() == 24
    write(dataset, "participants.json", '{"Age at scan": {"Units": "days"}}')
    assert age() == 24
    write(dataset, "sessions.json", '{"age_at_scan": {"Units": "months"}}')
    assert age() == 2
    write(dataset, "sub-02/sub-02_sessions.json", '{"age_at_scan": {"Units": "days"}}')
    write(dataset, "sub-01/sub-01_sessions.json", '{"AgeAtScan": {"Description": "Age"}}')
    assert age() == 2
    write(dataset, "sub-01/sub-01_sessions.json", '{"age-at-scan": {"Units": "years"}}')
    assert age() == 24
    # What is said nearer to the table holds, whatever stands further up.
    write(dataset, "sessions.json", "{")
    assert age() == 24
    name = "sub-01/ses-a/sub-01_ses-a_scans.tsv"
    write(dataset, name, "filename\tage at scan\nanat/sub-01_ses-a_T1w.nii.gz\t36\n")
    write(dataset, "scans.json", '{"age_at_scan": {"Units": "months"}}')
    assert age() == 3


@pytest.mark.parametrize("cell", ["", "-", "--", ".", "?", "n/a", "N.A.", "#N/A", "nan", "Unknown",
                                  "missing", "\u2014", "-9", "-999.0"])  # fmt: skip
def test_a_cell_without_value_is_no_site_and_no_class(dataset: Path, cell: str) -> None:
    people(dataset, "site dx age sex", f"{cell} {cell} {cell} {cell}", "A HC 30 F")
    first = find(dataset).scans[0]
    assert (first.site, first.diagnosis, first.age, first.sex) == ("unknown", None, None, None)
    assert bool(first.warnings) == cell.startswith("-9")
    write(dataset, "sub-01/anat/sub-01_T1w.json", '{"Manufacturer": "GE"}')
    first = find(dataset).scans[0]
    assert (first.site, first.site_source) == ("GE", "sidecar")


def test_equal_numbers_are_one_site_and_one_class(dataset: Path, paths: list[str]) -> None:
    for one, other in (("1", "1.0"), ("01", "1"), ("1,0", "1.00")):
        people(dataset, "site dx", f"{one} 1", f"{other} 1.0")
        assert {(s.site, s.diagnosis) for s in find(dataset).scans} == {("1", "1")}
    people(dataset, "site", "A", "B\u00a0\u00a0x")
    assert [s.site for s in find(dataset).scans] == ["A", "B x"]
    assert parse(paths, "--reference-site", "01", level="train").train.reference_site == "1"


def test_sites_that_differ_in_their_spelling_are_told(dataset: Path) -> None:
    for one, other in (("Site-A", "site_a"), ("Site01", "Site1")):
        people(dataset, "site", one, other)
        (warning,) = find(dataset).warnings
        assert warning.endswith(f"count as several: {one}, {other}.")
    people(dataset, "site", "A10", "A1")
    assert find(dataset).warnings == ()


@pytest.mark.parametrize(
    ("column", "what"),
    [("Age (years)", "age"), ("AGE_MRI", "age"), ("AgeAtVisit", "age"), ("Site of scan", "site"),
     ("Sex at birth", "sex"), ("diagnostic_code", "diagnosis"), ("language", None),
     ("website", None)],
)  # fmt: skip
def test_columns_that_look_like_the_one_wanted_are_named(
    dataset: Path, column: str, what: str | None
) -> None:
    write(dataset, "participants.tsv", f"participant_id\t{column}\nsub-01\t1\nsub-02\t2\n")
    warnings = find(dataset).warnings
    assert [f'"{column}" looks like it: give --{what}-column' in note for note in warnings] == (
        [True] if what else []
    )
    if what:
        assert find(dataset, **{f"{what}_column": column}).warnings == ()


def test_every_table_is_looked_at_for_itself(dataset: Path) -> None:
    people(dataset, "age", "30", "40")
    write(dataset, "sub-01/sub-01_scans.tsv", "filename\tage\nanat/sub-01_T1w.nii.gz\t31\n")
    write(dataset, "sub-02/sub-02_scans.tsv", "filename\tAge (y)\nanat/sub-02_T1w.nii.gz\t32\n")
    (warning,) = find(dataset).warnings
    assert warning.startswith('scans.tsv has no age in a column of a usual name, but "Age (y)"')


def test_odd_cells_warn_their_scan(dataset: Path) -> None:
    people(dataset, "age sex", "89+ 1", "4 female", "5 man", "6 F", "7 Male")
    for n in (3, 4, 5):
        write(dataset, f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz")
    first, second, *others = find(dataset).scans
    assert (first.age, first.sex) == (89.0, None)
    assert first.warnings[0].startswith("participants.tsv:age: age '89+'")
    assert first.warnings[1].startswith("participants.tsv:sex: sex '1' is not M or F")
    assert (second.sex, second.warnings) == ("F", ())
    assert [scan.sex for scan in others] == ["M", "F", "M"]
