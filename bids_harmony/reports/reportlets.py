"""The parts of a report that are text and tables, made from a scan's record and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

from bids_harmony.qc.guard import MEASURES, spoken
from bids_harmony.qc.verdict import dictionary, readable
from bids_harmony.reports.methods import mask_kind, registration_kind
from bids_harmony.sites.code import spoken as spoken_changes

NOT_TARGETS = frozenset({"bundle", "in_training", "calibration"})
TARGET_NAMES = {
    "brain_age": "Brain age (years)",
    "schizophrenia_probability": "Schizophrenia probability",
}
MASK_NAMES = {
    "deepbet": "deepbet",
    "multi-atlas": "multi-atlas label fusion",
    "bet": "FSL BET",
    "precomputed": "given with the data",
    "skip": "everything that is not background",
    "stripped": "the scan was stripped already; its outline was used",
}
REGISTRATION_NAMES = {"ants": "ANTs", "flirt": "FSL FLIRT"}
#: Entities in the order in which they tell scans apart for a reader, with their words.
LABELS = {
    "session": "session", "acquisition": "acquisition", "ceagent": "contrast agent",
    "reconstruction": "reconstruction", "task": "task", "run": "run", "echo": "echo",
    "part": "part", "chunk": "chunk",
}  # fmt: skip


@dataclass(frozen=True)
class ScanView:
    """One scan as a report shows it.

    Attributes
    ----------
    anchor : str
        Where on the page the scan's section starts.
    record : mapping
        The scan's record (:mod:`bids_harmony.qc.record`).
    predictions : mapping
        ``<key>_desc-harmony_predictions.json``; empty where there is none.
    """

    anchor: str
    record: Mapping[str, Any]
    predictions: Mapping[str, Any]

    @property
    def status(self) -> str:
        """``pass``, ``warn`` or ``error``."""
        status = str(self.record.get("status"))
        return status if status in ("pass", "warn") else "error"

    @property
    def label(self) -> str:
        """What tells the scan from the participant's others, in words."""
        entities = self.record.get("entities") or {}
        parts = [f"{word} {entities[name]}" for name, word in LABELS.items() if name in entities]
        return ", ".join(parts) or "T1w scan"

    @cached_property
    def brain_age(self) -> Mapping[str, Any]:
        """The brain age prediction; empty where there is none."""
        return self.predictions.get("brain_age") or {}

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Rows of the table that says what was done on what."""
        record = self.record
        rows = [
            ("Scan", record.get("source") or record.get("name")),
            ("Site", _with(record.get("site"), record.get("site_source"), "from ")),
            ("Participant", _person(record)),
            ("Scanner", _scanner(record.get("scanner") or {})),
            ("Image", _image(record.get("check") or {})),
        ]
        if self.status != "error":
            volume = (record.get("metrics") or {}).get("brain_volume_ml")
            mask = MASK_NAMES.get(mask_kind(record), mask_kind(record))
            rows += [
                ("Brain mask", f"{mask}; {volume:.0f} mL" if volume is not None else mask),
                ("Registration", _registration(record)),
            ]
        rows.append(("Model bundle", _bundle(record.get("bundle"))))
        rows.append(("Harmonization", _calibration(record.get("calibration"))))
        return [(name, str(value)) for name, value in rows if value]

    @property
    def targets(self) -> list[dict[str, Any]]:
        """Rows of the table of predictions, by target."""
        targets = []
        for name, values in self.predictions.items():
            if name in NOT_TARGETS or not isinstance(values, Mapping) or "raw" not in values:
                continue
            simulated = "simulated" in str(values.get("training_data", "")).lower()
            caution = "trained on simulated labels; not a diagnosis" if simulated else ""
            if name.endswith("_probability") and not simulated:
                caution = "not a diagnosis"
            targets.append(
                {
                    "rows": _target_rows(name, values),
                    "caution": caution,
                    "training_data": values.get("training_data", ""),
                }
            )
        return targets

    @property
    def prediction_notes(self) -> list[str]:
        """What a reader should know before using the numbers."""
        notes = []
        if self.brain_age.get("interval_90"):
            notes.append(
                "In brackets: empirical 90 % intervals. They come from scans of the reference "
                "site that the predictor had not seen, and may be too narrow for other scanners. "
                "The gap is the predicted minus the chronological age, not corrected for age bias."
            )
        site = (self.predictions.get("in_training") or {}).get("site")
        if site is False:
            notes.append(
                f"The site {self.record.get('site')} was not among those the bundle was trained "
                "on."
            )
        if self.brain_age.get("age_in_training_range") is False:
            notes.append(
                f"The age {years(self.record.get('age'))} lies outside the ages the predictor was "
                "trained on."
            )
        return notes

    @property
    def guard(self) -> dict[str, Any] | None:
        """Verdict of the anatomy guard and the rows of its table; None where there is none."""
        record = self.record.get("guard") or {}
        if not record.get("status"):
            return None
        values = self.record.get("metrics") or {}
        rows = [
            {
                "name": dictionary()[name]["LongName"],
                "value": "n/a" if (value := values.get(name)) is None else spoken(name, value),
                "limit": limit,
                "flagged": name in record["flagged"],
            }
            for name in MEASURES
            if (limit := record["limits"].get(name)) is not None
        ]
        return {**record, "rows": rows}

    @property
    def used(self) -> str:
        """Which of the scan's predictions are the headline: ``raw`` or ``harmonized``."""
        return "raw" if self.set_aside else "harmonized"

    @property
    def set_aside(self) -> bool:
        """Whether predictions were made from the raw scan alone."""
        return bool(self.brain_age) and self.brain_age.get("harmonized") is None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of the table of metrics."""
        values = self.record.get("metrics") or {}
        flagged = set(self.record.get("flagged") or ())
        return [
            {
                **facts,
                "name": name,
                "flagged": name in flagged,
                "value": "n/a" if values[name] is None else readable(values[name]),
            }
            for name, facts in dictionary().items()
            if name in values
        ]


def render(macro: str, *args: Any) -> str:
    """Fill in one macro of ``report-reportlets.html``; every value is escaped."""
    import jinja2

    source = files("bids_harmony.data") / "report-reportlets.html"
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(years=years, interval=interval, signed=signed, decimal=decimal)
    module = environment.from_string(source.read_text(encoding="utf-8")).module
    return str(getattr(module, macro)(*args)).strip()


def headline(scans: Sequence[ScanView]) -> str:
    """Count a participant's scans by status.

    >>> headline([ScanView("a", {"status": "pass"}, {}), ScanView("b", {"status": "error"}, {})])
    '2 T1-weighted scans: 1 without remarks, 1 failed.'
    """
    words = {"pass": "without remarks", "warn": "to look at", "error": "failed"}
    counts = [(sum(scan.status == s for scan in scans), word) for s, word in words.items()]
    parts = ", ".join(f"{n} {word}" for n, word in counts if n)
    plural = "" if len(scans) == 1 else "s"
    return f"{len(scans)} T1-weighted scan{plural}{': ' + parts if parts else ''}."


def years(value: Any) -> str:
    """Write an age with at most one decimal, ``n/a`` for None."""
    return f"{round(float(value), 1):g}" if _is_number(value) else "n/a"


def signed(value: Any) -> str:
    """Write a difference with its sign."""
    return f"{float(value):+.1f}" if _is_number(value) else "n/a"


def decimal(value: Any, digits: int = 1) -> str:
    """Write a number with a fixed number of decimals."""
    return f"{float(value):.{digits}f}" if _is_number(value) else "n/a"


def interval(value: Any) -> str:
    """Write an interval, nothing for None."""
    return f"{decimal(value[0])} to {decimal(value[1])}" if value else "n/a"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _target_rows(name: str, values: Mapping[str, Any]) -> list[dict[str, str]]:
    title = TARGET_NAMES.get(name, name.replace("_", " "))
    if name.endswith("_probability"):
        if of := values.get("probability_of"):
            title = f"Probability of {of}"
        cells = {k: decimal(values.get(k), 2) for k in ("raw", "harmonized")}
        return [{"name": title, **cells}]
    rows = [
        {
            "name": title,
            "raw": decimal(values.get("raw"), 1) + _brackets(values.get("interval_90_raw")),
            "harmonized": decimal(values.get("harmonized"), 1)
            + _brackets(None if values.get("harmonized") is None else values.get("interval_90")),
        }
    ]
    if values.get("gap_raw") is not None:
        rows.append(
            {
                "name": "Gap (years)",
                "raw": signed(values.get("gap_raw")),
                "harmonized": signed(values.get("gap_harmonized")),
            }
        )
    if values.get("gap_corrected_raw") is not None:
        rows.append(
            {
                "name": "Gap without the bias of age (years)",
                "raw": signed(values.get("gap_corrected_raw")),
                "harmonized": signed(values.get("gap_corrected_harmonized")),
            }
        )
    return rows


def _brackets(value: Any) -> str:
    return f" [{interval(value)}]" if value else ""


def _with(value: Any, extra: Any, word: str) -> str:
    if not value:
        return ""
    return f"{value} ({word}{extra})" if extra and extra != "none" else str(value)


def _person(record: Mapping[str, Any]) -> str:
    sex = {"M": "male", "F": "female"}.get(str(record.get("sex")), record.get("sex"))
    parts = [
        f"{years(record['age'])} years" if record.get("age") is not None else "age unknown",
        sex,
        f"diagnosis: {record['diagnosis']}" if record.get("diagnosis") else None,
    ]
    return ", ".join(str(part) for part in parts if part)


def _scanner(metadata: Mapping[str, Any]) -> str:
    field = metadata.get("MagneticFieldStrength")
    parts = [
        metadata.get("Manufacturer"),
        metadata.get("ManufacturersModelName"),
        f"{field} T" if field else None,
    ]
    return " ".join(str(part) for part in parts if part)


def _image(check: Mapping[str, Any]) -> str:
    if not check:
        return ""
    shape = " × ".join(str(n) for n in check.get("shape", ()))
    size = " × ".join(f"{z:.3g}" for z in check.get("voxel_size_mm", ()))
    return f"{shape} voxels of {size} mm, stored as {check.get('orientation', '?')}"


def _registration(record: Mapping[str, Any]) -> str:
    processing = record.get("processing") or {}
    resolution = (processing.get("contract") or {}).get("resolution")
    kind = registration_kind(record)
    grid = f", {resolution} mm grid" if resolution else ""
    method = REGISTRATION_NAMES.get(kind, kind)
    return f"affine, 12 degrees of freedom, {method}, to {processing.get('template')}{grid}"


def _bundle(bundle: Mapping[str, Any] | None) -> str:
    if not bundle:
        return "none: the scan was preprocessed and measured only"
    digest = str(bundle.get("sha256", ""))[:12]
    return f"{bundle.get('name')} {bundle.get('version')} (SHA-256 {digest}…)"


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    """Say what was changed, and on how many persons that rests."""
    if not calibration:
        return ""
    n = calibration.get("n_persons")
    return (
        f"{spoken_changes(calibration.get('changes') or {})}, as the site "
        f"{calibration.get('site')} is calibrated from {n} person{'' if n == 1 else 's'} "
        f"(ages {calibration.get('ages')})"
    )
