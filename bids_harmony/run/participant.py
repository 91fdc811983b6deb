"""The participant level: every scan from raw to report, whatever happens to the others."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bids_harmony.bids.dataset import Scan, find_scans
from bids_harmony.bids.outputs import (
    load_record,
    publish_scan,
    record_times,
    report_is_new,
    scan_file,
    write_dataset_files,
    write_scans_tables,
)
from bids_harmony.console import say
from bids_harmony.errors import (
    EXIT_NO_INPUT,
    EXIT_OK,
    EXIT_SCAN_FAILED,
    UsageError,
    concerns_all,
)
from bids_harmony.files import claim, write_json, write_text
from bids_harmony.qc.record import failed_record, preprocessed
from bids_harmony.run.base import (
    HARMONIZE,
    NOTHING,
    PREPROCESS,
    Run,
    prepare,
)
from bids_harmony.run.calibrate import Chosen, summary
from bids_harmony.run.engine import Failure, Job, run_jobs, work_folder
from bids_harmony.sites.calibration import confounded

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

#: Why a scan has no result that did not fail itself.
STOPPED = "The run stopped before this scan was completed. The same command continues."


@dataclass(frozen=True)
class Outcome:
    """How a scan ended: ``completed``, ``unchanged``, ``failed`` or ``skipped``."""

    name: str
    status: str
    why: str = ""


def run_participant(config: RunConfig) -> int:
    """Process every scan of the dataset that was asked for.

    Scans are preprocessed, sites calibrated from what that says of their scans, and scans
    harmonized. So one broken scan does not cost its site the calibration, and another
    calibration costs seconds a scan.

    Returns
    -------
    int
        0 when every scan is completed, 1 when some failed, 66 when there is none.
    """
    inventory = find_scans(config)
    for warning in inventory.warnings:
        say(f"Warning: {warning}")
    skipped = [Outcome(s.what, "skipped", s.why) for s in inventory.skipped]
    if not inventory.scans:
        print_table(skipped)
        say("No T1w scan to process.")
        return EXIT_NO_INPUT
    run = prepare(config)
    run.check_programs()
    for note in run.site_notes(inventory.scans):
        say(note)
    out = config.output_dir
    targets = () if run.bundle is None else run.bundle.targets
    write_dataset_files(out, config.bids_dir, targets, tools=run.tools)
    write_text(config.log_dir / "bids_harmony.json", config.to_json())

    states = run.survey(inventory.scans)
    run.digests.save()
    todo = [s for s in inventory.scans if states[s.key] != NOTHING and not config.reports_only]
    unchanged = [s for s in inventory.scans if states[s.key] == NOTHING or config.reports_only]
    counts = Counter(states[scan.key] for scan in todo)
    say(
        f"{inventory.size}: {counts[PREPROCESS]} to process, "
        + (f"{counts[HARMONIZE]} to harmonize only, " if counts[HARMONIZE] else "")
        + f"{len(unchanged)} completed before, {len(inventory.skipped)} skipped."
    )
    claims = claim_scans(config, todo)
    outcomes = {s.key: Outcome(s.key, "unchanged", "completed before") for s in inventory.scans}
    unreported: list[Outcome] = []
    for ended in process(run, inventory.scans, todo, states, outcomes):
        unreported += report(config, ended)
    # A run killed between a scan's record and its report left the report behind.
    subjects = subjects_of(unchanged)
    unreported += report(
        config, (s for s in subjects if config.reports_only or not report_is_new(out, s))
    )
    run.digests.save()
    print_table([*outcomes.values(), *unreported, *skipped])
    for file in claims:
        file.close()
    say(f"Reports: {out}/sub-*.html")
    failed = any(o.status == "failed" for o in (*outcomes.values(), *unreported))
    return EXIT_SCAN_FAILED if failed else EXIT_OK


def process(
    run: Run,
    scans: Sequence[Scan],
    todo: Sequence[Scan],
    states: dict[str, str],
    outcomes: dict[str, Outcome],
) -> Iterator[list[str]]:
    """Preprocess and harmonize scans; yield the participants that nothing more is done for.

    Parameters
    ----------
    run : Run
        The run.
    scans : sequence of Scan
        All of it, from which sites are calibrated.
    todo : sequence of Scan
        Those with something to do.
    states : dict
        What that is (:meth:`Run.survey`).
    outcomes : dict of str to Outcome
        How each scan ended, by its key, which is filled in.
    """
    facts = {scan.key: run.facts(scan) for scan in scans}
    raw = [scan for scan in todo if states[scan.key] == PREPROCESS]
    first = run_part(run, PREPROCESS, raw, facts, outcomes)
    if run.bundle is None:
        yield from first
        return
    for _ in first:
        pass
    if run.config.stop_on_first_crash and any(o.status == "failed" for o in outcomes.values()):
        yield subjects_of(todo)
        return
    ready = [scan for scan in scans if outcomes[scan.key].status != "failed"]
    states = run.survey(ready) if todo else {}
    second = [scan for scan in ready if states.get(scan.key) == HARMONIZE]
    yield sorted({*subjects_of(todo)} - {*subjects_of(second)})
    if not second:
        return
    for warning in confounded([s for group in run.own_sites(ready).values() for s in group]):
        say(f"Warning: {warning}")
    used = {scan.site for scan in second}
    calibrations = run.calibrate(ready, used)
    for site in sorted(used):
        say(summary(calibrations[site].calibration, run.bundle))
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
    outcomes: dict[str, Outcome],
    calibrations: Mapping[str, Chosen] | None = None,
) -> Iterator[list[str]]:
    """Run one of the two parts of some scans' processing; failures end up in their records.

    Parameters
    ----------
    run : Run
        The run.
    part : {"preprocess", "harmonize"}
        Which part.
    scans : sequence of Scan
        The scans; to be harmonized, they must be preprocessed.
    facts : mapping
        By scan key, what goes into the scan's record.
    outcomes : dict of str to Outcome
        How each scan ended, by its key, which is filled in.
    calibrations : mapping
        By site, for the second part.

    Yields
    ------
    list of str
        A participant whose last scan ended.
    """
    config, by_name = run.config, {scan.wf_name: scan for scan in scans}
    outcomes |= {scan.key: Outcome(scan.key, "failed", STOPPED) for scan in scans}
    begun: dict[str, float] = {}
    refused = {scan.wf_name: why for scan in scans if (why := make_folders(run, scan))}

    def jobs() -> Iterator[Job]:
        for scan in scans:
            if scan.wf_name not in refused:
                begun[scan.wf_name] = time.monotonic()
                facts[scan.key]["inputs"] = run.inputs(scan)
                yield Job(part, scan.wf_name, settings(run, part, scan, facts, calibrations or {}))

    n_jobs = len(scans) - len(refused)
    on_gpu = part == HARMONIZE and run.device == "cuda"
    ran = ((job.name, why) for job, why in run_jobs(jobs(), n_jobs, config, on_gpu=on_gpu))
    left = Counter(scan.entities["subject"] for scan in scans)
    word = "completed" if part == HARMONIZE or run.bundle is None else "preprocessed"
    for n, (name, failure) in enumerate(chain(refused.items(), ran), 1):
        scan, subject = by_name[name], by_name[name].entities["subject"]
        if failure is not None:
            told = fail(run, scan, facts[scan.key], failure, harmonized=part == HARMONIZE)
            outcomes[scan.key] = Outcome(scan.key, "failed", told)
        else:
            outcomes[scan.key] = Outcome(scan.key, "completed")
            if config.clean_workdir:
                shutil.rmtree(work_folder(config, name), ignore_errors=True)
        seconds = time.monotonic() - begun.get(name, time.monotonic())
        ended = "failed" if failure else word
        say(f"[{n}/{len(scans)}] {scan.key}: {ended} ({seconds:.0f} s)")
        left[subject] -= 1
        if not left[subject]:
            yield [subject]
        if failure is not None and config.stop_on_first_crash:
            break
    run.digests.save()


def make_folders(run: Run, scan: Scan) -> Failure | None:
    """Empty a scan's work folder, and say why its folders cannot be written, if so."""
    work, out = work_folder(run.config, scan.wf_name), run.record_of(scan).parent
    shutil.rmtree(work, ignore_errors=True)
    for what, folder in (("work", work), ("output", out)):
        try:
            folder.mkdir(parents=True, exist_ok=folder == out)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            if concerns_all(error):
                raise
            return Failure(
                f"Its {what} folder cannot be written ({folder}: {error.strerror}).",
                "Change its permissions, or give another folder.",
            )
    return None


