"""Options of a run; the command line is in :mod:`bids_harmony.cli.parser`."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bids_harmony.errors import BundleError

LEVELS = ("participant", "calibrate", "group", "train", "evaluate")
RECIPES = ("fast", "article")
#: Kinds of map: the curve alone, a network after it, and that fine-tuned on unpaired real scans.
CURVE, NETWORK, CYCLEGAN = MAPS = ("intensity-mapping", "network", "cyclegan")
#: ``sites``: trained at the reference, tested at every site (the paper's Table 1 and Figure 2).
#: ``rotations``: one or two training sites in every order (Table 2). ``size``: from how few
#: persons of a site it can be calibrated.
EXPERIMENTS = ("sites", "rotations", "size")
#: Fraction of each site's subjects on which the guard's limits are set; the article's predictors
#: stop training by it.
VALIDATION_FRACTION = 0.15


@dataclass(frozen=True)
class Contract:
    """How scans are preprocessed before a network sees them.

    A bundle stores the contract it was trained under; ``--skull-strip auto`` and
    ``--registration auto`` mean "as the contract says".

    Attributes
    ----------
    skull_strip : str
        Brain mask method for scans that still have a skull.
    registration : str
        Affine registration method.
    template : str
        BIDS label of the template space.
    resolution : int
        Isotropic voxel size of the template grid, in mm (the ``res-`` entity).
    shading_order : int
        Order of the polynomial by which the bias field is removed; 0 switches it off.
    grey : float
        Value of grey matter in scaled volumes; CSF is 0 and white matter 1.
    slice_mm : tuple of float
        z range, in template mm, of the axial slices the predictors see.
    """

    skull_strip: str = "deepbet"
    registration: str = "ants"
    template: str = "MNI152NLin2009aSym"
    resolution: int = 2
    shading_order: int = 3
    grey: float = 0.55
    slice_mm: tuple[float, float] = (-28.0, 52.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as JSON-ready values."""
        return asdict(self) | {"slice_mm": list(self.slice_mm)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Contract:
        """Build a contract from :meth:`to_dict`'s values, refusing unknown and missing keys."""
        names = {field.name for field in fields(cls)}
        if wrong := names ^ set(values):
            raise BundleError(
                f"The bundle's preprocessing contract does not fit this version: {sorted(wrong)}.",
                "Use a bundle made with this version, or the version the bundle names.",
            )
        return cls(**{**values, "slice_mm": tuple(values["slice_mm"])})


@dataclass(frozen=True)
class TrainOptions:
    """Options of the ``train`` level, and of how ``evaluate`` trains.

    Attributes
    ----------
    reference_site : str or None
        Site predictors are trained on; None takes the site with most scans.
    targets : tuple of str
        Predictors to train: columns of numbers (``age`` gives ``brain_age``) or of two classes,
        and ``simulated-schizophrenia`` (``schizophrenia_probability``, on simulated labels).
    fit_filter : str or None
        Condition on the dataset's tables that scans must meet for the reference's appearance,
        calibrations and the predictors of numbers to be fitted on them, such as
        ``diagnosis == "control"``.
    model_name : str
        Name of the bundle, and of its folder under ``OUT/models``.
    predictor : str
        ``fast`` or ``article`` (``training/predictor.py``): how the predictors are trained.
    map : str
        ``network``: after the intensity mapping, a network trained on pairs with known truth;
        ``cyclegan``: that network fine-tuned on unpaired scans of the other sites;
        ``intensity-mapping``: neither.
    predictor_steps : int or None
        Of each predictor network; None: as the recipe says.
    holdout : float
        Fraction of the subjects of each site held out of everything for the figures in
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
    fast_dev_run : bool
        A few steps of everything, to see that it runs.
    contract : Contract
        How the scans were preprocessed.
    """

    reference_site: str | None = None
    targets: tuple[str, ...] = ("age", "simulated-schizophrenia")
    fit_filter: str | None = None
    model_name: str = "harmony"
    predictor: str = "fast"
    map: str = NETWORK
    predictor_steps: int | None = None
    holdout: float = 0.15
    folds: int = 5
    seed: int = 42
    device: str = "auto"
    threads: int = 1
    fast_dev_run: bool = False
    contract: Contract = field(default_factory=Contract)

    def shortened(self) -> TrainOptions:
        """Return the options, with a few steps of everything when ``fast_dev_run`` is set."""
        return replace(self, predictor_steps=2, folds=2) if self.fast_dev_run else self

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-ready values, for ``bundle.json``."""
        return asdict(self) | {
            "targets": list(self.targets),
            "contract": self.contract.to_dict(),
        }


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of the ``evaluate`` level besides training's.

    Attributes
    ----------
    experiments : tuple of str
        Some of :data:`EXPERIMENTS`.
    cv_folds : int
        Parts of the subjects, each tested by what was trained on the others.
    n_seeds : int
        Times that everything is trained again from other random weights and with other folds.
    train_sites : tuple of str
        Trainings of ``rotations``, each ``SITE`` or ``REFERENCE+SITE``; empty: all.
    """

    experiments: tuple[str, ...] = ("sites",)
    cv_folds: int = 3
    n_seeds: int = 1
    train_sites: tuple[str, ...] = ()


def available_cpus() -> int:
    """Count the CPUs this process may use (a cluster job may have fewer than the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def new_run_uuid() -> str:
    """Name a run so that names sort by time and parallel jobs never share one."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}_{uuid.uuid4()}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The options of one run; ``bids_harmony --help`` says what each means.

    The defaults are the command line's. Paths are absolute, labels without ``sub-`` and
    ``ses-``, and an empty tuple means all.

    Attributes
    ----------
    bids_filters : dict
        The ``t1w`` part of ``--bids-filter-file``, by long entity name. ``None`` stands for "the
        entity is absent", ``"*"`` for "present with any value" (fMRIPrep's convention).
    derivatives : tuple of pathlib.Path
        Derivatives of other pipelines, searched in this order for existing brain masks.
    output_spaces : tuple of str
        ``template`` always, and ``T1w`` where the native grid is asked for too.
    mem_gb : float or None
        In GB (1e9 bytes); None is what the machine has.
    train, evaluate : TrainOptions, EvaluateOptions
        Options of the ``train`` level, and how ``evaluate`` trains; and of ``evaluate``.
    run_uuid : str
        Name of the run's folder in ``logs/``.
    """

    bids_dir: Path
    output_dir: Path
    level: str = "participant"
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filters: dict[str, Any] = field(default_factory=dict)
    site_column: str | None = None
    age_column: str | None = None
    sex_column: str | None = None
    diagnosis_column: str | None = None
    derivatives: tuple[Path, ...] = ()
    bundle: str = "default"
    calibration: Path | None = None
    fit_filter: str | None = None
    skull_strip: str = "auto"
    registration: str = "auto"
    template: Path | None = None
    atlas_dir: Path | None = None
    output_spaces: tuple[str, ...] = ("template",)
    on_guard_fail: str = "flag"
    correct_age_bias: bool = False
    device: str = "auto"
    random_seed: int = 42
    sloppy: bool = False
    nprocs: int = field(default_factory=available_cpus)
    omp_nthreads: int = 1
    mem_gb: float | None = None
    use_plugin: Path | None = None
    work_dir: Path = field(default_factory=lambda: Path.cwd() / "work")
    clean_workdir: bool = False
    dry_run: bool = False
    reports_only: bool = False
    stop_on_first_crash: bool = False
    verbose: int = 0
    qc_ratings: tuple[Path, ...] = ()
    train: TrainOptions = field(default_factory=TrainOptions)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    run_uuid: str = field(default_factory=new_run_uuid)

    @property
    def log_dir(self) -> Path:
        """Folder of this run's own files."""
        return self.output_dir / "logs" / self.run_uuid

    @property
    def log_level(self) -> int:
        """Level of :mod:`logging`: 25 for progress only, 20 with ``-v``, 15, then 10."""
        return max(25 - 5 * self.verbose, 10)

    def to_json(self) -> str:
        """Return the options as JSON text."""
        return json.dumps(asdict(self), indent=2, default=str) + "\n"
