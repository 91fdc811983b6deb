"""The ``evaluate`` level: from preprocessed scans of several sites to tables and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from bids_harmony import __version__
from bids_harmony.bids import counted
from bids_harmony.console import say as tell
from bids_harmony.errors import EXIT_OK, EXIT_SCAN_FAILED, HarmonyError, UsageError
from bids_harmony.evaluation.combat import available
from bids_harmony.evaluation.fit import Study, predict_unit, prepare_unit, untrained
from bids_harmony.evaluation.images import measure_pairs, measure_scans
from bids_harmony.evaluation.prepare import SCALED, SPOKEN, plain
from bids_harmony.evaluation.report import (
    FOLDER,
    Findings,
    write_findings,
    write_table,
)
from bids_harmony.evaluation.statistics import tabulate
from bids_harmony.evaluation.summaries import (
    agreement_table,
    biology_table,
    image_table,
    travelling_table,
)
from bids_harmony.evaluation.units import Unit, plan_units, trainable_sites
from bids_harmony.files import write_json
from bids_harmony.fit_filter import select_scans
from bids_harmony.processes import prefixed, side_by_side
from bids_harmony.text import read_json_or_empty
from bids_harmony.training.bundle import choose_reference
from bids_harmony.training.cache import open_training_set
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.inputs import read_scans, usable_scans
from bids_harmony.training.predictor import PREDICTORS
from bids_harmony.training.targets import SIMULATED, Target, find_target, find_targets

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

#: With ``--sloppy``: minutes instead of hours, to see that everything runs; its figures mean
#: little.
SLOPPY: dict[str, Any] = {"predictor_steps": 60, "folds": 2}


def run_evaluate(config: RunConfig) -> int:
    """Run the experiments asked for and write ``OUT/evaluation`` and ``OUT/evaluation.html``.

    Parameters
    ----------
    config : RunConfig
        ``output_dir`` holds the derivatives of the participant level; ``train`` says how maps
        and predictors are trained, ``evaluate`` what is tried.

    Returns
    -------
    int
        0, or 1 where a unit could not be finished; tables then hold the others.
    """
    study, reference, notes = read_study(config, tell)
    trainable = trainable_sites(
        study.data, study.targets, study.options.cv_folds, study.train.folds, study.fit
    )
    if reference not in trainable:
        raise UsageError(
            f"The reference site {reference} keeps too few persons to train on.",
            f"Choose fewer --folds ({study.train.folds}), more --cv-folds "
            f"({study.options.cv_folds}), another --reference-site or other --target.",
        )
    few = sorted(set(study.data.sites.tolist()) - set(trainable))
    if few and "rotations" in study.options.experiments:
        tell(f"Too few persons to train at: {', '.join(few)}. They are tested, and may join "
             "another training site.")  # fmt: skip
    units = plan_units(study.data, study.options, reference, study.train.seed, trainable)
    tell(f"{counted(len(units), 'unit')} of training and testing:")
    for unit in units:
        tell(f"  {unit}")
    done: dict[int, Result] = {}
    failed: list[HarmonyError] = []
    for number, result in run_units(study, units, config.nprocs):
        if isinstance(result, HarmonyError):
            failed.append(result)
            notes.append(f"Not finished: {units[number]}: {result.cause}")
            tell(f"Warning: {notes[-1]}")
            continue
        done[number] = result
        write_so_far(study, units, done, number, config.output_dir / FOLDER)
    if not done:
        raise failed[0]
    results = [done[number] for number in sorted(done)]
    if not any(result.predictions for result in results):
        reasons = [row["reason"] for result in results for row in result.left_out]
        raise UsageError(
            f"No scan could be tested: {reasons[0] if reasons else 'no fold has test scans.'}",
            "Choose other --target, --reference-site, --cv-folds or --folds.",
        )
    findings = summarize(
        study, reference, results, notes,
        simulated=_made_up(config.bids_dir), sloppy=config.sloppy,
    )  # fmt: skip
    page = write_findings(findings, config.output_dir)
    tell(f"Tables are in {config.output_dir / FOLDER}; the report is {page}.")
    return EXIT_SCAN_FAILED if failed else EXIT_OK


def write_so_far(
    study: Study, units: Sequence[Unit], done: dict[int, Result], last: int, folder: Path
) -> None:
    """Write predictions after each unit, and the experiments' figures after each fold.

    What comes later may fail, and hours of training must not be without a table. Their column
    ``n_folds`` says on how many folds figures rest.
    """
    rows = pd.DataFrame([row for k in sorted(done) for row in done[k].predictions])
    if rows.empty:
        return
    write_table(folder, "predictions", rows)
    part = (units[last].seed, units[last].fold)
    if all(k in done for k, unit in enumerate(units) if (unit.seed, unit.fold) == part):
        binary = {target.name: target.binary for target in study.targets}
        write_table(folder, "experiments", tabulate(rows, binary, study.train.seed))


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
    if config.sloppy:
        options = replace(options, **SLOPPY)
    options = options.shortened()
    scans = usable_scans(scans, say)
    choose_reference([scan.site for scan in scans], options)
    data = open_training_set(scans, config.work_dir, say=say)
    fit = select_scans(data.table, options.fit_filter)
    reference = choose_reference(data.sites[fit].tolist(), options)
    targets, notes = choose_targets(data, options, reference, fit, config.evaluate.cv_folds)
    say(f"{len(data)} scans of {len(np.unique(data.persons))} persons and "
        f"{len(np.unique(data.sites))} sites; reference {reference}; "
        f"targets {', '.join(target.name for target in targets)}")  # fmt: skip
    notes += unknown_values(data, targets)
    for note in notes:
        say(note)
    folder = config.work_dir / FOLDER
    study = Study(data, targets, options, config.evaluate, folder, say, plain(data, folder, say))
    return study, reference, notes


def choose_targets(
    data: TrainingSet, options: TrainOptions, reference: str, fit: np.ndarray, n_folds: int
) -> tuple[list[Target], list[str]]:
    """Read the targets asked for; by default the age, and the diagnosis where it has two classes.

    Labels that training would make up are no targets: there is nothing to hold them against.

    Returns
    -------
    targets : list of Target
        Those that can be evaluated.
    notes : list of str
        Why one that is tried by default cannot be.
    """
    columns = [name for name in options.targets if name != SIMULATED]
    if options.targets != TrainOptions.targets:
        if not columns:
            raise UsageError(
                f"There is nothing to evaluate: {SIMULATED} has no true values.",
                "Name columns of the dataset's tables with --target.",
            )
        return find_targets(data, columns, reference, fit), []
    found, errors = [], {}
    for column in ("age", "diagnosis"):
        if data.table[column].isna().all():
            errors[column] = UsageError(
                f"No scan has a value in the column {column}.",
                f"Check --{column}-column, or name columns to predict with --target.",
            )
            continue
        try:
            target = find_target(data, column, reference, fit)
            if reference not in trainable_sites(data, [target], n_folds, options.folds, fit):
                raise UsageError(
                    f"{reference} has too few persons{' of a class' * target.binary} to train "
                    f"{target.name} in {options.folds} --folds with {n_folds} --cv-folds.",
                    "Choose fewer --folds or more --cv-folds.",
                )
            found.append(target)
        except UsageError as error:
            errors[column] = error
    if not found:
        raise errors["age"]
    return found, [
        f"Not evaluated: {column}. {error.cause} {error.remedy}"
        for column, error in errors.items()
    ]


def unknown_values(data: TrainingSet, targets: Sequence[Target]) -> list[str]:
    """Say at which sites a target's value is not known of scans, or there is but one class."""
    notes = [
        f"{target.name}: {counted(n, 'scan')} of {site} without a value in the column "
        f"{target.column}, not tested."
        for target in targets
        for site in np.unique(data.sites).tolist()
        if (n := int(np.isnan(target.values[data.sites == site]).sum()))
    ]
    for target in (target for target in targets if target.binary):
        for site in np.unique(data.sites).tolist():
            there = target.values[(data.sites == site) & np.isfinite(target.values)]
            if len(kinds := np.unique(there)) == 1:
                notes.append(
                    f"{target.name}: {site} has scans of the class "
                    f"{target.classes[int(kinds[0])]} only ({len(there)}). It has no area under "
                    "the curve, and that of several sites together may tell sites apart."
                )
    return notes


