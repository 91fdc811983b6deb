"""The command line: its parser, and how what was written becomes a :class:`RunConfig`.

Positionals, option names and aliases are those of fMRIPrep, MRIQC and their kin, so that scripts
made for one of them work. Nothing heavy is imported, so ``--help`` and wrong arguments are
answered at once.
"""

from __future__ import annotations

import argparse
import os
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from bids_harmony import __version__
from bids_harmony.cli.checks import check_config
from bids_harmony.config import (
    LEVELS,
    NOT_REUSED,
    RunConfig,
    available_cpus,
    decode_options,
    option,
)
from bids_harmony.console import say
from bids_harmony.errors import UsageError, mount_hint
from bids_harmony.evaluation import EvaluateOptions
from bids_harmony.files import TextError, plain_number, read_text
from bids_harmony.training.config import MAPS, RECIPES, TrainOptions

PROGRAM = "bids_harmony"
FORM = f"{PROGRAM} BIDS_DIR OUTPUT_DIR participant [options]"
#: ``--mem 16000`` is a habit from programs that count in MB.
MAX_PLAUSIBLE_GB = 4096
#: Options of training that make a bundle, which evaluate does not.
BUNDLE_ONLY = frozenset({"model_name", "holdout"})
#: Options of TrainOptions and of EvaluateOptions, by field.
training = partial(option, None, "training (levels train and evaluate)")
TRAINING = {
    "reference_site": training(
        "site all others are mapped to (default: the one with most scans)", metavar="SITE"),
    "targets": training(
        "what to predict: columns of numbers or of two classes, or simulated-schizophrenia",
        "--targets", called="--target", metavar="COLUMN"),
    "model_name": training("name of the bundle, written to OUTPUT_DIR/models", metavar="NAME"),
    "map": training("what follows a site's intensity mapping", choices=MAPS),
    "predictor": training("how predictors are trained", choices=RECIPES),
    "predictor_steps": training(
        "steps of each predictor's network (default: as the recipe says)", metavar="N"),
    "fast_dev_run": training("a few steps of everything, to see that it runs"),
    "holdout": training("part of each site's subjects set aside for testing", metavar="X"),
    "validation": training("part kept for setting the guard's limits", metavar="X"),
    "folds": training("networks in a predictor's ensemble", metavar="N"),
}  # fmt: skip
experiments = partial(option, None, "experiments (level evaluate)")
EXPERIMENTS = {
    "experiments": experiments(
        "sites: trained at the reference, tested at every site; rotations: one or two training "
        "sites in every order; size: from how few persons a site can be calibrated",
        metavar="NAME"),
    "cv_folds": experiments(
        "parts of the participants, each tested by what was trained on the others", metavar="N"),
    "n_seeds": experiments(
        "times that everything is trained again from other random numbers", "--seeds",
        metavar="N"),
    "train_sites": experiments(
        "where rotations train: a site, or two joined by +, the reference first; adds the "
        "experiment rotations (default: every site and every two)", metavar="SITE[+SITE]"),
}  # fmt: skip


class ArgumentSyntaxError(Exception):
    """argparse's message, before it is put into our words."""


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing sixty lines of usage."""

    def error(self, message: str) -> Any:
        """Raise what argparse found wrong."""
        raise ArgumentSyntaxError(message)


class Formatter(argparse.HelpFormatter):
    """Help with one spelling per option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        short = [name for name in action.option_strings if not name.startswith("--")]
        names = ", ".join([*short, first_long(action.option_strings)])
        if action.nargs == 0:
            return names
        return f"{names} {self._format_args(action, action.dest.upper())}"


class AsTuple(argparse.Action):
    """Store several values as a tuple, which a frozen configuration can hold."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Add this option's values to those of the same option before it."""
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), *values))


