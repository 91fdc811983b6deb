"""Options of a run. :mod:`bids_harmony.cli.parser` reads them from the command line."""

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
#: Kinds of map: intensity mapping only, followed by a network trained on pairs with known ground
#: truth, or followed by that network fine-tuned on unpaired real scans.
CURVE, NETWORK, CYCLEGAN = MAPS = ("intensity-mapping", "network", "cyclegan")
#: ``sites``: train at the reference site, test at every site (the paper's Table 1 and Figure 2).
#: ``rotations``: train on each site and each ordered pair of sites (Table 2). ``size``: vary the
#: number of subjects used to calibrate a site.
EXPERIMENTS = ("sites", "rotations", "size")
#: Fraction of each site's subjects used as a validation set: it sets the guard's limits and
#: determines early stopping of the ``article`` predictors.
VALIDATION_FRACTION = 0.15


@dataclass(frozen=True)
class Contract:
    """Preprocessing that scans undergo before they are passed to a network.

    A bundle saves the contract it was trained with; ``--skull-strip auto`` and
    ``--registration auto`` use the method of the bundle's contract.

    Attributes
    ----------
    skull_strip : str
        Skull-stripping method for scans that are not yet skull-stripped.
    registration : str
        Affine registration method.
    template : str
        BIDS label of the template space.
    resolution : int
        Isotropic voxel size of the template grid, in mm (the ``res-`` entity).
    shading_order : int
        Order of the polynomial fitted to the bias field for its correction; 0 disables it.
    grey : float
        Intensity of grey matter in scaled volumes, where CSF is 0 and white matter is 1.
    slice_mm : tuple of float
        Lowest and highest z coordinate, in template mm, of the axial slices used by the
        predictors.
    """

    skull_strip: str = "deepbet"
    registration: str = "ants"
    template: str = "MNI152NLin2009aSym"
    resolution: int = 2
    shading_order: int = 3
    grey: float = 0.55
    slice_mm: tuple[float, float] = (-28.0, 52.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as a JSON-serializable dict."""
        return asdict(self) | {"slice_mm": list(self.slice_mm)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Contract:
        """Return the contract described by the values of :meth:`to_dict`.

        Raises
        ------
        BundleError
            If a key is unknown or missing.
        """
        names = {field.name for field in fields(cls)}
        if wrong := names ^ set(values):
            raise BundleError(
                f"The bundle's preprocessing contract does not fit this version: {sorted(wrong)}.",
                "Use a bundle made with this version, or the version the bundle names.",
            )
        return cls(**{**values, "slice_mm": tuple(values["slice_mm"])})


@dataclass(frozen=True)
class TrainOptions:
    """Training options of the ``train`` and ``evaluate`` levels.

    Attributes
    ----------
    reference_site : str or None
        Site that the predictors are trained on; None selects the site with the most scans.
    targets : tuple of str
        Predictors to train: columns with numbers (``age`` gives ``brain_age``) or with two
        classes, and ``simulated-schizophrenia`` (``schizophrenia_probability``, trained on
        simulated labels).
    fit_filter : str or None
        Condition on the dataset's tables, such as ``diagnosis == "control"``. Only scans that
        meet it are used to fit the reference's appearance, the calibrations and the predictors
        of numbers. None uses all scans.
    model_name : str
        Name of the bundle, and of its folder in ``OUT/models``.
    predictor : str
        Training recipe of the predictors, ``fast`` or ``article`` (``training/predictor.py``).
    map : str
        Map from a site to the reference: ``intensity-mapping`` only; ``network``, which adds a
        network trained on pairs with known ground truth; or ``cyclegan``, which fine-tunes that
        network on unpaired scans of the other sites.
    predictor_steps : int or None
        Training steps of each predictor network; None uses the recipe's number.
    holdout : float
        Fraction of each site's subjects held out from all training for the test results in
        ``bundle.json``.
    folds : int
        Number of networks in the predictor's ensemble. Each is trained without one fold of the
        reference scans; the errors on the left-out folds calibrate the prediction interval.
    seed : int
        Random seed of data splits, initial weights and sampling.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    threads : int
        Number of CPU threads.
    fast_dev_run : bool
        Run only a few steps of everything, as a smoke test.
    contract : Contract
        Preprocessing of the scans.
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
        """Return the options, reduced to 2 steps and 2 folds if ``fast_dev_run`` is set."""
        return replace(self, predictor_steps=2, folds=2) if self.fast_dev_run else self

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a JSON-serializable dict, as saved in ``bundle.json``."""
        return asdict(self) | {
            "targets": list(self.targets),
            "contract": self.contract.to_dict(),
        }


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of the ``evaluate`` level in addition to :class:`TrainOptions`.

    Attributes
    ----------
    experiments : tuple of str
        Experiments to run, from :data:`EXPERIMENTS`.
    cv_folds : int
        Number of cross-validation folds, split by subject.
    n_seeds : int
        Number of repetitions of all training, each with another random seed and other folds.
    train_sites : tuple of str
        Training sites of the ``rotations`` experiment, each ``SITE`` or ``REFERENCE+SITE``;
        empty means all.
    """

    experiments: tuple[str, ...] = ("sites",)
    cv_folds: int = 3
    n_seeds: int = 1
    train_sites: tuple[str, ...] = ()


def available_cpus() -> int:
    """Return the number of CPUs available to this process, which may be fewer than installed."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def new_run_uuid() -> str:
    """Return a unique run name that starts with the local time, so that names sort by time."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}_{uuid.uuid4()}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options of one run; see ``bids_harmony --help`` for their meaning.

    Defaults are those of the command line, except that ``omp_nthreads`` is 1. Paths are absolute,
    labels have no ``sub-`` or ``ses-`` prefix, and an empty tuple means all.

    Attributes
    ----------
    bids_filters : dict
        The ``t1w`` part of ``--bids-filter-file``, by long entity name. As in fMRIPrep, ``None``
        means that the entity is absent and ``"*"`` that it is present with any value.
    derivatives : tuple of pathlib.Path
        Derivatives of other pipelines, searched in this order for existing brain masks.
    output_spaces : tuple of str
        Always includes ``template``; ``T1w`` adds outputs on the native grid.
    mem_gb : float or None
        Memory limit in GB (1e9 bytes); None uses 90 % of the installed memory.
    train, evaluate : TrainOptions, EvaluateOptions
        Options of training (levels ``train`` and ``evaluate``), and those of ``evaluate`` only.
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
        """Folder of this run's log files, ``logs/<run_uuid>`` in the output folder."""
        return self.output_dir / "logs" / self.run_uuid

    @property
    def log_file(self) -> Path:
        """Log file of this run, of all its processes."""
        return self.log_dir / "execution.log"

    @property
    def log_level(self) -> int:
        """Numeric :mod:`logging` level: 25 (progress only), 20 (``-v``), 15 (``-vv``) or 10."""
        return max(25 - 5 * self.verbose, 10)

    def to_json(self) -> str:
        """Return the options as a JSON string."""
        return json.dumps(asdict(self), indent=2, default=str) + "\n"
