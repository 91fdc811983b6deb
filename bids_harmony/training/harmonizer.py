"""How the scans of a training set are brought to the reference: calibration, and a comparator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from bids_harmony.models.mapnetwork import MapNetwork, SiteMap
from bids_harmony.models.slices import Box, predict_value
from bids_harmony.sites.calibration import estimate_ages
from bids_harmony.sites.code import Appearance, SiteCode, site_code
from bids_harmony.training.data import TrainingSet, make_folds

#: Methods of harmonizing: by the curve alone, without the use of any age, and with known ages.
MAPPED, HARMONIZED, KNOWN_AGES = "intensity_mapping", "harmonized", "harmonized_known_ages"
#: Quantiles that histograms are matched at, and reference scans, at most, that they come from.
N_QUANTILES, MAX_HISTOGRAM = 256, 200

#: Predicts the brain age of a scan, by its number, mapped as a code says; whether to spare the
#: network (:func:`bids_harmony.sites.calibration.estimate_ages`).
Predict = Callable[[int, SiteCode, bool], float]


def quick_age(
    data: TrainingSet,
    ensembles: Sequence[Sequence[nn.Module]],
    slice_mm: tuple[float, float],
    appearance: Appearance,
    network: MapNetwork | None,
    box: Box | None = None,
) -> Predict:
    """Predict brain age from every fourth slice, for calibration without known ages.

    ``box`` is what the networks see, the data's when None.

    What was predicted is cached: with and without the network, calibration takes the same steps.
    """
    known: dict[tuple[object, ...], float] = {}
    box = box or data.box

    def predict(scan: int, code: SiteCode, spare: bool) -> float:
        follows = None if spare else network
        key = scan, code.shift.tobytes(), code.age, code.n, follows is None
        if key not in known:
            volume = SiteMap.of(code, appearance, follows, box)(data.volume(scan)[0])
            known[key] = predict_value(ensembles, volume, data.affine, box, slice_mm, step=4)
        return known[key]

    return predict


def calibration_methods(
    data: TrainingSet,
    ensembles: Sequence[Sequence[nn.Module]] | None,
    slice_mm: tuple[float, float],
    appearance: Appearance,
    network: MapNetwork | None,
) -> dict[str, tuple[Predict | None, MapNetwork | None]]:
    """Name the methods of harmonizing that are compared.

    Parameters
    ----------
    data, slice_mm, appearance, network
        As of :func:`quick_age`.
    ensembles : sequence of sequence of torch.nn.Module or None
        By which ages are estimated; None where no age is predicted.

    Returns
    -------
    dict
        By method, what estimates ages (None: those that are known) and the network that follows
        the curve. Without a network the curve alone is harmonization, and no method of its own.
    """
    methods: dict[str, tuple[Predict | None, MapNetwork | None]] = {}
    ages = spared = None
    if ensembles is not None:
        predict = ages = quick_age(data, ensembles, slice_mm, appearance, network)
        spared = lambda scan, code, spare: predict(scan, code, True)  # noqa: E731
    if network is not None:
        methods[MAPPED] = (spared, None)
    return methods | {HARMONIZED: (ages, network), KNOWN_AGES: (None, network)}


def calibrated(
    data: TrainingSet, scans: np.ndarray, appearance: Appearance, predict: Predict | None
) -> SiteCode:
    """Estimate a site's code from some of its scans.

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
    known = data.ages[scans] if predict is None else np.full(len(scans), np.nan)
    ages = filled_ages(data, scans, known, appearance, predict)
    used = scans[~np.isnan(ages)]
    ages = ages[~np.isnan(ages)]
    return site_code(data.descriptors[used], ages, data.persons[used], appearance)


def filled_ages(
    data: TrainingSet,
    scans: np.ndarray,
    ages: np.ndarray,
    appearance: Appearance,
    predict: Predict | None,
) -> np.ndarray:
    """Fill in unknown ages of a site's scans (:func:`estimate_ages`)."""
    by_number = predict and (lambda i, *how: predict(int(scans[i]), *how))
    return estimate_ages(data.descriptors[scans], ages, data.persons[scans], appearance, by_number)


def cross_calibrated(
    data: TrainingSet,
    scans: np.ndarray,
    among: np.ndarray,
    appearance: Appearance,
    predict: Predict | None,
    n_folds: int,
    seed: int,
) -> dict[int, SiteCode]:
    """Give each scan of a site the code that the site's other persons say.

    Parameters
    ----------
    data, appearance, predict
        As of :func:`calibrated`.
    scans : numpy.ndarray
        Numbers of the scans of one site.
    among : numpy.ndarray
        Those of them that may be calibrated on.
    n_folds : int
        Parts of the site's persons; each is mapped as the others say.
    seed : int
        Of the folds.

    Returns
    -------
    dict of int to SiteCode
        By the scan's number; scans that no other person is left to calibrate for have none.
    """
    n_folds = min(n_folds, len(np.unique(data.persons[scans])))
    folds = make_folds(data, scans, n_folds, np.random.default_rng(seed))
    found: dict[int, SiteCode] = {}
    for fold in range(n_folds):
        tested = scans[folds[scans] == fold]
        others = among[~np.isin(data.persons[among], data.persons[tested])]
        if len(others):
            code = calibrated(data, others, appearance, predict)
            found |= {int(scan): code for scan in tested}
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
