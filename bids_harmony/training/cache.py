"""Training slices on disk: a zarr array with one uncompressed chunk per scan.

A slice is read with one system call from the file of its scan's chunk: 0.03 ms on the machine
this was chosen on, where zarr's own reading takes 0.6 to 0.9 ms, most of it with Python's lock
held (``benchmarks/slice_cache.py``). Compression would make the cache three times smaller, but
the whole chunk would have to be decoded for one slice. Nothing stays in memory but what the
operating system keeps of the files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import zarr

from bids_harmony.console import counted_off
from bids_harmony.errors import HarmonyError, NoInputError, ScanError
from bids_harmony.models.slices import crop, fit_box, slice_heights
from bids_harmony.training.config import TrainScan
from bids_harmony.training.data import Box, TrainingSet, digest_of, scan_table

FORMAT = 3
#: Sides of the networks' slices are multiples of this: five halvings, in the predictor.
SIDE = 16
#: Scaled volumes end at 2; far above it a volume has not been scaled.
HIGHEST = 4.0
PREPROCESS_AGAIN = "Run the participant level on it again."

Grid = tuple[tuple[int, ...], tuple[float, ...]]


class StoredVolumes:
    """The volumes of a cache, read piece by piece; small enough to send to other processes.

    Parameters
    ----------
    folder : pathlib.Path
        Folder of the zarr array.
    rows : numpy.ndarray
        Number in the array of each scan.
    size : tuple of int
        Slices, rows and columns of a scan.
    """

    def __init__(self, folder: Path, rows: np.ndarray, size: tuple[int, int, int]) -> None:
        self.folder, self.rows, self.size = folder, rows, size

    def __getitem__(self, key: int | tuple[int, slice]) -> np.ndarray:
        """Read a scan, or neighbouring slices of one: ``volumes[3]``, ``volumes[3, 40:43]``."""
        scan, part = key if isinstance(key, tuple) else (key, slice(0, self.size[0]))
        per_slice = 2 * self.size[1] * self.size[2]
        wanted = (part.stop - part.start) * per_slice
        path = self.folder / chunk_name(int(self.rows[scan]))
        try:
            handle = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(handle, wanted, part.start * per_slice)
            finally:
                os.close(handle)
        except OSError as error:
            raise _damaged(path, str(error)) from error
        if len(data) != wanted:
            raise _damaged(path, "it is too short")
        return np.frombuffer(data, "<f2").reshape(-1, *self.size[1:])


def chunk_name(row: int) -> str:
    """Name of the file that holds a scan's chunk, as zarr names it."""
    return f"c.{row}.0.0.0"


def open_training_set(
    scans: Sequence[TrainScan],
    work_dir: Path,
    *,
    threads: int = 1,
    say: Callable[[str], None] = print,
) -> TrainingSet:
    """Cut preprocessed scans to a box that holds every brain, and store them for training.

    The store is made once, whole, in ``work_dir/train_cache-<hash>``; the hash is of the paths,
    sizes and times of change of all images, so that it is used again as long as these stay.

    Parameters
    ----------
    scans : sequence of TrainScan
        Volumes on one template grid. A scan that cannot be read, or is on another grid than
        most, is left out with a line that says why.
    work_dir : pathlib.Path
        Where the store is.
    threads : int
        Scans read at once.
    say : callable
        Takes lines of progress.

    Returns
    -------
    TrainingSet

    Raises
    ------
    NoInputError
        When no scan can be used.
    HarmonyError
        When the store cannot be written.
    """
    folder = work_dir / f"train_cache-{_fingerprint(scans)}"
    work_dir.mkdir(parents=True, exist_ok=True)
    with locked(work_dir / f".{folder.name}.lock"):
        if not folder.is_dir():
            part = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            try:
                _build(scans, part, threads, say)
            except OSError as error:
                raise HarmonyError(
                    f"The training cache {folder} cannot be written ({error}).",
                    "Free space there, or give another --work-dir.",
                ) from error
            part.rename(folder)
    group = zarr.open_group(folder, mode="r")
    about: dict[str, Any] = dict(group.attrs)
    skipped: dict[str, str] = about["skipped"]
    for row, why in skipped.items():
        say(f"{scans[int(row)].t1w} is left out: {why}")
    rows = np.array([i for i in range(len(scans)) if str(i) not in skipped], dtype=int)
    if not len(rows):
        raise NoInputError("None of the preprocessed scans can be used.", PREPROCESS_AGAIN)
    (a, b), (c, d) = about["box"]
    shape, affine = tuple(about["shape"]), np.array(about["affine"])
    return TrainingSet(
        volumes=StoredVolumes(folder / "volumes", rows, (shape[2], b - a, d - c)),
        table=scan_table([scans[i] for i in rows]),
        heights=slice_heights(shape[2], affine),
        filled=np.asarray(group["filled"])[rows],
        box=((a, b), (c, d)),
        shape=shape,
        affine=affine,
        digests=tuple(about["digests"][row] for row in rows),
    )


