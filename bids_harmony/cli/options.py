"""The options: names, aliases, groups and help.

Positionals, option names and aliases are those of fMRIPrep, MRIQC and their kin, so that scripts
made for one of them work.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from bids_harmony import __version__
from bids_harmony.config import CHOICES, RunConfig
from bids_harmony.errors import UsageError
from bids_harmony.training.config import PRECISIONS, RECIPES, TrainOptions

PROGRAM = "bids_harmony"
FORM = f"{PROGRAM} BIDS_DIR OUTPUT_DIR participant [options]"
#: Levels of this version; the others are planned (design.md §1).
AVAILABLE = ("participant", "train")
#: ``--mem 16000`` is a habit from programs that count in MB.
MAX_PLAUSIBLE_GB = 4096


class ArgumentSyntaxError(Exception):
    """argparse's message, before it is put into our words."""


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing sixty lines of usage."""

    def error(self, message: str) -> Any:
        raise ArgumentSyntaxError(message)


class _Formatter(argparse.HelpFormatter):
    """Help with one spelling per option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        short = [name for name in action.option_strings if not name.startswith("--")]
        long = [name for name in action.option_strings if name.startswith("--")][:1]
        names = ", ".join(short + long)
        if action.nargs == 0:
            return names
        return f"{names} {self._format_args(action, action.dest.upper())}"


