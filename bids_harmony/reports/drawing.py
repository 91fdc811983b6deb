"""What all pictures share: colours, a figure apart from matplotlib's global state, small PNGs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours that stay apart for colour-blind readers (Okabe and Ito 2008).
ORANGE, SKY, BLUE, VERMILION = "#E69F00", "#56B4E9", "#0072B2", "#D55E00"
GREEN, PURPLE, YELLOW, GREY = "#009E73", "#CC79A7", "#F0E442", "#999999"
RAW, HARMONIZED, REFERENCE = ORANGE, BLUE, "#8A8A8A"
WIDTH = 9.6
DPI = 110
#: Colours of pictures of brains, which would be four times larger in full colour.
N_COLOURS = 64


def new_figure(
    shape: int | tuple[int, int], ratio: float, *, bare: bool = False, **grid: Any
) -> tuple[Figure, list[Any]]:
    """Make a figure without touching matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = (shape, 1) if isinstance(shape, int) else shape
    figure = Figure(
        figsize=(WIDTH, WIDTH * ratio), dpi=DPI, layout=None if bare else "constrained"
    )
    FigureCanvasAgg(figure)
    if bare:
        axes = [figure.add_axes((0, 0, 1, 1))]
        axes[0].set_axis_off()
        figure.set_facecolor("black")
        return figure, axes
    all_axes = figure.subplots(rows, columns, squeeze=False, **grid).ravel().tolist()
    if rows > 1:
        for axes_ in all_axes:
            axes_.set_xticks([])
            axes_.set_yticks([])
            for spine in axes_.spines.values():
                spine.set_visible(False)
    return figure, all_axes


def plain_axes(axes: Any) -> None:
    """Leave of a chart's frame only what is read."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="0.92", lw=0.8)
    axes.set_axisbelow(True)


def palette_of(*colormaps: str) -> Any:
    """Make a palette of evenly spaced colours of some maps, so that rare ones are kept too."""
    from matplotlib import colormaps as known
    from PIL import Image

    places = np.linspace(0, 1, 256 // len(colormaps))
    colours = np.concatenate([known[name](places)[:, :3] for name in colormaps])
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.round(colours * 255).astype(np.uint8).ravel().tolist())
    return palette


def save_png(figure: Figure, out_file: str | Path, colours: Any = None) -> Path:
    """Write a small PNG without metadata.

    ``colours`` is a number of colours to choose, a palette, or None to keep them all, as charts
    need.
    """
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    if isinstance(colours, int):
        picture = picture.quantize(colours, dither=Image.Dither.NONE)
    elif colours is not None:
        picture = picture.quantize(palette=colours, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    out = Path(out_file)
    out.write_bytes(buffer.getvalue())
    return out
