"""The ``evaluate`` level: from preprocessed scans of several sites to tables and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
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
from bids_harmony.errors import EXIT_OK, UsageError
from bids_harmony.evaluation.fit import Study, predict_unit, prepare_unit
from bids_harmony.evaluation.images import measure_pairs, measure_scans
from bids_harmony.evaluation.prepare import unscale
from bids_harmony.evaluation.report import FOLDER, Findings, write_findings
from bids_harmony.evaluation.statistics import tabulate
from bids_harmony.evaluation.summaries import (
    agreement_table,
    biology_table,
    image_table,
    travelling_table,
)
from bids_harmony.evaluation.units import Unit, plan_units, trainable_sites
from bids_harmony.files import write_json
from bids_harmony.processes import prefixed, side_by_side
from bids_harmony.text import read_json_or_empty
from bids_harmony.training.cache import open_training_set
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.fit_filter import select_scans
from bids_harmony.training.inputs import read_scans, without_rejected
from bids_harmony.training.predictor import PREDICTORS
from bids_harmony.training.presets import PRESETS
from bids_harmony.training.run import choose_reference
from bids_harmony.training.targets import SIMULATED, Target, find_target, find_targets

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

#: With ``--sloppy``: minutes instead of hours, to see that everything runs; its figures mean
#: little.
SLOPPY: dict[str, Any] = {
    "harmonizer_steps": 100, "epoch_steps": 50, "predictor_steps": 60, "folds": 2,
}  # fmt: skip


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
        0.
    """
    study, reference = read_study(config, tell)
    trainable = trainable_sites(
        study.data, study.targets, study.options.cv_folds, study.train.folds
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
    results = run_units(study, units, config.nprocs)
    findings = summarize(
        study, reference, results, simulated=_made_up(config.bids_dir), sloppy=config.sloppy
    )
    page = write_findings(findings, config.output_dir)
    tell(f"Tables are in {config.output_dir / FOLDER}; the report is {page}.")
    return EXIT_OK


def read_study(config: RunConfig, say: Callable[[str], None]) -> tuple[Study, str]:
    """Read the preprocessed scans, and settle reference site and targets.

    Returns
    -------
    study : Study
        For all units.
    reference : str
        Reference site.
    """
    scans, options = read_scans(config, say)
    if config.sloppy:
        options = replace(options, **SLOPPY)
    options = options.shortened()
    scans = without_rejected(scans, say)
    choose_reference([scan.site for scan in scans], options)
    data = open_training_set(scans, config.work_dir, threads=options.threads, say=say)
    fit = select_scans(data.table, options.fit_filter)
    reference = choose_reference(data.sites[fit].tolist(), options)
    if unscale(data, options.contract.grey) is None:
        say("Warning: some scans' records do not say how they were scaled, so that no scan can "
            "be tested without tissue scaling; preprocess them again.")  # fmt: skip
    targets = choose_targets(data, options, reference, fit)
    say(f"{len(data)} scans of {len(np.unique(data.sites))} sites; reference {reference}; "
        f"targets {', '.join(target.name for target in targets)}")  # fmt: skip
    return Study(data, targets, options, config.evaluate, config.work_dir / FOLDER, say), reference


def choose_targets(
    data: TrainingSet, options: TrainOptions, reference: str, fit: np.ndarray
) -> list[Target]:
    """Read the targets asked for; by default the age, and the diagnosis where it has two classes.

    Labels that training would make up are no targets: there is nothing to hold them against.
    """
    columns = [name for name in options.targets if name != SIMULATED]
    if options.targets != TrainOptions.targets:
        if not columns:
            raise UsageError(
                f"There is nothing to evaluate: {SIMULATED} has no true values.",
                "Name columns of the dataset's tables with --target.",
            )
        return find_targets(data, columns, reference, fit)
    found = []
    for column in ("age", "diagnosis"):
        try:
            found.append(find_target(data, column, reference, fit))
        except UsageError:
            if column == "age" and not data.table["diagnosis"].notna().any():
                raise
    if not found:
        return find_targets(data, columns, reference, fit)
    return found


@dataclass
class Result:
    """What a unit gave: rows of predictions, measures of scans, pairs, and what was trained."""

    predictions: list[dict[str, Any]]
    scans: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    step: int
    overlap: dict[str, Any]


def run_units(study: Study, units: Sequence[Unit], nprocs: int) -> list[Result]:
    """Run units, several at once; those that are finished are taken from the work folder."""
    if nprocs == 1 or len(units) == 1 or study.train.devices * study.train.nodes > 1:
        return [run_unit(study, unit) for unit in units]
    alone = replace(study, train=replace(study.train, threads=1))
    calls = [
        (replace(alone, say=partial(prefixed, tell, f"[{number}] ")), unit)
        for number, unit in enumerate(units, 1)
    ]
    found: dict[int, Result] = {}
    for number, result in side_by_side(run_unit, calls, nprocs):
        found[number] = result
        study.say(f"{len(found)} of {len(units)} done: {units[number]}")
    return [found[number] for number in range(len(units))]


def run_unit(study: Study, unit: Unit) -> Result:
    """Train, prepare, predict and measure; the result is kept in the work folder."""
    torch.set_num_threads(study.train.threads)
    path = study.work_dir / f"unit-{_digest(study, unit)}.json"
    if path.is_file():
        study.say(f"done before: {unit}")
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    study.say(str(unit))
    prepared = prepare_unit(study, unit)
    predictions = predict_unit(study, unit, prepared)
    images = unit.experiment == "sites"
    result = Result(
        predictions,
        measure_scans(study, unit, prepared) if images else [],
        measure_pairs(study, unit, prepared) if images else [],
        prepared.step,
        prepared.overlap,
    )
    for row in result.scans:
        row["quantiles"] = np.round(row["quantiles"], 5).tolist()
    write_json(path, asdict(result))
    return result


def _digest(study: Study, unit: Unit) -> str:
    """Name all that a unit's result depends on."""
    said = {
        "version": __version__,
        "unit": asdict(unit),
        "train": {k: v for k, v in study.train.to_dict().items() if k != "threads"},
        # What their names stood for, which another release may change.
        "preset": PRESETS[study.train.preset].to_dict(),
        "predictor": PREDICTORS[study.train.predictor].to_dict(),
        "cv_folds": study.options.cv_folds,
        "targets": [[t.column, t.name, *t.classes] for t in study.targets],
        "table": study.data.table.drop(columns="metrics").astype(str).to_numpy().tolist(),
        "box": study.data.box,
    }
    text = json.dumps(said, sort_keys=True).encode()
    return hashlib.sha256(text + study.data.filled.tobytes()).hexdigest()[:16]


def summarize(
    study: Study, reference: str, results: Sequence[Result], *, simulated: bool, sloppy: bool
) -> Findings:
    """Make the tables of what was found."""
    seed = study.train.seed
    predictions = pd.DataFrame([row for result in results for row in result.predictions])
    scans = pd.DataFrame([row for result in results for row in result.scans])
    pairs = pd.DataFrame([row for result in results for row in result.pairs])
    binary = {target.name: target.binary for target in study.targets}
    tables = {"experiments": tabulate(predictions, binary, seed), "predictions": predictions}
    if not scans.empty:
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
        overlap=results[0].overlap,
        steps=[result.step for result in results],
        data=study.data.table,
        options=study.train,
        evaluate=study.options,
        simulated=simulated,
        sloppy=sloppy,
    )


def _made_up(bids_dir: Path) -> bool:
    """Whether the dataset says that the simulator made it."""
    from bids_harmony.simulation.describe import GENERATOR

    description = read_json_or_empty(bids_dir / "dataset_description.json")
    try:
        return any(made.get("Name") == GENERATOR for made in description["GeneratedBy"])
    except (LookupError, TypeError, AttributeError):
        return False
