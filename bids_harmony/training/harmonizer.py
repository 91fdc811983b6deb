"""Evaluation of harmonization on the scans of a training set.

The map of a site is not trained on that site: it follows from the site code
(:mod:`bids_harmony.sites`), and is evaluated on scans that were not used for calibration. The
module is ordered as follows: calibration, histogram matching as a baseline, known truth, metrics,
acceptance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from bids_harmony.config import CURVE
from bids_harmony.console import progress
from bids_harmony.models.networks import Box, MapNetwork, SiteMap, predict_value
from bids_harmony.qc.guard import limits
from bids_harmony.sites.calibration import estimate_ages
from bids_harmony.sites.code import Appearance, SiteCode, site_code
from bids_harmony.sites.statistics import coverage, site_offset
from bids_harmony.training.acquisition import GROUP, known_truth, summarize
from bids_harmony.training.data import (
    TEST,
    VALIDATION,
    TrainingRun,
    TrainingSet,
    make_folds,
)
from bids_harmony.training.predictors import Predictor
from bids_harmony.training.targets import N_BOOTSTRAP, figures, paired_ends

LOGGER = logging.getLogger(__name__)

#: Harmonization methods: intensity mapping alone with estimated ages, the full map with estimated
#: ages, and the full map with known ages.
MAPPED, HARMONIZED, KNOWN_AGES = "intensity_mapping", "harmonized", "harmonized_known_ages"
#: Number of quantiles for histogram matching, and maximum number of reference scans for them.
N_QUANTILES, MAX_HISTOGRAM = 256, 200
#: Suffix of a site name for scans that are evaluated but not used for calibration.
LEFT_OUT = ", not in --fit-filter"
#: Fraction of the mean site offset that a map must remove to be accepted.
LEAST_REMOVED = 0.5
#: Acquisitions that define the guard's limits. Blur and sharpening are excluded: an intensity
#: mapping does neither, and their effect on volumes is not due to the map. They are half as
#: strong as at real sites, so that a map that adds a tenth of the ventricles fails.
GUARDED, GUARD_STRENGTH = "all but blur", 0.5
#: Known truth: maximum number of scans, number of simulated acquisitions, and scans harmonized at
#: each.
MAX_KNOWN, N_ACQUISITIONS, PER_SITE = 60, 12, 4

#: Predicts brain age (years) of a scan, by its index, mapped with a site code. The last argument
#: skips the network (:func:`bids_harmony.sites.calibration.estimate_ages`).
Predict = Callable[[int, SiteCode, bool], float]


@dataclass(frozen=True)
class Calibrator:
    """Calibrates the sites of a training set.

    Attributes
    ----------
    data : TrainingSet
        All scans.
    appearance : Appearance
        Appearance model of the reference.
    network : MapNetwork or None
        Network applied after the intensity mapping.
    ensembles : sequence of sequence of torch.nn.Module or None
        Brain age ensembles that estimate ages; None if brain age is not predicted.
    slice_mm : tuple of float
        Range of slice heights in mm, from the contract.
    box : tuple, optional
        Rows and columns that the networks use; those of the data if None.
    known : dict
        Cache of predicted ages.
    """

    data: TrainingSet
    appearance: Appearance
    network: MapNetwork | None
    ensembles: Sequence[Sequence[nn.Module]] | None
    slice_mm: tuple[float, float]
    box: Box | None = None
    known: dict[Any, float] = field(default_factory=dict)

    def predict_age(self, scan: int, code: SiteCode, spare: bool = False) -> float:
        """Predict brain age from every fourth slice, for calibration with unknown ages.

        Predictions are cached, because calibrations with and without the network share most of
        them.
        """
        spare, data, box = spare or self.network is None, self.data, self.box or self.data.box
        key = scan, code.shift.tobytes(), code.age, code.n, spare
        if key not in self.known:
            follows = None if spare else self.network
            volume = SiteMap.of(code, self.appearance, follows, box)(data.volume(scan)[0])
            self.known[key] = predict_value(
                self.ensembles or (), volume, data.affine, box, self.slice_mm, step=4
            )
        return self.known[key]

    def methods(self) -> dict[str, tuple[Predict | None, MapNetwork | None]]:
        """Return the harmonization methods to compare.

        Returns
        -------
        dict
            For each method, the age predictor (None to use known ages) and the network applied
            after the intensity mapping. Without a network, the full map is the intensity mapping,
            which is then not a separate method.
        """
        ages: Predict | None = None if self.ensembles is None else self.predict_age
        spared = ages and (lambda scan, code, _: self.predict_age(scan, code, spare=True))
        found = {} if self.network is None else {MAPPED: (spared, None)}
        return found | {HARMONIZED: (ages, self.network), KNOWN_AGES: (None, self.network)}

    def code(self, scans: np.ndarray, predict: Predict | None) -> SiteCode:
        """Estimate a site code from scans of a site.

        Parameters
        ----------
        scans : numpy.ndarray
            Indices of the calibration scans.
        predict : callable or None
            Age predictor, which replaces even known ages; None uses known ages.
        """
        known = self.data.ages[scans] if predict is None else np.full(len(scans), np.nan)
        ages = self.filled_ages(scans, known, predict)
        used, ages = scans[~np.isnan(ages)], ages[~np.isnan(ages)]
        return site_code(
            self.data.descriptors[used], ages, self.data.persons[used], self.appearance
        )

    def filled_ages(
        self, scans: np.ndarray, ages: np.ndarray, predict: Predict | None
    ) -> np.ndarray:
        """Estimate unknown ages of a site's scans (:func:`estimate_ages`)."""
        by_number = predict and (lambda i, *how: predict(int(scans[i]), *how))
        descriptors, persons = self.data.descriptors[scans], self.data.persons[scans]
        return estimate_ages(descriptors, ages, persons, self.appearance, by_number)

    def cross_codes(
        self,
        scans: np.ndarray,
        among: np.ndarray,
        predict: Predict | None,
        n_folds: int,
        seed: int,
    ) -> dict[int, SiteCode]:
        """Estimate cross-validated site codes: each scan's from other persons of the site.

        Parameters
        ----------
        scans : numpy.ndarray
            Indices of the scans of one site.
        among : numpy.ndarray
            Indices of the scans allowed for calibration.
        predict : callable or None
            Age predictor, see :meth:`code`.
        n_folds : int
            Number of folds, by person.
        seed : int
            Random seed of the folds.

        Returns
        -------
        dict of int to SiteCode
            Site code of each scan index, without scans for which there is no other person to
            calibrate on.
        """
        persons = self.data.persons
        n_folds = min(n_folds, len(np.unique(persons[scans])))
        folds = make_folds(self.data, scans, n_folds, np.random.default_rng(seed))
        found: dict[int, SiteCode] = {}
        for fold in range(n_folds):
            tested = scans[folds[scans] == fold]
            others = among[~np.isin(persons[among], persons[tested])]
            if len(others):
                found |= dict.fromkeys(tested.tolist(), self.code(others, predict))
        return found


