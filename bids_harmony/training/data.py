"""Scans of a training run, cached in one memory-mapped array.

Preprocessed scans are cropped to a box that contains every brain and cached as float16, NaN
outside the brain, in the work folder. Grid and descriptors are saved beside them as JSON. The
module is ordered as follows: finding scans, selecting scans, the cache, splits by person.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_harmony.anat.template import deep_grey, load_template
from bids_harmony.bids.dataset import counted, find_scans
from bids_harmony.bids.records import image_digest, scan_file
from bids_harmony.bids.tables import named_person
from bids_harmony.config import Contract, TrainOptions
from bids_harmony.console import progress
from bids_harmony.errors import BundleError, HarmonyError, NoInputError, ScanError, UsageError
from bids_harmony.files import read_json_or_empty, write_json
from bids_harmony.models.networks import Box, crop, slice_heights, uncrop
from bids_harmony.qc import ratings
from bids_harmony.sites.code import Appearance, describe, vector

if TYPE_CHECKING:
    from bids_harmony.bids.dataset import Scan
    from bids_harmony.config import RunConfig

LOGGER = logging.getLogger(__name__)

#: QC statuses that exclude a scan from training.
REJECTED = ("fail", "error", ratings.REJECTED)
TRAIN, VALIDATION, TEST = "train", "validation", "test"
FORMAT = 5
#: Sides of the box are multiples of this, because predictors halve the image four or five times.
SIDE = 16
#: Highest accepted intensity. Normalized intensities are at most 2; higher values come from
#: another normalization.
HIGHEST = 4.0
#: Shape, and affine in thousandths of a mm.
Grid = tuple[tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True)
class TrainScan:
    """A preprocessed scan with the metadata used in training.

    Attributes
    ----------
    subject, site : str
        Labels without prefix.
    t1w, mask : pathlib.Path
        Preprocessed volume and brain mask on the template grid.
    age : float or None
        Age in years; None if unknown.
    metrics : dict
        QC metrics of the scan; empty if there are none.
    sex, diagnosis : str or None
        ``M`` or ``F``; diagnosis as written in the dataset.
    columns : dict of str to str
        Values of the dataset's tables by column, without empty cells.
    qc_status : str or None
        QC status: ``pass``, ``warn``, ``fail`` or ``error``, or that of the raters.
    made : Contract or None
        Preprocessing, from the QC record; None if unknown.
    sha256 : str or None
        SHA-256 of the raw image's voxels or file, from the QC record.
    raw, transform : pathlib.Path or None
        Raw image, and its transform to the template.
    descriptors : dict or None
        Output of :func:`bids_harmony.sites.code.describe`, from the QC record.
    """

    subject: str
    site: str
    t1w: Path
    mask: Path
    age: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    sex: str | None = None
    diagnosis: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    qc_status: str | None = None
    made: Contract | None = None
    sha256: str | None = None
    raw: Path | None = None
    transform: Path | None = None
    descriptors: dict[str, Any] | None = None

    @property
    def person(self) -> str | None:
        """Person identifier from the dataset's tables; None if there is none."""
        return named_person(self.columns)


def read_scans(config: RunConfig) -> tuple[list[TrainScan], TrainOptions]:
    """Find the preprocessed scans of a dataset and report warnings and missing scans.

    Parameters
    ----------
    config : RunConfig
        Configuration.

    Returns
    -------
    scans : list of TrainScan
        Scans with a preprocessed image.
    options : TrainOptions
        Training options of ``config``, with the contract of the scans.
    """
    inventory = find_scans(config)
    for warning in inventory.warnings:
        LOGGER.warning(warning)
    scans, missing = find_training_scans(config.output_dir, inventory.scans, config)
    for key in missing:
        LOGGER.info(f"{key} is excluded: it has no preprocessed image in {config.output_dir}.")
    contract = common_contract(scans, config.train.contract)
    return scans, replace(config.train, contract=contract)