@dataclass
class Result:
    """What a unit gave: rows of predictions, measures of scans, pairs, and what was trained."""

    predictions: list[dict[str, Any]]
    scans: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    left_out: list[dict[str, Any]]


def run_units(
    study: Study, units: Sequence[Unit], nprocs: int
) -> Iterator[tuple[int, Result | HarmonyError]]:
    """Run units, several at once, and yield each one's number and result, or why it has none.

    Units that are finished are taken from the work folder.
    """
    if nprocs == 1 or len(units) == 1:
        for number, unit in enumerate(units):
            yield number, try_unit(study, unit)
        return
    alone = replace(study, train=replace(study.train, threads=1))
    calls = [
        (replace(alone, say=partial(prefixed, tell, f"[{number}] ")), unit)
        for number, unit in enumerate(units, 1)
    ]
    for n_done, (number, result) in enumerate(side_by_side(try_unit, calls, nprocs), 1):
        study.say(f"{n_done} of {len(units)} done: {units[number]}")
        yield number, result


def try_unit(study: Study, unit: Unit) -> Result | HarmonyError:
    """Run a unit; an error that one can act on does not end the others."""
    try:
        return run_unit(study, unit)
    except HarmonyError as error:
        return error


def run_unit(study: Study, unit: Unit) -> Result:
    """Train, prepare, predict and measure; the result is kept in the work folder."""
    torch.set_num_threads(study.train.threads)
    path = study.work_dir / f"unit-{_digest(study, unit)}.json"
    if path.is_file():
        study.say(f"done before: {unit}")
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    study.say(str(unit))
    prepared = prepare_unit(study, unit)
    tested = prepared.test[SCALED]
    why = untrained(study, unit, prepared.split)
    left_out: list[dict[str, Any]] = [
        {"target": target.name, "n_scans": int(np.isfinite(target.values[tested]).sum()),
         "reason": why[target.name]}
        for target in study.targets if target.name in why
    ]  # fmt: skip
    left_out += prepared.left_out
    for row in left_out:
        what = row.get("target") or f"{SPOKEN[row['way']]} at {row['test_site']}"
        study.say(f"Left out here: {what} ({counted(row['n_scans'], 'scan')}): {row['reason']}")
    predictions = predict_unit(study, unit, prepared)
    images = unit.experiment == "sites"
    scans = measure_scans(study, unit, prepared) if images else []
    for row in scans:
        row["quantiles"] = np.round(row["quantiles"], 5).tolist()
    at = {"experiment": unit.experiment, "seed": unit.seed, "fold": unit.fold,
          "train_sites": "+".join(unit.train_sites)}  # fmt: skip
    result = Result(
        _json_ready(predictions),
        _json_ready(scans),
        _json_ready(measure_pairs(study, unit, prepared) if images else []),
        [at | row for row in left_out],
    )
    write_json(path, asdict(result))
    return result


