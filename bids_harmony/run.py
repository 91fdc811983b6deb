"""A run's settings, what it has to do with each scan, and the graphs that do it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony import __version__
from bids_harmony.bids import Scan
from bids_harmony.bids_columns import named_person
from bids_harmony.calibrate import (
    FOLDER,
    Chosen,
    calibrate_sites,
    collect_sites,
    find_calibrations,
    save,
)
from bids_harmony.console import say
from bids_harmony.contract import Contract
from bids_harmony.errors import ScanError, UsageError, concerns_all
from bids_harmony.failures import Failure, read_failures
from bids_harmony.files import digest_of, sha256_of, write_json
from bids_harmony.outputs import STAGING, load_record, publish_scan, scan_file
from bids_harmony.qc.record import failed_record, preprocessed
from bids_harmony.resume import Digests, is_preprocessed
from bids_harmony.settle import check_filter, check_template, choose_device, deviations
from bids_harmony.sites.calibration import Calibration, SiteScan, sources_digest
from bids_harmony.tools import tool_versions

if TYPE_CHECKING:
    from nipype.pipeline import engine as pe

    from bids_harmony.config import RunConfig
    from bids_harmony.models.bundle import Bundle

#: The parts of a scan's way, and what is to do with one that went it whole.
PREPROCESS, HARMONIZE, NOTHING = "preprocess", "harmonize", "nothing"
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


def work_folder(config: RunConfig) -> Path:
    """Folder of the intermediate files; another version's are never taken for this one's."""
    return config.work_dir / f"bids_harmony-{__version__}"


def scan_work_folder(config: RunConfig, scan: str) -> Path:
    """Folder of one scan's intermediate files, by the name of its workflow."""
    return work_folder(config) / "harmony_wf" / scan


def staging_folder(config: RunConfig, scan: str) -> Path:
    """Folder of a scan's outputs until all of them are there."""
    return scan_work_folder(config, scan) / STAGING


