"""Write the participant report: one self-contained HTML file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from bids_harmony.bids.records import (
    QC_ENDING,
    failed_record,
    listed_files,
    load_record,
    predicted_targets,
    read_predictions,
    subject_records,
)
from bids_harmony.files import write_text
from bids_harmony.qc.guard import MEASURES, spoken
from bids_harmony.qc.reference import dictionary, readable
from bids_harmony.reports import render, target_title
from bids_harmony.reports.figures import FIGURES, data_uri
from bids_harmony.sites.code import spoken as spoken_changes

#: Path of a figure among a scan's outputs; the group is its ``desc-`` label.
PICTURE = re.compile(r"/figures/.*_desc-(\w+)_T1w\.png$")


def write_participant_report(out_dir: str | Path, subject: str) -> Path:
    """Write ``sub-<subject>.html`` from the outputs of the participant's scans.

    The report is built from each scan's record, ``<key>_desc-harmony_qc.json``, and the
    predictions and figures listed there, so it can be written again at any time. Other files from
    earlier runs are ignored. Figures are embedded; the page loads nothing from the internet and
    needs no JavaScript.

    Parameters
    ----------
    out_dir : path-like
        Root of the derivatives.
    subject : str
        Participant label without ``sub-``.

    Returns
    -------
    pathlib.Path
        Path of the report, which is written atomically. Equal outputs give equal bytes.
    """
    out = Path(out_dir)
    scans = []
    for path in sorted(subject_records(out / f"sub-{subject}"), key=_natural):
        key = path.name.removesuffix(QC_ENDING)
        record = load_record(path) or failed_record(
            {}, f"The record {path.name} cannot be read.", "Delete it and run the command again."
        )
        predictions, problem = read_predictions(path, record)
        scan = scan_view(key, record, predictions)
        scan["warnings"] += [f"{problem}."] if problem else []
        scan["pictures"] = {
            match[1]: data_uri((out / file).read_bytes())
            for file in listed_files(record, key)
            if (match := PICTURE.search(file)) and (out / file).is_file()
        }
        scans.append(scan)
    target = out / f"sub-{subject}.html"
    write_text(target, participant_page(subject, scans))
    return target


def scan_view(
    key: str, record: Mapping[str, Any], predictions: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the template variables of one scan.

    Parameters
    ----------
    key : str
        Key of the scan: its file name up to the suffix, such as ``sub-01_ses-a``.
    record : mapping
        Record of the scan (:mod:`bids_harmony.bids.records`).
    predictions : mapping
        Contents of ``<key>_desc-harmony_predictions.json``; empty if there is none.

    Returns
    -------
    dict
        ``name``, ``status`` (``pass``, ``warn`` or ``error``), ``record``, ``warnings``,
        ``predictions``, ``targets``, ``used`` (``raw`` or ``harmonized``, the prediction to
        report) and ``pictures`` (empty).
    """
    status, age = record.get("status"), predictions.get("brain_age") or {}
    return {
        "name": key,
        "status": status if status in ("pass", "warn") else "error",
        "record": record,
        "warnings": list(record.get("warnings") or ()),
        "predictions": predictions,
        "targets": predicted_targets(predictions),
        "used": "raw" if age and age.get("harmonized") is None else "harmonized",
        "pictures": {},
    }


def participant_page(subject: str, scans: Sequence[Mapping[str, Any]]) -> str:
    """Render the report of a participant's scans, each from :func:`scan_view`."""
    methods, references = _methods([s["record"] for s in scans if s["status"] != "error"])
    return render(
        "participant.html",
        subject=subject,
        scans=scans,
        counts=Counter(scan["status"] for scan in scans),
        methods=methods,
        references=references,
        figures=FIGURES,
        measures=MEASURES,
        dictionary=dictionary(),
        readable=readable,
        spoken=spoken,
        target_title=target_title,
        spoken_changes=spoken_changes,
    )


def bibliography() -> dict[str, dict[str, str]]:
    """Read ``boilerplate.bib``; return fields by key, with the whole entry as ``bibtex``."""
    text = (files("bids_harmony.data") / "boilerplate.bib").read_text(encoding="utf-8")
    entries = {}
    for entry in text.strip().split("\n\n"):
        key = entry[entry.index("{") + 1 : entry.index(",")]
        fields = re.findall(r"^\s+(\w+) = \{(.*)\},?$", entry, flags=re.MULTILINE)
        entries[key] = {"key": key, "bibtex": entry, **dict(fields)}
    return entries


def _methods(records: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, str]]]:
    """Return the methods text and its references, numbered in order of citation."""
    if not records:
        return "", []
    text, entries = render("methods.html", records=records), bibliography()
    keys = [key for key in dict.fromkeys(re.findall(r"\[@(\w+)\]", text)) if key in entries]
    for number, key in enumerate(keys, start=1):
        text = text.replace(f"[@{key}]", f'<a href="#ref-{key}">[{number}]</a>')
    return text, [entries[key] for key in keys]


def _natural(path: Path) -> list[str | int]:
    """Return a sort key that orders numbers in labels by value."""
    key = path.name.removesuffix(QC_ENDING)
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]
