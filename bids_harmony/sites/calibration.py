"""Site calibration: estimate a site code and read and write calibration files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bids_harmony.errors import UsageError
from bids_harmony.files import why_unread, write_json
from bids_harmony.sites.code import (
    DEEP_GREY,
    LEVELS,
    Appearance,
    IntensityMapping,
    SiteCode,
    site_code,
    vector,
)

if TYPE_CHECKING:
    from bids_harmony.models.bundle import Bundle

FORMAT = 2
#: Maximum number of persons whose ages are estimated, and how many of them are also mapped with
#: the network, which is the slowest step. Only the mean age matters.
MAX_ESTIMATED, MAX_MAPPED = 24, 6
#: Typical and maximum fraction of an error in the assumed age that returns in the predicted age.
#: The fraction is measured only if the assumed ages differ by more than FAR years.
TYPICAL_FACTOR, MAX_FACTOR, FAR = 0.4, 0.6, 3.0
#: Smallest slope of predicted on true age for which ages are estimated.
MIN_SLOPE = 0.3
#: A calibration with fewer persons carries a warning.
FEW_PERSONS = 8
#: Two groups of scans are separate if their means differ by more than this many within-group
#: standard deviations. A single group, split at the best place, reaches about 2.7.
MIN_SEPARATION = 4.5
#: Smallest group that counts as a second scanner.
MIN_GROUP = 3
MAKE_AGAIN = "Run the calibrate level again."

#: Predicts brain age (years) from a preprocessed scan (:attr:`SiteScan.t1w`) mapped with a site
#: code (:func:`estimate_ages`). The last argument skips the map's network.
Predict = Callable[[Any, SiteCode, bool], float]


@dataclass(frozen=True)
class SiteScan:
    """Input of calibration: one scan of a site.

    Attributes
    ----------
    key : str
        Scan identifier.
    person : str
        Person identifier.
    site : str
        Acquisition site.
    age : float or None
        Age in years; None if unknown.
    diagnosis : str or None
        Diagnosis as written in the dataset.
    descriptors : dict
        Output of :func:`bids_harmony.sites.code.describe`.
    t1w : pathlib.Path or nibabel.spatialimages.SpatialImage
        Preprocessed scan. It is read only if the age must be estimated.
    """

    key: str
    person: str
    site: str
    age: float | None
    diagnosis: str | None
    descriptors: Mapping[str, Any]
    t1w: Any


@dataclass(frozen=True)
class Calibration:
    """A site code with its intensity mapping and provenance.

    Attributes
    ----------
    site : str
        Site label.
    bundle : dict
        Name, version and SHA-256 of the bundle that defines the reference.
    template : str
        Space label of the scans.
    code : SiteCode
        Difference between the site and the reference.
    mapping : IntensityMapping
        Intensity mapping derived from the code.
    n_scans : int
        Number of scans of the ``code.n`` persons.
    ages : dict
        ``source`` ("known", "estimated" or "mixed"), and ``mean``, ``min`` and ``max`` in years.
    fit_filter : str or None
        Filter expression that selected the scans; None if all were used.
    made_by : str
        Analysis level that made it: ``calibrate``, or ``participant`` from the scans of one run.
    warnings : tuple of str
        Warnings about the calibration.
    sources : str
        Digest of all inputs (:func:`sources_digest`).
    """

    site: str
    bundle: dict[str, str]
    template: str
    code: SiteCode
    mapping: IntensityMapping
    n_scans: int
    ages: dict[str, Any]
    fit_filter: str | None = None
    made_by: str = "calibrate"
    warnings: tuple[str, ...] = ()
    sources: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the calibration file."""
        code, curve = self.code, self.mapping
        return {
            "format": FORMAT,
            "site": self.site,
            "bundle": dict(self.bundle),
            "template": self.template,
            "made_by": self.made_by,
            "fit_filter": self.fit_filter,
            "n_scans": self.n_scans,
            "n_persons": code.n,
            "ages": dict(self.ages),
            "code": {
                "shift": _rounded(code.shift), "sd": _rounded(code.sd), "age": round(code.age, 2),
            },
            "mapping": {"x": _rounded(curve.x), "y": _rounded(curve.y)},
            "warnings": list(self.warnings),
            "sources": self.sources,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Create a calibration from the output of :meth:`to_dict`.

        Raises
        ------
        ValueError
            If numbers are not finite, there is no person, or the curve does not ascend.
        """
        code, curve = values["code"], values["mapping"]
        n = int(values["n_persons"])
        shift, sd = np.array([code["shift"], code["sd"]], float)
        x, y = np.array([curve["x"], curve["y"]], float)
        if not (n > 0 and x.size and np.isfinite([*shift, *sd, *x, *y]).all()):
            raise ValueError("its numbers are not finite")
        if (np.diff([x, y]) <= 0).any():
            raise ValueError("its curve does not ascend")
        kept = (
            "site",
            "bundle",
            "template",
            "n_scans",
            "ages",
            "fit_filter",
            "made_by",
            "sources",
        )
        return cls(
            code=SiteCode(shift, sd, float(code["age"]), n),
            mapping=IntensityMapping(x, y),
            warnings=tuple(values["warnings"]),
            **{name: values[name] for name in kept},
        )

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the fields that determine the harmonized scans."""
        content = self.to_dict()
        used = {name: content[name] for name in ("site", "bundle", "template", "code", "mapping")}
        return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()

    def changes(self, bundle: Bundle) -> dict[str, float]:
        """Return the changes that harmonization makes to intensities and sharpness.

        Parameters
        ----------
        bundle : Bundle
            Bundle that the calibration was made with.

        Returns
        -------
        dict
            Reference intensity minus site intensity of ``grey matter`` and ``deep grey matter``.
            With a map network, also ``sharpness``: the relative change in edge steepness.
        """
        tissues = {"grey matter": bundle.contract.grey, "deep grey matter": DEEP_GREY}
        found = {
            name: round(float(level - np.interp(level, self.mapping.y, self.mapping.x)), 4)
            for name, level in tissues.items()
        }
        if bundle.has_map_network:
            smoother = self.code.shift[len(LEVELS) : len(LEVELS) + 3].mean()
            found["sharpness"] = round(float(np.exp(-smoother) - 1), 4)
        return found

    def identity(self) -> dict[str, Any]:
        """Return the fields that identify the calibration in outputs."""
        return {
            "site": self.site,
            "n_persons": self.code.n,
            "ages": self.ages["source"],
            "made_by": self.made_by,
            "sha256": self.sha256,
        }


def calibrate(
    scans: Sequence[SiteScan],
    bundle: Bundle,
    *,
    predict: Predict | None,
    template: str,
    fit_filter: str | None = None,
    made_by: str = "calibrate",
) -> Calibration:
    """Estimate the site code of one site from its scans.

    Parameters
    ----------
    scans : sequence of SiteScan
        At least one scan, all of one site.
    bundle : Bundle
        Bundle that defines the reference.
    predict : callable or None
        Brain age prediction for scans of unknown age (:func:`estimate_ages`); None if the bundle
        does not predict age.
    template : str
        Space label of the scans.
    fit_filter, made_by
        See :class:`Calibration`.

    Returns
    -------
    Calibration
        Site code and intensity mapping of the site.
    """
    scans = sorted(scans, key=lambda scan: scan.key)
    site, appearance = scans[0].site, bundle.appearance()
    values = np.array([vector(scan.descriptors) for scan in scans])
    ages = np.array([np.nan if scan.age is None else scan.age for scan in scans], float)
    persons = np.array([scan.person for scan in scans])
    known = ~np.isnan(ages)
    source = "known" if known.all() else "mixed" if known.any() else "estimated"
    by_number = predict and (lambda i, *how: predict(scans[i].t1w, *how))
    ages = estimate_ages(values, ages, persons, appearance, by_number)
    used = ~np.isnan(ages)
    values, ages, persons = values[used], ages[used], persons[used]
    code = site_code(values, ages, persons, appearance)
    years = {"mean": code.age, "min": float(ages.min()), "max": float(ages.max())}
    return Calibration(
        site=site,
        bundle=bundle.identity(),
        template=template,
        code=code,
        mapping=IntensityMapping.of(code, appearance),
        n_scans=len(ages),
        ages={"source": source} | {name: round(age, 1) for name, age in years.items()},
        fit_filter=fit_filter,
        made_by=made_by,
        warnings=tuple(_warnings(site, code.n, values, ages, appearance)),
        sources=sources_digest(scans, bundle, template, fit_filter),
    )


def sources_digest(
    scans: Sequence[SiteScan], bundle: Bundle, template: str, fit_filter: str | None
) -> str:
    """Compute a digest of all inputs of a calibration, to reuse an existing one."""
    known = sorted((s.key, s.person, s.age, vector(s.descriptors).tolist()) for s in scans)
    content = json.dumps([bundle.sha256, template, fit_filter, known])
    return hashlib.sha256(content.encode()).hexdigest()


def estimate_ages(
    values: np.ndarray,
    ages: np.ndarray,
    persons: np.ndarray,
    appearance: Appearance,
    predict: Callable[[int, SiteCode, bool], float] | None,
) -> np.ndarray:
    """Estimate unknown ages by alternating between brain age prediction and mapping.

    All scans of unknown age get the same estimate: their mean age. Ignoring age would be worse
    than no calibration, because a young site would look like a bright scanner (site-effects.md
    §3). Only the mean age matters for the site code, so a subset of persons is enough.

    Parameters
    ----------
    values : numpy.ndarray
        (scans, descriptors) scan descriptors.
    ages : numpy.ndarray
        (scans,) ages in years, NaN if unknown.
    persons : numpy.ndarray
        (scans,) person of each scan.
    appearance : Appearance
        Appearance model of the reference.
    predict : callable or None
        Function of a scan index, a site code, and whether to skip the map's network. Returns the
        brain age (years) of the scan mapped with that code. If None, or if the slope of predicted
        on true age is below :data:`MIN_SLOPE`, the mean age of the reference is used.

    Returns
    -------
    numpy.ndarray
        (scans,) ages in years. If more than :data:`MAX_ESTIMATED` persons have no age, the scans
        of the others stay NaN and must be excluded from the calibration.
    """
    unknown = np.flatnonzero(np.isnan(ages))
    filled = ages.copy()
    if not len(unknown):
        return filled
    if predict is None or appearance.line is None or appearance.line[0] < MIN_SLOPE:
        filled[unknown] = appearance.mean_age
        return filled
    first = unknown[np.unique(persons[unknown], return_index=True)[1]]
    some = first[_spread(len(first), MAX_ESTIMATED)]
    unknown = unknown[np.isin(persons[unknown], persons[some])]
    used = np.union1d(np.flatnonzero(~np.isnan(ages)), unknown)
    slope, intercept = appearance.line

    def implied(age: float, scans: np.ndarray, spare: bool) -> float:
        """Return the mean age implied by brain ages if ``age`` is assumed in the mapping."""
        filled[unknown] = np.clip(age, *appearance.ages)
        code = site_code(values[used], filled[used], persons[used], appearance)
        predicted = float(np.mean([predict(int(i), code, spare) for i in scans]))
        return (predicted - intercept) / slope

    start = appearance.mean_age
    one = float(np.clip(implied(start, some, True), *appearance.ages))
    two = implied(one, some, True)
    # A constant fraction of an error in the assumed age returns in the prediction, so the sequence
    # is geometric and its limit can be extrapolated.
    factor = TYPICAL_FACTOR
    if abs(one - start) > FAR:
        factor = float(np.clip((two - one) / (one - start), 0, MAX_FACTOR))
    age = one + (two - one) / (1 - factor)
    # The network shifts all brain ages by about the same amount, so a few scans are enough to
    # measure the shift.
    few = some[_spread(len(some), MAX_MAPPED)]
    moved = implied(age, few, False) - implied(age, few, True)
    filled[unknown] = np.clip(age + moved / (1 - factor), *appearance.ages)
    return filled


def _spread(n: int, most: int) -> np.ndarray:
    """Return at most ``most`` evenly spaced indices below ``n``."""
    return np.unique(np.linspace(0, n - 1, most).astype(int))


def _warnings(
    site: str, n_persons: int, values: np.ndarray, ages: np.ndarray, appearance: Appearance
) -> list[str]:
    """Return warnings about a calibration: few persons, ages out of range, two scanners."""
    found = []
    if n_persons == 1:
        found.append(
            f"The site {site} is calibrated from a single person, so effects of the scanner and "
            "of the person cannot be separated."
        )
    elif n_persons < FEW_PERSONS:
        found.append(f"The site {site} is calibrated from only {n_persons} persons.")
    low, high = appearance.ages
    if outside := int(((ages < low) | (ages > high)).sum()):
        found.append(
            f"{outside} of {len(ages)} scans of the site {site} are outside the reference's age "
            f"range of {low:.0f} to {high:.0f} years: they are compared with its youngest or "
            "oldest persons."
        )
    if (groups := two_groups(values, ages, appearance)) is not None:
        found.append(
            f"The scans of the site {site} form two groups of {groups[0]} and {groups[1]}, as if "
            "from two scanners: give each scanner its own site label."
        )
    return found


def two_groups(
    values: np.ndarray, ages: np.ndarray, appearance: Appearance
) -> tuple[int, int] | None:
    """Return the sizes of two groups if a site's scans seem to come from two scanners.

    The scans are split along their first principal component, at the point with the smallest
    within-group variance.

    Returns
    -------
    tuple of int or None
        Number of scans in each group, larger first; None if there is a single group.
    """
    off = ((values - appearance.expected(ages)) / appearance.person_sd)[:, : len(LEVELS)]
    centred = off - off.mean(axis=0)
    if len(off) < 2 * MIN_GROUP or not centred.any():
        return None
    scores = np.sort(centred @ np.linalg.svd(centred, full_matrices=False)[2][0])
    cuts = range(MIN_GROUP, len(scores) - MIN_GROUP + 1)

    def within(groups: list[np.ndarray]) -> float:
        return float(sum(((group - group.mean()) ** 2).sum() for group in groups))

    groups = min((np.split(scores, [k]) for k in cuts), key=within)
    sd = np.sqrt(within(groups) / (len(scores) - 2))
    if groups[1].mean() - groups[0].mean() <= MIN_SEPARATION * sd:
        return None
    small, large = sorted(map(len, groups))
    return large, small


def confounded(scans: Sequence[SiteScan]) -> list[str]:
    """Return a warning for each site at which site and diagnosis are confounded.

    Parameters
    ----------
    scans : sequence of SiteScan
        Scans of all sites.

    Returns
    -------
    list of str
        One message per site with a single diagnosis, if other sites have other diagnoses.
    """
    pairs = [(scan.site, scan.diagnosis) for scan in scans]
    table = pd.DataFrame(pairs, columns=["site", "diagnosis"]).dropna()
    if table["diagnosis"].nunique() < 2:
        return []
    return [
        f"All scans of the site {site} have the diagnosis '{found.iloc[0]}', unlike other sites, "
        "so its calibration confounds scanner and diagnosis. Calibrate it on controls: "
        "--fit-filter 'diagnosis == \"control\"'."
        for site, found in table.groupby("site")["diagnosis"]
        if found.nunique() == 1
    ]


def write_calibrations(folder: Path, calibrations: Sequence[Calibration]) -> dict[str, Path]:
    """Write calibrations to ``site-<label>_calibration.json`` files in a folder.

    The label is the site name without the characters that BIDS does not allow. If two sites would
    share a label, or the label is not ASCII, a hash of the site name is used instead.

    Returns
    -------
    dict of str to pathlib.Path
        File of each site.
    """
    labels = {c.site: "".join(filter(str.isalnum, c.site)) or "unnamed" for c in calibrations}
    shared = [label.lower() for label in labels.values()]
    written = {}
    for calibration in calibrations:
        label = labels[calibration.site]
        if shared.count(label.lower()) > 1 or not label.isascii():
            label = hashlib.sha256(calibration.site.encode()).hexdigest()[:8]
        written[calibration.site] = folder / f"site-{label}_calibration.json"
        write_json(written[calibration.site], calibration.to_dict())
    return written


def read_calibrations(
    path: Path, bundle: Bundle, template: str, *, made_by: str | None = None
) -> dict[str, tuple[Path, Calibration]]:
    """Read one calibration file, or all calibrations in a folder.

    Parameters
    ----------
    path : pathlib.Path
        A file, or a folder with ``site-*_calibration.json`` files.
    bundle : Bundle
        Bundle in use.
    template : str
        Space label of the scans to harmonize.
    made_by : str, optional
        Analysis level; calibrations made by other levels are skipped. All levels if None.

    Returns
    -------
    dict of str to (pathlib.Path, Calibration)
        File and calibration of each site (of two for the same site, the last by name).

    Raises
    ------
    UsageError
        If there is no calibration, or if a file is invalid or was made with another bundle or
        template.
    """
    files = sorted(path.glob("site-*_calibration.json")) if path.is_dir() else [path]
    if not files:
        raise UsageError(
            f"There is no calibration in {path}.",
            "Give the folder with site-*_calibration.json, or run the calibrate level.",
        )
    found: dict[str, tuple[Path, Calibration]] = {}
    for file in files:
        calibration = _read(file)
        if made_by not in (None, calibration.made_by):
            continue
        made_with = calibration.bundle.get("sha256"), calibration.template
        if made_with != (bundle.sha256, template):
            made = " ".join(calibration.bundle.get(k, "?") for k in ("name", "version"))
            raise UsageError(
                f"The calibration {file} was made with the bundle {made} and the template "
                f"{calibration.template}, not with {bundle.name} {bundle.version} and {template}.",
                f"{MAKE_AGAIN[:-1]}, or select the same --bundle and --template.",
            )
        found[calibration.site] = file, calibration
    return found


def _read(file: Path) -> Calibration:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"it is of format {values['format']}")
        return Calibration.from_dict(values)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = why_unread(file, error) if isinstance(error, OSError) else repr(error)
        raise UsageError(f"The calibration {file} cannot be read ({why}).", MAKE_AGAIN) from error


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(v), 6) for v in values]
