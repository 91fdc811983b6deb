"""How arguments are written and read: the parser's manners and the types of values."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from bids_harmony.errors import UsageError

#: ``--mem 16000`` is a habit from programs that count in MB.
MAX_PLAUSIBLE_GB = 4096


class ArgumentSyntaxError(Exception):
    """argparse's message, before it is put into our words."""


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing sixty lines of usage."""

    def error(self, message: str) -> Any:
        """Raise what argparse found wrong."""
        raise ArgumentSyntaxError(message)


class Formatter(argparse.HelpFormatter):
    """Help with one spelling per option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        short = [name for name in action.option_strings if not name.startswith("--")]
        long = [name for name in action.option_strings if name.startswith("--")][:1]
        names = ", ".join(short + long)
        if action.nargs == 0:
            return names
        return f"{names} {self._format_args(action, action.dest.upper())}"


class AsTuple(argparse.Action):
    """Store several values as a tuple, which a frozen configuration can hold."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Add this option's values to those of the same option before it."""
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), *values))


def add_option(group: Any, *flags: str, **kwargs: Any) -> None:
    """Add an option under all its names, each with hyphens and with underscores."""
    names = [n for f in flags for n in (f, re.sub(r"(?<=\w)-", "_", f))]
    group.add_argument(*dict.fromkeys(names), default=argparse.SUPPRESS, **kwargs)


def default_of(name: str, cls: type) -> str:
    """Write an option's default for the help."""
    for field in fields(cls):
        if field.name == name and field.default is not MISSING:
            value = field.default
            return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    raise KeyError(name)


def parse_path(text: str) -> Path:
    """Make a path absolute without following links (a DataLad dataset is made of them)."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def parse_bundle(text: str) -> str:
    """Take a word that stands for a bundle as it is, anything else as a path."""
    return text if text in ("default", "none") else str(parse_path(text))


def parse_calibration(text: str) -> Path | None:
    """Take ``auto`` for none given, anything else as a path."""
    return None if text == "auto" else parse_path(text)


def parse_gb(text: str) -> float:
    """Read GB, or a number with its unit; refuse what was surely meant in MB."""
    match = re.fullmatch(r"([0-9.]+)\s*([kmgt]?)i?b?", text.strip(), re.IGNORECASE)
    try:
        number = float(match[1]) if match else None
    except ValueError:
        number = None
    if match is None or number is None:
        raise UsageError(f"--mem {text} is no amount of memory.", "Write for example --mem 8.")
    gb = number * {"k": 1e-6, "m": 1e-3, "g": 1.0, "t": 1e3, "": 1.0}[match[2].lower()]
    if gb > MAX_PLAUSIBLE_GB:
        raise UsageError(
            f"--mem {text} is {gb:g} GB.", f"--mem counts in GB; for MB write --mem-mb {text}."
        )
    return gb


def parse_mb(text: str) -> float:
    """Read MB as GB."""
    try:
        return float(text) / 1000
    except ValueError:
        raise UsageError(f"--mem-mb {text} is not a number of MB.", "Give MB.") from None
