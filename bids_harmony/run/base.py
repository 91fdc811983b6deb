"""A run's settings, and what it has to do with each scan."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony import __version__
from bids_harmony.bids.dataset import Scan
from bids_harmony.bids.outputs import Digests, load_record, scan_file
from bids_harmony.bids.tables import named_person
from bids_harmony.errors import UsageError
from bids_harmony.files import digest_of, sha256_of
from bids_harmony.models.contract import Contract, tool_versions
from bids_harmony.qc.record import PREPROCESSED, preprocessed
from bids_harmony.run.calibrate import (
    Chosen,
    calibrate_sites,
    collect_sites,
    find_calibrations,
    save,
)
from bids_harmony.sites.calibration import SiteScan, sources_digest

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig
    from bids_harmony.models.bundle import Bundle

#: What there is to do with a scan.
PREPROCESS, HARMONIZE, NOTHING = "preprocess", "harmonize", "nothing"
#: What a record says that preprocessing does not depend on.
LATER = frozenset({"warnings", "bundle", "calibration", "harmonization"})


def prepare(config: RunConfig) -> Run:
    """Load the bundle and find out, before anything runs, what ``auto`` means.

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
    from bids_harmony.anat.template import load_template, template_label

    bundle = None
    if config.bundle != "none":
        from bids_harmony.models.bundle import check_weights, load_bundle

        bundle = load_bundle(None if config.bundle == "default" else Path(config.bundle))
        if config.bundle != "default":
            check_weights(bundle)
    if config.use_plugin is not None:
        from bids_harmony.run.engine import load_plugin

        load_plugin(config.use_plugin)
    contract = Contract() if bundle is None else bundle.contract
    skull_strip = contract.skull_strip if config.skull_strip == "auto" else config.skull_strip
    registration = contract.registration if config.registration == "auto" else config.registration
    atlases: list[Path] = []
    if skull_strip == "multi-atlas":
        from bids_harmony.anat.brain import find_atlases

        found = find_atlases(str(config.atlas_dir))
        atlases = [path for atlas in found for path in (atlas.image, atlas.mask)]
    template = None if config.template is None else str(config.template)
    if template is not None:
        grid = load_template(contract.resolution, template).mask.shape
        wanted = load_template(contract.resolution).mask.shape
        if bundle is not None and grid != wanted:
            raise UsageError(
                f"The template {template} has the grid {grid} at {contract.resolution} mm, and "
                f"the bundle was trained on {contract.template} with {wanted}.",
                "Leave --template out.",
            )
    space = template_label(template)
    if bundle is not None and config.fit_filter is not None:
        check_filter(config.fit_filter)
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
        warnings=tuple(doubts(config, bundle)),
        frozen={} if bundle is None else find_calibrations(config, bundle, space),
    )


def doubts(config: RunConfig, bundle: Bundle | None) -> list[str]:
    """Say which options do not fit the bundle."""
    if bundle is None:
        return []
    trained = bundle.contract
    found = [
        f"{option} {asked} differs from the bundle's {theirs}"
        for option, asked, theirs in (
            ("--skull-strip", config.skull_strip, trained.skull_strip),
            ("--registration", config.registration, trained.registration),
            ("--template", config.template or "auto", trained.template),
        )
        if asked not in ("auto", theirs)
    ]
    if config.correct_age_bias and "age_bias" not in bundle.targets.get("brain_age", {}):
        found.append("--correct-age-bias has no effect: the bundle has no coefficients")
    return found


def choose_device(asked: str) -> str:
    """Decide what ``--device`` means here, asking torch in a process of its own."""
    if asked == "cpu" or (asked == "auto" and not shutil.which("nvidia-smi")):
        return "cpu"
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode == 0:  # noqa: S603
        return "cuda"
    if asked == "cuda":
        raise UsageError(
            "--device cuda was asked for, and torch finds no CUDA device.",
            "Use --device auto, or give the container its GPU (--gpus all, --nv).",
        )
    return "cpu"


