"""The command line as tests write it: parsed, or run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


def start(*args: object, **environment: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, with some more of an environment."""
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def harmony(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with some more of an environment."""
    return subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True, text=True, timeout=1800, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


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
