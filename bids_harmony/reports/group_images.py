"""The paper's Figure 1 for a dataset: what harmonization did to each site's images.

Slices before, after and of the reference; intensities of fluid, grey and white matter; maps of
the mean and the standard deviation over scans. A few scans of each site are read, so that the
largest dataset takes no longer than a middling one.
"""

from __future__ import annotations

import base64
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from bids_harmony.contract import Contract
from bids_harmony.qc.reference import N_BINS, TOP, histogram_distance
from bids_harmony.reports.drawing import (
    HARMONIZED,
    RAW,
    REFERENCE,
    new_figure,
    palette_of,
    plain_axes,
    save_png,
)
from bids_harmony.reports.group_tables import kept
from bids_harmony.reports.mosaic import Layout, layout

if TYPE_CHECKING:
    import pandas as pd

    from bids_harmony.qc.dataset import Group

TISSUES = ("whole brain", "CSF", "grey matter", "white matter")
#: Intensities halfway between CSF and grey, and between grey and white matter.
LIMITS = (Contract.grey / 2, (1 + Contract.grey) / 2)
MAX_SITES, MAX_SCANS, SHOWN = 10, 20, 4
#: Voxels read at most: on a grid of 2 mm, 13 scans of each of 10 sites, before and after.
MAX_VOXELS = 3e8
#: With fewer scans, their standard deviation is not shown.
LEAST_SPREAD = 3
#: Of seven axial slices spread over the brain: those of the scans shown, and those of the maps.
SLICES, MAPS = (2, 4), (1, 3, 5)
BRIGHTEST = 1.25
ROWS = {"before": "Before", "after": "After", "reference": "Reference"}
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError)


@dataclass(frozen=True)
class SitePictures:
    """Pictures of one site.

    Attributes
    ----------
    site : str
        Its name.
    n, n_all : int
        Scans the pictures are made from, and those that could have been.
    pictures : dict of str to str
        ``slices``, ``histograms`` and, where there are enough scans, ``maps``: data URIs.
    distances : list of dict
        For each tissue ``tissue``, ``before`` and ``after``: Wasserstein-1 distance of its
        intensities from the reference's (None where not known).
    """

    site: str
    n: int
    n_all: int
    pictures: dict[str, str]
    distances: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Looks:
    """What is kept of a site's scans: parts small enough to keep those of all sites."""

    ages: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    panels: dict[str, list[np.ndarray]] = field(default_factory=dict)
    densities: dict[str, np.ndarray] = field(default_factory=dict)
    means: dict[str, np.ndarray] = field(default_factory=dict)
    spreads: dict[str, np.ndarray] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_reference(self) -> dict[str, dict[str, Any]]:
        """Its scans as they came, for the others to be held against."""
        parts = {"densities": self.densities, "means": self.means, "spreads": self.spreads}
        return {
            name: {"reference": values["before"]}
            for name, values in parts.items()
            if "before" in values
        }


