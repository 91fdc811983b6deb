"""The command line: how what was written becomes a :class:`RunConfig`.

Nothing heavy is imported, so ``--help`` and wrong arguments are answered at once.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bids_harmony.cli.arguments import ArgumentSyntaxError, parse_path
from bids_harmony.cli.checks import check_config
from bids_harmony.cli.options import FORM, PROGRAM, build_parser
from bids_harmony.config import LEVELS, NOT_REUSED, RunConfig, available_cpus, decode_options
from bids_harmony.console import say
from bids_harmony.errors import UsageError, mount_hint
from bids_harmony.evaluation import EvaluateOptions
from bids_harmony.text import TextError, read_text
from bids_harmony.training.config import TrainOptions

__all__ = ["build_parser", "parse_args"]

#: Options that change what the participant level makes and nothing else.
PARTICIPANT_ONLY = frozenset((
    "skull_strip", "registration", "template", "atlas_dir", "n_atlases", "derivatives",
    "output_spaces", "on_guard_fail", "correct_age_bias", "calibration",
))  # fmt: skip

#: What group does not ask again: which scans there are and what is known of them.
RECORDED = frozenset((
    "participant_label", "session_label", "bids_filter_file", "site_column", "age_column",
    "sex_column", "diagnosis_column", "random_seed", "sloppy", "device", "use_plugin",
    "stop_on_first_crash", "write_graph", "resource_monitor",
))  # fmt: skip
#: Options of training that make a bundle, which evaluate does not.
BUNDLE_ONLY = frozenset({"model_name", "holdout"})
#: By level, the options that mean nothing there, and why.
IDLE = {
    "participant": (frozenset({"qc_ratings"}), "participant asks for no ratings"),
    "calibrate": (
        (PARTICIPANT_ONLY | RECORDED | {"qc_ratings", "reports_only"}) - {"template"},
        "calibrate makes calibrations, from what participant recorded of all scans",
    ),
    "group": (
        PARTICIPANT_ONLY | RECORDED | {"fit_filter"},
        "group reads what participant recorded of all scans",
    ),
    "train": (PARTICIPANT_ONLY, "training uses what was preprocessed before"),
    "evaluate": (
        PARTICIPANT_ONLY | BUNDLE_ONLY,
        "evaluation uses what was preprocessed before and makes no bundle",
    ),
}


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
        raise _explain(str(error), list(argv), parser) from None
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
        from bids_harmony.bids_filters import read_filters

        options["bids_filters"] = read_filters(filter_file)
    if "derivatives" in given:
        options["derivatives"] = _pipelines(given["derivatives"])
    if "output_spaces" in given:
        options["output_spaces"] = _spaces(given["output_spaces"], options.get("template"))
    nprocs = options.setdefault("nprocs", available_cpus())
    options.setdefault("omp_nthreads", max(1, min(nprocs - 1, 8)))
    config = RunConfig(**options)
    said = {*given, *trained}
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
    options_idle, why = IDLE[config.level]
    if idle := sorted(options_idle & said):
        names = ", ".join("--" + name.replace("_", "-") for name in idle)
        warnings.append(f"{why}: it takes no {names}.")
    for warning in warnings:
        say(f"{PROGRAM}: warning: {warning}", error=True)
    return config


def _apart(given: dict[str, Any], prefix: str, levels: Sequence[str]) -> dict[str, Any]:
    """Take the options of some levels out of those given."""
    names = [name for name in given if name.startswith(f"{prefix}_")]
    if names and given["level"] in LEVELS and given["level"] not in levels:
        name = names[0].removeprefix(f"{prefix}_").replace("_", "-")
        raise UsageError(f"--{name} is an option of the {prefix} level.", "Leave it out.")
    return {name.removeprefix(f"{prefix}_"): given.pop(name) for name in names}


def _labels(values: list[str]) -> tuple[str, ...]:
    """Take prefixes off, and lists apart that reached us as one word (``01,02``)."""
    words = [word for value in values for word in re.split(r"[,\s]+", value) if word]
    return tuple(dict.fromkeys(word.removeprefix("sub-").removeprefix("ses-") for word in words))


def _pipelines(texts: Sequence[str]) -> dict[str, Path]:
    """Read ``--derivatives``; of two with one name, one would be lost."""
    found: dict[str, Path] = {}
    for name, path in map(_pipeline, texts):
        if found.setdefault(name, path) != path:
            raise UsageError(
                f"--derivatives {name} is given twice: {found[name]} and {path}.",
                f"Give them different names, such as {name}2={path}.",
            )
    return found


def _pipeline(text: str) -> tuple[str, Path]:
    """Split ``NAME=PATH``; a lone path is named by its folder."""
    match = re.fullmatch(r"([\w.+-]+)=(.+)", text)
    if match and not Path(text).exists():
        return match[1], parse_path(match[2])
    path = parse_path(text)
    return path.name, path


def _spaces(values: list[str], template: Path | None) -> tuple[str, ...]:
    """Translate space labels into ``template`` and ``T1w``."""
    labels = {"template", TrainOptions().contract.template}
    if template and (label := re.match(r"tpl-([0-9a-zA-Z]+)", template.name)):
        labels.add(label[1])
    native = False
    for value in values:
        name = value.partition(":")[0]
        native |= name in ("T1w", "anat", "native")
        if name not in labels | {"T1w", "anat", "native"}:
            raise UsageError(
                f"--output-spaces {value}: this run has no such space.",
                f"Choose among {', '.join(sorted(labels))} and T1w.",
            )
    return ("template", "T1w") if native else ("template",)


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


def _explain(message: str, argv: list[str], parser: argparse.ArgumentParser) -> UsageError:
    """Put argparse's message into one sentence of cause and one of remedy."""
    if message.startswith("the following arguments are required: "):
        missing = message.partition(": ")[2]
        return UsageError(f"Missing: {missing}.", _positionals_first(argv))
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        word = match[1].partition("=")[0]
        known = {
            n: _first_name(a.option_strings) for a in parser._actions for n in a.option_strings
        }
        near = get_close_matches(word, known, n=1)
        remedy = f"Did you mean {known[near[0]]}?" if near else f"See {PROGRAM} --help."
        return UsageError(f"Unknown argument: {word}.", remedy)
    if match := re.match(r"argument (.+): invalid (int|float) value: (.*)", message):
        kind = "a whole number" if match[2] == "int" else "a number"
        name = _first_name(match[1].split("/"))
        return UsageError(f"{name} {match[3]} is not {kind}.", f"Give {kind}.")
    if match := re.match(r"argument (.+): (expected .+)", message):
        return UsageError(
            f"{_first_name(match[1].split('/'))}: {match[2]}.",
            f"See {PROGRAM} --help for what it takes.",
        )
    return UsageError(f"{message[0].upper()}{message[1:]}.", f"See {PROGRAM} --help.")


def _first_name(names: Sequence[str]) -> str:
    return next((name for name in names if name.startswith("--")), names[0])


def _positionals_first(argv: list[str]) -> str:
    """Write the command with its positionals in front.

    Options that take several values also take the positionals behind them:
    ``--participant-label 01 /in /out participant`` leaves none.
    """
    levels = [i for i, word in enumerate(argv) if word in LEVELS]
    leading = 0
    while leading < len(argv) and not argv[leading].startswith("-"):
        leading += 1
    if levels and leading < 3:
        end = levels[-1] + 1
        start = end - (3 - leading)
        found = [*argv[:leading], *argv[start:end]]
        rest = [*argv[leading:start], *argv[end:]]
        # Not where the first of them would be an option's only value.
        if start > leading and not any(w.startswith("-") for w in [*found, argv[start - 1]]):
            return f"Put the paths and the level first: {PROGRAM} {shlex.join(found + rest)}"
    return f"Write: {FORM}"
