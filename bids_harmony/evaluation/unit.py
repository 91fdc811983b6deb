"""One unit: fit what it needs, then predict and measure the scans that nothing was fitted to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import skimage.metrics

from bids_harmony.bids.filters import select_scans
from bids_harmony.console import counted_off
from bids_harmony.errors import UsageError
from bids_harmony.evaluation import EvaluateOptions, methods
from bids_harmony.evaluation.experiments import Unit, split_of, subject_folds
from bids_harmony.evaluation.methods import COMBAT, MATCHED, NONE, SCALED, Method
from bids_harmony.models.networks import SiteMap
from bids_harmony.models.slices import predict_value
from bids_harmony.qc.guard import TISSUES, measure
from bids_harmony.qc.metrics import edges_and_noise
from bids_harmony.training import harmonizer
from bids_harmony.training.bundle import age_line
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.cyclegan import train_maps
from bids_harmony.training.data import TEST, TrainingRun, TrainingSet, locked
from bids_harmony.training.harmonizer import MAX_HISTOGRAM
from bids_harmony.training.predictors import Predictor, train_predictors
from bids_harmony.training.targets import Target

#: Volumes that biology is looked for in.
ANATOMY = [f"{tissue}_ml" for tissue in TISSUES]
#: Brightness, contrast, noise and sharpness, by which a classifier is to tell sites apart.
PERCENTILES = (5, 25, 50, 75, 95)
FEATURES = [*(f"quantile_{q}" for q in PERCENTILES), "noise", "sharpness"]
QUANTILES = np.linspace(0.01, 0.99, 99)
#: Images are compared on this range: their own 99.5th percentile would differ between pairs.
PAIR_RANGE = 1.5

Rows = list[dict[str, Any]]


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
        What cannot be had here: ``way``, ``test_site``, ``n_scans``, ``reason``.
    """

    sets: dict[str, TrainingSet]
    test: dict[str, np.ndarray]
    split: np.ndarray
    left_out: Rows


def prepare_unit(study: Study, unit: Unit) -> Prepared:
    """Fit every method on the scans that are not tested, and prepare the unit's scans by it."""
    data, reference = study.data, unit.train_sites[0]
    folds = subject_folds(data, study.options.cv_folds, unit.seed, study.targets)
    split, seen = split_of(data, unit, folds, study.train.validation)
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
            row = {"way": name, "test_site": site, "n_scans": n, "reason": method.reason}
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
    ways = calibrator.methods()
    if ensembles is None or np.isnan(data.ages[among]).all():
        del ways[harmonizer.KNOWN_AGES]
    found = {}
    for name, (ages, net) in ways.items():
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
    joined, reference = _joined(prepared, unit), unit.train_sites[0]
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


def _joined(data: TrainingSet, unit: Unit) -> TrainingSet:
    """Take a unit's training sites for one: that is where its predictors are trained."""
    first, *others = unit.train_sites
    sites = data.table["site"].replace(dict.fromkeys(others, first))
    return replace(data, table=data.table.assign(site=sites))


def measure_unit(study: Study, unit: Unit, prepared: Prepared) -> dict[str, Rows]:
    """Predict and measure the unit's test scans, prepared by every method that can be had.

    Returns
    -------
    dict of str to list of dict
        Rows with the unit's fields, ``scan`` (number), ``person``, ``site``, ``age`` and ``way``
        (the method), of

        * ``predictions``, one per scan, target and method: ``participant``, ``target``, ``truth``,
          ``predicted`` (a logit for two classes) and ``half_width`` of the predictor's interval
          (None for two classes), for scans whose truth is known;
        * ``scans``, in ``sites`` one per scan and method that keeps the contract's scale: of
          :func:`measure_scan`;
        * ``pairs``, in ``sites`` one per such scan of a person whom the reference has too: of
          :func:`compare_images`, with that person's first scan there as preprocessed. Where a
          person was scanned twice there, the two scans give the floor: ``way`` is ``rescan``;
        * ``left_out``, one per method and site, or target, that cannot be had: ``reason``.
    """
    data, home, grey = study.data, unit.train_sites[0], study.train.contract.grey
    found: dict[str, Rows] = {"predictions": [], "scans": [], "pairs": []}
    at_home = data.site_scans(home, prepared.test[SCALED])[::-1]
    first = dict(zip(data.persons[at_home], at_home.tolist(), strict=True))
    reasons: dict[str, str] = {}
    for name, prepared_data in prepared.sets.items():
        predictors, reasons = fit_predictors(study, unit, prepared_data, prepared.split)
        scans = prepared.test[name].tolist()
        for scan in counted_off(scans, len(scans), f"testing {name}", study.say):
            person, site = str(data.persons[scan]), str(data.sites[scan])
            subject, age = str(data.table["subject"].iloc[scan]), float(data.ages[scan])
            facts = unit.labels | {"scan": scan, "participant": subject, "person": person}
            facts |= {"site": site, "age": age, "way": name}
            image = prepared_data.volume(scan)
            predicted = _predict(study, predictors, scan, image[0])
            found["predictions"] += [facts | row for row in predicted]
            if unit.experiment != "sites" or name == NONE:
                continue
            measures = measure_scan(data.volume(scan), image[0], data.affine, grey)
            found["scans"].append(facts | measures)
            again = {"way": "rescan"} if site == home else {}
            if first.get(person, scan) != scan and (name == SCALED or not again):
                pair = compare_images(image, data.volume(first[person]))
                found["pairs"].append(facts | pair | again)
    found["left_out"] = prepared.left_out
    for target in (target for target in study.targets if target.name in reasons):
        n = int(np.isfinite(target.values[prepared.test[SCALED]]).sum())
        row = {"target": target.name, "n_scans": n, "reason": reasons[target.name]}
        found["left_out"].append(unit.labels | row)
    return found


