"""The site code: how a site's scans differ from the reference's at the same ages.

A scan alone cannot tell its scanner from its person; twenty scans can. So each scan is described
by plain numbers, which are compared with what they are expected to be at the reference at the
person's age; the differences are pooled over the site, and make one intensity mapping for all its
scans (site-effects.md §3, §4). Reads from top to bottom: descriptors of a scan, the reference's
appearance, the code of a site, its mapping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

#: Depth under the surface of the brain mask, in mm, of the voxels that are compared. Nearer to the
#: surface sites differ by their brain masks and the CSF that these keep; deeper lie mostly the
#: ventricles (site-effects.md §3).
DEEP_MM = (14.0, 22.0)
#: Probabilities of the intensity quantiles.
LEVELS = tuple(round(0.01 + 0.02 * k, 2) for k in range(50))
#: Texture is measured in voxels at least so deep, in mm.
INNER_MM = 6.0
#: Values of the texture: sharpness along each axis, and noise.
N_TEXTURE = 4
#: Intensities that are white matter beyond doubt.
WHITE = (0.92, 1.12)
#: Variance of sites relative to that of persons, where too few sites are there to tell: at the
#: sites at hand grey matter differs by four to five times its spread between persons.
SITE_RATIO = 16.0
#: Reference intensity of deep grey matter; that of other grey matter is the contract's.
DEEP_GREY = 0.84
#: Least rise of the curve, so that it keeps all differences within a scan.
LEAST_STEP = 1e-4


def describe(volume: np.ndarray, brain_mask: np.ndarray, zoom_mm: float) -> dict[str, Any]:
    """Describe how a scan's intensities are distributed.

    Parameters
    ----------
    volume : numpy.ndarray
        3-D volume on the template grid as :func:`bids_harmony.anat.intensity.normalize` makes
        it (CSF 0, white matter 1, background 0).
    brain_mask : numpy.ndarray
        Boolean mask of the whole brain, with the CSF at its surface.
    zoom_mm : float
        Isotropic voxel size.

    Returns
    -------
    dict
        ``quantiles``: intensities at the probabilities :data:`LEVELS` of the voxels that lie
        :data:`DEEP_MM` under the surface of the filled mask. ``texture``: along each axis, the
        logarithm of how far neighbours differ over how far voxels two apart do, which blurring
        lowers and noise raises; and the logarithm of the roughness of white matter.
    """
    filled = np.pad(ndimage.binary_fill_holes(brain_mask), 1)
    depth = ndimage.distance_transform_edt(filled)[1:-1, 1:-1, 1:-1] * zoom_mm
    # In a brain that is cut off or far too small, the deepest there is.
    deep = (depth >= min(DEEP_MM[0], 0.5 * float(depth.max()))) & (depth <= DEEP_MM[1])
    return {
        "quantiles": np.quantile(volume[deep], LEVELS).round(4).tolist(),
        "texture": [
            round(v, 4) for v in _texture(volume, depth >= min(INNER_MM, depth.max() / 2))
        ],
    }


def vector(descriptors: Mapping[str, Any]) -> np.ndarray:
    """Put what :func:`describe` found into one row: quantiles, then texture."""
    return np.array([*descriptors["quantiles"], *descriptors["texture"]], dtype=float)


def _texture(volume: np.ndarray, inner: np.ndarray) -> list[float]:
    found, roughness = [], 6 * volume
    for axis in range(3):
        before, after = np.roll(volume, 1, axis), np.roll(volume, -1, axis)
        near = np.abs(after - volume)[inner].mean(dtype=np.float64)
        far = np.abs(after - before)[inner].mean(dtype=np.float64)
        found.append(float(np.log(max(near, 1e-6) / max(far, 1e-6))))
        roughness = roughness - before - after
    white = ndimage.binary_erosion(inner & (volume > WHITE[0]) & (volume < WHITE[1]))
    where = white if white.any() else inner
    found.append(float(np.log(np.abs(roughness[where]).mean(dtype=np.float64) / 6 + 1e-3)))
    return found


@dataclass(frozen=True)
class Appearance:
    """Appearance of the reference site's scans, and how it depends on age.

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
        (scans, descriptors): :func:`bids_harmony.sites.code.vector` of each.
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
    shrink = SITE_RATIO / (SITE_RATIO + 1 / n)
    sd = appearance.person_sd * np.sqrt(shrink / n)
    return SiteCode(shrink * off.mean(axis=0), sd, float(_by_person(ages, persons).mean()), n)


def _by_person(values: np.ndarray, persons: Sequence[str] | np.ndarray) -> np.ndarray:
    """Average the scans of each person."""
    _, which = np.unique(np.asarray(persons), return_inverse=True)
    sums = np.zeros((which.max() + 1, *values.shape[1:]))
    np.add.at(sums, which, values)
    counts = np.bincount(which).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(sums / counts)


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
