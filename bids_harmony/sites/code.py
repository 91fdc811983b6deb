"""The site code: how a site's scans differ from reference scans at the same ages.

A single scan does not separate scanner effects from the person's anatomy; twenty scans do. Each
scan is therefore summarized by descriptors, which are compared with the values expected at the
reference for the person's age. The differences are averaged over the site and define one intensity
mapping for all its scans (site-effects.md §3, §4). The module is ordered as follows: scan
descriptors, appearance of the reference, site code, intensity mapping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy import ndimage

#: Depth below the brain mask surface, in mm, of the voxels that are compared. Closer to the
#: surface, sites differ in brain masks and remaining CSF; deeper voxels are mostly ventricles
#: (site-effects.md §3).
DEEP_MM = (14.0, 22.0)
#: Probability levels of the intensity quantiles.
LEVELS = tuple(round(0.01 + 0.02 * k, 2) for k in range(50))
#: Smallest depth, in mm, of the voxels used for texture.
INNER_MM = 6.0
#: Number of texture values: sharpness along each axis, and noise.
N_TEXTURE = 4
#: Intensity range that is certainly white matter.
WHITE = (0.92, 1.12)
#: Between-site variance relative to between-person variance. It is fixed, because too few sites
#: are available to estimate it: at these, grey matter differs by four to five times its standard
#: deviation between persons.
SITE_RATIO = 16.0
#: Intensity of deep grey matter at the reference. The contract defines that of other grey matter.
DEEP_GREY = 0.84
#: Smallest step between curve points, so that the curve is strictly ascending.
MIN_STEP = 1e-4


def describe(volume: np.ndarray, brain_mask: np.ndarray, zoom_mm: float) -> dict[str, Any]:
    """Compute descriptors of a scan's intensity distribution and texture.

    Parameters
    ----------
    volume : numpy.ndarray
        3-D volume on the template grid, normalized by
        :func:`bids_harmony.anat.intensity.normalize` (CSF 0, white matter 1, background 0).
    brain_mask : numpy.ndarray
        3-D boolean mask of the whole brain, including surface CSF.
    zoom_mm : float
        Isotropic voxel size in mm.

    Returns
    -------
    dict
        ``quantiles``: intensities at the probabilities :data:`LEVELS`, of the voxels at
        :data:`DEEP_MM` below the surface of the filled mask. ``texture``: for each axis, the log
        ratio of the mean absolute difference between adjacent voxels to that between voxels two
        apart (lowered by blur, raised by noise); then the logarithm of the roughness of white
        matter.
    """
    filled = np.pad(ndimage.binary_fill_holes(brain_mask), 1)
    depth = ndimage.distance_transform_edt(filled)[1:-1, 1:-1, 1:-1] * zoom_mm
    # In a cropped or very small brain, use the deepest voxels available.
    deep = (depth >= min(DEEP_MM[0], 0.5 * float(depth.max()))) & (depth <= DEEP_MM[1])
    return {
        "quantiles": np.quantile(volume[deep], LEVELS).round(4).tolist(),
        "texture": [
            round(v, 4) for v in _texture(volume, depth >= min(INNER_MM, depth.max() / 2))
        ],
    }


def vector(descriptors: Mapping[str, Any]) -> np.ndarray:
    """Convert the output of :func:`describe` to a (descriptors,) array, quantiles first."""
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
    """Linear model of the reference site's scan descriptors as a function of age.

    Attributes
    ----------
    intercept, slope : numpy.ndarray
        (descriptors,) least-squares line of each descriptor on age in years.
    person_sd : numpy.ndarray
        (descriptors,) residual standard deviation between persons.
    ages : tuple of float
        Minimum and maximum age of the reference persons, in years. Ages outside this range are
        clipped.
    line : tuple of float or None
        Slope and intercept of the reference's cross-validated brain age on age, used to estimate
        unknown ages; None if brain age is not predicted.
    mean_age : float
        Mean age of the reference persons in years.
    n : int
        Number of reference persons.
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
        """Fit the model to reference scans; each person counts once.

        Unknown ages are replaced by the mean age. If no age is known, the model does not depend on
        age.

        Parameters
        ----------
        descriptors : numpy.ndarray
            (scans, descriptors) scan descriptors.
        ages : numpy.ndarray
            (scans,) ages in years, NaN if unknown.
        persons : sequence of str
            (scans,) person of each scan.
        line : tuple of float or None
            Slope and intercept of cross-validated brain age on age.
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
        """Return the expected descriptors at each age, (scans, descriptors)."""
        return np.asarray(self.intercept + np.clip(ages, *self.ages)[:, None] * self.slope)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values for :meth:`from_dict`."""
        return {"levels": list(LEVELS)} | {
            name: [float(f"{v:.6g}") for v in value] if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Appearance:
        """Create an appearance model from the output of :meth:`to_dict`."""
        found = {field.name: values[field.name] for field in fields(cls)}
        arrays = {
            name: np.array(found[name], float) for name in ("intercept", "slope", "person_sd")
        }
        return cls(**found | arrays)


@dataclass(frozen=True)
class SiteCode:
    """Difference between a site and the reference at the same ages.

    Attributes
    ----------
    shift : numpy.ndarray
        (descriptors,) descriptors of the site minus those of the reference.
    sd : numpy.ndarray
        (descriptors,) standard error of ``shift`` after shrinkage.
    age : float
        Mean age of the site's persons in years, known or estimated.
    n : int
        Number of persons.
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
    """Estimate a site code from the scans of a site.

    Parameters
    ----------
    descriptors : numpy.ndarray
        (scans, descriptors) output of :func:`bids_harmony.sites.code.vector` for each scan.
    ages : numpy.ndarray
        (scans,) ages in years, known or estimated.
    persons : sequence of str
        (scans,) person of each scan; each person counts once.
    appearance : Appearance
        Appearance model of the reference.

    Returns
    -------
    SiteCode
        Mean difference from the reference, shrunk towards zero according to the number of persons.
        It does not depend on the order of the scans.
    """
    off = _by_person(descriptors - appearance.expected(ages), persons)
    n = len(off)
    shrink = SITE_RATIO / (SITE_RATIO + 1 / n)
    sd = appearance.person_sd * np.sqrt(shrink / n)
    return SiteCode(shrink * off.mean(axis=0), sd, float(_by_person(ages, persons).mean()), n)


def _by_person(values: np.ndarray, persons: Sequence[str] | np.ndarray) -> np.ndarray:
    """Average the rows of each person."""
    _, which = np.unique(np.asarray(persons), return_inverse=True)
    sums = np.zeros((which.max() + 1, *values.shape[1:]))
    np.add.at(sums, which, values)
    counts = np.bincount(which).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(sums / counts)


@dataclass(frozen=True, eq=False)
class IntensityMapping:
    """A monotone curve from a site's intensities to those of the reference.

    Attributes
    ----------
    x, y : numpy.ndarray
        Intensities at the site and at the reference, both ascending. Below the first point, the
        curve is linear to 0, so that the background stays 0. Above the last point, the difference
        between the two stays constant.
    """

    x: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, code: SiteCode, appearance: Appearance) -> IntensityMapping:
        """Create the curve that maps the site's quantiles to those of the reference.

        Both are taken at the mean age of the site's persons.
        """
        n = len(LEVELS)
        y = appearance.expected(np.array([code.age]))[0][:n]
        return cls(_ascending(y + code.shift[:n]), _ascending(y))

    def __call__(self, volume: np.ndarray) -> np.ndarray:
        """Map a volume of any shape; returns float32, with background 0 unchanged."""
        far = 10.0
        x = np.concatenate([[0.0], self.x, [self.x[-1] + far]])
        y = np.concatenate([[0.0], self.y, [self.y[-1] + far]])
        return np.asarray(np.interp(volume, x, y), dtype=np.float32)


def spoken(changes: Mapping[str, float]) -> str:
    """Describe :meth:`bids_harmony.sites.calibration.Calibration.changes` in words.

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
    steps = np.arange(len(values)) * MIN_STEP
    return np.asarray(np.maximum.accumulate(np.maximum(values, MIN_STEP) - steps) + steps)
