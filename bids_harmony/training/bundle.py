"""The ``train`` level: train a model bundle from preprocessed derivatives.

``train_bundle`` reads from top to bottom: data, predictors, appearance of the reference, map,
metrics on held-out scans, bundle.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from bids_harmony import __version__
from bids_harmony.bids.dataset import counted
from bids_harmony.bids.filters import select_scans
from bids_harmony.config import CURVE, CYCLEGAN, VALIDATION_FRACTION, TrainOptions
from bids_harmony.console import set_up_logging
from bids_harmony.errors import EXIT_OK, NoInputError, UsageError
from bids_harmony.files import read_json_or_empty
from bids_harmony.models.bundle import Bundle, write_bundle
from bids_harmony.qc.reference import brain_histogram, mean_histogram, reference_statistics
from bids_harmony.reports.pages import card_html, model_card
from bids_harmony.training.cyclegan import train_maps
from bids_harmony.training.data import (
    TEST,
    TRAIN,
    VALIDATION,
    TrainingRun,
    TrainScan,
    open_training_set,
    read_scans,
    scan_table,
    split_subjects,
    splits_record,
    usable_scans,
)
from bids_harmony.training.harmonizer import (
    MAX_HISTOGRAM,
    accept,
    known_truth_figures,
    measure,
    removed,
)
from bids_harmony.training.predictors import Predictor, train_predictors

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

LOGGER = logging.getLogger(__name__)

#: Minimum number of reference scans, for a held-out part, folds and an age range.
MIN_REFERENCE = 12
INTENDED_USE = (
    "Research on T1-weighted scans of adults. Brain age and every probability describe how a "
    "scan looks to a network trained on few scans of one scanner; they are no diagnosis."
)


def run_train(config: RunConfig) -> int:
    """Train a bundle on the preprocessed scans of a dataset, in ``OUT/models/NAME``.

    Parameters
    ----------
    config : RunConfig
        Configuration; ``output_dir`` contains the derivatives of the participant level, and
        ``train`` the training options.

    Returns
    -------
    int
        Exit code 0.
    """
    scans, options = read_scans(config)
    set_up_logging(file=config.log_file)
    description = read_json_or_empty(config.bids_dir / "dataset_description.json")
    licence = str(description.get("License", ""))
    out = config.output_dir / "models" / config.train.model_name
    bundle = train_bundle(
        scans, out, options, work_dir=config.work_dir, licences=[licence] if licence else []
    )
    LOGGER.info(f"The bundle {bundle.name} {bundle.version} is in {out}.")
    return EXIT_OK


def train_bundle(
    scans: Sequence[TrainScan],
    out: Path,
    options: TrainOptions,
    *,
    work_dir: Path,
    licences: Sequence[str] = (),
) -> Bundle:
    """Train predictors and the map on the reference site, and write the bundle.

    Parameters
    ----------
    scans : sequence of TrainScan
        Preprocessed scans of the reference site, and of other sites to evaluate the map on.
    out : pathlib.Path
        Bundle folder.
    options : TrainOptions
        Training options.
    work_dir : pathlib.Path
        Cache folder of scans and networks.
    licences : sequence of str
        Licences of the scans, for the bundle's description.

    Returns
    -------
    Bundle
        The written bundle.

    Raises
    ------
    NoInputError
        If there is no preprocessed scan.
    UsageError
        If two participants share an image, the reference has too few scans, a target is unknown,
        or ``fit_filter`` is invalid.
    """
    options = options.shortened()
    scans = usable_scans(scans)
    # Reject invalid options before reading any scan.
    choose_reference([scan.site for scan in scans], options)
    select_scans(scan_table(scans), options.fit_filter)
    torch.set_num_threads(options.threads)

    # 1. Read the scans, and hold out persons of every site.
    data = open_training_set(scans, work_dir)
    split = split_subjects(
        data, VALIDATION_FRACTION, options.holdout, np.random.default_rng(options.seed)
    )
    fit = select_scans(data.table, options.fit_filter)
    reference = choose_reference(data.sites[fit].tolist(), options)
    counts = ", ".join(f"{(split == part).sum()} {part}" for part in (TRAIN, VALIDATION, TEST))
    n_persons = len(np.unique(data.persons))
    LOGGER.info(
        f"{len(data)} scans of {counted(n_persons, 'person')} ({counts}), {fit.sum()} selected by "
        f"--fit-filter; reference site {reference}"
    )

    # 2. Predictors, on the reference site alone.
    run = TrainingRun(data, split, fit, reference, options, work_dir)
    predictors = train_predictors(run, nprocs=options.threads)

    # 3. Appearance of the reference as a function of age.
    line = age_line(predictors)
    appearance = run.appearance(line)

    # 4. A network for what no intensity mapping corrects, used if it is closer to the known truth.
    train = split == TRAIN
    others = np.flatnonzero((data.sites != reference) & train & fit)
    ensembles = predictors["brain_age"].ensembles if line is not None else None
    maps = train_maps(run, others, appearance, ensembles)
    guards, known_truth = known_truth_figures(run, appearance, maps)
    nearer = removed(known_truth[options.map]) > removed(known_truth[CURVE])
    kind = options.map if nearer else CURVE

    # 5. Metrics on held-out scans, and acceptance of the map.
    seen = train & fit if kind == CYCLEGAN else np.zeros(len(data), bool)
    measured = partial(measure, run, seen, predictors, appearance)
    kind, metrics, accepted, left_out = accept(kind, lambda which: measured(maps[which]))
    level = logging.WARNING if accepted["passed"] is False else logging.INFO
    LOGGER.log(level, accepted["text"])

    # 6. The bundle.
    used, guard = maps[kind], guards.get(kind)
    networks = {name: each for p in predictors.values() for name, each in p.networks.items()}
    entries = {name: entry for p in predictors.values() for name, entry in p.entries.items()}
    if used is not None:
        networks["map"] = [used]
        entries["map"] = {"kind": "map", "options": {"channels": list(used.channels)}}
    for name, each in networks.items():
        entries[name]["files"] = [f"{name}-{k + 1}.safetensors" for k in range(len(each))]
    sites = np.unique(data.sites).tolist()
    info = {
        "name": options.model_name,
        "version": __version__,
        "reference_site": reference,
        "sites": {site: _describe_site(run, site) for site in sites},
        "contract": options.contract.to_dict(),
        "box": [list(side) for side in data.box],
        "networks": entries,
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
    of_site = {s: data.table["metrics"][(data.sites == s) & (split != TEST)] for s in sites}
    histogram = mean_histogram(
        [brain_histogram(*data.stack(scan)) for scan in run.fitted[:MAX_HISTOGRAM]]
    )
    card = model_card(info, guard)
    tables: dict[str, dict[str, Any] | str] = {
        "appearance.json": appearance.to_dict(),
        "qc_reference.json": {
            "metrics": reference_statistics(of_site), "histograms": {reference: histogram},
        },
        "splits.json": splits_record(data, split),
        **({} if guard is None else {"guard.json": guard}),
        "model_card.json": card,
        "model_card.html": card_html(card),
    }  # fmt: skip
    return write_bundle(out, info, networks, tables)


def choose_reference(sites: Sequence[str], options: TrainOptions) -> str:
    """Return the reference site, and check that it has enough scans.

    Parameters
    ----------
    sites : sequence of str
        Site of each scan that can be used for fitting.
    options : TrainOptions
        Training options. Without ``reference_site``, the site with most scans is chosen.

    Raises
    ------
    NoInputError
        If there are no scans.
    UsageError
        If the reference has fewer than :data:`MIN_REFERENCE` scans.
    """
    counts = Counter(sites)
    if not counts:
        raise NoInputError(
            "No preprocessed scan was found to train on.",
            "Run the participant level first, with the same BIDS_DIR and OUTPUT_DIR.",
        )
    reference = options.reference_site or max(sorted(counts), key=lambda site: counts[site])
    if counts[reference] < MIN_REFERENCE:
        raise UsageError(
            f"The reference site {reference} has {counted(counts[reference], 'scan')} for "
            f"training, fewer than {MIN_REFERENCE}.",
            "Choose another --reference-site. There are "
            f"{', '.join(f'{n} of {site}' for site, n in sorted(counts.items()))}.",
        )
    return reference


def age_line(predictors: dict[str, Predictor]) -> tuple[float, float] | None:
    """Return slope and intercept of the reference's cross-validated brain age on age.

    None if brain age is not predicted.
    """
    bias = predictors["brain_age"].target["age_bias"] if "brain_age" in predictors else None
    return None if bias is None else (1 + bias["slope"], bias["intercept"])


def _describe_site(run: TrainingRun, site: str) -> dict[str, Any]:
    """Count the used and held-out scans and persons of a site, with their ages."""
    data, here = run.data, run.data.sites == site
    used, held = here & run.fit & (run.split != TEST), here & (run.split == TEST)
    known = pd.Series(data.ages[used]).dropna()
    about = {
        "n": int(used.sum()),
        "n_persons": len(np.unique(data.persons[used])),
        "n_validation": int((used & (run.split == VALIDATION)).sum()),
        "n_held_out": int(held.sum()),
        "n_held_out_persons": len(np.unique(data.persons[held])),
    }
    if known.empty:
        return about | {"age": None, "age_mean": None}
    ages = [round(float(known.min()), 1), round(float(known.max()), 1)]
    return about | {"age": ages, "age_mean": round(float(known.mean()), 1)}
