"""Train and test one unit of an evaluation.

Persons are split into folds once per random seed. A unit trains predictors and calibrates sites on
all folds except one and tests on that one. So results never rest on scans, or on other scans of
the same persons, that anything in the unit was fitted to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_harmony.bids.dataset import counted
from bids_harmony.bids.filters import select_scans
from bids_harmony.config import VALIDATION_FRACTION, EvaluateOptions, TrainOptions
from bids_harmony.console import progress
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

#: Volumes whose slope with age is compared before and after harmonization.
ANATOMY = [f"{tissue}_ml" for tissue in TISSUES]
#: Image features of the site probe: brightness, contrast, noise and sharpness.
PERCENTILES = (5, 25, 50, 75, 95)
FEATURES = [*(f"quantile_{q}" for q in PERCENTILES), "noise", "sharpness"]
QUANTILES = np.linspace(0.01, 0.99, 99)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Unit:
    """One training of networks and predictors, with the sites to test on.

    Attributes
    ----------
    experiment : str
        One of :data:`bids_harmony.config.EXPERIMENTS`.
    seed : int
        Random seed for weights and folds.
    fold : int
        Index of the held-out fold.
    train_sites : tuple of str
        Sites that predictors are trained on; the first is the reference site.
    test_sites : tuple of str
        Sites to test on.
    n_source : int or None
        Number of persons that the test site is calibrated on; None: all that are not held out.
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
        """Fields of the unit as table columns."""
        fields = asdict(self) | {"train_sites": "+".join(self.train_sites)}
        return {name: value for name, value in fields.items() if name != "test_sites"}


@dataclass(frozen=True)
class Study:
    """Data and options shared by all units.

    Attributes
    ----------
    data : TrainingSet
        All scans.
    targets : sequence of Target
        Prediction targets.
    train : TrainOptions
        Training options of networks and predictors.
    options : EvaluateOptions
        Experiments, folds and repetitions.
    work_dir : pathlib.Path
        Cache of trained networks and prepared scans, so that an interrupted evaluation continues.
    unharmonized : TrainingSet or None
        All scans without harmonization; None if they are not available.
    """

    data: TrainingSet
    targets: Sequence[Target]
    train: TrainOptions
    options: EvaluateOptions
    work_dir: Path
    unharmonized: TrainingSet | None = None

    @property
    def fit(self) -> np.ndarray:
        """Mask (scans,) from ``--fit-filter`` for fitting maps and continuous predictors."""
        return select_scans(self.data.table, self.train.fit_filter)


@dataclass(frozen=True)
class Prepared:
    """Scans of a unit, prepared by every method.

    Attributes
    ----------
    sets : dict of str to TrainingSet
        Prepared scans by method; methods that are not available are missing.
    test : dict of str to numpy.ndarray
        Indices of the test scans by method, from the sites that the method could be fitted to.
    split : numpy.ndarray
        (scans,) ``train``, ``validation`` or ``test``.
    left_out : list of dict
        Methods not available at a test site: ``method``, ``test_site``, ``n_scans``, ``reason``.
    """

    sets: dict[str, TrainingSet]
    test: dict[str, np.ndarray]
    split: np.ndarray
    left_out: Rows


def subject_folds(
    data: TrainingSet, n_folds: int, seed: int, targets: Sequence[Target] = ()
) -> np.ndarray:
    """Assign every scan to a fold, by person and stratified by site, class and age.

    Parameters
    ----------
    data : TrainingSet
        All scans; a person scanned at two sites is in one fold.
    n_folds : int
        Number of folds.
    seed : int
        Random seed.
    targets : sequence of Target
        Targets; folds are stratified by the classes of binary ones.

    Returns
    -------
    numpy.ndarray
        (scans,) fold index from 0.
    """
    classes = [np.nan_to_num(target.values, nan=-1) for target in targets if target.binary]
    strata = ["|".join(map(str, key)) for key in zip(data.sites, *classes, strict=True)]
    rng = np.random.default_rng(seed)
    return make_folds(data, np.arange(len(data)), n_folds, rng, np.array(strata))


def split_of(
    data: TrainingSet, unit: Unit, folds: np.ndarray, validation: float
) -> tuple[np.ndarray, np.ndarray]:
    """Split the scans of a unit by person.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    unit : Unit
        Unit to split the scans for.
    folds : numpy.ndarray
        (scans,) fold index, as returned by :func:`subject_folds`.
    validation : float
        Fraction of the persons in the validation set, 0 to 1.

    Returns
    -------
    split : numpy.ndarray
        (scans,) ``train``, ``validation`` or ``test``.
    seen : numpy.ndarray
        The same for calibration: persons of the test sites beyond ``unit.n_source`` are also
        ``test``.
    """
    rng = np.random.default_rng([unit.seed, unit.fold])
    split = split_subjects(data, validation, 0.0, rng)
    split[folds == unit.fold] = TEST
    for site in np.unique(data.sites):
        # If a site has no training scan left, train on its validation scans; a checkpoint can be
        # chosen without them.
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
    """Fit every method to scans that are not held out, and prepare the unit's scans with it."""
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
    # Predictors are trained on unchanged reference scans; test scans and scans of other training
    # sites are prepared.
    elsewhere = np.union1d(test, np.setdiff1d(trained, at_reference))
    for name, method in fitted_methods.items():
        covered = np.isin(data.sites, list(method.sites))
        if covered.any():
            scans = elsewhere[covered[elsewhere]].tolist()
            sets[name] = methods.prepare(data, scans, method, study.work_dir)
            tested[name] = test[covered[test]]
        for site, n in Counter(data.sites[test[~covered[test]]].tolist()).items():
            row = {"method": name, "test_site": site, "n_scans": n, "reason": method.reason}
            left_out.append(unit.labels | row)
    return Prepared(sets, tested, split, left_out)


