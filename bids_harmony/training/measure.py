"""Figures of a bundle: on scans that nothing was fitted to, and where the truth is known.

The map of a site follows from its code (:mod:`bids_harmony.sites`). Nothing of it is trained on
the site; it is calibrated, and measured on scans that its calibration did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.console import counted_off
from bids_harmony.evaluation.statistics import coverage, site_offset
from bids_harmony.models.mapnetwork import MapNetwork, SiteMap
from bids_harmony.models.slices import predict_value
from bids_harmony.qc.guard import limits
from bids_harmony.sites.code import Appearance
from bids_harmony.training.acquisition import GROUP, known_truth, summarize
from bids_harmony.training.config import CURVE
from bids_harmony.training.data import TEST, VALIDATION, Say, TrainingRun
from bids_harmony.training.figures import N_BOOTSTRAP, figures, paired_ends
from bids_harmony.training.harmonizer import (
    MAPPED,
    MAX_HISTOGRAM,
    Calibrator,
    match_histogram,
    mean_quantiles,
)
from bids_harmony.training.predictors import Predictor

#: Ends the name of a site where scans are measured that may not calibrate it.
LEFT_OUT = ", not in --fit-filter"
#: Part of the mean site offset that a map has to remove.
LEAST_REMOVED = 0.5
#: The guard's limits come from acquisitions of this kind: an intensity mapping neither blurs nor
#: sharpens, and what a coarser acquisition does to volumes is not the map's. They are half as
#: strong as real sites': tenth parts of ventricles that appear have to fail.
JUDGED, GUARD_STRENGTH = "all but blur", 0.5
#: Known truth: scans at most, made-up acquisitions and scans that are harmonized at each.
MAX_KNOWN, N_ACQUISITIONS, PER_SITE = 60, 12, 4


def known_truth_figures(
    run: TrainingRun, appearance: Appearance, networks: Mapping[str, MapNetwork | None]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Set the guard's limits, and measure how much of made-up acquisitions each map removes.

    Returns
    -------
    guards : dict of str to dict
        By map, ``limits`` and ``n``; none with fewer reference persons than a group takes.
    figures : dict of str to list of dict
        By map, rows of :func:`bids_harmony.training.acquisition.summarize`.
    """
    # Validation scans where there are enough; the map was fitted to the others' mean alone.
    data, options, enough = run.data, run.options, GROUP + PER_SITE
    chosen = run.learnt[run.split[run.learnt] == VALIDATION]
    chosen = chosen if len(np.unique(data.persons[chosen])) >= enough else run.learnt
    if len(np.unique(data.persons[chosen])) < enough:
        return {}, {name: [] for name in networks}
    measured = partial(
        known_truth, data, chosen[:MAX_KNOWN], appearance, networks,
        sites=1 if options.fast_dev_run else N_ACQUISITIONS, per_site=PER_SITE, seed=options.seed,
    )  # fmt: skip
    rows = measured(kinds=("all", JUDGED, "intensity mapping")).groupby("map")
    judged = measured(kinds=(JUDGED,), strength=GUARD_STRENGTH).groupby("map")
    return (
        {
            str(name): {"limits": limits(part.to_dict("records")), "n": len(part)}  # type: ignore[arg-type]
            for name, part in judged
        },
        {str(name): summarize(part, options.seed) for name, part in rows},
    )


def removed(rows: list[dict[str, Any]]) -> float:
    """Share of the distance to the original that a map removes; 0 where it was not measured."""
    wanted = ("all", "removed")
    return next((float(r["value"]) for r in rows if (r["kind"], r["figure"]) == wanted), 0.0)


