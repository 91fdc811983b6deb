"""How a scan looks, apart from what it shows: cheap features, and the nearest training site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from bids_harmony.contract import Contract
from bids_harmony.qc.metrics import edges_and_noise, rounded
from bids_harmony.qc.verdict import MAD_TO_SD

QUANTILES = (5, 25, 50, 75, 95)
FEATURES = (
    *(f"quantile_{q}" for q in QUANTILES),
    "grey_spread", "white_spread", "noise", "sharpness", "rim_fluid",
)  # fmt: skip
#: Spread of each feature among scans of one scanner that is taken as the least possible: some
#: sites give too few scans to tell, and a rim without fluid is the same in all.
LEAST_SPREAD = 0.005


def style_features(
    volume: np.ndarray, mask: np.ndarray, zoom_mm: float, grey: float = Contract.grey
) -> np.ndarray:
    """Measure tone, contrast, noise, sharpness and the brain mask's habit in one scaled volume.

    Parameters
    ----------
    volume, mask : numpy.ndarray
        Scaled volume on the template grid and its foreground.
    zoom_mm : float
        Isotropic voxel size in mm.
    grey : float
        The contract's value of grey matter.

    Returns
    -------
    numpy.ndarray
        One value for each of :data:`FEATURES`; what cannot be measured is 0.
    """
    values = volume[mask]
    middle = values[np.abs(values - grey) < 0.25 * grey]
    white = values[values >= (1 + grey) / 2]
    sharp = edges_and_noise(volume, mask, (zoom_mm,) * 3, grey, 1.0)
    rim = volume[mask & ~ndimage.binary_erosion(mask)]
    found = [
        *np.percentile(values, QUANTILES),
        middle.std() if middle.size else 0.0,
        white.std() if white.size else 0.0,
        sharp["noise"] or 0.0,
        sharp["sharpness"] or 0.0,
        (rim < grey / 2).mean() if rim.size else 0.0,
    ]
    return np.array([rounded(float(value)) or 0.0 for value in found])


@dataclass(frozen=True)
class StyleReference:
    """How the scans of each training site look.

    Attributes
    ----------
    sites : dict of str to numpy.ndarray
        Median of each feature.
    spread : numpy.ndarray
        Robust standard deviation of each feature among the scans of one site.
    """

    sites: dict[str, np.ndarray]
    spread: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, sites: Sequence[str] | np.ndarray) -> StyleReference:
        """Summarize (scans, features) values; the spread is pooled over the sites."""
        labels = np.asarray(sites)
        medians = {
            str(site): np.median(features[labels == site], axis=0) for site in np.unique(labels)
        }
        off = features - np.stack([medians[str(site)] for site in labels])
        spread = MAD_TO_SD * np.median(np.abs(off), axis=0)
        return cls(medians, np.maximum(spread, LEAST_SPREAD))

    def nearest(self, features: np.ndarray, among: Sequence[str] = ()) -> tuple[str, float]:
        """Find the site a scan looks most like.

        Parameters
        ----------
        features : numpy.ndarray
            Of :func:`style_features`.
        among : sequence of str
            Sites to choose from; all when empty.

        Returns
        -------
        site : str
        distance : float
            Root mean square of the robust z-scores.
        """
        chosen = sorted(among or self.sites)
        z = np.stack([(features - self.sites[site]) / self.spread for site in chosen])
        distances = np.sqrt((z**2).mean(axis=1))
        best = int(distances.argmin())
        return chosen[best], float(distances[best])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values that :meth:`from_dict` reads."""
        return {
            "features": list(FEATURES),
            "spread": [float(f"{v:.6g}") for v in self.spread],
            "sites": {s: [float(f"{v:.6g}") for v in row] for s, row in self.sites.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StyleReference:
        """Read :meth:`to_dict`'s values.

        Raises
        ------
        ValueError
            When they hold other features than this version measures.
        """
        if tuple(values["features"]) != FEATURES:
            raise ValueError("guard.json holds other features than this version measures")
        sites = {site: np.array(row) for site, row in values["sites"].items()}
        return cls(sites, np.array(values["spread"]))