def mean_quantiles(data: TrainingSet, scans: np.ndarray) -> np.ndarray:
    """Return the mean intensity quantiles of brains, for :func:`match_histogram`.

    Returns
    -------
    numpy.ndarray
        (:data:`N_QUANTILES`,) intensities.
    """
    levels = np.linspace(0, 1, N_QUANTILES)
    each = [np.quantile(i[m], levels) for i, m in map(data.stack, scans)]
    return np.asarray(np.mean(each, axis=0))


def match_histogram(volume: np.ndarray, mask: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Match the intensity histogram of a scan to the reference, as a baseline.

    Parameters
    ----------
    volume, mask : numpy.ndarray
        Intensities and boolean mask, of any shape.
    quantiles : numpy.ndarray
        Output of :func:`mean_quantiles` for the reference.

    Returns
    -------
    numpy.ndarray
        float32 volume of the same shape, background 0.
    """
    out = np.zeros(volume.shape, np.float32)
    own = np.quantile(volume[mask], np.linspace(0, 1, len(quantiles)))
    out[mask] = np.interp(volume[mask], own, quantiles)
    return out


def known_truth_figures(
    run: TrainingRun, appearance: Appearance, networks: Mapping[str, MapNetwork | None]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Compute the guard's limits, and evaluate maps on simulated acquisitions.

    Returns
    -------
    guards : dict of str to dict
        ``limits`` and ``n`` of each map; empty if the reference has too few persons.
    figures : dict of str to list of dict
        Output of :func:`bids_harmony.training.acquisition.summarize` for each map.
    """
    # Use validation scans if there are enough, because the networks were not trained on them.
    data, options, enough = run.data, run.options, GROUP + PER_SITE
    chosen = run.fitted[run.split[run.fitted] == VALIDATION]
    chosen = chosen if len(np.unique(data.persons[chosen])) >= enough else run.fitted
    if len(np.unique(data.persons[chosen])) < enough:
        return {}, {name: [] for name in networks}
    measured = partial(
        known_truth, data, chosen[:MAX_KNOWN], appearance, networks,
        sites=1 if options.fast_dev_run else N_ACQUISITIONS, per_site=PER_SITE, seed=options.seed,
    )  # fmt: skip
    rows = measured(kinds=("all", GUARDED, "intensity mapping")).groupby("map")
    guarded = measured(kinds=(GUARDED,), strength=GUARD_STRENGTH).groupby("map")
    return (
        {
            str(name): {"limits": limits(part.to_dict("records")), "n": len(part)}  # type: ignore[arg-type]
            for name, part in guarded
        },
        {str(name): summarize(part, options.seed) for name, part in rows},
    )


def removed(rows: list[dict[str, Any]]) -> float:
    """Return the fraction of the distance to the original that a map removes.

    0 if it was not measured.
    """
    wanted = ("all", "removed")
    return next((float(r["value"]) for r in rows if (r["kind"], r["figure"]) == wanted), 0.0)


def measure(
    run: TrainingRun,
    seen: np.ndarray,
    predictors: dict[str, Predictor],
    appearance: Appearance,
    network: MapNetwork | None,
) -> dict[str, Any]:
    """Evaluate predictions at every site, with and without harmonization.

    The scans are held out: test scans of the reference, and scans of other sites. Persons who are
    also at the reference, or in ``seen``, are excluded at other sites. Each scan is mapped with a
    code of other persons of its site
    (:func:`bids_harmony.training.harmonizer.Calibrator.cross_codes`).

    Parameters
    ----------
    run : TrainingRun
        Training run.
    seen : numpy.ndarray
        (scans,) whether the map was trained on a scan.
    predictors : dict of str to Predictor
        Predictors by target.
    appearance : Appearance
        Appearance model of the reference.
    network : MapNetwork or None
        Network applied after the intensity mapping.

    Returns
    -------
    dict
        For each target, ``folds``, the cross-validated metrics at the reference, and ``sites``:
        for each site and method, the metrics of :func:`bids_harmony.training.targets.figures` and,
        for brain age, of :func:`bids_harmony.sites.statistics.site_offset`. The methods are
        ``none``; ``histogram_matching``; ``intensity_mapping`` (harmonization without its network,
        if it has one) and ``harmonized``, both with estimated ages; and ``harmonized_known_ages``.
    """
    data, split, fit, options = run.data, run.split, run.fit, run.options
    at_home, slice_mm = data.sites == run.reference, options.contract.slice_mm
    fitted = np.flatnonzero(at_home & (split != TEST))
    known = np.concatenate([data.persons[fitted], data.persons[seen]])
    foreign = ~at_home & ~np.isin(data.persons, known)
    tested = np.flatnonzero((at_home & (split == TEST)) | foreign)
    quantiles = mean_quantiles(data, fitted[:MAX_HISTOGRAM])
    ensembles = predictors["brain_age"].ensembles if appearance.line is not None else None
    calibrator = Calibrator(data, appearance, network, ensembles, slice_mm)
    methods = calibrator.methods()
    rows = []
    for site in np.unique(data.sites[tested]).tolist():
        here = data.site_scans(site, tested)
        among = fitted if site == run.reference else here
        among = among[fit[among]] if fit[among].any() else among
        codes = {
            name: calibrator.cross_codes(here, among, ages, options.folds, options.seed)
            for name, (ages, _) in methods.items()
        }
        for scan in progress(here.tolist(), f"measuring {site}"):
            volume, mask = data.volume(scan)
            matched = match_histogram(volume, mask, quantiles)
            images = {"none": volume, "histogram_matching": matched}
            for name, (_, follows) in methods.items():
                if scan in codes[name]:
                    site_map = SiteMap.of(codes[name][scan], appearance, follows, data.box)
                    images[name] = site_map(volume)
            measured_as = site if fit[scan] else f"{site}{LEFT_OUT}"
            for name, image in images.items():
                for target, predictor in predictors.items():
                    value = predict_value(
                        predictor.ensembles, image, data.affine, data.box, slice_mm
                    )
                    rows.append((measured_as, name, scan, target, value))
    table = pd.DataFrame(rows, columns=["site", "method", "scan", "target", "predicted"])
    return site_metrics(table, run, predictors)


def site_metrics(
    rows: pd.DataFrame, run: TrainingRun, predictors: dict[str, Predictor]
) -> dict[str, Any]:
    """Compute the metrics of :func:`measure` from predictions.

    Parameters
    ----------
    rows : pandas.DataFrame
        Columns ``site``, ``method``, ``scan``, ``target`` and ``predicted``.
    run : TrainingRun
        Training run.
    predictors : dict of str to Predictor
        Predictors by target.
    """
    metrics: dict[str, Any] = {}
    for name, predictor in predictors.items():
        metrics[name] = dict(predictor.metrics)
        if predictor.truth is None or rows.empty:
            continue
        sites: dict[str, Any] = {}
        found = rows[rows["target"] == name].assign(seed=0)
        found["truth"] = predictor.truth[found["scan"]]
        found["person"] = run.data.persons[found["scan"]]
        found = found[np.isfinite(found["truth"])]
        for (site, method), part in found.groupby(["site", "method"], sort=False):
            row = _figures_of(part, predictor, run.options.seed)
            sites.setdefault(str(site), {})[str(method)] = row
            text = ", ".join(f"{k} {v}" for k, v in row.items() if not k.endswith("_95"))
            LOGGER.info(f"{name}, {site}, {method}: {text}")
        metrics[name]["sites"] = sites
        columns = found[["site", "method", "truth", "predicted"]].round(2)
        metrics[name]["predictions"] = columns.to_numpy().tolist()
    return metrics


def _figures_of(part: pd.DataFrame, predictor: Predictor, seed: int) -> dict[str, Any]:
    """Compute metrics of one target at one site."""
    predicted, truth, persons = (part[c].to_numpy() for c in ("predicted", "truth", "person"))
    row = figures(predicted, truth, predictor.binary, seed, persons)
    if (interval := predictor.target.get("interval")) is not None:
        ends = coverage(np.abs(predicted - truth) <= interval["half_width"], persons)
        names = ("coverage", "coverage_low", "coverage_high")
        row |= paired_ends(dict(zip(names, ends, strict=True)))
    if predictor.unseen is not None and not predictor.binary:
        row |= paired_ends(site_offset(part, predictor.unseen, N_BOOTSTRAP, seed))
    return row


def accept(
    kind: str, measured: Callable[[str], dict[str, Any]]
) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """Evaluate a map, and drop its network if only the intensity mapping is accepted.

    Parameters
    ----------
    kind : str
        Kind of the map to evaluate.
    measured : callable
        Function that returns the output of :func:`measure` for a kind of map.

    Returns
    -------
    kind : str
        Kind of the map to use.
    metrics, accepted : dict
        Its metrics, and the output of :func:`acceptance`.
    left_out : dict or None
        ``kind``, ``acceptance`` and ``sites`` (brain age metrics) of a rejected map.
    """
    metrics = measured(kind)
    sites = _brain_ages(metrics)
    accepted = acceptance(sites)
    if kind == CURVE or accepted["passed"] is not False or not acceptance(sites, MAPPED)["passed"]:
        return kind, metrics, accepted, None
    LOGGER.warning(f"{accepted['text']} The bundle has the intensity mapping alone.")
    metrics = measured(CURVE)
    left_out = {"kind": kind, "acceptance": accepted, "sites": sites}
    return CURVE, metrics, acceptance(_brain_ages(metrics)), left_out


def _brain_ages(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return brain age metrics by site and method, without filtered-out scans."""
    sites = metrics.get("brain_age", {}).get("sites", {})
    return {site: found for site, found in sites.items() if not site.endswith(LEFT_OUT)}


def acceptance(
    sites: Mapping[str, Mapping[str, Mapping[str, Any]]], method: str = "harmonized"
) -> dict[str, Any]:
    """Check whether a map removes site offsets without adding new ones.

    A map passes if it removes at least :data:`LEAST_REMOVED` of the mean absolute offset of sites
    with an offset, and causes none at the other sites.

    Parameters
    ----------
    sites : mapping
        Metrics by site and method, with ``offset`` and ``offset_95``, of scans not used for
        calibration.
    method : str
        Method to compare with ``none``.

    Returns
    -------
    dict
        ``passed`` (None if no site can be tested); ``removed``, the fraction of the mean absolute
        offset removed at sites with a raw offset whose interval excludes zero (None if there are
        no such sites); ``moved`` and ``still``, the names of the sites with and without a raw
        offset; and ``text``, a one-sentence summary.
    """
    tested = {
        site: (found["none"], found[method])
        for site, found in sites.items()
        if {"none", method} <= found.keys() and found["none"].get("offset_95") is not None
    }
    moved = [site for site, (raw, _) in tested.items() if not _holds_zero(raw)]
    still = sorted(set(tested) - set(moved))
    disturbed = [site for site in still if not _holds_zero(tested[site][1])]
    removed = None
    text = "The map could not be tested: a site offset needs brain ages of three persons"
    if moved:
        offsets = np.array([[abs(found["offset"]) for found in tested[site]] for site in moved])
        before, after = offsets.mean(axis=0).tolist()
        removed = round(1 - after / before, 3)
        names = ", ".join(moved)
        text = f"The map removes {100 * removed:.0f} % of the mean site offset at {names}"
    elif tested:
        text = "No site differs from the reference by more than chance"
    text += f", and adds one at {', '.join(disturbed)}." if disturbed else "."
    passed = not disturbed and (removed is None or removed >= LEAST_REMOVED) if tested else None
    return {"passed": passed, "removed": removed, "moved": moved, "still": still, "text": text}


def _holds_zero(found: Mapping[str, Any]) -> bool:
    interval = found["offset_95"]
    return interval is None or interval[0] <= 0 <= interval[1]
