"""Draw each site before and after harmonization, as in the paper's Figure 1.

The figures show intensity distributions of CSF, grey and white matter, and maps of mean and
standard deviation over scans, beside those of the reference. At most :data:`MAX_SCANS` scans of
each site are read, so the time does not grow with the dataset.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from bids_harmony.config import Contract
from bids_harmony.qc.reference import brain_histogram, histogram_distance, mean_histogram
from bids_harmony.reports import figures

if TYPE_CHECKING:
    import pandas as pd

    from bids_harmony.qc.dataset import Group

TISSUES = ("whole brain", "CSF", "grey matter", "white matter")
#: Intensity thresholds halfway between CSF and grey matter, and between grey and white matter.
LIMITS = (Contract.grey / 2, (1 + Contract.grey) / 2)
MAX_SITES, MAX_SCANS = 10, 12
#: Fewest scans for a map of the standard deviation.
LEAST_SPREAD = 3
MARGIN_MM = 6
BRIGHTEST = 1.25
#: Names of a site's volumes in the group, by the names that figures show.
VOLUMES = {"before": "preproc", "after": "harmonized"}
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError)

#: Intensity histogram, from :func:`bids_harmony.qc.reference.brain_histogram`.
Histogram = dict[str, list[float]]


class _Site(NamedTuple):
    """Scans of a site, small enough to hold for all sites at once.

    ``maps`` (axial slices side by side) and ``histograms`` (one per tissue) hold one entry per
    scan under ``before`` and ``after``.
    """

    maps: dict[str, list[np.ndarray]]
    histograms: dict[str, list[list[Histogram]]]
    problems: list[str]


class _Grid(NamedTuple):
    """Grid of the scans, and the part of it that is shown."""

    shape: tuple[int, ...]
    affine: np.ndarray
    box: tuple[slice, slice]
    cuts: Sequence[int]

    def axial(self, volume: np.ndarray) -> np.ndarray:
        """Return axial slices side by side, anterior at the top."""
        return np.hstack([np.rot90(volume[*self.box, cut]) for cut in self.cuts])


def not_rejected(group: Group) -> pd.DataFrame:
    """Return the scans that the raters did not reject."""
    return group.scans[group.scans["rating"] != "reject"]


def dataset_pictures(group: Group, out: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw the images of each site before and after harmonization.

    Parameters
    ----------
    group : Group
        The dataset; ``volumes`` lists the images. Rejected scans are excluded.
    out : pathlib.Path
        Output folder.

    Returns
    -------
    pictures : list of dict
        One per site, at most :data:`MAX_SITES`: the reference first, then by number of scans.

        * ``site``; ``n``, scans that were read; ``n_all``, scans available;
        * ``histograms``, ``maps``: PNG figures as data URIs;
        * ``distances``: for each ``tissue``, the Wasserstein-1 distances ``before`` and ``after``
          of its intensities from the reference's.
    notes : list of str
        Sentences about what is not shown, and why.
    """
    every = _having(group, not_rejected(group), "preproc")
    # Averaging needs a common grid: use the one that most scans have.
    names = every.reindex(columns=["template", "resolution"]).map(str).agg(" ".join, axis=1)
    scans = every[names == names.mode().iloc[0]] if len(every) else every
    grid = _grid(group, scans, out)
    if grid is None:
        return [], ["No images on the template grid were found."]
    notes = []
    if others := len(every) - len(scans):
        grids = f"{others} of {len(every)} scans are on another template grid than most"
        notes.append(f"{grids} and are not shown.")
    name = (group.bundle or {}).get("reference_site")
    counts = scans["site"].value_counts()
    if len(counts) > MAX_SITES:
        notes.append(f"Of {len(counts)} sites, the {MAX_SITES} with most scans are shown.")
    shown = sorted(counts.index, key=lambda site: (site != name, -counts[site], site))[:MAX_SITES]
    # Threads suffice: most of the time is decompression, which releases the interpreter lock.
    with ThreadPoolExecutor(4) as pool:
        read = pool.map(lambda s: _read(group, scans[scans["site"] == s], out, grid), shown)
        sites = dict(zip(shown, read, strict=True))
    notes += [problem for site in sites.values() for problem in site.problems]
    sites = {label: site for label, site in sites.items() if site.maps}
    reference = sites.get(name) if name else None
    if group.bundle is None:
        notes.append("The scans were not harmonized (no model bundle).")
    elif reference is None:
        notes.append(f"The dataset has no images of the reference site {name} to compare with.")
    pictures = [
        {"site": label, "n": len(site.maps["before"]), "n_all": int(counts[label])}
        | _pictures(site, None if site is reference else reference)
        for label, site in sites.items()
    ]
    return pictures, notes


def _having(group: Group, scans: pd.DataFrame, volume: str) -> pd.DataFrame:
    """Return the scans that have the named volume."""
    return scans.loc[[volume in group.volumes.get(scan, {}) for scan in scans["scan"]]]


def _grid(group: Group, scans: pd.DataFrame, out: Path) -> _Grid | None:
    """Choose crop and slices on the first readable scan; None if there is none."""
    for scan in scans["scan"]:
        try:
            image = nib.load(out / group.volumes[scan]["preproc"])
            inside = np.asarray(image.dataobj) > 0
        except UNREADABLE:
            continue
        if inside.ndim == 3 and inside.any():
            where = np.argwhere(inside)
            margin = np.ceil(MARGIN_MM / np.array(image.header.get_zooms()[:3])).astype(int)
            low, high = where.min(axis=0), where.max(axis=0)
            x, y, _ = map(slice, np.maximum(low - margin, 0), high + margin + 1)
            cuts = low[2] + np.linspace(0.25, 0.75, 3) * (high[2] - low[2])
            return _Grid(image.shape, image.affine, (x, y), cuts.round().astype(int).tolist())
    return None


