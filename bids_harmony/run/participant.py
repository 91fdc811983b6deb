"""The ``participant`` level: preprocess, calibrate, harmonize, predict and report."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bids_harmony.bids.dataset import Scan, find_scans
from bids_harmony.bids.outputs import (
    publish_scan,
    record_times,
    report_is_new,
    write_dataset_files,
    write_scans_tables,
)
from bids_harmony.bids.records import failed_record, load_record, preprocessed, scan_file
from bids_harmony.console import set_up_logging
from bids_harmony.errors import EXIT_OK, EXIT_SCAN_FAILED, UsageError, concerns_all
from bids_harmony.files import write_json, write_text
from bids_harmony.run.base import Run
from bids_harmony.run.calibrate import calibrate_sites, own_sites, site_notes
from bids_harmony.run.engine import Failure, Job, run_jobs, work_folder
from bids_harmony.run.resume import HARMONIZE, NOTHING, PREPROCESS, survey
from bids_harmony.sites.calibration import Calibration

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

LOGGER = logging.getLogger(__name__)

#: Outcome of each scan or report (completed, unchanged, failed or skipped), and its reason.
Outcomes = dict[str, tuple[str, str]]
#: Reason for scans that did not fail themselves but were not completed.
STOPPED = "The run stopped before this scan was completed. The same command continues."


def run_participant(config: RunConfig) -> int:
    """Process all selected scans of the dataset.

    Scans are preprocessed, sites are calibrated from the preprocessing results, and scans are
    harmonized. A scan that fails therefore does not prevent its site's calibration, and applying
    another calibration takes only seconds per scan.

    Returns
    -------
    int
        Exit code: 0 if every scan is completed, 1 if some failed.
    """
    inventory = find_scans(config)
    scans, out = inventory.scans, config.output_dir
    for warning in inventory.warnings:
        LOGGER.warning(warning)
    run = Run(config)
    run.check_programs()
    notes, warnings = site_notes(run, scans)
    for note in notes:
        LOGGER.info(note)
    for warning in warnings:
        LOGGER.warning(warning)
    targets = () if run.bundle is None else run.bundle.targets
    write_dataset_files(out, config.bids_dir, targets, tools=run.tools)
    set_up_logging(file=config.log_file)
    write_text(config.log_dir / "bids_harmony.json", config.to_json())

    states = survey(run, scans)
    run.digests.save()
    todo = [s for s in scans if states[s.key] != NOTHING and not config.reports_only]
    counts = Counter(states[scan.key] for scan in todo)
    LOGGER.info(
        f"{inventory.size}: {counts[PREPROCESS]} to process, "
        + (f"{counts[HARMONIZE]} to harmonize only, " if counts[HARMONIZE] else "")
        + f"{len(scans) - len(todo)} completed before, {len(inventory.skipped)} skipped."
    )
    locks = lock_scans(config, todo)
    outcomes: Outcomes = {scan.key: ("unchanged", "completed before") for scan in scans}
    if todo:
        process(run, scans, [s for s in todo if states[s.key] == PREPROCESS], outcomes)
    # Reports of scans that failed, and those that an earlier run was killed before writing.
    for subject in sorted({scan.entities["subject"] for scan in scans}):
        if config.reports_only or not report_is_new(out, subject):
            write_report(config, subject, outcomes)
    run.digests.save()
    print_table(outcomes | {s.what: ("skipped", s.why) for s in inventory.skipped})
    for lock in locks:
        lock.close()
    LOGGER.info(f"Reports: {out}/sub-*.html")
    failed = any(status == "failed" for status, _ in outcomes.values())
    return EXIT_SCAN_FAILED if failed else EXIT_OK


def process(run: Run, scans: Sequence[Scan], raw: Sequence[Scan], outcomes: Outcomes) -> None:
    """Preprocess and harmonize scans.

    Parameters
    ----------
    run : Run
        Settings of the run.
    scans : sequence of Scan
        All scans of the run, from which sites are calibrated.
    raw : sequence of Scan
        Scans that need preprocessing.
    outcomes : dict
        Outcome of each scan by key; updated in place.
    """
    run_part(run, raw, outcomes)
    ready = [scan for scan in scans if outcomes[scan.key][0] != "failed"]
    if run.bundle is None or (run.config.stop_on_first_crash and len(ready) < len(scans)):
        return
    states = survey(run, ready)
    if second := [scan for scan in ready if states[scan.key] == HARMONIZE]:
        new = calibrate_sites(run, own_sites(run, ready), "participant")
        run_part(run, second, outcomes, run.frozen | new)


def run_part(
    run: Run,
    scans: Sequence[Scan],
    outcomes: Outcomes,
    calibrations: Mapping[str, tuple[Path | None, Calibration]] | None = None,
) -> None:
    """Preprocess or harmonize scans, and write the records of those that fail.

    Parameters
    ----------
    run : Run
        Settings of the run.
    scans : sequence of Scan
        Scans to process.
    outcomes : dict
        Outcome of each scan by key; updated in place.
    calibrations : mapping, optional
        Calibrations by site, with their files. If given, the scans are harmonized.
    """
    config, last = run.config, calibrations is not None or run.bundle is None
    outcomes |= {scan.key: ("failed", STOPPED) for scan in scans}
    jobs = (make_job(run, scan, (calibrations or {}).get(scan.site)) for scan in scans)
    on_gpu = calibrations is not None and run.device == "cuda"
    for n, (job, failure) in enumerate(run_jobs(jobs, len(scans), config, on_gpu=on_gpu), 1):
        scan = job.settings["scan"]
        status = "completed" if last else "preprocessed"
        outcomes[scan.key] = ("completed", "")
        if failure is not None:
            status = "failed"
            outcomes[scan.key] = (status, record_failure(config, job, failure))
        elif config.clean_workdir:
            shutil.rmtree(work_folder(config, job.name), ignore_errors=True)
        LOGGER.info(f"[{n}/{len(scans)}] {scan.key}: {status}")
        if last:
            write_report(config, scan.entities["subject"], outcomes)
        if failure is not None and config.stop_on_first_crash:
            break
    run.digests.save()


def make_job(run: Run, scan: Scan, calibration: tuple[Path | None, Calibration] | None) -> Job:
    """Return the job that preprocesses a scan or, with a calibration, harmonizes it."""
    config, bundle = run.config, run.bundle
    facts = run.facts(scan) | {"inputs": run.inputs(scan)}
    settings: dict[str, Any] = {
        "scan": scan,
        "facts": facts,
        "output_dir": str(config.output_dir),
        "staging_dir": str(work_folder(config, scan.wf_name) / "outputs"),
        "contract": run.contract,
        "space": run.space,
        "template": run.template,
    }
    if calibration is None or bundle is None:
        return Job(PREPROCESS, scan.wf_name, settings | {
            "skull_strip": config.skull_strip,
            "registration": config.registration,
            "atlas_dir": None if config.atlas_dir is None else str(config.atlas_dir),
            "seed": config.random_seed,
            "sloppy": config.sloppy,
        })  # fmt: skip
    facts |= run.harmonization(run.identity(*calibration))
    facts["warnings"] += calibration[1].warnings
    return Job(HARMONIZE, scan.wf_name, settings | {
        "before": preprocessed(load_record(run.record_of(scan)) or {}),
        "bundle": str(bundle.path),
        "calibration": calibration[1].to_dict(),
        "native": "T1w" in config.output_spaces,
        "on_guard_fail": config.on_guard_fail,
        "correct_age_bias": config.correct_age_bias,
        "device": run.device,
    })  # fmt: skip


def record_failure(config: RunConfig, job: Job, failure: Failure) -> str:
    """Replace a failed scan's outputs by a record of the failure and the figures drawn so far.

    The figures often show the cause, such as a wrong brain mask or registration. If harmonization
    failed, the outputs of preprocessing are kept.

    Returns
    -------
    str
        Message for the user.
    """
    scan, before = job.settings["scan"], job.settings.get("before", {})
    kept = before.get("outputs", [])
    facts = job.settings["facts"] | before
    record = failed_record(facts, failure.cause, failure.remedy, failure.crash_file)
    message = f"{failure.cause} {failure.remedy}"
    with tempfile.TemporaryDirectory() as empty:
        staging = Path(job.settings["staging_dir"])
        staging = staging if staging.is_dir() else Path(empty)
        figures = staging.glob(f"sub-{scan.entities['subject']}/figures/*")
        record["outputs"] = sorted({*kept, *(p.relative_to(staging).as_posix() for p in figures)})
        path = scan_file(staging, scan.entities, scan.key, "qc")
        try:
            write_json(path, record)
            publish_scan(staging, config.output_dir, path, kept)
        except OSError as error:
            if concerns_all(error):
                raise
            message += f" Its record could not be written ({error})."
    return message


def lock_scans(config: RunConfig, scans: Sequence[Scan]) -> list[IO[bytes]]:
    """Lock the scans to be processed, so that no other run processes them.

    Returns
    -------
    list of file object
        Lock files; closing them, or the end of the process, releases the locks.

    Raises
    ------
    UsageError
        If another run is processing one of the scans.
    """
    files: list[IO[bytes]] = []
    for folder in (config.work_dir, config.output_dir / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".bids_harmony.lock").open("ab")
        files.append(file)
        for scan in scans:
            # Each scan locks one byte of a single file, so that ten thousand locks are cheap.
            byte = int.from_bytes(hashlib.sha256(scan.key.encode()).digest()[:4])
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except (BlockingIOError, PermissionError) as error:
                raise UsageError(
                    f"Another run is processing {scan.key} in {folder}.",
                    "Wait until it ends, or use another output folder and another --work-dir.",
                ) from error
            except OSError:  # the file system has no locks
                break
    return files


def write_report(config: RunConfig, subject: str, outcomes: Outcomes) -> None:
    """Rewrite a participant's tables and report from the saved records."""
    from bids_harmony.reports.participant import write_participant_report

    out = config.output_dir
    read: dict[Path, int] = {}
    try:
        # Repeat if another job has written a record of the participant in the meantime.
        while read != (times := record_times(out, subject)):
            read = times
            write_scans_tables(out, subject)
            write_participant_report(out, subject)
    except Exception as error:
        # Continue with the reports of the other participants.
        if concerns_all(error):
            raise
        crash = config.log_dir / f"sub-{subject}_report.txt"
        write_text(crash, traceback.format_exc())
        why = f"It could not be written ({type(error).__name__}: {error})."
        outcomes[f"sub-{subject}.html"] = ("failed", f"{why} The traceback is in {crash}.")


def print_table(outcomes: Outcomes) -> None:
    """Print the outcome of each scan; with more than 50, only of failed and skipped ones."""
    hidden = ("completed", "unchanged") if len(outcomes) > 50 else ()
    shown = {name: found for name, found in outcomes.items() if found[0] not in hidden}
    width = max(map(len, shown), default=0)
    for name, (status, why) in shown.items():
        LOGGER.info(f"  {name:<{width}}  {status:<9} {why}".rstrip())
    counts = Counter(status for status, _ in outcomes.values())
    words = ("completed", "unchanged", "skipped", "failed")
    LOGGER.info("\n" + ", ".join(f"{counts[w]} {w}" for w in words if counts[w]) + ".")
