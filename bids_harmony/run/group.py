"""The ``group`` level: tables, outliers, ratings and report of a dataset.

It reads only the records of scans and the list of scans in the dataset, and no images, so it can
be repeated quickly whenever more scans are completed or more ratings are available.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony.bids.dataset import counted, list_scans
from bids_harmony.bids.outputs import BIDSIGNORE, name_tools
from bids_harmony.bids.records import find_records
from bids_harmony.console import say
from bids_harmony.errors import EXIT_NO_INPUT, EXIT_OK, HarmonyError
from bids_harmony.files import write_json, write_text
from bids_harmony.qc.dataset import (
    STATUSES,
    Group,
    absent_scans,
    bundle_of,
    named,
    processing_notes,
    read_scans,
    scan_table,
)
from bids_harmony.qc.ratings import (
    FILE,
    Rating,
    merge_ratings,
    rating_files,
    read_ratings,
    unmatched,
    write_ratings,
)
from bids_harmony.run.calibrate import asked_bundle

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from bids_harmony.config import RunConfig
    from bids_harmony.qc.outliers import Outliers

#: Number of flagged scans listed at the end of the log.
WORST = 5
#: Columns of ``group_predictions.tsv`` before the predictions.
VIEW = ("scan", "site", "age")


def run_group(config: RunConfig) -> int:
    """Write the group tables and report.

    Parameters
    ----------
    config : RunConfig
        Options of the run. ``output_dir`` contains the records, ``bundle`` names the bundle whose
        limits apply to small sites, and ``qc_ratings`` are added to those in the output folder.

    Returns
    -------
    int
        Exit code: 0, even if scans failed, or 66 if no scan has a record.
    """
    out = config.output_dir
    paths = find_records(out)
    if not paths:
        say(f"No scan has a record in {out}: run the participant level first.")
        return EXIT_NO_INPUT
    ratings, problems = read_ratings(rating_files(config))
    if config.dry_run:
        n_ratings = counted(len(ratings), "rating")
        say(f"{counted(len(paths), 'scan')} would be read, with {n_ratings}, for {out}/group_*.")
        return EXIT_OK
    say(f"Reading the records of {counted(len(paths), 'scan')}.")
    reference, digest, line = bundle_reference(config)
    group, notes = build_group(paths, out, ratings, reference)
    if group.bundle and group.bundle.get("sha256") == digest:
        group = replace(group, line=line)
    elif group.bundle and digest:
        notes.append(
            f"Scans made with the bundle {group.bundle.get('name')} are held against the "
            f"reference of another (--bundle {config.bundle})."
        )
    absent, differences = compare_with_dataset(config, group)
    group = replace(group, notes=(*differences, *notes, *problems), absent=tuple(absent))
    for note in group.notes:
        say(f"Warning: {note}")
    write_tables(group, out)
    if config.qc_ratings:
        write_ratings(out / FILE, ratings)
    from bids_harmony.reports.group import write_group_report

    report = write_group_report(group, out)
    summarize(group)
    say(f"Report: {report}")
    return EXIT_OK


def bundle_reference(
    config: RunConfig,
) -> tuple[dict[str, Any] | None, str, tuple[float, float] | None]:
    """Return the bundle's reference statistics that scans are compared with.

    Returns
    -------
    metrics : dict or None
        Statistics of the QC metrics of the bundle's training scans; None for ``--bundle none``.
    sha256 : str
        SHA-256 of the bundle.
    line : tuple of float or None
        Slope and intercept (years) of predicted as a function of true age, fitted to held-out
        scans of the reference site. None if the bundle has no age-bias coefficients.
    """
    bundle = asked_bundle(config)
    if bundle is None:
        return None, "", None
    gap = bundle.targets.get("brain_age", {}).get("age_bias")
    line = (1 + float(gap["slope"]), float(gap["intercept"])) if gap else None
    return dict(bundle.qc_reference()["metrics"]), bundle.sha256, line


def compare_with_dataset(
    config: RunConfig, group: Group
) -> tuple[list[tuple[str, str]], list[str]]:
    """Compare the scans that have records with those in the dataset; see :func:`absent_scans`."""
    try:
        there, skipped = list_scans(config)
    except (HarmonyError, OSError) as error:
        cause = error.cause if isinstance(error, HarmonyError) else f"{error}."
        return [], [f"Which scans of the dataset have no record is not known: {cause}"]
    people = {key.split("_")[0] for key in there}
    why = {s.what.split("/")[0]: s.why for s in reversed(skipped)}
    without = [(s.what, why[s.what]) for s in skipped if "/" not in s.what]
    return absent_scans(group.scans["scan"], there, [w for w in without if w[0] not in people])


def build_group(
    paths: list[Path],
    out: Path,
    ratings: pd.DataFrame,
    reference: Mapping[str, Any] | None,
) -> tuple[Group, list[str]]:
    """Collect the data of scans, and find outliers.

    Parameters
    ----------
    paths : list of pathlib.Path
        Records, from :func:`bids_harmony.bids.records.find_records`.
    out : pathlib.Path
        Output folder.
    ratings : pandas.DataFrame
        Ratings, from :func:`bids_harmony.qc.ratings.read_ratings`.
    reference : mapping or None
        Reference statistics, from :func:`bundle_reference`.

    Returns
    -------
    group : Group
    notes : list of str
        Warnings about sites, bundles and ratings.
    """
    from bids_harmony.qc.dataset import column_dictionary
    from bids_harmony.qc.outliers import find_outliers

    rows = read_scans(paths, out)
    table, metrics, targets = scan_table(rows)
    outliers = find_outliers(table, rows, reference)
    merged = merge_ratings(ratings)
    bundle = bundle_of(rows)
    scans = table.assign(**_verdicts(table, outliers, merged))
    notes = [*processing_notes(table), *outliers.notes]
    if bundle and bundle["n_scans_other"]:
        notes.append(
            f"{bundle['n_scans_other']} of {counted(len(rows), 'scan')} come from another bundle "
            f"than {bundle.get('name')} {bundle.get('version')}: predictions differ in kind."
        )
    halfway = [row.scan for row in rows if not row.bundle and row.values["qc_status"] != "error"]
    if bundle and halfway:
        scans_there = counted(len(halfway), "scan")
        notes.append(f"{scans_there} preprocessed, but not harmonized: {named(halfway)}.")
    if unknown := unmatched(ratings, table["scan"]):
        notes.append(unknown)
    group = Group(
        scans=scans,
        metrics=metrics,
        targets=targets,
        flags=outliers.flags,
        ratings=ratings,
        dictionary=column_dictionary(scans.columns.to_list(), bundle),
        figures={row.scan: row.figures for row in rows if row.figures},
        volumes={row.scan: row.volumes for row in rows if row.volumes},
        bundle=bundle,
    )
    return group, notes


def _verdicts(
    table: pd.DataFrame, outliers: Outliers, ratings: Mapping[str, Rating]
) -> dict[str, list[Any]]:
    """Return the columns computed from flags and ratings."""
    keys = table["scan"].to_list()
    flags = [outliers.flags.get(key, ()) for key in keys]
    flagged = [i for i, found in enumerate(flags) if found]
    flagged.sort(key=lambda i: (-outliers.score[i], -len(flags[i]), keys[i]))
    ranks = {i: float(rank) for rank, i in enumerate(flagged, start=1)}
    rated = [ratings.get(key) for key in keys]
    return {
        "outlier_rank": [ranks.get(i, float("nan")) for i in range(len(keys))],
        "outlier_score": [round(float(score), 3) for score in outliers.score],
        "n_flags": [float(len(found)) for found in flags],
        "reasons": [";  ".join(flag.text for flag in found) or None for found in flags],
        "rating": [rating.verdict if rating else None for rating in rated],
        "n_raters": [float(rating.n_raters) if rating else 0.0 for rating in rated],
    }


def write_tables(group: Group, out: Path) -> None:
    """Write ``group_T1w.{tsv,json}`` and ``group_predictions.{tsv,json}``."""
    # Update .bidsignore in output folders of earlier versions.
    write_text(out / ".bidsignore", BIDSIGNORE)
    tools = group.scans.loc[group.scans["qc_status"] != "error", "tools"].dropna()
    named_there = {tool.rpartition(" ")[::2] for cell in tools for tool in cell.split("; ")}
    if named_there:
        name_tools(out, named_there)
    write_text(out / "group_T1w.tsv", as_tsv(group.scans))
    write_json(out / "group_T1w.json", group.dictionary)
    columns = [*VIEW, *(f"{target}_harmonized" for target in group.targets)]
    view = group.scans[columns]
    write_text(out / "group_predictions.tsv", as_tsv(view))
    write_json(out / "group_predictions.json", {c: group.dictionary[c] for c in columns})


def as_tsv(table: pd.DataFrame) -> str:
    """Return a table as BIDS TSV text, with ``n/a`` for missing values and no line breaks."""
    words: dict[str, Any] = {
        str(name): table[name].map(lambda v: " ".join(v.split()) or None, na_action="ignore")
        for name in table.select_dtypes(exclude="number")
    }
    return table.assign(**words).to_csv(
        sep="\t", index=False, na_rep="n/a", float_format="%.7g", lineterminator="\n",
        quoting=csv.QUOTE_NONE, quotechar="\0",  # keep quotation marks as they are
    )  # fmt: skip


def summarize(group: Group) -> None:
    """Print the number of scans by status, and the first scans to look at."""
    scans = group.scans
    statuses = Counter(scans["qc_status"])
    counts = ", ".join(f"{statuses[s]} {s}" for s in STATUSES if statuses[s])
    say(f"{counted(len(scans), 'scan')} of {counted(scans['site'].nunique(), 'site')}: {counts}.")
    say(f"{counted(len(group.flags), 'scan')} to look at" + (", first:" if group.flags else "."))
    for key in scans.sort_values("outlier_rank")["scan"].head(min(WORST, len(group.flags))):
        say(f"  {key}: {group.flags[key][0].text}")
