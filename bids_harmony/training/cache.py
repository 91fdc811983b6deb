"""Preprocessed scans as networks read them in training: one memory-mapped array, made once."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_harmony.console import counted_off
from bids_harmony.errors import HarmonyError, NoInputError, ScanError
from bids_harmony.files import write_json
from bids_harmony.models.slices import Box, crop, fit_box, slice_heights
from bids_harmony.sites.descriptors import describe, vector
from bids_harmony.training.config import TrainScan
from bids_harmony.training.data import TrainingSet, scan_table

FORMAT = 4
#: Sides of the box are multiples of this: predictors halve it four or five times.
SIDE = 16
#: Normalized intensities are at most 2; other values come from another normalization.
HIGHEST = 4.0
PREPROCESS_AGAIN = "Run the participant level on it again."


class Volumes:
    """A memory-mapped array that other processes open for themselves.

    Parameters
    ----------
    path : pathlib.Path
        The array, ``.npy``.
    rows : numpy.ndarray, optional
        Which of its rows, in which order; all when None.
    """

    def __init__(self, path: Path, rows: np.ndarray | None = None) -> None:
        self.path, self.rows = path, rows
        self._array: np.ndarray | None = None

    def __getitem__(self, scan: int) -> np.ndarray:
        """Read a scan: (slices, rows, columns) float16."""
        if self._array is None:
            try:
                self._array = np.load(self.path, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise HarmonyError(
                    f"The training cache cannot be read: {self.path} ({error}).",
                    f"Delete {self.path} and run the same command again.",
                ) from error
        return np.asarray(self._array[scan if self.rows is None else self.rows[scan]])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open array out of what is sent to another process."""
        return {**self.__dict__, "_array": None}