def _fingerprint(scans: Sequence[TrainScan]) -> str:
    entries: list[Any] = [FORMAT]
    for path in (p for scan in scans for p in (scan.t1w, scan.mask)):
        try:
            stat = path.stat()
            state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
            entries.append([str(path.resolve()), *state])
        except OSError:
            entries.append([str(path), None, None])
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time in: of several that train together, one makes the store."""
    with path.open("w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def create_store(
    folder: Path, n_scans: int, size: tuple[int, int, int]
) -> tuple[zarr.Group, zarr.Array[Any]]:
    """Make an empty store for scans of (slices, rows, columns).

    Returns
    -------
    group : zarr.Group
        The store.
    volumes : zarr.Array
        Its array, (scans, slices, rows, columns) float16, each scan a file of its own.
    """
    group = zarr.create_group(folder)
    volumes = group.create_array(
        "volumes",
        shape=(n_scans, *size),
        chunks=(1, *size),
        dtype="<f2",
        fill_value=np.nan,
        compressors=None,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    return group, volumes


def _build(
    scans: Sequence[TrainScan], folder: Path, threads: int, say: Callable[[str], None]
) -> None:
    """Write the store: masks are read first, for the box, then images and masks."""
    skipped: dict[int, str] = {}

    def each(function: Callable[[int], Any], rows: list[int], what: str) -> Iterator[Any]:
        """Call a function for scans, in order; where it fails the scan is skipped."""

        def attempt(row: int) -> Any:
            try:
                return function(row)
            except ScanError as error:
                return error

        found = zip(rows, pool.map(attempt, rows), strict=True)
        for row, value in counted_off(found, len(rows), what, say):
            if isinstance(value, ScanError):
                skipped[row] = value.cause
            else:
                yield row, value

    with ThreadPoolExecutor(threads) as pool:
        grids = dict(
            each(lambda row: _grid(scans[row]), list(range(len(scans))), "reading headers")
        )
        if not grids:
            raise _none_left(skipped)
        grid = Counter(grids.values()).most_common(1)[0][0]
        others = [row for row, other in grids.items() if other != grid]
        skipped |= dict.fromkeys(others, "It is not on the grid of most scans.")
        shape, affine = grid[0], np.array(grid[1]).reshape(4, 4)
        union, usable = np.zeros(shape, dtype=bool), []
        alike = [row for row in grids if grids[row] == grid]
        for row, mask in each(lambda row: _mask(scans[row]), alike, "reading masks"):
            union |= mask
            usable.append(row)
        if not usable:
            raise _none_left(skipped)
        box = _box(union)
        size = (shape[2], *(b - a for a, b in box))
        group, volumes = create_store(folder, len(scans), size)

        digests = [""] * len(scans)

        def store(row: int) -> np.ndarray:
            volume, share = _cut(scans[row], box)
            volumes[row], digests[row] = volume, digest_of(volume)
            return share

        filled = np.zeros((len(scans), shape[2]), np.float32)
        for row, share in each(store, usable, "filling the training cache"):
            filled[row] = share
    group.create_array("filled", data=filled)
    group.attrs.update(
        {
            "format": FORMAT,
            "box": [list(side) for side in box],
            "shape": list(shape),
            "affine": affine.tolist(),
            "scans": [{"site": s.site, "subject": s.subject, "t1w": str(s.t1w)} for s in scans],
            "digests": digests,
            "skipped": {str(row): why for row, why in sorted(skipped.items())},
        }
    )


def _none_left(skipped: dict[int, str]) -> NoInputError:
    first = next(iter(skipped.values()), "")
    return NoInputError(f"None of the preprocessed scans can be used: {first}", PREPROCESS_AGAIN)


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


def _cut(scan: TrainScan, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Read a scan as it is stored, and the share of brain of each slice."""
    mask = _mask(scan)
    with _reading(scan.t1w):
        volume = np.asarray(nib.load(scan.t1w).dataobj, dtype=np.float32)
    if not np.isfinite(volume[mask]).all():
        raise ScanError("It holds values that are no numbers.")
    if np.abs(volume[mask]).max() > HIGHEST:
        raise ScanError("Its intensities are not scaled as this version scales them.")
    # What scaling took off the surface is 0; the participant level's networks do not see it as
    # brain, so they must not here.
    inside = crop(mask & (volume > 0), box)
    return np.where(inside, crop(volume, box), np.nan).astype(np.float16), inside.mean(axis=(1, 2))


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


def _damaged(path: Path, why: str) -> HarmonyError:
    return HarmonyError(
        f"The training cache cannot be read: {path} ({why}).",
        f"Delete {path.parents[1]} and run the same command again.",
    )
