"""The ``train`` level: from preprocessed derivatives to a model bundle.

``train_bundle`` reads from top to bottom: data, predictors, appearance of the reference, figures
on scans that nothing was fitted to, bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bids_harmony import __version__
from bids_harmony.bids import counted
from bids_harmony.console import counted_off
from bids_harmony.console import say as tell
from bids_harmony.errors import EXIT_OK, NoInputError, UsageError
from bids_harmony.models.bundle import Bundle, write_bundle
from bids_harmony.text import read_json_or_empty
from bids_harmony.training.config import CURVE, CYCLEGAN, TrainOptions, TrainScan
from bids_harmony.training.inputs import read_scans, usable_scans

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig
    from bids_harmony.models.mapnetwork import MapNetwork
    from bids_harmony.sites.code import Appearance
    from bids_harmony.training.data import TrainingSet
    from bids_harmony.training.predictors import Predictor

#: Below this a held-out part, folds and an age range cannot be had.
MIN_REFERENCE = 12
INTENDED_USE = (
    "Research on T1-weighted scans of adults. Brain age and every probability describe how a "
    "scan looks to a network trained on few scans of one scanner; they are no diagnosis."
)
#: Reference scans, at most, whose mean histogram is stored.
MAX_HISTOGRAM = 200
#: Ends the name of a site where scans are measured that may not calibrate it.
LEFT_OUT = ", not in --fit-filter"
#: The guard's limits come from acquisitions of this kind: an intensity mapping neither blurs nor
#: sharpens, and what a coarser acquisition does to volumes is not the map's.
JUDGED = "all but blur"
#: Known truth: scans at most, made-up acquisitions and scans that are harmonized at each.
MAX_KNOWN, N_ACQUISITIONS, PER_SITE = 60, 12, 4
#: The guard's come from acquisitions half as strong as real sites': tenth parts of ventricles that
#: appear have to fail.
GUARD_STRENGTH = 0.5

Say = Callable[[str], None]


def run_train(config: RunConfig) -> int:
    """Train a bundle on a dataset's preprocessed scans and write it to ``OUT/models/NAME``.

    Parameters
    ----------
    config : RunConfig
        ``output_dir`` holds the derivatives of the participant level; ``train`` the options.

    Returns
    -------
    int
        0.
    """
    scans, options = read_scans(config, tell)
    description = read_json_or_empty(config.bids_dir / "dataset_description.json")
    licence = str(description.get("License", ""))
    out = config.output_dir / "models" / config.train.model_name
    bundle = train_bundle(
        scans,
        out,
        options,
        work_dir=config.work_dir,
        licences=[licence] if licence else [],
    )
    tell(f"The bundle {bundle.name} {bundle.version} is in {out}.")
    return EXIT_OK


def train_bundle(
    scans: Sequence[TrainScan],
    out: Path,
    options: TrainOptions,
    *,
    work_dir: Path,
    licences: Sequence[str] = (),
    say: Say = tell,
) -> Bundle:
    """Train predictors on the reference site, learn how its scans look, and write the bundle.

    Parameters
    ----------
    scans : sequence of TrainScan
        Preprocessed scans of the reference site, and of others on which to see whether the map
        moves a site.
    out : pathlib.Path
        Folder of the bundle.
    options : TrainOptions
        What the user chose.
    work_dir : pathlib.Path
        Where scans and networks are cached.
    licences : sequence of str
        Under which the scans were given, for the bundle's description.
    say : callable
        Takes lines of progress.

    Raises
    ------
    NoInputError
        When there is no preprocessed scan.
    UsageError
        When two participants share an image, there are too few scans of the reference, a target
        is unknown, or ``fit_filter`` cannot be understood.
    """
    import torch

    from bids_harmony.fit_filter import select_scans
    from bids_harmony.qc.verdict import reference_statistics
    from bids_harmony.reports.modelcard import card_html, model_card
    from bids_harmony.sites.code import Appearance
    from bids_harmony.training.cache import open_training_set
    from bids_harmony.training.cyclegan import train_maps
    from bids_harmony.training.data import scan_table
    from bids_harmony.training.predictor import recipe_of
    from bids_harmony.training.predictors import train_predictors
    from bids_harmony.training.splits import (
        TEST,
        TRAIN,
        VALIDATION,
        split_subjects,
        splits_record,
    )
    from bids_harmony.training.storage import one_device

    options = options.shortened()
    scans = usable_scans(scans, say)
    # Before anything is read: what makes no sense is refused at once.
    choose_reference([scan.site for scan in scans], options)
    select_scans(scan_table(scans), options.fit_filter)
    torch.set_num_threads(options.threads)

    # 1. Read, and keep whole persons of every site out of fitting.
    data = open_training_set(scans, work_dir, say=say)
    split = split_subjects(
        data, options.validation, options.holdout, np.random.default_rng(options.seed)
    )
    fit = select_scans(data.table, options.fit_filter)
    reference = choose_reference(data.sites[fit].tolist(), options)
    counts = ", ".join(f"{(split == part).sum()} {part}" for part in (TRAIN, VALIDATION, TEST))
    n_persons = len(np.unique(data.persons))
    say(f"{len(data)} scans of {counted(n_persons, 'person')} ({counts}), {fit.sum()} to fit on; "
        f"reference {reference}")  # fmt: skip

    # 2. Predictors, on the reference site alone.
    predictors = train_predictors(
        data,
        split,
        fit,
        reference,
        options,
        recipe_of(options),
        work_dir,
        device=one_device(options.device),
        nprocs=options.threads,
        say=say,
    )

    # 3. How scans of the reference look at each age.
    learnt = np.flatnonzero((data.sites == reference) & (split != TEST) & fit)
    line = age_line(predictors)
    appearance = Appearance.fit(
        data.descriptors[learnt], data.ages[learnt], data.persons[learnt], line
    )

    # 4. What no intensity mapping mends: a network, used where it comes nearer to known truth.
    train = split == TRAIN
    others = np.flatnonzero((data.sites != reference) & train & fit)
    ensembles = predictors["brain_age"].ensembles if line is not None else None
    maps = train_maps(
        data, learnt[train[learnt]], others, appearance, ensembles, options, work_dir, say
    )
    guards, known_truth = known_truth_figures(data, split, learnt, appearance, maps, options)
    nearer = removed(known_truth[options.map]) > removed(known_truth[CURVE])
    kind = options.map if nearer else CURVE

    # 5. Figures on scans that nothing was fitted to, and whether the map moves the sites.
    seen = train & fit if kind == CYCLEGAN else np.zeros(len(data), bool)
    measured = partial(
        measure, data, split, fit, seen, reference, predictors, appearance, options, say
    )
    kind, metrics, accepted, left_out = accept(kind, lambda which: measured(maps[which]), say)
    say(f"{'' if accepted['passed'] in (True, None) else 'Warning: '}{accepted['text']}")

    # 6. The bundle.
    used, guard = maps[kind], guards.get(kind)
    networks = {name: each for p in predictors.values() for name, each in p.networks.items()}
    entries = {name: entry for p in predictors.values() for name, entry in p.entries.items()}
    if used is not None:
        networks["map"] = [used]
        entries["map"] = {"kind": "map", "options": {"channels": list(used.channels)}}
    info = {
        "name": options.model_name,
        "version": __version__,
        "reference_site": reference,
        "sites": {str(s): _describe_site(data, split, fit, str(s)) for s in np.unique(data.sites)},
        "contract": options.contract.to_dict(),
        "box": [list(side) for side in data.box],
        "networks": {
            name: {
                **entries[name],
                "files": [f"{name}-{k + 1}.safetensors" for k in range(len(members))],
            }
            for name, members in networks.items()
        },
        "map": {
            "kind": kind,
            "acceptance": accepted,
            "known_truth": known_truth,
            "left_out": left_out,
        },
        "targets": {
            name: {"networks": list(p.networks), **p.target} for name, p in predictors.items()
        },
        "metrics": metrics,
        "training": {"options": options.to_dict()},
        "licences": list(licences),
        "intended_use": INTENDED_USE,
    }
    card = model_card(info, guard)
    tables: dict[str, dict[str, Any] | str] = {
        "appearance.json": appearance.to_dict(),
        "qc_reference.json": {
            "metrics": reference_statistics(
                {
                    str(site): data.table["metrics"][(data.sites == site) & (split != TEST)]
                    for site in np.unique(data.sites)
                }
            ),
            "histograms": {reference: _histogram(data, learnt)},
        },
        "splits.json": splits_record(data, split),
        **({} if guard is None else {"guard.json": guard}),
        "model_card.json": card,
        "model_card.html": card_html(card),
    }
    return write_bundle(out, info, networks, tables)


def choose_reference(sites: Sequence[str], options: TrainOptions) -> str:
    """Check that training makes sense with scans of these sites, and name the reference.

    Parameters
    ----------
    sites : sequence of str
        Site of each scan that can be fitted on.
    options : TrainOptions
        What the user chose.
    """
    counts = Counter(sites)
    if not counts:
        raise NoInputError(
            "No preprocessed scan was found to train on.",
            "Run the participant level on the same folders first.",
        )
    reference = options.reference_site or max(sorted(counts), key=lambda site: counts[site])
    if counts[reference] < MIN_REFERENCE:
        raise UsageError(
            f"The reference site {reference} has {counted(counts[reference], 'scan')} to fit on.",
            f"Training needs {MIN_REFERENCE}; scans here: "
            f"{', '.join(f'{n} of {site}' for site, n in sorted(counts.items()))}.",
        )
    return reference


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
        Its figures, and what :func:`bids_harmony.training.harmonizer.acceptance` says of it.
    left_out : dict or None
        ``kind``, ``acceptance`` and ``sites``, the figures of brain age, of a map that failed.
    """
    from bids_harmony.training.harmonizer import MAPPED, acceptance

    metrics = measured(kind)
    sites = brain_ages(metrics)
    accepted = acceptance(sites)
    if kind == CURVE or accepted["passed"] is not False or not acceptance(sites, MAPPED)["passed"]:
        return kind, metrics, accepted, None
    say(f"Warning: {accepted['text']} The bundle has the intensity mapping alone.")
    metrics = measured(CURVE)
    left_out = {"kind": kind, "acceptance": accepted, "sites": sites}
    return CURVE, metrics, acceptance(brain_ages(metrics)), left_out


