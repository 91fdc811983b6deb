"""Find the scans of a dataset that a person should look at, and say why in plain words.

Within a site each metric is compared with the site's median in units of its usual deviation
(robust z beyond 3.5, science.md §7), and all metrics together by their distance. Two things keep
good scans from being flagged, for with some 20 metrics each scan has 20 chances: a metric with a
good and a bad side counts on the bad side only, and the usual deviation is taken on that side, so
that a skewed metric does not count as odd. And two keep bad scans from hiding each other: the
deviation of a small or spoilt site leans on that of the other sites, and what does not depend on
the scanner (registration, brain size) is held against the bundle's reference at every site.

Measured on 151 real scans of three scanners that nobody had found fault with: 9 are flagged
(6 %), first of all a brain with ventricles three times the usual size; three of the 9 turned out
to have a focal lesion or a far widened sulcus. Of 32 scans made bad (ghosts, noise, inverted
contrast, a lesion, a cropped head, a wrong mask) all are found among 120 good ones; in mixtures
drawn 20 times, with one bad scan in ten, 97 % and more at sites of 20 to 50 scans and 95 % at
sites of 8.

A flag is a reason to look. Nothing is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_harmony.qc.collect import Flag, ScanRow
from bids_harmony.qc.consistency import NAMED, named, same_images
from bids_harmony.qc.usual import (
    MIN_SITE,
    Z_LIMIT,
    Site,
    bad_side,
    relative_distances,
    usual_at_sites,
)
from bids_harmony.qc.verdict import (
    MAD_TO_SD,
    MIN_REFERENCE,
    NOT_JUDGED,
    dictionary,
    readable,
    reference_range,
    spoken_unit,
)

if TYPE_CHECKING:
    import pandas as pd

#: A metric that this share of a site's scans have is missed where it is absent.
USUAL = 0.75
#: A scanner the bundle does not know lies beyond its reference with good scans too, such as 57 %
#: of 7 and 77 % of 8 real ones, and so do heads of a population that the bundle does not know.
#: With this many scans the site tells what its way is: beyond the reference then counts if it is
#: also so many robust deviations off the site's middle, and more at a site that is not small.
FEW, ALSO_Z, ALSO_Z_LARGE = 4, 2.5, 3.0
#: Beyond the reference are a site's own ways when more than this share of its scans shows them.
SITES_WAY = 0.5
#: No flag counts as farther beyond its limit than this; a scan that failed does as much.
MOST = 10.0
#: What no scanner changes.
FIXED_GROUPS = ("Brain", "Registration")
#: Follow from others: with them the covariance has no inverse.
REDUNDANT = frozenset({"affine_determinant", "wm_fraction", "cjv", "brain_age_gap"})
GAP = "brain_age_gap"
PLAUSIBLE_AGE = (0.0, 120.0)


@dataclass(frozen=True)
class Outliers:
    """What was found.

    Attributes
    ----------
    flags : dict of str to tuple of Flag
        By scan, worst first, at most one per metric.
    score : numpy.ndarray
        For every scan, how far its most remarkable measure lies, where 1 is at the limit: at
        least 1 for a flagged scan, at most :data:`MOST`.
    notes : tuple of str
        What concerns a whole site and is no reason to look at single scans.
    """

    flags: dict[str, tuple[Flag, ...]]
    score: np.ndarray
    notes: tuple[str, ...]


def find_outliers(
    table: pd.DataFrame, rows: Sequence[ScanRow], reference: Mapping[str, Any] | None = None
) -> Outliers:
    """Find the scans to look at.

    Parameters
    ----------
    table : pandas.DataFrame
        Of :func:`bids_harmony.qc.collect.scan_table`.
    rows : sequence of ScanRow
        The scans it was made of, in the same order.
    reference : mapping, optional
        :func:`bids_harmony.qc.verdict.reference_statistics` of the bundle.

    Returns
    -------
    Outliers
    """
    found: dict[int, list[Flag]] = defaultdict(list)
    for i, flag in _states(rows):
        found[i].append(flag)
    metrics = tuple(
        name
        for name in (*dictionary(), GAP)
        if name in table and name not in NOT_JUDGED and not _guarded(name)
    )
    done = (table["qc_status"] != "error").to_numpy()
    values, sites = table[list(metrics)].to_numpy(dtype=float), table["site"].to_numpy()
    score, notes = np.zeros(len(table)), []
    places = {site: np.flatnonzero(done & (sites == site)) for site in sorted(set(sites[done]))}
    found_sites = list(usual_at_sites(values, places, metrics, reference))
    every = np.vstack([site.z() for site in found_sites]) if found_sites else values[:0]
    for site in found_sites:
        where = places[site.name]
        sizes = np.abs(np.nan_to_num(bad_side(site.z(), metrics))).max(axis=1, initial=0.0)
        sizes /= Z_LIMIT
        distances, far = _distances(site, every)
        score[where] = np.maximum(sizes, distances)
        beyond, note = _beyond_reference(site, reference, values[done & (sites != site.name)])
        notes += note
        for i, flag in (*_deviations(site), *far, *_missing(site), *beyond):
            found[where[i]].append(flag)
    keys = table["scan"].to_list()
    flags = {}
    for i in sorted(found):
        best: dict[str, Flag] = {}
        for flag in sorted(found[i], key=lambda flag: (-flag.size, flag.metric)):
            best.setdefault(flag.metric, flag)
        flags[keys[i]] = tuple(best.values())
        score[i] = max(score[i], flags[keys[i]][0].size)
    return Outliers(flags, np.minimum(score, MOST), tuple(notes))


def _states(rows: Sequence[ScanRow]) -> Iterator[tuple[int, Flag]]:
    """Flag scans that failed, are twice, or whose harmonization or predictions make no sense."""
    same = {scan: scans for scans in same_images(rows) for scan in scans}
    for i, row in enumerate(rows):
        if scans := same.get(row.scan, ()):
            others = [scan for scan in scans[: NAMED + 1] if scan != row.scan]
            text = f"It is the same image as {named(others, n=len(scans) - 1)}"
            yield i, Flag("image", text, 2.0)
        if row.values["qc_status"] == "error":
            yield i, Flag("status", f"It failed: {row.values['error']}", MOST)
            continue
        if row.values["qc_status"] == "fail":
            yield i, Flag("status", "; ".join(row.reasons) or "Its quality failed", 2.0)
        if row.problem:
            yield i, Flag("predictions", row.problem, 1.0)
        if row.values.get("harmonization_status") == "fail":
            text = "Harmonization seems to have changed the anatomy: "
            yield i, Flag("guard", text + "; ".join(row.guard_reasons), 2.0)
        for kind in ("raw", "harmonized"):
            age = row.values.get(f"brain_age_{kind}", np.nan)
            low, high = PLAUSIBLE_AGE
            if age < low or age > high:
                text = f"The {kind} brain age, {readable(age)} years, is no person's age"
                yield i, Flag(f"brain_age_{kind}", text, 2.0)


def _deviations(site: Site) -> Iterator[tuple[int, Flag]]:
    """Metrics far from the site's median."""
    z = bad_side(site.z(), site.metrics)
    for i, j in np.argwhere(np.abs(z) > Z_LIMIT):
        name, side = site.metrics[j], "below" if z[i, j] < 0 else "above"
        low = site.middle[j] - Z_LIMIT * site.below[j]
        high = site.middle[j] + Z_LIMIT * site.above[j]
        yield (
            int(i),
            Flag(
                name,
                f"{_called(name)} {_said(name, site.values[i, j])} is far {side} what is usual at "
                f"{site.name}: {_said(name, site.middle[j])}, "
                f"{'at least' if side == 'below' else 'at most'} "
                f"{_said(name, low if side == 'below' else high)} (robust z {z[i, j]:+.1f})",
                min(abs(float(z[i, j])) / Z_LIMIT, MOST),
            ),
        )


