"""``--dry-run``: every scan, what would be done with it, and why any is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bids_harmony import __version__
from bids_harmony.bids.dataset import Inventory, Scan, counted
from bids_harmony.config import RunConfig
from bids_harmony.errors import MissingProgramError
from bids_harmony.files import pointer

if TYPE_CHECKING:
    from bids_harmony.run.base import Run

STRIPPING = {
    "deepbet": "deepbet",
    "multi-atlas": "multi-atlas label fusion",
    "bet": "FSL bet",
    "skip": "none: the scan's own background",
}
REGISTERING = {"ants": "antspyx", "flirt": "FSL flirt"}
#: What the notes of a scan begin with that the run would leave as it is (recipes read this).
COMPLETED = "completed, nothing to do"
#: Title of the scans, whose lines alone begin at the margin (recipes read this).
SCANS = "Scans:"


def render(inventory: Inventory, config: RunConfig) -> str:
    """Write what a run would do; nothing is computed or written.

    Parameters
    ----------
    inventory : Inventory
        What :func:`bids_harmony.bids.dataset.find_scans` found.
    config : RunConfig
        The run's options.

    Returns
    -------
    str
        The plan, one line per scan, one per thing left out, warnings, and the sums at the end,
        where they are read first.

    Raises
    ------
    BundleError, UsageError
        When the bundle or the device cannot be used: the run would fail in the same way.
    """
    run = None
    if config.level == "participant":
        from bids_harmony.run.base import prepare

        run = prepare(config)
    states = {} if run is None else run.survey(inventory.scans)
    rows = [_row(scan, config, states.get(scan.key)) for scan in inventory.scans]
    head = ["scan", "site", "age", "sex", "brain mask", "notes"]
    n_completed = sum(row[-1].startswith(COMPLETED) for row in rows)
    parts = {
        f"bids_harmony {__version__}, dry run of the {config.level} level: "
        "nothing is computed, nothing is written.": [],
        "Folders:": [["dataset", str(config.bids_dir)], ["output", str(config.output_dir)]],
        "What would be done with each scan:": _plan(config, run) if run else [],
        SCANS: [head, *rows],
        "Left out:": [[skipped.what, skipped.why] for skipped in inventory.skipped],
        "Calibration:": [[note] for note in run.site_notes(inventory.scans)] if run else [],
        "Warnings:": [[note] for note in inventory.warnings],
        _summary(inventory, n_completed): [],
    }
    return "\n\n".join(
        "\n".join([title, *_table(rows, "" if title == SCANS else "  ")])
        for title, rows in parts.items()
        if rows or not title.endswith(":")
    )


def _plan(config: RunConfig, run: Run) -> list[list[str]]:
    """Say what the options mean, ``auto`` decided by the bundle."""
    models = "nothing: --bundle none (preprocessing and quality only)"
    if (bundle := run.bundle) is not None:
        targets = ", ".join(sorted(bundle.info["targets"]))
        models = f"{targets} by bundle '{bundle.name}' {bundle.version}, device {run.device}"
    stripping = STRIPPING[run.skull_strip]
    if config.skull_strip == "auto":
        stripping += " (auto), unless the scan is stripped already"
    template = f"{config.template or run.contract.template} at {run.contract.resolution} mm"
    memory = f", {config.mem_gb:g} GB" if config.mem_gb else ""
    plan = [
        ["brain mask", stripping],
        ["registration", f"{REGISTERING[run.registration]}, 12 dof, to {template}"],
        ["predictions", models],
        ["images in", "template space" + ", native space" * ("T1w" in config.output_spaces)],
        ["resources", f"{config.nprocs} processes of {config.omp_nthreads} threads{memory}"],
    ]
    try:
        run.check_programs()
    except MissingProgramError as error:
        plan.append(["missing", f"{error} The run would end with code {error.exit_code}."])
    return plan


def _row(scan: Scan, config: RunConfig, state: str | None) -> list[str]:
    """One scan's line; ``state`` is what a run of the participant level has to do with it."""
    from bids_harmony.bids.outputs import report_is_new
    from bids_harmony.bids.records import load_record, scan_file
    from bids_harmony.run.base import HARMONIZE, PREPROCESS

    notes = list(scan.warnings)
    if not scan.path.exists():
        broken = scan.path.is_symlink()
        notes.insert(0, "not present: run `datalad get`" if broken else "not present any more")
    elif scan.path.stat().st_size == 0:
        notes.insert(0, "the file is empty")
    elif why := pointer(scan.path):
        notes.insert(0, why)
    mask = "made"
    if scan.mask is not None:
        # ROOT/sub-XX/[ses-YY/]anat/FILE
        root = scan.mask.parents[2 + ("session" in scan.entities)]
        mask = next(name for name, path in config.derivatives.items() if path == root)
        if why := pointer(scan.mask):
            notes.insert(0, f"brain mask: {why}")
    out = config.output_dir
    record = load_record(scan_file(out, scan.entities, scan.key, "qc"))
    if state is not None and record is not None:
        if record.get("status") == "error":
            note = "failed before"
        elif state == PREPROCESS:
            note = "completed before with other inputs or options"
        elif state == HARMONIZE:
            note = "preprocessed before, to be harmonized"
        else:
            reported = report_is_new(out, scan.entities["subject"])
            note = COMPLETED if reported else "completed but for its report"
        notes.insert(0, note)
    return [
        scan.key,
        scan.site + (" (sidecar)" if scan.site_source == "sidecar" else ""),
        "n/a" if scan.age is None else f"{scan.age:g}",
        scan.sex or "n/a",
        mask,
        "; ".join(notes),
    ]


def _summary(inventory: Inventory, n_completed: int) -> str:
    """Count scans, participants, sites and what is missing."""
    scans = inventory.scans
    sites = Counter(scan.site for scan in scans).most_common()
    shown = ", ".join(f"{site} {n}" for site, n in sites[:10])
    more = f" and {len(sites) - 10} more" if len(sites) > 10 else ""
    lines = [
        f"{inventory.size}{f': {len(scans) - n_completed}' if n_completed else ''} would be "
        f"processed, {f'{n_completed} completed before, ' if n_completed else ''}"
        f"{len(inventory.skipped)} left out.",
        f"Sites: {shown}{more}.",
    ]
    without = {
        "site": sum(scan.site == "unknown" for scan in scans),
        "age": sum(scan.age is None for scan in scans),
        "sex": sum(scan.sex is None for scan in scans),
    }
    if lacking := ", ".join(f"{n} without {what}" for what, n in without.items() if n):
        lines.append(f"Of these scans: {lacking}.")
    if warned := sum(bool(scan.warnings) for scan in scans):
        lines.append(f"{counted(warned, 'scan')} with warnings about their tables or sidecars.")
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]], indent: str) -> list[str]:
    """Align columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
