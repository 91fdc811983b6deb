"""Pictures of the report: each function draws one PNG, the same bytes for the same input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_harmony.qc.reference import (
    MIN_REFERENCE,
    brain_histogram,
    dictionary,
    judge,
    readable,
    reference_range,
    spoken_unit,
)
from bids_harmony.reports.drawing import (
    BLUE,
    HARMONIZED,
    N_COLOURS,
    RAW,
    REFERENCE,
    SKY,
    VERMILION,
    new_figure,
    palette_of,
    plain_axes,
    save_png,
)
from bids_harmony.reports.mosaic import AXES, Layout, layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bids_harmony.anat.template import Template


def mask_figure(image: nib.Nifti1Image, mask: nib.Nifti1Image, out_file: str | Path) -> Path:
    """Draw the outline of the brain mask on the scan as acquired.

    Parameters
    ----------
    image, mask : nibabel.Nifti1Image
        RAS scan and its brain mask on the same grid.
    out_file : path-like
        PNG to write.
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    inside = np.asarray(mask.dataobj) > 0
    zooms = image.header.get_zooms()[:3]
    plan = layout(inside, zooms, n_cuts=6, margin_mm=22)
    top = _window_top(data, inside)
    figure, axes = _canvas(plan, data / top, image.affine)
    outline, _ = plan.canvas(inside.astype(np.float32))
    axes.contour(outline, levels=[0.5], colors=[VERMILION], linewidths=0.9)
    return save_png(figure, out_file, N_COLOURS)


def registration_figure(
    registered: nib.Nifti1Image, template: Template, out_file: str | Path
) -> Path:
    """Draw the template's brain outline and white matter border on the registered scan.

    Parameters
    ----------
    registered : nibabel.Nifti1Image
        Scan on the template grid.
    template : Template
        What it was registered to.
    out_file : path-like
        PNG to write.
    """
    data = np.asarray(registered.dataobj, dtype=np.float32)
    plan = layout(template.mask, registered.header.get_zooms()[:3], n_cuts=6, margin_mm=8)
    top = _window_top(data, template.mask)
    figure, axes = _canvas(plan, data / top, registered.affine)
    white = template.tissues.get("wm")
    if white is not None:
        smooth = ndimage.gaussian_filter(white, 1.0)
        axes.contour(plan.canvas(smooth)[0], levels=[0.45], colors=[VERMILION], linewidths=0.7)
    outline, _ = plan.canvas(template.mask.astype(np.float32))
    axes.contour(outline, levels=[0.5], colors=[SKY], linewidths=0.9)
    return save_png(figure, out_file, N_COLOURS)


def harmonization_figure(
    raw: nib.Nifti1Image, harmonized: nib.Nifti1Image, mask: np.ndarray, out_file: str | Path
) -> Path:
    """Draw the scan before and after harmonization and the difference, slice by slice.

    Parameters
    ----------
    raw, harmonized : nibabel.Nifti1Image
        Scaled volumes on the template grid.
    mask : numpy.ndarray
        Boolean mask of their foreground.
    out_file : path-like
        PNG to write.
    """
    before, after = (np.asarray(i.dataobj, dtype=np.float32) for i in (raw, harmonized))
    zooms = raw.header.get_zooms()[:3]
    rows = ("Before", "After", "Difference")
    plan = layout(mask, zooms, names=("axial",), n_cuts=6, margin_mm=4)
    difference = np.where(mask, after - before, 0)
    limit = max(float(np.percentile(np.abs(difference[mask]), 99)), 0.02) if mask.any() else 1.0
    top = _window_top(np.maximum(before, after), mask)
    figure, grid = new_figure(len(rows), _ratio(plan) * len(rows) + 0.02)
    for axes, name in zip(grid, rows, strict=True):
        volume = {"Before": before, "After": after, "Difference": difference}[name]
        canvas, places = plan.canvas(volume)
        if name == "Difference":
            shown = axes.imshow(
                canvas, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="bilinear"
            )
            axes.set_facecolor("white")
            bar = figure.colorbar(shown, ax=axes, fraction=0.012, pad=0.004)
            bar.ax.tick_params(labelsize=7)
        else:
            shown = axes.imshow(canvas, cmap="gray", vmin=0, vmax=top, interpolation="bilinear")
            bar = figure.colorbar(shown, ax=axes, fraction=0.012, pad=0.004)
            bar.ax.tick_params(labelsize=7)
        if name == "Before":
            _label(axes, places, raw.affine, plan)
        axes.set_ylabel(name, fontsize=9)
    return save_png(figure, out_file, palette_of("gray", "PuOr_r"))


