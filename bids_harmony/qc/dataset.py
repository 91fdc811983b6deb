"""Group-level view of a dataset: one table of all scans, and notes on inconsistencies.

Everything is read from the records that the participant level writes for each scan, so it does not
matter which jobs wrote them, or where. No scan is excluded: notes are shown at the top of the
group report and written to its log.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from bids_harmony.bids.dataset import counted
from bids_harmony.bids.outputs import scans_dictionary
from bids_harmony.bids.records import (
    QC_ENDING,
    image_digest,
    listed_files,
    predicted_targets,
    prediction_values,
    read_predictions,
)
from bids_harmony.qc.reference import dictionary

STATUSES = ("pass", "warn", "fail", "error")
#: Scanner columns and the BIDS sidecar fields they are read from.
SCANNER = {
    "manufacturer": "Manufacturer",
    "model": "ManufacturersModelName",
    "field_strength": "MagneticFieldStrength",
    "repetition_time": "RepetitionTime",
    "echo_time": "EchoTime",
    "inversion_time": "InversionTime",
    "flip_angle": "FlipAngle",
    "sequence": "PulseSequenceType",
}
VOXELS = ("voxel_x_mm", "voxel_y_mm", "voxel_z_mm")
#: Columns before the metrics, and columns that describe the processing; all tables contain them.
FACTS = (
    "scan", "participant_id", "session_id", "person", "site", "age", "sex", "diagnosis", *SCANNER,
    *VOXELS, "qc_status", "error",
)  # fmt: skip
PROCESSING = (
    "skull_strip", "registration", "template", "resolution", "normalization", "options",
    "software_version", "tools", "bundle",
)  # fmt: skip
#: Numeric columns other than metrics and predictions.
NUMBERS = {"age", "resolution", *VOXELS, *SCANNER} - {"manufacturer", "model", "sequence"}
#: Command-line options that change a scan's outputs, listed in the column ``options``.
OPTIONS = ("on_guard_fail", "correct_age_bias", "random_seed", "sloppy")
VOLUMES = {
    "preproc": "_desc-preproc_T1w.nii.gz",
    "harmonized": "_desc-harmonized_T1w.nii.gz",
    "mask": "_desc-brain_mask.nii.gz",
}
#: Maximum number of names listed in a note.
NAMED = 10


@dataclass(frozen=True)
class Flag:
    """A reason to look at a scan.

    Attributes
    ----------
    metric : str
        Column of the table, or ``multivariate``, ``guard``, ``status``, ``predictions``,
        ``image``.
    text : str
        Explanation, such as the value, the site's range and the distance from it.
    size : float
        Distance relative to the limit, for ranking: 1 is at the limit.
    """

    metric: str
    text: str
    size: float


@dataclass(frozen=True)
class Group:
    """Scans of a dataset and their QC findings.

    Attributes
    ----------
    scans : pandas.DataFrame
        One row per scan, including failed ones, with the columns of ``group_T1w.tsv``. Numbers are
        floats (NaN where missing), texts are str or None.
    metrics : tuple of str
        Columns that are QC metrics.
    targets : tuple of str
        Prediction targets, with columns ``<target>_raw`` and ``<target>_harmonized``.
    flags : dict of str to tuple of Flag
        Flags by scan, worst first; only flagged scans are included.
    ratings : pandas.DataFrame
        All rows of the rating files: scan, rater, time, verdict, comment (str).
    dictionary : dict
        Description of each column (the JSON sidecar of the table).
    figures : dict of str to tuple of str
        Paths of the figures by scan, relative to the output folder.
    volumes : dict of str to dict of str to str
        Paths, by scan, of ``preproc``, ``harmonized`` and ``mask`` on the template grid, as far as
        they exist, relative to the output folder.
    bundle : dict or None
        ``name``, ``version``, ``sha256`` and ``reference_site`` of the bundle used for most scans;
        ``n_scans`` processed with it and ``n_scans_other`` with other bundles; ``training_data``
        by target; and ``simulated``, the targets trained on simulated labels. None if no scan was
        processed with a bundle.
    notes : tuple of str
        Remarks on the dataset as a whole.
    absent : tuple of (str, str)
        Scans and participants found only in the dataset or only among the records, and why.
    line : tuple of float or None
        Slope and intercept (years) of the regression of predicted on true age at the bundle's
        reference site.
    """

    scans: pd.DataFrame
    metrics: tuple[str, ...]
    targets: tuple[str, ...]
    flags: dict[str, tuple[Flag, ...]]
    ratings: pd.DataFrame
    dictionary: dict[str, Any]
    figures: dict[str, tuple[str, ...]]
    volumes: dict[str, dict[str, str]]
    bundle: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    absent: tuple[tuple[str, str], ...] = ()
    line: tuple[float, float] | None = None


@dataclass(frozen=True)
class ScanRow:
    """Contents of one scan's JSON files.

    Attributes
    ----------
    values : dict
        Values by column of the table.
    metrics : tuple of str
        Columns that are QC metrics.
    targets : dict of str to str
        Prediction targets and the training data of their predictors.
    reasons, guard_reasons : tuple of str
        QC warnings of the participant level, and those of the anatomy guard.
    figures, volumes
        Figures and volumes of this scan, as in :class:`Group`.
    bundle : dict
        Identity of the bundle; empty without one.
    problem : str or None
        Output of a completed scan that could not be read, if any.
    """

    values: dict[str, Any]
    metrics: tuple[str, ...] = ()
    targets: dict[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    guard_reasons: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    volumes: dict[str, str] = field(default_factory=dict)
    bundle: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def scan(self) -> str:
        """Key of the scan, such as ``sub-01_ses-a``."""
        return str(self.values["scan"])


def read_scans(paths: Iterable[Path], out: Path) -> list[ScanRow]:
    """Read the records of several scans; an unreadable record becomes a failed scan.

    Parameters
    ----------
    paths : iterable of pathlib.Path
        Records from :func:`bids_harmony.bids.records.find_records`.
    out : pathlib.Path
        Output folder.

    Returns
    -------
    list of ScanRow
        One row per path, in the same order.
    """
    return [_read_scan(path, out) for path in paths]


def _read_scan(path: Path, out: Path) -> ScanRow:
    key = path.name.removesuffix(QC_ENDING)
    entities = dict(part.split("-", 1) for part in key.split("_") if "-" in part)
    names = {
        "scan": key,
        "participant_id": f"sub-{entities.get('sub', '')}",
        "session_id": f"ses-{entities['ses']}" if "ses" in entities else None,
        "person": entities.get("sub"),
        "site": "unknown",
    }
    try:
        record = json.loads(path.read_bytes())
        if record["status"] not in STATUSES:
            raise ValueError("it is not a scan's record")
        return _row(names, path, record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        cause = f"The record {path.relative_to(out).as_posix()} cannot be read ({error})."
        return ScanRow(names | {"qc_status": "error", "error": cause})


def _row(names: Mapping[str, Any], path: Path, record: Mapping[str, Any]) -> ScanRow:
    """Build a scan's row from its record and predictions."""
    failed = record["status"] == "error"
    scanner, guard, bundle, check = (
        record.get(part) or {} for part in ("scanner", "guard", "bundle", "check")
    )
    # If harmonization failed, the record still holds preprocessing metrics; do not report them.
    metrics = {} if failed else record.get("metrics") or {}
    predictions, problem = read_predictions(path, record)
    facts = {name: record.get(name) for name in ("person", "site", "age", "sex", "diagnosis")}
    values = {
        **names,
        **{name: value for name, value in facts.items() if value is not None},
        **{column: scanner.get(name) for column, name in SCANNER.items()},
        **dict(zip(VOXELS, check.get("voxel_size_mm", ()), strict=False)),
        "qc_status": record["status"],
        "error": record["error"]["cause"] if failed else None,
        **metrics,
        "harmonization_status": guard.get("status"),
        "bundle": f"{bundle['name']} {bundle['version']}" if bundle else None,
        **_processing(record),
        **prediction_values(predictions),
    }
    outputs = listed_files(record, names["scan"])
    return ScanRow(
        values,
        metrics=tuple(metrics),
        targets={
            name: str(entry.get("training_data"))
            for name, entry in predicted_targets(predictions).items()
        },
        reasons=tuple(record.get("reasons") or ()),
        guard_reasons=tuple(guard.get("reasons") or ()),
        figures=tuple(sorted(path for path in outputs if "/figures/" in path)),
        # Images on the native grid have no space entity.
        volumes={} if failed else {
            name: path for path in outputs for name, ending in VOLUMES.items()
            if path.endswith(ending) and "_space-" in path and "_space-T1w" not in path
        },
        bundle=bundle,
        problem=problem,
    )  # fmt: skip


