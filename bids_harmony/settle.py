"""Settle a run's options against its bundle, its template and the machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from bids_harmony.contract import Contract
from bids_harmony.errors import UsageError

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig


def deviations(config: RunConfig, contract: Contract) -> list[str]:
    """Say where a run departs from the preprocessing its bundle was trained on."""
    found = []
    for option, asked, trained in (
        ("--skull-strip", config.skull_strip, contract.skull_strip),
        ("--registration", config.registration, contract.registration),
        ("--template", config.template or "auto", contract.template),
    ):
        if asked not in ("auto", trained):
            found.append(f"{option} {asked} differs from the bundle's {trained}")
    return found


def check_template(path: str, contract: Contract | None) -> None:
    """Refuse a template that cannot be read, or on which the bundle's networks cannot run."""
    from bids_harmony.anat.template import load_template

    if contract is None:
        load_template(Contract().resolution, path)
        return
    given = load_template(contract.resolution, path).mask.shape
    wanted = load_template(contract.resolution).mask.shape
    if given != wanted:
        raise UsageError(
            f"The template {path} has the grid {given} at {contract.resolution} mm, and the "
            f"bundle was trained on {contract.template} with {wanted}.",
            "Leave --template out.",
        )


def choose_device(asked: str) -> str:
    """Settle ``--device``, asking torch in a process of its own so that workers can fork."""
    if asked == "cpu" or (asked == "auto" and not shutil.which("nvidia-smi")):
        return "cpu"
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode == 0:  # noqa: S603
        return "cuda"
    if asked == "cuda":
        raise UsageError(
            "--device cuda was asked for, and torch finds no CUDA device.",
            "Use --device auto, or give the container its GPU (--gpus all, --nv).",
        )
    return "cpu"


def check_filter(condition: str) -> None:
    """Refuse, before anything runs, a ``--fit-filter`` that cannot be understood."""
    from bids_harmony.fit_filter import meets
    from bids_harmony.qc.dataset import ScanRow, scan_table
    from bids_harmony.qc.reference import dictionary

    row = ScanRow({"scan": "sub-01"}, metrics=tuple(dictionary()))
    meets(scan_table([row])[0], condition)