def histogram_figure(
    raw: np.ndarray,
    harmonized: np.ndarray,
    mask: np.ndarray,
    out_file: str | Path,
    *,
    reference: Mapping[str, Sequence[float]] | None = None,
    reference_name: str = "reference site",
) -> Path:
    """Draw the brain's intensities before and after beside those of the reference site.

    Parameters
    ----------
    raw, harmonized : numpy.ndarray
        Scaled volumes on the template grid.
    mask : numpy.ndarray
        Boolean mask of their foreground.
    out_file : path-like
        PNG to write.
    reference : mapping, optional
        ``edges`` and ``density`` as :func:`bids_harmony.qc.reference.mean_histogram` returns.
    reference_name : str
        Name of the reference site.
    """
    figure, (axes,) = new_figure(1, 0.3)
    if reference is not None:
        axes.stairs(
            reference["density"], reference["edges"], fill=True, color=REFERENCE, alpha=0.45,
            label=f"{reference_name}: mean of the training scans",
        )  # fmt: skip
    for volume, colour, style, name in (
        (raw, RAW, "--", "this scan, before"),
        (harmonized, HARMONIZED, "-", "this scan, after"),
    ):
        histogram = brain_histogram(volume, mask)
        axes.stairs(
            histogram["density"], histogram["edges"], color=colour, lw=1.8, ls=style, label=name
        )
    axes.set_xlabel("scaled intensity (about 1 in white matter)")
    axes.set_ylabel("density")
    axes.set_yticks([])
    axes.set_xlim(0, 1.6)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    plain_axes(axes)
    return save_png(figure, out_file)


