"""The dataset as the ``group`` level sees it: one table, with flags, ratings and pictures.

Everything comes from the records that the participant level writes beside each scan, so it
does not matter which jobs wrote them, or where.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony.qc.consistency import PROCESSING, processing_columns
from bids_harmony.qc.values import mapping, number, text, texts

if TYPE_CHECKING:
    import pandas as pd

QC_ENDING = "_desc-harmony_qc.json"
PREDICTIONS_ENDING = "_desc-harmony_predictions.json"
STATUSES = ("pass", "warn", "fail", "error")
#: Columns and the sidecar fields they show.
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
NUMBERS_OF_SCANNER = frozenset(
    {"field_strength", "repetition_time", "echo_time", "inversion_time", "flip_angle"}
)
VOLUMES = {
    "preproc": "_desc-preproc_T1w.nii.gz",
    "harmonized": "_desc-harmonized_T1w.nii.gz",
    "mask": "_desc-brain_mask.nii.gz",
}
#: Columns before and after the metrics; every table has them.
FACTS = (
    "scan", "participant_id", "session_id", "person", "site", "age", "sex", "diagnosis", *SCANNER,
    "voxel_x_mm", "voxel_y_mm", "voxel_z_mm", "qc_status", "error",
)  # fmt: skip
TEXTS = frozenset(
    {"scan", "participant_id", "session_id", "person", "site", "sex", "diagnosis", "qc_status",
     "error", "harmonization_status", "input_sha256"} | (set(SCANNER) - NUMBERS_OF_SCANNER)
    | (set(PROCESSING) - {"resolution"})
)  # fmt: skip
#: Parts of an output's name that its scan's does not have.
MADE = ("space-", "res-", "desc-", "from-", "to-", "mode-")


@dataclass(frozen=True)
class Flag:
    """One reason for looking at a scan.

    Attributes
    ----------
    metric : str
        Column of the table, or ``multivariate``, ``guard``, ``status``, ``predictions``.
    text : str
        In plain words: the value, what is usual at the site, and how far off.
    size : float
        How far beyond the limit, where 1 is at the limit; for ranking.
    """

    metric: str
    text: str
    size: float


@dataclass(frozen=True)
class Group:
    """A dataset's scans and what is remarkable about them.

    Attributes
    ----------
    scans : pandas.DataFrame
        One row per scan, failed ones too, with the columns of ``group_T1w.tsv``. Numbers are
        floats with NaN where missing, texts are str or None.
    metrics : tuple of str
        Those columns that are QC metrics.
    targets : tuple of str
        What was predicted: columns ``<target>_raw`` and ``<target>_harmonized``.
    flags : dict of str to tuple of Flag
        By scan, worst first; a scan without any is absent.
    ratings : pandas.DataFrame
        Every row of the rating files: scan, rater, time, verdict, comment (str).
    dictionary : dict
        What each column means (the JSON beside the table).
    figures : dict of str to tuple of str
        By scan, its pictures' paths relative to the output folder.
    volumes : dict of str to dict of str to str
        By scan, ``preproc``, ``harmonized`` and ``mask`` on the template grid, where they were
        written: paths relative to the output folder.
    bundle : dict or None
        ``name``, ``version``, ``sha256`` and ``reference_site`` of the bundle most scans were
        made with, ``n_scans`` made with it and ``n_scans_other`` with others, ``training_data``
        by target, and ``simulated``: the targets whose labels were. None where no scan had one.
    notes : tuple of str
        What the user should know about the dataset as a whole.
    absent : tuple of (str, str)
        Scans and participants that only the dataset or only the records know, and why.
    line : tuple of float or None
        Slope and intercept (years) of predicted on true age at the bundle's reference site.
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
    """What one scan's JSONs say.

    Attributes
    ----------
    values : dict
        By column of the table.
    metrics : tuple of str
        Those columns that are metrics.
    targets : dict of str to str
        What was predicted, and on what the predictor was trained.
    reasons, guard_reasons : tuple of str
        What the participant level remarked upon, and the part that concerns harmonization.
    figures, volumes
        As in :class:`Group`.
    bundle : dict
        The bundle's identity, empty without one.
    problem : str or None
        What of the scan could not be read although it was finished.
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
        """The scan's key."""
        return str(self.values["scan"])


def find_records(out: Path) -> list[Path]:
    """List the records of all scans, failed ones too, in the order of their names.

    Only the folders that may hold records are opened: of ten thousand participants a search of
    every subfolder takes many times as long.
    """
    return sorted(path for subject in _folders(out, "sub-") for path in subject_records(subject))


