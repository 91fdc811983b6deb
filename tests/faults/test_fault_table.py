"""The table names tests that exist, and the page says what the table says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fault_table import FAULTS, PAGE, page
from test_file_check import HOSTILE

TESTS = Path(__file__).resolve().parents[1]


def test_the_page_is_made_from_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/faults/fault_table.py"


@pytest.mark.parametrize("part", FAULTS)
def test_every_row_names_a_test_that_exists(part: str) -> None:
    for row in FAULTS[part].values():
        file, name = row.tried.split("::")
        (path,) = TESTS.rglob(file)
        tree = ast.parse(path.read_text())
        assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, row


@pytest.mark.parametrize("part", FAULTS)
def test_exit_codes_go_with_what_happens(part: str) -> None:
    codes = {
        "works": {0}, "left out": {0}, "warning": {0}, "QC flag": {0}, "**not detectable**": {0},
        "scan fails": {1}, "refused": {2, 78, 127}, "continues": {None, 0, 1, 70, 130},
    }  # fmt: skip
    for row in FAULTS[part].values():
        assert row.exit_code in codes[row.then], row


def test_words_of_rows_that_another_suite_tries_are_its_words() -> None:
    rows = {key: row for key, row in FAULTS["Scans"].items() if key in HOSTILE}
    assert len(rows) >= 14
    for key, row in rows.items():
        assert HOSTILE[key][1].partition(".*")[0] in row.says
