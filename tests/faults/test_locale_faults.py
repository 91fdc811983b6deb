"""A locale that cannot write the names of files changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import COMMAND, new_dataset, place, record_of
from t1w_images import scan, write

from bids_harmony.files import write_text

#: Python's own way out of `LC_ALL=C`, its UTF-8 mode, is closed.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
NAME = "dätä-中"


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], capture_output=True, encoding="utf-8", check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_names_beyond_ascii_are_read_and_shown_in_an_ascii_locale(tmp_path: Path) -> None:
    root = new_dataset(tmp_path / NAME)
    write(place(root, "01"), scan())
    done = run(*COMMAND, root, tmp_path / f"{NAME}-out", "participant", "--dry-run", **ASCII)
    assert done.returncode == 0, done.stderr
    assert str(root) in done.stdout
    # pybids keeps names as UTF-8, which a locale without it cannot give.
    assert "pybids" not in done.stdout + done.stderr


def test_an_isolated_python_starts_the_command_once(tmp_path: Path) -> None:
    """`-E` has Python ignore its variables: they alone would have it start over for ever."""
    root = new_dataset(tmp_path / NAME)
    write(place(root, "01"), scan())
    command = [sys.executable, "-E", "-X", "utf8=0", *COMMAND[1:]]
    done = run(*command, root, tmp_path / "out", "participant", "--dry-run", **ASCII)
    assert done.returncode == 0, done.stderr
    assert str(root) in done.stdout


def test_a_made_up_dataset_has_any_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bids_harmony.cli.simulate", tmp_path / NAME]
    done = run(*command, "--sites", 1, "--subjects", 1, "--resolution", 4, **ASCII)
    assert done.returncode == 0, done.stderr
    assert f"Wrote {tmp_path / NAME};" in done.stdout


def test_what_the_terminal_cannot_show_is_spelt_out(tmp_path: Path) -> None:
    root = new_dataset(tmp_path / NAME)
    write(place(root, "01"), scan())
    options = (root, tmp_path / "out", "participant", "--dry-run")
    done = run(*COMMAND, *options, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"d\xe4t\xe4-\u4e2d" in done.stdout


def test_text_with_a_path_that_is_no_utf8_is_written(tmp_path: Path) -> None:
    path = os.fsdecode(b"/data/l\xe4tin")
    write_text(tmp_path / "page.html", f"<p>{path} ä</p>")
    assert (tmp_path / "page.html").read_bytes() == b"<p>/data/l\\udce4tin \xc3\xa4</p>"


@pytest.mark.slow
def test_a_run_in_an_ascii_locale_ends_well(heads: Path, tmp_path: Path) -> None:
    root, out = tmp_path / NAME / "bids", tmp_path / NAME / "out"
    shutil.copytree(heads, root)
    done = run(
        *COMMAND, root, out, "participant", "-w", tmp_path / NAME / "work", "--sloppy",
        "--participant-label", "01", "--nprocs", 1, **ASCII,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert record_of(out, "01")["status"] in ("pass", "warn")
    assert "sub-01" in (out / "sub-01.html").read_text(encoding="utf-8")
    done = run(*COMMAND, root, out, "group", **ASCII)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "group_T1w.html").exists()
