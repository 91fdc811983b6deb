"""Ways of preparing scans for a predictor; the scans of each way are a training set of their own.

``none`` is no harmonization: the raw scan resampled onto the template grid and divided by the 98th
percentile of its brain, nothing else. ``tissue_scaling`` is tissue normalization only, what the
contract makes of the scan (:mod:`bids_harmony.anat.intensity`: bias field, surface, tissue means),
and what the others start from: ``histogram_matching``, the published comparator, ``combat``
(:mod:`bids_harmony.evaluation.combat`), ``intensity_mapping``, the first half of harmonization,
``harmonized``, both by the site's calibration without the use of any age, and
``harmonized_known_ages``, the same with the ages of the scans that calibrate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_harmony.anat.affine import resample
from bids_harmony.anat.check import load_t1w
from bids_harmony.anat.intensity import MAX_SCALED
from bids_harmony.console import counted_off
from bids_harmony.errors import ScanError
from bids_harmony.models.mapnetwork import SiteMap
from bids_harmony.models.slices import crop
from bids_harmony.training.data import TrainingSet, Volumes, new_array
from bids_harmony.training.harmonizer import HARMONIZED as HARMONIZED
from bids_harmony.training.harmonizer import KNOWN_AGES as KNOWN_AGES
from bids_harmony.training.harmonizer import MAPPED as MAPPED
from bids_harmony.training.harmonizer import match_histogram

NONE, SCALED, MATCHED, COMBAT = "none", "tissue_scaling", "histogram_matching", "combat"
WAYS = (NONE, SCALED, MATCHED, COMBAT, MAPPED, HARMONIZED, KNOWN_AGES)
SPOKEN = {
    NONE: "no harmonization",
    SCALED: "tissue normalization only",
    MATCHED: "histogram matching",
    COMBAT: "ComBat",
    MAPPED: "intensity mapping alone",
    HARMONIZED: "harmonized",
    KNOWN_AGES: "harmonized, ages known",
}
#: Ways whose scans a predictor trained on tissue-scaled reference scans understands.
FROM_SCALED = (SCALED, MATCHED, COMBAT, MAPPED, HARMONIZED, KNOWN_AGES)
#: Of the brain's intensities; ``none`` divides by it.
PERCENTILE = 98

#: Takes scan number, volume and mask; gives the volume prepared in another way.
Change = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


class PreparedVolumes:
    """Volumes of which some are replaced by prepared ones.

    Parameters
    ----------
    base : array-like
        All scans' volumes as preprocessed.
    prepared : bids_harmony.training.cache.Volumes
        Those prepared in another way.
    scans : sequence of int
        Their numbers among all.
    """

    def __init__(self, base: Any, prepared: Volumes, scans: Sequence[int]) -> None:
        self.base, self.prepared = base, prepared
        self.place = {int(scan): i for i, scan in enumerate(scans)}

    def __getitem__(self, scan: int) -> np.ndarray:
        """Read a scan."""
        place = self.place.get(int(scan))
        return np.asarray(self.base[scan] if place is None else self.prepared[place])


def prepare(
    data: TrainingSet,
    scans: Sequence[int],
    change: Change,
    what: str,
    work_dir: Path,
    say: Callable[[str], None],
) -> TrainingSet:
    """Prepare some scans in another way, once: they are kept in ``work_dir``.

    Parameters
    ----------
    data : TrainingSet
        All scans as preprocessed.
    scans : sequence of int
        Numbers of the scans to prepare; the others stay as they are.
    change : callable
        See :data:`Change`.
    what : str
        Says all that ``change`` depends on besides the scan.
    work_dir : pathlib.Path
        Where prepared volumes are kept.
    say : callable
        Takes a line of progress.

    Returns
    -------
    TrainingSet
    """
    scans = [int(scan) for scan in scans]
    text = repr((what, data.box, [(i, str(data.subjects[i])) for i in scans]))
    digest = hashlib.sha256(text.encode() + data.content(scans)).hexdigest()[:16]
    path = work_dir / f"prepared-{digest}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        done = counted_off(scans, len(scans), f"preparing {what.split()[0]}", say)
        with new_array(path, (len(scans), len(data.heights), *data.size)) as stored:
            for place, scan in enumerate(done):
                volume, mask = data.volume(scan)
                stack = crop(change(scan, volume, mask), data.box)
                # The brain mask of the plain way is wider than what normalization leaves of it.
                inside = crop(mask, data.box) | (stack > 0)
                stored[place] = np.where(inside, stack, np.nan)
    return replace(data, volumes=PreparedVolumes(data.volumes, Volumes(path), scans))


def plain(data: TrainingSet, work_dir: Path, say: Callable[[str], None]) -> TrainingSet | None:
    """Take all scans without any harmonization: resampled, and divided by a percentile.

    Neither bias field nor tissue means nor the surface are touched; the brain mask is the one that
    the skull stripper found.

    Parameters
    ----------
    data : TrainingSet
        Its table's ``_source`` has each scan's raw image, transform and brain mask.
    work_dir, say
        As of :func:`prepare`.

    Returns
    -------
    TrainingSet or None
        None, and a warning, where a scan's raw image or transform is missing or cannot be read.
    """
    sources = data.table.get("_source", pd.Series([None] * len(data)))
    lost = [
        label for label, source in zip(data.table["subject"], sources, strict=True)
        if source is None or not all(path and path.is_file() for path in source)
    ]  # fmt: skip
    warning = "Warning: nothing can be tested without harmonization: "
    if lost:
        say(f"{warning}{len(lost)} of {len(data)} scans lack their raw image or their transform "
            f"to the template (sub-{lost[0]} first); preprocess them again.")  # fmt: skip
        return None
    grid = nib.Nifti1Image(np.zeros(data.shape, np.uint8), data.affine)

    def change(scan: int, volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
        raw, transform, brain_mask = sources[scan]
        moved = resample(load_t1w(raw)[0], grid, transform, antialias=True)
        brain = np.asarray(nib.load(brain_mask).dataobj) > 0
        return over_percentile(np.asarray(moved.dataobj), brain | mask)

    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns)
             for source in sources for path in source]  # fmt: skip
    try:
        return prepare(data, range(len(data)), change, f"plain {files}", work_dir, say)
    except ScanError as error:
        say(f"{warning}{error.cause}")
        return None


def over_percentile(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Divide a scan by the :data:`PERCENTILE` of its brain; background 0, brain in (0, 2]."""
    top = max(float(np.percentile(volume[mask], PERCENTILE)), 1e-6)
    # Above 0: that is the background.
    return np.where(mask, np.clip(volume / top, 1e-3, MAX_SCALED), 0).astype(np.float32)


def matching(quantiles: np.ndarray) -> Change:
    """Match each scan's histogram to the reference's mean quantiles."""
    return lambda _, volume, mask: match_histogram(volume, mask, quantiles)


def mapping(of_site: Mapping[str, SiteMap], sites: np.ndarray) -> Change:
    """Apply the map of each scan's site."""
    return lambda scan, volume, mask: np.where(mask, of_site[sites[scan]](volume), np.float32(0))
