"""One unit: fit what it needs, then predict and measure the scans that nothing was fitted to.

Subjects are split into folds once per seed. A unit trains predictors and calibrates sites on all
folds but one and tests on that one, so that no figure rests on a scan, or on another scan of a
person, that anything in the unit was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_harmony.bids.dataset import counted
from bids_harmony.bids.filters import select_scans
from bids_harmony.config import VALIDATION_FRACTION, EvaluateOptions, TrainOptions
from bids_harmony.console import counted_off
from bids_harmony.errors import UsageError
from bids_harmony.evaluation import methods
from bids_harmony.evaluation.methods import COMBAT, MATCHED, NONE, SCALED, Method
from bids_harmony.models.networks import SiteMap, predict_value
from bids_harmony.qc.guard import TISSUES, measure
from bids_harmony.qc.metrics import edges_and_noise
from bids_harmony.training import harmonizer
from bids_harmony.training.bundle import age_line
from bids_harmony.training.cyclegan import train_maps
from bids_harmony.training.data import (
    TEST,
    TRAIN,
    TrainingRun,
    TrainingSet,
    locked,
    make_folds,
    split_subjects,
)
from bids_harmony.training.harmonizer import MAX_HISTOGRAM
from bids_harmony.training.predictors import Predictor, train_predictors
from bids_harmony.training.targets import Target

#: Volumes that biology is looked for in.
ANATOMY = [f"{tissue}_ml" for tissue in TISSUES]
#: Brightness, contrast, noise and sharpness, by which a classifier is to tell sites apart.
PERCENTILES = (5, 25, 50, 75, 95)
FEATURES = [*(f"quantile_{q}" for q in PERCENTILES), "noise", "sharpness"]
QUANTILES = np.linspace(0.01, 0.99, 99)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Unit:
    """One training of networks and predictors, and where they are tested.

    Attributes
    ----------
    experiment : str
        Of :data:`bids_harmony.evaluation.EXPERIMENTS`.
    seed, fold : int
        Of weights and folds; fold of the subjects that is tested.
    train_sites : tuple of str
        Where predictors are trained; the first is the reference site.
    test_sites : tuple of str
        Where they are tested.
    n_source : int or None
        Persons of the test site that calibrate it; None: all that are not tested.
    """

    experiment: str
    seed: int
    fold: int
    train_sites: tuple[str, ...]
    test_sites: tuple[str, ...]
    n_source: int | None = None

    def __str__(self) -> str:
        few = self.n_source and f", calibrated on {counted(self.n_source, 'person')}"
        return (
            f"{self.experiment}: trained at {' + '.join(self.train_sites)}, tested at "
            f"{' + '.join(self.test_sites)}{few or ''} (seed {self.seed}, fold {self.fold + 1})"
        )

    @property
    def labels(self) -> dict[str, Any]:
        """The fields that rows of tables carry."""
        fields = asdict(self) | {"train_sites": "+".join(self.train_sites)}
        return {name: value for name, value in fields.items() if name != "test_sites"}


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
        How networks and predictors are trained.
    options : EvaluateOptions
        Experiments, folds and repetitions.
    work_dir : pathlib.Path
        What is trained and prepared is cached there, so that an interrupted evaluation continues.
    say : callable
        Takes a line of progress.
    unharmonized : TrainingSet or None
        All scans without any harmonization; None where they cannot be had.
    """

    data: TrainingSet
    targets: Sequence[Target]
    train: TrainOptions
    options: EvaluateOptions
    work_dir: Path
    say: Callable[[str], None]
    unharmonized: TrainingSet | None = None

    @property
    def fit(self) -> np.ndarray:
        """(scans,) whether ``--fit-filter`` lets maps and predictors of numbers see a scan."""
        return select_scans(self.data.table, self.train.fit_filter)


@dataclass(frozen=True)
class Prepared:
    """The scans of a unit prepared by every method.

    Attributes
    ----------
    sets : dict of str to TrainingSet
        By method; one that cannot be had is missing.
    test : dict of str to numpy.ndarray
        By method, numbers of the scans to test on: those of sites that it could be fitted to.
    split : numpy.ndarray
        (scans,) part of each.
    left_out : list of dict
        What cannot be had here: ``method``, ``test_site``, ``n_scans``, ``reason``.
    """

    sets: dict[str, TrainingSet]
    test: dict[str, np.ndarray]
    split: np.ndarray
    left_out: Rows


