"""The anatomy guard: check that harmonization preserved a scan's anatomy.

Tissue volumes are measured before and after harmonization. Before, the thresholds between tissues
are halfway between the scan's tissue means. After, they are these thresholds passed through the
estimated intensity mapping. A pure intensity mapping therefore changes no volume, whereas enlarged
ventricles or a thinner cortex do.

Limits are calibrated on validation scans with simulated acquisitions, whose original is known
(:mod:`bids_harmony.training.acquisition`): they are the 99th percentile of the same measures
between original and harmonized scan. Test scans are not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from bids_harmony.anat.intensity import TissueMeans, tissue_means
from bids_harmony.config import Contract
from bids_harmony.qc.metrics import rounded
from bids_harmony.qc.reference import dictionary, readable

TISSUES = ("csf", "gm", "wm", "ventricle")
#: Metrics checked by the guard. All but the last are fractions, reported in per cent.
MEASURES = (*(f"harmonized_{tissue}_change" for tissue in TISSUES), "harmonized_local_change")
#: A scan fails if a metric exceeds its limit by this factor.
FAIL_FACTOR = 2.0
#: Quantile of the known errors used as limit. With fewer scans than ``MIN_SCANS`` it cannot be
#: estimated; instead, the quantile ``SMALL_QUANTILE`` is multiplied by ``SMALL_FACTOR``, the ratio
#: of these two quantiles for normally distributed errors.
QUANTILE, MIN_SCANS, SMALL_QUANTILE, SMALL_FACTOR = 0.99, 100, 0.9, 1.566
#: Bounding box (x, y, z in template mm) of the bodies of the lateral and third ventricles. It
#: contains even very large ventricles, but no CSF outside the brain.
CENTRAL_MM = ((-30.0, 30.0), (-58.0, 34.0), (-10.0, 34.0))
#: Threshold of ventricles, as a fraction of the difference between CSF and white matter.
VENTRICLE = 0.3
#: Minimum ventricle volume, in ml, to which changes are relative: in smaller ventricles, single
#: voxels would count as large changes.
MIN_VENTRICLE_ML = 4.0
#: Fraction of the voxels in each intensity bin, those farthest from tissue borders, used to
#: estimate the intensity mapping. Otherwise, shifted borders could be mistaken for changed
#: intensities.
FLAT = 0.1
STEP, FEW = 0.05, 100
#: Standard deviation, in mm, of the Gaussian that averages local changes.
LOCAL_MM = 4.0


def measure(
    raw: np.ndarray, harmonized: np.ndarray, mask: np.ndarray, affine: np.ndarray
) -> dict[str, float | None]:
    """Measure how much harmonization changed a scan's intensities and tissue volumes.

    Parameters
    ----------
    raw, harmonized : numpy.ndarray
        3-D scaled volumes on the template grid, before and after harmonization. To calibrate the
        guard: an original scan, and the harmonized scan derived from it.
    mask : numpy.ndarray
        Boolean mask of the foreground, same shape.
    affine : numpy.ndarray
        4 x 4 affine of the grid, with axes parallel to those of the template.

    Returns
    -------
    dict
        ``harmonized_change``, ``raw_*_ml``, ``harmonized_*_ml`` and ``harmonized_*_change`` of
        csf, gm, wm and ventricle, and ``harmonized_local_change``, as described in
        ``data/qc_dictionary.json``. Values that are not finite are None.
    """
    before, after = (np.where(mask, v, 0).astype(np.float32) for v in (raw, harmonized))
    borders = tissue_limits(before, mask, affine)
    moved = np.interp(borders, *intensity_curve(before, after, mask))
    old, new = tissue_ml(before, mask, affine, borders), tissue_ml(after, mask, affine, moved)
    values: dict[str, Any] = {
        "harmonized_change": np.abs(after - before)[mask].mean(dtype=np.float64)
    }
    for tissue, was, is_now in zip(TISSUES, old, new, strict=True):
        least = MIN_VENTRICLE_ML if tissue == "ventricle" else 1.0
        values[f"raw_{tissue}_ml"], values[f"harmonized_{tissue}_ml"] = was, is_now
        values[f"harmonized_{tissue}_change"] = (is_now - was) / max(was, least)
    values["harmonized_local_change"] = np.abs(local_change(before, after, mask, affine)).max()
    return {name: rounded(float(value)) for name, value in values.items()}


def intensity_curve(
    before: np.ndarray, after: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the monotone intensity mapping between two volumes.

    Parameters
    ----------
    before, after : numpy.ndarray
        3-D scaled volumes of the same shape.
    mask : numpy.ndarray
        Boolean mask of the foreground, same shape.

    Returns
    -------
    x, y : numpy.ndarray
        Ascending intensities before, and median intensities after.
    """
    # Use the local range, as the gradient is small in the middle of a thin cortex.
    uneven = (ndimage.maximum_filter(before, 3) - ndimage.minimum_filter(before, 3))[mask]
    values, new = before[mask], after[mask]
    x, y = [0.0], [0.0]
    for middle in np.arange(STEP / 2, 1.5, STEP):
        there = np.flatnonzero(np.abs(values - middle) <= STEP / 2)
        if there.size >= FEW:
            flat = there[uneven[there] <= np.quantile(uneven[there], FLAT)]
            x.append(float(np.median(values[flat])))
            y.append(float(np.median(new[flat])))
    return np.array([*x, x[-1] + 1]), np.maximum.accumulate([*y, y[-1] + 1])