def settings(
    run: Run,
    part: str,
    scan: Scan,
    facts: Mapping[str, dict[str, Any]],
    calibrations: Mapping[str, Chosen],
) -> dict[str, Any]:
    """Collect the arguments of a scan's workflow."""
    config = run.config
    options: dict[str, Any] = {
        "scan": scan,
        "facts": facts[scan.key],
        "output_dir": str(config.output_dir),
        "staging_dir": str(staging_folder(config, scan)),
        "contract": run.contract,
        "space": run.space,
        "template": None if config.template is None else str(config.template),
    }
    if part == PREPROCESS:
        names = ("skull_strip", "registration", "sloppy")
        return options | {name: getattr(config, name) for name in names} | {
            "atlas_dir": None if config.atlas_dir is None else str(config.atlas_dir),
            "seed": config.random_seed,
        }  # fmt: skip
    assert run.bundle is not None
    return options | {
        "before": preprocessed(load_record(run.record_of(scan)) or {}),
        "bundle": str(run.bundle.path),
        "calibration": calibrations[scan.site].calibration.to_dict(),
        "native": "T1w" in config.output_spaces,
        "on_guard_fail": config.on_guard_fail,
        "correct_age_bias": config.correct_age_bias,
        "device": run.device,
    }


def staging_folder(config: RunConfig, scan: Scan) -> Path:
    """Folder of a scan's outputs until all of them are there."""
    return work_folder(config, scan.wf_name) / "outputs"


