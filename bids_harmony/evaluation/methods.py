"""Harmonization methods that an evaluation compares.

Each method turns the preprocessed scans into a training set of its own:

* ``none``: no harmonization. The raw scan is resampled onto the template grid and divided by the
  98th percentile of its brain intensities.
* ``tissue_scaling``: tissue normalization only, as the contract defines it
  (:mod:`bids_harmony.anat.intensity`: bias field, surface, tissue means). All methods below start
  from it.
* ``histogram_matching``: the published comparator.
* ``combat``: the statistical comparator (Johnson 2007; Fortin 2017).
* ``intensity_mapping``: the first half of harmonization, from a calibration without ages.
* ``harmonized``: both halves, from a calibration without ages.
* ``harmonized_known_ages``: both halves, from a calibration with known ages.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_harmony.anat.affine import resample
from bids_harmony.anat.check import load_t1w
from bids_harmony.anat.intensity import MAX_SCALED
from bids_harmony.console import progress
from bids_harmony.errors import ScanError
from bids_harmony.models.networks import SiteMap, crop
from bids_harmony.training.data import TrainingSet, Volumes, new_array
from bids_harmony.training.harmonizer import HARMONIZED, KNOWN_AGES, MAPPED, match_histogram

LOGGER = logging.getLogger(__name__)

NONE, SCALED, MATCHED, COMBAT = "none", "tissue_scaling", "histogram_matching", "combat"
#: All methods with the labels shown in reports.
METHODS = {
    NONE: "no harmonization",
    SCALED: "tissue normalization only",
    MATCHED: "histogram matching",
    COMBAT: "ComBat",
    MAPPED: "intensity mapping alone",
    HARMONIZED: "harmonized",
    KNOWN_AGES: "harmonized, ages known",
}
#: Methods that start from tissue normalization.
FROM_SCALED = tuple(name for name in METHODS if name != NONE)
#: Percentile of the brain intensities that ``none`` divides by.
PERCENTILE = 98
#: Most scans per site that ComBat is fitted to (all voxels of all scans are held in memory), and
#: fewest persons per site (with fewer, the scale estimate is meaningless).
MOST_SCANS, LEAST_PERSONS = 60, 3
#: ComBat uses voxels inside the brain mask of at least this fraction of the scans.
COMMON = 0.5

#: Function of scan number, volume and mask that returns the prepared volume.
Change = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Method:
    """A fitted harmonization method.

    Attributes
    ----------
    change : callable
        Function that prepares one scan; see :data:`Change`.
    key : str
        Cache key of everything ``change`` depends on besides the scan; the first word is the
        method's name.
    sites : iterable of str
        Sites whose scans it can prepare.
    reason : str
        Reason why it cannot prepare scans of other sites.
    """

    change: Change
    key: str
    sites: Iterable[str]
    reason: str = ""


def prepare(
    data: TrainingSet, scans: Sequence[int], method: Method, work_dir: Path
) -> TrainingSet:
    """Prepare scans with a method, or load them from the cache in ``work_dir``.

    Parameters
    ----------
    data : TrainingSet
        All preprocessed scans.
    scans : sequence of int
        Indices of the scans to prepare; the others stay unchanged.
    method : Method
        Fitted method.
    work_dir : pathlib.Path
        Cache folder for prepared volumes.

    Returns
    -------
    TrainingSet
        ``data`` with the prepared volumes.
    """
    text = repr((method.key, data.box, [(i, str(data.subjects[i])) for i in scans]))
    digest = hashlib.sha256(text.encode() + data.content(scans)).hexdigest()[:16]
    path = work_dir / f"prepared-{digest}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        what = f"preparing {method.key.split()[0]}"
        with new_array(path, (len(scans), len(data.heights), *data.size)) as array:
            for place, scan in enumerate(progress(scans, what)):
                volume, mask = data.volume(scan)
                stack = crop(method.change(scan, volume, mask), data.box)
                # The raw scan's brain mask is wider than the brain after normalization.
                array[place] = np.where(crop(mask, data.box) | (stack > 0), stack, np.nan)
    places = {scan: row for row, scan in enumerate(scans)}
    return replace(data, volumes=Volumes(path, places, data.volumes))


def unharmonized(data: TrainingSet, work_dir: Path) -> TrainingSet | None:
    """Return all scans without harmonization: resampled, and divided by a percentile.

    Bias field, tissue means and brain surface are not corrected. The brain mask is that of skull
    stripping.

    Parameters
    ----------
    data : TrainingSet
        All scans; the column ``_source`` of its table holds the paths of each scan's raw image,
        transform and brain mask.
    work_dir
        See :func:`prepare`.

    Returns
    -------
    TrainingSet or None
        None, after a warning, if a raw image or transform is missing or unreadable.
    """
    sources = data.table.get("_source", pd.Series([()] * len(data)))
    missing = [not source or not all(p and p.is_file() for p in source) for source in sources]
    warning = "Without harmonization, scans cannot be tested: "
    if any(missing):
        first = data.table["subject"][missing].iloc[0]
        LOGGER.warning(
            f"{warning}{sum(missing)} of {len(data)} scans have no raw image or no "
            f"transform to the template (first: sub-{first}). Run the participant level on them."
        )
        return None
    grid = nib.Nifti1Image(np.zeros(data.shape, np.uint8), data.affine)

    def change(scan: int, volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
        raw, transform, brain_mask = sources[scan]
        moved = resample(load_t1w(raw)[0], grid, transform, antialias=True)
        values = np.asarray(moved.dataobj)
        brain = mask | (np.asarray(nib.load(brain_mask).dataobj) > 0)
        top = max(float(np.percentile(values[brain], PERCENTILE)), 1e-6)
        # Keep brain voxels above 0, which marks the background.
        return np.where(brain, np.clip(values / top, 1e-3, MAX_SCALED), 0).astype(np.float32)

    stats = [(str(path), path.stat()) for source in sources for path in source]
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    try:
        method = Method(change, f"plain {files}", np.unique(data.sites))
        return prepare(data, range(len(data)), method, work_dir)
    except ScanError as error:
        LOGGER.warning(f"{warning}{error.cause}")
        return None


def matching(quantiles: np.ndarray, sites: Iterable[str]) -> Method:
    """Return histogram matching of each scan to the reference's mean quantiles."""

    def change(_: int, volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return match_histogram(volume, mask, quantiles)

    return Method(change, f"matched {quantiles.tolist()}", sites)


def mapping(name: str, of_site: Mapping[str, SiteMap], sites: np.ndarray) -> Method:
    """Return a method that applies the map of each scan's site.

    Parameters
    ----------
    name : str
        Name of the method.
    of_site : mapping of str to SiteMap
        Map of each calibrated site.
    sites : numpy.ndarray
        (scans,) site of each scan.
    """

    def change(scan: int, volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.where(mask, of_site[sites[scan]](volume), np.float32(0))

    digests = {site: one.digest() for site, one in of_site.items()}
    reason = "no other scan of the site to calibrate on"
    return Method(change, f"{name} {digests}", of_site, reason)


def combat_available() -> bool:
    """Check whether neuroCombat is installed (``pip install bids_harmony[evaluate]``)."""
    return find_spec("neuroCombat") is not None


def combat(data: TrainingSet, among: np.ndarray, train_sites: Sequence[str], seed: int) -> Method:
    """Fit neuroCombat voxel by voxel.

    Covariates are not used because they are the targets to predict. Scans are moved from their
    site's distribution to the reference's, so reference scans, and the predictors trained on
    them, do not change.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    among : numpy.ndarray
        Indices of the scans to fit to.
    train_sites : sequence of str
        Sites that must be fitted; the first is the reference.
    seed : int
        Random seed for subsampling large sites to :data:`MOST_SCANS` scans.

    Returns
    -------
    Method
        Changes voxels of the common brain only. It covers no sites if neuroCombat is not
        installed, a training site has fewer than :data:`LEAST_PERSONS` persons, only one site can
        be fitted, or the fit fails.
    """
    few = f"ComBat needs {LEAST_PERSONS} persons of each site for fitting"
    unavailable = Method(lambda _, volume, mask: volume, "", (), few)
    if not combat_available():
        return replace(unavailable, reason="neuroCombat is not installed")
    rng = np.random.default_rng(seed)
    fitted_on = {}
    for site in np.unique(data.sites[among]).tolist():
        scans = data.site_scans(site, among)
        if len(np.unique(data.persons[scans])) >= LEAST_PERSONS:
            fitted_on[site] = np.sort(rng.permutation(scans)[:MOST_SCANS])
    if not set(train_sites) <= fitted_on.keys() or len(fitted_on) < 2:
        return unavailable
    scans = np.concatenate(list(fitted_on.values()))
    shown = sum((data.volume(scan)[1].astype(int) for scan in scans), np.zeros(data.shape, int))
    common = shown >= COMMON * len(scans)
    values = np.stack([data.volume(scan)[0][common] for scan in scans], axis=1)
    varied = np.ptp(values, axis=1) > 0
    common[common] = varied
    from neuroCombat import neuroCombat

    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            sites = pd.DataFrame({"site": data.sites[scans]})
            fit = neuroCombat(values[varied], sites, "site")["estimates"]
        mean, spread = fit["stand.mean"][:, 0], np.sqrt(fit["var.pooled"][:, 0])
        shift, scale = np.asarray_chkfinite([fit["gamma.star"], np.sqrt(fit["delta.star"])])
    except (ValueError, ArithmeticError, np.linalg.LinAlgError):
        return replace(unavailable, reason="neuroCombat failed")
    batch = {str(site): i for i, site in enumerate(fit["batches"])}
    home = batch[train_sites[0]]

    def change(scan: int, volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
        here = batch[data.sites[scan]]
        if here == home:
            return volume
        standard = ((volume[common] - mean) / spread - shift[here]) / scale[here]
        moved = (standard * scale[home] + shift[home]) * spread + mean
        out = volume.copy()
        out[common] = np.clip(moved, 1e-3, 2.0)
        return np.where(mask, out, 0).astype(np.float32)

    content = hashlib.sha256(data.content(among)).hexdigest()
    key = f"combat {train_sites[0]} {seed} {among.tolist()} {content}"
    return Method(change, key, tuple(fitted_on), few)
