"""Every option of a run: declared once, in one frozen object that is built once and passed on."""

# ruff: noqa: RUF009 (calls declare the fields)
from __future__ import annotations

import json
import os
import types
import typing
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bids_harmony.errors import UsageError
from bids_harmony.evaluation import EvaluateOptions
from bids_harmony.files import TextError, parse_json
from bids_harmony.training.config import TrainOptions

LEVELS = ("participant", "calibrate", "group", "train", "evaluate")
PARTICIPANT = ("participant",)
#: Levels at which a run looks at scans itself, instead of at what participant recorded.
SCANS = ("participant", "train", "evaluate")

SELECTION = "which scans (default: every T1w image)"
TABLES = (
    "what is known of a scan (from scans.tsv, sessions.tsv and participants.tsv, the most "
    "specific first)"
)
PROCESSING = "processing (auto: as the bundle was trained)"
RESOURCES = "resources"
THIS_RUN = "this run"
QUALITY = "quality (levels group, train and evaluate)"
NAMES = "(default: common names are tried)"

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


def option(
    default: Any,
    group: str,
    text: str,
    *aliases: str,
    called: str | None = None,
    metavar: str | None = None,
    choices: tuple[str, ...] = (),
    least: int | None = None,
    levels: tuple[str, ...] = LEVELS,
) -> Any:
    """Declare an option of the command line as a field.

    Parameters
    ----------
    default : Any
        Its default, or a function that makes it.
    group, text : str
        Its group in the help, and what that says of it.
    *aliases : str
        Other names of it.
    called : str, optional
        Its main name, where that is not the field's.
    metavar : str, optional
        What it takes, in the help.
    choices : tuple of str
        Its values, where they are few.
    least : int, optional
        Its least value.
    levels : tuple of str
        Where it means anything.
    """
    metadata = {
        "group": group, "text": text, "called": called, "aliases": aliases, "metavar": metavar,
        "choices": choices, "least": least, "levels": levels,
    }  # fmt: skip
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def at_levels(*levels: str) -> Callable[..., Any]:
    """Declare options that mean something at some levels alone."""
    return lambda *said, **more: option(*said, levels=levels, **more)


