"""The anatomy guard: tell whether a harmonized scan still shows the same brain.

Volumes of tissue are measured before and after. Before, tissues are told apart halfway between
the scan's own tissue means; after, where the map takes these limits, so that a new intensity
mapping changes no volume, and ventricles that grew or a cortex that shrank do. What may change
is known from scans whose original is known: reference scans under made-up acquisitions,
harmonized (:mod:`bids_harmony.training.truth`). Limits are the 99th percentile of the same
measures between these and their originals; test scans have no say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from bids_harmony.anat.intensity import TissueMeans, tissue_means
from bids_harmony.config import Contract
from bids_harmony.qc.metrics import rounded
from bids_harmony.qc.reference import Verdict, dictionary, readable

TISSUES = ("csf", "gm", "wm", "ventricle")
#: What the guard judges. All but the last are shares, spoken of in per cent.
MEASURES = (*(f"harmonized_{tissue}_change" for tissue in TISSUES), "harmonized_local_change")
#: Beyond this many times its limit a measure fails the scan.
FAIL_FACTOR = 2.0
#: Share of known errors within a limit. Fewer scans than this many do not show it: there, it is
#: taken from the share that they show, as of normally distributed errors.
LEVEL, ENOUGH, SHOWN, TIMES = 0.99, 100, 0.9, 1.566
#: Box in template mm, x, y and z, that holds the bodies of the lateral and the third ventricle
#: even where they are very large, and no CSF of the brain's outside.
CENTRAL_MM = ((-30.0, 30.0), (-58.0, 34.0), (-10.0, 34.0))
#: Ventricles reach to this share of the way from CSF to white matter.
VENTRICLE = 0.3
#: Ventricles smaller than this (ml) are taken as this large: a voxel more is no great change.
LEAST_VENTRICLE_ML = 4.0
#: The intensity mapping is read from this share of voxels of each intensity, those farthest from
#: any border. A map that moves borders would else pass for one that changes intensities.
FLAT = 0.1
STEP, FEW = 0.05, 100
#: Standard deviation, in mm, of the neighbourhood in which local changes are averaged.
LOCAL_MM = 4.0


def measure(
    raw: np.ndarray, harmonized: np.ndarray, mask: np.ndarray, affine: np.ndarray
) -> dict[str, float | None]:
    """Measure how much harmonization changed a scan, and whether its anatomy stayed.

    Parameters
    ----------
    raw, harmonized : numpy.ndarray
        Scaled volumes on the template grid, before and after; or, to calibrate the guard, an
        original and what was harmonized of it.
    mask : numpy.ndarray
        Boolean mask of their foreground.
    affine : numpy.ndarray
        4 x 4 affine of the grid, whose axes run along the template's.

    Returns
    -------
    dict
        ``harmonized_change``, ``raw_*_ml``, ``harmonized_*_ml`` and ``harmonized_*_change`` of
        csf, gm, wm and ventricle, and ``harmonized_local_change``, as described in
        ``data/qc_dictionary.json``.
    """
    before, after = (np.where(mask, v, 0).astype(np.float32) for v in (raw, harmonized))
    borders = tissue_limits(before, mask, affine)
    moved = np.interp(borders, *intensity_curve(before, after, mask))
    old, new = tissue_ml(before, mask, affine, borders), tissue_ml(after, mask, affine, moved)
    values: dict[str, Any] = {
        "harmonized_change": np.abs(after - before)[mask].mean(dtype=np.float64)
    }
    for tissue, was, is_now in zip(TISSUES, old, new, strict=True):
        least = LEAST_VENTRICLE_ML if tissue == "ventricle" else 1.0
        values[f"raw_{tissue}_ml"], values[f"harmonized_{tissue}_ml"] = was, is_now
        values[f"harmonized_{tissue}_change"] = (is_now - was) / max(was, least)
    values["harmonized_local_change"] = np.abs(local_change(before, after, mask, affine)).max()
    return {name: rounded(float(value)) for name, value in values.items()}


def intensity_curve(
    before: np.ndarray, after: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Read from two volumes by which monotone curve intensities have changed.

    Returns
    -------
    x, y : numpy.ndarray
        Ascending intensities before, and medians after.
    """
    # Not the gradient, which is small in the middle of a thin cortex.
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
    """Intensities between CSF and grey, grey and white matter, and at the ventricles' border.

    They lie between the volume's own tissue means, or, where it shows no three tissues, between
    those of the intensity scaling.
    """
    found = tissue_means(volume, mask, abs(float(affine[0, 0])))
    csf, grey, white = found or TissueMeans(0.0, Contract.grey, 1.0)
    return np.array([(csf + grey) / 2, (grey + white) / 2, csf + VENTRICLE * (white - csf)])