def prepare(config: RunConfig) -> Run:
    """Load the bundle and settle, before anything runs, what ``auto`` means.

    Raises
    ------
    BundleError
        When the bundle is missing or altered.
    MissingProgramError
        When the plugin's program is not there.
    UsageError
        When the template, the atlases, the device, the plugin, the condition of ``--fit-filter``
        or a calibration cannot be used.
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
        from bids_harmony.anat.brain import find_atlases

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
    space = template_label(template)
    frozen = {}
    if bundle is not None:
        if config.fit_filter is not None:
            check_filter(config.fit_filter)
        frozen = find_calibrations(config, bundle, space)
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
        space=space,
        device=choose_device(config.device) if bundle is not None else "cpu",
        warnings=tuple(warnings),
        frozen=frozen,
    )


@dataclass(frozen=True)
class Run:
    """A run's settings once everything is settled.

    ``frozen`` holds the calibrations that are used as they are, by site.
    """

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
    frozen: dict[str, Chosen]

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

    def record_of(self, scan: Scan) -> Path:
        """Path of a scan's record."""
        return scan_file(self.config.output_dir, scan.entities, scan.key, "qc")

    def facts(self, scan: Scan) -> dict[str, Any]:
        """Collect what is known of a scan before anything is computed, as its record says it."""
        config = self.config
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
                "random_seed": config.random_seed,
                "sloppy": config.sloppy,
                "contract": self.contract.to_dict(),
                "mask_source": None if scan.mask is None else scan.mask.name,
            },
            "bundle": None,
            "calibration": None,
            "harmonization": None,
        }

    def harmonization(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Say what a harmonized scan's record says beside :meth:`facts`.

        Parameters
        ----------
        chosen : mapping
            Identity of the calibration of its site.
        """
        config, bundle = self.config, self.bundle
        assert bundle is not None
        return {
            "bundle": {**bundle.identity(), "reference_site": bundle.reference_site},
            "calibration": dict(chosen),
            "harmonization": {
                "output_spaces": list(config.output_spaces),
                "on_guard_fail": config.on_guard_fail,
                "correct_age_bias": config.correct_age_bias,
            },
        }

    def survey(self, scans: Sequence[Scan]) -> dict[str, str]:
        """Tell what is to do with each of a run's scans, by its key.

        Returns
        -------
        dict of str to str
            :data:`PREPROCESS` (and harmonize), :data:`HARMONIZE` (alone) or :data:`NOTHING`.
        """
        records = {scan.key: load_record(self.record_of(scan)) for scan in scans}
        found = {
            scan.key: HARMONIZE
            if is_preprocessed(
                self.config.output_dir,
                records[scan.key],
                self.facts(scan),
                partial(self.inputs, scan),
            )
            else PREPROCESS
            for scan in scans
        }
        expected = {} if self.bundle is None else self.expected(scans, found)
        for scan in scans:
            if found[scan.key] == HARMONIZE:
                if self.is_whole(records[scan.key] or {}, expected.get(scan.site)):
                    found[scan.key] = NOTHING
                elif self.bundle is None:
                    found[scan.key] = PREPROCESS
        return found

    def is_whole(self, record: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> bool:
        """Tell whether a scan that is preprocessed went its whole way, with the run's settings.

        Parameters
        ----------
        record : mapping
            The scan's.
        chosen : mapping or None
            What is known of its site's calibration, if anything.
        """
        if record.get("status") == "error":
            return False
        if not all((self.config.output_dir / path).exists() for path in record["outputs"]):
            return False
        if self.bundle is None:
            return record.get("bundle") is None
        if chosen is None:
            return False
        wanted = json.loads(json.dumps(self.harmonization(chosen)))
        named = record.get("calibration") or {}
        return all(named.get(k) == v for k, v in wanted.pop("calibration").items()) and all(
            record.get(k) == v for k, v in wanted.items()
        )

    def own_sites(self, scans: Sequence[Scan]) -> dict[str, list[SiteScan]]:
        """Collect, of the preprocessed among some scans, the sites to calibrate from them."""
        assert self.bundle is not None
        records = [self.record_of(scan) for scan in scans if scan.site not in self.frozen]
        return collect_sites(
            records,
            self.config.output_dir,
            self.config.fit_filter,
            bundle=self.bundle,
            template=self.space,
        )[0]

    def expected(
        self, scans: Sequence[Scan], states: Mapping[str, str]
    ) -> dict[str, dict[str, Any]]:
        """Tell what the record of a scan that is done would say of the calibration of its site.

        A site with scans that are to be preprocessed is left out: it will be calibrated anew.
        """
        assert self.bundle is not None
        found: dict[str, dict[str, Any]] = {
            site: c.identity(self.config.output_dir, self.bundle)
            for site, c in self.frozen.items()
        }
        waiting = {scan.site for scan in scans if states[scan.key] == PREPROCESS}
        ready = [scan for scan in scans if scan.site not in waiting]
        for site, group in self.own_sites(ready).items():
            sources = sources_digest(group, self.bundle, self.space, self.config.fit_filter)
            found[site] = {"made_by": "participant", "sources": sources}
        return found

    def calibrate(self, scans: Sequence[Scan], states: Mapping[str, str]) -> dict[str, Chosen]:
        """Calibrate the sites whose scans are to be harmonized, from the scans of the run.

        Parameters
        ----------
        scans : sequence of Scan
            All of the run that are preprocessed.
        states : mapping
            Of :meth:`survey`.

        Returns
        -------
        dict of str to Chosen
            By site, with those that are used as they are.
        """
        assert self.bundle is not None
        config, bundle = self.config, self.bundle
        sites = self.own_sites(scans)
        kept: dict[str, Chosen] = {}
        stale = False
        for path in sorted((config.output_dir / FOLDER).glob("site-*_calibration.json")):
            values = load_record(path) or {}
            group = sites.get(str(values.get("site")))
            if values.get("made_by") != "participant":
                continue
            if group and values.get("sources") == sources_digest(
                group, bundle, self.space, config.fit_filter
            ):
                kept[group[0].site] = Chosen(Calibration.from_dict(values), path)
            else:
                stale = True
        todo = {scan.site for scan in scans if states[scan.key] == HARMONIZE}
        new = calibrate_sites(
            {
                site: group
                for site, group in sites.items()
                if site not in kept and (self.whole_dataset or site in todo)
            },
            bundle,
            template=self.space,
            fit_filter=config.fit_filter,
            made_by="participant",
            nprocs=config.nprocs,
        )
        files: dict[str, Path] = {}
        if self.whole_dataset and (new or stale):
            stay = [*kept.values(), *self.frozen.values()]
            files = save(config.output_dir, new.values(), bundle, stay)
        return {
            **{
                site: replace(c, path=files.get(site, c.path))
                for site, c in {**self.frozen, **kept}.items()
            },
            **{site: Chosen(one, files.get(site)) for site, one in new.items()},
        }

    def site_notes(self, scans: Sequence[Scan]) -> list[str]:
        """Say which calibrations the run will use, and what it takes for a site.

        Raises
        ------
        UsageError
            When ``--calibration`` has none of a site of the run.
        """
        if self.bundle is None:
            return []
        config, notes = self.config, []
        sites = {scan.site for scan in scans}
        given = {site: c.path for site, c in self.frozen.items() if c.calibration.site in sites}
        lacking = sorted(sites - set(given))
        if config.calibration is not None and not given:
            known = ", ".join(sorted(self.frozen))
            raise UsageError(
                f"The site {lacking[0]} has no calibration in {config.calibration}, which has "
                f"{known}.",
                "Name its calibration, or the column of the sites by --site-column.",
            )
        for site, path in sorted(given.items()):
            notes.append(f"The site {site} is calibrated by {path}.")
        if config.calibration is not None:
            notes += [
                f"Warning: The site {site} has no calibration in {config.calibration}: it is "
                "calibrated from its scans in this run."
                for site in lacking
            ]
        if lacking and not self.whole_dataset:
            notes.append(
                "Sites are calibrated from the chosen scans alone; the calibrate level does it "
                "from all that are preprocessed."
            )
        unnamed = sum(scan.site_source == "none" for scan in scans)
        if unnamed == len(scans):
            notes.append("There is no site information: all scans are taken for one site.")
        elif unnamed:
            notes.append(
                f"Warning: {unnamed} of {len(scans)} scans have no site information, and are "
                "taken for one site."
            )
        return notes

    @property
    def whole_dataset(self) -> bool:
        """Whether the run covers all scans of the dataset."""
        config = self.config
        return not (config.participant_label or config.session_label or config.bids_filters)

    def process(
        self,
        part: str,
        scans: Sequence[Scan],
        facts: Mapping[str, dict[str, Any]],
        calibrations: Mapping[str, Chosen],
        *,
        done: int,
        total: int,
    ) -> list[Outcome]:
        """Run the graph of one part of some scans' way; failures end up in the scans' records.

        Parameters
        ----------
        part : {"preprocess", "harmonize"}
            Which part.
        scans : sequence of Scan
            The scans; to be harmonized, they must be preprocessed.
        facts : mapping
            By scan key, what goes into the scan's record.
        calibrations : mapping
            By site, for the second part.
        done, total : int
            Scans of this part that ended before, and all of it.
        """
        from bids_harmony.engine import (
            Progress,
            discard_outdated,
            nipype_settings,
            run_graph,
            start_log,
        )
        from bids_harmony.workflows.base import init_harmony_wf
        from bids_harmony.workflows.outputs import LAST_NODE

        config = self.config
        records = {s.key: self.record_of(s) for s in scans}
        state = {key: state_of(path) for key, path in records.items()}
        before = {
            s.key: preprocessed(load_record(records[s.key]) or {}) if part == HARMONIZE else {}
            for s in scans
        }
        # Nipype would read the whole of a file before the first node looks at it.
        refused = {
            s.wf_name: why
            for s in scans
            if (why := (part == PREPROCESS and refuse_file(s.path))
                or refuse_folder(records[s.key].parent))
        }  # fmt: skip
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
            build=lambda scan: self.graph(
                part, scan, facts[scan.key], before[scan.key], calibrations
            ),
            crash_dir=str(config.log_dir),
            execution=nipype_settings(config),
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

        word = "done" if part == HARMONIZE or self.bundle is None else "preprocessed"
        progress = Progress(
            names, LAST_NODE, say, done=done + len(refused), total=total, word=word, on_done=clean
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
            if failure is None and state_of(path) != state[scan.key]:
                outcomes.append(Outcome(scan.key, "done"))
                continue
            # Where it was not its turn, what an earlier run made stays.
            replace = failure is not None or not path.exists()
            failure = failure or STOPPED
            told = f"{failure.cause} {failure.remedy}"
            if replace:
                crash = failure.crash_file.name if failure.crash_file else None
                known = facts[scan.key] | before[scan.key]
                record = failed_record(known, failure.cause, failure.remedy, crash)
                try:
                    self.publish_failure(scan, record, before[scan.key].get("outputs", ()))
                except OSError as error:
                    if concerns_all(error):
                        raise
                    told += f" Its record could not be written ({error})."
            outcomes.append(Outcome(scan.key, "failed", told))
        return outcomes

    def graph(
        self,
        part: str,
        scan: Scan,
        facts: dict[str, Any],
        before: dict[str, Any],
        calibrations: Mapping[str, Chosen],
    ) -> pe.Workflow:
        """Make the graph of one part of a scan's way."""
        from bids_harmony.workflows.base import init_preprocess_wf, init_reference_wf

        config, bundle = self.config, self.bundle
        common: dict[str, Any] = {
            "scan": scan,
            "facts": facts,
            "bids_dir": str(config.bids_dir),
            "output_dir": str(config.output_dir),
            "staging_dir": str(staging_folder(config, scan.wf_name)),
            "contract": self.contract,
            "space": self.space,
            "template": None if config.template is None else str(config.template),
            "omp_nthreads": config.omp_nthreads,
        }
        if part == PREPROCESS:
            return init_preprocess_wf(
                **common,
                skull_strip=config.skull_strip,
                registration=config.registration,
                atlas_dir=None if config.atlas_dir is None else str(config.atlas_dir),
                n_atlases=config.n_atlases,
                seed=config.random_seed,
                sloppy=config.sloppy,
            )
        assert bundle is not None
        return init_reference_wf(
            **common,
            before=before,
            bundle=str(bundle.path),
            bundle_sha256=bundle.sha256,
            calibration=calibrations[scan.site].calibration.to_dict(),
            native="T1w" in config.output_spaces,
            on_guard_fail=config.on_guard_fail,
            correct_age_bias=config.correct_age_bias,
            device=self.device,
        )

    def publish_failure(self, scan: Scan, record: dict[str, Any], kept: Iterable[str]) -> None:
        """Put a failed scan's record in the place of all it had, with the figures that got drawn.

        They show why it failed, as a brain mask or a registration that went wrong. What
        preprocessing left is ``kept`` where the scan failed after it.
        """
        out = self.config.output_dir
        staging = staging_folder(self.config, scan.wf_name)
        with tempfile.TemporaryDirectory() as elsewhere:
            if refuse_folder(staging):
                staging = Path(elsewhere)
            drawn = staging.glob(f"sub-{scan.entities['subject']}/figures/*")
            names = (path.relative_to(staging).as_posix() for path in drawn)
            record["outputs"] = sorted({*kept, *names})
            path = scan_file(staging, scan.entities, scan.key, "qc")
            write_json(path, record)
            publish_scan(staging, out, path, kept)


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
