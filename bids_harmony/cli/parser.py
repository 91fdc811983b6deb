"""Command-line parser, which creates the :class:`RunConfig` of a run.

Arguments have the same names as in fMRIPrep and MRIQC, so that scripts written for those also
work here. No heavy module is imported, so ``--help`` and usage errors are shown immediately.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from bids_harmony import __version__
from bids_harmony.cli.checks import check_config
from bids_harmony.config import (
    EXPERIMENTS,
    LEVELS,
    MAPS,
    RECIPES,
    Contract,
    EvaluateOptions,
    RunConfig,
    TrainOptions,
    available_cpus,
)
from bids_harmony.errors import UsageError
from bids_harmony.files import plain_number

LOGGER = logging.getLogger(__name__)

PROGRAM = "bids_harmony"
USAGE = f"{PROGRAM} BIDS_DIR OUTPUT_DIR {{{','.join(LEVELS)}}} [options]"
Options = TypeVar("Options")


class Parser(argparse.ArgumentParser):
    """Argument parser that raises :class:`UsageError` and suggests similar option names."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's message."""
        remedy = f"Usage: {USAGE}. See {PROGRAM} --help."
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            if near := get_close_matches(match[1], self._option_string_actions, n=1):
                remedy = f"Did you mean {near[0]}?"
        elif match := re.fullmatch(r"argument ([^:/]+)[^:]*: (.*)", message):
            message = f"{match[1]}: {match[2]}"
        raise UsageError(f"{message[0].upper()}{message[1:].removesuffix('.')}.", remedy)


