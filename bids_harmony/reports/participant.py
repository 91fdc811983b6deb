"""The report of one participant: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import html
import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from bids_harmony.files import write_text
from bids_harmony.outputs import load_record
from bids_harmony.qc.record import QC_ENDING, listed_files, read_predictions, subject_records
from bids_harmony.reports.methods import methods_html
from bids_harmony.reports.reportlets import LABELS, ScanView, headline, render

#: Base64 text of all pictures of a report; with the rest, the file stays below 10 MB.
MAX_PICTURES = 8_500_000
#: Ways to shrink pictures of reports with very many scans: WebP quality and scale.
SHRINKING = ((85, 1.0), (70, 1.0), (60, 0.7), (50, 0.5), (40, 0.3))
_FIGURE = re.compile(
    r'<div class="reportlet">\s*<img class="png-reportlet" src="\./(?P<path>[^"]+)"[^>]*>\s*'
    r"</div>\s*<small>.*?</small>",
    re.DOTALL,
)


def write_participant_report(out_dir: str | Path, subject: str) -> Path:
    """Write ``sub-<subject>.html`` from the outputs of the participant's scans.

    What the report says comes from each scan's record, ``<key>_desc-harmony_qc.json``, and the
    predictions and pictures that it lists, so it can be written again at any time; what else an
    earlier run left is not shown. Pictures are inside the file, nothing is fetched from
    elsewhere, and no part needs JavaScript.

    Parameters
    ----------
    out_dir : path-like
        Root of the derivatives.
    subject : str
        Participant label without ``sub-``.

    Returns
    -------
    pathlib.Path
        The report, written beside and then renamed. Its bytes depend on the outputs alone.
    """
    # Imported late: it loads pybids, which commands that write no report need not wait for.
    from nireports.assembler.report import Report

    out_dir = Path(out_dir)
    scans = find_scan_views(out_dir, subject)
    title = f"bids_harmony: sub-{subject}"
    with tempfile.TemporaryDirectory(prefix="bids_harmony_report") as scratch:
        stage = Path(scratch)
        spec = _stage(stage, out_dir, scans, title)
        report = Report(
            stage,
            None,
            bootstrap_file=spec,
            out_filename="report.html",
            reportlets_dir=stage / "sub-page",
        )
        report.generate_report()
        page = _embed((stage / "report.html").read_text(encoding="utf-8"), stage)
    _forget_layouts()
    target = out_dir / f"sub-{subject}.html"
    write_text(target, page)
    return target


def _forget_layouts() -> None:
    """Let go of the index that nireports made of a report's parts.

    Pybids caches properties on their class, and so keeps the last 128 indexes, 1 MB each.
    """
    from bids.layout.db import ConnectionManager
    from bids.layout.layout import BIDSLayout
    from bids.layout.models import BIDSFile

    for kept in (ConnectionManager.layout_info, BIDSLayout.config, BIDSFile.relpath):
        kept.fget.cache_clear()


def find_scan_views(out_dir: Path, subject: str) -> list[ScanView]:
    """Load the records of a participant's scans, in the order of sessions and runs."""
    found = []
    for path in subject_records(out_dir / f"sub-{subject}"):
        key = path.name.removesuffix(QC_ENDING)
        record = load_record(path)
        if record is None:
            record = {
                "status": "error",
                "error": {
                    "cause": f"The record {path.name} cannot be read.",
                    "remedy": "Remove it and run the same command again.",
                },
            }
        predictions, problem = read_predictions(path, record)
        failed = record.get("status") not in ("pass", "warn")
        error = {"cause": "The scan has no result.", "remedy": "", "crash_file": None}
        record = {
            "site": None, "age": None, "reasons": [], "warnings": [], **record, "name": key,
            **({"error": error | (record.get("error") or {})} if failed else {}),
        }  # fmt: skip
        if problem:
            record["warnings"] = [*record["warnings"], f"{problem}."]
        found.append((_order(record), record, {} if failed else predictions))
    found.sort(key=lambda item: item[0])
    return [
        ScanView(f"scan-{n}", record, predictions)
        for n, (_, record, predictions) in enumerate(found, start=1)
    ]


