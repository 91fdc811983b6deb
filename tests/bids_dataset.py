"""A dataset of empty files, and what is found in it."""

from __future__ import annotations

from pathlib import Path

from bids_harmony.bids.dataset import Inventory, find_scans
from bids_harmony.config import RunConfig


def write(root: Path, name: str, content: str | bytes = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(root: Path, name: str, text: str) -> Path:
    """Write a table given as ``id age; 01 30; 02 40``."""
    return write(root, name, "\n".join(text.split("; ")).replace(" ", "\t") + "\n")


def find(root: Path, **options: object) -> Inventory:
    return find_scans(RunConfig(bids_dir=root, output_dir=root / "out", **options))


def keys(inventory: Inventory) -> list[str]:
    return [scan.key for scan in inventory.scans]
