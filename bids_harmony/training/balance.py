"""How likely scans of a site and of the reference are drawn together: alike in age and sex.

A generator that sees an old reference beside young sources learns to age brains (science.md §9,
lesson 3). So a source scan is paired with reference scans of about its age and of its sex, and
one that has no such counterpart is drawn seldom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_harmony.training.data import TrainingSet

#: Weight of a reference scan of the other sex, against one of the same sex and age.
OTHER_SEX = 0.05
#: Least weight of a source scan; only where no scan of a site has a counterpart does it count.
LEAST = 1e-6


@dataclass(frozen=True)
class Balance:
    """Chances of drawing scans of one source site, and reference scans with them.

    Attributes
    ----------
    source : numpy.ndarray
        (n,) numbers of the site's scans.
    reference : numpy.ndarray
        (m,) numbers of the reference scans.
    chance : numpy.ndarray
        (n,) chance of each source scan, sum 1.
    weight : float
        Sum over source scans of their counterparts, each counted up to one: what a site counts
        for when sites are drawn.
    """

    data: TrainingSet
    source: np.ndarray
    reference: np.ndarray
    age_width: float
    chance: np.ndarray
    weight: float

    def partners(self, i: int) -> np.ndarray:
        """Chance of each reference scan beside the ``i``-th source scan, (m,), sum 1."""
        likeness = alike(self.data, self.source[i], self.reference, self.age_width)
        total = likeness.sum()
        if total > 1e-12:
            return np.asarray(likeness / total)
        # Nobody is near in age: the nearest is.
        far = np.abs(self.data.ages[self.reference] - self.data.ages[self.source[i]])
        nearest = far == np.nanmin(far)
        return np.asarray(nearest / nearest.sum())

    def reference_chance(self) -> np.ndarray:
        """Chance of each reference scan over all draws of the site, (m,), sum 1."""
        total = np.zeros(len(self.reference))
        for i in np.flatnonzero(self.chance > 1e-9):
            total += self.chance[i] * self.partners(int(i))
        return np.asarray(total / total.sum())


def balance(
    data: TrainingSet, source: np.ndarray, reference: np.ndarray, age_width: float = 5.0
) -> Balance:
    """Weigh a site's scans by how many counterparts they have in the reference.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    source, reference : numpy.ndarray
        Numbers of the site's and of the reference's scans.
    age_width : float
        Width in years of the Gaussian by which likeness falls with the difference of age.

    Returns
    -------
    Balance
        A source scan counts by its likeness to all reference scans together, up to 1: fully
        with one exact counterpart, hardly with none near.
    """
    found = np.array([alike(data, i, reference, age_width).sum() for i in source])
    weights = np.clip(found, LEAST, 1.0)
    return Balance(
        data, source, reference, age_width, weights / weights.sum(), float(weights.sum())
    )


def alike(data: TrainingSet, scan: int, others: np.ndarray, age_width: float) -> np.ndarray:
    """Likeness in age and sex of a scan and others: 1 the same, 0 far apart.

    What is unknown of the scan does not tell; a scan of unknown age is like none whose age is
    known, unless the age of all others is unknown.
    """
    likeness = np.ones(len(others))
    ages = data.ages[others]
    if not np.isnan(data.ages[scan]) and not np.isnan(ages).all():
        apart = (ages - data.ages[scan]) / age_width
        likeness = np.where(np.isnan(apart), 0.0, np.exp(-0.5 * np.minimum(apart**2, 1e3)))
    sex = data.sexes[scan]
    if sex:
        known = data.sexes[others]
        likeness = likeness * np.where((known == sex) | (known == ""), 1.0, OTHER_SEX)
    return likeness
