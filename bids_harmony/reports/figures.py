"""Draw the figures of one scan as PNG files; equal input gives equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_harmony.qc import reference as references
from bids_harmony.reports import drawing

if TYPE_CHECKING:
    from bids_harmony.anat.template import Template

#: Titles of a scan's figures by ``desc-`` label, in the order of a quality rating.
FIGURES = {
    "brainmask": "Brain mask",
    "norm": "Registration to the template",
    "harmonized": "Before and after harmonization",
    "histogram": "Intensities of the brain",
    "qc": "Quality metrics against the training scans",
    "predictions": "Brain age, slice by slice",
}
SLICES = 6


def mask_figure(image: nib.Nifti1Image, mask: nib.Nifti1Image, out_file: Path) -> None:
    """Draw the outline of the brain mask on the native scan.

    Parameters
    ----------
    image, mask : nibabel.Nifti1Image
        Scan in RAS orientation, and its brain mask on the same grid.
    out_file : pathlib.Path
        PNG to write.
    """
    inside = np.asarray(mask.dataobj) > 0
    outlines = [(inside, 0.5, drawing.VERMILION)] if inside.any() else []
    out_file.write_bytes(_outlines(image, inside, outlines, margin_mm=22))


def registration_figure(registered: nib.Nifti1Image, template: Template, out_file: Path) -> None:
    """Draw the template's brain and white matter outlines on the registered scan.

    Parameters
    ----------
    registered : nibabel.Nifti1Image
        Scan on the template grid.
    template : Template
        Target of the registration.
    out_file : pathlib.Path
        PNG to write.
    """
    outlines = [(template.mask, 0.5, drawing.SKY)]
    if (white := template.tissues.get("wm")) is not None:
        outlines.append((ndimage.gaussian_filter(white, 1.0), 0.45, drawing.VERMILION))
    out_file.write_bytes(_outlines(registered, template.mask, outlines, margin_mm=8))


def harmonization_figure(
    raw: nib.Nifti1Image, harmonized: nib.Nifti1Image, mask: np.ndarray, out_file: Path
) -> None:
    """Draw axial slices before and after harmonization, and their difference.

    Parameters
    ----------
    raw, harmonized : nibabel.Nifti1Image
        Scaled volumes on the template grid, before and after harmonization.
    mask : numpy.ndarray
        Boolean foreground mask of the same shape.
    out_file : pathlib.Path
        PNG to write.
    """
    from nilearn.plotting import plot_img

    before, after = (np.asarray(i.dataobj, dtype=np.float32) for i in (raw, harmonized))
    difference = np.where(mask, after - before, 0)
    limit = max(float(np.percentile(np.abs(difference[mask]), 99)), 0.02) if mask.any() else 1.0
    grey = {"cmap": "gray", "vmin": 0, "vmax": _brightest(np.maximum(before, after), mask),
            "black_bg": True}  # fmt: skip
    orange = {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit, "black_bg": False}
    rows = (
        ("Before", before, grey),
        ("After", after, grey),
        ("Difference", difference, orange),
    )
    figure = drawing.new_figure(0.66, layout=None)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, hspace=0.02)
    for axes, (name, volume, colours) in zip(figure.subplots(len(rows)), rows, strict=True):
        shown, slices = _view(nib.Nifti1Image(volume, raw.affine), mask, margin_mm=4)
        display = plot_img(
            shown, display_mode="z", cut_coords=slices["z"], axes=axes, annotate=False,
            interpolation="bilinear", **colours,
        )  # fmt: skip
        display.annotate(size=7)
        display.title(name, x=0.03, size=9)
    out_file.write_bytes(drawing.png_bytes(figure, ("gray", "PuOr_r")))


def _outlines(
    image: nib.Nifti1Image,
    inside: np.ndarray,
    outlines: Sequence[tuple[np.ndarray, float, str]],
    margin_mm: float,
) -> bytes:
    """Draw contours (volume, level, colour) on slices in three orientations; return the PNG."""
    from nilearn.plotting import plot_anat

    top = _brightest(np.asarray(image.dataobj, dtype=np.float32), inside)
    shown, slices = _view(image, inside, margin_mm)
    figure = drawing.new_figure(0.48, layout=None, facecolor="black")
    display = plot_anat(
        shown, display_mode="mosaic", cut_coords=slices, figure=figure, annotate=False,
        vmin=0, vmax=top, dim=0, colorbar=False, interpolation="bilinear",
    )  # fmt: skip
    display.annotate(size=7)
    for volume, level, colour in outlines:
        contour = nib.Nifti1Image(np.asarray(volume, dtype=np.float32), image.affine)
        display.add_contours(contour, levels=[level], colors=colour, linewidths=0.9)
    return drawing.png_bytes(figure, 64)


def _brightest(data: np.ndarray, mask: np.ndarray) -> float:
    """Return the upper end of the grey scale: a little above white matter, ignoring the scalp."""
    top = float(np.percentile(data[mask] if mask.any() else data, 98))
    return 1.15 * top if top > 0 else 1.0


def _view(
    image: nib.Nifti1Image, mask: np.ndarray, margin_mm: float
) -> tuple[nib.Nifti1Image, dict[str, list[float]]]:
    """Crop an image to a mask plus a margin, and choose slices evenly over the mask.

    The slice positions are world coordinates in mm by axis. An empty mask crops nothing.
    """
    mask = mask if mask.any() else ~mask
    others = ((1, 2), (0, 2), (0, 1))
    ends = np.array([np.flatnonzero(mask.any(axis=axes))[[0, -1]] for axes in others]).T
    margin = np.ceil(margin_mm / np.array(image.header.get_zooms()[:3])).astype(int)
    box = map(slice, np.maximum(ends[0] - margin, 0), ends[1] + margin + 1)
    first, last = nib.affines.apply_affine(image.affine, ends)
    places = first + np.linspace(0.12, 0.88, SLICES)[:, None] * (last - first)
    return image.slicer[tuple(box)], dict(zip("xyz", places.T.tolist(), strict=True))


def histogram_figure(
    histograms: Mapping[str, Mapping[str, Sequence[float]] | None],
    reference_name: str,
    out_file: Path,
) -> None:
    """Plot the brain's intensity distribution before and after, with the reference site's.

    Parameters
    ----------
    histograms : mapping
        ``before``, ``after`` and, if the bundle has one, ``reference``: each has ``edges`` and
        ``density`` as returned by :func:`bids_harmony.qc.histogram.brain_histogram`, or is None.
    reference_name : str
        Name of the reference site.
    out_file : pathlib.Path
        PNG to write.
    """
    figure = drawing.new_figure(0.3)
    axes = figure.subplots()
    labels = {"before": "this scan, before", "after": "this scan, after",
              "reference": f"{reference_name}: mean of the training scans"}  # fmt: skip
    for kind, line in drawing.DENSITIES.items():
        if (found := histograms.get(kind)) is not None:
            axes.stairs(found["density"], found["edges"], label=labels[kind], **line)
    axes.set(xlabel="scaled intensity (about 1 in white matter)", ylabel="density", yticks=[],
             xlim=(0, 1.6))  # fmt: skip
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    drawing.plain_axes(axes)
    out_file.write_bytes(drawing.png_bytes(figure))


def prediction_figure(
    brain_age: Mapping[str, Any], out_file: Path, *, age: float | None = None
) -> None:
    """Plot the brain age of every axial slice, their median and its 90 % interval.

    Parameters
    ----------
    brain_age : mapping
        ``raw`` and ``harmonized`` (years), ``per_slice`` (``z_mm``, ``raw``, ``harmonized``) and,
        if known, ``interval_90`` and ``interval_90_raw``.
    out_file : pathlib.Path
        PNG to write.
    age : float, optional
        Chronological age in years.
    """
    slices = brain_age["per_slice"]
    z = np.asarray(slices["z_mm"], dtype=float)
    figure = drawing.new_figure(0.34)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    for x, name, interval, colour, marker in (
        (0, "raw", brain_age.get("interval_90_raw"), drawing.RAW, "s"),
        (1, "harmonized", brain_age.get("interval_90"), drawing.HARMONIZED, "o"),
    ):
        if (value := brain_age.get(name)) is None:
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
        drawing.plain_axes(axes)
        if age is not None:
            axes.axhline(age, color="black", lw=1, ls=":")
    if age is not None:
        left.annotate(f"chronological age {age:g}", (float(z.min()), age), xytext=(2, 3),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    left.set(xlabel="position of the axial slice, z (mm)", ylabel="brain age (years)")
    left.legend(frameon=False, fontsize=9, ncols=2, loc="best")
    right.set(xlim=(-0.6, 1.9), xticks=[0, 1], xticklabels=["raw", "harmonized"])
    right.tick_params(labelleft=False)
    right.set_title("median and 90 % interval", fontsize=9)
    out_file.write_bytes(drawing.png_bytes(figure))


def metrics_figure(
    metrics: Mapping[str, float | None], reference: Mapping[str, Any], out_file: Path
) -> None:
    """Plot each QC metric relative to its range in the bundle's training scans.

    Parameters
    ----------
    metrics : mapping
        Value of each metric; None if missing.
    reference : mapping
        Reference statistics from :func:`bids_harmony.qc.reference.reference_statistics`.
    out_file : pathlib.Path
        PNG to write; not written if no metric has a reference.
    """
    rows = {
        name: (value, summary)
        for name in references.dictionary()
        if (value := metrics.get(name)) is not None
        and (summary := reference.get("all", {}).get(name)) is not None
        and summary["n"] >= references.MIN_REFERENCE
    }
    if not rows:
        return
    flagged = references.out_of_range(metrics, reference)
    figure = drawing.new_figure(0.04 + 0.0235 * len(rows))
    axes = figure.subplots()
    axes.set(xlim=(-2.4, 3.0), ylim=(len(rows) - 0.4, -0.9))
    axes.axvspan(-1, 1, color="0.93", lw=0)
    axes.axvline(0, color="0.75", lw=0.8)
    for row, (name, (value, summary)) in enumerate(rows.items()):
        median, (low, high) = summary["median"], references.reference_range(summary)
        half = (high - median if value >= median else median - low) or 1.0
        said, *ends = map(references.readable, (value, low, high))
        text = f"{said}{references.spoken_unit(name)}   ({' to '.join(ends)})"
        place = np.clip((value - median) / half, -2.2, 2.2)
        marker, colour, weight = (
            ("D", drawing.VERMILION, "bold") if name in flagged else ("o", drawing.BLUE, "normal")
        )
        ink = colour if name in flagged else "0.2"
        axes.plot(place, row, marker, color=colour, ms=5)
        axes.text(3.0, row, text, ha="right", va="center", fontsize=7.5, color=ink, weight=weight)
    names = [references.dictionary()[name]["LongName"] for name in rows]
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set_xticks([-1, 0, 1], ["lower end", "median", "upper end"], fontsize=7.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    out_file.write_bytes(drawing.png_bytes(figure))
