"""Train what a unit needs, and predict on the scans nothing was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bids_harmony.console import counted_off
from bids_harmony.evaluation.combat import combat
from bids_harmony.evaluation.options import EvaluateOptions
from bids_harmony.evaluation.prepare import (
    COMBAT,
    HARMONIZED,
    MATCHED,
    NONE,
    SCALED,
    WAYS,
    Change,
    mapping,
    matching,
    prepare,
    unscale,
    weights_digest,
)
from bids_harmony.evaluation.units import Unit, split_of, subject_folds
from bids_harmony.files import write_json
from bids_harmony.models.slices import middle_slices
from bids_harmony.training.cache import locked
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.evaluate import measure_looks
from bids_harmony.training.fabric import Engine, one_device
from bids_harmony.training.fit_filter import select_scans
from bids_harmony.training.harmonizer import Plan, train_harmonizer
from bids_harmony.training.overlap import covariate_overlap
from bids_harmony.training.predictor import PREDICTORS, predict_stack
from bids_harmony.training.predictors import Predictor, train_predictors
from bids_harmony.training.presets import PRESETS
from bids_harmony.training.select import choose_checkpoint
from bids_harmony.training.splits import TEST, TRAIN
from bids_harmony.training.targets import Target

Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """What all units share.

    Attributes
    ----------
    data : TrainingSet
        All scans.
    targets : sequence of Target
        What is predicted.
    train : TrainOptions
        How maps and predictors are trained.
    options : EvaluateOptions
        Experiments, folds and repetitions.
    work_dir : pathlib.Path
        What is trained and prepared is kept there, so that an interrupted evaluation continues.
    say : callable
        Takes a line of progress.
    """

    data: TrainingSet
    targets: Sequence[Target]
    train: TrainOptions
    options: EvaluateOptions
    work_dir: Path
    say: Say

    @property
    def fit(self) -> np.ndarray:
        """(scans,) whether ``--fit-filter`` lets maps and predictors of numbers see a scan."""
        return select_scans(self.data.table, self.train.fit_filter)

    def folds(self, seed: int) -> np.ndarray:
        """Fold of each scan under a seed."""
        classes = [target.values for target in self.targets if target.binary]
        return subject_folds(self.data, self.options.cv_folds, seed, classes)


@dataclass(frozen=True)
class Prepared:
    """The scans of a unit prepared in every way, with the map behind ``harmonized``.

    Attributes
    ----------
    sets : dict of str to TrainingSet
        By way; ``none`` is missing where scans' records do not say how they were scaled, and
        ``combat`` where it cannot be fitted.
    test : numpy.ndarray
        Numbers of the scans to test on.
    split : numpy.ndarray
        (scans,) part of each.
    step : int
        Step of the map's checkpoint.
    overlap : dict
        Of :func:`bids_harmony.training.overlap.covariate_overlap`, for the scans the maps saw.
    """

    sets: dict[str, TrainingSet]
    test: np.ndarray
    split: np.ndarray
    step: int
    overlap: dict[str, Any]


def prepare_unit(study: Study, unit: Unit) -> Prepared:
    """Train a unit's maps and prepare its scans in every way."""
    data, reference = study.data, unit.train_sites[0]
    split, seen = split_of(data, unit, study.folds(unit.seed), study.train.validation)
    test = np.flatnonzero((split == TEST) & np.isin(data.sites, unit.test_sites))
    network, step, overlap = fit_maps(study, seen, reference, unit.seed)
    looks = measure_looks(
        data, np.flatnonzero((split != TEST) & (data.sites == reference)), reference,
        unit.seed, study.train.contract.grey,
    )  # fmt: skip
    changes: dict[str, tuple[Change | None, str]] = {
        NONE: (unscale(data, study.train.contract.grey), "unscaled"),
        MATCHED: (matching(looks.quantiles), f"matched {looks.quantiles.tolist()}"),
        HARMONIZED: (mapping(network, data), f"mapped {weights_digest(network)}"),
    }
    if unit.left_out is None:  # of a site it was not fitted on ComBat knows nothing
        fitted = np.flatnonzero((seen != TEST) & study.fit)
        changes[COMBAT] = (combat(data, fitted, reference, unit.seed), f"combat {fitted.tolist()}")
    # Predictors learn from the reference as it is; what comes from elsewhere is prepared.
    learnt = (split != TEST) & np.isin(data.sites, unit.train_sites)
    elsewhere = np.union1d(test, np.flatnonzero(learnt & (data.sites != reference)))
    everything = np.union1d(test, np.flatnonzero(learnt))
    sets = {}
    for way in WAYS:
        change, what = changes.get(way, (None, ""))
        if change is not None:
            scans = everything if way == NONE else elsewhere
            sets[way] = prepare(data, scans.tolist(), change, what, study.work_dir, study.say)
        elif way == SCALED:
            sets[way] = data
    return Prepared(sets, test, split, step, overlap)


