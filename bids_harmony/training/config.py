"""Options of the ``train`` level."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bids_harmony.contract import Contract


@dataclass(frozen=True)
class TrainOptions:
    """What a user chooses at ``bids_harmony BIDS OUT train``.

    Attributes
    ----------
    reference_site : str or None
        Site predictors are trained on; None takes the site with most scans.
    targets : tuple of str
        Predictors to train: ``age`` (``brain_age``) and ``simulated-schizophrenia``
        (``schizophrenia_probability``, on simulated labels).
    model_name : str
        Name of the bundle, and of its folder under ``OUT/models``.
    harmonizer_minutes, predictor_minutes : float
        Wall-clock limit of the harmonizer's training, and of each predictor network's.
    harmonizer_steps, predictor_steps : int
        Number of optimiser steps; whichever limit comes first ends the training.
    holdout : float
        Fraction of the subjects of each site kept out of everything for the figures in
        ``bundle.json``.
    folds : int
        The predictor is an ensemble of this many networks, each trained without one fold of the
        reference scans; their errors on it calibrate the prediction interval.
    seed : int
        Seed of splits, initial weights and sampling.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    threads : int
        CPU threads.
    """

    reference_site: str | None = None
    targets: tuple[str, ...] = ("age", "simulated-schizophrenia")
    model_name: str = "harmony"
    harmonizer_minutes: float = 90.0
    harmonizer_steps: int = 3_500
    predictor_minutes: float = 30.0
    predictor_steps: int = 1_600
    holdout: float = 0.25
    folds: int = 4
    seed: int = 42
    device: str = "auto"
    threads: int = 1
    contract: Contract = field(default_factory=Contract)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-ready values, for ``bundle.json``."""
        values = asdict(self)
        values["targets"] = list(self.targets)
        values["contract"] = self.contract.to_dict()
        return values


@dataclass(frozen=True)
class TrainScan:
    """One preprocessed scan with what training may know of its subject.

    Attributes
    ----------
    subject, site : str
        Labels; splits are by subject.
    t1w, mask : pathlib.Path
        Preprocessed volume and brain mask on the template grid.
    age : float or None
        In years.
    metrics : dict
        QC metrics of the scan, empty when there are none.
    sex, diagnosis : str or None
        ``M`` or ``F``; as the dataset writes it.
    columns : dict of str to str
        Cells of the dataset's tables, by column; those that say nothing are left out.
    qc_status : str or None
        Of the scan's QC record: ``pass``, ``warn``, ``fail``.
    """

    subject: str
    site: str
    t1w: Path
    mask: Path
    age: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    sex: str | None = None
    diagnosis: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    qc_status: str | None = None