# fmt: off
def build_parser() -> argparse.ArgumentParser:
    """Return the parser, whose result only has options given (defaults: :class:`RunConfig`)."""
    parser = Parser(
        prog=PROGRAM,
        usage=USAGE,
        description="Harmonize T1-weighted brain scans to one reference site, and predict brain "
        "age and schizophrenia probability there. Research use only: not a diagnosis.",
        epilog="Options may be written with hyphens or underscores. Exit codes: 0 all scans "
        "completed, 1 some failed, 2 usage, 66 no T1w, 70 internal error, 78 bundle, 127 missing "
        "program, 130 interrupted.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("bids_dir", metavar="BIDS_DIR", type=parse_path, help="root folder of the BIDS dataset")
    add("output_dir", metavar="OUTPUT_DIR", type=parse_path, help="folder of the derivatives")
    add("level", metavar="LEVEL", choices=LEVELS,
        help="participant: process each scan; calibrate: calibrate each site from its "
        "preprocessed scans; group: tables, outliers and a report of all scans; train: a new "
        "model bundle; evaluate: cross-validation with and without harmonization")
    add("--version", action="version", version=f"{PROGRAM} {__version__}")
    _add_input(parser)
    _add_processing(parser)
    _add_training(parser)

    add = parser.add_argument_group("resources").add_argument
    add("--nprocs", "--nthreads", "--n-cpus", type=bounded(1), metavar="N",
        help="maximum number of processes, one per scan (default: all available CPUs)")
    add("--omp-nthreads", type=bounded(1), metavar="N",
        help="maximum number of threads per process (default: nprocs - 1, from 1 to 8)")
    add("--mem", dest="mem_gb", type=parse_gb, metavar="GB",
        help="memory limit in GB, or with a unit (8000MB); a scan uses 2 (default: that of the "
        "computer)")
    add("--use-plugin", type=parse_path, metavar="FILE",
        help="level participant: YAML file with a nipype plugin and its arguments, for clusters")
    add("--work-dir", "-w", type=parse_path, metavar="PATH",
        help="folder of intermediate files (default: ./work)")
    add("--clean-workdir", action="store_true",
        help="delete the intermediate files of each scan when it is completed")

    add = parser.add_argument_group("this run").add_argument
    add("--dry-run", action="store_true", help="list the scans without processing them")
    add("--reports-only", action="store_true",
        help="level participant: only write the reports again")
    add("--stop-on-first-crash", action="store_true",
        help="level participant: stop at the first scan that fails")
    add("--verbose", "-v", action="count", help="increase the log level: -v, -vv, -vvv")
    add("--notrack", "--skip-bids-validation", action="store_true",
        help="accepted for compatibility and ignored: no data are sent, no validator is run")
    return parser


def _add_input(parser: Parser) -> None:
    """Add options that select scans and name the columns of their metadata."""
    add = _group(parser, "selection of scans (default: all T1w images)", "participant", "train",
                 "evaluate")
    add("--participant-label", nargs="+", action="extend", metavar="LABEL",
        help="participants, with or without sub-")
    add("--session-label", nargs="+", action="extend", metavar="LABEL",
        help="sessions, with or without ses-")
    add("--bids-filter-file", type=parse_path, metavar="FILE",
        help='JSON such as {"t1w": {"acquisition": "mprage"}}; null: without, "*": any value')
    add("--site-column", metavar="NAME",
        help="column of the acquisition site in scans.tsv, sessions.tsv or participants.tsv "
        "(default: common names, else the sidecar's manufacturer, model and field strength)")
    for what in ("age", "sex", "diagnosis"):
        add(f"--{what}-column", metavar="NAME", help=f"column of the {what}")


def _add_processing(parser: Parser) -> None:
    """Add options of preprocessing, harmonization and prediction."""
    add = parser.add_argument_group("models").add_argument
    add("--bundle", type=parse_bundle, metavar="PATH",
        help="folder of a model bundle, or 'none' to preprocess only (default: default, the "
        "built-in bundle)")
    add("--fit-filter", metavar="CONDITION",
        help="scans used for calibration and training, such as 'diagnosis == \"control\"' "
        "(default: all)")
    add("--template", type=parse_path, metavar="FILE",
        help="skull-stripped T1w template (default: the bundle's)")
    add("--device", choices=("auto", "cpu", "cuda"),
        help="device of the networks; auto uses a GPU if available (default: auto)")
    add("--random-seed", type=bounded(0, 2**32 - 1), metavar="N",
        help="seed of all random number generators (default: 42)")
    add("--qc-ratings", nargs="+", action="extend", type=parse_path, metavar="FILE",
        help="visual ratings saved from the group report; group adds them to "
        "OUTPUT_DIR/qc_ratings.tsv, train and evaluate exclude rejected scans")
    add = _group(parser, "preprocessing and harmonization (auto: as the bundle was trained)",
                 "participant")
    add("--derivatives", "-d", nargs="+", action="extend", type=parse_path, metavar="PATH",
        help="derivatives with brain masks in native space (*_desc-brain_mask.nii.gz) to use")
    add("--skull-strip", choices=("auto", "deepbet", "multi-atlas", "bet", "skip"),
        help="skull-stripping method; auto detects skull-stripped scans (default: auto)")
    add("--atlas-dir", type=parse_path, metavar="PATH",
        help="T1w images with brain masks, for multi-atlas: fuses the six most similar ones")
    add("--registration", choices=("auto", "flirt", "ants"),
        help="affine registration, 12 degrees of freedom (default: auto)")
    add("--calibration", type=parse_path, metavar="PATH",
        help="calibration file of a site (site-*_calibration.json), or a folder of them (default: "
        "those of the calibrate level in OUTPUT_DIR, else calibrate from the scans of this run)")
    add("--output-spaces", nargs="+", metavar="SPACE",
        help="add T1w for the harmonized scan in native space (default: template)")
    add("--on-guard-fail", choices=("flag", "raw"),
        help="if harmonization seems to have changed the anatomy: flag the scan only, or also "
        "predict from the raw scan alone (default: flag)")
    add("--correct-age-bias", action="store_true",
        help="add brain-age gaps corrected for the age bias at the reference site")
    add("--sloppy", "--testing", action="store_true", help="low quality, for tests only")


def _add_training(parser: Parser) -> None:
    """Add options of training and evaluation."""
    default = TrainOptions()
    add = _group(parser, "training", "train", "evaluate")
    add("--reference-site", type=plain_number, metavar="SITE",
        help="site to which all others are mapped (default: the one with most scans)")
    add("--target", "--targets", dest="targets", nargs="+", action="extend", metavar="COLUMN",
        help="columns to predict, of numbers or of two classes, or simulated-schizophrenia "
        f"(default: {' '.join(default.targets)})")
    add("--map", choices=MAPS,
        help=f"map from a site to the reference (default: {default.map})")
    add("--predictor", choices=RECIPES,
        help=f"training recipe of the predictors (default: {default.predictor})")
    add("--predictor-steps", type=bounded(1), metavar="N",
        help="training steps of each predictor network (default: those of the recipe)")
    add("--folds", type=bounded(2), metavar="N",
        help=f"networks in a predictor's ensemble (default: {default.folds})")
    add("--fast-dev-run", action="store_true", help="smoke test: a few steps of everything")
    add = _group(parser, "bundle", "train")
    add("--model-name", type=parse_name, metavar="NAME",
        help=f"name of the bundle, written to OUTPUT_DIR/models (default: {default.model_name})")
    add("--holdout", type=bounded(0.0, 0.8), metavar="X",
        help=f"fraction of each site's subjects held out for testing (default: {default.holdout})")
    add = _group(parser, "experiments", "evaluate")
    add("--experiments", nargs="+", choices=EXPERIMENTS, metavar="NAME",
        help="sites: train at the reference, test at every site; rotations: train on each site "
        "and each ordered pair; size: number of subjects for a calibration (default: sites)")
    add("--cv-folds", type=bounded(2), metavar="N",
        help=f"cross-validation folds, split by subject (default: {EvaluateOptions.cv_folds})")
    add("--n-seeds", "--seeds", type=bounded(1), metavar="N",
        help="repetitions of all training with other random seeds (default: 1)")
    add("--train-sites", nargs="+", action="extend", type=plain_number, metavar="SITE[+SITE]",
        help="training sites of the experiment rotations, each SITE or REFERENCE+SITE; adds that "
        "experiment (default: all)")


# fmt: on
def _group(parser: Parser, title: str, *levels: str) -> Callable[..., argparse.Action]:
    """Add a group of options that only apply to some levels."""
    return parser.add_argument_group(title, f"Levels: {', '.join(levels)}.").add_argument


def parse_args(argv: Sequence[str]) -> RunConfig:
    """Parse and check the arguments; no scan or table of the dataset is read.

    Parameters
    ----------
    argv : sequence of str
        Arguments without the program name.

    Returns
    -------
    RunConfig

    Raises
    ------
    UsageError
        If an argument is invalid.
    SystemExit
        With code 0, for ``--help`` and ``--version``.
    """
    parser = build_parser()
    hyphened = [re.sub("^--[^=]+", lambda m: m[0].replace("_", "-"), word) for word in argv]
    given = vars(parser.parse_args(hyphened))
    nprocs = given.setdefault("nprocs", available_cpus())
    given.setdefault("omp_nthreads", max(1, min(nprocs - 1, 8)))
    # Groups of options that only apply to some levels list them in their descriptions.
    idle = [
        action.option_strings[0]
        for group in parser._action_groups
        for action in group._group_actions
        if action.dest in given and given["level"] not in (group.description or given["level"])
    ]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    for name in ("participant_label", "session_label"):
        values[name] = _labels(given.get(name, ()))
    if "bids_filter_file" in given:
        from bids_harmony.bids.filters import read_filters

        values["bids_filters"] = read_filters(given["bids_filter_file"])
    if "output_spaces" in given:
        values["output_spaces"] = _spaces(given["output_spaces"])
    if "train_sites" in given:
        experiments = given.get("experiments", EvaluateOptions.experiments)
        values["experiments"] = tuple(dict.fromkeys((*experiments, "rotations")))
    seed = given.get("random_seed", RunConfig.random_seed)
    values["train"] = _filled(TrainOptions, values | {"seed": seed, "threads": nprocs})
    values["evaluate"] = _filled(EvaluateOptions, values)
    config = _filled(RunConfig, values)
    warnings = check_config(config)
    if idle:
        warnings.append(f"the {config.level} level ignores {', '.join(sorted(idle))}.")
    for warning in warnings:
        LOGGER.warning(warning)
    return config


def _filled(cls: type[Options], values: Mapping[str, Any]) -> Options:
    """Return a dataclass instance from the values that match its fields."""
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in values.items() if name in names})