preprocessing = at_levels(*PARTICIPANT)
selecting = at_levels(*SCANS)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The options of one run, checked; what each means, its help says.

    The command line's defaults are this class's, so a configuration made in Python and one made
    by :func:`bids_harmony.cli.parser.parse_args` mean the same. Paths are absolute, labels without
    ``sub-`` and ``ses-``, and an empty tuple means all.

    Attributes
    ----------
    bids_filters : dict
        The ``t1w`` part of ``--bids-filter-file``, by long entity name. ``None`` stands for "the
        entity is absent", ``"*"`` for "present with any value" (fMRIPrep's convention).
    derivatives : dict of str to pathlib.Path
        Pipelines by name, searched in this order for existing brain masks.
    output_spaces : tuple of str
        ``template`` always, and ``T1w`` where the native grid is asked for too.
    mem_gb : float or None
        In GB (1e9 bytes); None is what the machine has.
    train, evaluate : TrainOptions, EvaluateOptions
        Options of the ``train`` level, and how ``evaluate`` trains; and of ``evaluate``.

    Raises
    ------
    UsageError
        For a value outside its choices or its range.
    """

    bids_dir: Path
    output_dir: Path
    level: str = field(default="participant", metadata={"choices": LEVELS})
    participant_label: tuple[str, ...] = selecting(
        (), SELECTION, "participants, with or without sub-", metavar="LABEL"
    )
    session_label: tuple[str, ...] = selecting(
        (), SELECTION, "sessions, with or without ses-", "--session-id", metavar="LABEL"
    )
    bids_filters: dict[str, Any] = selecting(
        dict, SELECTION,
        'JSON such as {"t1w": {"acquisition": "mprage"}}; null means without, "*" means any',
        called="--bids-filter-file", metavar="FILE")  # fmt: skip
    skip_bids_validation: bool = option(
        False, SELECTION, "do not warn about the dataset's description", "--skip-bids-validator"
    )
    bids_database_dir: Path | None = option(
        None, SELECTION,
        "folder of a saved pybids index, made if there is none and then used as it is "
        "(default: the asked subjects are indexed each time, in seconds)", metavar="PATH",
    )  # fmt: skip
    site_column: str | None = selecting(
        None, TABLES, "column of the acquisition site (default: common names are tried, then the "
        "sidecar's manufacturer, model and field strength)", metavar="NAME")  # fmt: skip
    age_column: str | None = selecting(None, TABLES, f"column of the age {NAMES}", metavar="NAME")
    sex_column: str | None = selecting(None, TABLES, f"column of the sex {NAMES}", metavar="NAME")
    diagnosis_column: str | None = selecting(
        None, TABLES, f"column of the diagnosis {NAMES}", metavar="NAME"
    )
    derivatives: dict[str, Path] = preprocessing(
        dict, TABLES, "derivatives with brain masks in native space (*_desc-brain_mask.nii.gz), "
        "which then are used as they are", "-d", metavar="NAME=PATH")  # fmt: skip
    bundle: str = option(
        "default", PROCESSING, "folder of a model bundle; 'default' is the one that comes with "
        "the program, 'none' preprocesses and measures only", metavar="PATH")  # fmt: skip
    calibration: Path | None = preprocessing(
        None, PROCESSING, "calibration of a site (site-*_calibration.json), or a folder of some, "
        "to use as it is; sites without one are calibrated from their scans in this run (default: "
        "auto, those that the calibrate level left in OUTPUT_DIR, else the scans of this run)",
        metavar="PATH")  # fmt: skip
    fit_filter: str | None = at_levels("participant", "calibrate", "train", "evaluate")(
        None, PROCESSING, "scans to calibrate sites from, and to train on, such as "
        "'diagnosis == \"control\"' (default: all)", metavar="CONDITION")  # fmt: skip
    skull_strip: str = preprocessing(
        "auto", PROCESSING, "brain mask; auto also recognises scans that are stripped already",
        choices=("auto", "deepbet", "multi-atlas", "bet", "skip"))  # fmt: skip
    registration: str = preprocessing(
        "auto", PROCESSING, "affine registration, 12 degrees of freedom",
        choices=("auto", "flirt", "ants"))  # fmt: skip
    template: Path | None = at_levels("participant", "calibrate")(
        None, PROCESSING, "brain-only T1w image to register to (default: the bundle's)",
        metavar="FILE")  # fmt: skip
    atlas_dir: Path | None = preprocessing(
        None, PROCESSING, "T1w images with brain masks, for --skull-strip multi-atlas",
        metavar="PATH")  # fmt: skip
    n_atlases: int = preprocessing(
        6, PROCESSING, "how many of the most similar atlases are fused", metavar="N", least=1
    )
    output_spaces: tuple[str, ...] = preprocessing(
        ("template",), PROCESSING, "T1w adds the harmonized scan on its native grid; the template "
        "grid is always written", metavar="SPACE")  # fmt: skip
    on_guard_fail: str = preprocessing(
        "flag", PROCESSING, "where harmonization seems to have changed the anatomy: flag only, or "
        "predict from the raw scan alone", choices=("flag", "raw"))  # fmt: skip
    correct_age_bias: bool = preprocessing(
        False, PROCESSING, "add age gaps without the part that age alone explains at the "
        "reference site; the uncorrected ones stay the headline")  # fmt: skip
    device: str = selecting(
        "auto", PROCESSING, "where networks run; auto takes a GPU if there is one",
        choices=("auto", "cpu", "cuda"))  # fmt: skip
    random_seed: int = selecting(
        42, PROCESSING, "seed of everything that draws numbers", metavar="N", least=0
    )
    sloppy: bool = selecting(False, PROCESSING, "low quality, for tests only", "--testing")
    nprocs: int = option(
        available_cpus, RESOURCES, "scans processed at once, each in a process (default: all CPUs "
        "this process may use)", "--nthreads", "--n-cpus", "--n-procs", metavar="N", least=1,
    )  # fmt: skip
    omp_nthreads: int = option(
        1, RESOURCES, "most threads of one process; with many scans it is one (default: nprocs - "
        "1, at least 1 and at most 8)", "--ants-nthreads", metavar="N", least=1)  # fmt: skip
    mem_gb: float | None = option(
        None, RESOURCES, "memory the run may use, in GB, or with its unit as in 8GB; a scan "
        "takes 2 (default: the machine's)", "--mem-gb", called="--mem", metavar="GB")  # fmt: skip
    use_plugin: Path | None = selecting(
        None, RESOURCES, "nipype plugin settings (YAML), for clusters (default: processes on "
        "this machine)", "--nipype-plugin-file", metavar="FILE")  # fmt: skip
    work_dir: Path = option(
        lambda: Path.cwd() / "work", RESOURCES, "intermediate files (default: ./work)", "-w",
        metavar="PATH")  # fmt: skip
    clean_workdir: bool = option(
        False, RESOURCES, "delete a scan's intermediate files as soon as it is completed"
    )
    dry_run: bool = option(
        False, THIS_RUN, "list each scan and what would be done with it, and stop"
    )
    reports_only: bool = at_levels("participant", "group", "train", "evaluate")(
        False, THIS_RUN, "write the reports again, no more"
    )
    run_uuid: str = option(
        new_run_uuid, THIS_RUN, "name of the run's folder in logs/", metavar="ID"
    )
    stop_on_first_crash: bool = selecting(
        False, THIS_RUN, "stop at the first scan that fails (default: the others are finished)"
    )
    write_graph: bool = selecting(False, THIS_RUN, "draw the workflows")
    resource_monitor: bool = selecting(False, THIS_RUN, "record memory and CPU use")
    notrack: bool = option(
        False, THIS_RUN, "accepted for scripts that pass it: nothing is ever sent anywhere"
    )
    verbose: int = option(0, THIS_RUN, "say more: -v, -vv, -vvv", "-v", least=0)
    qc_ratings: tuple[Path, ...] = at_levels("group", "train", "evaluate")(
        (), QUALITY, "ratings saved from the group report, of one or several people; group adds "
        "them to OUTPUT_DIR/qc_ratings.tsv, which is always read; train and evaluate leave out "
        "what is rejected there", metavar="FILE")  # fmt: skip
    train: TrainOptions = field(default_factory=TrainOptions)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)

    def __post_init__(self) -> None:
        for one in fields(self):
            value, said = getattr(self, one.name), one.metadata
            if (choices := said.get("choices")) and value not in choices:
                raise UsageError(
                    f"{flag(one.name)} is '{value}'.", f"Choose one of {', '.join(choices)}."
                )
            if (least := said.get("least")) is not None and value < least:
                raise UsageError(f"{flag(one.name)} is {value}.", f"It must be at least {least}.")
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
    hints = typing.get_type_hints(RunConfig)
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


def _decode(value: Any, hint: Any) -> Any:
    """Turn a JSON value into the annotated type, or raise TypeError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is types.UnionType:
        return None if value is None else _decode(value, args[0])
    if is_dataclass(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint)
        return hint(**{k: _decode(v, hints.get(k)) for k, v in value.items()})  # type: ignore[operator]
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(v, args[0]) for v in value)
    if origin is dict and isinstance(value, dict):
        return {k: _decode(v, args[1]) for k, v in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    raise TypeError(hint)
