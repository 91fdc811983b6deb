"""Figures of an evaluation, as SVG files and for the page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bids_harmony.evaluation.offset import fit_line
from bids_harmony.evaluation.prepare import (
    COMBAT,
    HARMONIZED,
    KNOWN_AGES,
    MAPPED,
    MATCHED,
    NONE,
    SCALED,
    SPOKEN,
    WAYS,
)
from bids_harmony.evaluation.statistics import PRIMARY
from bids_harmony.files import write_text
from bids_harmony.reports.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    YELLOW,
    scatter_figure,
    svg_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bids_harmony.evaluation.report import Findings

#: Shapes too tell apart what is drawn.
STYLE = {NONE: (GREY, "s"), SCALED: (ORANGE, "D"), MATCHED: (SKY, "^"), COMBAT: (GREEN, "v"),
         MAPPED: (YELLOW, "X"), HARMONIZED: (BLUE, "o"), KNOWN_AGES: (PURPLE, "P")}  # fmt: skip
UNITS = {"mae": "mean absolute error", "auc": "area under the curve",
         "offset": "absolute site offset"}  # fmt: skip


def draw_figures(findings: Findings, folder: Path) -> list[tuple[str, str]]:
    """Draw what there is to draw; each figure is a file and a pair of caption and SVG text."""
    table = findings.tables["experiments"]
    drawn = []
    for target, binary in findings.binary.items():
        part = table[(table["target"] == target) & (table["experiment"] == "sites")]
        if len(part):
            drawn.append((
                f"sites_{target}",
                f"{target}: {UNITS[PRIMARY[binary]]} at each site by a predictor trained at "
                f"{findings.reference} alone, with 95 % intervals over persons (the paper's "
                "Table 1 and Figure 2).",
                _panel(partial(_bars, table=part, name=PRIMARY[binary])),
            ))  # fmt: skip
        if not binary and part["test_site"].nunique() > 1:
            rows = findings.tables["predictions"]
            rows = rows[(rows["target"] == target) & (rows["experiment"] == "sites")]
            drawn.append((
                f"scatter_{target}",
                f"{target}: predicted against true values, one point per scan, tested by what "
                f"had not seen the person. Grey: {findings.reference}, where the predictor was "
                "trained, and its line, from which site offsets are measured.",
                _scatter(rows, findings.reference),
            ))  # fmt: skip
        sizes = table[(table["target"] == target) & (table["experiment"] == "size")]
        if len(sizes):
            drawn.append((
                f"size_{target}",
                f"{target}: {UNITS['auc' if binary else 'offset']} at "
                f"{sizes['test_site'].iloc[0]} by how many of its persons calibrate it; dotted: "
                "tissue normalization only.",
                _panel(partial(_sizes, table=sizes, name="auc" if binary else "offset")),
            ))  # fmt: skip
    pictures = []
    for name, caption, figure in drawn:
        text = svg_text(figure)
        write_text(folder / f"{name}.svg", text)
        pictures.append((caption, text[text.index("<svg") :]))
    return pictures


def _panel(draw: Callable[[Axes], None]) -> Figure:
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(7.2, 3.4), layout="constrained")
    draw(figure.subplots())
    return figure


def _bars(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """One mark with its interval per site and way."""
    sites = list(dict.fromkeys(table["test_site"]))
    ways = [way for way in WAYS if way in set(table["way"])]
    for k, way in enumerate(ways):
        part = table[table["way"] == way].set_index("test_site").reindex(sites)
        colour, marker = STYLE[way]
        at = np.arange(len(sites)) + 0.16 * (k - (len(ways) - 1) / 2)
        ends = np.abs(part[[f"{name}_low", f"{name}_high"]].to_numpy().T - part[name].to_numpy())
        axes.errorbar(at, part[name], ends, fmt=marker, color=colour, label=SPOKEN[way])
    counts = table.groupby("test_site")["n_persons"].max()[sites]
    labels = [f"{site}\nn = {n}" for site, n in zip(sites, counts, strict=True)]
    axes.set_xticks(range(len(sites)), labels)
    axes.set_ylabel(UNITS[name])
    if name == "auc":
        axes.axhline(0.5, color=GREY, lw=0.8)
    else:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize="small", ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)


def _scatter(rows: pd.DataFrame, reference: str) -> Figure:
    """Predicted against true, one panel per way, with the reference's line."""
    panels = {}
    for way in (way for way in WAYS if way in set(rows["way"])):
        part = rows[rows["way"] == way].rename(columns={"test_site": "site"}, errors="ignore")
        home = part[part["site"] == reference]
        line = fit_line(home["predicted"].to_numpy(), home["truth"].to_numpy())
        panels[SPOKEN[way]] = (part, line)
    return scatter_figure(panels, reference)


def _sizes(axes: Axes, table: pd.DataFrame, name: str) -> None:
    ours = table[table["way"] == HARMONIZED].sort_values("n_source")
    x = ours["n_source"].to_numpy(float)
    colour, marker = STYLE[HARMONIZED]
    axes.plot(x, ours[name].abs(), f"{marker}-", color=colour, label=SPOKEN[HARMONIZED])
    before = table.loc[table["way"] == SCALED, name].abs().mean()
    axes.axhline(before, color=STYLE[SCALED][0], ls=":", label=SPOKEN[SCALED])
    axes.set_xlabel("persons that calibrate the site")
    axes.set_ylabel(UNITS[name])
    axes.set_xticks(x)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