def subject_records(subject: Path) -> list[Path]:
    """List the records in one participant's folder of the output folder."""
    found = []
    for folder in (subject, *_folders(subject, "ses-")):
        with suppress(OSError):
            found += [
                Path(entry.path)
                for entry in os.scandir(folder / "anat")
                if entry.name.endswith(QC_ENDING)
            ]
    return found


def _folders(parent: Path, prefix: str) -> list[Path]:
    with suppress(OSError):
        return [
            Path(entry.path)
            for entry in os.scandir(parent)
            if entry.name.startswith(prefix) and entry.is_dir()
        ]
    return []


def read_scans(paths: Iterable[Path], out: Path) -> list[ScanRow]:
    """Read the records of some scans; one that cannot be read becomes a failed scan.

    Parameters
    ----------
    paths : iterable of pathlib.Path
        Of :func:`find_records`.
    out : pathlib.Path
        The output folder.

    Returns
    -------
    list of ScanRow
        In the same order, one for each path.
    """
    return [read_scan(path, out) for path in paths]


def read_scan(path: Path, out: Path) -> ScanRow:
    """Read one scan's record and predictions; see :func:`read_scans`."""
    key = path.name.removesuffix(QC_ENDING)
    parts = dict(part.split("-", 1) for part in key.split("_") if "-" in part)
    values: dict[str, Any] = {
        "scan": key,
        "participant_id": f"sub-{parts.get('sub', '')}",
        "session_id": f"ses-{parts['ses']}" if "ses" in parts else None,
        "site": "unknown",
    }
    where = path.relative_to(out).as_posix()
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict) or record.get("status") not in STATUSES:
            raise ValueError("it is not a scan's record")
    except (OSError, ValueError, RecursionError) as error:
        cause = f"The record {where} cannot be read ({error})."
        return ScanRow(values | {"qc_status": "error", "error": cause})

    status, scanner, check = record["status"], mapping(record, "scanner"), mapping(record, "check")
    guard, bundle = mapping(record, "guard"), mapping(record, "bundle")
    voxel = check.get("voxel_size_mm")
    sizes = voxel if isinstance(voxel, list) and len(voxel) == 3 else [None] * 3
    cause = text(mapping(record, "error").get("cause")) or "The record names no cause."
    # A scan that failed to be harmonized keeps what preprocessing found, to go on from.
    metrics = {} if status == "error" else mapping(record, "metrics")
    values |= {
        "person": text(record.get("person")) or parts.get("sub"),
        "site": text(record.get("site")) or "unknown",
        "age": number(record.get("age")),
        "sex": text(record.get("sex")),
        "diagnosis": text(record.get("diagnosis")),
        **{
            column: (number if column in NUMBERS_OF_SCANNER else text)(scanner.get(field))
            for column, field in SCANNER.items()
        },
        **{f"voxel_{axis}_mm": number(v) for axis, v in zip("xyz", sizes, strict=True)},
        "qc_status": status,
        "error": cause if status == "error" else None,
        **{str(k): number(v) for k, v in metrics.items()},
        "harmonization_status": text(guard.get("status")),
        "bundle": f"{bundle['name']} {bundle.get('version', '')}" if "name" in bundle else None,
        **processing_columns(record),
    }
    outputs = listed_files(record, key)
    predictions, problem = read_predictions(path, record)
    return ScanRow(
        values | _predicted(predictions),
        metrics=tuple(map(str, metrics)),
        targets={
            name: text(entry.get("training_data")) or ""
            for name, entry in predictions.items()
            if isinstance(entry, dict) and "training_data" in entry
        },
        reasons=tuple(texts(record, "reasons")),
        guard_reasons=tuple(texts(guard, "reasons")),
        figures=tuple(sorted(p for p in outputs if "/figures/" in p)),
        volumes=_volumes(outputs) if status != "error" else {},
        bundle=bundle,
        problem=problem,
    )


def is_of(name: str, key: str) -> bool:
    """Tell whether a file's name has exactly a scan's entities, beside those of derivatives."""
    parts = name.split("_")[:-1]
    return sorted(part for part in parts if not part.startswith(MADE)) == sorted(key.split("_"))


def listed_files(record: Mapping[str, Any], key: str) -> list[str]:
    """List a scan's files, pictures too, as its record does: what else lies there is not its own.

    Parameters
    ----------
    record : mapping
        The scan's record; that of a failed scan lists what is still to be seen, if anything.
    key : str
        The scan. A file whose name has other entities is left out, and so is that of a scan
        whose name begins alike.

    Returns
    -------
    list of str
        Paths relative to the output folder.
    """
    return [path for path in texts(record, "outputs") if is_of(path.rpartition("/")[2], key)]


