"""The participant level: every scan its whole way, whatever happens to the others."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bids_harmony import __version__
from bids_harmony.bids import Scan, find_scans
from bids_harmony.console import say
from bids_harmony.contract import Contract
from bids_harmony.done import is_complete, record_times, report_is_new
from bids_harmony.errors import (
    EXIT_NO_INPUT,
    EXIT_OK,
    EXIT_SCAN_FAILED,
    ScanError,
    UsageError,
)
from bids_harmony.failures import Failure, read_failures
from bids_harmony.files import claim, write_json, write_text
from bids_harmony.outputs import scan_file, write_dataset_files, write_scans_tables
from bids_harmony.settle import check_template, choose_device, deviations

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig
    from bids_harmony.models.bundle import Bundle

#: Scans per nipype graph: its scheduler slows down with the square of the number of nodes.
CHUNK = 40


@dataclass(frozen=True)
class Outcome:
    """How a scan ended: ``done``, ``kept`` (nothing to do), ``failed`` or ``skipped``."""

    name: str
    status: str
    why: str = ""


def run_participant(config: RunConfig) -> int:
    """Process every scan of the dataset that was asked for.

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
    out = config.output_dir
    write_dataset_files(out, config.bids_dir, () if run.bundle is None else run.bundle.targets)
    write_text(config.log_dir / "bids_harmony.json", config.to_json())

    facts = {scan.key: run.facts(scan) for scan in inventory.scans}
    kept = [s for s in inventory.scans if is_complete(out, s, facts[s.key])]
    todo = [s for s in inventory.scans if s not in kept]
    if config.reports_only:
        todo = []
    say(
        f"{inventory.size}: {len(todo)} to process, {len(kept)} done before, "
        f"{len(inventory.skipped)} skipped."
    )
    claims = claim_scans(config, todo)
    outcomes = [Outcome(s.key, "kept", "done before") for s in kept]
    if config.clean_workdir:
        for scan in kept:  # a run that was killed at a scan's end left its files behind
            shutil.rmtree(scan_work_folder(config, scan.wf_name), ignore_errors=True)
    for chunk in chunks(todo):
        outcomes += run.process(chunk, facts, done=len(outcomes), total=len(inventory.scans))
        run.report(subjects_of(chunk))
    if config.reports_only:
        run.report(subjects_of(inventory.scans))
    else:
        # A run killed between a scan's record and its report left the report behind.
        run.report(s for s in subjects_of(kept) if not report_is_new(out, s))
    outcomes += [Outcome(s.what, "skipped", s.why) for s in inventory.skipped]
    print_table(outcomes)
    for file in claims:
        file.close()
    say(f"Reports: {out}/sub-*.html")
    return EXIT_SCAN_FAILED if any(o.status == "failed" for o in outcomes) else EXIT_OK


def work_folder(config: RunConfig) -> Path:
    """Folder of the intermediate files; another version's are never taken for this one's."""
    return config.work_dir / f"bids_harmony-{__version__}"


def scan_work_folder(config: RunConfig, scan: str) -> Path:
    """Folder of one scan's intermediate files, by the name of its workflow."""
    return work_folder(config) / "harmony_wf" / scan


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


