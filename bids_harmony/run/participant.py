"""The ``participant`` level: process each scan from raw image to report.

A scan that fails does not affect the others.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from bids_harmony.files import claim, write_json, write_text
from bids_harmony.run.base import HARMONIZE, NOTHING, PREPROCESS, Run, prepare
from bids_harmony.run.calibrate import Chosen, summary
from bids_harmony.run.engine import Failure, Job, run_jobs, work_folder
from bids_harmony.sites.calibration import confounded

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
    run = prepare(config)
    run.check_programs()
    for note in run.site_notes(scans):
        LOGGER.info(note)
    targets = () if run.bundle is None else run.bundle.targets
    write_dataset_files(out, config.bids_dir, targets, tools=run.tools)
    write_text(config.log_dir / "bids_harmony.json", config.to_json())
    set_up_logging(file=config.log_file)

    states = run.survey(scans)
    run.digests.save()
    todo = [s for s in scans if states[s.key] != NOTHING and not config.reports_only]
    counts = Counter(states[scan.key] for scan in todo)
    LOGGER.info(
        f"{inventory.size}: {counts[PREPROCESS]} to process, "
        + (f"{counts[HARMONIZE]} to harmonize only, " if counts[HARMONIZE] else "")
        + f"{len(scans) - len(todo)} completed before, {len(inventory.skipped)} skipped."
    )
    claims = claim_scans(config, todo)
    outcomes: Outcomes = {scan.key: ("unchanged", "completed before") for scan in scans}
    for subject in process(run, scans, todo, states, outcomes):
        report(config, subject, outcomes)
    # The report is outdated if an earlier run was killed after it had written a record.
    for subject in subjects_of(scans):
        if config.reports_only or not report_is_new(out, subject):
            report(config, subject, outcomes)
    run.digests.save()
    print_table(outcomes | {s.what: ("skipped", s.why) for s in inventory.skipped})
    for file in claims:
        file.close()
    LOGGER.info(f"Reports: {out}/sub-*.html")
    failed = any(status == "failed" for status, _ in outcomes.values())
    return EXIT_SCAN_FAILED if failed else EXIT_OK


def process(
    run: Run,
    scans: Sequence[Scan],
    todo: Sequence[Scan],
    states: Mapping[str, str],
    outcomes: Outcomes,
) -> Iterator[str]:
    """Preprocess and harmonize scans; yield each participant when all of its scans have ended.

    Parameters
    ----------
    run : Run
        Settings of the run.
    scans : sequence of Scan
        All scans of the run, from which sites are calibrated.
    todo : sequence of Scan
        Scans that need processing.
    states : dict
        Processing that each scan needs, by key (:meth:`Run.survey`).
    outcomes : dict
        Outcome of each scan by key; updated in place.

    Yields
    ------
    str
        Label of a participant.
    """
    facts = {scan.key: run.facts(scan) for scan in scans}
    raw = [scan for scan in todo if states[scan.key] == PREPROCESS]
    first = run_part(run, PREPROCESS, raw, facts, outcomes)
    if run.bundle is None:
        yield from first
        return
    for _ in first:
        pass
    ready = [scan for scan in scans if outcomes[scan.key][0] != "failed"]
    stopped = run.config.stop_on_first_crash and len(ready) < len(scans)
    states = run.survey(ready) if todo and not stopped else {}
    second = [scan for scan in ready if states.get(scan.key) == HARMONIZE]
    yield from sorted({*subjects_of(todo)} - {*subjects_of(second)})
    if not second:
        return
    for warning in confounded([s for group in run.own_sites(ready).values() for s in group]):
        LOGGER.warning(warning)
    used = {scan.site for scan in second}
    calibrations = run.calibrate(ready, used)
    for site in sorted(used):
        LOGGER.info(summary(calibrations[site].calibration, run.bundle))
    for scan in second:
        known, chosen = facts[scan.key], calibrations[scan.site]
        known |= run.harmonization(chosen.identity(run.config.output_dir, run.bundle))
        known["warnings"] = [*known["warnings"], *chosen.calibration.warnings]
    yield from run_part(run, HARMONIZE, second, facts, outcomes, calibrations)


def run_part(
    run: Run,
    part: str,
    scans: Sequence[Scan],
    facts: Mapping[str, dict[str, Any]],
    outcomes: Outcomes,
    calibrations: Mapping[str, Chosen] | None = None,
) -> Iterator[str]:
    """Preprocess or harmonize scans, and write records of those that fail.

    Parameters
    ----------
    run : Run
        Settings of the run.
    part : {"preprocess", "harmonize"}
        Which of the two to run.
    scans : sequence of Scan
        Scans to process; already preprocessed if they are to be harmonized.
    facts : mapping
        Facts for the record of each scan, by key.
    outcomes : dict
        Outcome of each scan by key; updated in place.
    calibrations : mapping, optional
        Calibrations by site, for harmonization.

    Yields
    ------
    str
        Label of a participant whose last scan has ended.
    """
    config, by_name = run.config, {scan.wf_name: scan for scan in scans}
    outcomes |= {scan.key: ("failed", STOPPED) for scan in scans}
    left = Counter(scan.entities["subject"] for scan in scans)
    word = "completed" if part == HARMONIZE or run.bundle is None else "preprocessed"
    jobs = (make_job(run, part, scan, facts[scan.key], calibrations or {}) for scan in scans)
    on_gpu = part == HARMONIZE and run.device == "cuda"
    for n, (job, failure) in enumerate(run_jobs(jobs, len(scans), config, on_gpu=on_gpu), 1):
        scan = by_name[job.name]
        outcomes[scan.key] = ("completed", "")
        if failure is not None:
            told = fail(run, part, scan, facts[scan.key], failure)
            outcomes[scan.key] = ("failed", told)
        elif config.clean_workdir:
            shutil.rmtree(work_folder(config, job.name), ignore_errors=True)
        LOGGER.info(f"[{n}/{len(scans)}] {scan.key}: {'failed' if failure else word}")
        left[scan.entities["subject"]] -= 1
        if not left[scan.entities["subject"]]:
            yield scan.entities["subject"]
        if failure is not None and config.stop_on_first_crash:
            break
    run.digests.save()


def make_job(
    run: Run, part: str, scan: Scan, facts: dict[str, Any], calibrations: Mapping[str, Chosen]
) -> Job:
    """Return the job of a scan, with the arguments of its workflow.

    The checksums of the inputs are added to ``facts``.
    """
    config, bundle = run.config, run.bundle
    facts["inputs"] = run.inputs(scan)
    settings: dict[str, Any] = {
        "scan": scan,
        "facts": facts,
        "output_dir": str(config.output_dir),
        "staging_dir": str(staging_folder(config, scan)),
        "contract": run.contract,
        "space": run.space,
        "template": None if config.template is None else str(config.template),
    }
    if part == PREPROCESS:
        settings |= {
            "skull_strip": config.skull_strip,
            "registration": config.registration,
            "atlas_dir": None if config.atlas_dir is None else str(config.atlas_dir),
            "seed": config.random_seed,
            "sloppy": config.sloppy,
        }
    elif bundle is not None:
        settings |= {
            "before": preprocessed(load_record(run.record_of(scan)) or {}),
            "bundle": str(bundle.path),
            "calibration": calibrations[scan.site].calibration.to_dict(),
            "native": "T1w" in config.output_spaces,
            "on_guard_fail": config.on_guard_fail,
            "correct_age_bias": config.correct_age_bias,
            "device": run.device,
        }
    return Job(part, scan.wf_name, settings)


def staging_folder(config: RunConfig, scan: Scan) -> Path:
    """Return the folder of a scan's outputs before they are published."""
    return work_folder(config, scan.wf_name) / "outputs"