def find_training_scans(
    output_dir: Path, scans: Sequence[Scan], config: RunConfig
) -> tuple[list[TrainScan], list[str]]:
    """Match the dataset's scans with their preprocessed images and QC records.

    Manual ratings (``--qc-ratings``) override the automatic QC status.

    Returns
    -------
    found : list of TrainScan
        Scans with a preprocessed image and mask in the contract's space and resolution.
    missing : list of str
        Keys of the other scans.
    """
    contract = config.train.contract
    table, problems = ratings.read_ratings(ratings.rating_files(config))
    for problem in problems:
        LOGGER.warning(problem)
    rated = ratings.merge_ratings(table)
    some = config.participant_label or config.session_label or config.bids_filters
    if not some and (unknown := ratings.unmatched(table, [scan.key for scan in scans])):
        LOGGER.warning(unknown)
    space, grid = contract.template, f"space-{contract.template}_res-{contract.resolution}"
    found, missing = [], []
    for scan in scans:
        qc = scan_file(output_dir, scan.entities, scan.key, "qc")
        t1w = qc.with_name(f"{scan.key}_{grid}_desc-preproc_T1w.nii.gz")
        mask = qc.with_name(f"{scan.key}_{grid}_desc-brain_mask.nii.gz")
        if not (t1w.is_file() and mask.is_file()):
            missing.append(scan.key)
            continue
        record = read_json_or_empty(qc)
        transform = qc.with_name(f"{scan.key}_from-T1w_to-{space}_mode-image_xfm.txt")
        found.append(
            TrainScan(
                scan.entities["subject"], scan.site, t1w, mask, scan.age,
                dict(record.get("metrics", {})), scan.sex, scan.diagnosis, scan.columns,
                qc_status=ratings.rated_status(record.get("status"), rated.get(scan.key)),
                made=made_under(record),
                sha256=image_digest(record) or None,
                raw=scan.path,
                transform=transform if transform.is_file() else None,
                descriptors=record.get("descriptors"),
            )
        )  # fmt: skip
    return found, missing


def made_under(record: dict[str, Any]) -> Contract | None:
    """Read from a QC record how a scan was preprocessed; None if not recorded."""
    try:
        processing = record["processing"]
        contract = Contract.from_dict(processing["contract"])
    except (KeyError, TypeError, BundleError):  # written by another version
        return None
    used = {name: processing.get(name, "auto") for name in ("skull_strip", "registration")}
    return replace(contract, **{name: how for name, how in used.items() if how != "auto"})


def common_contract(scans: Sequence[TrainScan], wanted: Contract) -> Contract:
    """Return the most frequent preprocessing of the scans, and warn about others.

    Parameters
    ----------
    scans : sequence of TrainScan
        Preprocessed scans. Those without a recorded preprocessing are ignored.
    wanted : Contract
        Contract that defines the grid. It is returned if no preprocessing on this
        grid is recorded.

    Returns
    -------
    Contract
        Contract of the new bundle.
    """
    grid = (wanted.template, wanted.resolution)
    made = [scan.made for scan in scans if scan.made]
    counts = Counter(how for how in made if (how.template, how.resolution) == grid)
    chosen = counts.most_common(1)[0][0] if counts else wanted
    if others := counts.total() - counts[chosen]:
        LOGGER.warning(
            f"{others} of {len(scans)} scans were preprocessed differently from most "
            f"(--skull-strip {chosen.skull_strip} --registration {chosen.registration}). Run the "
            "participant level on them again with these options."
        )
    return chosen


def usable_scans(scans: Sequence[TrainScan]) -> list[TrainScan]:
    """Return the scans without rejected scans and duplicate images."""
    return without_copies(without_rejected(scans))


def without_copies(scans: Sequence[TrainScan]) -> list[TrainScan]:
    """Return the scans without duplicate images of the same person.

    Parameters
    ----------
    scans : sequence of TrainScan
        Preprocessed scans. Those without a recorded checksum are kept.

    Raises
    ------
    UsageError
        If two participants have the same image, which could then be in both the training and the
        test set.
    """
    used, shared = [], []
    first: dict[str, TrainScan] = {}
    for scan in scans:
        other = first.setdefault(scan.sha256, scan) if scan.sha256 else scan
        if other is scan:
            used.append(scan)
        elif (other.person or other.subject) == (scan.person or scan.subject):
            LOGGER.info(f"{scan.t1w.name} is excluded: it is a duplicate of {other.t1w.name}.")
        else:
            shared.append(f"sub-{other.subject} and sub-{scan.subject}")
    if shared:
        names = ", ".join(dict.fromkeys(shared))
        raise UsageError(
            f"Two participants have the same image: {names}.",
            "Remove the wrong one, exclude it with --participant-label or --qc-ratings, or, if "
            "they are the same person, add a column 'person' to participants.tsv.",
        )
    return used