def dataset_pictures(group: Group, out: Path) -> tuple[list[SitePictures], list[str]]:
    """Draw the dataset's images before and after harmonization, site by site.

    Parameters
    ----------
    group : Group
        ``volumes`` says which images there are; rejected scans are left out.
    out : pathlib.Path
        The output folder.

    Returns
    -------
    pictures : list of SitePictures
        By site, the reference first; at most :data:`MAX_SITES`, those with most scans.
    notes : list of str
        What is not shown and why, one sentence each.
    """
    scans = kept(group)
    every = scans[_having(group, scans, "preproc")]
    scans = _on_one_grid(every)
    plan = _plan(group, scans, out)
    if plan is None:
        return [], ["No images on the template grid were found, so there is nothing to show."]
    name = (group.bundle or {}).get("reference_site")
    counts = scans["site"].value_counts()
    sites = sorted(counts.index, key=lambda site: (site != name, -counts[site], site))
    notes = []
    if others := len(every) - len(scans):
        notes.append(f"{others} of {len(every)} scans are on another template grid than most, and "
                     "are not among the pictures.")  # fmt: skip
    if len(sites) > MAX_SITES:
        notes.append(f"Of {len(sites)} sites, the {MAX_SITES} with most scans are shown.")
    sites = sites[:1] * (sites[0] == name) + sorted(sites[sites[0] == name : MAX_SITES])
    most = MAX_VOXELS / (2 * len(sites) * np.prod(plan.shape, dtype=float))
    n_each = int(np.clip(most, LEAST_SPREAD, MAX_SCANS))

    def look(site: str) -> _Looks:
        return _look(group, _some(group, scans[scans["site"] == site], n_each), out, plan)

    # Threads: unpacking takes most of the time and lets others work meanwhile.
    with ThreadPoolExecutor(4) as pool:
        looks = dict(zip(sites, pool.map(look, sites), strict=True))
    notes += [problem for row in looks.values() for problem in row.problems]
    reference = looks.get(name) if name else None
    if group.bundle is None:
        notes.append("The scans were not harmonized (no model bundle), so only what they were "
                     "before is shown.")  # fmt: skip
    elif reference is None or not reference.names:
        notes.append(f"The dataset holds no images of the reference site {name}, so none are "
                     "shown beside the others.")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bids_harmony_group") as scratch:
        shown = [
            _draw(site, row, None if row is reference else reference, int(counts[site]), scratch)
            for site, row in looks.items()
            if row.names
        ]
    return shown, notes


@dataclass(frozen=True)
class _Plan:
    shape: tuple[int, ...]
    affine: np.ndarray
    slices: Layout
    maps: Layout


def _plan(group: Group, scans: pd.DataFrame, out: Path) -> _Plan | None:
    """Choose the slices on the first scan that can be read; all have its grid."""
    for scan in scans["scan"]:
        try:
            image = nib.load(out / group.volumes[scan]["preproc"])
            inside = np.asarray(image.dataobj) > 0
        except UNREADABLE:
            continue
        if inside.ndim == 3:
            base = layout(inside, image.header.get_zooms()[:3], names=("axial",), n_cuts=7,
                          margin_mm=6)  # fmt: skip
            ((axis, cuts),) = base.cuts
            slices, maps = (
                replace(base, cuts=((axis, tuple(cuts[i] for i in chosen)),))
                for chosen in (SLICES, MAPS)
            )
            return _Plan(inside.shape, image.affine, slices, maps)
    return None


def _on_one_grid(scans: pd.DataFrame) -> pd.DataFrame:
    """Choose the scans on the grid that most were resampled to."""
    if scans.empty:
        return scans
    grid = scans.reindex(columns=["template", "resolution"]).map(str).agg(" ".join, axis=1)
    most: pd.DataFrame = scans[grid == grid.mode().iloc[0]]
    return most


def _having(group: Group, scans: pd.DataFrame, volume: str) -> np.ndarray:
    return np.array([volume in group.volumes.get(scan, {}) for scan in scans["scan"]], bool)


def _some(group: Group, scans: pd.DataFrame, n: int) -> pd.DataFrame:
    """Choose scans evenly, of those that were harmonized if any were."""
    mapped = scans[_having(group, scans, "harmonized")]
    scans = mapped if len(mapped) else scans
    return scans.iloc[np.unique(np.linspace(0, len(scans) - 1, n).round().astype(int))]


def _look(group: Group, scans: pd.DataFrame, out: Path, plan: _Plan) -> _Looks:
    looks = _Looks()
    totals: dict[str, list[np.ndarray]] = {}
    for scan, age in zip(scans["scan"], scans["age"], strict=True):
        paths = group.volumes[scan]
        try:
            volumes = {
                kind: _read(out / paths[name], plan)
                for kind, name in (("before", "preproc"), ("after", "harmonized"))
                if name in paths
            }
        except UNREADABLE as error:
            looks.problems.append(f"{scan} is not among the pictures: {error}.")
            continue
        inside = volumes["before"] > 0
        tissue = np.digitize(volumes["before"][inside], LIMITS)
        for kind, volume in volumes.items():
            density = _densities(volume[inside], tissue)
            part = totals.setdefault(kind, [0.0 * volume, 0.0 * volume, 0.0 * density])
            for total, new in zip(part, (volume, volume**2, density), strict=True):
                total += new
            looks.panels.setdefault(kind, []).append(plan.slices.canvas(volume)[0])
        looks.names.append(scan)
        looks.ages.append(float(age))
    n = len(looks.names)
    for kind, (total, squares, density) in totals.items():
        looks.densities[kind] = density / n
        looks.means[kind] = plan.maps.canvas(total / n)[0]
        if n >= LEAST_SPREAD:
            variance = np.maximum(squares / n - (total / n) ** 2, 0) * n / (n - 1)
            looks.spreads[kind] = plan.maps.canvas(np.sqrt(variance))[0]
    return looks


