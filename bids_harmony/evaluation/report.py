"""Tables, figures, words and page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony import __version__
from bids_harmony.bids import counted
from bids_harmony.evaluation.columns import COLUMNS
from bids_harmony.evaluation.options import EvaluateOptions
from bids_harmony.evaluation.plots import draw_figures
from bids_harmony.evaluation.prepare import COMBAT, HARMONIZED, NONE, SPOKEN
from bids_harmony.evaluation.statistics import PRIMARY
from bids_harmony.files import write_json, write_text
from bids_harmony.qc.reference import dictionary
from bids_harmony.training.config import TrainOptions

FOLDER = "evaluation"
TABLES = (
    "experiments", "predictions", "left_out", "images", "biology", "travelling", "agreement",
)  # fmt: skip
#: Below this many persons a cell's figures are called rough.
FEW = 20
#: A difference with a p below this is spoken of as one.
LEVEL = 0.05
CELL_ON_PAGE = ["train_sites", "test_site", "n_source"]
#: Share of a site's scans within the training sites' ages below which that is said.
OVERLAP = 0.8
#: Harmonization that moves a difference between persons further than this is spoken of.
KEPT = (0.9, 1.1)


@dataclass(frozen=True)
class Findings:
    """What an evaluation found.

    Attributes
    ----------
    reference : str
        Reference site of all experiments but ``rotations``.
    tables : dict of str to pandas.DataFrame
        ``experiments`` and ``predictions``; ``left_out``, the ways and targets that could not be
        had in a unit; with ``sites``, also ``images``, ``biology``, ``travelling`` and
        ``agreement``, as far as the data have them.
    binary : dict of str to bool
        By target, whether it has two classes.
    notes : sequence of str
        What was not evaluated, and why.
    data : pandas.DataFrame
        One row per scan.
    options : TrainOptions
        How predictors were trained.
    evaluate : EvaluateOptions
        What was tried.
    simulated : bool
        Whether the scans are simulated.
    sloppy : bool
        Whether everything was cut short.
    """

    reference: str
    tables: dict[str, pd.DataFrame]
    binary: dict[str, bool]
    notes: Sequence[str]
    data: pd.DataFrame
    options: TrainOptions
    evaluate: EvaluateOptions
    simulated: bool
    sloppy: bool


def write_findings(findings: Findings, out: Path) -> Path:
    """Write tables with their dictionaries, figures, and ``evaluation.html``.

    Returns
    -------
    pathlib.Path
        The page.
    """
    from jinja2 import Environment, StrictUndefined

    folder = out / FOLDER
    for name, table in findings.tables.items():
        write_table(folder, name, table)
    for name in set(TABLES) - set(findings.tables):  # an earlier evaluation's
        for ending in ("tsv", "json"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    found, unknown = speak(findings)
    figures = draw_figures(findings, folder / "figures")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"shown": shown_number, "p_value": shown_p}
    template = files("bids_harmony.data").joinpath("evaluation.html").read_text("utf-8")
    page = out / "evaluation.html"
    html = environment.from_string(template).render(
        f=findings,
        version=__version__,
        spoken=SPOKEN,
        found=found,
        unknown=unknown,
        figures=figures,
        tables=page_tables(findings),
        columns=COLUMNS,
        gains=" or ".join(sorted({PRIMARY[binary] for binary in findings.binary.values()})),
    )
    write_text(page, html)
    return page


def write_table(folder: Path, name: str, table: pd.DataFrame) -> None:
    """Write a table and the dictionary of its columns."""
    shown = table.round(5)
    if "n_source" in shown:
        # Whole numbers, which pandas reads as fractions where some rows have none.
        shown["n_source"] = shown["n_source"].astype("Int64")
    write_text(folder / f"{name}.tsv", shown.to_csv(sep="\t", index=False, na_rep="n/a"))
    write_json(folder / f"{name}.json", describe(table))


def describe(table: pd.DataFrame) -> dict[str, Any]:
    """Describe a table's columns; ends of intervals and spreads by what they belong to."""
    described = {}
    for column in map(str, table.columns):
        for ending, text in (
            ("_low", "Lower end of the 95 % interval of {}"),
            ("_high", "Upper end of the 95 % interval of {}"),
            ("_seed_sd", "Standard deviation of {} over repetitions"),
        ):
            if column.endswith(ending) and column not in COLUMNS:
                described[column] = {"Description": text.format(column.removesuffix(ending))}
        known = dictionary().get(column, {}).get("Description")
        said = COLUMNS.get(column) or (f"Median over scans. {known}" if known else column)
        described.setdefault(column, {"Description": said})
    return described


