"""How the scans of a training set are brought to the reference: calibration, and a comparator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class Calibrator:
    """Calibrates the sites of a training set.

    Attributes
    ----------
    data : TrainingSet
        All scans.
    appearance : Appearance
        Of the reference.
    network : MapNetwork or None
        What follows the curve.
    ensembles : sequence of sequence of torch.nn.Module or None
        By which ages are estimated; None where no age is predicted.
    slice_mm : tuple of float
        Of the contract.
    box : tuple, optional
        What the networks see; the data's when None.
    """

    data: TrainingSet
    appearance: Appearance
    network: MapNetwork | None
    ensembles: Sequence[Sequence[nn.Module]] | None
    slice_mm: tuple[float, float]
    box: Box | None = None
    known: dict[Any, float] = field(default_factory=dict)

    def predict_age(self, scan: int, code: SiteCode, spare: bool = False) -> float:
        """Predict brain age from every fourth slice, for calibration without known ages.

        What was predicted is cached: with and without the network, calibration takes the same
        steps.
        """
        spare, data, box = spare or self.network is None, self.data, self.box or self.data.box
        key = scan, code.shift.tobytes(), code.age, code.n, spare
        if key not in self.known:
            follows = None if spare else self.network
            volume = SiteMap.of(code, self.appearance, follows, box)(data.volume(scan)[0])
            self.known[key] = predict_value(
                self.ensembles or (), volume, data.affine, box, self.slice_mm, step=4
            )
        return self.known[key]

    def methods(self) -> dict[str, tuple[Predict | None, MapNetwork | None]]:
        """Name the methods of harmonizing that are compared.

        Returns
        -------
        dict
            By method, what estimates ages (None: those that are known) and the network that
            follows the curve. Without a network the curve alone is harmonization, and no method
            of its own.
        """
        ages = spared = None
        if self.ensembles is not None:
            ages, spared = self.predict_age, self._spared
        found = {} if self.network is None else {MAPPED: (spared, None)}
        return found | {HARMONIZED: (ages, self.network), KNOWN_AGES: (None, self.network)}

    def _spared(self, scan: int, code: SiteCode, _: bool) -> float:
        return self.predict_age(scan, code, spare=True)

    def code(self, scans: np.ndarray, predict: Predict | None) -> SiteCode:
        """Estimate a site's code from some of its scans.

        Parameters
        ----------
        scans : numpy.ndarray
            Numbers of the scans to calibrate on.
        predict : callable or None
            Estimates the ages, as if none were known; None takes those that are known.
        """
        known = self.data.ages[scans] if predict is None else np.full(len(scans), np.nan)
        ages = self.filled_ages(scans, known, predict)
        used, ages = scans[~np.isnan(ages)], ages[~np.isnan(ages)]
        return site_code(
            self.data.descriptors[used], ages, self.data.persons[used], self.appearance
        )

    def filled_ages(
        self, scans: np.ndarray, ages: np.ndarray, predict: Predict | None
    ) -> np.ndarray:
        """Fill in unknown ages of a site's scans (:func:`estimate_ages`)."""
        by_number = predict and (lambda i, *how: predict(int(scans[i]), *how))
        descriptors, persons = self.data.descriptors[scans], self.data.persons[scans]
        return estimate_ages(descriptors, ages, persons, self.appearance, by_number)

    def cross_codes(
        self,
        scans: np.ndarray,
        among: np.ndarray,
        predict: Predict | None,
        n_folds: int,
        seed: int,
    ) -> dict[int, SiteCode]:
        """Give each scan of a site the code that the site's other persons say.

        Parameters
        ----------
        scans : numpy.ndarray
            Numbers of the scans of one site.
        among : numpy.ndarray
            Those of them that may be calibrated on.
        predict : callable or None
            As of :meth:`code`.
        n_folds : int
            Parts of the site's persons; each is mapped as the others say.
        seed : int
            Of the folds.

        Returns
        -------
        dict of int to SiteCode
            By the scan's number; scans that no other person is left to calibrate for have none.
        """
        persons = self.data.persons
        n_folds = min(n_folds, len(np.unique(persons[scans])))
        folds = make_folds(self.data, scans, n_folds, np.random.default_rng(seed))
        found: dict[int, SiteCode] = {}
        for fold in range(n_folds):
            tested = scans[folds[scans] == fold]
            others = among[~np.isin(persons[among], persons[tested])]
            if len(others):
                found |= dict.fromkeys(tested.tolist(), self.code(others, predict))
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