def _densities(values: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Histograms of the brain and its tissues: (4, bins); brighter voxels count in the last."""
    bins = np.clip(values * (N_BINS / TOP), 0, N_BINS - 1).astype(np.int64)
    counts = np.bincount(bins + N_BINS * tissue, minlength=3 * N_BINS).reshape(3, N_BINS)
    counts = np.vstack([counts.sum(axis=0), counts])
    density: np.ndarray = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return density * (N_BINS / TOP)


def _read(path: Path, plan: _Plan) -> np.ndarray:
    image = nib.load(path)
    if image.shape != plan.shape or not np.allclose(image.affine, plan.affine, atol=1e-3):
        raise ValueError(f"{path.name} has another grid than the first scan's")
    return np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))


def _draw(site: str, looks: _Looks, reference: _Looks | None, n_all: int, scratch: str
          ) -> SitePictures:  # fmt: skip
    beside = reference.as_reference() if reference and reference.names else {}
    densities = looks.densities | beside.get("densities", {})
    drawn = {
        "slices": _slices(looks, reference if beside else None),
        "histograms": _histograms(densities),
        "maps": _maps(looks.means | beside.get("means", {}),
                      looks.spreads | beside.get("spreads", {})),
    }  # fmt: skip
    pictures = {}
    for name, (figure, colours) in drawn.items():
        path = save_png(figure, Path(scratch) / f"{name}.png", colours)
        pictures[name] = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return SitePictures(site, len(looks.names), n_all, pictures, _distances(densities))


def _distances(densities: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    if "reference" not in densities:
        return []
    edges = np.linspace(0, TOP, N_BINS + 1).tolist()

    def distance(kind: str, k: int) -> float | None:
        if kind not in densities:
            return None
        a, b = ({"edges": edges, "density": densities[d][k].tolist()} for d in (kind, "reference"))
        return histogram_distance(a, b)

    return [
        {"tissue": tissue, "before": distance("before", k), "after": distance("after", k)}
        for k, tissue in enumerate(TISSUES)
    ]


def _slices(looks: _Looks, reference: _Looks | None) -> tuple[Any, Any]:
    """Draw some scans before and after, and below each the reference's nearest in age."""
    n = len(looks.names)
    chosen = np.unique(np.linspace(0, n - 1, SHOWN).round().astype(int))
    rows = {kind: [panels[i] for i in chosen] for kind, panels in looks.panels.items()}
    captions = [_caption(looks, i) for i in chosen]
    below: list[str] = []
    if reference is not None:
        nearest = _nearest([looks.ages[i] for i in chosen], reference.ages)
        rows["reference"] = [reference.panels["before"][i] for i in nearest]
        below = [_caption(reference, i) for i in nearest]
    height, width = rows["before"][0].shape
    blank = np.zeros((height, width), np.float32)
    figure, grid = new_figure(len(rows), height / (width * SHOWN) * len(rows) + 0.03)
    for axes, (kind, panels) in zip(grid, rows.items(), strict=True):
        canvas = np.hstack([*panels, *[blank + BRIGHTEST] * (SHOWN - len(panels))])
        axes.imshow(canvas, cmap="gray", vmin=0, vmax=BRIGHTEST, interpolation="bilinear")
        axes.set_ylabel(ROWS[kind], fontsize=9)
        texts = {"before": captions, "reference": below}.get(kind, [])
        for i, text in enumerate(texts):
            axes.text(i * width + 4, 3, text, color="white", fontsize=6.5, va="top",
                      parse_math=False)  # fmt: skip
    return figure, palette_of("gray")


def _caption(looks: _Looks, i: int) -> str:
    age = looks.ages[i]
    return looks.names[i] + (f", age {age:.3g}" if age == age else "")


def _nearest(ages: Sequence[float], among: Sequence[float]) -> list[int]:
    """For each age the scan nearest to it; where ages are unknown, one scan after the other."""
    known = np.array(among, float)
    return [
        int(np.nanargmin(np.abs(known - age)))
        if age == age and np.isfinite(known).any()
        else i % len(among)
        for i, age in enumerate(ages)
    ]


def _histograms(densities: dict[str, np.ndarray]) -> tuple[Any, Any]:
    figure, grid = new_figure((1, len(TISSUES)), 0.26)
    edges = np.linspace(0, TOP, N_BINS + 1)
    for k, (axes, tissue) in enumerate(zip(grid, TISSUES, strict=True)):
        if "reference" in densities:
            axes.stairs(densities["reference"][k], edges, fill=True, color=REFERENCE, alpha=0.45,
                        label="reference")  # fmt: skip
        for kind, colour, style in (("before", RAW, "--"), ("after", HARMONIZED, "-")):
            if kind in densities:
                axes.stairs(densities[kind][k], edges, color=colour, ls=style, lw=1.6, label=kind)
        here = np.flatnonzero(sum(values[k] for values in densities.values()) > 0)
        axes.set_xlim(edges[here.min()] - 0.04, edges[here.max() + 1] + 0.04)
        axes.set_title(tissue, fontsize=9)
        axes.set_yticks([])
        plain_axes(axes)
    grid[1].set_xlabel("scaled intensity (fluid 0, white matter 1)", fontsize=8)
    grid[0].set_ylabel("density", fontsize=8)
    grid[0].legend(frameon=False, fontsize=8)
    return figure, None


def _maps(means: dict[str, np.ndarray], spreads: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Rows before, after, reference; columns mean, difference to the reference, deviation."""
    rows = [kind for kind in ROWS if kind in means]
    columns: list[tuple[str, dict[str, np.ndarray], str, tuple[float, float]]] = [
        ("mean", means, "gray", (0, BRIGHTEST))
    ]
    if "reference" in means and len(rows) > 1:
        gaps = {kind: means[kind] - means["reference"] for kind in rows if kind != "reference"}
        most = max(float(np.percentile(np.abs(gap), 99)) for gap in gaps.values())
        most = max(most, 0.02)
        columns.append(("mean minus reference", gaps, "PuOr_r", (-most, most)))
    if spreads:
        top = max(float(np.percentile(spread, 99)) for spread in spreads.values())
        columns.append(("standard deviation", spreads, "cividis", (0, max(top, 0.02))))
    height, width = means["before"].shape
    ratio = height * len(rows) / (width * len(columns) * 1.08) + 0.07
    figure, cells = new_figure((len(rows), len(columns)), ratio)
    grid = np.array(cells, dtype=object).reshape(len(rows), len(columns))
    for (i, kind), (j, (title, values, colours, (low, high))) in (
        (row, column) for row in enumerate(rows) for column in enumerate(columns)
    ):
        axes = grid[i, j]
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if i == 0:
            axes.set_title(title, fontsize=9)
        if j == 0:
            axes.set_ylabel(ROWS[kind], fontsize=9)
        shown = axes.imshow(
            values.get(kind, np.full((height, width), np.nan)), cmap=colours, vmin=low, vmax=high,
            interpolation="nearest" if kind not in values else "bilinear",
        )  # fmt: skip
        if i == len(rows) - 1:
            bar = figure.colorbar(shown, ax=grid[:, j].tolist(), location="bottom",
                                  fraction=0.03, pad=0.02, aspect=40)  # fmt: skip
            bar.ax.tick_params(labelsize=7)
    return figure, palette_of("gray", "PuOr_r", "cividis")
