"""Which scans are trained on, which choose a checkpoint, and which are only measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from bids_harmony.training.data import TrainingSet

TRAIN, VALIDATION, TEST = "train", "validation", "test"


def split_subjects(
    data: TrainingSet, validation: float, test: float, rng: np.random.Generator
) -> np.ndarray:
    """Part scans into training, validation and test: whole persons, every age, each site.

    Persons of a site are ordered by age and cut into blocks of ``1 / test``; one of each block
    is for the test, and so on with the others for validation. A site with fewer than four
    persons is only trained on. A person seen at several sites is parted with the first.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    validation, test : float
        Shares of each site's persons.
    rng : numpy.random.Generator
        Random number generator.

    Returns
    -------
    numpy.ndarray
        ``train``, ``validation`` or ``test`` for each scan.
    """
    labels = data.persons
    first = np.unique(labels, return_index=True)[1]
    parts = dict.fromkeys(labels, TRAIN)
    for site in np.unique(data.sites):
        subjects = by_age(data, first[data.sites[first] == site])
        n_all = len(subjects)
        for part, share in ((TEST, test), (VALIDATION, validation)):
            count = round(share * n_all) if n_all >= 4 else 0
            for block in np.array_split(subjects, max(count, 1))[:count]:
                chosen = labels[rng.choice(block)]
                parts[chosen] = part
                subjects = [i for i in subjects if labels[i] != chosen]
    return np.array([parts[label] for label in labels])


def splits_record(data: TrainingSet, split: np.ndarray) -> dict[str, Any]:
    """Subjects of each part at each site, for the bundle's ``splits.json``."""
    labels = data.table["subject"].to_numpy(dtype=str)
    return {
        str(site): {
            part: sorted(set(labels[(data.sites == site) & (split == part)].tolist()))
            for part in (TRAIN, VALIDATION, TEST)
        }
        for site in np.unique(data.sites)
    }


def make_folds(
    data: TrainingSet,
    among: np.ndarray,
    n_folds: int,
    rng: np.random.Generator,
    strata: np.ndarray | None = None,
) -> np.ndarray:
    """Give scans folds, by whole persons.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    among : numpy.ndarray
        Numbers of the scans to give folds to.
    n_folds : int
        Number of folds.
    rng : numpy.random.Generator
        Random number generator.
    strata : numpy.ndarray, optional
        (scans,) what folds are balanced on besides the age, such as site or class. A person
        belongs to the stratum of the first scan.

    Returns
    -------
    numpy.ndarray
        Fold of each scan; -1 for those not in ``among``.
    """
    folds = np.full(len(data), -1)
    persons = data.persons[among]
    first = among[np.sort(np.unique(persons, return_index=True)[1])]
    keys = np.zeros(len(first)) if strata is None else strata[first]
    for key in np.unique(keys):
        ordered = by_age(data, first[keys == key])
        for start in range(0, len(ordered), n_folds):
            order = rng.permutation(n_folds)
            for i, fold in zip(ordered[start : start + n_folds], order, strict=False):
                folds[among[persons == data.persons[i]]] = fold
    return folds


def by_age(data: TrainingSet, scans: np.ndarray) -> list[int]:
    """Order scans by age, then subject; unknown ages come last."""
    ages, subjects = data.ages, data.subjects
    return sorted(scans.tolist(), key=lambda i: (np.isnan(ages[i]), ages[i], subjects[i]))
