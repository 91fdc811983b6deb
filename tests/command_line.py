"""The command line as tests write it: parsed, or run in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from bids_harmony.cli.parser import parse_args
from bids_harmony.config import RunConfig
from bids_harmony.errors import UsageError


def parse(paths: list[str], *options: str, level: str = "participant") -> RunConfig:
    return parse_args([*paths, level, *options])


def refuse(argv: list[str]) -> UsageError:
    """The error for some arguments, which must have one sentence of cause and one of remedy."""
    with pytest.raises(UsageError) as info:
        parse_args(argv)
    error = info.value
    assert error.exit_code == 2
    assert error.cause.endswith((".", "?"))
    assert error.remedy
    assert "\n" not in str(error)
    return error


COMMAND = [sys.executable, "-m", "bids_harmony"]
#: Options of the runs that are compared byte by byte. The quick registration will do.
OPTIONS = ("--sloppy", "--nprocs", 2)
#: A locale, and Python's own way out of it, its UTF-8 mode, is closed.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}


def start(*args: object, **environment: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, with some more of an environment."""
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with some more of an environment."""
    return subprocess.run(
        [*map(str, command)],
        capture_output=True, encoding="utf-8", timeout=1800, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def harmony(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run bids_harmony in a process of its own."""
    return run(*COMMAND, *args, **environment)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is true; fail if it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def tree(root: Path) -> dict[str, bytes]:
    """Read every output but the logs, which name the run."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "logs" not in path.relative_to(root).parts
    }


def assert_same(first: dict[str, bytes], second: dict[str, bytes]) -> None:
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []


def assert_whole(out: Path) -> None:
    """See that every file that is there is complete."""
    for path in out.rglob("*.nii.gz"):
        nib.load(path).get_fdata()
    for path in out.rglob("*.json"):
        if "logs" not in path.parts:
            json.loads(path.read_text())


def with_startup(folder: Path, code: str) -> dict[str, str]:
    """Environment in which every Python runs some code before anything else."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def new_dataset(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return root


def place(root: Path, label: str) -> Path:
    """Where a participant's scan goes."""
    path = root / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    return path


def label_of(row: str) -> str:
    """A participant's label made of a row's name."""
    return re.sub(r"[^0-9a-zA-Z]", "", row)


def record_of(out: Path, label: str) -> dict[str, Any]:
    path = out / f"sub-{label}" / "anat" / f"sub-{label}_desc-harmony_qc.json"
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def validator_errors(dataset: Path) -> list[dict[str, Any]]:
    """Find the errors that the BIDS validator reports."""
    tool = Path(sys.executable).with_name("bids-validator-deno")
    found = run(tool, dataset, "--format", "json", "--ignoreWarnings")
    issues = json.loads(found.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]


def assert_sentences(text: str) -> None:
    """See that an error is one of cause and one of remedy, without a traceback."""
    assert "Traceback" not in text
    assert re.search(r"^bids_harmony: error: .+[.?)]\n  .+", text, re.MULTILINE), text
