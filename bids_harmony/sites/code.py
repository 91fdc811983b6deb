"""The site code: how a site's scans differ from the reference's at the same ages.

A scan alone cannot tell its scanner from its person; twenty scans can. So each descriptor is
compared with what it is expected to be at the reference at the person's age, and the differences
are pooled over the site (site-effects.md §3, §4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_harmony.sites.descriptors import LEVELS

#: Variance of sites relative to that of persons, where too few sites are there to tell: at the
#: sites at hand grey matter differs by four to five times its spread between persons.
SITE_RATIO = 16.0


@dataclass(frozen=True)
class Appearance:
    """How scans of the reference site look, and how that depends on age.

    Attributes
    ----------
    intercept, slope : numpy.ndarray
        (descriptors,) of each descriptor's least-squares line on age in years.
    person_sd : numpy.ndarray
        (descriptors,) standard deviation of persons about that line.
    ages : tuple of float
        Youngest and oldest reference scan; beyond, the line is not followed.
    line : tuple of float or None
        Slope and intercept of the reference's cross-validated brain age on age, by which ages are
        estimated where they are unknown; None where no brain age is predicted.
    mean_age : float
        Of the reference's persons.
    n : int
        Persons it rests on.
    """

    intercept: np.ndarray
    slope: np.ndarray
    person_sd: np.ndarray
    ages: tuple[float, float]
    line: tuple[float, float] | None
    mean_age: float
    n: int

    @classmethod
    def fit(
        cls,
        descriptors: np.ndarray,
        ages: np.ndarray,
        persons: Sequence[str] | np.ndarray,
        line: tuple[float, float] | None,
    ) -> Appearance:
        """Fit the lines to (scans, descriptors) of the reference; each person counts once.

        Scans of unknown age count as of mean age; where no age is known, nothing depends on it.
        """
        mean_age = float(np.nanmean(ages)) if np.isfinite(ages).any() else 0.0
        known = np.where(np.isnan(ages), mean_age, ages)
        values, years = _by_person(descriptors, persons), _by_person(known, persons)
        design = np.stack([np.ones_like(years), years], axis=1)
        intercept, slope = np.linalg.lstsq(design, values, rcond=None)[0]
        off = values - design @ np.stack([intercept, slope])
        sd = np.sqrt((off**2).sum(axis=0) / max(len(years) - 2, 1))
        span = (float(years.min()), float(years.max()))
        return cls(intercept, slope, sd, span, line, float(years.mean()), len(years))

    def expected(self, ages: np.ndarray) -> np.ndarray:
        """Descriptors of a reference scan at each age: (scans, descriptors)."""
        return np.asarray(self.intercept + np.clip(ages, *self.ages)[:, None] * self.slope)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values that :meth:`from_dict` reads."""
        return {
            "levels": list(LEVELS),
            **{
                name: [float(f"{v:.6g}") for v in getattr(self, name)]
                for name in ("intercept", "slope", "person_sd")
            },
            "ages": list(self.ages),
            "line": None if self.line is None else list(self.line),
            "mean_age": self.mean_age,
            "n": self.n,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Appearance:
        """Read :meth:`to_dict`'s values."""
        low, high = values["ages"]
        line = None if values["line"] is None else (values["line"][0], values["line"][1])
        intercept, slope, sd = (
            np.array(values[name], float) for name in ("intercept", "slope", "person_sd")
        )
        return cls(intercept, slope, sd, (low, high), line, values["mean_age"], values["n"])


@dataclass(frozen=True)
class SiteCode:
    """What sets a site apart from the reference.

    Attributes
    ----------
    shift : numpy.ndarray
        (descriptors,) the site's descriptors minus the reference's at the same ages.
    sd : numpy.ndarray
        (descriptors,) how sure that is: the standard deviation that the number of persons leaves.
    age : float
        Mean age of the site's persons, as used.
    n : int
        Persons it was estimated from.
    """

    shift: np.ndarray
    sd: np.ndarray
    age: float
    n: int


def site_code(
    descriptors: np.ndarray,
    ages: np.ndarray,
    persons: Sequence[str] | np.ndarray,
    appearance: Appearance,
) -> SiteCode:
    """Estimate a site's code from its scans.

    Parameters
    ----------
    descriptors : numpy.ndarray
        (scans, descriptors): :func:`bids_harmony.sites.descriptors.vector` of each.
    ages : numpy.ndarray
        (scans,) in years, known or estimated.
    persons : sequence of str
        (scans,) whose scan it is: each person counts once.
    appearance : Appearance
        Of the reference.

    Returns
    -------
    SiteCode
        The mean difference, shrunk towards none by what its number of persons leaves unsure. It
        depends neither on the order of the scans nor, but for that, on their number.
    """
    off = _by_person(descriptors - appearance.expected(ages), persons)
    n = len(off)
    kept = SITE_RATIO / (SITE_RATIO + 1 / n)
    sd = appearance.person_sd * np.sqrt(kept / n)
    return SiteCode(kept * off.mean(axis=0), sd, float(_by_person(ages, persons).mean()), n)


def _by_person(values: np.ndarray, persons: Sequence[str] | np.ndarray) -> np.ndarray:
    """Average the scans of each person."""
    _, which = np.unique(np.asarray(persons), return_inverse=True)
    sums = np.zeros((which.max() + 1, *values.shape[1:]))
    np.add.at(sums, which, values)
    counts = np.bincount(which).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(sums / counts)