def shown_number(value: Any) -> str:
    """Write a number for a reader."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
    return str(value)


def shown_p(value: float) -> str:
    """Write a p value for a reader."""
    return "–" if np.isnan(value) else "< 0.002" if value < 0.002 else f"{value:.3f}"


def page_tables(findings: Findings) -> list[dict[str, Any]]:
    """Lay the experiments out as tables of a page: one per experiment and target."""
    table = findings.tables["experiments"]
    names = {False: ("mae", "bias", "offset", "scatter", "r"), True: ("auc", "balanced_accuracy")}
    shown = []
    for (experiment, target), part in table.groupby(["experiment", "target"], sort=False):
        rows = []
        for _, cell in part.groupby(CELL_ON_PAGE, dropna=False, sort=False):
            ours = next(iter(cell[cell["way"] == HARMONIZED].to_dict("records")), {})
            for row in cell.to_dict("records"):
                way = row["way"]
                row["p"] = ours.get(f"p_over_{way}", np.nan)
                row |= {f"gain{end}": ours.get(f"gain_over_{way}{end}", np.nan)
                        for end in ("", "_low", "_high")}  # fmt: skip
                rows.append(row)
        figures = names[findings.binary[str(target)]]
        shown.append(
            {"experiment": experiment, "target": target, "figures": figures, "rows": rows}
        )
    return shown


def speak(findings: Findings) -> tuple[list[str], list[str]]:
    """Say what was found, and what the data cannot say.

    Returns
    -------
    found, unknown : list of str
        Sentences.
    """
    table = findings.tables["experiments"]
    at_sites = table[(table["experiment"] == "sites") & (table["test_site"] != findings.reference)]
    found = [
        _site_sentence(list(part.to_dict("records")), binary)
        for target, binary in findings.binary.items()
        for _, part in at_sites[at_sites["target"] == target].groupby("test_site", sort=False)
    ]
    found += _other_experiments(findings)
    found += _anatomy_sentences(findings)
    found += _image_sentences(findings)
    return found, _limits(findings)


def _site_sentence(rows: Sequence[Mapping[Any, Any]], binary: bool) -> str:
    """One site's figure by way, and whether harmonization gained on each."""
    name = PRIMARY[binary]
    values = ", ".join(
        f"{SPOKEN[row['way']]} {row[name]:.2f}"
        + (f" ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"
           if np.isfinite(row[f"{name}_low"]) else "")
        for row in rows
    )  # fmt: skip
    what = "area under the curve" if binary else "mean absolute error"
    ours = next((row for row in rows if row["way"] == HARMONIZED), {})
    verdicts = []
    for way in (row["way"] for row in rows if row["way"] != HARMONIZED):
        gain, p = (ours.get(f"{name}_over_{way}", np.nan) for name in ("gain", "p"))
        if np.isnan(gain):
            continue
        word = f"{'better' if gain > 0 else 'worse'} by {abs(gain):.2f} than"
        verdicts.append(
            f"{word if _clear(ours, way) else 'not clearly other than'} {SPOKEN[way]} "
            f"(p {shown_p(p)})"
        )
    # A way that could not be had in all folds has fewer persons.
    least, most = (f(row["n_persons"] for row in rows) for f in (min, max))
    people = counted(most, "person") if least == most else f"{least} to {most} persons"
    text = f"{rows[0]['target']} at {rows[0]['test_site']} ({people}), {what}: {values}."
    return f"{text} Harmonized scans are {', '.join(verdicts)}." if verdicts else text


def _clear(ours: Mapping[Any, Any], way: str) -> int:
    """Whether harmonized scans are clearly better (1) or worse (-1) than another way; or 0."""
    gain, low, high = (ours.get(f"gain_over_{way}{end}", np.nan) for end in ("", "_low", "_high"))
    # With few persons the interval may leave out zero where the test finds nothing.
    if not ((low > 0 or high < 0) and ours.get(f"p_over_{way}", np.nan) < LEVEL):
        return 0
    return 1 if gain > 0 else -1


