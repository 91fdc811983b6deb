"""The ``evaluate`` level: from preprocessed scans of several sites to tables and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from bids_harmony import __version__
from bids_harmony.bids.dataset import counted
from bids_harmony.bids.filters import select_scans
from bids_harmony.console import say as tell
from bids_harmony.errors import EXIT_OK, EXIT_SCAN_FAILED, HarmonyError, UsageError
from bids_harmony.evaluation import tables
from bids_harmony.evaluation.experiments import Unit, plan_units, trainable_sites
from bids_harmony.evaluation.methods import METHODS, combat_available, unharmonized
from bids_harmony.evaluation.page import FOLDER, write_page, write_table
from bids_harmony.evaluation.unit import Rows, Study, measure_unit, prepare_unit
from bids_harmony.files import read_json_or_empty, write_text
from bids_harmony.processes import prefixed, side_by_side
from bids_harmony.simulation import GENERATOR
from bids_harmony.training.bundle import choose_reference
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.data import TrainingSet, open_training_set, read_scans, usable_scans
from bids_harmony.training.predictor import PREDICTORS
from bids_harmony.training.targets import SIMULATED, Target, find_target, find_targets

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

#: With ``--sloppy``: minutes instead of hours, to see that everything runs; its figures mean
#: little.
SLOPPY: dict[str, Any] = {"predictor_steps": 60, "folds": 2}

Result = dict[str, Rows]


def run_evaluate(config: RunConfig) -> int:
    """Run the experiments asked for and write ``OUT/evaluation`` and ``OUT/evaluation.html``.

    Parameters
    ----------
    config : RunConfig
        ``output_dir`` holds the derivatives of the participant level; ``train`` says how networks
        and predictors are trained, ``evaluate`` what is tried.

    Returns
    -------
    int
        0, or 1 where a unit could not be finished; tables then hold the others.
    """
    study, reference, notes = read_study(config, tell)
    options, train, folder = study.options, study.train, config.output_dir / FOLDER
    trainable = trainable_sites(
        study.data, study.targets, options.cv_folds, train.folds, study.fit
    )
    units = plan_units(study.data, options, reference, train.seed, trainable)
    tell(
        "\n  ".join([f"{counted(len(units), 'unit')} of training and testing:", *map(str, units)])
    )
    results: dict[int, Result] = {}
    failed: list[HarmonyError] = []
    for number, result in run_units(study, units, config.nprocs):
        if isinstance(result, HarmonyError):
            failed.append(result)
            notes.append(f"Not finished: {units[number]}: {result.cause}")
            tell(f"Warning: {notes[-1]}")
            continue
        results[number] = result
        # What comes later may fail, and hours of training must not be without a table.
        fold = (units[number].seed, units[number].fold)
        if all(k in results for k, u in enumerate(units) if (u.seed, u.fold) == fold):
            for name, table in make_tables(study, results).items():
                write_table(folder, name, table)
    if not results:
        raise failed[0]
    found = make_tables(study, results, reference)
    if "predictions" not in found:
        reasons = found["left_out"]["reason"] if "left_out" in found else ["no fold has scans."]
        raise UsageError(
            f"No scan could be tested: {reasons[0]}",
            "Choose other --target, --reference-site, --cv-folds or --folds.",
        )
    described = read_json_or_empty(config.bids_dir / "dataset_description.json")
    page = write_page(
        config.output_dir, study, reference, found, notes, sloppy=config.sloppy,
        simulated=GENERATOR in str(described.get("GeneratedBy")),
    )  # fmt: skip
    tell(f"Tables are in {folder}; the report is {page}.")
    return EXIT_SCAN_FAILED if failed else EXIT_OK


def read_study(config: RunConfig, say: Callable[[str], None]) -> tuple[Study, str, list[str]]:
    """Read the preprocessed scans, and choose reference site and targets.

    Returns
    -------
    study : Study
        For all units.
    reference : str
        Reference site.
    notes : list of str
        What cannot be evaluated and why, for the report.
    """
    scans, options = read_scans(config, say)
    options = replace(options, **SLOPPY if config.sloppy else {}).shortened()
    scans = usable_scans(scans, say)
    choose_reference([scan.site for scan in scans], options)
    data = open_training_set(scans, config.work_dir, say=say)
    fit = select_scans(data.table, options.fit_filter)
    reference = choose_reference(data.sites[fit].tolist(), options)
    targets, notes = choose_targets(data, options, reference, fit)
    say(f"{len(data)} scans of {len(np.unique(data.persons))} persons and "
        f"{len(np.unique(data.sites))} sites; reference {reference}; "
        f"targets {', '.join(target.name for target in targets)}")  # fmt: skip
    notes += unknown_values(data, targets)
    for note in notes:
        say(note)
    work_dir = config.work_dir / FOLDER
    study = Study(data, targets, options, config.evaluate, work_dir, say)
    return replace(study, unharmonized=unharmonized(data, work_dir, say)), reference, notes


def choose_targets(
    data: TrainingSet, options: TrainOptions, reference: str, fit: np.ndarray
) -> tuple[list[Target], list[str]]:
    """Read the targets asked for; by default the age, and the diagnosis where it has two classes.

    Labels that training would make up are no targets: there is nothing to hold them against.

    Returns
    -------
    targets : list of Target
        Those that can be evaluated.
    notes : list of str
        Why one that is tried by default cannot be.

    Raises
    ------
    UsageError
        When one that was asked for cannot be evaluated, or none can.
    """
    if options.targets != TrainOptions.targets:
        if columns := [name for name in options.targets if name != SIMULATED]:
            return find_targets(data, columns, reference, fit), []
        raise UsageError(
            f"There is nothing to evaluate: {SIMULATED} has no true values.",
            "Name columns of the dataset's tables with --target.",
        )
    found, errors = [], {}
    for column in ("age", "diagnosis"):
        try:
            found.append(find_target(data, column, reference, fit))
        except UsageError as error:
            errors[column] = error
    if not found:
        raise errors["age"]
    return found, [f"Not evaluated: {column}. {error}" for column, error in errors.items()]


def unknown_values(data: TrainingSet, targets: Sequence[Target]) -> list[str]:
    """Say at which sites a target's value is not known of scans, or there is but one class."""
    notes = []
    for target in targets:
        for site, values in pd.Series(target.values).groupby(data.sites):
            if n := int(values.isna().sum()):
                notes.append(
                    f"{target.name}: {counted(n, 'scan')} of {site} without a value in the column "
                    f"{target.column}, not tested."
                )
            if target.binary and values.nunique() == 1:
                notes.append(
                    f"{target.name}: {site} has scans of the class "
                    f"{target.classes[int(values.max())]} only ({values.count()}). It has no area "
                    "under the curve, and that of several sites together may tell sites apart."
                )
    return notes