def _processing(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the processing columns of a scan from its record; missing values are None."""
    processing, mask, digests = (
        record.get(part) or {} for part in ("processing", "mask", "inputs")
    )
    contract, asked = processing.get("contract") or {}, processing.get("registration")
    # The checksum distinguishes templates of the same name.
    template = (processing.get("template"), (digests.get("template") or "")[:12])
    scaling = (("grey", "grey matter at"), ("shading_order", "a bias field of order"))
    scaled = [f"{words} {contract[name]}" for name, words in scaling if name in contract]
    chosen = {**(record.get("harmonization") or {}), **processing}
    options = [
        f"--{name.replace('_', '-')}" + ("" if chosen[name] is True else f" {chosen[name]}")
        for name in OPTIONS
        if chosen.get(name) not in (None, False)
    ]
    if atlases := digests.get("atlases"):
        options.append(f"--atlas-dir {atlases[:12]}")
    tools = sorted((processing.get("tools") or {}).items())
    return {
        "skull_strip": "stripped" if mask.get("detected") else mask.get("method"),
        "registration": contract.get("registration") if asked == "auto" else asked,
        "template": " ".join(filter(None, template)) or None,
        "resolution": contract.get("resolution"),
        "normalization": " and ".join(scaled) or None,
        "options": " ".join(options) or None,
        "software_version": processing.get("version"),
        "tools": "; ".join(f"{name} {version}" for name, version in tools) or None,
        "input_sha256": record.get("input_sha256") or digests.get("T1w"),
        "image": image_digest(record),
    }


def scan_table(rows: Sequence[ScanRow]) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """Combine scans into one table.

    Parameters
    ----------
    rows : sequence of ScanRow
        Rows from :func:`read_scans`.

    Returns
    -------
    table : pandas.DataFrame
        One row per scan: facts, metrics, harmonization status, predictions, processing.
    metrics : tuple of str
        Columns that are QC metrics, in the order of the dictionary, followed by unknown ones.
    targets : tuple of str
        Prediction targets, sorted.
    """
    seen = {name for row in rows for name in row.metrics}
    known = [name for name in dictionary() if name in seen]
    metrics = (*known, *sorted(seen - set(known) - set(FACTS)))
    targets = tuple(sorted({name for row in rows for name in row.targets}))
    texts = {*FACTS, *PROCESSING, "harmonization_status", "input_sha256"} - NUMBERS
    table: dict[str, Any] = {}
    for column in (*FACTS, *metrics, "harmonization_status", *prediction_columns(targets),
                   *PROCESSING, "input_sha256"):  # fmt: skip
        cells = pd.Series([row.values.get(column) for row in rows], dtype=object)
        if column in texts:
            table[column] = cells.map(str, na_action="ignore")
        else:
            table[column] = cells.map(_number).astype(float)
    return pd.DataFrame(table), metrics, targets


def _number(value: Any) -> float:
    """Return a finite number as a float, and NaN for anything else."""
    with suppress(OverflowError):
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    return math.nan


def prediction_columns(targets: Iterable[str]) -> list[str]:
    """Return the prediction columns by target, with the interval and gap of brain age."""
    columns = []
    for target in targets:
        columns += [f"{target}_raw", f"{target}_harmonized"]
        if target == "brain_age":
            columns += [f"{target}_harmonized_low", f"{target}_harmonized_high", f"{target}_gap"]
    return columns


def bundle_of(rows: Sequence[ScanRow]) -> dict[str, Any] | None:
    """Return the bundle used for most scans, or None; see :class:`Group`."""
    # Failed scans were not processed with the bundle that their record names.
    finished = [row for row in rows if row.bundle and row.values["qc_status"] != "error"]
    used = Counter(
        json.dumps(row.bundle, sort_keys=True) for row in finished or rows if row.bundle
    )
    if not used:
        return None
    (bundle, n_scans), *_ = used.most_common(1)
    trained = {name: data for row in rows for name, data in row.targets.items()}
    return {
        **json.loads(bundle),
        "n_scans": n_scans,
        "n_scans_other": used.total() - n_scans,
        "training_data": dict(sorted(trained.items())),
        "simulated": sorted(name for name in trained if "simulated" in trained[name].lower()),
    }


def column_dictionary(
    columns: Sequence[str], bundle: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe the columns of the group tables.

    Parameters
    ----------
    columns : sequence of str
        Columns of the table.
    bundle : mapping, optional
        Bundle from :func:`bundle_of`.

    Returns
    -------
    dict
        BIDS descriptions by column. Those of predictions include the predictor's training data.
    """
    trained = (bundle or {}).get("training_data", {})
    predicted = scans_dictionary(trained)
    for target, data in trained.items():
        for column in (f"{target}_raw", f"{target}_harmonized"):
            meaning = f"{predicted[column]['Description']}. Predictor trained on: {data}"
            predicted[column] = {**predicted[column], "Description": meaning}
    own = json.loads((files("bids_harmony.data") / "group_dictionary.json").read_text("utf-8"))
    known = {**predicted, **dictionary(), **own}
    return {name: known.get(name, {"Description": f"QC metric {name}"}) for name in columns}


def same_images(rows: Sequence[ScanRow]) -> list[tuple[str, ...]]:
    """Return groups of scans whose raw images have identical voxels, sorted."""
    by_image: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if isinstance(digest := row.values.get("image"), str):
            by_image[digest].append(row.scan)
    return sorted(tuple(sorted(scans)) for scans in by_image.values() if len(scans) > 1)


def image_notes(rows: Sequence[ScanRow]) -> list[str]:
    """Return a note listing the scans that share an image; empty if none do."""
    same = named((named(scans, " and ") for scans in same_images(rows)), "; ")
    what = "The same image stands under several scans, and is counted for each"
    return [f"{what}: {same}."] if same else []


def processing_notes(table: pd.DataFrame) -> list[str]:
    """Return notes on differences in processing among the completed scans, with counts.

    Parameters
    ----------
    table : pandas.DataFrame
        Table from :func:`scan_table`. Scans whose record lacks a value are not counted.

    Returns
    -------
    list of str
        One note per column that differs, and a warning; empty if all scans agree.
    """
    finished = table[table["qc_status"] != "error"]
    columns = {name: finished[name].dropna().tolist() for name in PROCESSING if name != "tools"}
    if columns["bundle"]:
        columns["bundle"] = finished["bundle"].fillna("none").tolist()
    for tool in (tool for cell in finished["tools"].dropna() for tool in cell.split("; ")):
        name, _, version = tool.rpartition(" ")
        columns.setdefault(f"tools ({name})", []).append(version)
    notes = []
    for name, values in columns.items():
        counts = Counter(f"{value:g}" if isinstance(value, float) else value for value in values)
        if len(counts) > 1:
            few_first = sorted(counts.items(), key=lambda item: (item[1], item[0]))
            said = named(f"{value} {n}" for value, n in few_first)
            notes.append(f"Scans differ in {name}: {said} of {len(values)}.")
    if notes:
        notes.append("Scans that were made differently may differ for that alone.")
    return notes


def absent_scans(
    keys: Iterable[str], there: Sequence[str], without: Iterable[tuple[str, str]]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Compare the scans that have a record with those of the dataset.

    Parameters
    ----------
    keys : iterable of str
        Scans with a record.
    there : sequence of str
        Scans of the dataset.
    without : iterable of (str, str)
        Participants of the dataset without a usable scan, and why.

    Returns
    -------
    absent : list of (str, str)
        Scans and participants found only in the dataset or only among the records, and why.
    notes : list of str
        Summaries with counts and the first names.
    """
    recorded, empty = set(keys), list(without)
    never = [key for key in there if key not in recorded]
    gone = sorted(recorded - set(there))
    people = counted(len({key.split("_")[0] for key in never}), "participant")
    absent = [
        *((key, "no record: not processed, or its record was removed") for key in never),
        *empty,
        *((key, "it has a record, but is no longer in the dataset") for key in gone),
    ]
    notes = {
        f"{counted(len(never), 'scan')} of {people} in the dataset without a record, and in no "
        "table": never,
        f"{counted(len(empty), 'participant')} of the dataset without a T1w scan that can be "
        "used": [f"{name} ({why})" for name, why in empty],
        f"{counted(len(gone), 'scan')} with a record, no longer in the dataset, but still in the "
        "tables": gone,
    }
    return absent, [f"{note}: {named(names)}." for note, names in notes.items() if names]


def named(names: Iterable[str], mark: str = ", ", n: int | None = None) -> str:
    """Join the first 10 names and count the rest of all ``n`` (by default, the number of names).

    >>> named("abcdefghijkl")
    'a, b, c, d, e, f, g, h, i, j and 2 more'
    """
    names = list(names)
    more = (len(names) if n is None else n) - len(names[:NAMED])
    return mark.join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