def subject_folds(
    data: TrainingSet, n_folds: int, seed: int, targets: Sequence[Target] = ()
) -> np.ndarray:
    """Give every scan a fold: whole persons, every site and age in each, classes alike.

    Parameters
    ----------
    data : TrainingSet
        All scans; a person seen at two sites has one fold.
    n_folds : int
        Number of folds.
    seed : int
        Of the random number generator.
    targets : sequence of Target
        Folds are balanced over their classes too.
    """
    classes = [np.nan_to_num(target.values, nan=-1) for target in targets if target.binary]
    strata = ["|".join(map(str, key)) for key in zip(data.sites, *classes, strict=True)]
    rng = np.random.default_rng(seed)
    return make_folds(data, np.arange(len(data)), n_folds, rng, np.array(strata))


def split_of(
    data: TrainingSet, unit: Unit, folds: np.ndarray, validation: float
) -> tuple[np.ndarray, np.ndarray]:
    """Split the scans for a unit.

    Returns
    -------
    split : numpy.ndarray
        (scans,) ``train``, ``validation`` or ``test``, by persons.
    seen : numpy.ndarray
        The same for calibration: what it may not see is ``test`` too.
    """
    rng = np.random.default_rng([unit.seed, unit.fold])
    split = split_subjects(data, validation, 0.0, rng)
    split[folds == unit.fold] = TEST
    for site in np.unique(data.sites):
        # The little that is left of a site is trained on; a checkpoint can be chosen without it.
        left = data.persons[(data.sites == site) & (split != TEST)]
        if not (split[data.sites == site] == TRAIN).any():
            split[np.isin(data.persons, left)] = TRAIN
    seen = split.copy()
    if unit.n_source is not None:
        here = np.flatnonzero(np.isin(data.sites, unit.test_sites) & (split != TEST))
        persons = rng.permutation(np.unique(data.persons[here]))[unit.n_source :]
        seen[here[np.isin(data.persons[here], persons)]] = TEST
    return split, seen


def prepare_unit(study: Study, unit: Unit) -> Prepared:
    """Fit every method on the scans that are not tested, and prepare the unit's scans by it."""
    data, reference = study.data, unit.train_sites[0]
    folds = subject_folds(data, study.options.cv_folds, unit.seed, study.targets)
    split, seen = split_of(data, unit, folds, VALIDATION_FRACTION)
    test = np.flatnonzero((split == TEST) & np.isin(data.sites, unit.test_sites))
    trained = np.flatnonzero((split != TEST) & np.isin(data.sites, unit.train_sites))
    at_reference = data.site_scans(reference, trained)
    fitted = np.flatnonzero((seen != TEST) & study.fit)
    quantiles = harmonizer.mean_quantiles(data, at_reference[:MAX_HISTOGRAM])
    fitted_methods = {
        MATCHED: methods.matching(quantiles, np.unique(data.sites)),
        COMBAT: methods.combat(data, fitted, unit.train_sites, unit.seed),
        **calibrations(study, unit, split, fitted),
    }
    sets = {} if study.unharmonized is None else {NONE: study.unharmonized}
    sets[SCALED] = data
    tested, left_out = dict.fromkeys(sets, test), []
    # Predictors learn from the reference as it is; what comes from elsewhere is prepared.
    elsewhere = np.union1d(test, np.setdiff1d(trained, at_reference))
    for name, method in fitted_methods.items():
        covered = np.isin(data.sites, list(method.sites))
        if covered.any():
            scans = elsewhere[covered[elsewhere]].tolist()
            sets[name] = methods.prepare(data, scans, method, study.work_dir, study.say)
            tested[name] = test[covered[test]]
        for site, n in Counter(data.sites[test[~covered[test]]].tolist()).items():
            row = {"method": name, "test_site": site, "n_scans": n, "reason": method.reason}
            left_out.append(unit.labels | row)
    return Prepared(sets, tested, split, left_out)


