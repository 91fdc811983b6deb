"""Shared drawing code: colours, figures without matplotlib's global state, small image files."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
