"""Read the scans that a recipe has preprocessed in its work folder."""

from __future__ import annotations

from pathlib import Path

from bids_harmony.bids import find_scans
from bids_harmony.config import RunConfig
from bids_harmony.training.inputs import TrainScan, find_training_scans


def read_scans(work: Path) -> list[TrainScan]:
    """Find the scans of ``WORK/bids`` whose preprocessed images are in ``WORK/out``."""
    config = RunConfig(bids_dir=(work / "bids").resolve(), output_dir=(work / "out").resolve())
    return find_training_scans(config.output_dir, find_scans(config).scans, config)[0]
