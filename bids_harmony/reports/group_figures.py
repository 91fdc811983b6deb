"""Draw the images of each site before and after harmonization, as in the paper's Figure 1.

The figures show slices before and after harmonization and of the reference, intensity
distributions of CSF, grey and white matter, and maps of mean and standard deviation over scans. At
most :data:`MAX_SCANS` scans of each site are read, so the time does not grow with the dataset.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from scipy.stats import wasserstein_distance

from bids_harmony.config import Contract
from bids_harmony.qc.reference import N_BINS, TOP
from bids_harmony.reports import drawing

if TYPE_CHECKING:
    import pandas as pd

    from bids_harmony.qc.dataset import Group

TISSUES = ("whole brain", "CSF", "grey matter", "white matter")
#: Intensity thresholds halfway between CSF and grey matter, and between grey and white matter.
LIMITS = (Contract.grey / 2, (1 + Contract.grey) / 2)
EDGES = np.linspace(0, TOP, N_BINS + 1)
MAX_SITES, MAX_SCANS, SHOWN = 10, 12, 4
#: Fewest scans for a map of the standard deviation.
LEAST_SPREAD = 3
#: Indices, among seven axial slices over the brain, of those shown of single scans and of maps.
SLICES, MAPS = (2, 4), (1, 3, 5)
MARGIN_MM = 6
BRIGHTEST = 1.25
ROWS = {"before": "Before", "after": "After", "reference": "Reference"}
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError)


@dataclass
class _Site:
    """Slices and histograms of a site's scans, small enough to hold for all sites at once.

    ``slices`` and ``maps`` (axial slices side by side) and ``densities`` (tissues, bins) hold one
    array per scan under ``before`` and ``after``.
    """

    ages: list[float] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    slices: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    maps: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    densities: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Grid:
    """Grid of the scans, and the part of it that is shown."""

    shape: tuple[int, ...]
    affine: np.ndarray
    box: tuple[slice, slice]
    cuts: np.ndarray

    def axial(self, volume: np.ndarray, which: Sequence[int]) -> np.ndarray:
        """Return the selected axial slices side by side, anterior at the top."""
        return np.hstack([np.rot90(volume[*self.box, self.cuts[i]]) for i in which])


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
        * ``slices``, ``histograms``, ``maps``: PNG figures as data URIs;
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
        return [], ["No images on the template grid were found, so there is nothing to show."]
    notes = []
    if others := len(every) - len(scans):
        notes.append(f"{others} of {len(every)} scans are on another template grid than most, and "
                     "are not among the pictures.")  # fmt: skip
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
    sites = {label: site for label, site in sites.items() if site.captions}
    reference = sites.get(name) if name else None
    if group.bundle is None:
        notes.append("The scans were not harmonized (no model bundle), so only what they were "
                     "before is shown.")  # fmt: skip
    elif reference is None:
        notes.append(f"The dataset holds no images of the reference site {name}, so none are "
                     "shown beside the others.")  # fmt: skip
    pictures = [
        {"site": label, "n": len(site.captions), "n_all": int(counts[label])}
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
            cuts = low[2] + np.linspace(0.12, 0.88, 7) * (high[2] - low[2])
            return _Grid(image.shape, image.affine, (x, y), cuts.round().astype(int))
    return None


def _read(group: Group, scans: pd.DataFrame, out: Path, grid: _Grid) -> _Site:
    """Read evenly chosen scans of a site, only harmonized ones if there are any."""
    mapped = _having(group, scans, "harmonized")
    scans = mapped if len(mapped) else scans
    scans = scans.iloc[np.unique(np.linspace(0, len(scans) - 1, MAX_SCANS).round().astype(int))]
    site = _Site()
    for scan, age in zip(scans["scan"], scans["age"], strict=True):
        paths = group.volumes[scan]
        try:
            volumes = {
                kind: _volume(out / paths[name], grid)
                for kind, name in (("before", "preproc"), ("after", "harmonized"))
                if name in paths
            }
        except UNREADABLE as error:
            site.problems.append(f"{scan} is not among the pictures: {error}.")
            continue
        inside = volumes["before"] > 0
        tissue = np.digitize(volumes["before"][inside], LIMITS)
        for kind, volume in volumes.items():
            site.slices[kind].append(grid.axial(volume, SLICES))
            site.maps[kind].append(grid.axial(volume, MAPS))
            site.densities[kind].append(_densities(volume[inside], tissue))
        site.captions.append(scan + (f", age {age:.3g}" if age == age else ""))
        site.ages.append(float(age))
    return site


def _volume(path: Path, grid: _Grid) -> np.ndarray:
    image = nib.load(path)
    if image.shape != grid.shape or not np.allclose(image.affine, grid.affine, atol=1e-3):
        raise ValueError(f"{path.name} has another grid than the first scan's")
    return np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))


def _densities(values: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Return (4, bins) densities of brain, CSF, grey and white matter, clipped at :data:`TOP`."""
    clipped = np.clip(values, 0, TOP)
    parts = [clipped, *(clipped[tissue == k] for k in range(3))]
    counts = np.array([np.histogram(part, bins=EDGES)[0] for part in parts])
    density: np.ndarray = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return density * (N_BINS / TOP)


