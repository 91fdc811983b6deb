"""Train what a unit needs, and predict on the scans nothing was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_harmony.console import counted_off
from bids_harmony.errors import UsageError
from bids_harmony.evaluation.combat import LEAST, available, combat, sites_to_fit
from bids_harmony.evaluation.options import EvaluateOptions
from bids_harmony.evaluation.prepare import (
    COMBAT,
    KNOWN_AGES,
    MATCHED,
    NONE,
    SCALED,
    Change,
    mapping,
    matching,
    prepare,
)
from bids_harmony.evaluation.units import Unit, split_of, subject_folds
from bids_harmony.fit_filter import select_scans
from bids_harmony.models.mapnetwork import SiteMap
from bids_harmony.models.slices import predict_value
from bids_harmony.sites.code import Appearance
from bids_harmony.training.bundle import age_line
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.cyclegan import train_maps
from bids_harmony.training.data import TrainingSet, locked
from bids_harmony.training.harmonizer import (
    MAX_HISTOGRAM,
    calibrated,
    mean_quantiles,
    ways_to_calibrate,
)
from bids_harmony.training.predictor import PredictorConfig, recipe_of
from bids_harmony.training.predictors import Predictor, plan_folds, train_predictors
from bids_harmony.training.splits import TEST, TRAIN
from bids_harmony.training.storage import one_device
from bids_harmony.training.targets import Target, find_target

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
    plain : TrainingSet or None
        All scans without any harmonization; None where they cannot be had.
    """

    data: TrainingSet
    targets: Sequence[Target]
    train: TrainOptions
    options: EvaluateOptions
    work_dir: Path
    say: Say
    plain: TrainingSet | None = None

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
        By way; one that cannot be had is missing.
    test : dict of str to numpy.ndarray
        By way, numbers of the scans to test on. Without those of a site that ComBat was not fitted
        on: it leaves them as they are.
    split : numpy.ndarray
        (scans,) part of each.
    left_out : list of dict
        What cannot be had here: ``way`` or ``target``, ``test_site``, ``n_scans``, ``reason``.
    """

    sets: dict[str, TrainingSet]
    test: dict[str, np.ndarray]
    split: np.ndarray
    left_out: list[dict[str, Any]]


def prepare_unit(study: Study, unit: Unit) -> Prepared:
    """Calibrate a unit's sites and prepare its scans in every way that can be had."""
    data, reference = study.data, unit.train_sites[0]
    split, seen = split_of(data, unit, study.folds(unit.seed), study.train.validation)
    test = np.flatnonzero((split == TEST) & np.isin(data.sites, unit.test_sites))
    learnt = np.flatnonzero((split != TEST) & (data.sites == reference))
    quantiles = mean_quantiles(data, learnt[:MAX_HISTOGRAM])
    changes: dict[str, tuple[Change, str]] = {
        MATCHED: (matching(quantiles), f"matched {quantiles.tolist()}")
    }
    known = {SCALED: data.sites, MATCHED: data.sites, NONE: data.sites}
    why: dict[str, str] = {}
    fitted = np.flatnonzero((seen != TEST) & study.fit)
    sites = sites_to_fit(data, fitted)
    why[COMBAT] = "neuroCombat is not installed"
    if available():
        why[COMBAT] = f"ComBat wants {LEAST} persons of each site to fit on"
    change = None
    if set(unit.train_sites) <= set(sites) and len(sites) > 1 and available():
        change = combat(data, fitted, reference, unit.seed)
        why[COMBAT] = why[COMBAT] if change else "neuroCombat's fit failed"
    if change is not None:
        what = hashlib.sha256(data.content(fitted)).hexdigest()
        changes[COMBAT] = (change, f"combat {reference} {unit.seed} {fitted.tolist()} {what}")
        known[COMBAT] = np.array(sites)
    for way, of_site in calibrations(study, unit, split, fitted).items():
        told = {site: one.digest() for site, one in of_site.items()}
        changes[way] = (mapping(of_site, data.sites), f"{way} {told}")
        known[way] = np.array(list(of_site))
        why[way] = "no other scan of the site is left to calibrate on"
    # Predictors learn from the reference as it is; what comes from elsewhere is prepared.
    learnt = np.flatnonzero((split != TEST) & np.isin(data.sites, unit.train_sites))
    elsewhere = np.union1d(test, learnt[data.sites[learnt] != reference])
    sets = {} if study.plain is None else {NONE: study.plain}
    sets[SCALED] = data
    for way, (change, what) in changes.items():
        some = elsewhere[np.isin(data.sites[elsewhere], known[way])].tolist()
        sets[way] = prepare(data, some, change, what, study.work_dir, study.say)
    tested = {way: test[np.isin(data.sites[test], known[way])] for way in sets}
    left_out = [
        {"way": way, "test_site": site, "n_scans": int((data.sites[test] == site).sum()),
         "reason": reason}
        for way, reason in why.items()
        for site in np.unique(data.sites[np.setdiff1d(test, tested.get(way, ()))]).tolist()
    ]  # fmt: skip
    return Prepared(sets, tested, split, left_out)


