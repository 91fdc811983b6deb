"""Every option of a run, in one frozen object that is built once and passed on."""

from __future__ import annotations

import json
import os
import types
import typing
import uuid
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bids_harmony.errors import UsageError
from bids_harmony.evaluation import EvaluateOptions
from bids_harmony.text import TextError, parse_json
from bids_harmony.training.config import TrainOptions

LEVELS = ("participant", "calibrate", "group", "train", "evaluate")
SKULL_STRIP = ("auto", "deepbet", "multi-atlas", "bet", "skip")
REGISTRATION = ("auto", "flirt", "ants")
DEVICES = ("auto", "cpu", "cuda")
ON_GUARD_FAIL = ("flag", "raw")
CHOICES = {
    "level": LEVELS,
    "skull_strip": SKULL_STRIP,
    "registration": REGISTRATION,
    "device": DEVICES,
    "on_guard_fail": ON_GUARD_FAIL,
}
MINIMA = {"nprocs": 1, "omp_nthreads": 1, "n_atlases": 1, "random_seed": 0, "verbose": 0}

#: What belongs to one call and is not taken over by ``--config-file``.
NOT_REUSED = frozenset({"bids_dir", "output_dir", "level", "run_uuid", "dry_run", "reports_only"})


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
    """The options of one run, checked.

    The command line's defaults are this class's, so a configuration made in Python and one made
    by :func:`bids_harmony.cli.parser.parse_args` mean the same.

    Attributes
    ----------
    bids_dir, output_dir : pathlib.Path
        Dataset to read, derivatives folder to write (absolute).
    level : str
        One of :data:`LEVELS`.
    participant_label, session_label : tuple of str
        Labels without ``sub-``/``ses-``; empty means all.
    bids_filters : dict
        The ``t1w`` part of ``--bids-filter-file``, by long entity name. ``None`` stands for "the
        entity is absent", ``"*"`` for "present with any value" (fMRIPrep's convention).
    skip_bids_validation : bool
        Leave out the checks of the dataset that only warn.
    bids_database_dir : pathlib.Path or None
        Folder of a saved pybids index, made when it holds none.
    derivatives : dict of str to pathlib.Path
        Pipelines by name, searched in this order for existing brain masks.
    site_column, age_column, sex_column, diagnosis_column : str or None
        Columns of the dataset's tables; None tries the usual names.
    skull_strip, registration : str
        One of :data:`SKULL_STRIP`, :data:`REGISTRATION`; ``auto`` follows the bundle.
    template : pathlib.Path or None
        Brain-only template image; None is the bundle's.
    atlas_dir : pathlib.Path or None
        T1w images with brain masks, for ``multi-atlas``.
    n_atlases : int
        How many of the most similar atlases are fused, at least 1.
    bundle : str
        ``default``, ``none`` (preprocess and measure only) or a bundle's folder.
    calibration : pathlib.Path or None
        A site's calibration, or a folder of some; None is what the output folder has of the
        ``calibrate`` level, else the scans of the run.
    fit_filter : str or None
        Condition on the scans that sites are calibrated from, and models trained on.
    output_spaces : tuple of str
        ``template`` always, and ``T1w`` where the native grid is asked for too.
    on_guard_fail : str
        One of :data:`ON_GUARD_FAIL`: what becomes of a scan whose harmonization fails the anatomy
        guard; ``raw`` predicts from the raw scan alone.
    correct_age_bias : bool
        Add age gaps corrected for the bias with age; the uncorrected ones stay.
    qc_ratings : tuple of pathlib.Path
        Rating files beside the output folder's own.
    device : str
        One of :data:`DEVICES`.
    random_seed : int
        Seed of everything that draws numbers; fixed unless given.
    sloppy : bool
        Low quality for tests.
    nprocs, omp_nthreads : int
        Processes at once, and threads of one process; at least 1.
    mem_gb : float or None
        Memory the run may use, in GB (1e9 bytes); None is what the machine has.
    use_plugin : pathlib.Path or None
        Nipype plugin file (YAML or JSON), which replaces MultiProc.
    work_dir : pathlib.Path
        Intermediate files, kept so that a run can continue.
    clean_workdir : bool
        Delete the intermediate files of each scan that is done.
    run_uuid : str
        Name of the run's folder under ``logs/``.
    reports_only, dry_run : bool
        Rebuild the reports; list what would be done.
    write_graph, resource_monitor, stop_on_first_crash : bool
        Nipype's options of these names.
    notrack : bool
        Accepted because scripts pass it: nothing is ever sent.
    verbose : int
        How many ``-v`` were given.
    train : TrainOptions
        Options of the ``train`` level, and how ``evaluate`` trains.
    evaluate : EvaluateOptions
        Options of the ``evaluate`` level.

    Raises
    ------
    UsageError
        For a value outside its choices or its range.
    """

    bids_dir: Path
    output_dir: Path
    level: str = "participant"
    # selection
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filters: dict[str, Any] = field(default_factory=dict)
    skip_bids_validation: bool = False
    bids_database_dir: Path | None = None
    derivatives: dict[str, Path] = field(default_factory=dict)
    # tables
    site_column: str | None = None
    age_column: str | None = None
    sex_column: str | None = None
    diagnosis_column: str | None = None
    # processing
    skull_strip: str = "auto"
    registration: str = "auto"
    template: Path | None = None
    atlas_dir: Path | None = None
    n_atlases: int = 6
    bundle: str = "default"
    calibration: Path | None = None
    fit_filter: str | None = None
    output_spaces: tuple[str, ...] = ("template",)
    on_guard_fail: str = "flag"
    correct_age_bias: bool = False
    qc_ratings: tuple[Path, ...] = ()
    device: str = "auto"
    random_seed: int = 42
    sloppy: bool = False
    # resources
    nprocs: int = field(default_factory=available_cpus)
    omp_nthreads: int = 1
    mem_gb: float | None = None
    use_plugin: Path | None = None
    work_dir: Path = field(default_factory=lambda: Path.cwd() / "work")
    clean_workdir: bool = False
    # this call
    run_uuid: str = field(default_factory=new_run_uuid)
    reports_only: bool = False
    dry_run: bool = False
    write_graph: bool = False
    resource_monitor: bool = False
    stop_on_first_crash: bool = False
    notrack: bool = False
    verbose: int = 0
    train: TrainOptions = field(default_factory=TrainOptions)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise UsageError(
                    f"{flag(name)} is '{value}'.", f"Choose one of {', '.join(choices)}."
                )
        for name, least in MINIMA.items():
            if (value := getattr(self, name)) < least:
                raise UsageError(f"{flag(name)} is {value}.", f"It must be at least {least}.")
        if self.random_seed >= 2**32:
            raise UsageError(f"--random-seed is {self.random_seed}.", "It must be below 2^32.")
        if self.mem_gb is not None and not 0 < self.mem_gb < float("inf"):
            raise UsageError(f"--mem is {self.mem_gb:g} GB.", "Give the GB the run may use.")

    @property
    def log_dir(self) -> Path:
        """Folder of this run's own files."""
        return self.output_dir / "logs" / self.run_uuid

    @property
    def log_level(self) -> int:
        """Level of :mod:`logging`: 25 for progress only, 20 with ``-v``, 15, then 10."""
        return max(25 - 5 * self.verbose, 10)

    def to_json(self) -> str:
        """Return the options as JSON text that :meth:`from_json` reads."""
        return json.dumps(asdict(self), indent=2, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Build a configuration from :meth:`to_json`'s text.

        Raises
        ------
        UsageError
            When the text is not JSON, or an option is unknown or of the wrong type.
        """
        return cls(**decode_options(text, "The configuration"))


def flag(name: str) -> str:
    """Name an option as the user writes it: ``skull_strip`` is ``--skull-strip``."""
    return "The level" if name == "level" else "--" + name.replace("_", "-")


def decode_options(text: str, source: str) -> dict[str, Any]:
    """Read options of :class:`RunConfig` from JSON text, refusing unknown ones and wrong types.

    Parameters
    ----------
    text : str
        A JSON object of option names (with underscores) and values.
    source : str
        What to call the text in an error.

    Raises
    ------
    UsageError
        When the text is not a JSON object, or an option is unknown or of the wrong type: an
        option that is silently dropped is worse than one that is refused.
    """
    remedy = "Use a logs/<run_uuid>/bids_harmony.json that this version wrote, or correct it."
    try:
        raw = parse_json(text)
    except TextError as error:
        raise UsageError(f"{source} is not valid JSON ({error}).", remedy) from error
    if not isinstance(raw, dict):
        raise UsageError(f"{source} does not hold a JSON object.", remedy)
    hints = _hints(RunConfig)
    if unknown := sorted(set(raw) - set(hints)):
        raise UsageError(f"{source} has unknown options: {', '.join(unknown)}.", remedy)
    options = {}
    for name, value in raw.items():
        try:
            options[name] = _decode(value, hints[name])
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{source} gives {name} the value {json.dumps(value)}.", remedy
            ) from error
    return options


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _decode(value: Any, hint: Any) -> Any:
    """Turn a JSON value into the annotated type, or raise TypeError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is types.UnionType:
        if value is None:
            return None
        return _decode(value, next(a for a in args if a is not type(None)))
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        inner = _hints(hint)
        if set(value) - set(inner):
            raise TypeError(hint)
        return hint(**{k: _decode(v, inner[k]) for k, v in value.items()})
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is ... else args
        return tuple(_decode(v, kind) for v, kind in zip(value, kinds, strict=True))
    if origin is dict and isinstance(value, dict):
        return {k: _decode(v, args[1]) for k, v in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is hint:
        return value
    raise TypeError(hint)