def _distances(site: Site, every: np.ndarray) -> tuple[np.ndarray, list[tuple[int, Flag]]]:
    """Measure how far each scan is from others in all metrics together, 1 at the limit.

    The others are those of its site; at a small site ``every`` scan's z, as far as it is from
    its own site.
    """
    z = site.z()
    others = z if len(z) >= MIN_SITE else every
    use = [
        j
        for j, name in enumerate(site.metrics)
        if name not in REDUNDANT
        and np.isfinite(others[:, j]).mean() >= USUAL
        and np.nanmax(others[:, j]) > np.nanmin(others[:, j])
    ]
    n, p = len(others), len(use)
    if n < MIN_SITE or p < 2:
        return np.zeros(len(z)), []
    z, others = np.nan_to_num(z[:, use]), np.nan_to_num(others[:, use])
    sizes, parts = relative_distances(z, others)
    flags = []
    for i in np.flatnonzero(sizes > 1):
        most = [site.metrics[use[j]] for j in np.argsort(-parts[i], kind="stable")[:3]]
        flags.append(
            (
                int(i),
                Flag(
                    "multivariate",
                    f"Its metrics together are unlike those of the other scans of {site.name}, "
                    f"{sizes[i]:.1f} times as far as is usual at most; above all "
                    f"{', '.join(_called(name) for name in most)}",
                    min(float(sizes[i]), MOST),
                ),
            )
        )
    return sizes, flags