def _predict(
    study: Study, predictors: dict[str, Predictor], scan: int, volume: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Predict the targets of a scan whose truth is known."""
    data, slice_mm = study.data, study.train.contract.slice_mm
    for target in study.targets:
        predictor, truth = predictors.get(target.name), float(target.values[scan])
        if predictor is not None and np.isfinite(truth):
            ensembles = predictor.ensembles
            yield {
                "target": target.name,
                "truth": truth,
                "predicted": predict_value(ensembles, volume, data.affine, data.box, slice_mm),
                "half_width": predictor.target.get("interval", {}).get("half_width"),
            }


def measure_scan(
    before: tuple[np.ndarray, np.ndarray], after: np.ndarray, affine: np.ndarray, grey: float
) -> dict[str, Any]:
    """Measure a scan as prepared by some method, against the same with its mask as preprocessed.

    Returns
    -------
    dict
        One value of each of :data:`FEATURES` and of :data:`ANATOMY` (tissue limits follow an
        intensity mapping, as the guard's do), the guard's measures, and ``quantiles`` (4, 99).
    """
    volume, mask = before
    changes = measure(volume, after, mask, affine)
    return {
        **appearance_features(after, mask, abs(float(affine[0, 0])), grey),
        **{name: changes[f"harmonized_{name}"] for name in ANATOMY},
        **{name: value for name, value in changes.items() if not name.endswith("_ml")},
        "quantiles": np.round(tissue_quantiles(after, mask, grey), 5).tolist(),
    }


def compare_images(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Mean absolute difference, PSNR (dB) and SSIM of two scans with masks, inside both masks."""
    (a, mask_a), (b, mask_b) = one, other
    mask = mask_a & mask_b
    metrics: Any = skimage.metrics  # not typed
    alike = metrics.structural_similarity(a, b, data_range=PAIR_RANGE, full=True)[1]
    psnr = metrics.peak_signal_noise_ratio(a[mask], b[mask], data_range=PAIR_RANGE)
    difference = np.abs(a - b)[mask].mean(dtype=float)
    return {"mae": float(difference), "psnr": float(psnr), "ssim": float(alike[mask].mean())}


def appearance_features(
    volume: np.ndarray, mask: np.ndarray, zoom_mm: float, grey: float
) -> dict[str, float]:
    """Measure :data:`FEATURES` of a normalized volume; what cannot be measured is 0."""
    edges = edges_and_noise(volume, mask, (zoom_mm,) * 3, grey, 1.0)
    found = [*np.percentile(volume[mask], PERCENTILES), edges["noise"], edges["sharpness"]]
    return {name: float(value or 0) for name, value in zip(FEATURES, found, strict=True)}


def tissue_quantiles(volume: np.ndarray, mask: np.ndarray, grey: float) -> np.ndarray:
    """Quantiles of the brain's intensities, as a whole and in each tissue: (4, 99)."""
    values = volume[mask]
    parts = np.digitize(values, (grey / 2, (1 + grey) / 2))
    groups = [values, *(values[parts == k] for k in range(3))]
    return np.array([np.quantile(g, QUANTILES) if g.size else 0 * QUANTILES for g in groups])