def measure(
    run: TrainingRun,
    seen: np.ndarray,
    predictors: dict[str, Predictor],
    appearance: Appearance,
    network: MapNetwork | None,
) -> dict[str, Any]:
    """Measure predictions at every site, with and without harmonization.

    Test scans of the reference, and all scans of other sites but those of persons that the
    reference has, or that the map has ``seen``: nothing was fitted to any of them, and each is
    mapped as other persons of its site say
    (:func:`bids_harmony.training.harmonizer.Calibrator.cross_codes`).

    Returns
    -------
    dict
        By target ``folds``, figures of networks on the reference scans that they had not seen,
        and ``sites``: by site and method of preparing the scans the figures of
        :func:`bids_harmony.training.figures.figures` and, for brain age, those of
        :func:`bids_harmony.evaluation.offset.site_offset`. The methods are ``none``;
        ``histogram_matching``; ``intensity_mapping``, which is harmonization without its network
        where it has one, and ``harmonized``, both without the use of any age; and
        ``harmonized_known_ages``.
    """
    data, split, fit, options = run.data, run.split, run.fit, run.options
    at_home, slice_mm = data.sites == run.reference, options.contract.slice_mm
    learnt = np.flatnonzero(at_home & (split != TEST))
    known = np.concatenate([data.persons[learnt], data.persons[seen]])
    foreign = ~at_home & ~np.isin(data.persons, known)
    tested = np.flatnonzero((at_home & (split == TEST)) | foreign)
    quantiles = mean_quantiles(data, learnt[:MAX_HISTOGRAM])
    ensembles = predictors["brain_age"].ensembles if appearance.line is not None else None
    calibrator = Calibrator(data, appearance, network, ensembles, slice_mm)
    methods = calibrator.methods()
    rows = []
    for site in np.unique(data.sites[tested]).tolist():
        here = data.site_scans(site, tested)
        among = learnt if site == run.reference else here
        among = among[fit[among]] if fit[among].any() else among
        codes = {
            name: calibrator.cross_codes(here, among, ages, options.folds, options.seed)
            for name, (ages, _) in methods.items()
        }
        for scan in counted_off(here.tolist(), len(here), f"measuring {site}", run.say):
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
    """Turn predictions into the figures that :func:`measure` returns."""
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
            run.say(f"{name}, {site}, {method}: {text}")
        metrics[name]["sites"] = sites
        columns = found[["site", "method", "truth", "predicted"]].round(2)
        metrics[name]["predictions"] = columns.to_numpy().tolist()
    return metrics


def _figures_of(part: pd.DataFrame, predictor: Predictor, seed: int) -> dict[str, Any]:
    """Figures of the predictions of one target at one site."""
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
    kind: str, measured: Callable[[str], dict[str, Any]], say: Say
) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """Leave out a network that fails where the intensity mapping alone passes.

    Parameters
    ----------
    kind : str
        Of the map that is to be accepted.
    measured : callable
        Gives :func:`measure`'s figures with a map of some kind.
    say : callable
        Takes a line.

    Returns
    -------
    kind : str
        Of the map to be used.
    metrics, accepted : dict
        Its figures, and what :func:`acceptance` says of it.
    left_out : dict or None
        ``kind``, ``acceptance`` and ``sites``, the figures of brain age, of a map that failed.
    """
    metrics = measured(kind)
    sites = _brain_ages(metrics)
    accepted = acceptance(sites)
    if kind == CURVE or accepted["passed"] is not False or not acceptance(sites, MAPPED)["passed"]:
        return kind, metrics, accepted, None
    say(f"Warning: {accepted['text']} The bundle has the intensity mapping alone.")
    metrics = measured(CURVE)
    left_out = {"kind": kind, "acceptance": accepted, "sites": sites}
    return CURVE, metrics, acceptance(_brain_ages(metrics)), left_out


def _brain_ages(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Take figures of brain age by site and method, but for scans that may not calibrate."""
    sites = metrics.get("brain_age", {}).get("sites", {})
    return {site: found for site, found in sites.items() if not site.endswith(LEFT_OUT)}


def acceptance(
    sites: Mapping[str, Mapping[str, Mapping[str, Any]]], method: str = "harmonized"
) -> dict[str, Any]:
    """Tell whether a map removes what sites add, and leaves alone the sites that add nothing.

    Parameters
    ----------
    sites : mapping
        By site and method, figures with ``offset`` and ``offset_95``, of scans that no
        calibration saw.
    method : str
        The one to judge, against ``none``.

    Returns
    -------
    dict
        ``passed`` (None where no site can be judged), ``removed`` (part of the mean absolute
        offset of the sites whose raw offset differs from zero by more than its interval; None
        without such a site), ``moved`` and ``still``, the names of the sites that were judged by
        each rule, and ``text``, one sentence.
    """
    judged = {
        site: (found["none"], found[method])
        for site, found in sites.items()
        if {"none", method} <= found.keys() and found["none"].get("offset_95") is not None
    }
    moved = [site for site, (raw, _) in judged.items() if not _holds_zero(raw)]
    still = sorted(set(judged) - set(moved))
    disturbed = [site for site in still if not _holds_zero(judged[site][1])]
    removed = None
    text = "No site could be judged: offsets need brain ages of three persons"
    if moved:
        offsets = np.array([[abs(found["offset"]) for found in judged[site]] for site in moved])
        before, after = offsets.mean(axis=0).tolist()
        removed = round(1 - after / before, 3)
        names = ", ".join(moved)
        text = f"The map removes {100 * removed:.0f} % of the mean site offset at {names}"
    elif judged:
        text = "No site differs from the reference by more than chance"
    text += f", and makes one at {', '.join(disturbed)}." if disturbed else "."
    passed = not disturbed and (removed is None or removed >= LEAST_REMOVED) if judged else None
    return {"passed": passed, "removed": removed, "moved": moved, "still": still, "text": text}


def _holds_zero(found: Mapping[str, Any]) -> bool:
    interval = found["offset_95"]
    return interval is None or interval[0] <= 0 <= interval[1]