def calibrations(
    study: Study, unit: Unit, split: np.ndarray, among: np.ndarray
) -> dict[str, Method]:
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
        By name. Without an age to predict, or to know, only some of the methods are there.
    """
    data, reference = study.data, unit.train_sites[0]
    at_reference = replace(unit, train_sites=(reference,))
    predictors, _ = fit_predictors(study, at_reference, data, split)
    train = replace(study.train, seed=unit.seed)
    run = TrainingRun(data, split, study.fit, reference, train, study.work_dir, study.say)
    appearance = run.appearance(age_line(predictors))
    ensembles = None if appearance.line is None else predictors["brain_age"].ensembles
    others = among[data.sites[among] != reference]
    network = train_maps(run, others, appearance, ensembles)[study.train.map]
    slice_mm = study.train.contract.slice_mm
    calibrator = harmonizer.Calibrator(data, appearance, network, ensembles, slice_mm)
    tried = calibrator.methods()
    if ensembles is None or np.isnan(data.ages[among]).all():
        del tried[harmonizer.KNOWN_AGES]
    found = {}
    for name, (ages, net) in tried.items():
        of_site = {}
        for site in np.unique(data.sites[among]).tolist():
            scans = data.site_scans(site, among)
            code = calibrator.code(scans, ages)
            of_site[site] = SiteMap.of(code, appearance, net, data.box)
        found[name] = methods.mapping(name, of_site, data.sites)
    return found


def fit_predictors(
    study: Study, unit: Unit, prepared: TrainingSet, split: np.ndarray
) -> tuple[dict[str, Predictor], dict[str, str]]:
    """Train the predictors of a unit on its training sites, prepared by one method.

    Networks are cached by what they were trained on: methods that leave the reference's scans as
    they are share them where it is the only training site.

    Returns
    -------
    predictors : dict of str to Predictor
        By the target's name.
    reasons : dict of str to str
        By target, why there are too few persons, or persons of a class, to learn from.
    """
    reference, *others = unit.train_sites
    sites = prepared.table["site"].replace(dict.fromkeys(others, reference))
    joined = replace(prepared, table=prepared.table.assign(site=sites))  # trained as one site
    predictors: dict[str, Predictor] = {}
    reasons: dict[str, str] = {}
    shared = f"{unit.seed}-{unit.fold}-{'-'.join(unit.train_sites)}"
    with locked(study.work_dir / f".predictors-{shared}.lock"):
        for target in study.targets:
            options = replace(study.train, targets=(target.column,), seed=unit.seed)
            try:
                predictors |= train_predictors(
                    TrainingRun(
                        joined, split, study.fit, reference, options, study.work_dir, study.say
                    )
                )
            except UsageError as error:
                reasons[target.name] = error.cause
    return predictors, reasons


def measure_unit(study: Study, unit: Unit, prepared: Prepared) -> dict[str, Rows]:
    """Predict and measure the unit's test scans, prepared by every method that can be had.

    Returns
    -------
    dict of str to list of dict
        Rows with the unit's fields, ``scan`` (number), ``person``, ``site``, ``age`` and
        ``method``, of

        * ``predictions``, one per scan, target and method: ``participant``, ``target``, ``truth``,
          ``predicted`` (a logit for two classes) and ``half_width`` of the predictor's interval
          (None for two classes), for scans whose truth is known;
        * ``scans``, in ``sites`` one per scan and method that keeps the contract's scale: of
          :func:`measure_scan` and :func:`person_distances`;
        * ``left_out``, one per method and site, or target, that cannot be had: ``reason``.
    """
    data, grey = study.data, study.train.contract.grey
    at_home = data.site_scans(unit.train_sites[0], prepared.test[SCALED])
    found: dict[str, Rows] = {"predictions": [], "scans": [], "left_out": prepared.left_out}
    reasons: dict[str, str] = {}
    for name, prepared_data in prepared.sets.items():
        predictors, reasons = fit_predictors(study, unit, prepared_data, prepared.split)
        scans = prepared.test[name].tolist()
        for scan in counted_off(scans, len(scans), f"testing {name}", study.say):
            facts = unit.labels | {
                "scan": scan, "participant": str(data.table["subject"].iloc[scan]),
                "person": str(data.persons[scan]), "site": str(data.sites[scan]),
                "age": float(data.ages[scan]), "method": name,
            }  # fmt: skip
            image = prepared_data.volume(scan)
            predicted = predict_scan(study, predictors, scan, image[0])
            found["predictions"] += [facts | row for row in predicted]
            if unit.experiment == "sites" and name != NONE:
                measures = measure_scan(data.volume(scan), image[0], data.affine, grey)
                distances = person_distances(data, scan, image, at_home)
                found["scans"].append(facts | measures | distances)
    for target in (target for target in study.targets if target.name in reasons):
        n = int(np.isfinite(target.values[prepared.test[SCALED]]).sum())
        row = {"target": target.name, "n_scans": n, "reason": reasons[target.name]}
        found["left_out"].append(unit.labels | row)
    return found


def predict_scan(
    study: Study, predictors: dict[str, Predictor], scan: int, volume: np.ndarray
) -> Rows:
    """Predict the targets of a scan whose truth is known."""
    data, found = study.data, []
    for target in study.targets:
        predictor, truth = predictors.get(target.name), float(target.values[scan])
        if predictor is not None and np.isfinite(truth):
            value = predict_value(
                predictor.ensembles, volume, data.affine, data.box, study.train.contract.slice_mm
            )
            half_width = predictor.target.get("interval", {}).get("half_width")
            row = {"target": target.name, "truth": truth, "predicted": value}
            found.append(row | {"half_width": half_width})
    return found


def measure_scan(
    before: tuple[np.ndarray, np.ndarray], after: np.ndarray, affine: np.ndarray, grey: float
) -> dict[str, Any]:
    """Measure a scan as prepared by some method, against the same with its mask as preprocessed.

    Returns
    -------
    dict
        One value of each of :data:`FEATURES` (0 where it cannot be measured) and of
        :data:`ANATOMY` (tissue limits follow an intensity mapping, as the guard's do), the guard's
        measures, and ``quantiles`` (4, 99) of the brain as a whole and of each tissue.
    """
    (volume, mask), values = before, after[before[1]]
    changes = measure(volume, after, mask, affine)
    edges = edges_and_noise(after, mask, (abs(float(affine[0, 0])),) * 3, grey, 1.0)
    features = [*np.percentile(values, PERCENTILES), edges["noise"], edges["sharpness"]]
    tissue = np.digitize(values, (grey / 2, (1 + grey) / 2))
    groups = [values, *(values[tissue == k] for k in range(3))]
    quantiles = [np.quantile(g, QUANTILES) if g.size else 0 * QUANTILES for g in groups]
    return {
        **{name: float(value or 0) for name, value in zip(FEATURES, features, strict=True)},
        **{name: changes[f"harmonized_{name}"] for name in ANATOMY},
        **{name: value for name, value in changes.items() if not name.endswith("_ml")},
        "quantiles": np.round(quantiles, 5).tolist(),
    }


def person_distances(
    data: TrainingSet, scan: int, image: tuple[np.ndarray, np.ndarray], at_home: np.ndarray
) -> dict[str, float]:
    """Compare the image of a person seen at the reference too with that person's scan there.

    Parameters
    ----------
    data : TrainingSet
        All scans as preprocessed.
    scan : int
        Number of the scan.
    image : tuple of numpy.ndarray
        The scan as prepared by some method, and its mask.
    at_home : numpy.ndarray
        Numbers of the tested scans of the reference.

    Returns
    -------
    dict
        Mean absolute differences inside both masks from the person's first scan there
        (``within_person``), and from another person's (``between_persons``); empty where there is
        none of one, and for scans of the reference.
    """
    own = data.persons[at_home] == data.persons[scan]
    if scan in at_home or own.all() or not own.any():
        return {}
    others = at_home[~own]
    compared = {"within_person": at_home[own][0], "between_persons": others[scan % len(others)]}
    found = {}
    for name, number in compared.items():
        volume, mask = data.volume(int(number))
        found[name] = float(np.abs(image[0] - volume)[mask & image[1]].mean(dtype=float))
    return found
