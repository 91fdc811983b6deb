"""The anatomy guard: tell whether a harmonized scan still shows the same brain.

Each measure of the change (:mod:`bids_harmony.qc.harmonization`), the cycle error and the
distance to the training sites has a limit that 99 % of validation scans keep: the maps were not
fitted on them, and test scans have no say (science.md §10). The limits stand in the bundle's
``guard.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_harmony.qc.verdict import Verdict, dictionary, readable

#: Beyond this many times its limit a measure fails the scan.
FAIL_FACTOR = 2.0
LEVEL = 0.99


@dataclass(frozen=True)
class Bounds:
    """Between which values a measure's limit may be set.

    Attributes
    ----------
    least : float
        Changes below this are harmless, however few the calibration scans vary.
    most : float
        Changes above this are not, however many calibration scans show them.
    share : bool
        Spoken of in per cent.
    kept : bool
        The measure is 1 where nothing changed; its bounds are on what is missing to it.
    """

    least: float
    most: float
    share: bool = False
    kept: bool = False


#: What the guard judges. On real scans at 2 mm a new tone curve moves tissue's shares by less
#: than 0.001 and the ventricles by 0.2 %; smoothing by 0.4 voxels moves shares by 0.003 and the
#: ventricles by 1 %, and leaves edges at 0.999; noise of 0.03 brings edges to 0.99. Where
#: tissues are found anew in the volume, such smoothing changes ventricles by 2 to 3 %, noise of
#: 0.01 by up to 2 % (tissues overlap to 0.97), but a tone curve that lifts values midway by 0.03
#: by 10 to 16 %: after tissue scaling these two leave little room for another tone, which a
#: segmentation program would take for another anatomy.
MEASURES = {
    "harmonized_edge_agreement": Bounds(0.02, 0.06, kept=True),
    "harmonized_csf_change": Bounds(0.005, 0.02, share=True),
    "harmonized_gm_change": Bounds(0.01, 0.03, share=True),
    "harmonized_wm_change": Bounds(0.01, 0.03, share=True),
    "harmonized_ventricle_change": Bounds(0.02, 0.08, share=True),
    "segmented_ventricle_change": Bounds(0.04, 0.12, share=True),
    "segmented_overlap": Bounds(0.05, 0.12, kept=True),
    "harmonized_change": Bounds(0.03, 0.12),
    "harmonized_cycle_error": Bounds(0.02, 0.08),
    "training_distance": Bounds(2.5, 5.0),
}


def excess(name: str, value: float) -> float:
    """Size of a measure, as limits are set on it: how far it is from no change."""
    return 1 - value if MEASURES[name].kept else abs(value)


def calibrate(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Set the limits from validation scans, which neither map was trained on.

    Parameters
    ----------
    rows : sequence of mapping
        Measures of each scan: names of :data:`MEASURES`, further ones are ignored.

    Returns
    -------
    dict
        For each measure ``limit`` (on :func:`excess`), ``calibrated`` (the 99th percentile before
        it was brought into :class:`Bounds`; the largest value where there are fewer than 100
        scans; None without any) and ``n``.
    """
    limits = {}
    for name, bounds in MEASURES.items():
        sizes = [excess(name, v) for row in rows if (v := row.get(name)) is not None]
        found = float(np.quantile(sizes, LEVEL, method="higher")) if sizes else None
        limit = bounds.most if found is None else min(max(found, bounds.least), bounds.most)
        limits[name] = {
            "limit": float(f"{limit:.4g}"),
            "calibrated": None if found is None else float(f"{found:.4g}"),
            "n": len(sizes),
        }
    return limits


def judge_harmonization(
    metrics: Mapping[str, float | None], limits: Mapping[str, Mapping[str, Any]]
) -> Verdict:
    """Judge what harmonization did to a scan.

    Parameters
    ----------
    metrics : mapping
        Metric name to value, or None where it is not defined; others than the guard's are
        ignored.
    limits : mapping
        Of :func:`calibrate`.

    Returns
    -------
    Verdict
        ``fail`` when a measure is beyond twice its limit, ``warn`` when one is beyond it.
    """
    status, reasons, flagged = "pass", [], []
    for name in MEASURES:
        value = metrics.get(name)
        if value is None or name not in limits:
            continue
        limit = float(limits[name]["limit"])
        size = excess(name, value)
        if size <= limit:
            continue
        failed = size > FAIL_FACTOR * limit
        status = "fail" if failed or status == "fail" else "warn"
        far = f", more than {FAIL_FACTOR:g} times as far" if failed else ""
        reasons.append(
            f"{dictionary()[name]['LongName']} is {spoken(name, value)}; "
            f"the limit is {spoken_limit(name, limit)}{far}"
        )
        flagged.append(name)
    return Verdict(status, tuple(reasons), tuple(flagged))


def guard_record(
    metrics: Mapping[str, float | None],
    guard: Mapping[str, Any] | None,
    nearest_site: str | None = None,
) -> dict[str, Any]:
    """Write a verdict as it stands in a scan's record.

    Parameters
    ----------
    metrics : mapping
        Metric name to value.
    guard : mapping or None
        The bundle's ``guard.json``; None where it has none.
    nearest_site : str, optional
        The training site the scan looks most like.

    Returns
    -------
    dict
        ``status`` (``pass``, ``warn``, ``fail``; None where the bundle has no guard),
        ``reasons``, ``flagged``, ``limits`` (measure to limit in words), ``nearest_site``.
    """
    limits = (guard or {}).get("limits", {})
    verdict = judge_harmonization(metrics, limits)
    return {
        "status": None if guard is None else verdict.status,
        "reasons": list(verdict.reasons),
        "flagged": list(verdict.flagged),
        "limits": {
            name: spoken_limit(name, float(limits[name]["limit"]))
            for name in MEASURES
            if name in limits
        },
        "nearest_site": nearest_site,
    }


def spoken(name: str, value: float) -> str:
    """Write a measure's value as a reader expects it: shares in per cent with their sign.

    >>> spoken("harmonized_ventricle_change", -0.0712), spoken("training_distance", 3.14159)
    ('-7.1 %', '3.14')
    """
    if MEASURES[name].share:
        return f"{round(100 * value, 1) + 0.0:+.1f} %"  # + 0.0: no minus before a zero
    return readable(value)


def spoken_limit(name: str, limit: float) -> str:
    """Write a limit in the measure's own terms.

    >>> spoken_limit("harmonized_edge_agreement", 0.02)
    'at least 0.98'
    """
    if MEASURES[name].kept:
        return f"at least {readable(1 - limit)}"
    return f"{100 * limit:.1f} %" if MEASURES[name].share else readable(limit)
