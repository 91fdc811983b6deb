"""Records of scans, ``<key>_desc-harmony_qc.json``, the source of tables and reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bids_harmony.files import TextError, read_json, read_json_or_empty

QC_ENDING = "_desc-harmony_qc.json"
PREDICTIONS_ENDING = "_desc-harmony_predictions.json"
#: Keys of the results of preprocessing, which harmonization starts from.
PREPROCESSED = ("check", "mask", "affine", "scale", "metrics", "descriptors")
#: Keys of results; all other keys of a record are facts known before processing.
RESULTS = frozenset((*PREPROCESSED, "flagged", "guard", "outputs", "input_sha256"))
#: File name endings of the outputs of preprocessing.
ENDINGS = (
    "_desc-brain_mask.nii.gz", "_desc-preproc_T1w.nii.gz", "_mode-image_xfm.txt",
    "_desc-brainmask_T1w.png", "_desc-norm_T1w.png",
)  # fmt: skip
#: Entities of output names that names of scans do not have.
ADDED = ("space-", "res-", "desc-", "from-", "to-", "mode-")


def scan_record(
    facts: Mapping[str, Any],
    *,
    reasons: Sequence[str] = (),
    flagged: Sequence[str] = (),
    guard: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
    **steps: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the record of a successfully processed scan.

    Parameters
    ----------
    facts : mapping
        Values known before processing: ``name``, ``entities``, ``source`` (path in the dataset),
        ``site``, ``site_source``, ``age``, ``sex``, ``diagnosis``, ``scanner``, ``warnings``,
        ``processing``, ``bundle`` (``name``, ``version``, ``sha256`` or None), ``calibration`` and
        ``harmonization`` (options; None if there is no bundle or the scan is not yet harmonized),
        ``inputs`` (SHA-256 of each file the results depend on). They are copied unchanged, except
        that notes are added to ``warnings``.
    reasons, flagged : sequence of str
        Results of :func:`bids_harmony.qc.reference.judge`.
    guard : mapping, optional
        Result of :func:`bids_harmony.qc.guard.guard_record`, for a harmonized scan.
    outputs : sequence of str
        Files written for the scan, relative to the output folder.
    **steps : mapping
        Results by name, see :data:`PREPROCESSED`: the check, brain mask, registration and
        intensity steps, metrics (:func:`bids_harmony.qc.metrics.scan_metrics`, and
        :func:`bids_harmony.qc.guard.measure` if there is a bundle) and descriptors
        (:func:`bids_harmony.sites.code.describe`). ``mask`` and ``affine`` have ``method`` and, if
        a tool ran, ``tool``, ``version`` and, for FSL, ``command``; ``mask`` of a scan that was
        already skull-stripped has ``detected``. The ``notes`` of the first three are added to the
        warnings.

    Returns
    -------
    dict
        JSON-serializable record: ``facts``, ``status`` ("pass" or "warn"), ``reasons``,
        ``flagged`` (names of metrics out of range), ``guard``, ``metrics``, ``check``, ``mask``,
        ``affine``, ``scale``, ``descriptors``, ``outputs``, ``input_sha256``, ``warnings``. The
        reasons of the guard are included and set the status to "warn", not "error", since a
        failed harmonization does not make the scan unusable.
    """
    found: dict[str, Mapping[str, Any]] = {**{name: {} for name in PREPROCESSED}, **steps}
    judged = guard or {}
    notes = [str(note) for name in PREPROCESSED[:3] for note in found[name].get("notes", ())]
    reasons = [*reasons, *judged.get("reasons", ())]
    return {
        **facts,
        **{name: dict(values) for name, values in found.items()},
        "status": "warn" if reasons else "pass",
        "reasons": reasons,
        "flagged": [*flagged, *judged.get("flagged", ())],
        "guard": None if guard is None else dict(guard),
        "outputs": sorted(outputs),
        "input_sha256": (facts.get("inputs") or {}).get("T1w"),
        "warnings": [*facts.get("warnings", ()), *notes],
    }


