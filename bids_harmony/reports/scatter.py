"""Predicted against true values, sites in colour, with the reference's line."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from bids_harmony.reports.drawing import BLUE, GREEN, GREY, PURPLE, VERMILION, YELLOW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Shapes too tell sites apart.
SITES = ((BLUE, "o"), (VERMILION, "^"), (GREEN, "s"), (PURPLE, "D"), (YELLOW, "v"))


def scatter_figure(
    panels: Mapping[str, tuple[pd.DataFrame, tuple[float, float]]], reference: str
) -> Figure:
    """Draw one panel per way of preparing the scans.

    Parameters
    ----------
    panels : mapping
        By title, predictions (columns ``site``, ``truth``, ``predicted``) and slope and intercept
        of the reference's line.
    reference : str
        Its scans are drawn small and grey.
    """
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(max(2.6 * len(panels), 5.2), 2.9), layout="constrained")
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


def svg_text(figure: Figure) -> str:
    """Write a figure as SVG text, the same for the same figure."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "bids_harmony", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