def calibrations(
    study: Study, unit: Unit, split: np.ndarray, among: np.ndarray
) -> dict[str, dict[str, SiteMap]]:
    """Calibrate every site on scans that are not tested, with and without their ages.

    The network that follows the intensity mapping learns from the first training site, as the
    predictors that estimate ages do.

    Parameters
    ----------
    study, unit
        What is evaluated.
    split : numpy.ndarray
        (scans,) part of each.
    among : numpy.ndarray
        Numbers of the scans to calibrate on.

    Returns
    -------
    dict
        By way and site. Without an age to predict, or to know, only some of the ways are there.
    """
    data, reference = study.data, unit.train_sites[0]
    at_reference = replace(unit, train_sites=(reference,))
    predictors = fit_predictors(study, at_reference, data, split)
    learnt = np.flatnonzero((split != TEST) & (data.sites == reference) & study.fit)
    appearance = Appearance.fit(
        data.descriptors[learnt], data.ages[learnt], data.persons[learnt], age_line(predictors)
    )

    ensembles = None if appearance.line is None else predictors["brain_age"].ensembles
    network = train_maps(
        data, learnt[split[learnt] == TRAIN], among[data.sites[among] != reference], appearance,
        ensembles, replace(study.train, seed=unit.seed), study.work_dir, study.say,
    )[study.train.map]  # fmt: skip
    parts = {str(site): data.site_scans(str(site), among) for site in np.unique(data.sites[among])}
    ways = ways_to_calibrate(data, ensembles, study.train.contract.slice_mm, appearance, network)
    if ensembles is None or not np.isfinite(data.ages[among]).any():
        del ways[KNOWN_AGES]
    return {
        way: {
            site: SiteMap.of(calibrated(data, scans, appearance, ages), appearance, net, data.box)
            for site, scans in parts.items()
        }
        for way, (ages, net) in ways.items()
    }


def fit_predictors(
    study: Study, unit: Unit, prepared: TrainingSet, split: np.ndarray
) -> dict[str, Predictor]:
    """Train the predictors of a unit on its training sites, prepared in one way.

    Networks are kept by what they were trained on: ways that leave the reference's scans as they
    are share them where it is the only training site. Targets of :func:`untrained` are left out.
    """
    first = unit.train_sites[0]
    left_out = untrained(study, unit, split)
    columns = tuple(t.column for t in study.targets if t.name not in left_out)
    options, recipe = _predictor_options(study, unit, columns)
    shared = f"{unit.seed}-{unit.fold}-{'-'.join(unit.train_sites)}"
    with locked(study.work_dir / f".predictors-{shared}.lock"):
        return train_predictors(
            _joined(prepared, unit), split, study.fit, first, options, recipe,
            study.work_dir, device=one_device(options.device), say=study.say,
        )  # fmt: skip


def untrained(study: Study, unit: Unit, split: np.ndarray) -> dict[str, str]:
    """Say which targets a unit leaves too few persons, or persons of a class, to learn from.

    Returns
    -------
    dict of str to str
        By the target's name, why.
    """
    data, first = _joined(study.data, unit), unit.train_sites[0]
    found = {}
    for target in study.targets:
        options, recipe = _predictor_options(study, unit, (target.column,))
        try:
            here = find_target(data, target.column, first, study.fit)
            plan_folds(data, split, study.fit, first, here, options, recipe)
        except UsageError as error:
            found[target.name] = error.cause
    return found


def _joined(data: TrainingSet, unit: Unit) -> TrainingSet:
    """Take a unit's training sites for one: that is where its predictors are trained."""
    first, *others = unit.train_sites
    sites = data.table["site"].replace(dict.fromkeys(others, first))
    return replace(data, table=data.table.assign(site=sites))


def _predictor_options(
    study: Study, unit: Unit, columns: tuple[str, ...]
) -> tuple[TrainOptions, PredictorConfig]:
    return replace(study.train, targets=columns, seed=unit.seed), recipe_of(study.train)


def predict_unit(study: Study, unit: Unit, prepared: Prepared) -> list[dict[str, Any]]:
    """Predict every target on the unit's test scans, prepared in every way that can be had.

    Returns
    -------
    list of dict
        One row per scan, target and way: the unit's fields, ``scan`` (number), ``participant``,
        ``person``, ``test_site``, ``way``, ``target``, ``truth``, ``predicted`` (a logit for two
        classes) and ``half_width`` of the predictor's interval (None for two classes). Scans whose
        truth is unknown have none.
    """
    rows = []
    for way, data in prepared.sets.items():
        predictors = fit_predictors(study, unit, data, prepared.split)
        test = prepared.test[way]
        for scan in counted_off(test, len(test), f"predicting {way}", study.say):
            volume = data.volume(int(scan))[0]
            for target in study.targets:
                if target.name not in predictors or not np.isfinite(target.values[scan]):
                    continue
                predictor = predictors[target.name]
                predicted = predict_value(
                    predictor.ensembles, volume, data.affine, data.box,
                    study.train.contract.slice_mm,
                )  # fmt: skip
                rows.append(
                    {
                        "experiment": unit.experiment,
                        "seed": unit.seed,
                        "fold": unit.fold,
                        "train_sites": "+".join(unit.train_sites),
                        "n_source": unit.n_source,
                        "scan": int(scan),
                        "participant": str(data.table["subject"].iloc[scan]),
                        "person": str(data.persons[scan]),
                        "test_site": str(data.sites[scan]),
                        "way": way,
                        "target": target.name,
                        "truth": float(target.values[scan]),
                        "predicted": predicted,
                        "half_width": predictor.target.get("interval", {}).get("half_width"),
                    }
                )
    return rows
