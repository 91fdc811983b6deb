"""Fail where a package of an environment is not at the version that constraints.txt names.

Usage: ``python check_pins.py constraints.txt``, with the environment's own python. What torch
itself pins (the CUDA libraries of its CUDA builds) needs no line there.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions, requires
from pathlib import Path


def normal(name: str) -> str:
    """Spell a package's name as the index does."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main(constraints: str) -> int:
    """Compare what is installed with ``constraints``."""
    lines = Path(constraints).read_text(encoding="utf-8").split()
    pinned = {normal(name): version for name, _, version in (x.partition("==") for x in lines)}
    by_torch = {
        normal(re.split(r"[^\w.-]", text)[0]) for text in requires("torch") or () if "==" in text
    }
    wrong = []
    for package in distributions():
        name, version = normal(package.metadata["Name"]), package.version.partition("+")[0]
        if name not in by_torch and pinned.get(name) != version:
            wrong.append(f"{name}=={version}")
    if wrong:
        print(f"Not pinned in {constraints}:", *sorted(wrong), sep="\n  ")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