def _missing(site: Site) -> Iterator[tuple[int, Flag]]:
    """Metrics that could not be computed though the site's other scans have them."""
    absent = np.isnan(site.values)
    for j in np.flatnonzero((1 - absent.mean(axis=0) >= USUAL) & absent.any(axis=0)):
        name = site.metrics[j]
        text = f"{_called(name)} could not be computed, as it could for others of {site.name}"
        for i in np.flatnonzero(absent[:, j]):
            yield int(i), Flag(name, text, 1.5)


def _beyond_reference(
    site: Site, reference: Mapping[str, Any] | None, elsewhere: np.ndarray
) -> tuple[list[tuple[int, Flag]], list[str]]:
    """Metrics beyond the bundle's reference, where the site is small or no scanner matters.

    A small site's scans may also be as those ``elsewhere`` in the dataset (scans, metrics), which
    tell whose heads these are and what its scanners do.
    """
    summaries = (reference or {}).get("all", {})
    flags, notes = [], []
    z = bad_side(site.z(), site.metrics)
    for j, name in enumerate(site.metrics):
        summary = summaries.get(name)
        if summary is None or summary["n"] < MIN_REFERENCE:
            continue
        n, values = len(site.values), site.values[:, j]
        small = n < MIN_SITE
        fixed = dictionary()[name]["Group"] in FIXED_GROUPS
        if not small and not fixed:
            continue
        spread = MAD_TO_SD * summary["mad"]
        low, high = reference_range(summary)
        whose = "the bundle's reference"
        if not small:
            low, high = low - spread, high + spread
        elif (known := elsewhere[np.isfinite(elsewhere[:, j]), j]).size >= MIN_SITE:
            whose += " and the other sites"
            middle = float(np.median(known))
            usual = ALSO_Z_LARGE * MAD_TO_SD * float(np.median(np.abs(known - middle)))
            low, high = min(low, middle - usual), max(high, middle + usual)
        past = bad_side(
            np.nan_to_num(np.where(values < low, values - low, np.maximum(values - high, 0)))[
                :, None
            ],
            [name],
        )[:, 0]
        odd = np.flatnonzero(past)
        if len(odd) > SITES_WAY * n and n > 1:
            notes.append(
                f"{len(odd)} of {n} scans of {site.name} lie beyond {whose} in "
                f"{_called(name)} ({_said(name, low)} to {_said(name, high)})."
            )
            continue
        if n >= FEW:
            odd = odd[np.abs(z[odd, j]) > (ALSO_Z if small else ALSO_Z_LARGE)]
        for i in odd:
            side = "below" if past[i] < 0 else "above"
            text = (
                f"{_called(name)} {_said(name, values[i])} is {side} {whose}, "
                f"{_said(name, low)} to {_said(name, high)}"
            )
            size = 1 + abs(float(past[i])) / (Z_LIMIT * spread) if spread > 0 else 1.0
            flags.append((int(i), Flag(name, text, min(size, MOST))))
    return flags, notes


def _guarded(name: str) -> bool:
    """Tell whether a metric says what harmonization did to a scan: the guard is its judge."""
    return dictionary().get(name, {}).get("Group") == "Harmonization" and not name.startswith(
        "reference_distance"
    )


def _called(name: str) -> str:
    return str(dictionary()[name]["LongName"]) if name in dictionary() else "Brain-age gap"


def _said(name: str, value: float) -> str:
    return readable(float(value)) + (spoken_unit(name) if name in dictionary() else " years")
