"""What the columns of the group's tables mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bids_harmony.outputs import scans_dictionary
from bids_harmony.qc.collect import SCANNER
from bids_harmony.qc.ratings import DISPUTED, FILE, VERDICTS
from bids_harmony.qc.verdict import dictionary

_UNITS = {
    "field_strength": "T",
    "repetition_time": "s",
    "echo_time": "s",
    "inversion_time": "s",
    "flip_angle": "degree",
}
_COLUMNS: dict[str, dict[str, Any]] = {
    "scan": {"Description": "Name of the scan: its file's, without the suffix"},
    "participant_id": {"Description": "Participant"},
    "session_id": {"Description": "Session"},
    "person": {
        "Description": "Person: the dataset's column person or person_id, else the "
        "participant; the unit of every interval"
    },
    "site": {"Description": "Acquisition site or scanner"},
    "age": {"Description": "Chronological age", "Units": "year"},
    "sex": {"Description": "Sex, as the dataset says"},
    "diagnosis": {"Description": "Diagnosis, as the dataset says"},
    **{
        column: {"Description": f"{field} of the sidecar"}
        | ({"Units": _UNITS[column]} if column in _UNITS else {})
        for column, field in SCANNER.items()
    },
    **{
        f"voxel_{axis}_mm": {
            "Description": f"Voxel size along the scan's {axis} axis",
            "Units": "mm",
        }
        for axis in "xyz"
    },
    "qc_status": {
        "Description": "Automatic verdict of the participant level",
        "Levels": {
            "pass": "every metric lies in the bundle's reference range",
            "warn": "something should be looked at",
            "fail": "the scan should not be used",
            "error": "the scan could not be finished",
        },
    },
    "error": {"Description": "Why the scan could not be finished"},
    "skull_strip": {
        "Description": "How the brain mask was made; precomputed: given with the data; stripped: "
        "the scan came without a skull"
    },
    "registration": {"Description": "How the scan was registered to the template"},
    "template": {
        "Description": "Template space, and the start of its file's SHA-256 if it was given"
    },
    "resolution": {"Description": "Voxel size of the template grid", "Units": "mm"},
    "normalization": {"Description": "How intensities were scaled"},
    "options": {"Description": "Options of the participant level that change its results"},
    "software_version": {"Description": "Version of bids_harmony"},
    "tools": {"Description": "Versions of the tools used"},
    "input_sha256": {"Description": "SHA-256 of the raw image's file"},
    "outlier_rank": {"Description": "Order in which to look at the flagged scans, from 1"},
    "outlier_score": {
        "Description": "How far the scan's most remarkable measure lies from what is usual at "
        "its site, where 1 is the limit and 10 the most; a failed scan has 10"
    },
    "n_flags": {"Description": "Number of reasons for looking at the scan"},
    "reasons": {"Description": "These reasons, the worst first"},
    "rating": {
        "Description": f"Verdict of the people who looked at the scan ({FILE})",
        "Levels": {
            **dict(zip(VERDICTS, ("use it", "leave it out", "cannot tell"), strict=True)),
            DISPUTED: "raters differ: nothing is decided",
        },
    },
    "n_raters": {"Description": "Number of people whose verdict that is"},
}


def column_dictionary(
    columns: Sequence[str], bundle: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe the columns of the group's tables.

    Parameters
    ----------
    columns : sequence of str
        Columns of the table.
    bundle : mapping, optional
        Of :func:`bids_harmony.qc.collect.bundle_of`.

    Returns
    -------
    dict
        By column, as BIDS describes them; what a predictor was trained on stands with its
        numbers.
    """
    trained = (bundle or {}).get("training_data", {})
    predicted = scans_dictionary(trained)
    for target, data in trained.items():
        for column in (f"{target}_raw", f"{target}_harmonized"):
            text = f"{predicted[column]['Description']}. Predictor trained on: {data}"
            predicted[column] = {**predicted[column], "Description": text}
    known = {**predicted, **dictionary(), **_COLUMNS}
    return {name: known.get(name, {"Description": f"QC metric {name}"}) for name in columns}
