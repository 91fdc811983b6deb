"""Who is scanned where: sizes of sites, ages, groups, pathologies and spoilt scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

from bids_harmony.errors import UsageError
from bids_harmony.simulation.head import AGE_RANGE, DIAGNOSES
from bids_harmony.simulation.pathology import KINDS as PATHOLOGIES
from bids_harmony.simulation.scanner import Scanner

#: Largest difference of mean ages between sites (years) that leaves every site all ages.
MAX_CONFOUND = 30.0


@dataclass(frozen=True)
class Subject:
    """One head to make, and the scanners that scan it.

    Attributes
    ----------
    label : str
        Participant label without ``sub-``.
    key : tuple of int
        Site (0 when travelling) and number within it: what its seeds are made of, so that a
        head does not change when sites or subjects are added.
    age : float
        Years.
    sex, diagnosis : str
        As in ``participants.tsv``.
    scanners : tuple of Scanner
        One, or all sites' when travelling.
    pathology : str
        ``none`` or one of :data:`bids_harmony.simulation.pathology.KINDS`.
    defects : tuple of str
        For each scanner what spoils its scan: ``good`` or one of
        :data:`bids_harmony.simulation.defects.KINDS`. None means all are good.
    anatomy : pathlib.Path, optional
        Label map the head is made from; by default nilearn's template.
    """

    label: str
    key: tuple[int, int]
    age: float
    sex: str
    diagnosis: str
    scanners: tuple[Scanner, ...]
    pathology: str = "none"
    defects: tuple[str, ...] = ()
    anatomy: Path | None = None


def plan_subjects(
    scanners: list[Scanner],
    n_subjects: int | Sequence[int],
    *,
    seed: int,
    travelling: bool,
    confound: float = 0.0,
) -> list[Subject]:
    """Draw who is scanned where; ages cover 18 to 85 years evenly at every site.

    Parameters
    ----------
    scanners : list of Scanner
        One per site.
    n_subjects : int or sequence of int
        Heads per site, one number for all or one for each; with ``travelling``, heads in all.
    seed : int
        Seed of the dataset.
    travelling : bool
        Every head is scanned at every site.
    confound : float
        Years by which the first site's heads are older on average than the others', -30 to 30.
        Ages still span 18 to 85 years everywhere; they crowd at one end.
    """
    groups = (
        [(0, tuple(scanners))]
        if travelling
        else [(k, (scanner,)) for k, scanner in enumerate(scanners, 1)]
    )
    sizes = [n_subjects] * len(groups) if isinstance(n_subjects, int) else list(n_subjects)
    width = max(2, len(str(sum(sizes))))
    subjects: list[Subject] = []
    for (site, visits), size in zip(groups, sizes, strict=True):
        rng = np.random.default_rng([seed, 2, site])
        strata = (rng.permutation(size) + rng.random(size)) / size
        first_ill, first_male = rng.integers(0, 2, 2)
        if confound:
            strata = _crowd(strata, confound / 2 * (1 if site == 1 else -1))
        for k, place in enumerate(strata):
            subjects.append(
                Subject(
                    label=f"{len(subjects) + 1:0{width}d}",
                    key=(site, k),
                    age=round(float(AGE_RANGE[0] + place * np.ptp(AGE_RANGE)), 1),
                    sex="FM"[(k // 2 + first_male) % 2],
                    diagnosis=DIAGNOSES[(k + first_ill) % 2],
                    scanners=visits,
                )
            )
    return subjects


def add_pathology(subjects: list[Subject], share: float, *, seed: int) -> list[Subject]:
    """Give a share of the heads a pathology; each kind and each site gets its part."""
    count = round(share * len(subjects))
    names = _spread(len(subjects), count, PATHOLOGIES, np.random.default_rng([seed, 5]))
    return [
        replace(subject, pathology=name or "none")
        for subject, name in zip(subjects, names, strict=True)
    ]


def add_defects(
    subjects: list[Subject], share: float, kinds: Sequence[str], *, seed: int
) -> list[Subject]:
    """Spoil a share of all scans; each kind and each site gets its part.

    Heads with a pathology keep good scans, so that one thing at most is wrong with a scan.

    Raises
    ------
    UsageError
        When fewer scans than that are of heads without pathology.
    """
    visits = [
        (n, k)
        for n, subject in enumerate(subjects)
        for k in range(len(subject.scanners))
        if subject.pathology == "none"
    ]
    count = round(share * sum(len(subject.scanners) for subject in subjects))
    if count > len(visits):
        raise UsageError(
            f"{count} scans are to be bad, and only {len(visits)} are of heads without pathology.",
            "Lower --bad or --pathology.",
        )
    names = _spread(len(visits), count, kinds, np.random.default_rng([seed, 6]))
    defects = [["good"] * len(subject.scanners) for subject in subjects]
    for (n, k), name in zip(visits, names, strict=True):
        defects[n][k] = name or "good"
    return [replace(s, defects=tuple(d)) for s, d in zip(subjects, defects, strict=True)]


def add_anatomies(subjects: list[Subject], maps: Sequence[Path]) -> list[Subject]:
    """Make heads from label maps in turn, so that every site has nearly all of them."""
    return [
        replace(subject, anatomy=maps[sum(subject.key) % len(maps)]) if maps else subject
        for subject in subjects
    ]


def _crowd(strata: np.ndarray, years: float) -> np.ndarray:
    """Move evenly spread values in 0..1 so that the mean age shifts and the ends stay.

    The density becomes exponential in the age.
    """
    target = 0.5 + years / float(np.ptp(AGE_RANGE))
    low, high = (1e-3, 50.0) if years > 0 else (-50.0, -1e-3)
    rate = brentq(lambda t: -1.0 / np.expm1(-t) - 1.0 / t - target, low, high)
    moved: np.ndarray = np.log1p(strata * np.expm1(rate)) / rate
    return moved


def _spread(
    n: int, count: int, kinds: Sequence[str], rng: np.random.Generator
) -> list[str | None]:
    """Give ``count`` of n places a kind: evenly along the places, and evenly among the kinds."""
    chosen: list[str | None] = [None] * n
    order: list[str] = []
    # One of each run of places, so that no site is spared; the kinds in turn, shuffled anew.
    for run in np.array_split(np.arange(n), count) if count else []:
        if not order:
            order = [str(kind) for kind in rng.permutation(list(kinds))]
        chosen[int(rng.choice(run))] = order.pop()
    return chosen
