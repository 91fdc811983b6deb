"""The participant level: every scan its whole way, whatever happens to the others."""

from __future__ import annotations

import shutil
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING

from bids_harmony.bids import Scan, find_scans
from bids_harmony.calibrate import summary
from bids_harmony.console import say
from bids_harmony.errors import (
    EXIT_NO_INPUT,
    EXIT_OK,
    EXIT_SCAN_FAILED,
    UsageError,
    concerns_all,
)
from bids_harmony.files import claim, write_text
from bids_harmony.outputs import write_dataset_files, write_scans_tables
from bids_harmony.resume import record_times, report_is_new
from bids_harmony.run import (
    HARMONIZE,
    NOTHING,
    PREPROCESS,
    Outcome,
    Run,
    prepare,
    scan_work_folder,
)
from bids_harmony.sites.calibration import confounded

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

#: Scans per nipype graph: its scheduler slows down with the square of the number of nodes.
CHUNK = 40


def run_participant(config: RunConfig) -> int:
    """Process every scan of the dataset that was asked for.

    Scans are preprocessed, sites calibrated from what that says of their scans, and scans
    harmonized. So one broken scan does not cost its site the calibration, and another
    calibration costs seconds a scan.

    Returns
    -------
    int
        0 when every scan is done, 1 when some failed, 66 when there is none.
    """
    inventory = find_scans(config)
    for warning in inventory.warnings:
        say(f"Warning: {warning}")
    if not inventory.scans:
        print_table([Outcome(s.what, "skipped", s.why) for s in inventory.skipped])
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
    todo = [s for s in inventory.scans if states[s.key] != NOTHING]
    kept = [s for s in inventory.scans if states[s.key] == NOTHING]
    if config.reports_only:
        todo = []
    counts = Counter(states[scan.key] for scan in todo)
    say(
        f"{inventory.size}: {counts[PREPROCESS]} to process, "
        + (f"{counts[HARMONIZE]} to harmonize only, " if counts[HARMONIZE] else "")
        + f"{len(kept)} done before, {len(inventory.skipped)} skipped."
    )
    claims = claim_scans(config, todo)
    if config.clean_workdir:
        for scan in kept:  # a run that was killed at a scan's end left its files behind
            shutil.rmtree(scan_work_folder(config, scan.wf_name), ignore_errors=True)
    ended, unreported = process(run, inventory.scans, todo, states)
    if config.reports_only:
        unreported += report(config, subjects_of(inventory.scans))
    else:
        # A run killed between a scan's record and its report left the report behind.
        unreported += report(config, (s for s in subjects_of(kept) if not report_is_new(out, s)))
    outcomes = [Outcome(s.key, "kept", "done before") for s in kept]
    outcomes += [ended.get(s.key, Outcome(s.key, "kept", "done before")) for s in todo]
    outcomes += unreported
    outcomes += [Outcome(s.what, "skipped", s.why) for s in inventory.skipped]
    print_table(outcomes)
    for file in claims:
        file.close()
    say(f"Reports: {out}/sub-*.html")
    return EXIT_SCAN_FAILED if any(o.status == "failed" for o in outcomes) else EXIT_OK


def process(
    run: Run, scans: Sequence[Scan], todo: Sequence[Scan], states: dict[str, str]
) -> tuple[dict[str, Outcome], list[Outcome]]:
    """Take scans through the parts of their way that they have to go, and report them.

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

    Returns
    -------
    ended : dict of str to Outcome
        How each scan ended that was worked on, by its key.
    unreported : list of Outcome
        Participants whose report could not be written.
    """
    ended: dict[str, Outcome] = {}
    unreported: list[Outcome] = []
    facts = {scan.key: run.facts(scan) for scan in scans}
    raw = [scan for scan in todo if states[scan.key] == PREPROCESS]
    for chunk in chunks(raw):
        outcomes = run.process(PREPROCESS, chunk, facts, {}, done=len(ended), total=len(raw))
        ended |= {outcome.name: outcome for outcome in outcomes}
        if run.bundle is None:
            unreported += report(run.config, subjects_of(chunk))
    if run.bundle is None or not todo:
        return ended, unreported

    failed = {name for name, outcome in ended.items() if outcome.status == "failed"}
    ready = [scan for scan in scans if scan.key not in failed]
    states = run.survey(ready)
    second = [scan for scan in ready if states[scan.key] == HARMONIZE]
    # Their second part never comes.
    unreported += report(run.config, sorted({*subjects_of(todo)} - {*subjects_of(second)}))
    if not second:
        return ended, unreported
    for warning in confounded([s for group in run.own_sites(ready).values() for s in group]):
        say(f"Warning: {warning}")
    calibrations = run.calibrate(ready, states)
    used = {scan.site for scan in second}
    for site in sorted(used):
        say(summary(calibrations[site].calibration, run.bundle))
    named = {
        site: chosen.identity(run.config.output_dir, run.bundle)
        for site, chosen in calibrations.items()
        if site in used
    }
    for scan in second:
        known = facts[scan.key]
        known |= run.harmonization(named[scan.site])
        notes = calibrations[scan.site].calibration.warnings
        known["warnings"] = [*known["warnings"], *notes]
    done = 0
    for chunk in chunks(second):
        outcomes = run.process(HARMONIZE, chunk, facts, calibrations, done=done, total=len(second))
        ended |= {outcome.name: outcome for outcome in outcomes}
        done += len(chunk)
        unreported += report(run.config, subjects_of(chunk))
    return ended, unreported


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
        read = None
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


def chunks(scans: Sequence[Scan]) -> Iterator[list[Scan]]:
    """Cut the scans into graphs of bounded size without parting a participant's scans."""
    chunk: list[Scan] = []
    for i, scan in enumerate(scans):
        new_subject = i > 0 and scan.entities["subject"] != scans[i - 1].entities["subject"]
        if len(chunk) >= CHUNK and new_subject:
            yield chunk
            chunk = []
        chunk.append(scan)
    if chunk:
        yield chunk


def print_table(outcomes: Sequence[Outcome]) -> None:
    """End the log with every scan's fate; long runs list only what needs a look."""
    counts = Counter(o.status for o in outcomes)
    shown = (
        [o for o in outcomes if o.why and o.status != "kept"] if len(outcomes) > 50 else outcomes
    )
    if shown:
        width = max(len(o.name) for o in shown)
        say("")
        for o in shown:
            say(f"  {o.name:<{width}}  {o.status:<8} {o.why}".rstrip())
    words = ("done", "kept", "skipped", "failed")
    say("\n" + ", ".join(f"{counts[w]} {w}" for w in words if counts[w]) + ".")
