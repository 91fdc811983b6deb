"""Draw figures, those of a scan first; equal input gives equal bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from bids_harmony.qc import reference as references

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
#: Colours that colour-blind readers can distinguish (Okabe and Ito 2008).
ORANGE, SKY, BLUE, VERMILION = "#E69F00", "#56B4E9", "#0072B2", "#D55E00"
GREEN, PURPLE, YELLOW, GREY = "#009E73", "#CC79A7", "#F0E442", "#999999"
RAW, HARMONIZED, REFERENCE = ORANGE, BLUE, "#8A8A8A"
#: Drawing order and line properties of intensity densities.
DENSITIES: dict[str, dict[str, Any]] = {
    "reference": {"color": REFERENCE, "fill": True, "alpha": 0.45},
    "before": {"color": RAW, "ls": "--", "lw": 1.8},
    "after": {"color": HARMONIZED, "ls": "-", "lw": 1.8},
}
#: Colour and marker shape of sites, in turn.
SITES = ((BLUE, "o"), (VERMILION, "^"), (GREEN, "s"), (PURPLE, "D"), (YELLOW, "v"))
WIDTH, DPI = 9.6, 110


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
    outlines = [(inside, 0.5, VERMILION)] if inside.any() else []
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
    outlines = [(template.mask, 0.5, SKY)]
    if (white := template.tissues.get("wm")) is not None:
        outlines.append((ndimage.gaussian_filter(white, 1.0), 0.45, VERMILION))
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
    names, volumes = ("Before", "After", "Difference"), (before, after, difference)
    figure = new_figure(0.66, layout=None)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, hspace=0.02)
    rows = zip(figure.subplots(3), names, volumes, (grey, grey, orange), strict=True)
    for axes, name, volume, colours in rows:
        shown, slices = _view(nib.Nifti1Image(volume, raw.affine), mask, margin_mm=4)
        display = plot_img(
            shown, display_mode="z", cut_coords=slices["z"], axes=axes, annotate=False,
            interpolation="bilinear", **colours,
        )  # fmt: skip
        display.annotate(size=7)
        display.title(name, x=0.03, size=9)
    out_file.write_bytes(png_bytes(figure, ("gray", "PuOr_r")))


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
    figure = new_figure(0.48, layout=None, facecolor="black")
    display = plot_anat(
        shown, display_mode="mosaic", cut_coords=slices, figure=figure, annotate=False,
        vmin=0, vmax=top, dim=0, colorbar=False, interpolation="bilinear",
    )  # fmt: skip
    display.annotate(size=7)
    for volume, level, colour in outlines:
        contour = nib.Nifti1Image(np.asarray(volume, dtype=np.float32), image.affine)
        display.add_contours(contour, levels=[level], colors=colour, linewidths=0.9)
    return png_bytes(figure, 64)


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
    figure = new_figure(0.3)
    axes = figure.subplots()
    labels = {"before": "this scan, before", "after": "this scan, after",
              "reference": f"{reference_name}: mean of the training scans"}  # fmt: skip
    densities(axes, histograms, labels)
    axes.set(
        xlabel="scaled intensity (about 1 in white matter)",
        ylabel="density",
        xlim=(0, references.TOP),
    )
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    out_file.write_bytes(png_bytes(figure))


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
    figure = new_figure(0.34)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    beside = {"textcoords": "offset points"}
    for x, name, ends, colour, marker in (
        (0, "raw", "interval_90_raw", RAW, "s"), (1, "harmonized", "interval_90", HARMONIZED, "o"),
    ):  # fmt: skip
        if (value := brain_age.get(name)) is None:
            continue
        dots = {"color": colour, "ms": 3.2, "alpha": 0.75, "mec": "none", "label": name}
        left.plot(z, slices[name], marker, **dots)
        left.axhline(value, color=colour, lw=1.2)
        if (interval := brain_age.get(ends)) is not None:
            right.plot([x, x], interval, color=colour, lw=2.5, solid_capstyle="butt")
        right.plot(x, value, marker, ms=8, color=colour)
        right.annotate(f"{value:.1f}", (x, value), xytext=(8, -3), fontsize=9, **beside)
    for axes in (left, right):
        plain_axes(axes)
        if age is not None:
            axes.axhline(age, color="black", lw=1, ls=":")
    if age is not None:
        text = f"chronological age {age:g}"
        left.annotate(text, (float(z.min()), age), xytext=(2, 3), fontsize=8, **beside)
    left.set(xlabel="position of the axial slice, z (mm)", ylabel="brain age (years)")
    left.legend(frameon=False, fontsize=9, ncols=2, loc="best")
    right.set(xlim=(-0.6, 1.9), xticks=[0, 1], xticklabels=["raw", "harmonized"])
    right.tick_params(labelleft=False)
    right.set_title("median and 90 % interval", fontsize=9)
    out_file.write_bytes(png_bytes(figure))


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
    known = {
        name: summary
        for name, summary in reference.get("all", {}).items()
        if metrics.get(name) is not None and summary["n"] >= references.MIN_REFERENCE
    }
    names = {name: f["LongName"] for name, f in references.dictionary().items() if name in known}
    if not names:
        return
    flagged = references.judge(metrics, reference).flagged
    figure = new_figure(0.04 + 0.0235 * len(names))
    axes = figure.subplots()
    axes.set(xlim=(-2.4, 3.0), ylim=(len(names) - 0.4, -0.9))
    axes.axvspan(-1, 1, color="0.93", lw=0)
    axes.axvline(0, color="0.75", lw=0.8)
    good, bad = ("o", BLUE, "0.2", "normal"), ("D", VERMILION, VERMILION, "bold")
    for row, name in enumerate(names):
        value, summary = float(metrics[name] or 0), known[name]
        median, (low, high) = summary["median"], references.reference_range(summary)
        half = (high - median if value >= median else median - low) or 1.0
        number, *ends = map(references.readable, (value, low, high))
        text = f"{number}{references.spoken_unit(name)}   ({' to '.join(ends)})"
        marker, colour, ink, weight = bad if name in flagged else good
        axes.plot(np.clip((value - median) / half, -2.2, 2.2), row, marker, color=colour, ms=5)
        axes.text(3.0, row, text, ha="right", va="center", fontsize=7.5, color=ink, weight=weight)
    axes.set_yticks(range(len(names)), list(names.values()), fontsize=7.5)
    axes.set_xticks([-1, 0, 1], ["lower end", "median", "upper end"], fontsize=7.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    out_file.write_bytes(png_bytes(figure))


def new_figure(ratio: float, width: float = WIDTH, **settings: Any) -> Figure:
    """Create a figure (width in inches, ratio of height to width) outside matplotlib's pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = {"layout": "constrained", **settings}
    figure = Figure(figsize=(width, width * ratio), dpi=DPI, **settings)
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Any) -> None:
    """Remove the top and right spines, and add a light horizontal grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="0.92", lw=0.8)
    axes.set_axisbelow(True)


def densities(
    axes: Any,
    histograms: Mapping[str, Mapping[str, Sequence[float]] | None],
    labels: Mapping[str, str] | None = None,
) -> None:
    """Plot intensity distributions into axes.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes to draw into.
    histograms : mapping
        Some of ``reference``, ``before`` and ``after``: each has ``edges`` and ``density``, or is
        None.
    labels : mapping, optional
        Text of the legend for each; by default its name.
    """
    for kind, line in DENSITIES.items():
        if (found := histograms.get(kind)) is not None:
            label = (labels or {}).get(kind, kind)
            axes.stairs(found["density"], found["edges"], label=label, **line)
    plain_axes(axes)
    axes.set_yticks([])


def png_bytes(figure: Figure, colours: int | Sequence[str] = ()) -> bytes:
    """Render a figure as a small PNG without metadata; equal figures give equal bytes.

    A palette makes brain images four times smaller.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Figure to render.
    colours : int or sequence of str
        Number of palette colours, or names of colormaps whose evenly spaced colours form the
        palette, so that rare ones are included. By default, full colour.

    Returns
    -------
    bytes
        Contents of the PNG file.
    """
    from matplotlib import colormaps
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    if isinstance(colours, int):
        picture = picture.quantize(colours, dither=Image.Dither.NONE)
    elif colours:
        places = np.linspace(0, 1, 256 // len(colours))
        spaced = np.concatenate([colormaps[name](places)[:, :3] for name in colours])
        palette = Image.new("P", (1, 1))
        palette.putpalette(np.round(spaced * 255).astype(np.uint8).ravel().tolist())
        picture = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(picture: bytes) -> str:
    """Encode a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"


