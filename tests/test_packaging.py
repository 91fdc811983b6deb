"""What an installation holds: every package, and every module of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from documented import ROOT


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = [ROOT / "workflows", *(ROOT / "bids_harmony").rglob("*")]
    names = [
        folder.relative_to(ROOT).as_posix().replace("/", ".")
        for folder in [ROOT / "bids_harmony", *folders]
        if (folder / "__init__.py").is_file()
    ]
    there = {"bids_harmony.workflows" if name == "workflows" else name for name in names}
    assert there == set(settings["tool"]["setuptools"]["packages"])


def test_the_wheel_has_every_module(tmp_path: Path) -> None:
    # A copy, so that nothing is left here, and nothing that an earlier build left is packed.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bids_harmony", "workflows"):
        shutil.copytree(ROOT / name, source / name)
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([sys.executable, *command, str(tmp_path), str(source)], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        files = set(wheel.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "bids_harmony").rglob("*.py")}
    modules |= {
        f"bids_harmony/workflows/{path.name}" for path in (ROOT / "workflows").glob("*.py")
    }
    assert modules <= files
    assert "bids_harmony/data/bundle/bundle.json" in files