def _labels(values: Sequence[str]) -> tuple[str, ...]:
    """Return labels without prefixes; split lists passed as one argument (``01,02``)."""
    words = [word for value in values for word in re.split(r"[,\s]+", value) if word]
    return tuple(dict.fromkeys(word.removeprefix("sub-").removeprefix("ses-") for word in words))


def _spaces(values: Sequence[str]) -> tuple[str, ...]:
    """Return ``template``, and ``T1w`` if native space is among the space labels."""
    native, labels = {"T1w", "anat", "native"}, {"template", Contract.template}
    names = {value.partition(":")[0] for value in values}
    if unknown := names - labels - native:
        raise UsageError(
            f"--output-spaces {min(unknown)} is not available.", "Use template, T1w or both."
        )
    return ("template", "T1w") if names & native else ("template",)


def bounded(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return a parser of numbers that rejects those below ``low`` or above ``high``.

    The type of ``low`` determines the type of the number.
    """

    def number(text: str) -> float:
        value = type(low)(text)
        if not low <= value <= high:
            upper = "" if high == math.inf else f" and at most {high}"
            raise argparse.ArgumentTypeError(f"{text} is not at least {low}{upper}")
        return value

    return number


def parse_path(text: str) -> Path:
    """Return an absolute path; symbolic links, as in DataLad datasets, are not resolved."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def parse_bundle(text: str) -> str:
    """Return ``default`` and ``none`` unchanged, and anything else as an absolute path."""
    return text if text in ("default", "none") else str(parse_path(text))


def parse_name(text: str) -> str:
    """Return a name that is valid as a folder name; raise ArgumentTypeError otherwise."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a valid folder name")
    return text


def parse_gb(text: str) -> float:
    """Parse an amount of memory, in GB or with a unit; reject more than 4096 GB (meant as MB)."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kmgt]?)i?b?", text.strip().lower())
    gb = float(match[1]) * {"k": 1e-6, "m": 1e-3, "t": 1e3}.get(match[2], 1.0) if match else 0.0
    if not 0 < gb <= 4096:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not an amount of memory in GB, such as 8 or 8000MB"
        )
    return gb
