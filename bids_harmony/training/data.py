"""The scans of a training run: a table of what is known of them, and one memory-mapped array.

Preprocessed scans are cut to a box that holds every brain and cached as float16, NaN outside the
brain, in the work folder; their grid and descriptors lie beside them as JSON.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_harmony.anat.template import deep_grey, load_template
from bids_harmony.console import counted_off
from bids_harmony.errors import HarmonyError, NoInputError, ScanError
from bids_harmony.files import write_json
from bids_harmony.models.slices import Box, crop, slice_heights, uncrop
from bids_harmony.sites.code import describe, vector
from bids_harmony.training.inputs import TrainScan

FORMAT = 4
#: Sides of the box are multiples of this: predictors halve it four or five times.
SIDE = 16
#: Normalized intensities are at most 2; other values come from another normalization.
HIGHEST = 4.0
PREPROCESS_AGAIN = "Run the participant level on it again."
Say = Callable[[str], None]
#: Shape, and affine in thousandths of a mm.
Grid = tuple[tuple[int, ...], tuple[float, ...]]


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


@dataclass(frozen=True)
class TrainingSet:
    """All scans of a training run, cut to one box.

    Attributes
    ----------
    volumes : Volumes, or another mapping of scan numbers to arrays
        (slices, rows, columns) float16 intensities of each scan (CSF 0, white matter 1), NaN
        outside the brain. Read it through :meth:`slices`, :meth:`stack` and :meth:`volume`.
    table : pandas.DataFrame
        One row per scan: ``subject``, ``site``, ``age`` (years, NaN unknown), ``sex`` (M, F),
        ``diagnosis``, ``qc_status``, ``metrics`` (QC metrics by name), ``descriptors`` (a
        row of numbers), ``_source`` (the scan's raw image, transform and brain mask, where known),
        and the dataset's other columns.
    heights : numpy.ndarray
        (slices,) template z in mm.
    box : tuple
        Rows and columns of the grid the images show.
    shape, affine : tuple of int, numpy.ndarray
        The template grid.
    digests : tuple of str
        (scans,) SHA-256 of each scan's intensities, by which what was made of them is known again.
    """

    volumes: Any
    table: pd.DataFrame
    heights: np.ndarray
    box: Box
    shape: tuple[int, ...]
    affine: np.ndarray
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def sites(self) -> np.ndarray:
        """Site of each scan."""
        return self.table["site"].to_numpy(dtype=str)

    @cached_property
    def subjects(self) -> np.ndarray:
        """Subject of each scan as ``site/label``."""
        return (self.table["site"] + "/" + self.table["subject"]).to_numpy(dtype=str)

    @cached_property
    def persons(self) -> np.ndarray:
        """Person of each scan, the unit of splits and statistics.

        What the dataset's column ``person`` or ``person_id`` names, else the subject's label.
        """
        labels = self.table["subject"]
        return self.table.get("person", labels).fillna(labels).to_numpy(dtype=str)

    @cached_property
    def ages(self) -> np.ndarray:
        """Age of each scan in years, NaN where unknown."""
        return self.table["age"].to_numpy(dtype=float)

    @cached_property
    def sexes(self) -> np.ndarray:
        """``M``, ``F`` or an empty string for each scan."""
        return self.table["sex"].fillna("").to_numpy(dtype=str)

    @cached_property
    def descriptors(self) -> np.ndarray:
        """Descriptors of each scan, (scans, descriptors)."""
        return np.array(self.table["descriptors"].tolist(), dtype=float)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        (a, b), (c, d) = self.box
        return b - a, d - c

    @property
    def zoom_mm(self) -> float:
        """Voxel size of the template grid."""
        return float(abs(self.affine[0, 0]))

    def slices(
        self, scans: np.ndarray | Sequence[int], numbers: np.ndarray | Sequence[int]
    ) -> np.ndarray:
        """Read one slice of each of some scans: float32 (n, rows, columns), background 0."""
        pairs = zip(scans, numbers, strict=True)
        drawn = np.array([self.volumes[int(scan)][int(number)] for scan, number in pairs])
        return np.nan_to_num(drawn.astype(np.float32))

    def stack(self, scan: int) -> tuple[np.ndarray, np.ndarray]:
        """Read all slices of a scan.

        Returns
        -------
        images : numpy.ndarray
            float32 (slices, rows, columns), background 0.
        masks : numpy.ndarray
            Boolean, same shape.
        """
        values = np.asarray(self.volumes[int(scan)], dtype=np.float32)
        return np.nan_to_num(values), ~np.isnan(values)

    def volume(self, scan: int) -> tuple[np.ndarray, np.ndarray]:
        """Read a scan on the whole template grid, with its mask."""
        image, mask = self.stack(scan)
        return uncrop(image, self.box, self.shape), uncrop(mask, self.box, self.shape)

    def brain_mask(self, scan: int) -> np.ndarray:
        """Read a scan's whole brain mask, with the CSF at its surface, on the template grid.

        What is left of it after normalization where the file is not known.
        """
        source = self.table["_source"].iloc[scan] if "_source" in self.table else None
        if source is None or source[2] is None:
            return self.volume(scan)[1]
        return np.asarray(nib.load(source[2]).dataobj) > 0

    def deep_grey(self, resolution: int) -> np.ndarray:
        """Read where the template has deep grey matter, on its grid: float32, 0 to 1.

        0 everywhere where the template has no such map, or the scans are on another grid.
        """
        weight = deep_grey(load_template(resolution))
        if weight is None or weight.shape != self.shape:
            return np.zeros(self.shape, np.float32)
        return weight

    def content(self, scans: np.ndarray | Sequence[int]) -> bytes:
        """Name the images of scans by all that they hold."""
        return "".join(self.digests[int(scan)] for scan in scans).encode()

    def site_scans(self, site: str, among: np.ndarray) -> np.ndarray:
        """Return the scans of a site among the given scan numbers."""
        return np.asarray(among[self.sites[among] == site])


# --- The table ---------------------------------------------------------------------------------


def scan_table(scans: Sequence[TrainScan]) -> pd.DataFrame:
    """Table of what is known of scans, one row each, for :class:`TrainingSet`."""
    known = ("subject", "site", "age", "sex", "diagnosis", "qc_status", "metrics")
    rows = [{**scan.columns, **{name: getattr(scan, name) for name in known}} for scan in scans]
    table = pd.DataFrame(rows)
    table["age"] = pd.to_numeric(table["age"])
    for name in set(table) - set(known):  # text that is a number throughout becomes one
        numbers = pd.to_numeric(table[name], errors="coerce")
        if numbers.notna().equals(table[name].notna()):
            table[name] = numbers
    if any(scan.raw for scan in scans):
        sources = [(scan.raw, scan.transform, scan.mask) for scan in scans]
        table["_source"] = pd.Series(sources, dtype=object)
    persons = {scan.subject: person for scan in reversed(scans) if (person := scan.person)}
    if persons or "person" in table:
        table["person"] = [persons.get(scan.subject) for scan in scans]
    return table


# --- The cache ---------------------------------------------------------------------------------


def open_training_set(
    scans: Sequence[TrainScan], work_dir: Path, *, say: Say = print
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
    rows = [i for i in range(len(scans)) if str(i) not in about["skipped"]]
    (a, b), (c, d) = about["box"]
    affine = np.array(about["affine"])
    table = scan_table([scans[i] for i in rows])
    table["descriptors"] = [about["descriptors"][row] for row in rows]
    return TrainingSet(
        volumes=Volumes(path, np.array(rows)),
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
    path.parent.mkdir(parents=True, exist_ok=True)
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


def _build(scans: Sequence[TrainScan], path: Path, say: Say) -> None:
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

    grids: dict[int, Grid] = {}
    unions: dict[Grid, np.ndarray] = {}
    for row, (grid, mask) in each(_grid_and_mask, list(range(len(scans))), "reading masks"):
        grids[row] = grid
        unions[grid] = unions.get(grid, False) | mask
    if not grids:
        reason = next(iter(skipped.values()), "")
        text = f"None of the preprocessed scans can be used: {reason}"
        raise NoInputError(text, PREPROCESS_AGAIN)
    grid = Counter(grids.values()).most_common(1)[0][0]
    others = [row for row in grids if grids[row] != grid]
    skipped |= dict.fromkeys(others, "It is not on the grid of most scans.")
    shape, affine = grid[0], np.array(grid[1]).reshape(4, 4)
    box = _box(unions[grid])
    digests = [""] * len(scans)
    described: list[list[float]] = [[] for _ in scans]
    usable = [row for row in grids if grids[row] == grid]
    with new_array(path, (len(scans), shape[2], *(b - a for a, b in box))) as volumes:
        for row, (volume, mask) in each(_volume, usable, "filling the training cache"):
            # What normalization took off the surface is 0; the networks of the participant level
            # do not see it as brain, so they must not here.
            inside = crop(mask & (volume > 0), box)
            volumes[row] = np.where(inside, crop(volume, box), np.nan)
            digests[row] = hashlib.sha256(volumes[row].tobytes()).hexdigest()
            known = scans[row].descriptors or {}
            known = known if "texture" in known else describe(volume, mask, abs(affine[0, 0]))
            described[row] = vector(known).tolist()
        if len(skipped) == len(scans):
            text = f"None of the preprocessed scans can be used: {skipped[usable[0]]}"
            raise NoInputError(text, PREPROCESS_AGAIN)
        about = {"box": box, "shape": shape, "affine": affine.tolist(), "skipped": skipped}
        about |= {"digests": digests, "descriptors": described}
        write_json(path.with_suffix(".json"), about)


def _grid_and_mask(scan: TrainScan) -> tuple[Grid, np.ndarray]:
    """Grid that a scan and its mask share, and the mask."""
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
    with _reading(scan.mask):
        mask = np.asarray(image.dataobj) > 0
    if not mask.any():
        raise ScanError("Its brain mask is empty.")
    return grids[0], mask


def _volume(scan: TrainScan) -> tuple[np.ndarray, np.ndarray]:
    """Read a scan and its brain mask."""
    with _reading(scan.t1w):
        volume = np.asarray(nib.load(scan.t1w).dataobj, dtype=np.float32)
    mask = np.asarray(nib.load(scan.mask).dataobj) > 0
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
    """Smallest box around a mask whose sides are multiples of :data:`SIDE`, centred on it.

    The ends may lie outside the grid: :func:`bids_harmony.models.slices.crop` fills with zeros.
    """
    ends = []
    for other in (1, 0):
        used = np.flatnonzero(union.any(axis=(other, 2)))
        low, high = int(used[0]), int(used[-1]) + 1
        spare = -(high - low) % SIDE
        ends.append((low - spare // 2, high + spare - spare // 2))
    return ends[0], ends[1]