def read_predictions(path: Path, record: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Read a finished scan's predictions where its record lists them.

    Parameters
    ----------
    path : pathlib.Path
        The record's file.
    record : mapping
        What it says.

    Returns
    -------
    predictions : dict
        Empty for a failed scan, and for one that was made without a bundle.
    problem : str or None
        Why there are none although there should be.
    """
    file = path.with_name(path.name.removesuffix(QC_ENDING) + PREDICTIONS_ENDING)
    if record.get("status") == "error":
        return {}, None
    files = listed_files(record, path.name.removesuffix(QC_ENDING))
    if file.name not in {name.rpartition("/")[2] for name in files}:
        problem = f"{path.name} names a bundle but lists no predictions"
        return {}, problem if record.get("bundle") else None
    try:
        values = json.loads(file.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return {}, f"The predictions {file.name} cannot be read ({why})"
    return values, None


def _predicted(predictions: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of what was predicted, for each target raw and harmonized."""
    values: dict[str, Any] = {}
    for name, entry in predictions.items():
        if isinstance(entry, dict) and "training_data" in entry:
            values |= {f"{name}_{k}": number(entry.get(k)) for k in ("raw", "harmonized")}
            # The interval of what is used: where the harmonized scan was set aside, the raw one's.
            used = "raw" if math.isnan(values[f"{name}_harmonized"]) else "harmonized"
            ends = entry.get("interval_90") if used == "harmonized" else None
            if isinstance(ends, list) and len(ends) == 2:
                low, high = map(number, ends)
                values |= {f"{name}_harmonized_low": low, f"{name}_harmonized_high": high}
            if f"gap_{used}" in entry:
                values["brain_age_gap"] = number(entry[f"gap_{used}"])
    return values


def _volumes(outputs: Iterable[str]) -> dict[str, str]:
    """Images on the template grid; those on the scan's own grid name no space."""
    found = {}
    for path in outputs:
        for name, ending in VOLUMES.items():
            if path.endswith(ending) and "_space-" in path and "_space-T1w" not in path:
                found[name] = path
    return found


def scan_table(rows: Sequence[ScanRow]) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """Put scans into one table.

    Parameters
    ----------
    rows : sequence of ScanRow
        Of :func:`read_scans`.

    Returns
    -------
    table : pandas.DataFrame
        One row per scan: facts, metrics, harmonization status, predictions, bundle.
    metrics : tuple of str
        Columns that are QC metrics, in the order of the dictionary, unknown ones after them.
    targets : tuple of str
        What was predicted.
    """
    import pandas as pd

    from bids_harmony.qc.verdict import dictionary

    seen = {name for row in rows for name in row.metrics}
    known = [name for name in dictionary() if name in seen]
    metrics = (*known, *sorted(seen - set(known) - set(FACTS)))
    targets = tuple(sorted({name for row in rows for name in row.targets}))
    columns = [*FACTS, *metrics, "harmonization_status", *prediction_columns(targets),
               *PROCESSING, "input_sha256"]  # fmt: skip
    table = pd.DataFrame(index=range(len(rows)))
    data = {}
    for column in columns:
        if column in TEXTS:
            values = [row.values.get(column) for row in rows]
            data[column] = pd.Series(values, dtype=object, index=table.index)
        else:
            numbers = [row.values.get(column, math.nan) for row in rows]
            data[column] = pd.Series(numbers, dtype=float, index=table.index)
    return pd.DataFrame(data), metrics, targets


def prediction_columns(targets: Iterable[str]) -> list[str]:
    """Columns of the predictions: raw beside harmonized, then what belongs to brain age."""
    columns = []
    for target in targets:
        columns += [f"{target}_raw", f"{target}_harmonized"]
        if target == "brain_age":
            columns += [f"{target}_harmonized_low", f"{target}_harmonized_high", f"{target}_gap"]
    return columns


def bundle_of(rows: Sequence[ScanRow]) -> dict[str, Any] | None:
    """Describe the bundle most scans were made with; see :class:`Group`."""
    with_one = [row for row in rows if row.bundle]
    # A scan that failed was made with none, though its record names the one it was to be.
    done = [row for row in with_one if row.values["qc_status"] != "error"] or with_one
    used = Counter(json.dumps(row.bundle, sort_keys=True) for row in done)
    if not used:
        return None
    text, n_scans = used.most_common(1)[0]
    trained = {name: on for row in rows for name, on in row.targets.items()}
    simulated = sorted(name for name, on in trained.items() if "simulated" in on.lower())
    return {
        **json.loads(text),
        "n_scans": n_scans,
        "n_scans_other": sum(used.values()) - n_scans,
        "training_data": dict(sorted(trained.items())),
        "simulated": simulated,
    }
