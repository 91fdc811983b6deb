"""The intensity mapping of a site: one monotone curve for all its scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bids_harmony.sites.code import Appearance, SiteCode
from bids_harmony.sites.descriptors import LEVELS

#: Reference intensity of deep grey matter; that of other grey matter is the contract's.
DEEP_GREY = 0.84
#: Least rise of the curve, so that it keeps all differences within a scan.
LEAST_STEP = 1e-4


@dataclass(frozen=True, eq=False)
class IntensityMapping:
    """A monotone curve from a site's intensities to the reference's.

    Attributes
    ----------
    x, y : numpy.ndarray
        Intensities at the site and at the reference, both ascending. Below the first the curve
        runs straight to 0, so that the background stays 0; beyond the last it keeps its distance.
    """

    x: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, code: SiteCode, appearance: Appearance) -> IntensityMapping:
        """Make the curve that takes the site's quantiles to the reference's at the same ages."""
        n = len(LEVELS)
        y = appearance.expected(np.array([code.age]))[0][:n]
        return cls(_ascending(y + code.shift[:n]), _ascending(y))

    def __call__(self, volume: np.ndarray) -> np.ndarray:
        """Map a volume; float32, 0 where it was 0."""
        far = 10.0
        x = np.concatenate([[0.0], self.x, [self.x[-1] + far]])
        y = np.concatenate([[0.0], self.y, [self.y[-1] + far]])
        return np.asarray(np.interp(volume, x, y), dtype=np.float32)

    def changes(self, grey: float) -> dict[str, float]:
        """Say what is added to the site's intensities where the reference has grey matter.

        Parameters
        ----------
        grey : float
            Intensity of grey matter in the bundle's contract.
        """
        tissues = {"grey matter": grey, "deep grey matter": DEEP_GREY}
        return {
            name: round(float(level - np.interp(level, self.y, self.x)), 4)
            for name, level in tissues.items()
        }


def spoken(changes: Mapping[str, float]) -> str:
    """Put :meth:`bids_harmony.sites.calibration.Calibration.changes` into words.

    >>> spoken({"grey matter": 0.071, "deep grey matter": -0.002, "sharpness": -0.04})
    'grey matter 0.07 brighter, deep grey matter unchanged, borders smoother'
    """
    words = []
    for name, change in changes.items():
        if abs(change) < (0.01 if name == "sharpness" else 0.005):
            words.append(f"{name} unchanged")
        elif name == "sharpness":
            words.append(f"borders {'sharper' if change > 0 else 'smoother'}")
        else:
            words.append(f"{name} {abs(change):.2f} {'brighter' if change > 0 else 'darker'}")
    return ", ".join(words)


def _ascending(values: np.ndarray) -> np.ndarray:
    steps = np.arange(len(values)) * LEAST_STEP
    return np.asarray(np.maximum.accumulate(np.maximum(values, LEAST_STEP) - steps) + steps)
