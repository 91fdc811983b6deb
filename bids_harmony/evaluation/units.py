"""What is trained and tested: one unit per experiment, seed, fold of subjects and training sites.

Subjects are parted once per seed. A unit trains predictors and calibrates sites on all parts but
one and tests on that part, so that no figure rests on a scan, or on another scan of a person, that
anything in the unit was trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_harmony.bids import counted
from bids_harmony.errors import UsageError
from bids_harmony.evaluation.options import SIZES, EvaluateOptions
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.splits import TEST, TRAIN, make_folds, split_subjects
from bids_harmony.training.targets import Target


@dataclass(frozen=True)
class Unit:
    """One training of maps and predictors, and where they are tested.

    Attributes
    ----------
    experiment : str
        Of :data:`bids_harmony.evaluation.options.EXPERIMENTS`.
    seed, fold : int
        Of weights and parts; part of the subjects that is tested.
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
        special = ""
        if self.n_source is not None:
            special = f", calibrated on {counted(self.n_source, 'person')}"
        return (
            f"{self.experiment}: trained at {' + '.join(self.train_sites)}, tested at "
            f"{' + '.join(self.test_sites)}{special} (seed {self.seed}, fold {self.fold + 1})"
        )


def plan_units(
    data: TrainingSet,
    options: EvaluateOptions,
    reference: str,
    seed: int,
    trainable: Sequence[str] | None = None,
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
    trainable : sequence of str, optional
        Sites with enough scans to be the first to train at, of :func:`trainable_sites`; all when
        None.

    Raises
    ------
    UsageError
        When a rotation cannot be trained, or too few scans are there.
    """
    sites = sorted(set(data.sites.tolist()))
    others = [site for site in sites if site != reference]
    counts = {site: len(np.unique(data.persons[data.sites == site])) for site in others}
    largest = max(counts, key=lambda site: counts[site], default=reference)
    most = counts.get(largest, 0) * (1 - 1 / options.cv_folds)
    if "size" in options.experiments and most <= min(SIZES):
        raise UsageError(
            f"There are no sizes to try: no other site leaves more than {min(SIZES)} persons to "
            "calibrate on.",
            "Take size out of --experiments, or choose more --cv-folds.",
        )
    rotations: list[tuple[str, ...]] = []
    if "rotations" in options.experiments:
        first = sites if trainable is None else trainable
        rotations = _rotations(sites, first, options.train_sites)
    units: list[Unit] = []
    for k, fold in itertools.product(range(options.n_seeds), range(options.cv_folds)):
        at = (seed + k, fold)
        if "sites" in options.experiments:
            units.append(Unit("sites", *at, (reference,), tuple(sites)))
        for trained in rotations:
            tested = tuple(site for site in sites if site not in trained)
            units.append(Unit("rotations", *at, trained, tested))
        if "size" in options.experiments:
            units += [
                Unit("size", *at, (reference,), (largest,), n_source=n) for n in SIZES if n < most
            ]
    return units


def _rotations(
    sites: Sequence[str], first: Sequence[str], asked: Sequence[str]
) -> list[tuple[str, ...]]:
    """List those asked for, of every site and ordered pair that leaves a site to test on."""
    pairs = itertools.permutations(sites, 2) if len(sites) > 2 else ()
    every: list[tuple[str, ...]] = [(site,) for site in first]
    every += [pair for pair in pairs if pair[0] in first]
    chosen = [tuple(name.split("+")) for name in asked]
    if wrong := [rotation for rotation in chosen if rotation not in every]:
        raise UsageError(
            f"--train-sites {'+'.join(wrong[0])} is no rotation that can be trained and tested.",
            "Give a site, or two joined by + that leave another to test on; the first may be "
            f"{', '.join(first)}.",
        )
    return chosen or every


def trainable_sites(
    data: TrainingSet,
    targets: Sequence[Target],
    n_folds: int,
    n_networks: int,
    fit: np.ndarray | None = None,
) -> list[str]:
    """List the sites that keep enough persons to train a predictor of every target.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    targets : sequence of Target
        What is predicted.
    n_folds : int
        Parts of the persons, one of which is always tested.
    n_networks : int
        Networks of an ensemble: each wants a fold of its own of the persons, of each class.
    fit : numpy.ndarray, optional
        (scans,) whether ``--fit-filter`` lets predictors of numbers see a scan; all when None.
    """
    seen = np.ones(len(data), bool) if fit is None else fit
    found = []
    for site in sorted(set(data.sites.tolist())):
        groups = [
            data.persons[(data.sites == site) & known & (seen | target.binary)]
            for target in targets
            for known in (
                [target.values == k for k in (0, 1)] if target.binary
                else [np.isfinite(target.values)]
            )
        ]  # fmt: skip
        # A fold may take a person more than its share.
        kept = [len(set(group)) - -(-len(set(group)) // n_folds) for group in groups]
        if min(kept, default=0) >= n_networks:
            found.append(site)
    return found


def subject_folds(
    data: TrainingSet, n_folds: int, seed: int, classes: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Give every scan a fold: whole persons, every site and age in each, classes alike.

    Parameters
    ----------
    data : TrainingSet
        All scans; a person seen at two sites has one fold.
    n_folds : int
        Number of folds.
    seed : int
        Source of chance.
    classes : sequence of numpy.ndarray
        (scans,) values of two-class targets, over which folds are balanced too.
    """
    strata = [data.sites, *(np.nan_to_num(values, nan=-1) for values in classes)]
    keys = np.array(["|".join(map(str, key)) for key in zip(*strata, strict=True)])
    return make_folds(data, np.arange(len(data)), n_folds, np.random.default_rng(seed), keys)


def split_of(
    data: TrainingSet, unit: Unit, folds: np.ndarray, validation: float
) -> tuple[np.ndarray, np.ndarray]:
    """Parts of the scans in a unit.

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
