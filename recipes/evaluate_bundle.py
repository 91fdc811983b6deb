"""Brain age of scans no network has seen: unharmonized, histogram-matched, harmonized (README)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from work_folder import read_scans

from bids_harmony.files import write_json
from bids_harmony.models.bundle import Bundle, load_bundle
from bids_harmony.training.cache import open_training_set
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.evaluate import (
    METHODS,
    Measured,
    Models,
    figures,
    measure_looks,
    measure_scan,
)
from bids_harmony.training.fabric import Engine
from bids_harmony.training.fit_filter import select_scans
from bids_harmony.training.harmonizer import Plan, train_harmonizer
from bids_harmony.training.presets import PRESETS
from bids_harmony.training.select import choose_checkpoint
from bids_harmony.training.splits import TEST, TRAIN, VALIDATION, make_folds
from bids_harmony.training.stored import as_stored

Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """A bundle, and the scans it was made of.

    Attributes
    ----------
    bundle : Bundle
        What is evaluated.
    data : TrainingSet
        Its scans.
    split : numpy.ndarray
        (scans,) part each scan had in the bundle's training.
    work_dir : pathlib.Path
        Where refitted harmonizers are kept, so that an interrupted evaluation continues.
    steps : int or None
        Of the refitted harmonizers; None: as many as the bundle's.
    """

    bundle: Bundle
    data: TrainingSet
    split: np.ndarray
    work_dir: Path
    steps: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the bundle was trained with."""
        return dict(self.bundle.info["training"]["options"])


def split_from(bundle: Bundle, data: TrainingSet) -> np.ndarray:
    """Part of each scan according to the bundle's ``splits.json``."""
    parts = json.loads((bundle.path / "splits.json").read_text(encoding="utf-8"))
    part_of = {
        (site, subject): part
        for site, found in parts.items()
        for part, subjects in found.items()
        for subject in subjects
    }
    keys = zip(data.table["site"], data.table["subject"], strict=True)
    return np.array([part_of[key] for key in keys])


def refit(study: Study, split: np.ndarray, say: Say) -> Models:
    """Train the maps and choose their checkpoint as the bundle's were, on another split."""
    data, options = study.data, study.options
    bundle, grey = study.bundle, study.bundle.contract.grey
    preset = PRESETS[options["preset"]]
    fit = select_scans(data.table, options["fit_filter"])
    plan = Plan(
        study.steps or options["harmonizer_steps"], options["epoch_steps"], options["seed"]
    )
    harmonizer = train_harmonizer(
        data, np.flatnonzero((split == TRAIN) & fit), bundle.reference_site,
        replace(preset, batch=options["batch"] or preset.batch),
        plan=plan, folder=study.work_dir, engine=Engine(threads=torch.get_num_threads()), say=say,
    )  # fmt: skip
    step, _ = choose_checkpoint(
        data, np.where(fit, split, TEST), bundle.reference_site,
        harmonizer.steps, harmonizer.candidate,
        grey=grey, seed=options["seed"], say=say,
    )  # fmt: skip
    harmonizer.choose(step)
    return Models(
        as_stored(harmonizer.forward), as_stored(harmonizer.backward), harmonizer.sites,
        bundle.box, bundle.contract.slice_mm, grey,
        {"brain_age": bundle.networks()["brain_age"]},
    )  # fmt: skip


def shipped(bundle: Bundle) -> Models:
    """Take the bundle's own maps."""
    networks = bundle.networks()
    return Models(
        networks["harmonizer"][0], networks["backward"][0],
        bundle.info["networks"]["backward"]["sites"],
        bundle.box, bundle.contract.slice_mm, bundle.contract.grey,
        {"brain_age": networks["brain_age"]},
    )  # fmt: skip


