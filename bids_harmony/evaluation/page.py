"""Write the tables, data dictionaries, figures and HTML report of an evaluation."""

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
from bids_harmony.reports.figures import new_figure, scatter_figure, svg_text
from bids_harmony.sites.statistics import fit_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "evaluation"
#: Tables that not every evaluation has.
OPTIONAL = ("left_out", "images", "biology")
#: Significance level of differences between methods.
LEVEL = 0.05
UNITS = {"mae": "mean absolute error", "auc": "area under the curve"}
#: Marker shape of each method, in addition to its colour.
MARKERS = dict(zip(METHODS, "sD^vXoP", strict=True))

Tables = dict[str, pd.DataFrame]


def write_page(
    out: Path, study: Study, reference: str, tables: Tables, notes: Sequence[str], **flags: bool
) -> Path:
    """Write tables with data dictionaries, figures, and ``evaluation.html``.

    Parameters
    ----------
    out : pathlib.Path
        Output folder.
    study : Study
        Evaluated data, targets and options.
    reference : str
        Reference site of all experiments except ``rotations``.
    tables : dict of str to pandas.DataFrame
        Tables by name. Optional tables left by an earlier evaluation are deleted.
    notes : sequence of str
        Sentences about what was not evaluated, and why.
    **flags : bool
        ``simulated``: the scans are simulated; ``sloppy``: training was shortened.

    Returns
    -------
    pathlib.Path
        Path of ``evaluation.html``.
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
    """Write a table (TSV) and its data dictionary (JSON)."""
    shown = table.round(5)
    if "n_source" in shown:
        # pandas turns integers into floats if some rows are empty.
        shown["n_source"] = shown["n_source"].astype("Int64")
    write_text(folder / f"{name}.tsv", shown.to_csv(sep="\t", index=False, na_rep="n/a"))
    write_json(folder / f"{name}.json", {c: {"Description": describe(c)} for c in map(str, table)})


def describe(column: str) -> str:
    """Return the description of a column, including derived ones (``_low``, ``_seed_sd``)."""
    text = files("bids_harmony.data").joinpath("evaluation_columns.json").read_text("utf-8")
    known: dict[str, str] = json.loads(text)
    for ending in ("_low", "_high", "_seed_sd"):
        if column.endswith(ending):
            return known[ending].format(column.removesuffix(ending))
    return known.get(column) or f"Median over scans. {dictionary()[column]['Description']}"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, with None for missing values."""
    known = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


def page_tables(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Arrange the experiments as tables of the page, one per experiment and target.

    Returns
    -------
    list of dict
        ``experiment``; ``target``; ``primary``, the measure that methods are compared by; and
        ``cells``, one list per test site with one row per method. The column ``verdict`` is 1 if
        harmonized scans are significantly better than the method's, -1 if worse, else 0. Both the
        interval and the test must agree: with few persons the interval may exclude zero although
        the test is not significant.
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
    """Count the units and scans for which a method or target was not available."""
    keys = ["experiment", "method", "target", "test_site", "reason"]
    rows = table.reindex(columns=[*keys, "n_scans"]).groupby(keys, dropna=False, sort=False)
    return records(rows["n_scans"].agg(trainings="size", tests="sum").reset_index())


def draw_figures(study: Study, reference: str, tables: Tables) -> dict[str, Figure]:
    """Draw the figures that the tables allow, keyed by kind and target (``sites_brain_age``)."""
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
    """Plot one point with its interval per method and value of the column ``by``."""
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
    """Plot predicted against true values, one panel per method, with the reference's line."""
    panels = {}
    for method, title in METHODS.items():
        part = rows[rows["method"] == method].rename(columns={"test_site": "site"})
        home = part[part["site"] == reference]
        if len(part):
            line = fit_line(home["predicted"].to_numpy(), home["truth"].to_numpy())
            panels[title] = (part, line)
    return scatter_figure(panels, reference)