def check_filter(condition: str) -> None:
    """Refuse, before anything runs, a ``--fit-filter`` that cannot be understood."""
    from bids_harmony.bids.filters import meets
    from bids_harmony.qc.dataset import ScanRow, scan_table
    from bids_harmony.qc.reference import dictionary

    row = ScanRow({"scan": "sub-01"}, metrics=tuple(dictionary()))
    meets(scan_table([row])[0], condition)


@dataclass(frozen=True)
class Run:
    """A run's settings once ``auto`` is decided.

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

    @property
    def whole_dataset(self) -> bool:
        """Whether the run covers all scans of the dataset."""
        config = self.config
        return not (config.participant_label or config.session_label or config.bids_filters)

    def check_programs(self) -> None:
        """Make sure that the programs of FSL that are asked for can run.

        Raises
        ------
        MissingProgramError
            For the first that cannot.
        """
        from bids_harmony.anat.fsl import check_programs

        asked = (("bet", self.skull_strip), ("flirt", self.registration))
        check_programs([program for program, method in asked if program == method])

    def inputs(self, scan: Scan) -> dict[str, str | None]:
        """Digests of every file that a scan's results depend on, by what it is used for."""
        found: dict[str, str | None] = {**self.shared_inputs, "T1w": None, "brain_mask": None}
        for name, path in (("T1w", scan.path), ("brain_mask", scan.mask)):
            if path is not None:
                with suppress(OSError):  # said by the step that reads it
                    found[name] = self.digests.of(path, scan.entities["subject"])
        return found

    def record_of(self, scan: Scan) -> Path:
        """Path of a scan's record."""
        return scan_file(self.config.output_dir, scan.entities, scan.key, "qc")

    def facts(self, scan: Scan) -> dict[str, Any]:
        """Collect what is known of a scan before anything is computed, as its record says it."""
        config = self.config
        known = ("site", "site_source", "age", "sex", "diagnosis")
        asked = ("skull_strip", "registration", "random_seed", "sloppy")
        return {
            "name": scan.key,
            "entities": scan.entities,
            "source": scan.path.relative_to(config.bids_dir).as_posix(),
            **{name: getattr(scan, name) for name in known},
            "person": named_person(scan.columns) or scan.entities["subject"],
            "scanner": scan.metadata,
            "warnings": [*scan.warnings, *self.warnings],
            "processing": {
                **{name: getattr(config, name) for name in asked},
                "version": __version__,
                "tools": self.tools,
                "template": self.space,
                "contract": self.contract.to_dict(),
                "mask_source": None if scan.mask is None else scan.mask.name,
            },
            **dict.fromkeys(("bundle", "calibration", "harmonization")),
        }

    def harmonization(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Say what a harmonized scan's record says beside :meth:`facts`.

        Parameters
        ----------
        chosen : mapping
            Identity of the calibration of its site.
        """
        bundle, asked = self.bundle, ("output_spaces", "on_guard_fail", "correct_age_bias")
        assert bundle is not None
        options = {name: getattr(self.config, name) for name in asked}
        return {
            "bundle": {**bundle.identity(), "reference_site": bundle.reference_site},
            "calibration": dict(chosen),
            "harmonization": options | {"output_spaces": list(self.config.output_spaces)},
        }

    def survey(self, scans: Sequence[Scan]) -> dict[str, str]:
        """Tell what there is to do with each of a run's scans, by its key.

        Returns
        -------
        dict of str to str
            :data:`PREPROCESS` (and harmonize), :data:`HARMONIZE` (alone) or :data:`NOTHING`.
        """
        records = {scan.key: load_record(self.record_of(scan)) or {} for scan in scans}
        states = {
            scan.key: HARMONIZE if self.is_preprocessed(scan, records[scan.key]) else PREPROCESS
            for scan in scans
        }
        expected = {} if self.bundle is None else self.expected(scans, states)
        for scan in scans:
            if states[scan.key] == HARMONIZE:
                if self.is_completed(records[scan.key], expected.get(scan.site)):
                    states[scan.key] = NOTHING
                elif self.bundle is None:
                    states[scan.key] = PREPROCESS
        return states

    def is_preprocessed(self, scan: Scan, record: Mapping[str, Any]) -> bool:
        """Tell whether a scan was preprocessed from the same inputs with the same settings.

        All that its record would say beforehand must agree, and all outputs be there; the inputs
        are compared last, as they may have to be read.
        """
        if not record.keys() >= {*PREPROCESSED, "outputs"}:
            return False
        expected = json.loads(json.dumps(self.facts(scan)))
        return (
            all(record.get(k) == v for k, v in expected.items() if k not in LATER)
            and self._are_there(preprocessed(record)["outputs"])
            and record.get("inputs") == self.inputs(scan)
        )

    def is_completed(self, record: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> bool:
        """Tell whether a preprocessed scan is completed with the run's settings.

        Parameters
        ----------
        record : mapping
            The scan's.
        chosen : mapping or None
            What is known of its site's calibration, if anything.
        """
        if record.get("status") == "error" or not self._are_there(record["outputs"]):
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

    def _are_there(self, outputs: Sequence[str]) -> bool:
        return all((self.config.output_dir / path).exists() for path in outputs)

    def own_sites(self, scans: Sequence[Scan]) -> dict[str, list[SiteScan]]:
        """Collect, of the preprocessed among some scans, the sites to calibrate from them."""
        assert self.bundle is not None
        records = [self.record_of(scan) for scan in scans if scan.site not in self.frozen]
        out, condition = self.config.output_dir, self.config.fit_filter
        return collect_sites(records, out, condition, bundle=self.bundle, template=self.space)[0]

    def expected(
        self, scans: Sequence[Scan], states: Mapping[str, str]
    ) -> dict[str, dict[str, Any]]:
        """Tell what a completed scan's record would say of the calibration of its site.

        A site with scans that are to be preprocessed is left out: it will be calibrated anew.
        """
        assert self.bundle is not None
        out, bundle = self.config.output_dir, self.bundle
        found = {site: chosen.identity(out, bundle) for site, chosen in self.frozen.items()}
        waiting = {scan.site for scan in scans if states[scan.key] == PREPROCESS}
        ready = [scan for scan in scans if scan.site not in waiting]
        for site, group in self.own_sites(ready).items():
            sources = sources_digest(group, bundle, self.space, self.config.fit_filter)
            found[site] = {"made_by": "participant", "sources": sources}
        return found

    def calibrate(self, scans: Sequence[Scan], used: set[str]) -> dict[str, Chosen]:
        """Calibrate the sites whose scans are to be harmonized, from the scans of the run.

        Parameters
        ----------
        scans : sequence of Scan
            All of the run that are preprocessed.
        used : set of str
            The sites.

        Returns
        -------
        dict of str to Chosen
            By site, with those that are used as they are.
        """
        assert self.bundle is not None
        config, sites = self.config, self.own_sites(scans)
        new = calibrate_sites(
            {site: group for site, group in sites.items() if site in used},
            self.bundle,
            template=self.space,
            fit_filter=config.fit_filter,
            made_by="participant",
            nprocs=config.nprocs,
        )
        files: dict[str, Path] = {}
        if self.whole_dataset and new:
            files = save(config.output_dir, new.values(), self.bundle, {*sites, *self.frozen})
        return self.frozen | {site: Chosen(one, files.get(site)) for site, one in new.items()}

    def site_notes(self, scans: Sequence[Scan]) -> list[str]:
        """Say which calibrations the run will use, and what it takes for a site.

        Raises
        ------
        UsageError
            When ``--calibration`` has none of a site of the run.
        """
        if self.bundle is None:
            return []
        config, sites = self.config, {scan.site for scan in scans}
        given = {site: chosen.path for site, chosen in self.frozen.items() if site in sites}
        lacking = sorted(sites - set(given))
        if config.calibration is not None and not given:
            known = ", ".join(sorted(self.frozen))
            raise UsageError(
                f"The site {lacking[0]} has no calibration in {config.calibration}, which has "
                f"{known}.",
                "Name its calibration, or the column of the sites by --site-column.",
            )
        notes = [
            f"The site {site} is calibrated by {path}." for site, path in sorted(given.items())
        ]
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
