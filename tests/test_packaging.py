"""What an installation holds: every package, and every module of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from documented import ROOT


def test_the_wheel_has_every_module(tmp_path: Path) -> None:
    # A copy, so that nothing is left here, and nothing that an earlier build left is packed.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    modules = set()
    for name, installed in (("bids_harmony", ""), ("workflows", "bids_harmony/")):
        shutil.copytree(ROOT / name, source / name)
        paths = (ROOT / name).rglob("*.py")
        modules |= {installed + path.relative_to(ROOT).as_posix() for path in paths}
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([sys.executable, *command, str(tmp_path), str(source)], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert modules | {"bids_harmony/data/bundle/bundle.json"} <= set(wheel.namelist())