def prepare(config: RunConfig) -> Run:
    """Load the bundle and settle, before anything runs, what ``auto`` means.

    Raises
    ------
    BundleError
        When the bundle is missing or altered.
    MissingProgramError
        When FSL is asked for and is not there.
    UsageError
        When the template or the device does not fit.
    """
    bundle = None
    if config.bundle != "none":
        from bids_harmony.models.bundle import check_weights, load_bundle

        bundle = load_bundle(None if config.bundle == "default" else Path(config.bundle))
        if config.bundle != "default":
            check_weights(bundle)
    contract = Contract() if bundle is None else bundle.contract
    skull_strip = contract.skull_strip if config.skull_strip == "auto" else config.skull_strip
    registration = contract.registration if config.registration == "auto" else config.registration
    programs = [p for p, used in (("bet", skull_strip), ("flirt", registration)) if p == used]
    if programs:
        from bids_harmony.anat.fsl import check_programs

        check_programs(programs)
    if skull_strip == "multi-atlas":
        from bids_harmony.anat.multiatlas import find_atlases

        find_atlases(str(config.atlas_dir))
    warnings = deviations(config, contract) if bundle is not None else []
    predicted = {} if bundle is None else bundle.targets.get("brain_age", {})
    if config.correct_age_bias and "age_bias" not in predicted:
        warnings.append("--correct-age-bias has no effect: the bundle has no coefficients")
    from bids_harmony.anat.template import template_label

    template = None if config.template is None else str(config.template)
    if template is not None and bundle is not None:
        check_template(template, contract)
    return Run(
        config=config,
        bundle=bundle,
        contract=contract,
        space=template_label(template),
        device=choose_device(config.device) if bundle is not None else "cpu",
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class Run:
    """A run's settings once everything is settled."""

    config: RunConfig
    bundle: Bundle | None
    contract: Contract
    space: str
    device: str
    warnings: tuple[str, ...]

    def facts(self, scan: Scan) -> dict[str, Any]:
        """Collect what the scan's record says that is known before anything is computed."""
        config, bundle = self.config, self.bundle
        return {
            "name": scan.key,
            "entities": scan.entities,
            "source": scan.path.relative_to(config.bids_dir).as_posix(),
            "site": scan.site,
            "site_source": scan.site_source,
            "age": scan.age,
            "sex": scan.sex,
            "diagnosis": scan.diagnosis,
            "scanner": scan.metadata,
            "warnings": [*scan.warnings, *self.warnings],
            "processing": {
                "version": __version__,
                "skull_strip": config.skull_strip,
                "registration": config.registration,
                "template": self.space,
                "atlases": config.n_atlases,
                "output_spaces": list(config.output_spaces),
                "on_guard_fail": config.on_guard_fail,
                "correct_age_bias": config.correct_age_bias,
                "random_seed": config.random_seed,
                "sloppy": config.sloppy,
                "contract": self.contract.to_dict(),
                "mask_source": None if scan.mask is None else scan.mask.name,
            },
            "bundle": None
            if bundle is None
            else {**bundle.identity(), "reference_site": bundle.reference_site},
        }

    def process(
        self, scans: Sequence[Scan], facts: dict[str, Any], *, done: int, total: int
    ) -> list[Outcome]:
        """Run the graph of some scans; every failure ends up in its scan's record."""
        from bids_harmony.engine import (
            Progress,
            discard_damaged,
            nipype_settings,
            run_graph,
            start_log,
        )
        from bids_harmony.qc.record import failed_record
        from bids_harmony.workflows.base import init_harmony_wf
        from bids_harmony.workflows.outputs import RECORD_NODE

        config = self.config
        records = {s.key: scan_file(config.output_dir, s.entities, s.key, "qc") for s in scans}
        for path in records.values():
            # From here until its new record is written, the scan is not done.
            path.unlink(missing_ok=True)
        # Nipype would read the whole of a file before the first node looks at it.
        refused = {s.wf_name: why for s in scans if (why := refuse_file(s.path))}
        opened = [s for s in scans if s.wf_name not in refused]
        for scan in opened:
            discard_damaged(scan_work_folder(config, scan.wf_name))
        workflow = init_harmony_wf(
            scans=opened,
            facts=facts,
            crash_dir=str(config.log_dir),
            execution=nipype_settings(config),
            bids_dir=str(config.bids_dir),
            output_dir=str(config.output_dir),
            contract=self.contract,
            space=self.space,
            skull_strip=config.skull_strip,
            registration=config.registration,
            template=None if config.template is None else str(config.template),
            atlas_dir=None if config.atlas_dir is None else str(config.atlas_dir),
            n_atlases=config.n_atlases,
            bundle=None if self.bundle is None else str(self.bundle.path),
            bundle_sha256="" if self.bundle is None else self.bundle.sha256,
            reference_site=None if self.bundle is None else self.bundle.reference_site,
            native="T1w" in config.output_spaces,
            on_guard_fail=config.on_guard_fail,
            correct_age_bias=config.correct_age_bias,
            device=self.device,
            seed=config.random_seed,
            sloppy=config.sloppy,
            omp_nthreads=config.omp_nthreads,
        )
        workflow.base_dir = str(work_folder(config))
        workflow.config["monitoring"] = {"enabled": str(config.resource_monitor).lower()}
        start_log(config)
        if config.write_graph:
            workflow.write_graph(graph2use="colored", format="svg", simple_form=True)
        names = {scan.wf_name: scan.key for scan in opened}

        def clean(scan: str) -> None:
            # Only now: a scan that failed or was cut short goes on from these files.
            if config.clean_workdir:
                shutil.rmtree(scan_work_folder(config, scan), ignore_errors=True)

        progress = Progress(
            names, RECORD_NODE, say, done=done + len(refused), total=total, on_done=clean
        )
        crashed = run_graph(workflow, config, progress) if opened else None
        failures: dict[str, Failure] = {}
        for subject in {scan.entities["subject"] for scan in scans}:
            failures.update(read_failures(config.log_dir / f"sub-{subject}"))
        if crashed is not None and not failures:
            raise crashed
        failures |= refused
        outcomes = []
        for scan in scans:
            failure = failures.get(scan.wf_name)
            if records[scan.key].exists():
                outcomes.append(Outcome(scan.key, "done"))
                continue
            cause = failure.cause if failure else "The run stopped before this scan was done."
            remedy = failure.remedy if failure else "The same command continues."
            crash = failure.crash_file.name if failure and failure.crash_file else None
            write_json(records[scan.key], failed_record(facts[scan.key], cause, remedy, crash))
            outcomes.append(Outcome(scan.key, "failed", f"{cause} {remedy}"))
        return outcomes

    def report(self, subjects: Iterable[str]) -> None:
        """Rebuild the tables and reports of participants from what is on disk."""
        from bids_harmony.reports.participant import write_participant_report

        out = self.config.output_dir
        for subject in subjects:
            read = None
            # A job that works on another session may end it meanwhile, and have reported it.
            while read != (there := record_times(out, subject)):
                read = there
                write_scans_tables(out, subject)
                write_participant_report(out, subject)


def refuse_file(path: Path) -> Failure | None:
    """Say why a file need not be opened; None where it must be."""
    from bids_harmony.anat.check import check_file

    try:
        check_file(path)
    except ScanError as error:
        return Failure(error.cause, error.remedy, None)
    return None


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
