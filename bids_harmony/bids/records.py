"""The record of one scan, ``<key>_desc-harmony_qc.json``: what tables and reports are made of."""

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
    reasons: Sequence[str] = (),
    flagged: Sequence[str] = (),
    guard: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
    **steps: Mapping[str, Any],
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
    reasons, flagged : sequence of str
        What :func:`bids_harmony.qc.reference.judge` found.
    guard : mapping, optional
        :func:`bids_harmony.qc.guard.guard_record` of a scan that was harmonized.
    outputs : sequence of str
        Files written for the scan, relative to the output folder.
    **steps : mapping
        :data:`PREPROCESSED`: records of the check, brain mask, registration and intensity steps,
        metrics (:func:`bids_harmony.qc.metrics.scan_metrics`, with those of
        :func:`bids_harmony.qc.guard.measure` where there is a bundle) and descriptors
        (:func:`bids_harmony.sites.code.describe`). ``mask`` and ``affine`` have ``method`` and,
        where a tool ran, ``tool``, ``version`` and, for FSL's, ``command``; ``mask`` of a scan
        that was stripped before has ``detected``. The ``notes`` of each become warnings.

    Returns
    -------
    dict
        JSON-ready: ``facts`` and ``status`` ("pass" or "warn"), ``reasons``, ``flagged`` (names
        of the metrics out of range), ``guard``, ``metrics``, ``check``, ``mask``, ``affine``,
        ``scale``, ``descriptors``, ``outputs``, ``input_sha256``, ``warnings``. What the
        guard found is among the reasons, and makes the status "warn": a map that fails says
        nothing against the scan.
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
    metrics = {name: v for name, v in record["metrics"].items() if name not in _later_metrics()}
    return {name: record[name] for name in PREPROCESSED} | {
        "metrics": metrics,
        "outputs": [path for path in record["outputs"] if path.endswith(ENDINGS)],
    }


@cache
def _later_metrics() -> set[str]:
    """Name the metrics of harmonization."""
    text = (files("bids_harmony.data") / "qc_dictionary.json").read_text(encoding="utf-8")
    return {name for name, facts in json.loads(text).items() if facts["Group"] == "Harmonization"}


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


def scan_file(out: Path, entities: Mapping[str, str], key: str, suffix: str) -> Path:
    """Path of a scan's ``desc-harmony_{qc,predictions}.json``."""
    folder = out / f"sub-{entities['subject']}"
    if "session" in entities:
        folder /= f"ses-{entities['session']}"
    return folder / "anat" / f"{key}_desc-harmony_{suffix}.json"


def load_record(path: Path) -> dict[str, Any] | None:
    """Read a per-scan JSON, or return None where there is none that can be read."""
    return read_json_or_empty(path) or None


def find_records(out: Path) -> list[Path]:
    """List the records of all scans, failed ones too, in the order of their names."""
    return sorted(path for subject in out.glob("sub-*") for path in subject_records(subject))


def subject_records(subject: Path) -> list[Path]:
    """List the records in one participant's folder of the output folder."""
    folders = ("anat", "ses-*/anat")
    return [path for folder in folders for path in subject.glob(f"{folder}/*{QC_ENDING}")]


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
        return read_json(file)[0], None
    except TextError as error:
        return {}, f"The predictions {file.name} cannot be read ({error})"


def image_digest(record: Mapping[str, Any]) -> Any:
    """Digest of a scan's voxels, or of its file where the record of a failed scan has no other."""
    file = record.get("input_sha256") or (record.get("inputs") or {}).get("T1w")
    return (record.get("check") or {}).get("voxels_sha256") or file