def open_training_set(
    scans: Sequence[TrainScan],
    work_dir: Path,
    *,
    say: Callable[[str], None] = print,
) -> TrainingSet:
    """Cut preprocessed scans to a box that holds every brain, and cache them for training.

    The cache is made once, ``work_dir/scans-<hash>.npy``; the hash is of the paths, sizes and
    times of change of all images, so that it is used again as long as these stay.

    Parameters
    ----------
    scans : sequence of TrainScan
        Volumes on one template grid. A scan that cannot be read, or is on another grid than
        most, is left out with a line that says why.
    work_dir : pathlib.Path
        Where the cache is.
    say : callable
        Takes lines of progress.

    Raises
    ------
    NoInputError
        When no scan can be used.
    HarmonyError
        When the cache cannot be written.
    """
    path = work_dir / f"scans-{_fingerprint(scans)}.npy"
    with locked(path.with_suffix(".lock")):
        if not path.is_file():
            try:
                _build(scans, path, say)
            except OSError as error:
                raise HarmonyError(
                    f"The training cache {path} cannot be written ({error}).",
                    "Free space there, or give another --work-dir.",
                ) from error
    about: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    for row, why in about["skipped"].items():
        say(f"{scans[int(row)].t1w} is left out: {why}")
    rows = np.array([i for i in range(len(scans)) if str(i) not in about["skipped"]], dtype=int)
    if not len(rows):
        raise NoInputError("None of the preprocessed scans can be used.", PREPROCESS_AGAIN)
    (a, b), (c, d) = about["box"]
    affine = np.array(about["affine"])
    table = scan_table([scans[i] for i in rows])
    table["descriptors"] = [about["descriptors"][row] for row in rows]
    return TrainingSet(
        volumes=Volumes(path, rows),
        table=table,
        heights=slice_heights(about["shape"][2], affine),
        box=((a, b), (c, d)),
        shape=tuple(about["shape"]),
        affine=affine,
        digests=tuple(about["digests"][row] for row in rows),
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time in: of several that train together, one makes the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def new_array(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Make a float16 array on disk that appears under its name when it is whole."""
    part = path.with_name(f".{path.name}.part")
    array = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        part, "w+", np.float16, shape
    )
    yield array
    array.flush()
    part.replace(path)


def _fingerprint(scans: Sequence[TrainScan]) -> str:
    entries: list[Any] = [FORMAT]
    for path in (p for scan in scans for p in (scan.t1w, scan.mask)):
        try:
            stat = path.stat()
            state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
            entries.append([str(path.resolve()), *state])
        except OSError:
            entries.append([str(path), None])
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def _build(scans: Sequence[TrainScan], path: Path, say: Callable[[str], None]) -> None:
    """Write the cache: masks are read first, for the box, then images."""
    skipped: dict[int, str] = {}

    def each(function: Callable[[TrainScan], Any], rows: list[int], what: str) -> Iterator[Any]:
        """Call a function for scans, in order; where it fails the scan is skipped."""
        for row in counted_off(rows, len(rows), what, say):
            try:
                value = function(scans[row])
            except ScanError as error:
                skipped[row] = error.cause
                continue
            yield row, value

    grids = dict(each(_grid, list(range(len(scans))), "reading headers"))
    if grids:
        grid = Counter(grids.values()).most_common(1)[0][0]
        others = [row for row, other in grids.items() if other != grid]
        skipped |= dict.fromkeys(others, "It is not on the grid of most scans.")
        shape, affine = grid[0], np.array(grid[1]).reshape(4, 4)
    union, usable = None, []
    alike = [row for row in grids if grids[row] == grid]
    for row, mask in each(_mask, alike, "reading masks"):
        union = mask if union is None else union | mask
        usable.append(row)
    if union is None:
        first = next(iter(skipped.values()), "")
        raise NoInputError(
            f"None of the preprocessed scans can be used: {first}", PREPROCESS_AGAIN
        )
    box = _box(union)
    size = (shape[2], *(b - a for a, b in box))
    zoom = float(abs(affine[0, 0]))
    digests = [""] * len(scans)
    described: list[list[float]] = [[] for _ in scans]
    with new_array(path, (len(scans), *size)) as volumes:
        for row, (volume, mask) in each(_volume, usable, "filling the training cache"):
            # What normalization took off the surface is 0; the networks of the participant level
            # do not see it as brain, so they must not here.
            inside = crop(mask & (volume > 0), box)
            volumes[row] = np.where(inside, crop(volume, box), np.nan)
            digests[row] = hashlib.sha256(volumes[row].tobytes()).hexdigest()
            known = scans[row].descriptors or {}
            found = known if "texture" in known else describe(volume, mask, zoom)
            described[row] = vector(found).tolist()
        write_json(
            path.with_suffix(".json"),
            {
                "box": [list(side) for side in box],
                "shape": list(shape),
                "affine": affine.tolist(),
                "digests": digests,
                "descriptors": described,
                "skipped": {str(row): why for row, why in skipped.items()},
            },
        )


Grid = tuple[tuple[int, ...], tuple[float, ...]]


def _grid(scan: TrainScan) -> Grid:
    """Shape and affine of a scan and its mask, the affine rounded to a thousandth of a mm."""
    grids = []
    for path in (scan.t1w, scan.mask):
        with _reading(path):
            image = nib.load(path)
            affine = tuple(float(v) + 0.0 for v in np.round(image.affine, 3).ravel())
            grids.append((tuple(int(n) for n in image.shape), affine))
    if grids[0] != grids[1]:
        raise ScanError("Its mask is on another grid.")
    if len(grids[0][0]) != 3:
        raise ScanError("It is not a volume of three dimensions.")
    return grids[0]


def _mask(scan: TrainScan) -> np.ndarray:
    with _reading(scan.mask):
        mask = np.asarray(nib.load(scan.mask).dataobj) > 0
    if not mask.any():
        raise ScanError("Its brain mask is empty.")
    return mask


def _volume(scan: TrainScan) -> tuple[np.ndarray, np.ndarray]:
    """Read a scan and its brain mask."""
    mask = _mask(scan)
    with _reading(scan.t1w):
        volume = np.asarray(nib.load(scan.t1w).dataobj, dtype=np.float32)
    if not np.isfinite(volume[mask]).all():
        raise ScanError("It holds values that are no numbers.")
    if np.abs(volume[mask]).max() > HIGHEST:
        raise ScanError("Its intensities are not normalized as this version does it.")
    return volume, mask


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes nibabel raise into :class:`ScanError`."""
    try:
        yield
    except Exception as error:
        raise ScanError(f"{path.name} cannot be read ({error}).") from error


def _box(union: np.ndarray) -> Box:
    """Smallest box around a mask whose sides are multiples of :data:`SIDE`, centred on it."""
    ends = []
    for other in (1, 0):
        used = np.flatnonzero(union.any(axis=(other, 2)))
        low, high = int(used[0]), int(used[-1]) + 1
        spare = -(high - low) % SIDE
        ends.append((low - spare // 2, high + spare - spare // 2))
    return fit_box((ends[0], ends[1]), union, SIDE)
