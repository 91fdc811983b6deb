"""The record of one scan, ``<key>_desc-harmony_qc.json``: what tables and reports are made of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bids_harmony.qc.reference import dictionary, judge

QC_ENDING = "_desc-harmony_qc.json"
PREDICTIONS_ENDING = "_desc-harmony_predictions.json"
#: What preprocessing finds out, from which a scan is harmonized.
PREPROCESSED = ("check", "mask", "affine", "scale", "metrics", "descriptors")
#: What a record holds beside the facts, which are known before anything is computed.
RESULTS = frozenset((*PREPROCESSED, "flagged", "guard", "outputs", "input_sha256"))
#: Endings of the outputs of preprocessing.
ENDINGS = (
    "_desc-brain_mask.nii.gz", "_desc-preproc_T1w.nii.gz", "_mode-image_xfm.txt",
    "_desc-brainmask_T1w.png", "_desc-norm_T1w.png",
)  # fmt: skip
#: Parts of an output's name that its scan's does not have.
ADDED = ("space-", "res-", "desc-", "from-", "to-", "mode-")


def scan_record(
    facts: Mapping[str, Any],
    *,
    check: Mapping[str, Any],
    mask: Mapping[str, Any],
    affine: Mapping[str, Any] | None = None,
    scale: Mapping[str, Any],
    metrics: Mapping[str, float | None],
    descriptors: Mapping[str, Any] | None = None,
    reference: Mapping[str, Any] | None = None,
    guard: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
) -> dict[str, Any]:
    """Put together what is known of a scan that went its whole way.

    Parameters
    ----------
    facts : mapping
        What was known before anything was computed: ``name``, ``entities``, ``source`` (path in
        the dataset), ``site``, ``site_source``, ``age``, ``sex``, ``diagnosis``, ``scanner``,
        ``warnings``, ``processing``, ``bundle`` (``name``, ``version``, ``sha256`` or None),
        ``calibration`` and ``harmonization`` (options; None where there is no bundle, or the scan
        is not yet harmonized), ``inputs`` (SHA-256 of each file that the results depend on).
        They stand in the record unchanged.
    check, mask, affine, scale : mapping
        Records of the check, brain mask, registration and intensity steps. ``mask`` and
        ``affine`` have ``method`` and, where a tool ran, ``tool``, ``version`` and, for FSL's,
        ``command``; ``mask`` of a scan that was stripped before has ``detected``. The ``notes``
        of each become warnings.
    metrics : mapping
        Values of :func:`bids_harmony.qc.metrics.scan_metrics`, with those of
        :func:`bids_harmony.qc.guard.measure` where there is a bundle.
    descriptors : mapping, optional
        Of :func:`bids_harmony.sites.code.describe`.
    reference : mapping, optional
        The bundle's ``qc_reference.json``.
    guard : mapping, optional
        :func:`bids_harmony.qc.guard.guard_record` of a scan that was harmonized.
    outputs : sequence of str
        Files written for the scan, relative to the output folder.

    Returns
    -------
    dict
        JSON-ready: ``facts`` and ``status`` ("pass" or "warn"), ``reasons``, ``flagged`` (names
        of the metrics out of range), ``guard``, ``metrics``, ``check``, ``mask``, ``affine``,
        ``scale``, ``descriptors``, ``outputs``, ``input_sha256``, ``warnings``. What the
        guard found is among the reasons, and makes the status "warn": a map that fails says
        nothing against the scan.
    """
    verdict = judge(metrics, reference)
    reasons = [*verdict.reasons, *(guard or {}).get("reasons", ())]
    steps = (check, mask, affine or {})
    return {
        **facts,
        "status": "warn" if reasons else "pass",
        "reasons": reasons,
        "flagged": [*verdict.flagged, *(guard or {}).get("flagged", ())],
        "guard": None if guard is None else dict(guard),
        "metrics": dict(metrics),
        "check": dict(check),
        "mask": dict(mask),
        "affine": dict(affine or {}),
        "scale": dict(scale),
        "descriptors": dict(descriptors or {}),
        "outputs": sorted(outputs),
        "input_sha256": (facts.get("inputs") or {}).get("T1w"),
        "warnings": [
            *facts.get("warnings", ()),
            *(str(note) for step in steps for note in step.get("notes", ())),
        ],
    }


def preprocessed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Take out of a scan's record what stays where it is harmonized again.

    Parameters
    ----------
    record : mapping
        Of a scan that was preprocessed, whatever came after.

    Returns
    -------
    dict
        :data:`PREPROCESSED`, and ``outputs``, those of preprocessing alone.
    """
    later = {name for name, facts in dictionary().items() if facts["Group"] == "Harmonization"}
    metrics = {name: value for name, value in record["metrics"].items() if name not in later}
    return {name: record[name] for name in PREPROCESSED} | {
        "metrics": metrics,
        "outputs": [path for path in record["outputs"] if path.endswith(ENDINGS)],
    }


def failed_record(
    facts: Mapping[str, Any], cause: str, remedy: str = "", crash_file: str | None = None
) -> dict[str, Any]:
    """Put together what is known of a scan that could not be finished.

    Parameters
    ----------
    facts : mapping
        As for :func:`scan_record`, with what :func:`preprocessed` takes out of the record of a
        scan whose harmonization failed.
    cause, remedy : str
        One sentence each.
    crash_file : str, optional
        Name of the crash file among the run's logs.

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
            entries = os.scandir(folder / "anat")
            found += [Path(entry) for entry in entries if entry.name.endswith(QC_ENDING)]
    return found


def _folders(parent: Path, prefix: str) -> list[Path]:
    try:
        entries = list(os.scandir(parent))
    except OSError:
        return []
    return [Path(entry) for entry in entries if entry.name.startswith(prefix) and entry.is_dir()]


def is_of(name: str, key: str) -> bool:
    """Tell whether a file's name has exactly a scan's entities, beside those of derivatives."""
    parts = name.split("_")[:-1]
    return sorted(part for part in parts if not part.startswith(ADDED)) == sorted(key.split("_"))


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
    return [path for path in record.get("outputs") or () if is_of(path.rpartition("/")[2], key)]


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
    key = path.name.removesuffix(QC_ENDING)
    file = path.with_name(key + PREDICTIONS_ENDING)
    if record.get("status") == "error":
        return {}, None
    if not any(name.endswith(f"/{file.name}") for name in listed_files(record, key)):
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


def image_digest(record: Mapping[str, Any]) -> Any:
    """Digest of a scan's voxels, or of its file where the record of a failed scan has no other."""
    file = record.get("input_sha256") or (record.get("inputs") or {}).get("T1w")
    return (record.get("check") or {}).get("voxels_sha256") or file
