"""The scans of a training run as networks draw them: slices and stacks, read when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_harmony.anat.template import deep_grey, load_template
from bids_harmony.models.slices import Box, slice_heights, uncrop
from bids_harmony.sites.descriptors import describe, vector
from bids_harmony.training.config import TrainScan


@dataclass(frozen=True)
class TrainingSet:
    """All scans of a training run, cut to one box.

    Attributes
    ----------
    volumes : numpy.ndarray or bids_harmony.training.cache.Volumes
        (scans, slices, rows, columns) float16 intensities (CSF 0, white matter 1), NaN outside
        the brain: one array to read for image and mask. Read it through :meth:`slices`,
        :meth:`stack` and :meth:`volume`.
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

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        masks: np.ndarray,
        table: pd.DataFrame,
        *,
        affine: np.ndarray | None = None,
        box: Box | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> TrainingSet:
        """Make a set of arrays in memory, for tests and small data.

        Parameters
        ----------
        images, masks : numpy.ndarray
            (scans, slices, rows, columns) intensities, and whether each voxel is brain.
        table : pandas.DataFrame
            One row per scan; columns it lacks are unknown for all scans.
        affine : numpy.ndarray, optional
            Of the template grid; 1 mm from 0 when None.
        box, shape : tuple, optional
            As of the class; the arrays show the whole grid when None.
        """
        n_slices, rows, columns = images.shape[1:]
        affine = np.eye(4) if affine is None else np.asarray(affine, dtype=float)
        volumes = np.where(masks, images, np.nan).astype(np.float16)
        zoom = float(abs(affine[0, 0]))
        table = with_columns(table)
        box, shape = box or ((0, rows), (0, columns)), shape or (rows, columns, n_slices)
        whole = (
            (uncrop(np.where(m, v, 0), box, shape), uncrop(m, box, shape))
            for v, m in zip(images, np.asarray(masks, bool), strict=True)
        )
        table["descriptors"] = [vector(describe(v, m, zoom)).tolist() for v, m in whole]
        return cls(
            volumes=volumes,
            table=table,
            heights=slice_heights(n_slices, affine),
            box=box,
            shape=shape,
            affine=affine,
            digests=tuple(hashlib.sha256(volume.tobytes()).hexdigest() for volume in volumes),
        )

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
        named = self.table.get("person", labels)
        return named.fillna(labels).to_numpy(dtype=str)

    @cached_property
    def ages(self) -> np.ndarray:
        """Age of each scan in years, NaN where unknown."""
        return self.table["age"].to_numpy(dtype=float)

    @cached_property
    def sexes(self) -> np.ndarray:
        """``M``, ``F`` or an empty string for each scan."""
        return self.table["sex"].fillna("").to_numpy(dtype=str)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        (a, b), (c, d) = self.box
        return b - a, d - c

    @cached_property
    def descriptors(self) -> np.ndarray:
        """Descriptors of each scan, (scans, descriptors)."""
        return np.array(self.table["descriptors"].tolist(), dtype=float)

    def slices(
        self, scans: np.ndarray | Sequence[int], numbers: np.ndarray | Sequence[int]
    ) -> np.ndarray:
        """Read one slice of each of some scans: float32 (n, rows, columns), background 0."""
        pairs = zip(scans, numbers, strict=True)
        out = np.array([self.volumes[int(scan)][int(number)] for scan, number in pairs])
        return np.nan_to_num(out.astype(np.float32))

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


def scan_table(scans: Sequence[TrainScan]) -> pd.DataFrame:
    """Table of what is known of scans, one row each, for :class:`TrainingSet`."""
    known = ("subject", "site", "age", "sex", "diagnosis", "qc_status", "metrics")
    rows = [{**scan.columns, **{name: getattr(scan, name) for name in known}} for scan in scans]
    table = pd.DataFrame(rows)
    if any(scan.raw for scan in scans):
        sources = [(scan.raw, scan.transform, scan.mask) for scan in scans]
        table["_source"] = pd.Series(sources, dtype=object)
    persons = {scan.subject: person for scan in reversed(scans) if (person := scan.person)}
    if persons:
        table["person"] = [persons.get(scan.subject) for scan in scans]
    for name in set(table) - {*known, "_source", "person"}:
        table[name] = _as_numbers(table[name])
    return with_columns(table)


def _as_numbers(column: pd.Series) -> pd.Series:
    """Turn a column of text into numbers where all its known cells are numbers."""
    try:
        return pd.to_numeric(column)
    except (TypeError, ValueError):
        return column


def with_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Give a table of scans the columns that every training set has, in one type each."""
    table = table.reset_index(drop=True)
    for name in ("sex", "diagnosis", "qc_status"):
        table[name] = table.get(name)
    table["age"] = pd.to_numeric(table["age"]) if "age" in table else np.nan
    if "metrics" not in table:
        table["metrics"] = pd.Series([{} for _ in range(len(table))], dtype=object)
    if "subject" not in table:
        table["subject"] = [f"{i:04d}" for i in range(len(table))]
    return table