def fail(run: Run, part: str, scan: Scan, facts: dict[str, Any], failure: Failure) -> str:
    """Replace a failed scan's outputs by a record of the failure and the figures drawn so far.

    The figures often show the cause, such as a wrong brain mask or registration. If harmonization
    failed, the outputs of preprocessing are kept.

    Returns
    -------
    str
        Message for the user.
    """
    told = f"{failure.cause} {failure.remedy}"
    before = preprocessed(load_record(run.record_of(scan)) or {}) if part == HARMONIZE else {}
    kept = before.get("outputs", [])
    record = failed_record(facts | before, failure.cause, failure.remedy, failure.crash_file)
    staging = staging_folder(run.config, scan)
    with tempfile.TemporaryDirectory() as elsewhere:
        if not staging.is_dir():
            staging = Path(elsewhere)
        drawn = staging.glob(f"sub-{scan.entities['subject']}/figures/*")
        record["outputs"] = sorted({*kept, *(p.relative_to(staging).as_posix() for p in drawn)})
        path = scan_file(staging, scan.entities, scan.key, "qc")
        try:
            write_json(path, record)
            publish_scan(staging, run.config.output_dir, path, kept)
        except OSError as error:
            if concerns_all(error):
                raise
            told += f" Its record could not be written ({error})."
    return told


def claim_scans(config: RunConfig, scans: Sequence[Scan]) -> list[IO[bytes]]:
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
    files = []
    for folder in (config.work_dir, config.output_dir / "logs"):
        file, taken = claim(folder / ".bids_harmony.lock", (scan.key for scan in scans))
        files.append(file)
        if taken is not None:
            raise UsageError(
                f"Another run is working on {taken} in {folder}.",
                "Wait for its end, or give this run folders of its own.",
            )
    return files


def report(config: RunConfig, subject: str, outcomes: Outcomes) -> None:
    """Rewrite a participant's tables and report from the saved records."""
    from bids_harmony.reports.participant import write_participant_report

    out = config.output_dir
    read: dict[Path, int] = {}
    try:
        # Repeat if another job has written a record of the participant in the meantime.
        while read != (there := record_times(out, subject)):
            read = there
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


def subjects_of(scans: Iterable[Scan]) -> list[str]:
    """Return the sorted labels of the participants of some scans."""
    return sorted({scan.entities["subject"] for scan in scans})


def print_table(outcomes: Outcomes) -> None:
    """Print the outcome of each scan; with more than 50, only of failed and skipped ones."""
    dull = ("completed", "unchanged") if len(outcomes) > 50 else ()
    shown = {name: found for name, found in outcomes.items() if found[0] not in dull}
    width = max(map(len, shown), default=0)
    for name, (status, why) in shown.items():
        LOGGER.info(f"  {name:<{width}}  {status:<9} {why}".rstrip())
    counts = Counter(status for status, _ in outcomes.values())
    words = ("completed", "unchanged", "skipped", "failed")
    LOGGER.info("\n" + ", ".join(f"{counts[w]} {w}" for w in words if counts[w]) + ".")