def svg_text(figure: Figure) -> str:
    """Render a figure as SVG; equal figures give equal text."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "bids_harmony", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def scatter_figure(
    panels: Mapping[str, tuple[pd.DataFrame, tuple[float, float]]], reference: str
) -> Figure:
    """Plot predicted against true values, one panel per harmonization method.

    Parameters
    ----------
    panels : mapping
        For each panel title, the predictions (columns ``site``, ``truth``, ``predicted``), and
        slope and intercept of the reference site's line.
    reference : str
        Reference site, drawn as small grey points.

    Returns
    -------
    matplotlib.figure.Figure
    """
    width = max(2.6 * len(panels), 5.2)
    figure = new_figure(2.9 / width, width)
    grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    every = pd.concat([rows for rows, _ in panels.values()])
    sites = sorted(set(every["site"]) - {reference})
    ends = (float(every["truth"].min()), float(every["truth"].max()))
    for axes, (title, (rows, (slope, intercept))) in zip(grid, panels.items(), strict=True):
        home = rows[rows["site"] == reference]
        axes.plot(home["truth"], home["predicted"], ".", color=GREY, ms=3, alpha=0.6)
        axes.plot(ends, [slope * x + intercept for x in ends], color=GREY, label=reference)
        for k, site in enumerate(sites):
            part = rows[rows["site"] == site]
            colour, marker = SITES[k % len(SITES)]
            axes.plot(part["truth"], part["predicted"], marker, color=colour, ms=3, label=site)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("true")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("predicted")
    grid[0].legend(frameon=False, fontsize="small")
    return figure
