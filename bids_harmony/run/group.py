"""The ``group`` level: tables, outliers, ratings and report of a dataset.

It reads only the records of scans and the list of scans in the dataset, and no images, so it can
be repeated quickly whenever more scans are completed or more ratings are available.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony.bids.dataset import counted, list_scans
from bids_harmony.bids.outputs import BIDSIGNORE, name_tools
from bids_harmony.bids.records import find_records
from bids_harmony.errors import EXIT_NO_INPUT, EXIT_OK, HarmonyError
from bids_harmony.files import write_json, write_text
from bids_harmony.qc.dataset import (
    STATUSES,
    Group,
    absent_scans,
    bundle_of,
    column_dictionary,
    image_notes,
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
from bids_harmony.run.base import open_bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from bids_harmony.config import RunConfig
    from bids_harmony.qc.outliers import Outliers

LOGGER = logging.getLogger(__name__)

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
        LOGGER.info(f"No scan has a record in {out}: run the participant level first.")
        return EXIT_NO_INPUT
    ratings, problems = read_ratings(rating_files(config))
    LOGGER.info(f"Reading the records of {counted(len(paths), 'scan')}.")
    group = build_group(config, paths, ratings, problems)
    for note in group.notes:
        LOGGER.warning(note)
    write_tables(group, out)
    if config.qc_ratings:
        write_ratings(out / FILE, ratings)
    from bids_harmony.reports.group import write_group_report

    report = write_group_report(group, out)
    summarize(group)
    LOGGER.info(f"Report: {report}")
    return EXIT_OK


def build_group(
    config: RunConfig, paths: list[Path], ratings: pd.DataFrame, problems: list[str]
) -> Group:
    """Collect the data of scans, and find outliers.

    Parameters
    ----------
    config : RunConfig
        Options of the run.
    paths : list of pathlib.Path
        Records, from :func:`bids_harmony.bids.records.find_records`.
    ratings : pandas.DataFrame
        Ratings, from :func:`bids_harmony.qc.ratings.read_ratings`.
    problems : list of str
        Warnings about the ratings.

    Returns
    -------
    Group
    """
    from bids_harmony.qc.outliers import find_outliers

    asked = open_bundle(config)
    rows = read_scans(paths, config.output_dir)
    table, metrics, targets = scan_table(rows)
    reference = None if asked is None else asked.qc_reference()["metrics"]
    outliers = find_outliers(table, rows, reference)
    absent, notes = compare_with_dataset(config, table["scan"])
    notes += [*image_notes(rows), *processing_notes(table), *outliers.notes]
    bundle, line = bundle_of(rows), None
    if bundle and bundle["n_scans_other"]:
        notes.append(
            f"{bundle['n_scans_other']} of {counted(len(rows), 'scan')} come from another bundle "
            f"than {bundle.get('name')} {bundle.get('version')}: predictions are not comparable."
        )
    halfway = [row.scan for row in rows if not row.bundle and row.values["qc_status"] != "error"]
    if bundle and halfway:
        n_halfway = counted(len(halfway), "scan")
        notes.append(f"{n_halfway} preprocessed, but not harmonized: {named(halfway)}.")
    if unknown := unmatched(ratings, table["scan"]):
        notes.append(unknown)
    if bundle and asked and bundle.get("sha256") != asked.sha256:
        notes.append(
            f"Scans made with the bundle {bundle.get('name')} are compared with the reference of "
            f"another (--bundle {config.bundle})."
        )
    elif asked and (bias := asked.targets.get("brain_age", {}).get("age_bias")):
        line = (1 + float(bias["slope"]), float(bias["intercept"])) if bundle else None
    scans = table.assign(**_verdicts(table, outliers, merge_ratings(ratings)))
    return Group(
        scans=scans,
        metrics=metrics,
        targets=targets,
        flags=outliers.flags,
        ratings=ratings,
        dictionary=column_dictionary(scans.columns.to_list(), bundle),
        figures={row.scan: row.figures for row in rows if row.figures},
        volumes={row.scan: row.volumes for row in rows if row.volumes},
        bundle=bundle,
        notes=(*notes, *problems),
        absent=tuple(absent),
        line=line,
    )


def compare_with_dataset(
    config: RunConfig, keys: Iterable[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Compare the scans that have records with those in the dataset; see :func:`absent_scans`."""
    try:
        existing, skipped = list_scans(config)
    except (HarmonyError, OSError) as error:
        cause = error.cause if isinstance(error, HarmonyError) else f"{error}."
        return [], [f"Which scans of the dataset have no record is not known: {cause}"]
    people = {key.split("_")[0] for key in existing}
    why = {s.what.split("/")[0]: s.why for s in reversed(skipped)}
    without = [(s.what, why[s.what]) for s in skipped if "/" not in s.what]
    return absent_scans(keys, existing, [w for w in without if w[0] not in people])


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
    write_text(out / "group_predictions.tsv", as_tsv(group.scans[columns]))
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
    """Log the number of scans by status, and the first flagged scans."""
    scans, flags = group.scans, group.flags
    statuses = Counter(scans["qc_status"])
    counts = ", ".join(f"{statuses[s]} {s}" for s in STATUSES if statuses[s])
    n_scans, n_sites = counted(len(scans), "scan"), counted(scans["site"].nunique(), "site")
    LOGGER.info(f"{n_scans} of {n_sites}: {counts}.")
    LOGGER.info(counted(len(flags), "flagged scan") + (", first:" if flags else "."))
    for key in scans.sort_values("outlier_rank")["scan"].head(min(WORST, len(flags))):
        LOGGER.info(f"  {key}: {flags[key][0].text}")