def prediction_figure(
    brain_age: Mapping[str, Any], out_file: str | Path, *, age: float | None = None
) -> Path:
    """Draw the brain age of every slice, their median and its interval.

    Parameters
    ----------
    brain_age : mapping
        ``raw``, ``harmonized``, ``per_slice`` (``z_mm``, ``raw``, ``harmonized``) and, where
        known, ``interval_90`` and ``interval_90_raw``.
    out_file : path-like
        PNG to write.
    age : float, optional
        Chronological age in years.
    """
    slices = brain_age["per_slice"]
    z = np.asarray(slices["z_mm"], dtype=float)
    figure, (left, right) = new_figure((1, 2), 0.34, width_ratios=(3, 1), sharey=True)
    kinds = (
        (0, "raw", "interval_90_raw", RAW, "s"),
        (1, "harmonized", "interval_90", HARMONIZED, "o"),
    )
    for x, name, interval_name, colour, marker in kinds:
        value, interval = brain_age.get(name), brain_age.get(interval_name)
        if value is None:
            continue
        left.plot(
            z, slices[name], marker, ms=3.2, color=colour, alpha=0.75, mec="none", label=name
        )
        left.axhline(value, color=colour, lw=1.2)
        if interval is not None:
            right.plot([x, x], interval, color=colour, lw=2.5, solid_capstyle="butt")
        right.plot(x, value, marker, ms=8, color=colour)
        right.annotate(
            f"{value:.1f}", (x, value), xytext=(8, -3), textcoords="offset points", fontsize=9
        )
    for axes in (left, right):
        if age is not None:
            axes.axhline(age, color="black", lw=1, ls=":")
        plain_axes(axes)
    if age is not None:
        left.annotate(
            f"chronological age {age:g}", (float(z.min()), age), xytext=(2, 3),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    left.set_xlabel("position of the axial slice, z (mm)")
    left.set_ylabel("brain age (years)")
    left.legend(frameon=False, fontsize=9, ncols=2, loc="best")
    right.set_xlim(-0.6, 1.9)
    right.set_xticks([0, 1], ["raw", "harmonized"])
    right.tick_params(labelleft=False)
    right.set_title("median and 90 % interval", fontsize=9)
    return save_png(figure, out_file)


def metrics_figure(
    metrics: Mapping[str, float | None], reference: Mapping[str, Any], out_file: str | Path
) -> Path | None:
    """Draw each metric's place in the range of the bundle's training scans.

    Parameters
    ----------
    metrics : mapping
        Metric name to value.
    reference : mapping
        As :func:`bids_harmony.qc.reference.reference_statistics` returns it.
    out_file : path-like
        PNG to write.

    Returns
    -------
    pathlib.Path or None
        None, and nothing is drawn, where no metric has a reference.
    """
    flagged = judge(metrics, reference).flagged
    rows = [
        (facts["LongName"], value, spoken_unit(name), summary, name in flagged)
        for name, facts in dictionary().items()
        if (value := metrics.get(name)) is not None
        and (summary := reference.get("all", {}).get(name)) is not None
        and summary["n"] >= MIN_REFERENCE
    ]
    if not rows:
        return None
    figure, (axes,) = new_figure(1, 0.04 + 0.0235 * len(rows))
    axes.set_xlim(-2.4, 3.0)
    axes.set_ylim(len(rows) - 0.4, -0.9)
    axes.axvspan(-1, 1, color="0.93", lw=0)
    axes.axvline(0, color="0.75", lw=0.8)
    for row, (_, value, unit, summary, is_flagged) in enumerate(rows):
        low, high = reference_range(summary)
        median = summary["median"]
        half = (high - median if value >= median else median - low) or 1.0
        place = min(max((value - median) / half, -2.2), 2.2)
        axes.plot(
            place, row, "D" if is_flagged else "o", color=VERMILION if is_flagged else BLUE, ms=5
        )
        text = f"{readable(value)}{unit}   ({readable(low)} to {readable(high)})"
        axes.text(
            3.0, row, text, ha="right", va="center", fontsize=7.5,
            color=VERMILION if is_flagged else "0.2", weight="bold" if is_flagged else "normal",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=7.5)
    axes.set_xticks([-1, 0, 1], ["lower end", "median", "upper end"], fontsize=7.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return save_png(figure, out_file)


def _window_top(data: np.ndarray, mask: np.ndarray) -> float:
    """Brightest intensity shown: a little above white matter, whatever the scalp does."""
    top = float(np.percentile(data[mask] if mask.any() else data, 98))
    return 1.15 * top if top > 0 else 1.0


def _ratio(plan: Layout) -> float:
    canvas, _ = plan.canvas(np.zeros([b[1] for b in plan.box], dtype=np.float32))
    height, width = canvas.shape
    return float(height / width)


def _canvas(plan: Layout, volume: np.ndarray, affine: np.ndarray) -> tuple[Figure, Any]:
    canvas, places = plan.canvas(volume)
    figure, (axes,) = new_figure(1, canvas.shape[0] / canvas.shape[1], bare=True)
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
    _label(axes, places, affine, plan, colour="white")
    return figure, axes


def _label(
    axes: Any,
    places: Sequence[tuple[int, int, int, int]],
    affine: np.ndarray,
    plan: Layout,
    colour: str = "white",
) -> None:
    """Write each slice's world coordinate, and the sides where they could be mistaken."""
    centre = [sum(b) / 2 for b in plan.box]
    for x, y, axis, index in places:
        voxel = [float(index) if i == axis else centre[i] for i in range(3)]
        world = nib.affines.apply_affine(affine, voxel)[axis]
        axes.text(
            x + 2, y + 2, f"{'xyz'[axis]} = {world:.0f}", color=colour, fontsize=6.5, va="top"
        )
    first = {axis: (x, y) for x, y, axis, _ in reversed(places)}
    for name in ("axial", "coronal"):
        if AXES[name] in first:
            x, y = first[AXES[name]]
            axes.text(x + 2, y + 17, "L", color=colour, fontsize=6.5, va="top")