def without_rejected(scans: Sequence[TrainScan]) -> list[TrainScan]:
    """Return the scans without those that quality control or raters rejected.

    Raises
    ------
    NoInputError
        If no scan is left.
    """
    used = []
    for scan in scans:
        if scan.qc_status not in REJECTED:
            used.append(scan)
            continue
        rated = scan.qc_status == ratings.REJECTED
        why = "rejected by raters" if rated else f"its QC status is '{scan.qc_status}'"
        LOGGER.info(f"{scan.t1w.name} is excluded: {why}.")
    if scans and not used:
        raise NoInputError(
            f"Quality control or raters rejected all of {counted(len(scans), 'scan')}.",
            "Check the ratings and the reports of the participant level.",
        )
    return used


# --- The cache ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Volumes:
    """A memory-mapped array that each process opens by itself.

    Attributes
    ----------
    path : pathlib.Path
        Path of the ``.npy`` file.
    places : mapping of int to int, optional
        Row of each scan in the file; None if the file has all scans in order.
    others : sequence of numpy.ndarray, optional
        Volumes of all scans, for those that are not in ``places``.
    """

    path: Path
    places: Mapping[int, int] | None = None
    others: Any = None

    @cached_property
    def array(self) -> np.ndarray:
        """The array: (scans, slices, rows, columns) float16."""
        return np.asarray(np.load(self.path, mmap_mode="r"))

    def __getitem__(self, scan: int) -> np.ndarray:
        """Read a scan: (slices, rows, columns) float16."""
        row = scan if self.places is None else self.places.get(scan)
        return np.asarray(self.others[scan] if row is None else self.array[row])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open array, for pickling."""
        return {name: value for name, value in self.__dict__.items() if name != "array"}


@dataclass(frozen=True)
class TrainingSet:
    """All scans of a training run, cropped to one box.

    Attributes
    ----------
    volumes : Volumes, or another mapping of scan indices to arrays
        (slices, rows, columns) float16 intensities of each scan (CSF 0, white matter 1), NaN
        outside the brain. Use :meth:`slices`, :meth:`stack` and :meth:`volume` to read it.
    table : pandas.DataFrame
        One row per scan: ``subject``, ``site``, ``age`` (years, NaN if unknown), ``sex`` (M, F),
        ``diagnosis``, ``qc_status``, ``metrics`` (QC metrics by name), ``descriptors`` (list of
        numbers), ``_source`` (paths of raw image, transform and brain mask, if known), and the
        dataset's other columns.
    box : tuple
        Rows and columns of the template grid inside the crop; ends are exclusive.
    shape, affine : tuple of int, numpy.ndarray
        Shape and 4 x 4 affine of the template grid.
    digests : tuple of str
        (scans,) SHA-256 of each scan's intensities, used as cache keys.
    """

    volumes: Any
    table: pd.DataFrame
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
        """Subject of each scan, as ``site/label``."""
        return (self.table["site"] + "/" + self.table["subject"]).to_numpy(dtype=str)

    @cached_property
    def persons(self) -> np.ndarray:
        """Person of each scan, the unit of splits and statistics.

        Taken from the dataset's column ``person`` or ``person_id``, otherwise the subject label.
        """
        labels = self.table["subject"]
        return self.table.get("person", labels).fillna(labels).to_numpy(dtype=str)

    @cached_property
    def ages(self) -> np.ndarray:
        """Age of each scan in years, NaN if unknown."""
        return self.table["age"].to_numpy(dtype=float)

    @cached_property
    def sexes(self) -> np.ndarray:
        """Sex of each scan: ``M``, ``F`` or an empty string."""
        return self.table["sex"].fillna("").to_numpy(dtype=str)

    @cached_property
    def descriptors(self) -> np.ndarray:
        """Descriptors of each scan, (scans, descriptors)."""
        return np.array(self.table["descriptors"].tolist(), dtype=float)

    @cached_property
    def heights(self) -> np.ndarray:
        """Height of each slice (template z, in mm)."""
        return slice_heights(self.shape[2], self.affine)

    @property
    def size(self) -> tuple[int, int]:
        """Number of rows and columns of a slice."""
        (a, b), (c, d) = self.box
        return b - a, d - c

    @property
    def zoom_mm(self) -> float:
        """Voxel size of the template grid in mm."""
        return float(abs(self.affine[0, 0]))

    def slices(
        self, scans: np.ndarray | Sequence[int], numbers: np.ndarray | Sequence[int]
    ) -> np.ndarray:
        """Read one slice of each given scan: float32 (n, rows, columns), background 0."""
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
            Boolean brain mask of the same shape.
        """
        values = np.asarray(self.volumes[int(scan)], dtype=np.float32)
        return np.nan_to_num(values), ~np.isnan(values)

    def volume(self, scan: int) -> tuple[np.ndarray, np.ndarray]:
        """Read a scan and its mask on the whole template grid."""
        image, mask = self.stack(scan)
        return uncrop(image, self.box, self.shape), uncrop(mask, self.box, self.shape)

    def brain_mask(self, scan: int) -> np.ndarray:
        """Read the brain mask of a scan, including surface CSF, on the template grid.

        If its file is not known, return the mask of the normalized image, without the voxels that
        normalization removed.
        """
        source = self.table["_source"].iloc[scan] if "_source" in self.table else None
        if source is None or source[2] is None:
            return self.volume(scan)[1]
        return np.asarray(nib.load(source[2]).dataobj) > 0

    @cached_property
    def deep_grey(self) -> np.ndarray:
        """Weight of deep grey matter on the template grid: float32, 0 to 1.

        0 everywhere if the scans are on another grid than the template.
        """
        weight = deep_grey(load_template(round(self.zoom_mm)))
        if weight is None or weight.shape != self.shape:
            return np.zeros(self.shape, np.float32)
        return weight

    def content(self, scans: np.ndarray | Sequence[int]) -> bytes:
        """Return the digests of scans as bytes, for hashing."""
        return "".join(self.digests[int(scan)] for scan in scans).encode()

    def site_scans(self, site: str, among: np.ndarray) -> np.ndarray:
        """Return those of the given scan indices that belong to a site."""
        return np.asarray(among[self.sites[among] == site])