def _json_ready(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write None for what is unknown, such as an age: JSON has no NaN."""
    return [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]


def _digest(study: Study, unit: Unit) -> str:
    """Name all that a unit's result depends on."""
    said = {
        "version": __version__,
        "unit": asdict(unit),
        "train": {k: v for k, v in study.train.to_dict().items() if k != "threads"},
        # What the name stood for, which another release may change.
        "predictor": PREDICTORS[study.train.predictor].to_dict(),
        "cv_folds": study.options.cv_folds,
        "targets": [[t.column, t.name, *t.classes] for t in study.targets],
        "table": study.data.table.drop(columns=["metrics", "_source"], errors="ignore")
        .astype(str)
        .to_numpy()
        .tolist(),
        "plain": study.plain is not None,
        "combat": available(),
        "box": study.data.box,
    }
    text = json.dumps(said, sort_keys=True).encode()
    return hashlib.sha256(text + study.data.content(range(len(study.data)))).hexdigest()[:16]


def summarize(
    study: Study,
    reference: str,
    results: Sequence[Result],
    notes: Sequence[str],
    *,
    simulated: bool,
    sloppy: bool,
) -> Findings:
    """Make the tables of what was found."""
    seed = study.train.seed
    predictions = pd.DataFrame([row for result in results for row in result.predictions])
    scans = pd.DataFrame([row for result in results for row in result.scans])
    pairs = pd.DataFrame([row for result in results for row in result.pairs])
    binary = {target.name: target.binary for target in study.targets}
    tables = {
        "experiments": tabulate(predictions, binary, seed),
        "predictions": predictions,
        "left_out": pd.DataFrame([row for result in results for row in result.left_out]),
    }
    if not scans.empty:
        at_sites = predictions
        if not predictions.empty:
            at_sites = predictions[predictions["experiment"] == "sites"]
        tables |= {
            "images": image_table(scans, reference, seed),
            "biology": biology_table(scans, study.targets, seed),
            "travelling": travelling_table(pairs, seed),
            "agreement": agreement_table(scans, at_sites),
        }
    return Findings(
        reference=reference,
        tables={name: table for name, table in tables.items() if not table.empty},
        binary=binary,
        notes=notes,
        data=study.data.table,
        options=study.train,
        evaluate=study.options,
        simulated=simulated,
        sloppy=sloppy,
    )


def _made_up(bids_dir: Path) -> bool:
    """Whether the dataset says that the simulator made it."""
    from bids_harmony.simulation import GENERATOR

    description = read_json_or_empty(bids_dir / "dataset_description.json")
    try:
        return any(made.get("Name") == GENERATOR for made in description["GeneratedBy"])
    except (LookupError, TypeError, AttributeError):
        return False