def _read(group: Group, scans: pd.DataFrame, out: Path, grid: _Grid) -> _Site:
    """Read evenly chosen scans of a site, only harmonized ones if there are any."""
    mapped = _having(group, scans, "harmonized")
    scans = mapped if len(mapped) else scans
    scans = scans.iloc[np.unique(np.linspace(0, len(scans) - 1, MAX_SCANS).round().astype(int))]
    site = _Site(defaultdict(list), defaultdict(list), [])
    for scan in scans["scan"]:
        paths = {kind: group.volumes[scan].get(name) for kind, name in VOLUMES.items()}
        try:
            volumes = {kind: _volume(out / path, grid) for kind, path in paths.items() if path}
        except UNREADABLE as error:
            site.problems.append(f"{scan} is not shown: {error}.")
            continue
        inside, tissue = volumes["before"] > 0, np.digitize(volumes["before"], LIMITS)
        masks = [inside, *(inside & (tissue == k) for k in range(len(LIMITS) + 1))]
        for kind, volume in volumes.items():
            site.maps[kind].append(grid.axial(volume))
            site.histograms[kind].append([brain_histogram(volume, mask) for mask in masks])
    return site


def _volume(path: Path, grid: _Grid) -> np.ndarray:
    image = nib.load(path)
    if image.shape != grid.shape or not np.allclose(image.affine, grid.affine, atol=1e-3):
        raise ValueError(f"{path.name} has another grid than the first scan's")
    return np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))


def _pictures(site: _Site, reference: _Site | None) -> dict[str, Any]:
    """Draw one site; compare with the reference before harmonization if one is given."""
    maps, histograms = dict(site.maps), dict(site.histograms)
    if reference is not None:
        maps["reference"] = reference.maps["before"]
        histograms["reference"] = reference.histograms["before"]
    means = {
        kind: [mean_histogram(tissue) for tissue in zip(*scans, strict=True)]
        for kind, scans in histograms.items()
    }
    distances = [
        {"tissue": tissue} | {
            kind: histogram_distance(found[k], means["reference"][k])
            for kind, found in means.items()
            if any(found[k]["density"]) and any(means["reference"][k]["density"])
        }
        for k, tissue in enumerate(TISSUES)
        if reference is not None
    ]  # fmt: skip
    return {
        "histograms": figures.data_uri(_draw_histograms(means)),
        "maps": figures.data_uri(_draw_maps(maps)),
        "distances": distances,
    }


def _draw_histograms(histograms: Mapping[str, Sequence[Histogram]]) -> bytes:
    figure = figures.new_figure(0.26)
    grid = figure.subplots(1, len(TISSUES))
    for k, (axes, tissue) in enumerate(zip(grid, TISSUES, strict=True)):
        figures.densities(axes, {kind: found[k] for kind, found in histograms.items()})
        axes.set_title(tissue, fontsize=9)
        seen = np.flatnonzero(np.sum([f[k]["density"] for f in histograms.values()], axis=0))
        if seen.size:
            edges = np.array(histograms["before"][k]["edges"])
            axes.set_xlim(edges[seen[0]] - 0.04, edges[seen[-1] + 1] + 0.04)
    grid[1].set_xlabel("scaled intensity (CSF 0, white matter 1)", fontsize=8)
    grid[0].set_ylabel("density", fontsize=8)
    grid[0].legend(frameon=False, fontsize=8)
    return figures.png_bytes(figure)


def _draw_maps(maps: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """Draw mean, difference from the reference and standard deviation, one row per kind."""
    means = {kind: np.mean(scans, axis=0) for kind, scans in maps.items()}
    columns = [("mean", means, "gray", (0.0, BRIGHTEST))]
    if "reference" in means:
        gaps = {kind: means[kind] - means["reference"] for kind in VOLUMES if kind in means}
        most = _most(gaps)
        columns.append(("mean minus reference", gaps, "PuOr_r", (-most, most)))
    enough = {kind: scans for kind, scans in maps.items() if len(scans) >= LEAST_SPREAD}
    if spreads := {kind: np.std(scans, axis=0, ddof=1) for kind, scans in enough.items()}:
        columns.append(("standard deviation", spreads, "cividis", (0.0, _most(spreads))))
    height, width = means["before"].shape
    figure = figures.new_figure(height * len(maps) / (width * len(columns) * 1.08) + 0.07)
    grid = figure.subplots(len(maps), len(columns), squeeze=False)
    for axes, kind in zip(grid[:, 0], means, strict=True):
        axes.set_ylabel(kind.capitalize(), fontsize=9)
    for column, (title, images, colours, (low, high)) in zip(grid.T, columns, strict=True):
        for axes, kind in zip(column, means, strict=True):
            axes.set(xticks=[], yticks=[], visible=kind in images)
            axes.spines[:].set_visible(False)
            if kind in images:
                shown = axes.imshow(
                    images[kind], cmap=colours, vmin=low, vmax=high, interpolation="bilinear"
                )
        column[0].set_title(title, fontsize=9)
        bar = figure.colorbar(shown, ax=column.tolist(), location="bottom", fraction=0.03,
                              pad=0.02, aspect=40)  # fmt: skip
        bar.ax.tick_params(labelsize=7)
    return figures.png_bytes(figure, ["gray", "PuOr_r", "cividis"])


def _most(values: Mapping[str, np.ndarray]) -> float:
    """Return the upper end of the colour scale: the 99th percentile, at least 0.02."""
    return max(0.02, *(float(np.percentile(np.abs(v), 99)) for v in values.values()))