def scan_table(scans: Sequence[TrainScan]) -> pd.DataFrame:
    """Return a table with one row of metadata per scan, for :class:`TrainingSet`."""
    known = ("subject", "site", "age", "sex", "diagnosis", "qc_status", "metrics")
    rows = [{**scan.columns, **{name: getattr(scan, name) for name in known}} for scan in scans]
    table = pd.DataFrame(rows)
    table["age"] = pd.to_numeric(table["age"])
    for name in set(table) - set(known):  # convert columns of numbers
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


def open_training_set(scans: Sequence[TrainScan], work_dir: Path) -> TrainingSet:
    """Load the training set, from the cache if possible.

    Preprocessed scans are cropped to a box that contains every brain and cached in
    ``work_dir/scans-<hash>.npy``. The hash covers the paths, inodes, sizes and modification times
    of all images, so the cache is reused until one of them changes.

    Parameters
    ----------
    scans : sequence of TrainScan
        Scans on one template grid. Scans that cannot be read, or are on another grid than most,
        are excluded with a message.
    work_dir : pathlib.Path
        Cache folder.

    Returns
    -------
    TrainingSet
        The usable scans.

    Raises
    ------
    NoInputError
        If no scan can be used.
    HarmonyError
        If the cache cannot be written.
    """
    path = work_dir / f"scans-{_fingerprint(scans)}.npy"
    with locked(path.with_suffix(".lock")):
        if not path.is_file():
            try:
                _build(scans, path)
            except OSError as error:
                raise HarmonyError(
                    f"The training cache {path} cannot be written ({error}).",
                    "Free disk space, or choose another --work-dir.",
                ) from error
    about: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    for row, why in about["skipped"].items():
        LOGGER.info(f"{scans[int(row)].t1w} is excluded: {why}")
    (a, b), (c, d) = about["box"]
    affine = np.array(about["affine"])
    table = scan_table([scans[row] for row in about["rows"]])
    return TrainingSet(
        volumes=Volumes(path),
        table=table.assign(descriptors=about["descriptors"]),
        box=((a, b), (c, d)),
        shape=tuple(about["shape"]),
        affine=affine,
        digests=tuple(about["digests"]),
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, so that only one process creates the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def new_array(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Create a float16 array on disk, renamed to its final path when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    array = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        part, "w+", np.float16, shape
    )
    yield array
    array.flush()
    part.replace(path)


def _fingerprint(scans: Sequence[TrainScan]) -> str:
    files = [path.resolve() for scan in scans for path in (scan.t1w, scan.mask)]
    stats = [(path, path.stat()) for path in files if path.exists()]
    found = [[str(path), s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for path, s in stats]
    return hashlib.sha256(json.dumps([FORMAT, found]).encode()).hexdigest()[:16]


def _build(scans: Sequence[TrainScan], path: Path) -> None:
    """Write the cache. All scans are read twice, first to compute the box."""
    skipped: dict[int, str] = {}
    grids: dict[int, Grid] = {}
    unions: dict[Grid, np.ndarray] = {}
    for row, scan in enumerate(progress(scans, "reading preprocessed scans")):
        try:
            grid, _, mask = _read(scan)
        except ScanError as error:
            skipped[row] = error.cause
            continue
        grids[row] = grid
        unions[grid] = unions.get(grid, False) | mask
    if not grids:
        raise NoInputError(
            f"None of the preprocessed scans can be used: {next(iter(skipped.values()), '')}",
            "Run the participant level on them again.",
        )
    grid = Counter(grids.values()).most_common(1)[0][0]
    usable = [row for row in grids if grids[row] == grid]
    skipped |= dict.fromkeys(grids.keys() - usable, "Its grid differs from that of most scans.")
    shape, affine, box = grid[0], np.array(grid[1]).reshape(4, 4), _box(unions[grid])
    digests, descriptors = [], []
    with new_array(path, (len(usable), shape[2], *(b - a for a, b in box))) as volumes:
        for place, row in enumerate(progress(usable, "writing the training cache")):
            _, volume, mask = _read(scans[row])
            # Normalization sets removed surface voxels to 0. The networks of the participant level
            # do not see them as brain, so exclude them here, too.
            stack = np.where(crop(mask & (volume > 0), box), crop(volume, box), np.nan)
            volumes[place] = stack = stack.astype(np.float16)
            known = scans[row].descriptors or {}
            known = known if "texture" in known else describe(volume, mask, abs(affine[0, 0]))
            digests.append(hashlib.sha256(stack.tobytes()).hexdigest())
            descriptors.append(vector(known).tolist())
        about = {"box": box, "shape": shape, "affine": affine.tolist(), "skipped": skipped}
        about |= {"rows": usable, "digests": digests, "descriptors": descriptors}
        write_json(path.with_suffix(".json"), about)


def _read(scan: TrainScan) -> tuple[Grid, np.ndarray, np.ndarray]:
    """Read the grid, intensities and brain mask of a scan.

    Raises
    ------
    ScanError
        If a file cannot be read, the grids of scan and mask differ, the mask is empty, or
        intensities are not finite or not normalized.
    """
    try:
        images = [nib.load(path) for path in (scan.t1w, scan.mask)]
        volume = np.asarray(images[0].dataobj, dtype=np.float32)
        mask = np.asarray(images[1].dataobj) > 0
    except Exception as error:  # nibabel raises many types of errors for damaged files
        raise ScanError(f"{scan.t1w.name} or its mask cannot be read ({error}).") from error
    grid, other = (
        (tuple(map(int, image.shape)), tuple((np.round(image.affine, 3) + 0.0).ravel().tolist()))
        for image in images
    )
    if grid != other:
        raise ScanError("The grids of scan and brain mask differ.")
    if not mask.any():
        raise ScanError("Its brain mask is empty.")
    if not np.abs(volume[mask]).max() <= HIGHEST:
        raise ScanError(f"Its intensities are not finite, or not normalized (above {HIGHEST:g}).")
    return grid, volume, mask


def _box(union: np.ndarray) -> Box:
    """Return the smallest box around a mask with sides that are multiples of :data:`SIDE`.

    The box is centred on the mask and may extend outside the grid:
    :func:`bids_harmony.models.networks.crop` pads with zeros.
    """
    ends = []
    for other in (1, 0):
        used = np.flatnonzero(union.any(axis=(other, 2)))
        low, high = int(used[0]), int(used[-1]) + 1
        spare = -(high - low) % SIDE
        ends.append((low - spare // 2, high + spare - spare // 2))
    return ends[0], ends[1]


@dataclass(frozen=True)
class TrainingRun:
    """Data and settings shared by all parts of a training run.

    Attributes
    ----------
    data : TrainingSet
        All scans.
    split : numpy.ndarray
        (scans,) ``train``, ``validation`` or ``test``.
    fit : numpy.ndarray
        (scans,) whether ``--fit-filter`` selects a scan for fitting maps and numeric predictors.
    reference : str
        Reference site.
    options : TrainOptions
        Training options.
    work_dir : pathlib.Path
        Cache folder of completed networks. An interrupted run resumes from it and ends with the
        same weights.
    """

    data: TrainingSet
    split: np.ndarray
    fit: np.ndarray
    reference: str
    options: TrainOptions
    work_dir: Path

    @cached_property
    def fitted(self) -> np.ndarray:
        """Indices of the reference scans for fitting: no test scans, none filtered out."""
        at_home = self.data.sites == self.reference
        return np.flatnonzero(at_home & (self.split != TEST) & self.fit)

    def appearance(self, line: tuple[float, float] | None) -> Appearance:
        """Fit the appearance of the reference; ``line`` is that of brain age on age."""
        data, used = self.data, self.fitted
        return Appearance.fit(data.descriptors[used], data.ages[used], data.persons[used], line)

    @property
    def trained(self) -> np.ndarray:
        """Those of :attr:`fitted` in the training split."""
        return np.asarray(self.fitted[self.split[self.fitted] == TRAIN])


# --- Splits ------------------------------------------------------------------------------------


def split_subjects(
    data: TrainingSet, validation: float, test: float, rng: np.random.Generator
) -> np.ndarray:
    """Split scans into training, validation and test sets by person, within each site.

    Persons of a site are sorted by age and divided into blocks of about ``1 / test`` persons. One
    person of each block is assigned to the test set. The remaining persons are divided in the same
    manner for validation. Sites with fewer than four persons are only used for training. All scans
    of a person seen at several sites are in the same set.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    validation, test : float
        Fractions of the persons of each site.
    rng : numpy.random.Generator
        Random number generator.

    Returns
    -------
    numpy.ndarray
        (scans,) ``train``, ``validation`` or ``test``.
    """
    labels = data.persons
    first = np.unique(labels, return_index=True)[1]
    parts = dict.fromkeys(labels, TRAIN)
    for site in np.unique(data.sites):
        subjects = by_age(data, first[data.sites[first] == site])
        n_all = len(subjects)
        for part, share in ((TEST, test), (VALIDATION, validation)):
            count = round(share * n_all) if n_all >= 4 else 0
            for block in np.array_split(subjects, max(count, 1))[:count]:
                chosen = labels[rng.choice(block)]
                parts[chosen] = part
                subjects = [i for i in subjects if labels[i] != chosen]
    return np.array([parts[label] for label in labels])


def splits_record(data: TrainingSet, split: np.ndarray) -> dict[str, Any]:
    """Return the subjects of each split at each site, for ``splits.json``."""
    labels = data.table["subject"].to_numpy(dtype=str)
    return {
        str(site): {
            part: sorted(set(labels[(data.sites == site) & (split == part)].tolist()))
            for part in (TRAIN, VALIDATION, TEST)
        }
        for site in np.unique(data.sites)
    }


def make_folds(
    data: TrainingSet,
    among: np.ndarray,
    n_folds: int,
    rng: np.random.Generator,
    strata: np.ndarray | None = None,
) -> np.ndarray:
    """Assign scans to cross-validation folds by person, balanced on age.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    among : numpy.ndarray
        Indices of the scans to assign.
    n_folds : int
        Number of folds.
    rng : numpy.random.Generator
        Random number generator.
    strata : numpy.ndarray, optional
        (scans,) strata to balance folds on in addition to age, such as site or class. A person
        belongs to the stratum of the first scan.

    Returns
    -------
    numpy.ndarray
        (scans,) fold of each scan; -1 for scans not in ``among``.
    """
    folds = np.full(len(data), -1)
    persons = data.persons[among]
    first = among[np.sort(np.unique(persons, return_index=True)[1])]
    keys = np.zeros(len(first)) if strata is None else strata[first]
    for key in np.unique(keys):
        ordered = by_age(data, first[keys == key])
        for start in range(0, len(ordered), n_folds):
            order = rng.permutation(n_folds)
            for i, fold in zip(ordered[start : start + n_folds], order, strict=False):
                folds[among[persons == data.persons[i]]] = fold
    return folds


def by_age(data: TrainingSet, scans: np.ndarray) -> list[int]:
    """Sort scans by age, then subject; unknown ages are last."""
    ages, subjects = data.ages, data.subjects
    return sorted(scans.tolist(), key=lambda i: (np.isnan(ages[i]), ages[i], subjects[i]))