def tissue_ml(
    volume: np.ndarray, mask: np.ndarray, affine: np.ndarray, limits: np.ndarray
) -> list[float]:
    """Volumes of CSF, grey and white matter and of the ventricles, in ml.

    Parameters
    ----------
    volume, mask, affine
        As of :func:`measure`.
    limits : numpy.ndarray
        Of :func:`tissue_limits`.
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
    """Map of what changed beyond the intensity mapping, averaged around each voxel.

    Returns
    -------
    numpy.ndarray
        float32; 0 at the surface and outside the mask.
    """
    rest = np.where(mask, after - np.interp(before, *intensity_curve(before, after, mask)), 0)
    sd = LOCAL_MM / abs(float(affine[0, 0]))
    core = ndimage.binary_erosion(mask, iterations=2)
    return np.where(core, ndimage.gaussian_filter(rest, sd), 0).astype(np.float32)


def limits(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Set the limits from validation scans whose original is known.

    Parameters
    ----------
    rows : sequence of mapping
        :func:`measure` between each original and what was harmonized of it.

    Returns
    -------
    dict
        For each of :data:`MEASURES`, ``limit`` (the 99th percentile of its size; with fewer than
        100 scans, 1.57 times the 90th) and ``n``. What was measured on no scan has no limit.
    """
    found = {}
    for name in MEASURES:
        sizes = [abs(v) for row in rows if (v := row.get(name)) is not None]
        if sizes:
            share, times = (LEVEL, 1.0) if len(sizes) >= ENOUGH else (SHOWN, TIMES)
            limit = times * float(np.quantile(sizes, share, method="higher"))
            found[name] = {"limit": float(f"{limit:.4g}"), "n": len(sizes)}
    return found


def judge(metrics: Mapping[str, float | None], limits: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Judge what harmonization did to a scan.

    Parameters
    ----------
    metrics : mapping
        Metric name to value, or None where it is not defined; others than the guard's are
        ignored.
    limits : mapping
        Of :func:`limits`.

    Returns
    -------
    Verdict
        ``fail`` when a measure is beyond twice its limit, ``warn`` when one is beyond it.
    """
    reasons, failed = {}, False
    for name in MEASURES:
        value, limit = metrics.get(name), float(limits.get(name, {}).get("limit", np.inf))
        if value is None or abs(value) <= limit:
            continue
        far = abs(value) > FAIL_FACTOR * limit
        failed |= far
        reasons[name] = (
            f"{dictionary()[name]['LongName']} is {spoken(name, value)}; the limit is "
            f"{spoken_limit(name, limit)}"
            + (f", more than {FAIL_FACTOR:g} times as far" if far else "")
        )
    status = "fail" if failed else "warn" if reasons else "pass"
    return Verdict(status, tuple(reasons.values()), tuple(reasons))


def guard_record(
    metrics: Mapping[str, float | None], guard: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Write a verdict as it stands in a scan's record.

    Parameters
    ----------
    metrics : mapping
        Metric name to value.
    guard : mapping or None
        The bundle's ``guard.json``; None where it has none.

    Returns
    -------
    dict
        ``status`` (``pass``, ``warn``, ``fail``; None where the bundle has no guard),
        ``reasons``, ``flagged`` and ``limits`` (measure to limit in words).
    """
    found = (guard or {}).get("limits", {})
    verdict = judge(metrics, found)
    return {
        "status": None if guard is None else verdict.status,
        "reasons": list(verdict.reasons),
        "flagged": list(verdict.flagged),
        "limits": {
            name: spoken_limit(name, float(found[name]["limit"]))
            for name in MEASURES
            if name in found
        },
    }


def spoken(name: str, value: float) -> str:
    """Write a measure's value as a reader expects it: shares in per cent with their sign.

    >>> spoken("harmonized_ventricle_change", -0.0712), spoken("harmonized_local_change", 0.3141)
    ('-7.1 %', '0.314')
    """
    if name == "harmonized_local_change":
        return readable(value)
    return f"{round(100 * value, 1) + 0.0:+.1f} %"  # + 0.0: no minus before a zero


def spoken_limit(name: str, limit: float) -> str:
    """Write a limit as :func:`spoken` writes values.

    >>> spoken_limit("harmonized_ventricle_change", 0.03)
    '3.0 %'
    """
    return spoken(name, limit).removeprefix("+")