def _order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sort by the entities a reader looks for; numbers in labels count as numbers."""
    entities = record.get("entities") or {}
    parts = [str(entities.get(name, "")) for name in LABELS] + [str(record["name"])]
    return tuple(
        [(piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in pieces]
        for pieces in (re.split(r"(\d+)", part) for part in parts)
    )


def _stage(stage: Path, out_dir: Path, scans: Sequence[ScanView], title: str) -> Path:
    """Lay out what nireports assembles, and write the bootstrap file that says in which order.

    Reportlets get names of our own (``sub-page_run-N``), so that nireports finds them whatever
    entities the scans have; it knows neither ``chunk`` nor a ``part`` beside an ``echo``.
    """
    folder = stage / "sub-page" / "figures"
    folder.mkdir(parents=True)
    parts = yaml.safe_load(
        (files("bids_harmony.data") / "reports-spec.yml").read_text(encoding="utf-8")
    )
    used = ((s.record.get("processing") or {}).get("version") for s in scans)
    version = " and ".join(dict.fromkeys(str(v) for v in used if v))

    def text(number: int, what: str, content: str) -> dict[str, Any]:
        path = folder / f"sub-page_run-{number}_desc-{what}_T1w.html"
        path.write_text(content, encoding="utf-8")
        return _reportlet(number, what)

    sections = [
        {
            "name": "summary",
            "title": "Summary",
            "reportlets": [
                text(0, "overview", render("overview", scans, headline(scans), version))
            ],
        }
    ]
    for number, scan in enumerate(scans, start=1):
        reportlets = []
        own = [p for p in listed_files(scan.record, scan.record["name"]) if "/figures/" in p]
        for part in parts:
            if "html" in part:
                if content := render(part["html"], scan):
                    reportlets.append(text(number, part["html"], content))
                continue
            what = part["figure"]
            source = next((out_dir / p for p in own if p.endswith(f"_desc-{what}_T1w.png")), None)
            if source is not None and source.is_file():
                link = folder / f"sub-page_run-{number}_desc-{what}_T1w.png"
                link.symlink_to(source.resolve())
                reportlets.append(_reportlet(number, what, part))
        sections.append(
            {"name": scan.anchor, "title": _safe(scan.label), "reportlets": reportlets}
        )
    methods = text(0, "methods", methods_html([scan.record for scan in scans]))
    sections.append({"name": "methods", "title": "Methods", "reportlets": [methods]})
    spec = {
        "title": _safe(title),
        "template_path": str(Path(str(files("bids_harmony.data") / "report.tpl")).resolve()),
        "sections": sections,
    }
    path = stage / "bootstrap.yml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False, width=10_000), encoding="utf-8")
    return path


def _reportlet(number: int, what: str, part: Mapping[str, str] | None = None) -> dict[str, Any]:
    shown = {key: part[key] for key in ("subtitle", "caption")} if part else {}
    extension = ".png" if part else ".html"
    return {
        "name": f"{f'scan-{number}' if number else 'page'}-{what}{'-figure' if part else ''}",
        "bids": {"desc": what, "run": number, "extension": extension, "suffix": "T1w"},
        **shown,
    }


def _safe(text: str) -> str:
    """Escape text for HTML and for nireports, which fills in ``{names}`` in its bootstrap file."""
    return html.escape(text).replace("{", "&#123;").replace("}", "&#125;")


def _embed(page: str, stage: Path) -> str:
    """Put every picture into the page, smaller ones if they would make it too large."""
    paths = [stage / match["path"] for match in _FIGURE.finditer(page)]
    pictures = {path: path.read_bytes() for path in paths}
    kind = "png"
    for quality, scale in SHRINKING:
        if sum(len(data) for data in pictures.values()) * 4 / 3 <= MAX_PICTURES:
            break
        pictures = {path: _webp(path, quality, scale) for path in paths}
        kind = "webp"
    subtitles = {
        part["figure"]: part["subtitle"]
        for part in yaml.safe_load(
            (files("bids_harmony.data") / "reports-spec.yml").read_text(encoding="utf-8")
        )
        if "figure" in part
    }

    def picture(match: re.Match[str]) -> str:
        from PIL import Image

        path = stage / match["path"]
        what = re.search(r"_desc-([a-z]+)_", path.name)
        alt = html.escape(subtitles[what[1]]) if what else ""
        with Image.open(path) as image:
            width, height = image.size
        data = base64.b64encode(pictures[path]).decode("ascii")
        return (
            f'<figure><img alt="{alt}" width="{width}" height="{height}" '
            f'src="data:image/{kind};base64,{data}"></figure>'
        )

    return _FIGURE.sub(picture, page)


def _webp(path: Path, quality: int, scale: float) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        size = tuple(max(1, round(n * scale)) for n in image.size)
        buffer = io.BytesIO()
        image.convert("RGB").resize((size[0], size[1])).save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()