def add_option(group: Any, *flags: str, **kwargs: Any) -> None:
    """Add an option under all its names, each with hyphens and with underscores."""
    names = [n for f in flags for n in (f, re.sub(r"(?<=\w)-", "_", f))]
    group.add_argument(*dict.fromkeys(names), default=argparse.SUPPRESS, **kwargs)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; its results hold only what the user wrote (defaults are RunConfig's)."""
    parser = Parser(
        prog=PROGRAM,
        usage=FORM.replace("participant", "{" + ",".join(LEVELS) + "}"),
        description="Harmonize T1-weighted brain scans to one reference site, and predict brain "
        "age and schizophrenia probability there. Research use only: not a diagnosis.",
        epilog="Options may be written with hyphens or underscores. Exit codes: 0 all scans "
        "completed, 1 some failed, 2 usage, 66 no T1w, 70 internal error, 78 bundle, 127 missing "
        "program, 130 interrupted.",
        formatter_class=Formatter,
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
        help="participant: each scan from raw to report; calibrate: each site, from its "
        "preprocessed scans in OUTPUT_DIR; group: tables, outliers and one "
        "report of all scans there; train: a new model bundle from its preprocessed scans; "
        "evaluate: predictions with and without harmonization, by cross-validation on them",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    groups: dict[str, Any] = {}
    for prefix, cls, declared in (
        ("", RunConfig, {one.name: one.metadata for one in fields(RunConfig)}),
        ("train_", TrainOptions, {name: one.metadata for name, one in TRAINING.items()}),
        ("evaluate_", EvaluateOptions, {name: one.metadata for name, one in EXPERIMENTS.items()}),
    ):
        hints = typing.get_type_hints(cls)
        for name, said in declared.items():
            if title := said.get("group"):
                if title not in groups:
                    groups[title] = parser.add_argument_group(title)
                default = getattr(cls, name, None)
                _add_declared(groups[title], prefix, name, said, hints[name], default)
    add_option(groups["resources"], "--mem-mb", dest="mem_gb", type=parse_mb, metavar="MB",
               help="the same as --mem, in MB")  # fmt: skip
    add_option(groups["this run"], "--config-file", type=parse_path, metavar="FILE",
               help="options of an earlier run (logs/<run_uuid>/bids_harmony.json); those on the "
               "command line win")  # fmt: skip
    return parser


def _add_declared(
    group: Any, prefix: str, name: str, said: Mapping[str, Any], hint: Any, default: Any
) -> None:
    """Add the option that a field declares.

    Parameters
    ----------
    group : argparse group
        Where it is added.
    prefix : str
        What the parser's results put before the field's name.
    name : str
        Of the field.
    said : mapping
        What :func:`bids_harmony.config.option` took.
    hint, default : Any
        Type and default of the field.
    """
    names = [said["called"] or flag_of(name), *said["aliases"]]
    if hint is bool or name == "verbose":
        action = "store_true" if hint is bool else "count"
        add_option(group, *names, dest=prefix + name, action=action, help=said["text"])
        return
    several = typing.get_origin(hint) in (tuple, dict) and name != "bids_filters"
    text = said["text"]
    if default not in (None, ()) and "(default" not in text:
        text += f" (default: {' '.join(default) if several else default})"
    kinds = {hint, *typing.get_args(hint)}
    add_option(
        group,
        *names,
        dest="bids_filter_file" if name == "bids_filters" else prefix + name,
        type=READERS.get(name) or next((kind for kind in (int, float) if kind in kinds), str),
        metavar=said["metavar"] or "{" + ",".join(said["choices"]) + "}",
        help=text,
        **({"nargs": "+", "action": AsTuple} if several else {}),
    )


def parse_args(argv: Sequence[str]) -> RunConfig:
    """Turn the arguments into a checked configuration; nothing is read but what they name.

    Parameters
    ----------
    argv : sequence of str
        Arguments without the program's name.

    Returns
    -------
    RunConfig

    Raises
    ------
    UsageError
        For anything wrong with an argument, in one sentence of cause and one of remedy.
    SystemExit
        With 0, for ``--help`` and ``--version``.
    """
    parser = build_parser()
    try:
        given = vars(parser.parse_args(list(argv)))
    except ArgumentSyntaxError as error:
        raise _explain(str(error), parser) from None
    options = _reused(given.pop("config_file", None))
    trained = _apart(given, "train", ("train", "evaluate"))
    tried = _apart(given, "evaluate", ("evaluate",))
    if "train_sites" in tried:
        experiments = tried.get("experiments", EvaluateOptions.experiments)
        tried["experiments"] = tuple(dict.fromkeys((*experiments, "rotations")))
    options |= {
        name: _labels(value) if name.endswith("_label") else value for name, value in given.items()
    }
    if filter_file := options.pop("bids_filter_file", None):
        from bids_harmony.bids.filters import read_filters

        options["bids_filters"] = read_filters(filter_file)
    if "derivatives" in given:
        options["derivatives"] = _pipelines(given["derivatives"])
    if "output_spaces" in given:
        options["output_spaces"] = _spaces(given["output_spaces"], options.get("template"))
    nprocs = options.setdefault("nprocs", available_cpus())
    options.setdefault("omp_nthreads", max(1, min(nprocs - 1, 8)))
    config = RunConfig(**options)
    idle = [
        one.metadata["called"] or flag_of(one.name)
        for one in fields(config)
        if (one.name in given or (filter_file and one.name == "bids_filters"))
        and config.level not in one.metadata.get("levels", LEVELS)
    ]
    if config.level == "evaluate":
        idle += map(flag_of, sorted(BUNDLE_ONLY & set(trained)))
    trained |= {
        "seed": config.random_seed, "device": config.device, "threads": config.nprocs,
        "fit_filter": config.fit_filter,
    }  # fmt: skip
    config = replace(
        config,
        train=replace(config.train, **trained),
        evaluate=replace(config.evaluate, **tried),
    )
    warnings = check_config(config, old_run="run_uuid" in given)
    if idle:
        warnings.append(f"the {config.level} level takes no {', '.join(sorted(idle))}.")
    for warning in warnings:
        say(f"{PROGRAM}: warning: {warning}", error=True)
    return config


def flag_of(name: str) -> str:
    """Name an option as the user writes it."""
    return "--" + name.replace("_", "-")


def first_long(names: Sequence[str]) -> str:
    """Choose an option's main name."""
    return next((name for name in names if name.startswith("--")), names[0])


def _apart(given: dict[str, Any], prefix: str, levels: Sequence[str]) -> dict[str, Any]:
    """Take the options of some levels out of those given."""
    names = [name for name in given if name.startswith(f"{prefix}_")]
    if names and given["level"] in LEVELS and given["level"] not in levels:
        name = flag_of(names[0].removeprefix(f"{prefix}_"))
        raise UsageError(f"{name} is an option of the {prefix} level.", "Leave it out.")
    return {name.removeprefix(f"{prefix}_"): given.pop(name) for name in names}


def _labels(values: Sequence[str]) -> tuple[str, ...]:
    """Take prefixes off, and lists apart that reached us as one word (``01,02``)."""
    words = [word for value in values for word in re.split(r"[,\s]+", value) if word]
    return tuple(dict.fromkeys(word.removeprefix("sub-").removeprefix("ses-") for word in words))


def _pipelines(texts: Sequence[str]) -> dict[str, Path]:
    """Read ``--derivatives``: NAME=PATH, or a path that is named by its folder."""
    found: dict[str, Path] = {}
    for text in texts:
        match = re.fullmatch(r"([\w.+-]+)=(.+)", text)
        path = parse_path(match[2] if match and not Path(text).exists() else text)
        name = match[1] if match and not Path(text).exists() else path.name
        if found.setdefault(name, path) != path:
            raise UsageError(
                f"--derivatives {name} is given twice: {found[name]} and {path}.",
                f"Give them different names, such as {name}2={path}.",
            )
    return found


def _spaces(values: Sequence[str], template: Path | None) -> tuple[str, ...]:
    """Translate space labels into ``template`` and ``T1w``."""
    native, labels = {"T1w", "anat", "native"}, {"template", TrainOptions().contract.template}
    if template and (label := re.match(r"tpl-([0-9a-zA-Z]+)", template.name)):
        labels.add(label[1])
    names = {value.partition(":")[0] for value in values}
    if unknown := names - labels - native:
        raise UsageError(
            f"--output-spaces {min(unknown)}: this run has no such space.",
            f"Choose among {', '.join(sorted(labels))} and T1w.",
        )
    return ("template", "T1w") if names & native else ("template",)


def _reused(path: Path | None) -> dict[str, Any]:
    """Read the options of an earlier run, without what belonged to that run alone."""
    if path is None:
        return {}
    try:
        text, notes = read_text(path)
    except TextError as error:
        raise UsageError(
            f"The configuration {path} cannot be read ({error}).",
            f"Correct the path.{mount_hint()}",
        ) from error
    for note in notes:
        say(f"Warning: {path} {note}.")
    options = decode_options(text, f"The configuration {path}")
    return {name: value for name, value in options.items() if name not in NOT_REUSED}


def _explain(message: str, parser: argparse.ArgumentParser) -> UsageError:
    """Put argparse's message into one sentence of cause and one of remedy."""
    see = f"See {PROGRAM} --help."
    if message.startswith("the following arguments are required: "):
        first = f"Put the paths and the level first: {FORM}."
        return UsageError(f"Missing: {message.partition(': ')[2]}.", first)
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        word = match[1].partition("=")[0]
        known = {
            n: first_long(a.option_strings) for a in parser._actions for n in a.option_strings
        }
        near = get_close_matches(word, known, n=1)
        remedy = f"Did you mean {known[near[0]]}?" if near else see
        return UsageError(f"Unknown argument: {word}.", remedy)
    if match := re.match(r"argument (.+): invalid (int|float) value: (.*)", message):
        kind = "a whole number" if match[2] == "int" else "a number"
        name = first_long(match[1].split("/"))
        return UsageError(f"{name} {match[3]} is not {kind}.", f"Give {kind}.")
    if match := re.match(r"argument (.+): (expected .+)", message):
        return UsageError(f"{first_long(match[1].split('/'))}: {match[2]}.", see)
    return UsageError(f"{message[0].upper()}{message[1:]}.", see)


def parse_path(text: str) -> Path:
    """Make a path absolute without following links (a DataLad dataset is made of them)."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def parse_bundle(text: str) -> str:
    """Take a word that stands for a bundle as it is, anything else as a path."""
    return text if text in ("default", "none") else str(parse_path(text))


def parse_calibration(text: str) -> Path | None:
    """Take ``auto`` for none given, anything else as a path."""
    return None if text == "auto" else parse_path(text)


def parse_gb(text: str) -> float:
    """Read GB, or a number with its unit; refuse what was surely meant in MB."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kmgt]?)i?b?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--mem {text} is no amount of memory.", "Write for example --mem 8.")
    gb = float(match[1]) * {"k": 1e-6, "m": 1e-3, "t": 1e3}.get(match[2].lower(), 1.0)
    if gb > MAX_PLAUSIBLE_GB:
        raise UsageError(
            f"--mem {text} is {gb:g} GB.", f"--mem counts in GB; for MB write --mem-mb {text}."
        )
    return gb


def parse_mb(text: str) -> float:
    """Read MB as GB."""
    try:
        return float(text) / 1000
    except ValueError:
        raise UsageError(f"--mem-mb {text} is not a number of MB.", "Give MB.") from None


#: How values are read that are neither text nor whole numbers.
READERS = {
    "bundle": parse_bundle,
    "calibration": parse_calibration,
    "mem_gb": parse_gb,
    "reference_site": plain_number,
    "train_sites": plain_number,
    **dict.fromkeys(
        ("bids_filters", "bids_database_dir", "template", "atlas_dir", "use_plugin", "work_dir",
         "qc_ratings"),
        parse_path,
    ),
}  # fmt: skip
