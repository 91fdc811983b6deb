"""Text in any encoding, with any separator, and files that only point to their content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bids_dataset import write
from hypothesis import example, given
from hypothesis import strategies as st

from bids_harmony.bids.filters import read_filters
from bids_harmony.errors import UsageError
from bids_harmony.files import (
    TextError,
    decode,
    is_missing,
    look_alikes,
    plain_number,
    pointer,
    read_json,
    read_text,
    split_table,
    why_unread,
)
from bids_harmony.run.engine import load_plugin

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
ANNEX = "/annex/objects/MD5E-s12--0123456789abcdef.nii.gz\n"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
CELL = st.text("abcXYZ09.-éß中 ,;|\t\n\"'", max_size=8).map(lambda c: " ".join(c.split()))


@given(
    rows=st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=4),
    encoding=st.sampled_from(ENCODINGS),
    separator=st.sampled_from("\t,;|"),
    line=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_tables_are_the_same_in_every_encoding_and_with_every_separator(
    rows: list[list[str]], encoding: str, separator: str, line: str
) -> None:
    quoted = [
        separator.join('"' + cell.replace('"', '""') + '"' for cell in row)
        for row in [["id", "note"], *rows]
    ]
    found, notes = decode((line.join(quoted) + line).encode(encoding))
    assert bool(notes) == (encoding not in ("utf-8", "utf-8-sig"))
    header, body, said = split_table(found)
    assert header == ["id", "note"]
    assert bool(said) == (separator != "\t")
    assert body == [(n, row) for n, row in enumerate(rows, 2) if any(row)]


@given(st.binary(max_size=300))
@example(b"caf\xe9 K\xf6ln")
def test_any_bytes_are_text_or_refused(raw: bytes) -> None:
    try:
        text, notes = decode(raw)
    except TextError:
        return
    text.encode()
    assert all(line > 1 and any(cells) for line, cells in split_table(text)[1])
    if raw.startswith(b"caf\xe9"):
        assert (text, notes) == ("café Köln", ["is not UTF-8, and was read as Latin-1"])


def test_cells_may_be_long_and_contain_quotes_and_line_breaks() -> None:
    for separator in "\t,;":
        text = f'a{separator}b\n1{separator}"12" wide\n2{separator}x\n'
        assert [row[0] for _, row in split_table(text)[1]] == ["1", "2"]
    text = 'a,b\n1,"x\ny"\n2,' + "z" * 200_000
    assert split_table(text)[1] == [(3, ["1", "x y"]), (4, ["2", "z" * 200_000])]


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (LFS, "git lfs pull"),
        (ANNEX, "datalad get"),
        ("../../.git/annex/objects/Xj/0k/MD5E-s12--01/MD5E-s12--01.json", "git annex get"),
    ],
    ids=["lfs", "annex", "unlocked"],
)
def test_pointers_are_named_with_what_fetches_them(
    tmp_path: Path, text: str, command: str
) -> None:
    path = write(tmp_path, "x_T1w.json", text)
    assert command in (pointer(path) or "")
    assert command in why_unread(path, ValueError("no image"))
    for read in (read_text, read_json, read_filters, load_plugin):
        with pytest.raises((TextError, UsageError), match=command):
            read(path)


def test_links_and_other_files_are_no_pointers(tmp_path: Path) -> None:
    large = LFS + " " * 2**15
    for text in ("{}", "version\n1\n", b"\x1f\x8b\x08", large):
        assert pointer(write(tmp_path, "file", text)) is None
    assert pointer(tmp_path / "absent") is None
    assert pointer(tmp_path) is None
    for target, said in (("../x/.git/annex/objects/1", "datalad get"), ("gone", "'gone'")):
        link = tmp_path / f"link-{said[1]}"
        link.symlink_to(target)
        assert said in (pointer(link) or "")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_filters_and_plugins_are_read_in_every_encoding(
    tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def file(name: str, content: object) -> Path:
        return write(tmp_path, name, json.dumps(content, ensure_ascii=False).encode(encoding))

    assert read_filters(file("f.json", {"t1w": {"acq": "x"}})) == {"acquisition": ["x"]}
    plugin = load_plugin(file("p.yml", {"plugin": "Linear"}))
    assert type(plugin).__name__ == "LinearPlugin"
    assert ("instead of UTF-8" in capsys.readouterr().err) == ("utf-8" not in encoding)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("1", "1"), ("1.0", "1"), ("01", "1"), ("1,0", "1"), ("1.50", "1.5"), ("00", "0"),
        ("-0", "0"), ("10", "10"), ("100.00", "100"), ("0.5", "0.5"), ("1.", "1"), ("+1", "1"),
        ("1,5", "1,5"), ("1e3", "1e3"), ("Oslo 01", "Oslo 01"), ("1.0.0", "1.0.0"), ("", ""),
    ],
)  # fmt: skip
def test_equal_numbers_are_one_label(text: str, plain: str) -> None:
    assert plain_number(text) == plain


def test_what_counts_as_no_value() -> None:
    for text in ("", " ", "N/A", "-", ".", "?", "--", "#N/A", "N.A.", "Unknown", "missing",
                 "_", "/", "\u2212", "(missing)", "not_available", "[N/A]", "None."):  # fmt: skip
        assert is_missing(text), text
    for text in ("0", "-9", "A", "no", "normal", "+", "ND", "é", "中"):
        assert not is_missing(text), text


@pytest.mark.parametrize(
    ("wanted", "there", "near"),
    [
        ("01", ["1", "001", "10", "101"], ["1", "001"]),
        ("01", ["S01", "sub1", "T-001", "S02"], ["S01", "sub1", "T-001"]),
        ("B01", ["A01", "01", "b1"], ["01", "b1"]),
        ("1005", ["15", "105"], []),
        ("01", ["1.0"], ["1.0"]),
        ("baseline", ["Baseline", "base"], ["Baseline"]),
        ("01_02", ["01_2", "1_02", "02_01", "0102"], ["01_2", "1_02"]),
    ],
)
def test_ids_that_may_be_meant(wanted: str, there: list[str], near: list[str]) -> None:
    assert look_alikes(wanted, there) == near
