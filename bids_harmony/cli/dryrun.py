"""The plan printed by ``--dry-run``: each scan with its processing, and what is skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bids_harmony import __version__
from bids_harmony.bids.dataset import Inventory, Scan
from bids_harmony.config import RunConfig
from bids_harmony.errors import MissingProgramError
from bids_harmony.files import pointer

if TYPE_CHECKING:
    from bids_harmony.run.base import Run

#: Start of the notes of a scan that needs no processing (recipes parse this).
COMPLETED = "completed, nothing to do"
#: Title of the scan table, the only one whose rows are not indented (recipes parse this).
SCANS = "Scans:"


def render(inventory: Inventory, config: RunConfig) -> str:
    """Return the plan of a run as text; nothing is computed or written.

    Parameters
    ----------
    inventory : Inventory
        Result of :func:`bids_harmony.bids.dataset.find_scans`.
    config : RunConfig
        Options of the run.

    Returns
    -------
    str
        The plan: settings, one line per scan, skipped files, warnings, and totals at the end.

    Raises
    ------
    BundleError, MissingProgramError, UsageError
        If the bundle, the plugin or an option cannot be used, as in the run itself.
    """
    states, plan, calibration = {}, [], []
    if config.level == "participant":
        from bids_harmony.run.base import Run
        from bids_harmony.run.calibrate import site_notes
        from bids_harmony.run.resume import survey

        run = Run(config)
        states, plan = survey(run, inventory.scans), _plan(run)
        calibration = [[note] for notes in site_notes(run, inventory.scans) for note in notes]
    rows = [_row(scan, config, states.get(scan.key)) for scan in inventory.scans]
    parts: dict[str, list[list[str]]] = {
        f"bids_harmony {__version__}, dry run of the {config.level} level: nothing is computed or "
        "written.": [["dataset", str(config.bids_dir)], ["output", str(config.output_dir)]],
        "Processing:": plan,
        SCANS: [["scan", "site", "age", "sex", "brain mask", "notes"], *rows],
        "Skipped:": [[skipped.what, skipped.why] for skipped in inventory.skipped],
        "Calibration:": calibration,
        "Warnings:": [[note] for note in inventory.warnings],
    }
    tables = [
        "\n".join([title, *_table(cells, "" if title == SCANS else "  ")])
        for title, cells in parts.items()
        if cells
    ]
    n_completed = sum(row[-1].startswith(COMPLETED) for row in rows)
    return "\n\n".join([*tables, _summary(inventory, n_completed)])


def _plan(run: Run) -> list[list[str]]:
    """Return the settings of the run, with ``auto`` resolved by the bundle."""
    config, bundle = run.config, run.bundle
    predictions = "none (--bundle none: preprocessing and quality control only)"
    if bundle is not None:
        targets = ", ".join(sorted(bundle.info["targets"]))
        predictions = f"{targets} by bundle '{bundle.name}' {bundle.version}, device {run.device}"
    detecting = " (auto), unless the scan is already skull-stripped"
    template = f"{config.template or run.contract.template} at {run.contract.resolution} mm"
    plan = [
        ["brain mask", run.skull_strip + detecting * (config.skull_strip == "auto")],
        ["registration", f"{run.registration}, 12 degrees of freedom, to {template}"],
        ["predictions", predictions],
    ]
    try:
        run.check_programs()
    except MissingProgramError as error:
        plan.append(["missing", f"{error} The run would end with code {error.exit_code}."])
    return plan


def _row(scan: Scan, config: RunConfig, state: str | None) -> list[str]:
    """Return the table row of a scan; ``state`` is its entry in the survey, if any."""
    from bids_harmony.bids.outputs import report_is_new
    from bids_harmony.bids.records import load_record, scan_file
    from bids_harmony.run.resume import NOTES, NOTHING

    out, notes, mask = config.output_dir, list(scan.warnings), "to be made"
    if why := pointer(scan.path):
        notes.insert(0, why)
    elif not scan.path.exists() or scan.path.stat().st_size == 0:
        notes.insert(0, "the file is empty" if scan.path.exists() else "the file does not exist")
    if scan.mask is not None:
        mask = next(path.name for path in config.derivatives if path in scan.mask.parents)
        if why := pointer(scan.mask):
            notes.insert(0, f"brain mask: {why}")
    record = load_record(scan_file(out, scan.entities, scan.key, "qc"))
    if state is not None and record is not None:
        note = "failed before" if record.get("status") == "error" else NOTES[state]
        if state == NOTHING and not report_is_new(out, scan.entities["subject"]):
            note = "completed except for its report"
        notes.insert(0, note)
    site = scan.site + (" (sidecar)" if scan.site_source == "sidecar" else "")
    age = "n/a" if scan.age is None else f"{scan.age:g}"
    return [scan.key, site, age, scan.sex or "n/a", mask, "; ".join(notes)]


def _summary(inventory: Inventory, n_completed: int) -> str:
    """Return totals of scans, participants, sites and missing values."""
    scans = inventory.scans
    sites = Counter(scan.site for scan in scans).most_common()
    shown = ", ".join(f"{site} {n}" for site, n in sites[:10])
    more = f" and {len(sites) - 10} more" if len(sites) > 10 else ""
    missing = {
        "site": sum(scan.site == "unknown" for scan in scans),
        "age": sum(scan.age is None for scan in scans),
        "sex": sum(scan.sex is None for scan in scans),
    }
    without = "".join(f", {n} without {name}" for name, n in missing.items() if n)
    left, before = "", ""
    if n_completed:
        left, before = f": {len(scans) - n_completed}", f"{n_completed} completed before, "
    return (
        f"{inventory.size}{left} would be processed, {before}{len(inventory.skipped)} skipped.\n"
        f"Sites: {shown}{more}{without}."
    )


def _table(rows: Sequence[Sequence[str]], indent: str) -> list[str]:
    """Return the rows as lines with aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