def run_units(
    study: Study, units: Sequence[Unit], nprocs: int
) -> Iterator[tuple[int, Result | HarmonyError]]:
    """Run units, several at once, and yield each one's number and result, or why it has none."""
    if nprocs == 1 or len(units) == 1:
        for number, unit in enumerate(units):
            yield number, try_unit(study, unit)
        return
    alone = replace(study, train=replace(study.train, threads=1))
    calls = [
        (replace(alone, say=partial(prefixed, tell, f"[{number}] ")), unit)
        for number, unit in enumerate(units, 1)
    ]
    for n, (number, result) in enumerate(side_by_side(try_unit, calls, nprocs), 1):
        study.say(f"{n} of {len(units)} completed: {units[number]}")
        yield number, result


def try_unit(study: Study, unit: Unit) -> Result | HarmonyError:
    """Run a unit; an error that one can act on does not end the others."""
    try:
        return run_unit(study, unit)
    except HarmonyError as error:
        return error


def run_unit(study: Study, unit: Unit) -> Result:
    """Train, prepare, predict and measure; the result is cached in the work folder."""
    torch.set_num_threads(study.train.threads)
    path = study.work_dir / f"unit-{_digest(study, unit)}.json"
    if path.is_file():
        study.say(f"completed before: {unit}")
    else:
        study.say(str(unit))
        result = measure_unit(study, unit, prepare_unit(study, unit))
        for row in result["left_out"]:
            what = row.get("target") or f"{METHODS[row['way']]} at {row['test_site']}"
            n = counted(row["n_scans"], "scan")
            study.say(f"Left out here: {what} ({n}): {row['reason']}")
        write_text(path, json.dumps(result))
    found: Result = json.loads(path.read_text(encoding="utf-8"))
    return found


def _digest(study: Study, unit: Unit) -> str:
    """Name all that a unit's result depends on."""
    depends_on = (
        __version__,
        unit,
        replace(study.train, threads=1),
        # What the name stands for, which another release may change.
        PREDICTORS[study.train.predictor],
        study.options.cv_folds,
        [(target.column, target.name, target.classes) for target in study.targets],
        study.data.table.drop(columns=["metrics", "_source"], errors="ignore").to_csv(),
        study.unharmonized is not None,
        combat_available(),
        study.data.box,
    )
    content = study.data.content(range(len(study.data)))
    return hashlib.sha256(repr(depends_on).encode() + content).hexdigest()[:16]


def make_tables(
    study: Study, results: dict[int, Result], reference: str | None = None
) -> dict[str, pd.DataFrame]:
    """Make the tables of what was found, those with rows; of images where a reference is named."""
    predictions, left_out, scans, pairs = (
        pd.DataFrame([row for k in sorted(results) for row in results[k][name]])
        for name in ("predictions", "left_out", "scans", "pairs")
    )
    predictions = predictions.rename(columns={"site": "test_site"})
    predictions = predictions.drop(columns="age", errors="ignore")
    binary = {target.name: target.binary for target in study.targets}
    seed = study.train.seed
    found = {
        "experiments": tables.experiments_table(predictions, binary, seed),
        "predictions": predictions,
        "left_out": left_out.drop(columns="n_source", errors="ignore"),
    }
    if reference is not None and len(scans):
        found |= {
            "images": tables.image_table(scans, reference, seed),
            "biology": tables.biology_table(scans, study.targets, seed),
            "travelling": tables.travelling_table(pairs, seed),
            "agreement": tables.agreement_table(scans, predictions),
        }
    return {name: table for name, table in found.items() if len(table)}
