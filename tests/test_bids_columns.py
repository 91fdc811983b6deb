"""What the columns of the tables say: age, sex, site."""

from __future__ import annotations

from pathlib import Path

import pytest
from bids_dataset import find, write

from bids_harmony.bids_tables import parse_age, parse_sex
from bids_harmony.errors import UsageError


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
    write(dataset, "participants.json", "{")
    assert [s.age for s in find(dataset).scans] == [24.0, 30.0]


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