def fit_maps(
    study: Study, seen: np.ndarray, reference: str, seed: int
) -> tuple[nn.Module, int, dict[str, Any]]:
    """Train maps on the scans they may see, and choose their checkpoint as ``train`` does.

    Returns
    -------
    network : torch.nn.Module
        The forward map.
    step : int
        Its checkpoint.
    overlap : dict
        How the sites compare to the reference in age and sex.
    """
    data, options = study.data, study.train
    fitted = np.where(study.fit, seen, TEST)
    among = np.flatnonzero(fitted == TRAIN)
    preset = PRESETS[options.preset]
    digest = hashlib.sha256(repr([reference, seed, *fitted]).encode()).hexdigest()[:12]
    study.work_dir.mkdir(parents=True, exist_ok=True)
    # Units that share maps may run at the same time.
    with locked(study.work_dir / f".maps-{digest}.lock"):
        maps = train_harmonizer(
            data, among, reference, replace(preset, batch=options.batch or preset.batch),
            plan=Plan(options.harmonizer_steps, options.epoch_steps, seed),
            folder=study.work_dir, engine=Engine.of(options), say=study.say,
        )  # fmt: skip
    chosen = maps.epochs[0][1].parents[1] / f"chosen-{digest}.json"
    if not chosen.is_file():
        step, table = choose_checkpoint(
            data, fitted, reference, maps.steps, maps.candidate,
            grey=options.contract.grey, seed=seed, say=study.say,
        )  # fmt: skip
        write_json(chosen, {"step": step, "table": table})
    step = int(json.loads(chosen.read_text(encoding="utf-8"))["step"])
    sites = {str(site): data.site_scans(str(site), among) for site in np.unique(data.sites[among])}
    return maps.candidate(step), step, covariate_overlap(data, sites.pop(reference), sites)


def fit_predictors(
    study: Study, unit: Unit, prepared: TrainingSet, split: np.ndarray
) -> dict[str, Predictor]:
    """Train the predictors of all targets on the unit's training sites, prepared in one way.

    Networks are kept by what they were trained on: ways that leave the reference's scans as they
    are share them where it is the only training site.
    """
    first, *others = unit.train_sites
    sites = prepared.table["site"].replace(dict.fromkeys(others, first))
    options = replace(study.train, targets=tuple(t.column for t in study.targets), seed=unit.seed)
    recipe = PREDICTORS[options.predictor]
    shared = f"{unit.seed}-{unit.fold}-{'-'.join(unit.train_sites)}"
    with locked(study.work_dir / f".predictors-{shared}.lock"):
        return train_predictors(
            replace(prepared, table=prepared.table.assign(site=sites)),
            split, study.fit, first, options,
            replace(recipe, steps=options.predictor_steps or recipe.steps),
            study.work_dir, device=one_device(options.device), say=study.say,
        )  # fmt: skip


def predict_unit(study: Study, unit: Unit, prepared: Prepared) -> list[dict[str, Any]]:
    """Predict every target on the unit's test scans, prepared in every way.

    Returns
    -------
    list of dict
        One row per scan, target and way: the unit's fields, ``scan`` (number), ``participant``,
        ``test_site``, ``way``, ``target``, ``truth`` and ``predicted`` (a logit for two classes).
        Scans whose truth is unknown have none.
    """
    numbers = middle_slices(
        len(study.data.heights), study.data.affine, study.train.contract.slice_mm
    )
    heights = study.data.heights[numbers]
    rows = []
    for way, data in prepared.sets.items():
        predictors = fit_predictors(study, unit, data, prepared.split)
        for scan in counted_off(prepared.test, len(prepared.test), f"predicting {way}", study.say):
            stack = data.stack(int(scan))[0][numbers]
            for target in study.targets:
                if not np.isfinite(target.values[scan]):
                    continue
                values = predict_stack(predictors[target.name].members, stack, heights)
                rows.append(
                    {
                        "experiment": unit.experiment,
                        "seed": unit.seed,
                        "fold": unit.fold,
                        "train_sites": "+".join(unit.train_sites),
                        "n_source": unit.n_source,
                        "scan": int(scan),
                        "participant": str(data.table["subject"].iloc[scan]),
                        "test_site": str(data.sites[scan]),
                        "way": way,
                        "target": target.name,
                        "truth": float(target.values[scan]),
                        "predicted": float(np.median(values)),
                    }
                )
    return rows