def preprocessed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a scan's record that does not change if it is harmonized again.

    Parameters
    ----------
    record : mapping
        Record of a preprocessed scan, whether or not it was harmonized.

    Returns
    -------
    dict
        The keys in :data:`PREPROCESSED`, without metrics of harmonization, and ``outputs`` with
        the files of preprocessing only.
    """
    metrics = {name: v for name, v in record["metrics"].items() if name not in _later_metrics()}
    return {name: record[name] for name in PREPROCESSED} | {
        "metrics": metrics,
        "outputs": [path for path in record["outputs"] if path.endswith(ENDINGS)],
    }


@cache
def _later_metrics() -> set[str]:
    """Return the names of the metrics computed by harmonization."""
    text = (files("bids_harmony.data") / "qc_dictionary.json").read_text(encoding="utf-8")
    return {name for name, facts in json.loads(text).items() if facts["Group"] == "Harmonization"}


def failed_record(
    facts: Mapping[str, Any], cause: str, remedy: str = "", crash_file: str | None = None
) -> dict[str, Any]:
    """Return the record of a scan that failed.

    Parameters
    ----------
    facts : mapping
        As for :func:`scan_record`; also the result of :func:`preprocessed` if harmonization
        failed.
    cause, remedy : str
        One sentence each.
    crash_file : str, optional
        Name of the crash file in the run's log folder.

    Returns
    -------
    dict
        ``facts``, ``status`` "error", ``reasons`` (the cause) and ``error`` with ``cause``,
        ``remedy`` and ``crash_file``.
    """
    return {
        **facts,
        "status": "error",
        "reasons": [cause],
        "error": {"cause": cause, "remedy": remedy, "crash_file": crash_file},
        "warnings": list(facts.get("warnings", ())),
    }


def scan_file(out: Path, entities: Mapping[str, str], key: str, suffix: str) -> Path:
    """Return the path of a scan's ``desc-harmony_{qc,predictions}.json``."""
    folder = out / f"sub-{entities['subject']}"
    if "session" in entities:
        folder /= f"ses-{entities['session']}"
    return folder / "anat" / f"{key}_desc-harmony_{suffix}.json"


def load_record(path: Path) -> dict[str, Any] | None:
    """Read a per-scan JSON file; return None if it is missing, unreadable or empty."""
    return read_json_or_empty(path) or None


def find_records(out: Path) -> list[Path]:
    """Return the paths of the records of all scans, including failed ones, sorted."""
    return sorted(path for subject in out.glob("sub-*") for path in subject_records(subject))


def subject_records(subject: Path) -> list[Path]:
    """Return the paths of the records in one participant's output folder."""
    folders = ("anat", "ses-*/anat")
    return [path for folder in folders for path in subject.glob(f"{folder}/*{QC_ENDING}")]


def is_of(name: str, key: str) -> bool:
    """Return whether a file name has exactly a scan's entities, ignoring those of derivatives."""
    parts = name.split("_")[:-1]
    return sorted(part for part in parts if not part.startswith(ADDED)) == sorted(key.split("_"))


def listed_files(record: Mapping[str, Any], key: str) -> list[str]:
    """Return a scan's output files, including figures, as listed in its record.

    Parameters
    ----------
    record : mapping
        The scan's record. A failed scan's record lists the remaining outputs, if any.
    key : str
        Key of the scan. Listed files with other entities are left out.

    Returns
    -------
    list of str
        Paths relative to the output folder.
    """
    return [path for path in record.get("outputs") or () if is_of(path.rpartition("/")[2], key)]


def read_predictions(path: Path, record: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Read the predictions of a scan if its record lists them.

    Parameters
    ----------
    path : pathlib.Path
        Path of the record.
    record : mapping
        Content of the record.

    Returns
    -------
    predictions : dict
        Empty for a failed scan and for a scan processed without a bundle.
    problem : str or None
        Reason why expected predictions are missing.
    """
    key = path.name.removesuffix(QC_ENDING)
    file = path.with_name(key + PREDICTIONS_ENDING)
    if record.get("status") == "error":
        return {}, None
    if not any(name.endswith(f"/{file.name}") for name in listed_files(record, key)):
        problem = f"{path.name} names a bundle but lists no predictions"
        return {}, problem if record.get("bundle") else None
    try:
        return read_json(file)[0], None
    except TextError as error:
        return {}, f"The predictions {file.name} cannot be read ({error})"


def predicted_targets(predictions: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of a scan's predictions that belong to a target, by its name."""
    return {n: e for n, e in predictions.items() if isinstance(e, dict) and "raw" in e}


def prediction_values(predictions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prediction columns of tables: raw and harmonized, brain age's interval and gap.

    Without a harmonized prediction, the gap is that of the raw one, and there is no interval.
    """
    values = {
        f"{target}_{kind}": entry.get(kind)
        for target, entry in predicted_targets(predictions).items()
        for kind in ("raw", "harmonized")
    }
    age = predictions.get("brain_age") or {}
    used = "raw" if age.get("harmonized") is None else "harmonized"
    low, high = (used == "harmonized" and age.get("interval_90")) or (None, None)
    return values | {
        "brain_age_harmonized_low": low,
        "brain_age_harmonized_high": high,
        "brain_age_gap": age.get(f"gap_{used}"),
        "brain_age_gap_corrected": age.get(f"gap_corrected_{used}"),
    }


def image_digest(record: Mapping[str, Any]) -> Any:
    """Return the SHA-256 of a scan's voxels, or of its file if the voxels were not read."""
    file = record.get("input_sha256") or (record.get("inputs") or {}).get("T1w")
    return (record.get("check") or {}).get("voxels_sha256") or file
