"""Ways of preparing scans for a predictor; the scans of each way are a training set of their own.

``none`` is what most programs hand to a predictor: the stripped, registered scan over its 98th
percentile. ``tissue_scaling`` is what the bundle's contract makes of it
(:mod:`bids_harmony.anat.intensity`), and what the others start from: ``histogram_matching``, the
published comparator, ``combat`` (:mod:`bids_harmony.evaluation.combat`) and ``harmonized``, the
forward map.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bids_harmony.anat.intensity import MAX_SCALED
from bids_harmony.console import counted_off
from bids_harmony.models.apply import map_volume
from bids_harmony.models.slices import crop
from bids_harmony.training.cache import StoredVolumes, create_store
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.evaluate import match_histogram, volume_of

NONE, SCALED, MATCHED, HARMONIZED = "none", "tissue_scaling", "histogram_matching", "harmonized"
COMBAT = "combat"
WAYS = (NONE, SCALED, MATCHED, COMBAT, HARMONIZED)
#: Ways whose scans a predictor trained on tissue-scaled reference scans understands.
FROM_SCALED = (SCALED, MATCHED, COMBAT, HARMONIZED)
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
    prepared : StoredVolumes
        Those prepared in another way.
    scans : sequence of int
        Their numbers among all.
    """

    def __init__(self, base: Any, prepared: StoredVolumes, scans: Sequence[int]) -> None:
        self.base, self.prepared = base, prepared
        self.place = {int(scan): i for i, scan in enumerate(scans)}

    def __getitem__(self, key: int | tuple[int, slice]) -> np.ndarray:
        """Read a scan, or neighbouring slices of one."""
        scan, part = key if isinstance(key, tuple) else (key, None)
        volumes, row = (
            (self.prepared, self.place[int(scan)]) if int(scan) in self.place
            else (self.base, int(scan))
        )  # fmt: skip
        return np.asarray(volumes[row] if part is None else volumes[row, part])


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
    digest = hashlib.sha256(text.encode() + data.filled[scans].tobytes()).hexdigest()[:16]
    folder = work_dir / f"prepared-{digest}"
    size = (len(data.heights), *data.size)
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        _, stored = create_store(part, len(scans), size)
        done = counted_off(scans, len(scans), f"preparing {what.split()[0]}", say)
        for place, scan in enumerate(done):
            volume, mask = volume_of(data, scan)
            stack, inside = crop(change(scan, volume, mask), data.box), crop(mask, data.box)
            stored[place] = np.where(inside, stack, np.nan).astype(np.float16)
        part.rename(folder)
    prepared = StoredVolumes(folder / "volumes", np.arange(len(scans)), size)
    return replace(data, volumes=PreparedVolumes(data.volumes, prepared, scans))


def unscale(data: TrainingSet, grey: float) -> Change | None:
    """Undo the scaling of tissues, and divide by the brain's 98th percentile.

    Shading stays divided out, and what was darker than fluid stays as dark as fluid.

    Parameters
    ----------
    data : TrainingSet
        Its table has the ``levels`` that each scan's fluid, grey and white matter had.
    grey : float
        The contract's value of grey matter.

    Returns
    -------
    callable or None
        See :data:`Change`; None where a scan's levels are not known.
    """
    levels = data.table.get("levels")
    if levels is None or any(not isinstance(row, tuple) for row in levels):
        return None

    def change(scan: int, volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
        fluid, middle, white = levels[scan]
        values = np.interp(
            volume[mask], [0.0, grey, 1.0, MAX_SCALED], [fluid, middle, white, MAX_SCALED * white]
        )
        out = np.zeros(volume.shape, np.float32)
        top = max(float(np.percentile(values, PERCENTILE)), 1e-6)
        # Above 0: that is the background.
        out[mask] = np.clip(values / top, 1e-3, MAX_SCALED)
        return out

    return change


def matching(quantiles: np.ndarray) -> Change:
    """Match each scan's histogram to the reference's mean quantiles."""
    return lambda _, volume, mask: match_histogram(volume, mask, quantiles)


def mapping(network: nn.Module, data: TrainingSet) -> Change:
    """Apply a forward map."""
    return lambda _, volume, mask: map_volume(network, volume, mask, data.affine, data.box)


def weights_digest(network: nn.Module) -> str:
    """Name a network by its weights."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
