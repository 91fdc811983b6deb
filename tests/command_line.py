"""The command line as tests write it."""

from __future__ import annotations

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