def fail(
    run: Run, scan: Scan, facts: dict[str, Any], failure: Failure, *, harmonized: bool
) -> str:
    """Put a failed scan's record in the place of all it had, with the figures that got drawn.

    They show why it failed, as a brain mask or a registration that went wrong. What
    preprocessing left stays where the scan failed after it.

    Returns
    -------
    str
        What the user is told.
    """
    told, out = f"{failure.cause} {failure.remedy}", run.config.output_dir
    before = preprocessed(load_record(run.record_of(scan)) or {}) if harmonized else {}
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
            publish_scan(staging, out, path, kept)
        except OSError as error:
            if concerns_all(error):
                raise
            told += f" Its record could not be written ({error})."
    return told


def claim_scans(config: RunConfig, scans: Sequence[Scan]) -> list[IO[bytes]]:
    """Keep other runs away from the scans that are to be processed.

    Returns
    -------
    list of file object
        Closing them, or the end of the process, lets others in.

    Raises
    ------
    UsageError
        When another run is working on one of the scans.
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


def report(config: RunConfig, subjects: Iterable[str]) -> list[Outcome]:
    """Rebuild the tables and reports of participants from what is on disk.

    Returns
    -------
    list of Outcome
        One for each participant whose report could not be written.
    """
    from bids_harmony.reports.participant import write_participant_report

    out, failed = config.output_dir, []
    for subject in subjects:
        read: dict[Path, int] = {}
        try:
            # A job on another session may end meanwhile, and have reported it.
            while read != (there := record_times(out, subject)):
                read = there
                write_scans_tables(out, subject)
                write_participant_report(out, subject)
        except Exception as error:
            # One participant's report must not cost the others theirs.
            if concerns_all(error):
                raise
            crash = config.log_dir / f"sub-{subject}_report.txt"
            write_text(crash, traceback.format_exc())
            why = f"Its report could not be written ({type(error).__name__}: {error})."
            failed.append(
                Outcome(f"sub-{subject}", "failed", f"{why} The traceback is in {crash}.")
            )
    return failed


def subjects_of(scans: Iterable[Scan]) -> list[str]:
    """List the participants of some scans."""
    return sorted({scan.entities["subject"] for scan in scans})


def print_table(outcomes: Sequence[Outcome]) -> None:
    """End the log with every scan's fate; long runs list only what needs a look."""
    shown = [
        o for o in outcomes if len(outcomes) <= 50 or o.status not in ("completed", "unchanged")
    ]
    if shown:
        width = max(len(o.name) for o in shown)
        say("")
        for o in shown:
            say(f"  {o.name:<{width}}  {o.status:<9} {o.why}".rstrip())
    counts = Counter(o.status for o in outcomes)
    words = ("completed", "unchanged", "skipped", "failed")
    say("\n" + ", ".join(f"{counts[w]} {w}" for w in words if counts[w]) + ".")
