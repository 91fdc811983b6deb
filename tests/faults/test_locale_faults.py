"""A locale that cannot write the names of files changes nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from command_line import ASCII, COMMAND, new_dataset, place, run
from t1w_images import scan, write

from bids_harmony.files import write_text

NAME = "dätä-中"
#: `-E` has Python ignore its variables: they alone would have the command start over for ever.
ISOLATED = [sys.executable, "-E", "-X", "utf8=0", *COMMAND[1:]]


@pytest.mark.parametrize(
    ("command", "environment", "shown"),
    [
        (COMMAND, ASCII, NAME),
        (ISOLATED, ASCII, NAME),
        # What the terminal cannot show is spelt out.
        (COMMAND, {"PYTHONIOENCODING": "ascii"}, r"d\xe4t\xe4-\u4e2d"),
    ],
    ids=["locale", "isolated", "terminal"],
)
def test_names_beyond_ascii_are_read_and_shown(
    tmp_path: Path, command: list[str], environment: dict[str, str], shown: str
) -> None:
    root = new_dataset(tmp_path / NAME)
    write(place(root, "01"), scan())
    ran = run(*command, root, tmp_path / f"{NAME}-out", "participant", "--dry-run", **environment)
    assert ran.returncode == 0, ran.stderr
    assert f"{tmp_path}/{shown}" in ran.stdout
    # pybids keeps names as UTF-8, which a locale without it cannot give.
    assert "pybids" not in ran.stdout + ran.stderr


def test_text_with_a_path_that_is_no_utf8_is_written(tmp_path: Path) -> None:
    path = os.fsdecode(b"/data/l\xe4tin")
    write_text(tmp_path / "page.html", f"<p>{path} ä</p>")
    assert (tmp_path / "page.html").read_bytes() == b"<p>/data/l\\udce4tin \xc3\xa4</p>"
