"""Run the ``evaluate`` level: from preprocessed scans of several sites to tables and a report."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from bids_harmony import __version__
from bids_harmony.bids.dataset import counted
from bids_harmony.bids.filters import select_scans
from bids_harmony.config import EvaluateOptions, TrainOptions
from bids_harmony.console import set_up_logging
from bids_harmony.errors import EXIT_OK, EXIT_SCAN_FAILED, HarmonyError, UsageError
from bids_harmony.evaluation import tables
from bids_harmony.evaluation.methods import METHODS, combat_available, unharmonized
from bids_harmony.evaluation.page import FOLDER, write_page
from bids_harmony.evaluation.unit import Rows, Study, Unit, measure_unit, prepare_unit
from bids_harmony.files import read_json_or_empty, write_text
from bids_harmony.processes import side_by_side
from bids_harmony.simulation import GENERATOR
from bids_harmony.training.bundle import choose_reference
from bids_harmony.training.data import TrainingSet, open_training_set, read_scans, usable_scans
from bids_harmony.training.predictor import PREDICTORS
from bids_harmony.training.targets import SIMULATED, Target, find_target, find_targets

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

LOGGER = logging.getLogger(__name__)

#: Numbers of persons that a site is calibrated on in the experiment ``size``.
SIZES = (1, 2, 4, 8, 16, 32)
#: Training options of ``--sloppy``: a check that everything runs, in minutes instead of hours. The
#: results are not meaningful.
SLOPPY: dict[str, Any] = {"predictor_steps": 60, "folds": 2}

Result = dict[str, Rows]


def run_evaluate(config: RunConfig) -> int:
    """Run the requested experiments; write ``OUT/evaluation`` and ``OUT/evaluation.html``.

    Parameters
    ----------
    config : RunConfig
        ``output_dir`` holds the derivatives of the participant level; ``train`` has the training
        options of networks and predictors, ``evaluate`` the experiments.

    Returns
    -------
    int
        Exit code: 0, or 1 if a unit failed; the tables then hold the other units.

    Raises
    ------
    HarmonyError
        If every unit failed.
    UsageError
        If no scan could be tested.
    """
    study, reference, notes = read_study(config)
    folder = config.output_dir / FOLDER
    units = plan_units(study.data, study.options, reference, study.train)
    LOGGER.info(
        "\n  ".join([f"{counted(len(units), 'unit')} of training and testing:", *map(str, units)])
    )
    results: dict[int, Result] = {}
    failed: list[HarmonyError] = []
    for number, result in run_units(study, units, config.nprocs):
        if isinstance(result, HarmonyError):
            failed.append(result)
            notes.append(f"Failed: {units[number]}: {result.cause}")
            LOGGER.warning(notes[-1])
            continue
        results[number] = result
    if not results:
        raise failed[0]
    found = make_tables(study, results, reference)
    if "predictions" not in found:
        reasons = found["left_out"]["reason"] if "left_out" in found else ["no fold has scans."]
        raise UsageError(
            f"No scan could be tested: {reasons[0]}",
            "Choose another --target, --reference-site, --cv-folds or --folds.",
        )
    described = read_json_or_empty(config.bids_dir / "dataset_description.json")
    page = write_page(
        config.output_dir, study, reference, found, notes, sloppy=config.sloppy,
        simulated=GENERATOR in str(described.get("GeneratedBy")),
    )  # fmt: skip
    LOGGER.info(f"Tables are in {folder}; the report is {page}.")
    return EXIT_SCAN_FAILED if failed else EXIT_OK


def read_study(config: RunConfig) -> tuple[Study, str, list[str]]:
    """Read the preprocessed scans, and choose the reference site and the targets.

    Returns
    -------
    study : Study
        Data and options shared by all units.
    reference : str
        Reference site.
    notes : list of str
        Sentences for the report about what cannot be evaluated, and why.
    """
    scans, options = read_scans(config)
    set_up_logging(file=config.log_file)
    options = replace(options, **SLOPPY if config.sloppy else {}).shortened()
    scans = usable_scans(scans)
    choose_reference([scan.site for scan in scans], options)
    data = open_training_set(scans, config.work_dir)
    fit = select_scans(data.table, options.fit_filter)
    reference = choose_reference(data.sites[fit].tolist(), options)
    targets, notes = choose_targets(data, options, reference, fit)
    LOGGER.info(
        f"{len(data)} scans of {len(np.unique(data.persons))} persons and "
        f"{len(np.unique(data.sites))} sites; reference {reference}; "
        f"targets {', '.join(target.name for target in targets)}"
    )
    notes += unknown_values(data, targets)
    for note in notes:
        LOGGER.info(note)
    work_dir = config.work_dir / FOLDER
    plain = unharmonized(data, work_dir)
    study = Study(data, targets, options, config.evaluate, work_dir, plain)
    return study, reference, notes


def choose_targets(
    data: TrainingSet, options: TrainOptions, reference: str, fit: np.ndarray
) -> tuple[list[Target], list[str]]:
    """Read the requested targets; by default age, and diagnosis if it has two classes.

    Simulated labels are not evaluated because they have no true values to compare with.

    Returns
    -------
    targets : list of Target
        Targets that can be evaluated.
    notes : list of str
        Reasons why a default target cannot be evaluated.

    Raises
    ------
    UsageError
        If a requested target cannot be evaluated, or none can.
    """
    if options.targets != TrainOptions.targets:
        if columns := [name for name in options.targets if name != SIMULATED]:
            return find_targets(data, columns, reference, fit), []
        raise UsageError(
            f"{SIMULATED} cannot be evaluated: it has no true values.",
            "Choose columns of the dataset's tables with --target.",
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
    """Return notes on sites where a target has missing values or only one class."""
    notes = []
    for target in targets:
        for site, values in pd.Series(target.values).groupby(data.sites):
            if n := int(values.isna().sum()):
                notes.append(
                    f"{target.name}: {counted(n, 'scan')} of {site} without a value in the column "
                    f"{target.column} will not be tested."
                )
            if target.binary and values.nunique() == 1:
                notes.append(
                    f"{target.name}: {site} has scans of the class "
                    f"{target.classes[int(values.max())]} only. Its area under the curve is "
                    "undefined, and that of several sites may reflect site differences."
                )
    return notes


def plan_units(
    data: TrainingSet, options: EvaluateOptions, reference: str, train: TrainOptions
) -> list[Unit]:
    """List the units of the requested experiments, grouped by random seed and fold.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    options : EvaluateOptions
        Experiments, folds and repetitions.
    reference : str
        Reference site of all experiments except ``rotations``, which uses every site in turn.
    train : TrainOptions
        Training options; repetition ``k`` uses the random seed ``seed + k``.

    Raises
    ------
    UsageError
        If a rotation cannot be trained, or no other site has enough persons for ``size``.
    """
    sites = tuple(np.unique(data.sites).tolist())
    persons = pd.Series(data.persons).groupby(data.sites).nunique()
    planned: list[tuple[Any, ...]] = []
    if "sites" in options.experiments:
        planned.append(("sites", (reference,), sites))
    if "rotations" in options.experiments:
        # Folds may be uneven (hence the ceil), and each network of an ensemble needs a person.
        left = persons - np.ceil(persons / options.cv_folds)
        first = left.index[left >= train.folds].tolist()
        planned += [
            ("rotations", trained, tuple(site for site in sites if site not in trained))
            for trained in _rotations(sites, first, options.train_sites)
        ]
    if "size" in options.experiments:
        others = persons.drop(reference)
        sizes = [n for n in SIZES if n < others.max() * (1 - 1 / options.cv_folds)]
        if not sizes:
            raise UsageError(
                "The experiment size needs another site with more than "
                f"{counted(min(SIZES), 'person')} to calibrate on.",
                "Remove size from --experiments, or increase --cv-folds.",
            )
        planned += [("size", (reference,), (str(others.idxmax()),), n) for n in sizes]
    return [
        Unit(experiment, train.seed + repetition, fold, *rest)
        for repetition, fold in itertools.product(range(options.n_seeds), range(options.cv_folds))
        for experiment, *rest in planned
    ]


def _rotations(
    sites: Sequence[str], first: Sequence[str], asked: Sequence[str]
) -> list[tuple[str, ...]]:
    """Return the requested rotations; by default all sites and pairs that leave a test site."""
    pairs = itertools.permutations(sites, 2) if len(sites) > 2 else ()
    every: list[tuple[str, ...]] = [(site,) for site in first]
    every += [pair for pair in pairs if pair[0] in first]
    if not every:
        raise UsageError(
            "No site has enough persons for training in every fold.",
            "Lower --folds, increase --cv-folds or choose another --target.",
        )
    chosen = [tuple(name.split("+")) for name in asked]
    if wrong := [rotation for rotation in chosen if rotation not in every]:
        raise UsageError(
            f"--train-sites {'+'.join(wrong[0])} is not a possible rotation.",
            "Give a site, or two joined by + if another is left for testing; the first may be "
            f"{', '.join(first)}.",
        )
    return chosen or every


def run_units(
    study: Study, units: Sequence[Unit], nprocs: int
) -> Iterator[tuple[int, Result | HarmonyError]]:
    """Run units in parallel; yield the index and the result or error of each as it completes."""
    if nprocs == 1 or len(units) == 1:
        yield from enumerate(run_unit(study, unit) for unit in units)
        return
    train = replace(study.train, threads=1)
    calls = [(replace(study, train=train), unit) for unit in units]
    names = [str(number) for number in range(1, len(units) + 1)]
    for n, (number, result) in enumerate(side_by_side(run_unit, calls, nprocs, names), 1):
        LOGGER.info(f"{n} of {len(units)} completed: {units[number]}")
        yield number, result


def run_unit(study: Study, unit: Unit) -> Result | HarmonyError:
    """Return the result of a unit, computed or read from the cache in the work folder.

    A :class:`HarmonyError` is returned, so that other units continue.
    """
    try:
        return _run_unit(study, unit)
    except HarmonyError as error:
        return error


def _run_unit(study: Study, unit: Unit) -> Result:
    torch.set_num_threads(study.train.threads)
    path = study.work_dir / f"unit-{_digest(study, unit)}.json"
    if path.is_file():
        LOGGER.info(f"Already completed: {unit}")
    else:
        LOGGER.info(str(unit))
        result = measure_unit(study, unit, prepare_unit(study, unit))
        for row in result["left_out"]:
            what = row.get("target") or f"{METHODS[row['method']]} at {row['test_site']}"
            n = counted(row["n_scans"], "scan")
            LOGGER.info(f"Not tested: {what} ({n}): {row['reason']}")
        write_text(path, json.dumps(result))
    found: Result = json.loads(path.read_text(encoding="utf-8"))
    return found


def _digest(study: Study, unit: Unit) -> str:
    """Return a digest (16 hex digits of SHA-256) of everything a unit's result depends on."""
    depends_on = (
        __version__,
        unit,
        replace(study.train, threads=1),
        # A release may change the network that this name stands for.
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
    study: Study, results: dict[int, Result], reference: str
) -> dict[str, pd.DataFrame]:
    """Return the tables that are not empty."""
    predictions, left_out, scans = (
        pd.DataFrame([row for k in sorted(results) for row in results[k][name]])
        for name in ("predictions", "left_out", "scans")
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
    if len(scans):
        found["images"] = tables.image_table(scans, reference, seed)
        found["biology"] = tables.biology_table(scans, seed)
    return {name: table for name, table in found.items() if len(table)}