def _other_experiments(findings: Findings) -> list[str]:
    """Count, for each experiment but ``sites``, where harmonization clearly gains or loses."""
    table = findings.tables["experiments"]
    others = table[table["experiment"] != "sites"]
    found = []
    for (experiment, target), part in others.groupby(["experiment", "target"], sort=False):
        ours = part[part["way"] == HARMONIZED].to_dict("records")
        counts = []
        for way in part.loc[part["way"] != HARMONIZED, "way"].unique():
            clear = [_clear(row, way) for row in ours]
            counts.append(f"{SPOKEN[way]} in {clear.count(1)} ({clear.count(-1)})")
        found.append(
            f"{experiment}, {target}: of {len(ours)} comparisons below, harmonized scans are "
            f"clearly better (worse) than {', '.join(counts)}."
        )
    return found


def _anatomy_sentences(findings: Findings) -> list[str]:
    """Say whether differences between persons were kept."""
    table = findings.tables.get("biology")
    if table is None:
        return []
    ours = table[(table["way"] == HARMONIZED) & table["ratio"].notna()]
    moved = ours[(ours["ratio"] < KEPT[0]) | (ours["ratio"] > KEPT[1])]
    if ours.empty:
        return []
    if moved.empty:
        return [
            f"Every difference between persons that could be measured ({len(ours)}: age slopes "
            "and class differences of tissue shares and ventricles) is kept within "
            f"{KEPT[0]:g} to {KEPT[1]:g} times its size."
        ]
    return [
        f"{row['effect']} of {row['measure']} at {row['site']} becomes {row['ratio']:.2f} times "
        f"its size ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})."
        for row in moved.to_dict("records")
    ]


def _image_sentences(findings: Findings) -> list[str]:
    """Say how near the images come to the reference's."""
    images, pairs = (
        table[table["way"] == HARMONIZED].to_dict("records") if table is not None else []
        for table in (findings.tables.get("images"), findings.tables.get("travelling"))
    )
    near = [
        f"Scans of {row['site']} keep {100 * row['distance_left']:.0f} % of their tissue "
        "intensities' distance from the reference's; "
        + (
            "there are too few persons to train a classifier on them."
            if np.isnan(row["site_probe"])
            else "a classifier tells them from the reference's with a balanced accuracy of "
            f"{row['site_probe']:.2f} (0.5 is chance, p = {row['site_probe_p']:.2f})."
        )
        for row in images
    ]
    return near + [
        f"Of {row['n_persons']} persons scanned at {row['site']} and at the reference, "
        f"{100 * row['closer']:.0f} % are closer after harmonization."
        for row in pairs
    ]


def _limits(findings: Findings) -> list[str]:
    """Say what the data cannot say."""
    unknown = []
    if findings.simulated:
        unknown.append("The scans are simulated: nothing here is measured on a person.")
    if findings.sloppy:
        unknown.append("Training was cut short (--sloppy): no figure here means anything.")
    table = findings.tables["experiments"]
    unknown += [
        f"{site} has {counted(n, 'person')}: read the intervals, not the figures."
        for site, n in table.groupby("test_site", sort=False)["n_persons"].max().items()
        if n < FEW
    ]
    if "in_reference_range" in table:
        inside = table.groupby("test_site", sort=False)["in_reference_range"].min()
        unknown += [
            f"Only {100 * share:.0f} % of the scans of {site} have ages of the training sites: "
            "where ages do not overlap, its offset is a guess."
            for site, share in inside.items()
            if share < OVERLAP
        ]
    if findings.evaluate.n_seeds == 1:
        unknown.append("Everything was trained once: how much chance moves is not known.")
    unknown += findings.notes
    unknown += _left_out_sentences(findings)
    if COMBAT not in set(table["way"]):
        unknown.append(
            "ComBat could not be tried: it wants neuroCombat and three persons of a site."
        )
    if NONE not in set(table["way"]):
        unknown.append(
            "Scans without any harmonization could not be had: raw images or transforms are "
            "missing."
        )
    return unknown


def _left_out_sentences(findings: Findings) -> list[str]:
    """Count where a way or a target could not be had."""
    table = findings.tables.get("left_out")
    if table is None:
        return []
    keys = ["experiment", "way", "target", "test_site", "reason"]
    table = table.reindex(columns=[*keys, "n_scans"])
    table[keys] = table[keys].astype(object).where(table[keys].notna(), "")
    said = []
    for key, part in table.groupby(keys, sort=False):
        experiment, way, target, site, reason = (str(name) for name in key)
        what = target or f"{SPOKEN[way]} at {site}"
        said.append(
            f"{experiment}: {what} could not be had in {len(part)} of the trainings "
            f"({part['n_scans'].sum()} tests): {reason.rstrip('.')}."
        )
    return said
