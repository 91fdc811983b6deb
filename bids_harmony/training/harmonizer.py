"""How sites are brought to the reference in training, and whether that moves them.

The map of a site is the intensity mapping of its code (:mod:`bids_harmony.sites`). Nothing of it
is trained on the site; it is calibrated, and what is measured here is always a scan that its
calibration did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from bids_harmony.sites.calibration import estimate_ages
from bids_harmony.sites.code import Appearance, site_code
from bids_harmony.sites.mapping import IntensityMapping
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.splits import make_folds

#: A site's persons are parted in this many; each part is mapped as the others say.
FOLDS = 8
#: Part of the mean site offset that a map has to remove (issue 21).
LEAST_REMOVED = 0.5
N_QUANTILES = 256

#: Predicts the brain age of a scan, by its number, after an intensity mapping.
Predict = Callable[[int, IntensityMapping | None], float]


def site_mapping(
    data: TrainingSet, scans: np.ndarray, appearance: Appearance, predict: Predict | None
) -> IntensityMapping:
    """Calibrate a site on some of its scans.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    scans : numpy.ndarray
        Numbers of the scans to calibrate on.
    appearance : Appearance
        Of the reference.
    predict : callable or None
        Estimates the ages, as if none were known; None takes those that are known.
    """
    values, persons = data.quantiles[scans], data.persons[scans]
    ages = data.ages[scans] if predict is None else np.full(len(scans), np.nan)
    by_number = None if predict is None else lambda i, curve: predict(int(scans[i]), curve)
    ages = estimate_ages(values, ages, persons, appearance, by_number)
    used = ~np.isnan(ages)
    values, ages, persons = values[used], ages[used], persons[used]
    return IntensityMapping.of(site_code(values, ages, persons, appearance), appearance)


def cross_calibrated(
    data: TrainingSet,
    scans: np.ndarray,
    among: np.ndarray,
    appearance: Appearance,
    predict: Predict | None,
    seed: int,
) -> dict[int, IntensityMapping]:
    """Give each scan of a site the mapping that the site's other persons say.

    Parameters
    ----------
    data, appearance, predict
        As of :func:`site_mapping`.
    scans : numpy.ndarray
        Numbers of the scans of one site.
    among : numpy.ndarray
        Those of them that may be calibrated on.
    seed : int
        Of the folds.

    Returns
    -------
    dict of int to IntensityMapping
        By the scan's number; scans that no other person is left to calibrate for have none.
    """
    if predict is not None:
        predict = cache(predict)  # as it is, a scan is predicted in every fold but its own
    n_folds = min(FOLDS, len(np.unique(data.persons[scans])))
    folds = make_folds(data, scans, n_folds, np.random.default_rng(seed))
    found: dict[int, IntensityMapping] = {}
    for fold in range(n_folds):
        tested = scans[folds[scans] == fold]
        others = among[~np.isin(data.persons[among], data.persons[tested])]
        if len(others):
            mapping = site_mapping(data, others, appearance, predict)
            found |= {int(scan): mapping for scan in tested}
    return found


def mean_quantiles(data: TrainingSet, scans: np.ndarray) -> np.ndarray:
    """Mean quantiles of the brain's intensities over some scans, for :func:`match_histogram`."""
    levels = np.linspace(0, 1, N_QUANTILES)
    each = [np.quantile(i[m], levels) for i, m in map(data.stack, scans)]
    return np.asarray(np.mean(each, axis=0))


def match_histogram(volume: np.ndarray, mask: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Give a scan the reference's intensity distribution: the published comparator.

    Parameters
    ----------
    volume, mask : numpy.ndarray
        Intensities and mask, of any shape.
    quantiles : numpy.ndarray
        Of :func:`mean_quantiles` of the reference's scans.

    Returns
    -------
    numpy.ndarray
        float32, background 0.
    """
    out = np.zeros(volume.shape, np.float32)
    own = np.quantile(volume[mask], np.linspace(0, 1, len(quantiles)))
    out[mask] = np.interp(volume[mask], own, quantiles)
    return out


def acceptance(sites: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Tell whether a map removes what sites add, and leaves alone the sites that add nothing.

    Parameters
    ----------
    sites : mapping
        By site and way (``none``, ``harmonized``), figures with ``offset`` and ``offset_95``, of
        scans that no calibration saw.

    Returns
    -------
    dict
        ``passed`` (None where no site can be judged), ``removed`` (part of the mean absolute
        offset of the sites whose raw offset differs from zero by more than its interval; None
        without such a site), ``moved`` and ``still``, the names of the sites that were judged by
        each rule, and ``text``, one sentence.
    """
    judged = {
        site: (ways["none"], ways["harmonized"])
        for site, ways in sites.items()
        if {"none", "harmonized"} <= ways.keys() and ways["none"].get("offset_95") is not None
    }
    moved = [s for s, (raw, _) in judged.items() if not _holds_zero(raw["offset_95"])]
    still = sorted(set(judged) - set(moved))
    removed = None
    if moved:
        before, after = (
            float(np.mean([abs(judged[s][k]["offset"]) for s in moved])) for k in (0, 1)
        )
        removed = round(1 - after / before, 3)
    disturbed = [s for s in still if not _holds_zero(judged[s][1]["offset_95"])]
    if not judged:
        passed, text = None, "No site could be judged: offsets need brain ages of three persons."
    else:
        passed = not disturbed and (removed is None or removed >= LEAST_REMOVED)
        text = (
            f"The map removes {100 * removed:.0f} % of the mean site offset at {', '.join(moved)}"
            if removed is not None
            else "No site differs from the reference by more than chance"
        )
        text += f", and makes one at {', '.join(disturbed)}." if disturbed else "."
    return {"passed": passed, "removed": removed, "moved": moved, "still": still, "text": text}


def _holds_zero(interval: tuple[float, float] | list[float] | None) -> bool:
    return interval is None or interval[0] <= 0 <= interval[1]