class _Tuple(argparse.Action):
    """Store several values as a tuple, which a frozen configuration can hold."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), *values))


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; its results hold only what the user wrote (defaults are RunConfig's)."""
    parser = _Parser(
        prog=PROGRAM,
        usage=FORM.replace("participant", "{" + ",".join(AVAILABLE) + "}"),
        description="Harmonize T1-weighted brain scans to one reference site, and predict brain "
        "age and schizophrenia probability there. Research use only: not a diagnosis.",
        epilog="Options may be written with hyphens or underscores. Exit codes: 0 all scans done, "
        "1 some failed, 2 usage, 66 no T1w, 70 internal error, 78 bundle, 127 missing program.",
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "bids_dir", metavar="BIDS_DIR", type=parse_path, help="the raw BIDS dataset"
    )
    parser.add_argument(
        "output_dir", metavar="OUTPUT_DIR", type=parse_path, help="derivatives folder"
    )
    parser.add_argument(
        "level",
        metavar="LEVEL",
        help="participant: each scan from raw to report; train: a new model bundle from the "
        "preprocessed scans of OUTPUT_DIR",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    _add_selection(parser)
    _add_tables(parser)
    _add_processing(parser)
    _add_resources(parser)
    _add_run(parser)
    _add_training(parser)
    return parser


def _add(group: Any, *flags: str, **kwargs: Any) -> None:
    """Add an option under all its names, each with hyphens and with underscores."""
    names = [n for f in flags for n in (f, re.sub(r"(?<=\w)-", "_", f))]
    group.add_argument(*dict.fromkeys(names), default=argparse.SUPPRESS, **kwargs)


def _default(name: str, cls: type = RunConfig) -> str:
    """Write an option's default for the help."""
    for field in fields(cls):
        if field.name == name and field.default is not MISSING:
            value = field.default
            return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    raise KeyError(name)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which scans (default: every T1w image)")
    _add(
        group,
        "--participant-label",
        nargs="+",
        action="extend",
        metavar="LABEL",
        help="participants, with or without sub-",
    )
    _add(
        group,
        "--session-label",
        "--session-id",
        nargs="+",
        action="extend",
        metavar="LABEL",
        help="sessions, with or without ses-",
    )
    _add(
        group,
        "--bids-filter-file",
        type=parse_path,
        metavar="FILE",
        help='JSON such as {"t1w": {"acquisition": "mprage"}}; null means without, "*" means any',
    )
    _add(
        group,
        "--skip-bids-validation",
        "--skip-bids-validator",
        action="store_true",
        help="do not warn about the dataset's description",
    )
    _add(
        group,
        "--bids-database-dir",
        type=parse_path,
        metavar="PATH",
        help="folder of a saved pybids index, made if there is none and then used as it is "
        "(default: the asked subjects are indexed each time, in seconds)",
    )


def _add_tables(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what is known of a scan (from scans.tsv, sessions.tsv and participants.tsv, the most "
        "specific first)"
    )
    usual = "(default: the usual names are tried)"
    _add(
        group,
        "--site-column",
        metavar="NAME",
        help="column of the acquisition site (default: the usual names are tried, then the "
        "sidecar's manufacturer, model and field strength)",
    )
    for what in ("age", "sex", "diagnosis"):
        _add(group, f"--{what}-column", metavar="NAME", help=f"column of the {what} {usual}")
    _add(
        group,
        "-d",
        "--derivatives",
        nargs="+",
        action="extend",
        metavar="NAME=PATH",
        help="derivatives with brain masks in native space (*_desc-brain_mask.nii.gz), which "
        "then are used as they are",
    )


def _add_processing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("processing (auto: as the bundle was trained)")

    def choice(name: str, text: str) -> None:
        choices = "{" + ",".join(CHOICES[name]) + "}"
        shown = f"{text} (default: {_default(name)})"
        _add(group, "--" + name.replace("_", "-"), metavar=choices, help=shown)

    _add(
        group,
        "--bundle",
        type=_bundle,
        metavar="PATH",
        help="folder of a model bundle; 'default' is the one that comes with the program, 'none' "
        f"preprocesses and measures only (default: {_default('bundle')})",
    )
    choice("skull_strip", "brain mask; auto also recognises scans that are stripped already")
    choice("registration", "affine registration, 12 degrees of freedom")
    _add(
        group,
        "--template",
        type=parse_path,
        metavar="FILE",
        help="brain-only T1w image to register to (default: the bundle's)",
    )
    _add(
        group,
        "--atlas-dir",
        type=parse_path,
        metavar="PATH",
        help="T1w images with brain masks, for --skull-strip multi-atlas",
    )
    _add(
        group,
        "--n-atlases",
        type=int,
        metavar="N",
        help=f"how many of the most similar atlases are fused (default: {_default('n_atlases')})",
    )
    _add(
        group,
        "--output-spaces",
        nargs="+",
        metavar="SPACE",
        help="T1w adds the harmonized scan on its native grid; the template grid is always "
        f"written (default: {_default('output_spaces')})",
    )
    choice(
        "on_guard_fail",
        "where harmonization seems to have changed the anatomy: flag only, or predict from the "
        "raw scan alone",
    )
    _add(
        group,
        "--correct-age-bias",
        action="store_true",
        help="add age gaps without the part that age alone explains at the reference site; the "
        "uncorrected ones stay the headline",
    )
    choice("device", "where networks run; auto takes a GPU if there is one")
    _add(
        group,
        "--random-seed",
        type=int,
        metavar="N",
        help=f"seed of everything that draws numbers (default: {_default('random_seed')})",
    )
    _add(group, "--sloppy", "--testing", action="store_true", help="low quality, for tests only")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("resources")
    _add(
        group,
        "--nprocs",
        "--nthreads",
        "--n-cpus",
        "--n-procs",
        type=int,
        metavar="N",
        help="processes at once (default: all CPUs this process may use)",
    )
    _add(
        group,
        "--omp-nthreads",
        "--ants-nthreads",
        type=int,
        metavar="N",
        help="threads of one process (default: nprocs - 1, at least 1 and at most 8)",
    )
    _add(
        group,
        "--mem",
        "--mem-gb",
        dest="mem_gb",
        type=_memory_gb,
        metavar="GB",
        help="memory the run may use, in GB, or with its unit as in 8GB (default: the machine's)",
    )
    _add(group, "--mem-mb", dest="mem_gb", type=_memory_mb, metavar="MB", help="the same, in MB")
    _add(
        group,
        "--use-plugin",
        "--nipype-plugin-file",
        type=parse_path,
        metavar="FILE",
        help="nipype plugin settings (YAML), for clusters (default: MultiProc on this machine)",
    )
    _add(
        group,
        "-w",
        "--work-dir",
        type=parse_path,
        metavar="PATH",
        help="intermediate files, from which a run that was stopped continues (default: ./work)",
    )
    _add(group, "--clean-workdir", action="store_true", help="delete them when all scans are done")


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("this run")
    _add(
        group,
        "--dry-run",
        action="store_true",
        help="list each scan and what would be done with it, and stop",
    )
    _add(group, "--reports-only", action="store_true", help="write the reports again, no more")
    _add(
        group,
        "--config-file",
        type=parse_path,
        metavar="FILE",
        help="options of an earlier run (logs/<run_uuid>/bids_harmony.json); those on the "
        "command line win",
    )
    _add(group, "--run-uuid", metavar="ID", help="name of the run's folder in logs/")
    _add(
        group,
        "--stop-on-first-crash",
        action="store_true",
        help="stop at the first scan that fails (default: the others are finished)",
    )
    _add(group, "--write-graph", action="store_true", help="draw the workflow")
    _add(group, "--resource-monitor", action="store_true", help="record memory and CPU use")
    _add(
        group,
        "--notrack",
        action="store_true",
        help="accepted for scripts that pass it: nothing is ever sent anywhere",
    )
    _add(group, "-v", "--verbose", action="count", help="say more: -v, -vv, -vvv")


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training (level train)")

    def option(name: str, text: str, **kwargs: Any) -> None:
        default = _default(name, TrainOptions).replace("None", "as the recipe says")
        shown = f"{text} (default: {default})"
        _add(group, "--" + name.replace("_", "-"), dest=f"train_{name}", help=shown, **kwargs)

    _add(
        group,
        "--reference-site",
        dest="train_reference_site",
        metavar="SITE",
        help="site all others are mapped to (default: the one with most scans)",
    )
    _add(
        group,
        "--target",
        "--targets",
        dest="train_targets",
        nargs="+",
        action=_Tuple,
        metavar="COLUMN",
        help="what to predict: columns of numbers or of two classes, or simulated-schizophrenia "
        f"(default: {_default('targets', TrainOptions)})",
    )
    _add(
        group,
        "--fit-filter",
        dest="train_fit_filter",
        metavar="CONDITION",
        help="scans to fit the harmonizer and the predictors of numbers on, such as "
        "'diagnosis == \"control\"' (default: all)",
    )
    _add(
        group,
        "--force",
        dest="train_force",
        action="store_true",
        help="train although a site differs hopelessly from the reference in age or sex",
    )
    option("model_name", "name of the bundle, written to OUTPUT_DIR/models", metavar="NAME")
    option("preset", "how the harmonizer is trained", choices=RECIPES)
    option("harmonizer_steps", "steps of the harmonizer", type=int, metavar="N")
    option("epoch_steps", "its steps between two candidates", type=int, metavar="N")
    option("predictor", "how predictors are trained", choices=RECIPES)
    option("predictor_steps", "steps of each predictor's network", type=int, metavar="N")
    option("batch", "pairs of slices per step of the harmonizer", type=int, metavar="N")
    option("devices", "GPUs, or processes on the CPU, per machine", type=int, metavar="N")
    option("nodes", "machines; start with srun or torchrun", type=int, metavar="N")
    option("precision", "of the harmonizer's training", choices=PRECISIONS)
    _add(
        group,
        "--fast-dev-run",
        dest="train_fast_dev_run",
        action="store_true",
        help="a few steps of everything, to see that it runs",
    )
    _add(
        group,
        "--add-site",
        dest="train_add_site",
        metavar="SITE",
        help="fit one more site to --bundle, and train nothing else",
    )
    option("holdout", "part of each site's subjects kept for figures", type=float, metavar="X")
    option("validation", "part kept for choosing a checkpoint", type=float, metavar="X")
    option("folds", "networks in a predictor's ensemble", type=int, metavar="N")


def parse_path(text: str) -> Path:
    """Make a path absolute without following links (a DataLad dataset is made of them)."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def _bundle(text: str) -> str:
    return text if text in ("default", "none") else str(parse_path(text))


def _memory_gb(text: str) -> float:
    """Read GB, or a number with its unit; refuse what was surely meant in MB."""
    match = re.fullmatch(r"([0-9.]+)\s*([kmgt]?)i?b?", text.strip(), re.IGNORECASE)
    try:
        number = float(match[1]) if match else None
    except ValueError:
        number = None
    if match is None or number is None:
        raise UsageError(f"--mem {text} is no amount of memory.", "Write for example --mem 8.")
    gb = number * {"k": 1e-6, "m": 1e-3, "g": 1.0, "t": 1e3, "": 1.0}[match[2].lower()]
    if gb > MAX_PLAUSIBLE_GB:
        raise UsageError(
            f"--mem {text} is {gb:g} GB.", f"--mem counts in GB; for MB write --mem-mb {text}."
        )
    return gb


def _memory_mb(text: str) -> float:
    try:
        return float(text) / 1000
    except ValueError:
        raise UsageError(f"--mem-mb {text} is not a number of MB.", "Give MB.") from None