def tissue_limits(volume: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the intensity thresholds CSF-grey and grey-white matter, and that of the ventricles.

    Thresholds are based on the volume's tissue means or, if three tissues cannot be separated, on
    those of the intensity scaling.

    Parameters
    ----------
    volume, mask, affine
        As for :func:`measure`.

    Returns
    -------
    numpy.ndarray
        Shape (3,), in scaled intensities.
    """
    found = tissue_means(volume, mask, abs(float(affine[0, 0])))
    csf, grey, white = found or TissueMeans(0.0, Contract.grey, 1.0)
    return np.array([(csf + grey) / 2, (grey + white) / 2, csf + VENTRICLE * (white - csf)])


def tissue_ml(
    volume: np.ndarray, mask: np.ndarray, affine: np.ndarray, limits: np.ndarray
) -> list[float]:
    """Compute the volumes of CSF, grey matter, white matter and ventricles.

    Parameters
    ----------
    volume, mask, affine
        As for :func:`measure`.
    limits : numpy.ndarray
        Thresholds from :func:`tissue_limits`, shape (3,).

    Returns
    -------
    list of float
        Four volumes in ml. Ventricle voxels are also counted as CSF or grey matter.
    """
    box = []
    for axis, ends in enumerate(CENTRAL_MM):
        low, high = sorted((mm - affine[axis, 3]) / affine[axis, axis] for mm in ends)
        box.append(slice(max(round(low), 0), max(round(high) + 1, 0)))
    central = tuple(box)
    csf = int((volume[mask] < limits[0]).sum())
    white = int((volume[mask] >= limits[1]).sum())
    ventricles = int((mask[central] & (volume[central] < limits[2])).sum())
    ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return [n * ml for n in (csf, int(mask.sum()) - csf - white, white, ventricles)]


def local_change(
    before: np.ndarray, after: np.ndarray, mask: np.ndarray, affine: np.ndarray
) -> np.ndarray:
    """Map the changes beyond the intensity mapping, averaged locally.

    Parameters
    ----------
    before, after, mask, affine
        As for :func:`measure`.

    Returns
    -------
    numpy.ndarray
        float32 in scaled intensities, same shape; 0 at the surface and outside the mask.
    """
    rest = np.where(mask, after - np.interp(before, *intensity_curve(before, after, mask)), 0)
    sd = LOCAL_MM / abs(float(affine[0, 0]))
    core = ndimage.binary_erosion(mask, iterations=2)
    return np.where(core, ndimage.gaussian_filter(rest, sd), 0).astype(np.float32)


def limits(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Compute the guard's limits from validation scans whose original is known.

    Parameters
    ----------
    rows : sequence of mapping
        :func:`measure` between each original and the harmonized scan.

    Returns
    -------
    dict
        ``limit`` and ``n`` (number of scans) for each of :data:`MEASURES`. The limit is the 99th
        percentile of the absolute values or, with fewer than 100 scans, 1.57 times the 90th.
        Metrics that are missing in all scans have no limit.
    """
    found = {}
    for name in MEASURES:
        sizes = [abs(v) for row in rows if (v := row.get(name)) is not None]
        if sizes:
            share, times = (
                (QUANTILE, 1.0) if len(sizes) >= MIN_SCANS else (SMALL_QUANTILE, SMALL_FACTOR)
            )
            limit = times * float(np.quantile(sizes, share, method="higher"))
            found[name] = {"limit": float(f"{limit:.4g}"), "n": len(sizes)}
    return found


def guard_record(
    metrics: Mapping[str, float | None], guard: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Check the harmonization metrics of a scan against the guard's limits.

    Parameters
    ----------
    metrics : mapping
        Values by metric, None where undefined. Metrics other than the guard's are ignored.
    guard : mapping or None
        Contents of the bundle's ``guard.json``, with the :func:`limits`; None if it has none.

    Returns
    -------
    dict
        Part of a scan's record: ``status`` (``fail`` if a metric exceeds twice its limit, ``warn``
        if one exceeds its limit, otherwise ``pass``; None without a guard), ``reasons``,
        ``flagged`` (metrics beyond their limits) and ``limits`` (formatted limit by metric).
        Metrics without a limit pass.
    """
    found = (guard or {}).get("limits", {})
    limits = {name: float(found[name]["limit"]) for name in MEASURES if name in found}
    sizes = {name: abs(metrics.get(name) or 0.0) for name in limits}
    flagged = [name for name in limits if sizes[name] > limits[name]]
    failed = [name for name in flagged if sizes[name] > FAIL_FACTOR * limits[name]]
    reasons = []
    for name in flagged:
        value, limit = spoken(name, metrics[name] or 0.0), spoken_limit(name, limits[name])
        how = f"more than {FAIL_FACTOR:g} times" if name in failed else "above"
        reasons.append(f"{dictionary()[name]['LongName']} is {value}, {how} the limit of {limit}")
    status = "fail" if failed else "warn" if flagged else "pass"
    return {
        "status": None if guard is None else status,
        "reasons": reasons,
        "flagged": flagged,
        "limits": {name: spoken_limit(name, limit) for name, limit in limits.items()},
    }


def spoken(name: str, value: float) -> str:
    """Format the value of a metric for readers: fractions as signed percentages.

    >>> spoken("harmonized_ventricle_change", -0.0712), spoken("harmonized_local_change", 0.3141)
    ('-7.1 %', '0.314')
    """
    if name == "harmonized_local_change":
        return readable(value)
    return f"{round(100 * value, 1) + 0.0:+.1f} %"  # + 0.0 turns -0.0 into 0.0


def spoken_limit(name: str, limit: float) -> str:
    """Format a limit like :func:`spoken`, without its sign.

    >>> spoken_limit("harmonized_ventricle_change", 0.03)
    '3.0 %'
    """
    return spoken(name, limit).removeprefix("+")
