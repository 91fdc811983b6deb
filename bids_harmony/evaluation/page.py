"""Tables with dictionaries, figures, and the page of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bids_harmony import __version__
from bids_harmony.evaluation.methods import METHODS
from bids_harmony.evaluation.tables import PRIMARY
from bids_harmony.evaluation.unit import Study
from bids_harmony.files import write_json, write_text
from bids_harmony.qc.reference import dictionary
from bids_harmony.reports import render
from bids_harmony.reports.drawing import new_figure, scatter_figure, svg_text
from bids_harmony.sites.statistics import fit_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "evaluation"
#: Tables that are not always there; the last two are an earlier version's.
OPTIONAL = ("left_out", "images", "biology", "travelling", "agreement")
#: A difference with a p below this is spoken of as one.
LEVEL = 0.05
UNITS = {"mae": "mean absolute error", "auc": "area under the curve"}
#: Shapes too tell methods apart.
MARKERS = dict(zip(METHODS, "sD^vXoP", strict=True))

Tables = dict[str, pd.DataFrame]


def write_page(
    out: Path, study: Study, reference: str, tables: Tables, notes: Sequence[str], **flags: bool
) -> Path:
    """Write tables with their dictionaries, figures, and ``evaluation.html``.

    Parameters
    ----------
    out : pathlib.Path
        Output folder.
    study : Study
        What was evaluated.
    reference : str
        Reference site of all experiments but ``rotations``.
    tables : dict of str to pandas.DataFrame
        By name; an earlier evaluation's others are deleted.
    notes : sequence of str
        What was not evaluated, and why.
    **flags : bool
        ``simulated`` and ``sloppy``: whether the scans are simulated, and whether everything was
        cut short.

    Returns
    -------
    pathlib.Path
        The page.
    """
    for name, table in tables.items():
        write_table(out / FOLDER, name, table)
    for name in set(OPTIONAL) - set(tables):
        for ending in (".tsv", ".json"):
            (out / FOLDER / f"{name}{ending}").unlink(missing_ok=True)
    figures = {
        name: svg_text(figure) for name, figure in draw_figures(study, reference, tables).items()
    }
    for name, svg in figures.items():
        write_text(out / FOLDER / "figures" / f"{name}.svg", svg)
    page = render(
        "evaluation.html", **flags, study=study, reference=reference, notes=notes,
        version=__version__, methods=METHODS, units=UNITS, describe=describe,
        experiments=page_tables(tables["experiments"]),
        tables={name: records(table) for name, table in tables.items()},
        left_out=left_out(tables.get("left_out", pd.DataFrame())),
        figures={name: svg[svg.index("<svg") :] for name, svg in figures.items()},
    )  # fmt: skip
    write_text(out / "evaluation.html", page)
    return out / "evaluation.html"


def write_table(folder: Path, name: str, table: pd.DataFrame) -> None:
    """Write a table and the dictionary of its columns."""
    shown = table.round(5)
    if "n_source" in shown:
        # Whole numbers, which pandas reads as fractions where some rows have none.
        shown["n_source"] = shown["n_source"].astype("Int64")
    write_text(folder / f"{name}.tsv", shown.to_csv(sep="\t", index=False, na_rep="n/a"))
    write_json(folder / f"{name}.json", {c: {"Description": describe(c)} for c in map(str, table)})


def describe(column: str) -> str:
    """Describe a table's column; ends of intervals and spreads by what they belong to."""
    text = files("bids_harmony.data").joinpath("evaluation_columns.json").read_text("utf-8")
    known: dict[str, str] = json.loads(text)
    for ending in ("_low", "_high", "_seed_sd"):
        if column.endswith(ending):
            return known[ending].format(column.removesuffix(ending))
    return known.get(column) or f"Median over scans. {dictionary()[column]['Description']}"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table, with None for what is unknown."""
    known = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


def page_tables(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Lay the experiments out as tables of a page: one per experiment and target.

    Returns
    -------
    list of dict
        ``experiment``, ``target``, ``primary`` (what methods are compared by) and ``cells``, lists
        of rows of one test site, by method: with ``verdict``, 1 where harmonized scans are clearly
        better, -1 where worse, else 0. With few persons the interval may leave out zero where the
        test finds nothing.
    """
    better, worse = (table[f"gain_{end}"] * sign > 0 for end, sign in (("low", 1), ("high", -1)))
    table = table.assign(verdict=(better.astype(int) - worse) * (table["p"] < LEVEL))
    shown = []
    keys = ["train_sites", "test_site", "n_source"]
    for (experiment, target), part in table.groupby(["experiment", "target"], sort=False):
        primary = PRIMARY["n_cases" in part and bool(part["n_cases"].notna().any())]
        cells = [records(cell) for _, cell in part.groupby(keys, dropna=False, sort=False)]
        row = {"experiment": experiment, "target": target, "primary": primary, "cells": cells}
        shown.append(row)
    return shown


def left_out(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Count the trainings and tests that a method or a target could not be had in."""
    keys = ["experiment", "method", "target", "test_site", "reason"]
    rows = table.reindex(columns=[*keys, "n_scans"]).groupby(keys, dropna=False, sort=False)
    return records(rows["n_scans"].agg(trainings="size", tests="sum").reset_index())


def draw_figures(study: Study, reference: str, tables: Tables) -> dict[str, Figure]:
    """Draw what there is to draw, by the figures' names: what is shown, and the target's name."""
    drawn = {}
    for target in study.targets:
        found, predictions = (
            tables[name][tables[name]["target"] == target.name]
            for name in ("experiments", "predictions")
        )
        primary = PRIMARY[target.binary]
        sites, sizes = (found[found["experiment"] == name] for name in ("sites", "size"))
        if len(sites):
            drawn[f"sites_{target.name}"] = _points(sites, "test_site", primary)
        if not target.binary and sites["test_site"].nunique() > 1:
            rows = predictions[predictions["experiment"] == "sites"]
            drawn[f"scatter_{target.name}"] = _scatter(rows, reference)
        if len(sizes):
            sizes = sizes.astype({"n_source": int})
            drawn[f"size_{target.name}"] = _points(sizes, "n_source", primary)
    return drawn


def _points(table: pd.DataFrame, by: str, name: str) -> Figure:
    """One point with its interval per method, and site or number of persons that calibrate it."""
    figure = new_figure(0.47, 7.2)
    axes = figure.subplots()
    groups = table.groupby(by, sort=False)["n_persons"].max()
    for k, method in enumerate(METHODS):
        part = table[table["method"] == method].set_index(by).reindex(groups.index)
        ends = np.abs(part[[f"{name}_low", f"{name}_high"]].to_numpy().T - part[name].to_numpy())
        at = np.arange(len(part)) + 0.12 * (k - 3)
        axes.errorbar(at, part[name], ends, fmt=f"C{k}{MARKERS[method]}", label=METHODS[method])
    axes.set_xticks(range(len(groups)), [f"{group}\nn = {n}" for group, n in groups.items()])
    axes.set_ylabel(UNITS[name])
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize="small", ncols=3, loc="outside upper left")
    return figure


def _scatter(rows: pd.DataFrame, reference: str) -> Figure:
    """Predicted against true, one panel per method, with the reference's line."""
    panels = {}
    for method, title in METHODS.items():
        part = rows[rows["method"] == method].rename(columns={"test_site": "site"})
        home = part[part["site"] == reference]
        if len(part):
            line = fit_line(home["predicted"].to_numpy(), home["truth"].to_numpy())
            panels[title] = (part, line)
    return scatter_figure(panels, reference)