def calibrations(
    study: Study, unit: Unit, split: np.ndarray, among: np.ndarray
) -> dict[str, Method]:
    """Calibrate every site on scans that are not held out, with and without their ages.

    The map network that follows the intensity mapping is trained at the first training site, and
    so are the predictors that estimate unknown ages.

    Parameters
    ----------
    study : Study
        Data and options.
    unit : Unit
        Unit to calibrate for.
    split : numpy.ndarray
        (scans,) ``train``, ``validation`` or ``test``.
    among : numpy.ndarray
        Indices of the scans to calibrate on.

    Returns
    -------
    dict of str to Method
        Fitted methods by name. ``harmonized_known_ages`` is missing if brain age is not predicted
        or no age is known.
    """
    data, reference = study.data, unit.train_sites[0]
    at_reference = replace(unit, train_sites=(reference,))
    predictors, _ = fit_predictors(study, at_reference, data, split)
    train = replace(study.train, seed=unit.seed)
    run = TrainingRun(data, split, study.fit, reference, train, study.work_dir)
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

    Networks are cached by their training data. If the reference is the only training site, all
    methods that leave its scans unchanged share the same networks.

    Parameters
    ----------
    study : Study
        Data and options.
    unit : Unit
        Unit to train for.
    prepared : TrainingSet
        All scans, prepared by the method.
    split : numpy.ndarray
        (scans,) ``train``, ``validation`` or ``test``.

    Returns
    -------
    predictors : dict of str to Predictor
        Trained predictors by target name.
    reasons : dict of str to str
        Reasons, by target name, why a predictor could not be trained, such as too few persons of a
        class.
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
                    TrainingRun(joined, split, study.fit, reference, options, study.work_dir)
                )
            except UsageError as error:
                reasons[target.name] = error.cause
    return predictors, reasons


def measure_unit(study: Study, unit: Unit, prepared: Prepared) -> dict[str, Rows]:
    """Predict and measure the unit's test scans, prepared by every available method.

    Returns
    -------
    dict of str to list of dict
        Three lists of rows:

        * ``predictions``, one row per scan, target and method, if the true value is known:
          ``target``, ``truth``, ``predicted`` (a logit for binary targets) and ``half_width`` of
          the prediction interval (None for binary targets);
        * ``scans``, one row per scan and method except ``none``, in the experiment ``sites`` only:
          see :func:`measure_scan` and :func:`person_distances`;
        * ``left_out``, one row per method and test site, or target, that is not available:
          ``n_scans`` and ``reason``.

        All rows have the unit's fields; ``predictions`` and ``scans`` also have ``scan`` (index),
        ``participant``, ``person``, ``site``, ``age`` (years) and ``method``.
    """
    data, grey = study.data, study.train.contract.grey
    at_home = data.site_scans(unit.train_sites[0], prepared.test[SCALED])
    found: dict[str, Rows] = {"predictions": [], "scans": [], "left_out": prepared.left_out}
    reasons: dict[str, str] = {}
    for name, prepared_data in prepared.sets.items():
        predictors, reasons = fit_predictors(study, unit, prepared_data, prepared.split)
        scans = prepared.test[name].tolist()
        for scan in progress(scans, f"testing {name}"):
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
    """Predict the targets of a scan whose true value is known; return one row per target."""
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
    """Measure a prepared scan and its difference from the preprocessed scan.

    Parameters
    ----------
    before : tuple of numpy.ndarray
        Preprocessed volume and its boolean brain mask.
    after : numpy.ndarray
        Volume prepared by a method, of the same shape.
    affine : numpy.ndarray
        4 x 4 affine of the template grid.
    grey : float
        Scaled intensity of grey matter (CSF is 0 and white matter 1).

    Returns
    -------
    dict
        :data:`FEATURES` (0 if one cannot be measured), :data:`ANATOMY` (ml; tissue limits follow
        the intensity mapping, as in the guard), the guard's other measures
        (:func:`bids_harmony.qc.guard.measure`), and ``quantiles``, (4, 99), of the brain, CSF,
        grey and white matter.
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
    """Compare a travelling person's scan with reference scans of the same and another person.

    Parameters
    ----------
    data : TrainingSet
        All preprocessed scans.
    scan : int
        Index of the scan.
    image : tuple of numpy.ndarray
        Volume of the scan, prepared by a method, and its brain mask.
    at_home : numpy.ndarray
        Indices of the reference site's test scans.

    Returns
    -------
    dict
        Mean absolute differences inside both masks to the person's first reference scan
        (``within_person``) and to another person's (``between_persons``). Empty if either is
        missing, and for scans of the reference.
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
