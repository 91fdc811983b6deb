"""Check that all installed packages have the versions pinned in constraints.txt.

Usage: ``python check_pins.py constraints.txt``, with the Python of the environment. Packages that
torch pins itself (the CUDA libraries of its CUDA builds) need no line there.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions, requires
from pathlib import Path


def normal(name: str) -> str:
    """Return the normalized name of a package, as on PyPI."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main(constraints: str) -> int:
    """Print packages that are not pinned at their installed version; return 1 if there are any."""
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
