"""The ``train`` level: from preprocessed derivatives to a model bundle.

``train_bundle`` reads from top to bottom: split, predictors, harmonizer, figures, bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_harmony.bids import counted, find_scans
from bids_harmony.console import say as tell
from bids_harmony.errors import EXIT_OK, NoInputError, UsageError
from bids_harmony.models.bundle import Bundle, load_bundle
from bids_harmony.text import read_json_or_empty
from bids_harmony.training.config import TrainOptions, TrainScan
from bids_harmony.training.inputs import (
    common_contract,
    find_training_scans,
    read_scans,
    usable_scans,
)

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig
    from bids_harmony.training.predictors import Predictor

#: Below this a held-out part, folds and an age range cannot be had.
MIN_REFERENCE, MIN_SOURCE = 12, 2


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
    if config.train.add_site:
        return run_add_site(config, config.train.add_site)
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
        say=tell,
    )
    tell(f"The bundle {bundle.name} {bundle.version} is in {out}.")
    return EXIT_OK


def run_add_site(config: RunConfig, site: str) -> int:
    """Fit one more site to the bundle in use and write the result to ``OUT/models/NAME``.

    Parameters
    ----------
    config : RunConfig
        As of :func:`run_train`; the scans must be preprocessed as ``bundle`` was trained.
    site : str
        Name of the site.

    Returns
    -------
    int
        0.
    """
    from bids_harmony.training.addsite import STEPS, add_site
    from bids_harmony.training.cache import open_training_set

    if config.bundle == "none":
        raise UsageError("There is no bundle to add a site to.", "Give --bundle its folder.")
    bundle = load_bundle(None if config.bundle == "default" else Path(config.bundle))
    options = replace(config.train, contract=bundle.contract)
    config = replace(config, train=options)
    out = config.output_dir / "models" / options.model_name
    if out.resolve() == bundle.path:
        raise UsageError(
            f"The new bundle would take the place of {out}, which it is made from.",
            "Give it another --model-name.",
        )
    found = find_training_scans(config.output_dir, find_scans(config).scans, config)[0]
    scans = [scan for scan in usable_scans(found, tell) if scan.site == site]
    if not scans:
        raise NoInputError(
            f"No preprocessed scan of the site {site} was found.",
            "Run the participant level with the same bundle first, and check --site-column.",
        )
    common_contract(scans, bundle.contract, tell, bundle.name)
    data = open_training_set(scans, config.work_dir, threads=options.threads, say=tell)
    steps = options.shortened().harmonizer_steps if options.fast_dev_run else STEPS
    add_site(
        bundle,
        data,
        np.arange(len(data)),
        site,
        out,
        name=options.model_name,
        steps=steps,
        seed=options.seed,
        say=tell,
    )
    tell(f"The bundle {options.model_name}, which knows {site}, is in {out}.")
    return EXIT_OK


def train_bundle(
    scans: Sequence[TrainScan],
    out: Path,
    options: TrainOptions,
    *,
    work_dir: Path,
    licences: Sequence[str] = (),
    say: Callable[[str], None] = tell,
) -> Bundle:
    """Train a harmonizer and predictors on preprocessed scans, and write the bundle.

    Parameters
    ----------
    scans : sequence of TrainScan
        Preprocessed scans of two or more sites.
    out : pathlib.Path
        Folder of the bundle.
    options : TrainOptions
        What the user chose.
    work_dir : pathlib.Path
        Where the slices are kept while training.
    licences : sequence of str
        Under which the scans were given, for the bundle's description.
    say : callable
        Takes lines of progress.

    Returns
    -------
    Bundle

    Raises
    ------
    NoInputError
        When there is no preprocessed scan.
    UsageError
        When two participants share an image, there are too few scans of the reference or of any
        other site, a target is unknown,
        ``fit_filter`` cannot be understood, a site differs too much from the reference, or the
        devices asked for are not there.
    SystemExit
        With 0, in all processes that ``srun`` or ``torchrun`` started but the first, once the
        maps are trained.
    """
    import torch

    from bids_harmony.training.cache import open_training_set
    from bids_harmony.training.data import scan_table
    from bids_harmony.training.fabric import Engine, first_process, one_device
    from bids_harmony.training.finish import Trained, finish_bundle
    from bids_harmony.training.fit_filter import select_scans
    from bids_harmony.training.harmonizer import Plan, train_harmonizer
    from bids_harmony.training.overlap import check_overlap, covariate_overlap
    from bids_harmony.training.predictor import PREDICTORS
    from bids_harmony.training.predictors import train_predictors
    from bids_harmony.training.presets import PRESETS
    from bids_harmony.training.splits import TEST, TRAIN, VALIDATION, split_subjects

    options = options.shortened()
    if not first_process():
        say = _silent
    scans = usable_scans(scans, say)
    # Before anything is read: what makes no sense is refused at once.
    choose_reference([scan.site for scan in scans], options)
    select_scans(scan_table(scans), options.fit_filter)
    preset = PRESETS[options.preset]
    preset = replace(preset, batch=options.batch or preset.batch)
    engine = Engine.of(options)
    engine.check(preset.batch)
    torch.set_num_threads(options.threads)

    # 1. Read, keep whole subjects of every site out of fitting, and compare the sites.
    data = open_training_set(scans, work_dir, threads=options.threads, say=say)
    chance = np.random.default_rng(options.seed)
    split = split_subjects(data, options.validation, options.holdout, chance)
    fit = select_scans(data.table, options.fit_filter)
    reference = choose_reference(data.sites[fit].tolist(), options)
    train = np.flatnonzero((split == TRAIN) & fit)
    counts = ", ".join(f"{(split == part).sum()} {part}" for part in (TRAIN, VALIDATION, TEST))
    n_persons = len(np.unique(data.persons))
    say(f"{len(data)} scans of {counted(n_persons, 'person')} ({counts}), {fit.sum()} to fit on; "
        f"reference {reference}")  # fmt: skip
    parts = {str(site): data.site_scans(site, train) for site in np.unique(data.sites[train])}
    if reference not in parts or len(parts) < 2:
        raise UsageError(
            f"Only scans of {', '.join(parts) or 'no site'} are left to train the maps on.",
            "Choose smaller parts for --holdout and --validation, or a wider --fit-filter.",
        )
    overlap = covariate_overlap(data, parts.pop(reference), parts)
    check_overlap(overlap, force=options.force, say=say)

    # 2. Predictors, on the reference site alone; of several machines, one trains them.
    recipe = PREDICTORS[options.predictor]
    predictors: dict[str, Predictor] = {}
    if first_process():
        predictors = train_predictors(
            data,
            split,
            fit,
            reference,
            options,
            replace(recipe, steps=options.predictor_steps or recipe.steps),
            work_dir,
            device=one_device(options.device),
            nprocs=options.threads,
            say=say,
        )

    # 3. The maps between the sites, in all processes.
    harmonizer = train_harmonizer(
        data,
        train,
        reference,
        preset,
        plan=Plan(options.harmonizer_steps, options.epoch_steps, options.seed),
        folder=work_dir,
        engine=engine,
        say=say,
    )

    if not first_process():
        raise SystemExit(EXIT_OK)

    # 4. The best checkpoint, the guard's limits, figures on what was held out, and the bundle.
    trained = Trained(data, split, fit, overlap, reference, predictors, harmonizer)
    return finish_bundle(trained, out, options, licences, say)


def _silent(line: str) -> None:
    """Say nothing: the first of several processes does."""


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
    if not any(n >= MIN_SOURCE for site, n in counts.items() if site != reference):
        raise UsageError(
            f"There is no site besides {reference} with {MIN_SOURCE} scans to fit on.",
            "Harmonization needs scans of at least two sites: check --site-column.",
        )
    return reference
