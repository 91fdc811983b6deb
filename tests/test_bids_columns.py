"""What the columns of the tables say: age, sex, site."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bids_dataset import find, write
from command_line import parse
from hypothesis import given
from hypothesis import strategies as st

from bids_harmony.bids_ages import UNITS, parse_age
from bids_harmony.bids_tables import parse_sex
from bids_harmony.errors import UsageError
from bids_harmony.text import is_missing


def test_named_columns(dataset: Path) -> None:
    write(
        dataset,
        "participants.tsv",
        "participant_id\tsite\tScanner\tyears\tage\nsub-01\tA\tT1\t5\t30\nsub-02\tB\tT2\t6\t40\n",
    )
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
        ("35", 35.0, None),
        (" 35.25 ", 35.25, None),
        ("035Y", 35.0, None),
        ("0", 0.0, None),
        ("n/a", None, None),
        ("", None, None),
        ("NaN", None, None),
        ("89+", 89.0, "was read as 89"),
        (">89", 89.0, "was read as 89"),
        ("35,5", 35.5, "was read as 35.5"),
        ("18M", 1.5, "was read as 1.5"),
        ("26 weeks", 0.4983, "was read as"),
        ("35 years old", 35.0, None),
        ("35 y.o.", 35.0, None),
        ("35 yrs.", 35.0, None),
        ("18 mo", 1.5, "was read as 1.5"),
        ("35 decimal units", None, "not a number"),
        ("35 s", None, "not a number"),
        ("2 y 3 m", None, "not a number"),
        ("12,345 days", None, "with or without decimals"),
        ("12.345 days", None, "with or without decimals"),
        ("24.125 months", 2.0104, "was read as"),
        ("unknown", None, None),
        ("-", None, None),
        ("-3", None, "outside"),
        ("121", None, "outside"),
        ("1e9", None, "not a number"),
        ("inf", None, "not a number"),
        ("<5", None, "not a number"),
        ("20-25", None, "not a number"),
        ("old", None, "not a number"),
    ],
)
def test_ages(text: str, age: float | None, note: str | None) -> None:
    found, said = parse_age(text)
    assert found == age
    assert (said is None) == (note is None)
    assert note is None or note in said


def test_age_units_come_from_the_data_dictionary(dataset: Path) -> None:
    write(dataset, "participants.tsv", "participant_id\tage\nsub-01\t24\nsub-02\t30\n")
    write(dataset, "participants.json", '{"age": {"Units": "months"}, "x": 1}')
    assert [s.age for s in find(dataset).scans] == [2.0, 2.5]
    write(dataset, "participants.json", '{"age": {"Units": "years"}}')
    assert [s.age for s in find(dataset).scans] == [24.0, 30.0]


@pytest.mark.parametrize(
    ("units", "age"),
    [
        *dict.fromkeys(
            ("years", "Years", "year", "yr", "yrs.", "y", "Y", "a", "decimal years", "years old",
             "years (decimal)", "Age in years", "year(s)", "y/o", "n/a", ""),
            24.0,
        ).items(),
        *dict.fromkeys(("months", "Month", "mo", "m", "decimal months", "in months"), 2.0).items(),
        ("weeks", 0.46), ("wk", 0.46), ("days", 0.0657), ("d", 0.0657),
    ],
)  # fmt: skip
def test_spellings_of_units(dataset: Path, units: str, age: float) -> None:
    """24 months are 2 years; 24 weeks 24 * 7 / 365.25; 24 days 24 / 365.25."""
    write(dataset, "participants.tsv", "participant_id\tage\nsub-01\t24\nsub-02\t24\n")
    write(dataset, "participants.json", json.dumps({"Age": {"Units": units}}))
    inventory = find(dataset)
    assert [s.age for s in inventory.scans] == [pytest.approx(age, abs=1e-4)] * 2
    assert inventory.warnings == ()
    assert parse_age("24", units) == (inventory.scans[0].age, None)


@given(st.text(max_size=12) | st.text("dwmyearsonthik .()/0", max_size=12))
def test_no_text_is_taken_for_a_unit_that_it_is_not(units: str) -> None:
    age, note = parse_age("24", units)
    if age is None:
        assert note
        note.encode("utf-8", "replace")
    elif age != 24:
        letters = [word for word in re.split(r"[^a-z]+", units.lower()) if word]
        assert any(word in UNITS and UNITS[word] != 1 for word in letters)
    else:
        assert is_missing(units) or re.search(r"y|\ba\b|annum", units.lower())


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"Units": "Measurement units. [<prefix symbol>] <unit symbol> format"}, "'Measurement"),
        ({"Units": "years or months"}, "'years or months'"),
        ({"Units": "decades"}, "'decades'"),
        ({"Units": "1/12 year"}, "'1/12 year'"),
        ({"Units": "years since onset"}, "'years since onset'"),
        ({"Units": "mm"}, "'mm'"),
        ({"Units": ["years"]}, "['years']"),
        ({"units": "furlongs"}, "'furlongs'"),
        ({"Units": "\ud800"}, "'?'"),
        ({"Description": "Age in months"}, "'in months'"),
        ("age of the child (days)", "'(days'"),
        ({"Description": "Months of age"}, "'Months'"),
        ({"Description": "Age at scan, weeks"}, "', weeks'"),
        (
            {"Description": "Age in completed full months (not years)"},
            "'in completed full months'",
        ),
        ({"Units": "years", "Description": "Age in months"}, "'in months'"),
        ({"Units": "years", "unit": "months"}, "'years' and 'months'"),
        ({"Description": "Age", "Levels": {"1": "20-25", "2": "26-30"}}, "lists its Levels"),
    ],
)
def test_units_that_are_not_understood_make_their_column_unusable(
    dataset: Path, entry: object, said: str
) -> None:
    write(dataset, "participants.json", json.dumps({"age": entry}))
    inventory = find(dataset)
    assert [(s.age, s.sex) for s in inventory.scans] == [(None, "M"), (None, "F")]
    (warning,) = inventory.warnings
    assert warning.startswith("The column age of participants.tsv is not used: participants.json")
    assert said in warning
    assert said in inventory.scans[0].warnings[0]
    warning.encode()
    write(
        dataset, "participants.json", json.dumps({"height": entry, "age": {"Description": "Age"}})
    )
    assert [s.age for s in find(dataset).scans] == [30.0, 40.5]


@pytest.mark.parametrize(
    "text",
    ["Age in years on the day of the scan", "Age within 3 days of the scan", "Age at 6 months",
     "Age in decimal years, computed from months", "Age some days after the scan"],
)  # fmt: skip
def test_a_length_of_time_in_a_description_is_no_unit(dataset: Path, text: str) -> None:
    entry = {"Description": text, "Levels": {"n/a": "not reported"}}
    write(dataset, "participants.json", json.dumps({"age": entry}))
    inventory = find(dataset)
    assert [s.age for s in inventory.scans] == [30.0, 40.5]
    assert inventory.warnings == ()


@pytest.mark.parametrize(
    ("column", "age"),
    [("age_months_at_scan", 2.0), ("ageMonthsV1", 2.0), ("agemonths", 2.0), ("age_mo", 2.0),
     ("age_month_6", 24.0), ("age_yrs", 24.0), ("age_m", None), ("age_years_months", None)],
)  # fmt: skip
def test_a_unit_anywhere_in_the_name_counts(dataset: Path, column: str, age: float | None) -> None:
    """24 months are 2 years; of a name that may mean both, none is used."""
    write(dataset, "participants.tsv", f"participant_id\t{column}\nsub-01\t24\n")
    scan = find(dataset, age_column=column).scans[0]
    assert scan.age == age
    assert any("not say plainly" in note for note in scan.warnings) == (age is None)
    write(dataset, "participants.json", json.dumps({column: {"Units": "months"}}))
    expected = None if column == "age_yrs" else 2.0
    assert find(dataset, age_column=column).scans[0].age == expected


def test_the_dictionary_may_spell_the_column_in_another_way(dataset: Path) -> None:
    write(dataset, "participants.tsv", "participant_id\tage_at_scan\nsub-01\t24\n")
    write(dataset, "participants.json", '{"Age at scan": {"Units": "months"}}')
    assert find(dataset).scans[0].age == 2
    contradictory = '{"Age at scan": {"Units": "months"}, "age_at_scan": {"Units": "years"}}'
    write(dataset, "participants.json", contradictory)
    inventory = find(dataset)
    assert inventory.scans[0].age is None
    assert "several Units" in inventory.warnings[-1]


def test_a_column_named_by_its_unit_is_in_it(dataset: Path) -> None:
    name = "participants.tsv"
    write(dataset, name, "participant_id\tAge (months)\tage_12_months\nsub-01\t24\t24\n")
    assert find(dataset, age_column="Age (months)").scans[0].age == 2
    assert find(dataset, age_column="age_12_months").scans[0].age == 24
    write(dataset, "participants.json", '{"Age (months)": {"Units": "years"}}')
    inventory = find(dataset, age_column="Age (months)")
    assert inventory.scans[0].age is None
    assert "which its name contradicts" in inventory.warnings[-1]


@pytest.mark.parametrize("content", ["{", "", "[]", b"\0", "/annex/objects/MD5E-s1--0\n"])
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
    write(dataset, "sub-01/sub-01_sessions.tsv", "session_id\tAge\nses-a\t24\n")

    def age() -> float | None:
        return find(dataset).scans[1].age

    assert age() == 24
    write(dataset, "participants.json", '{"Age": {"Units": "days"}}')
    assert age() == 24
    write(dataset, "sessions.json", '{"age": {"Units": "months"}}')
    assert age() == 2
    write(dataset, "sub-02/sub-02_sessions.json", '{"age": {"Units": "days"}}')
    write(dataset, "sub-01/sub-01_sessions.json", '{"AGE": {"Description": "Age"}}')
    assert age() == 2
    write(dataset, "sub-01/sub-01_sessions.json", '{"AGE": {"Units": "years"}}')
    assert age() == 24
    # What is said nearer to the table holds, whatever stands further up.
    write(dataset, "sessions.json", "{")
    assert age() == 24
    write(dataset, "sub-01/ses-a/sub-01_ses-a_scans.tsv",
          "filename\tage\nanat/sub-01_ses-a_T1w.nii.gz\t36\n")  # fmt: skip
    write(dataset, "scans.json", '{"age": {"Units": "months"}}')
    assert age() == 3


@pytest.mark.parametrize("cell", ["", "-", "--", ".", "?", "n/a", "N.A.", "#N/A", "nan", "Unknown",
                                  "missing", "\u2014", "-9", "-999.0"])  # fmt: skip
def test_a_cell_without_value_is_no_site_and_no_class(dataset: Path, cell: str) -> None:
    write(
        dataset,
        "participants.tsv",
        f"participant_id\tsite\tdx\tage\tsex\nsub-01\t{cell}\t{cell}\t{cell}\t{cell}\n"
        "sub-02\tA\tHC\t30\tF\n",
    )
    first = find(dataset).scans[0]
    assert (first.site, first.diagnosis, first.age, first.sex) == ("unknown", None, None, None)
    assert bool(first.warnings) == cell.startswith("-9")
    write(dataset, "sub-01/anat/sub-01_T1w.json", '{"Manufacturer": "GE"}')
    first = find(dataset).scans[0]
    assert (first.site, first.site_source) == ("GE", "sidecar")
    assert any("made of the sidecar" in note for note in first.warnings)


def test_equal_numbers_are_one_site_and_one_class(dataset: Path) -> None:
    text = "participant_id\tsite\tdx\nsub-01\t{}\t1\nsub-02\t{}\t1.0\n"
    for cells in (("1", "1.0"), ("01", "1"), ("1,0", "1.00")):
        write(dataset, "participants.tsv", text.format(*cells))
        assert {(s.site, s.diagnosis) for s in find(dataset).scans} == {("1", "1")}
    write(dataset, "participants.tsv", text.format("A", "B\u00a0 x"))
    assert [s.site for s in find(dataset).scans] == ["A", "B x"]


def test_sites_are_named_as_given_on_the_command_line(paths: list[str]) -> None:
    assert parse(paths, "--reference-site", "01", level="train").train.reference_site == "1"


def test_sites_that_differ_in_their_spelling_are_told(dataset: Path) -> None:
    text = "participant_id\tsite\nsub-01\tSite-A\nsub-02\tsite a\n"
    write(dataset, "participants.tsv", text)
    (warning,) = find(dataset).warnings
    assert warning.endswith("count as several: Site-A, site a.")
    for one, other in (("Site 01", "Site 1"), ("Zurich", "Zürich")):
        write(
            dataset, "participants.tsv", f"participant_id\tsite\nsub-01\t{one}\nsub-02\t{other}\n"
        )
        assert find(dataset).warnings[0].endswith(f"count as several: {one}, {other}.")
    write(dataset, "participants.tsv", "participant_id\tsite\nsub-01\tA10\nsub-02\tA1\n")
    assert find(dataset).warnings == ()


@pytest.mark.parametrize(
    ("column", "option"),
    [
        ("Age (years)", '--age-column "Age (years)"'),
        ("Age at scan", '--age-column "Age at scan"'),
        ("AGE_MRI", '--age-column "AGE_MRI"'),
        ("AgeAtVisit", '--age-column "AgeAtVisit"'),
        ("ageyears", '--age-column "ageyears"'),
        ("Scanner site", '--site-column "Scanner site"'),
        ("imaging_centre_name", '--site-column "imaging_centre_name"'),
        ("Sex at birth", '--sex-column "Sex at birth"'),
        ("Primary Diagnosis", '--diagnosis-column "Primary Diagnosis"'),
        ("age_of_onset", None),
        ("brain_age", None),
        ("language", None),
        ("scanner_model", None),
        ("website", None),
        ("diagnosis_date", None),
    ],
)
def test_columns_that_look_like_the_one_wanted_are_named(
    dataset: Path, column: str, option: str | None
) -> None:
    write(dataset, "participants.tsv", f"participant_id\t{column}\nsub-01\t1\nsub-02\t2\n")
    warnings = find(dataset).warnings
    assert [option in note for note in warnings] == ([True] if option else [])
    if option:
        named = {option[2:].partition(" ")[0].replace("-", "_"): column}
        assert find(dataset, **named).warnings == ()


def test_a_usual_column_without_values_does_not_hide_one_that_has_them(dataset: Path) -> None:
    text = "participant_id\tage\tage mri\nsub-01\tn/a\t30\nsub-02\t-\t40\n"
    write(dataset, "participants.tsv", text)
    assert '--age-column "age mri"' in find(dataset).warnings[0]
    # A more specific table is looked at for itself.
    write(dataset, "participants.tsv", "participant_id\tage\nsub-01\t30\nsub-02\t40\n")
    write(dataset, "sub-01/sub-01_scans.tsv", "filename\tAge (y)\nanat/sub-01_T1w.nii.gz\t31\n")
    assert find(dataset).warnings[0].startswith("scans.tsv has no age in a column")


def test_every_table_is_looked_at_for_itself(dataset: Path) -> None:
    write(dataset, "sub-01/sub-01_scans.tsv", "filename\tage\nanat/sub-01_T1w.nii.gz\t31\n")
    write(dataset, "sub-02/sub-02_scans.tsv", "filename\tAge (y)\nanat/sub-02_T1w.nii.gz\t32\n")
    (warning,) = find(dataset).warnings
    assert warning.startswith('scans.tsv has no age in a column of a usual name, but "Age (y)"')


def test_two_usual_columns_of_other_ages_are_told(dataset: Path) -> None:
    text = "participant_id\tage\tage_at_scan\nsub-01\t30\t30.0\nsub-02\t40\t{}\n"
    write(dataset, "participants.tsv", text.format("n/a"))
    assert find(dataset).warnings == ()
    write(dataset, "participants.tsv", text.format("45"))
    inventory = find(dataset)
    assert [s.age for s in inventory.scans] == [30.0, 40.0]
    assert inventory.warnings[0].startswith("participants.tsv has other ages in age_at_scan")
    assert find(dataset, age_column="age_at_scan").warnings == ()


@pytest.mark.parametrize(
    ("text", "sex"),
    [("M", "M"), ("male", "M"), ("f", "F"), ("Female", "F"), ("O", None), (None, None)],
)
def test_sexes(text: str | None, sex: str | None) -> None:
    assert parse_sex(text) == sex


def test_odd_cells_warn_their_scan(dataset: Path) -> None:
    write(
        dataset,
        "participants.tsv",
        "participant_id\tage\tsex\nsub-01\t89+\t1\nsub-02\t4\tfemale\n",
    )
    first, second = find(dataset).scans
    assert (first.age, first.sex) == (89.0, None)
    assert len(first.warnings) == 2
    assert first.warnings[0].startswith("participants.tsv:age: age '89+'")
    assert (second.sex, second.warnings) == ("F", ())
