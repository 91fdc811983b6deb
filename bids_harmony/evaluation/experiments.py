"""What is trained and tested: one unit per experiment, seed, fold of subjects and training sites.

Subjects are split into folds once per seed. A unit trains predictors and calibrates sites on all
folds but one and tests on that one, so that no figure rests on a scan, or on another scan of a
person, that anything in the unit was trained on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.bids.dataset import counted
from bids_harmony.errors import UsageError
from bids_harmony.evaluation import EvaluateOptions
from bids_harmony.training.data import TEST, TRAIN, TrainingSet, make_folds, split_subjects
from bids_harmony.training.targets import Target

#: Persons of a site that calibrate it, in ``size``.
SIZES = (1, 2, 4, 8, 16, 32)


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


def plan_units(
    data: TrainingSet,
    options: EvaluateOptions,
    reference: str,
    seed: int,
    trainable: Sequence[str],
) -> list[Unit]:
    """List the units of all experiments asked for, those of one fold together.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    options : EvaluateOptions
        Experiments, folds and repetitions.
    reference : str
        Reference site of all experiments but ``rotations``, which tries every site.
    seed : int
        The first; repetitions take the next ones.
    trainable : sequence of str
        Sites with enough scans to be the first to train at, of :func:`trainable_sites`.

    Raises
    ------
    UsageError
        When a rotation cannot be trained, or too few scans are there.
    """
    sites = tuple(np.unique(data.sites).tolist())
    planned: list[tuple[Any, ...]] = []
    if "sites" in options.experiments:
        planned.append(("sites", (reference,), sites))
    if "rotations" in options.experiments:
        planned += [
            ("rotations", trained, tuple(site for site in sites if site not in trained))
            for trained in _rotations(sites, trainable, options.train_sites)
        ]
    if "size" in options.experiments:
        others = data.sites != reference
        counts = pd.Series(data.persons[others]).groupby(data.sites[others]).nunique()
        sizes = [n for n in SIZES if n < counts.max() * (1 - 1 / options.cv_folds)]
        if not sizes:
            raise UsageError(
                "There are no sizes to try: no other site leaves more than "
                f"{counted(min(SIZES), 'person')} to calibrate on.",
                "Take size out of --experiments, or choose more --cv-folds.",
            )
        planned += [("size", (reference,), (str(counts.idxmax()),), n) for n in sizes]
    return [
        Unit(experiment, seed + repetition, fold, *rest)
        for repetition, fold in itertools.product(range(options.n_seeds), range(options.cv_folds))
        for experiment, *rest in planned
    ]


def _rotations(
    sites: Sequence[str], first: Sequence[str], asked: Sequence[str]
) -> list[tuple[str, ...]]:
    """List those asked for, of every site and ordered pair that leaves a site to test on."""
    pairs = itertools.permutations(sites, 2) if len(sites) > 2 else ()
    every: list[tuple[str, ...]] = [(site,) for site in first]
    every += [pair for pair in pairs if pair[0] in first]
    if not every:
        raise UsageError(
            "No site keeps enough persons to train on.",
            "Choose fewer --folds, more --cv-folds or another --target.",
        )
    chosen = [tuple(name.split("+")) for name in asked]
    if wrong := [rotation for rotation in chosen if rotation not in every]:
        raise UsageError(
            f"--train-sites {'+'.join(wrong[0])} is no rotation that can be trained and tested.",
            "Give a site, or two joined by + that leave another to test on; the first may be "
            f"{', '.join(first)}.",
        )
    return chosen or every


def trainable_sites(
    data: TrainingSet, targets: Sequence[Target], n_folds: int, n_networks: int, fit: np.ndarray
) -> list[str]:
    """List the sites that keep enough persons to train a predictor of some target.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    targets : sequence of Target
        What is predicted.
    n_folds : int
        Folds of the persons, one of which is always tested.
    n_networks : int
        Networks of an ensemble: each wants a fold of its own of the persons, of each class.
    fit : numpy.ndarray
        (scans,) whether ``--fit-filter`` lets predictors of numbers see a scan.
    """

    def enough(scans: np.ndarray) -> bool:
        n = len(np.unique(data.persons[scans]))
        return n - math.ceil(n / n_folds) >= n_networks  # a fold may take more than its share

    def trains(site: str, target: Target) -> bool:
        at_site = data.sites == site
        if target.binary:
            return all(enough(at_site & (target.values == k)) for k in (0, 1))
        return enough(at_site & fit & np.isfinite(target.values))

    sites = np.unique(data.sites).tolist()
    return [site for site in sites if any(trains(site, target) for target in targets)]


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