def cross_validate(study: Study, n_folds: int, say: Say) -> dict[int, Measured]:
    """Measure every source scan with maps fitted without its subject, and reference test scans.

    The predictors saw the reference's training scans only. Reference scans of the test part are
    mapped by the bundle's own map, which did not see them either.

    Parameters
    ----------
    study : Study
        Bundle and scans.
    n_folds : int
        Folds of the source scans, by person, stratified by site and balanced on age.
    say : callable
        Takes a line of progress.

    Returns
    -------
    dict
        By scan number.
    """
    data, reference = study.data, study.bundle.reference_site
    seed, grey = study.options["seed"], study.bundle.contract.grey
    rng = np.random.default_rng(seed)
    folds = make_folds(data, np.flatnonzero(data.sites != reference), n_folds, rng, data.sites)
    trained_on = np.flatnonzero((data.sites == reference) & (study.split != TEST))
    measured: dict[int, Measured] = {}
    for fold in range(-1, n_folds):
        split = study.split.copy()
        models, scans = None, np.flatnonzero((data.sites == reference) & (split == TEST))
        if fold >= 0:
            say(f"fold {fold + 1} of {n_folds}")
            # The bundle's own test part of the sources has no say here: every scan has a fold.
            split[(data.sites != reference) & (split == TEST)] = TRAIN
            # A person whom the predictors saw at the reference is no test of them.
            learnt = np.isin(data.persons, data.persons[trained_on])
            scans = np.flatnonzero((folds == fold) & ~learnt)
            # Nor do the maps see a tested person at the reference.
            split[np.isin(data.persons, data.persons[scans])] = TEST
            models = refit(study, split, say)
        used = np.concatenate([trained_on, np.flatnonzero((data.sites != reference)
                                                          & (split == TRAIN))])  # fmt: skip
        looks = measure_looks(data, np.unique(used), reference, seed, grey)
        for i in scans:
            measured[int(i)] = measure_scan(
                data, int(i), models or shipped(study.bundle), looks, reference
            )
    return measured


def summarize(
    data: TrainingSet, measured: Mapping[int, Measured], seed: int
) -> dict[str, dict[str, Any]]:
    """Figures by site and way of preparing the scans, with 95 % bootstrap intervals."""
    known = np.array([i for i in sorted(measured) if np.isfinite(data.ages[i])])
    table: dict[str, dict[str, Any]] = {}
    for site in np.unique(data.sites[known]):
        here = data.site_scans(str(site), known)
        table[str(site)] = {
            method: figures(
                np.array([measured[int(i)].predicted["brain_age"][method] for i in here]),
                data.ages[here],
                False,
                np.random.default_rng(seed),
                data.persons[here],
            )
            for method in METHODS
        }
    return table


def show(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Lay the figures out as a table of text."""
    heads = "".join(f"{name:>28}" for name in ("MAE (years)", "bias (years)", "r"))
    lines = [f"{'site':<14}{'scans prepared by':<20}{'n':>5}{heads}"]
    for site, methods in table.items():
        for method, row in methods.items():
            cells = [f"{site:<14}{method:<20}{row['n']:>5}"]
            for name in ("mae", "bias", "r"):
                low, high = row[f"{name}_95"] or (np.nan, np.nan)
                value = np.nan if row[name] is None else row[name]
                cells.append(f"{value:>9.2f} [{low:.2f}, {high:.2f}]".rjust(28))
            lines.append("".join(cells))
    return "\n".join(lines)


def main() -> int:
    """Evaluate a bundle on the scans it was made of, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder that default_bundle.py worked in")
    parser.add_argument("--bundle", type=Path, help="default: WORK/out/models/default")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--steps", type=int, help="of the harmonizer; default: the bundle's")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    bundle = load_bundle(options.bundle or options.work / "out" / "models" / "default")
    data = open_training_set(
        read_scans(options.work), options.work / "work", threads=options.threads
    )
    split = split_from(bundle, data)
    counts = {part: int((split == part).sum()) for part in (TRAIN, VALIDATION, TEST)}
    print(f"{bundle.name} {bundle.version} on {len(data)} scans {counts}")
    study = Study(bundle, data, split, options.work / "work", options.steps)
    table = summarize(data, cross_validate(study, options.folds, print), study.options["seed"])
    write_json(
        options.work / "evaluation.json",
        {"bundle": bundle.identity(), "folds": options.folds, "brain_age": table},
    )
    print(show(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
