"""``--dry-run``: every scan, what would be done with it, and why any is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bids_harmony import __version__
from bids_harmony.bids import Inventory, Scan, counted
from bids_harmony.config import RunConfig
from bids_harmony.errors import MissingProgramError
from bids_harmony.text import pointer

if TYPE_CHECKING:
    from bids_harmony.run import Run

STRIPPING = {
    "deepbet": "deepbet",
    "multi-atlas": "multi-atlas label fusion",
    "bet": "FSL bet",
    "skip": "none: the scan's own background",
}
REGISTERING = {"ants": "antspyx", "flirt": "FSL flirt"}
#: What the notes of a scan begin with that the run would leave as it is (recipes read this).
COMPLETED = "completed, nothing to do"


def render(inventory: Inventory, config: RunConfig) -> str:
    """Write what a run would do; nothing is computed or written.

    Parameters
    ----------
    inventory : Inventory
        What :func:`bids_harmony.bids.find_scans` found.
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
        from bids_harmony.run import prepare

        run = prepare(config)
    states = {} if run is None else run.survey(inventory.scans)
    rows = [_row(scan, config, states.get(scan.key)) for scan in inventory.scans]
    parts = [
        f"bids_harmony {__version__}, dry run of the {config.level} level: "
        "nothing is computed, nothing is written.",
        "\n".join(_table([["dataset", str(config.bids_dir)], ["output", str(config.output_dir)]])),
        "What would be done with each scan:\n"
        + "\n".join(_table(_plan(config, run), indent="  ")),
        "\n".join(_table([["scan", "site", "age", "sex", "brain mask", "notes"], *rows])),
    ]
    if inventory.skipped:
        left = [[skipped.what, skipped.why] for skipped in inventory.skipped]
        parts.append("Left out:\n" + "\n".join(_table(left, indent="  ")))
    if run is not None and (notes := run.site_notes(inventory.scans)):
        parts.append("Calibration:\n" + "\n".join(f"  {note}" for note in notes))
    if inventory.warnings:
        parts.append("Warnings:\n" + "\n".join(f"  {note}" for note in inventory.warnings))
    parts.append(_summary(inventory, sum(row[-1].startswith(COMPLETED) for row in rows)))
    return "\n\n".join(parts)


def _plan(config: RunConfig, run: Run | None) -> list[list[str]]:
    """Say what the options mean, ``auto`` settled by the bundle."""
    if config.level == "train":
        options = config.train
        return [
            ["train", f"bundle '{options.model_name}' in {config.output_dir / 'models'}"],
            ["scans", f"those preprocessed before in {config.output_dir}"],
            ["reference", options.reference_site or "the site with most scans"],
            ["targets", ", ".join(options.targets)],
            ["fitted on", options.fit_filter or "all of them that quality control lets pass"],
        ]
    if run is None:
        tried = config.evaluate
        return [
            ["evaluate", f"{', '.join(tried.experiments)}, to {config.output_dir}"],
            ["scans", f"those preprocessed before in {config.output_dir}"],
            ["reference", config.train.reference_site or "the site with most scans"],
            ["tested", f"{tried.cv_folds} parts of the participants in turn, "
             f"{counted(tried.n_seeds, 'time')}"],
        ]  # fmt: skip
    models = "nothing: --bundle none (preprocessing and quality only)"
    if run.bundle is not None:
        targets = ", ".join(sorted(run.bundle.info["targets"]))
        models = (
            f"{targets} by bundle '{run.bundle.name}' {run.bundle.version}, device {run.device}"
        )
    stripping = STRIPPING.get(run.skull_strip, run.skull_strip)
    if config.skull_strip == "auto":
        stripping += " (auto), unless the scan is stripped already"
    registering = REGISTERING.get(run.registration, run.registration)
    contract, template = run.contract, str(config.template or run.contract.template)
    notes = []
    try:
        run.check_programs()
    except MissingProgramError as error:
        notes.append(["missing", f"{error} The run would end with code {error.exit_code}."])
    return [
        ["brain mask", stripping],
        ["registration", f"{registering}, 12 dof, to {template} "
         f"at {contract.resolution} mm"],
        ["predictions", models],
        ["images in", "template space" + (", native space" * ("T1w" in config.output_spaces))],
        ["resources", f"{config.nprocs} processes of {config.omp_nthreads} threads"
         + (f", {config.mem_gb:g} GB" if config.mem_gb else "")],
        *notes,
    ]  # fmt: skip


def _row(scan: Scan, config: RunConfig, state: str | None) -> list[str]:
    """One scan's line; ``state`` is what a run of the participant level has to do with it."""
    from bids_harmony.outputs import load_record, scan_file
    from bids_harmony.run import HARMONIZE, PREPROCESS, report_is_new

    pipelines = {path: name for name, path in config.derivatives.items()}
    notes = list(scan.warnings)
    if not scan.path.exists():
        broken = scan.path.is_symlink()
        notes.insert(0, "not present: run `datalad get`" if broken else "not present any more")
    elif scan.path.stat().st_size == 0:
        notes.insert(0, "the file is empty")
    elif why := pointer(scan.path):
        notes.insert(0, why)
    if scan.mask is not None and (why := pointer(scan.mask)):
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
        elif not report_is_new(out, scan.entities["subject"]):
            note = "completed but for its report"
        else:
            note = COMPLETED
        notes.insert(0, note)
    return [
        scan.key,
        scan.site + (" (sidecar)" if scan.site_source == "sidecar" else ""),
        "n/a" if scan.age is None else f"{scan.age:g}",
        scan.sex or "n/a",
        "made" if scan.mask is None else pipelines[_root_of(scan.mask, scan)],
        "; ".join(notes),
    ]


def _root_of(mask: Path, scan: Scan) -> Path:
    """Name the derivatives dataset of a mask: ``ROOT/sub-XX/[ses-YY/]anat/FILE``."""
    return mask.parents[2 + ("session" in scan.entities)]


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


def _table(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Align columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
