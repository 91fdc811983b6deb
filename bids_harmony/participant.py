"""The participant level: every scan its whole way, whatever happens to the others."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bids_harmony import __version__
from bids_harmony.bids import Scan, find_scans
from bids_harmony.bids_columns import named_person
from bids_harmony.console import say
from bids_harmony.contract import Contract
from bids_harmony.errors import (
    EXIT_NO_INPUT,
    EXIT_OK,
    EXIT_SCAN_FAILED,
    ScanError,
    UsageError,
    concerns_all,
)
from bids_harmony.failures import Failure, read_failures
from bids_harmony.files import claim, digest_of, sha256_of, write_json, write_text
from bids_harmony.outputs import (
    STAGING,
    publish_scan,
    scan_file,
    write_dataset_files,
    write_scans_tables,
)
from bids_harmony.resume import Digests, is_complete, record_times, report_is_new
from bids_harmony.settle import check_template, choose_device, deviations
from bids_harmony.tools import tool_versions

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig
    from bids_harmony.models.bundle import Bundle

#: Scans per nipype graph: its scheduler slows down with the square of the number of nodes.
CHUNK = 40
#: Why a scan has no result that did not fail itself.
STOPPED = Failure(
    "The run stopped before this scan was done.", "The same command continues.", None
)


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
    run.check_programs()
    out = config.output_dir
    targets = () if run.bundle is None else run.bundle.targets
    write_dataset_files(out, config.bids_dir, targets, tools=run.tools)
    write_text(config.log_dir / "bids_harmony.json", config.to_json())

    facts = {scan.key: run.facts(scan) for scan in inventory.scans}
    kept: list[Scan] = []
    todo: list[Scan] = []
    for scan in inventory.scans:
        (kept if run.completed(scan, facts[scan.key]) else todo).append(scan)
    run.digests.save()
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
    unreported = []
    for chunk in chunks(todo):
        outcomes += run.process(chunk, facts, done=len(outcomes), total=len(inventory.scans))
        unreported += run.report(subjects_of(chunk))
    if config.reports_only:
        unreported += run.report(subjects_of(inventory.scans))
    else:
        # A run killed between a scan's record and its report left the report behind.
        unreported += run.report(s for s in subjects_of(kept) if not report_is_new(out, s))
    outcomes += unreported
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


def staging_folder(config: RunConfig, scan: str) -> Path:
    """Folder of a scan's outputs until all of them are there."""
    return scan_work_folder(config, scan) / STAGING


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
        When the plugin's program is not there.
    UsageError
        When the template, the atlases, the device or the plugin cannot be used.
    """
    bundle = None
    if config.bundle != "none":
        from bids_harmony.models.bundle import check_weights, load_bundle

        bundle = load_bundle(None if config.bundle == "default" else Path(config.bundle))
        if config.bundle != "default":
            check_weights(bundle)
    if config.use_plugin is not None:
        from bids_harmony.engine import read_plugin_file

        read_plugin_file(config.use_plugin)
    contract = Contract() if bundle is None else bundle.contract
    skull_strip = contract.skull_strip if config.skull_strip == "auto" else config.skull_strip
    registration = contract.registration if config.registration == "auto" else config.registration
    atlases: list[Path] = []
    if skull_strip == "multi-atlas":
        from bids_harmony.anat.multiatlas import find_atlases

        found = find_atlases(str(config.atlas_dir))
        atlases = [path for atlas in found for path in (atlas.image, atlas.mask)]
    warnings = deviations(config, contract) if bundle is not None else []
    predicted = {} if bundle is None else bundle.targets.get("brain_age", {})
    if config.correct_age_bias and "age_bias" not in predicted:
        warnings.append("--correct-age-bias has no effect: the bundle has no coefficients")
    from bids_harmony.anat.template import template_label

    template = None if config.template is None else str(config.template)
    if template is not None:
        check_template(template, contract if bundle is not None else None)
    return Run(
        config=config,
        bundle=bundle,
        contract=contract,
        skull_strip=skull_strip,
        registration=registration,
        tools=tool_versions(skull_strip, registration),
        shared_inputs={
            "atlases": digest_of(atlases) if atlases else None,
            "template": None if config.template is None else sha256_of(config.template),
        },
        digests=Digests(config.output_dir / "logs" / "inputs"),
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
    skull_strip: str
    registration: str
    tools: dict[str, str]
    shared_inputs: dict[str, str | None]
    digests: Digests
    space: str
    device: str
    warnings: tuple[str, ...]

    def check_programs(self) -> None:
        """Make sure that the programs of FSL that are asked for can run.

        Raises
        ------
        MissingProgramError
            For the first that cannot.
        """
        asked = (("bet", self.skull_strip), ("flirt", self.registration))
        if programs := [program for program, method in asked if program == method]:
            from bids_harmony.anat.fsl import check_programs

            check_programs(programs)

    def inputs(self, scan: Scan) -> dict[str, str | None]:
        """Digests of every file that a scan's results depend on, by what it is used for."""
        found = dict(self.shared_inputs)
        for name, path in (("T1w", scan.path), ("brain_mask", scan.mask)):
            try:
                found[name] = (
                    None if path is None else self.digests.of(path, scan.entities["subject"])
                )
            except OSError:  # said by the step that reads it
                found[name] = None
        return found

    def completed(self, scan: Scan, facts: dict[str, Any]) -> bool:
        """Tell whether a scan was completed before and would be left as it is."""
        return is_complete(self.config.output_dir, scan, facts, lambda: self.inputs(scan))

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
            "person": named_person(scan.columns) or scan.entities["subject"],
            "scanner": scan.metadata,
            "warnings": [*scan.warnings, *self.warnings],
            "processing": {
                "version": __version__,
                "tools": self.tools,
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
            discard_outdated,
            nipype_settings,
            run_graph,
            start_log,
        )
        from bids_harmony.qc.record import failed_record
        from bids_harmony.workflows.base import init_harmony_wf
        from bids_harmony.workflows.outputs import LAST_NODE

        config = self.config
        records = {s.key: scan_file(config.output_dir, s.entities, s.key, "qc") for s in scans}
        before = {key: state_of(path) for key, path in records.items()}
        # Nipype would read the whole of a file before the first node looks at it.
        refused = {
            s.wf_name: why
            for s in scans
            if (why := refuse_file(s.path) or refuse_folder(records[s.key].parent))
        }
        opened = [s for s in scans if s.wf_name not in refused]
        for scan in scans:  # what an earlier run left there
            shutil.rmtree(staging_folder(config, scan.wf_name), ignore_errors=True)
        for scan in opened:
            facts[scan.key]["inputs"] = self.inputs(scan)
            try:
                discard_outdated(scan_work_folder(config, scan.wf_name), facts[scan.key]["inputs"])
            except OSError as error:
                if concerns_all(error):
                    raise
                refused[scan.wf_name] = Failure(
                    f"Its work folder cannot be written ({error}).",
                    "Change its permissions, or give another --work-dir.",
                    None,
                )
        opened = [s for s in opened if s.wf_name not in refused]
        self.digests.save()
        workflow = init_harmony_wf(
            scans=opened,
            facts=facts,
            crash_dir=str(config.log_dir),
            execution=nipype_settings(config),
            bids_dir=str(config.bids_dir),
            output_dir=str(config.output_dir),
            work_dir=str(scan_work_folder(config, "")),
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
            names, LAST_NODE, say, done=done + len(refused), total=total, on_done=clean
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
            failure, path = failures.get(scan.wf_name), records[scan.key]
            if failure is None and state_of(path) != before[scan.key]:
                outcomes.append(Outcome(scan.key, "done"))
                continue
            # Where it was not its turn, what an earlier run made stays.
            replace = failure is not None or not path.exists()
            failure = failure or STOPPED
            told = f"{failure.cause} {failure.remedy}"
            if replace:
                crash = failure.crash_file.name if failure.crash_file else None
                record = failed_record(facts[scan.key], failure.cause, failure.remedy, crash)
                try:
                    self.publish_failure(scan, record)
                except OSError as error:
                    if concerns_all(error):
                        raise
                    told += f" Its record could not be written ({error})."
            outcomes.append(Outcome(scan.key, "failed", told))
        return outcomes

    def publish_failure(self, scan: Scan, record: dict[str, Any]) -> None:
        """Put a failed scan's record in the place of all it had, with the figures that got drawn.

        They show why it failed, as a brain mask or a registration that went wrong.
        """
        out = self.config.output_dir
        staging = staging_folder(self.config, scan.wf_name)
        with tempfile.TemporaryDirectory() as elsewhere:
            if refuse_folder(staging):
                staging = Path(elsewhere)
            drawn = staging.glob(f"sub-{scan.entities['subject']}/figures/*")
            record["outputs"] = sorted(path.relative_to(staging).as_posix() for path in drawn)
            path = scan_file(staging, scan.entities, scan.key, "qc")
            write_json(path, record)
            publish_scan(staging, out, path)

    def report(self, subjects: Iterable[str]) -> list[Outcome]:
        """Rebuild the tables and reports of participants from what is on disk.

        Returns
        -------
        list of Outcome
            One for each participant whose report could not be written.
        """
        from bids_harmony.reports.participant import write_participant_report

        out, failed = self.config.output_dir, []
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
                crash = self.config.log_dir / f"sub-{subject}_report.txt"
                write_text(crash, traceback.format_exc())
                why = f"Its report could not be written ({type(error).__name__}: {error})."
                failed.append(
                    Outcome(f"sub-{subject}", "failed", f"{why} The traceback is in {crash}.")
                )
        return failed


def refuse_file(path: Path) -> Failure | None:
    """Say why a file need not be opened; None where it must be."""
    from bids_harmony.anat.check import check_file

    try:
        check_file(path)
    except ScanError as error:
        return Failure(error.cause, error.remedy, None)
    return None


def refuse_folder(folder: Path) -> Failure | None:
    """Say why a scan's outputs cannot be written; None where they can."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return Failure(
        f"Its output folder {there} cannot be written.",
        "Change its permissions, or give another output folder.",
        None,
    )


def state_of(path: Path) -> tuple[int, int] | None:
    """Tell one version of a file that is replaced whole from the next; None where it is absent."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


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