def brain_ages(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Take figures of brain age by site and way, but for scans that may not calibrate."""
    sites = metrics.get("brain_age", {}).get("sites", {})
    return {site: ways for site, ways in sites.items() if not site.endswith(LEFT_OUT)}


def age_line(predictors: dict[str, Predictor]) -> tuple[float, float] | None:
    """Slope and intercept of the reference's cross-validated brain age on age."""
    bias = predictors["brain_age"].target["age_bias"] if "brain_age" in predictors else None
    return None if bias is None else (1 + bias["slope"], bias["intercept"])


def measure(
    data: TrainingSet,
    split: np.ndarray,
    fit: np.ndarray,
    seen: np.ndarray,
    reference: str,
    predictors: dict[str, Predictor],
    appearance: Appearance,
    options: TrainOptions,
    say: Say,
    network: MapNetwork | None,
) -> dict[str, Any]:
    """Measure predictions at every site, with and without harmonization.

    Test scans of the reference, and all scans of other sites but those of persons that the
    reference has, or that the map has ``seen``: nothing was fitted to any of them, and each is
    mapped as other persons of its site say
    (:func:`bids_harmony.training.harmonizer.cross_calibrated`).

    Returns
    -------
    dict
        By target ``folds``, figures of networks on the reference scans that they had not seen,
        and ``sites``: by site and way of preparing the scans the figures of
        :func:`bids_harmony.training.figures.figures` and, for brain age, those of
        :func:`bids_harmony.evaluation.offset.site_offset`. The ways are ``none``;
        ``histogram_matching``; ``intensity_mapping``, which is harmonization without its network
        where it has one, and ``harmonized``, both without the use of any age; and
        ``harmonized_known_ages``.
    """
    from bids_harmony.models.apply import predict_value
    from bids_harmony.models.mapnetwork import SiteMap
    from bids_harmony.training.harmonizer import (
        cross_calibrated,
        match_histogram,
        mean_quantiles,
        ways_to_calibrate,
    )
    from bids_harmony.training.splits import TEST

    at_home = data.sites == reference
    learnt = np.flatnonzero(at_home & (split != TEST))
    known = np.concatenate([data.persons[learnt], data.persons[seen]])
    foreign = ~at_home & ~np.isin(data.persons, known)
    tested = np.flatnonzero((at_home & (split == TEST)) | foreign)
    quantiles = mean_quantiles(data, learnt[:MAX_HISTOGRAM])
    slice_mm = options.contract.slice_mm

    def predict(name: str, volume: np.ndarray) -> float:
        ensembles = predictors[name].ensembles
        return predict_value(ensembles, volume, data.affine, data.box, slice_mm)

    ensembles = predictors["brain_age"].ensembles if appearance.line is not None else None
    estimates = ways_to_calibrate(data, ensembles, slice_mm, appearance, network)
    rows = []
    for site in np.unique(data.sites[tested]).tolist():
        here = tested[data.sites[tested] == site]
        among = learnt if site == reference else here
        among = among[fit[among]] if fit[among].any() else among
        ways = {
            way: (
                cross_calibrated(data, here, among, appearance, ages, options.folds, options.seed),
                net,
            )
            for way, (ages, net) in estimates.items()
        }
        for scan in counted_off(here.tolist(), len(here), f"measuring {site}", say):
            volume, mask = data.volume(scan)
            images = {
                "none": volume,
                "histogram_matching": match_histogram(volume, mask, quantiles),
            }
            images |= {
                way: SiteMap.of(of_scan[scan], appearance, net, data.box)(volume)
                for way, (of_scan, net) in ways.items()
                if scan in of_scan
            }
            rows += [
                {
                    "site": site if fit[scan] else f"{site}{LEFT_OUT}",
                    "way": way, "scan": scan, "target": name,
                    "predicted": predict(name, image),
                }
                for way, image in images.items() for name in predictors
            ]  # fmt: skip
    return site_metrics(pd.DataFrame(rows), data, predictors, options.seed, say)


def known_truth_figures(
    data: TrainingSet,
    split: np.ndarray,
    learnt: np.ndarray,
    appearance: Appearance,
    networks: Mapping[str, MapNetwork | None],
    options: TrainOptions,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Set the guard's limits, and measure how much of made-up acquisitions each map removes.

    Returns
    -------
    guards : dict of str to dict
        By map, ``limits`` and ``n``; none with fewer reference persons than a group takes.
    figures : dict of str to list of dict
        By map, rows of :func:`bids_harmony.training.truth.summarize`.
    """
    from bids_harmony.qc.guard import limits
    from bids_harmony.training import truth
    from bids_harmony.training.splits import VALIDATION

    # Validation scans where there are enough; the map was fitted to the others' mean alone.
    few = truth.GROUP + PER_SITE
    chosen = learnt[split[learnt] == VALIDATION]
    chosen = chosen if len(np.unique(data.persons[chosen])) >= few else learnt
    if len(np.unique(data.persons[chosen])) < few:
        return {}, {name: [] for name in networks}
    deep = data.deep_grey(options.contract.resolution)
    scans = [
        truth.Scan(
            data.volume(i)[0], data.brain_mask(i), float(data.ages[i]), str(data.persons[i])
        )
        for i in chosen[:MAX_KNOWN].tolist()
    ]
    infer = truth.calibrated_maps(appearance, float(abs(data.affine[0, 0])), networks, data.box)
    settings: dict[str, Any] = {
        "sites": 1 if options.fast_dev_run else N_ACQUISITIONS,
        "per_site": PER_SITE,
        "seed": options.seed,
    }
    rows = truth.known_truth(
        scans, infer, data.affine, deep, kinds=("all", JUDGED, "intensity mapping"), **settings
    )
    judged = truth.known_truth(
        scans, infer, data.affine, deep, kinds=(JUDGED,), strength=GUARD_STRENGTH, **settings
    )
    return (
        {
            str(name): {"limits": limits(_records(part)), "n": len(part)}
            for name, part in judged.groupby("map")
        },
        {
            str(name): _records(truth.summarize(part, options.seed).round(4))
            for name, part in rows.groupby("map")
        },
    )


def removed(figures: Sequence[Mapping[str, Any]]) -> float:
    """Share of the distance to the original that a map removes; 0 where it was not measured."""
    shares = [
        row["value"] for row in figures if row["kind"] == "all" and row["figure"] == "removed"
    ]
    return float(shares[0]) if shares else 0.0


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def site_metrics(
    rows: pd.DataFrame,
    data: TrainingSet,
    predictors: dict[str, Predictor],
    seed: int,
    say: Say,
) -> dict[str, Any]:
    """Turn predictions into the figures that :func:`measure` returns."""
    from bids_harmony.evaluation.offset import site_offset
    from bids_harmony.evaluation.persons import coverage
    from bids_harmony.training.figures import N_BOOTSTRAP, figures

    metrics: dict[str, Any] = {}
    for name, predictor in predictors.items():
        metrics[name] = dict(predictor.metrics)
        if predictor.truth is None or rows.empty:
            continue
        sites: dict[str, Any] = {}
        found = rows[rows["target"] == name].assign(seed=0)
        found["truth"] = predictor.truth[found["scan"]]
        found["person"] = data.persons[found["scan"]]
        found = found[np.isfinite(found["truth"])]
        for (site, way), part in found.groupby(["site", "way"], sort=False):
            row = figures(
                part["predicted"].to_numpy(), part["truth"].to_numpy(), predictor.binary,
                np.random.default_rng(seed), part["person"].to_numpy(),
            )  # fmt: skip
            if (interval := predictor.target.get("interval")) is not None:
                inside = (part["predicted"] - part["truth"]).abs() <= interval["half_width"]
                found_in = coverage(inside.to_numpy(), part["person"].to_numpy())
                row["coverage"], *row["coverage_95"] = (round(v, 3) for v in found_in)
            if predictor.unseen is not None and not predictor.binary:
                offset = site_offset(part, predictor.unseen, N_BOOTSTRAP, seed)
                for figure in ("offset", "scatter"):
                    row[figure] = _rounded(offset[figure])
                    ends = [_rounded(offset[f"{figure}_{end}"]) for end in ("low", "high")]
                    row[f"{figure}_95"] = None if None in ends else ends
                row["in_reference_range"] = _rounded(offset["in_reference_range"])
            sites.setdefault(str(site), {})[str(way)] = row
            text = ", ".join(f"{k} {v}" for k, v in row.items() if not k.endswith("_95"))
            say(f"{name}, {site}, {way}: {text}")
        metrics[name]["sites"] = sites
        metrics[name]["predictions"] = [
            [str(r.site), str(r.way), round(r.truth, 2), round(r.predicted, 2)]
            for r in found.itertuples()
        ]
    return metrics


def _rounded(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None


def _histogram(data: TrainingSet, scans: np.ndarray) -> dict[str, list[float]]:
    from bids_harmony.qc.histogram import brain_histogram, mean_histogram

    return mean_histogram([brain_histogram(*data.stack(int(i))) for i in scans[:MAX_HISTOGRAM]])


def _describe_site(
    data: TrainingSet, split: np.ndarray, fit: np.ndarray, site: str
) -> dict[str, Any]:
    """Count the scans that a site gave, and those held out of everything."""
    from bids_harmony.training.splits import TEST, VALIDATION

    here = data.sites == site
    used = here & fit & (split != TEST)
    known = data.ages[used][~np.isnan(data.ages[used])]
    return {
        "n": int(used.sum()),
        "n_persons": len(np.unique(data.persons[used])),
        "n_validation": int((used & (split == VALIDATION)).sum()),
        "n_held_out": int((here & (split == TEST)).sum()),
        "n_held_out_persons": len(np.unique(data.persons[here & (split == TEST)])),
        "age": [round(float(known.min()), 1), round(float(known.max()), 1)]
        if len(known)
        else None,
        "age_mean": round(float(known.mean()), 1) if len(known) else None,
    }