def _pictures(site: _Site, reference: _Site | None) -> dict[str, Any]:
    """Draw one site; compare with the reference before harmonization if one is given."""
    maps, densities = dict(site.maps), dict(site.densities)
    if reference is not None:
        maps["reference"] = reference.maps["before"]
        densities["reference"] = reference.densities["before"]
    means = {kind: np.mean(values, axis=0) for kind, values in maps.items()}
    spreads = {
        kind: np.std(values, axis=0, ddof=1)
        for kind, values in maps.items()
        if len(values) >= LEAST_SPREAD
    }
    histograms = {kind: np.mean(values, axis=0) for kind, values in densities.items()}
    distances = [
        {"tissue": tissue} | {
            kind: wasserstein_distance(EDGES[1:], EDGES[1:], values[k], histograms["reference"][k])
            for kind, values in histograms.items()
            if values[k].any() and histograms["reference"][k].any()
        }
        for k, tissue in enumerate(TISSUES)
        if reference is not None
    ]  # fmt: skip
    return {
        "slices": drawing.data_uri(_draw_slices(site, reference)),
        "histograms": drawing.data_uri(_draw_histograms(histograms)),
        "maps": drawing.data_uri(_draw_maps(means, spreads)),
        "distances": distances,
    }


def _draw_slices(site: _Site, reference: _Site | None) -> bytes:
    """Draw some scans before and after, with the reference scan nearest in age below each."""
    chosen = np.unique(np.linspace(0, len(site.captions) - 1, SHOWN).round().astype(int))
    rows = {kind: [panels[i] for i in chosen] for kind, panels in site.slices.items()}
    captions = {"before": [site.captions[i] for i in chosen]}
    if reference is not None:
        # The first reference scan if ages are unknown.
        apart = np.abs(np.subtract.outer([site.ages[i] for i in chosen], reference.ages))
        nearest = np.nan_to_num(apart, nan=np.inf).argmin(axis=1)
        rows["reference"] = [reference.slices["before"][i] for i in nearest]
        captions["reference"] = [reference.captions[i] for i in nearest]
    height, width = rows["before"][0].shape
    blank = np.full((height, width * (SHOWN - len(chosen))), BRIGHTEST, np.float32)
    figure = drawing.new_figure(height / (width * SHOWN) * len(rows) + 0.03)
    grid = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axes, (kind, panels) in zip(grid, rows.items(), strict=True):
        _show(axes, np.hstack([*panels, blank]), "gray", (0, BRIGHTEST))
        axes.set_ylabel(ROWS[kind], fontsize=9)
        for i, text in enumerate(captions.get(kind, ())):
            axes.text(i * width + 2, 2, text, color="white", fontsize=6.5, va="top",
                      parse_math=False)  # fmt: skip
    return drawing.png_bytes(figure, ["gray"])


def _draw_histograms(histograms: Mapping[str, np.ndarray]) -> bytes:
    figure = drawing.new_figure(0.26)
    grid = figure.subplots(1, len(TISSUES))
    for k, (axes, tissue) in enumerate(zip(grid, TISSUES, strict=True)):
        for kind, line in drawing.DENSITIES.items():
            if kind in histograms:
                axes.stairs(histograms[kind][k], EDGES, label=kind, **line)
        here = np.flatnonzero(sum(values[k] for values in histograms.values()) > 0)
        if here.size:
            axes.set_xlim(EDGES[here.min()] - 0.04, EDGES[here.max() + 1] + 0.04)
        axes.set_title(tissue, fontsize=9)
        axes.set_yticks([])
        drawing.plain_axes(axes)
    grid[1].set_xlabel("scaled intensity (CSF 0, white matter 1)", fontsize=8)
    grid[0].set_ylabel("density", fontsize=8)
    grid[0].legend(frameon=False, fontsize=8)
    return drawing.png_bytes(figure)


def _draw_maps(means: Mapping[str, np.ndarray], spreads: Mapping[str, np.ndarray]) -> bytes:
    """Draw mean, difference from the reference and standard deviation, one row per kind."""
    rows = [kind for kind in ROWS if kind in means]
    columns = [("mean", means, "gray", (0.0, BRIGHTEST))]
    if "reference" in means and len(rows) > 1:
        gaps = {kind: means[kind] - means["reference"] for kind in rows if kind != "reference"}
        most = _most(gaps)
        columns.append(("mean minus reference", gaps, "PuOr_r", (-most, most)))
    if spreads:
        columns.append(("standard deviation", spreads, "cividis", (0.0, _most(spreads))))
    height, width = means["before"].shape
    figure = drawing.new_figure(height * len(rows) / (width * len(columns) * 1.08) + 0.07)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for j, (title, values, colours, limits) in enumerate(columns):
        for axes, kind in zip(grid[:, j], rows, strict=True):
            if kind in values:
                shown = _show(axes, values[kind], colours, limits)
            else:
                axes.set_axis_off()
        grid[0, j].set_title(title, fontsize=9)
        bar = figure.colorbar(shown, ax=grid[:, j].tolist(), location="bottom",
                              fraction=0.03, pad=0.02, aspect=40)  # fmt: skip
        bar.ax.tick_params(labelsize=7)
    for axes, kind in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(ROWS[kind], fontsize=9)
    return drawing.png_bytes(figure, ["gray", "PuOr_r", "cividis"])


def _most(values: Mapping[str, np.ndarray]) -> float:
    """Return the upper end of the colour scale: the 99th percentile, at least 0.02."""
    return max(0.02, *(float(np.percentile(np.abs(v), 99)) for v in values.values()))


def _show(axes: Any, canvas: np.ndarray, colours: str, limits: tuple[float, float]) -> Any:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    low, high = limits
    return axes.imshow(canvas, cmap=colours, vmin=low, vmax=high, interpolation="bilinear")
