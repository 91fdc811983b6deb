"""Settings of a run, and the processing that each scan still needs."""

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
from bids_harmony.anat import tool_versions
from bids_harmony.bids.dataset import Scan
from bids_harmony.bids.outputs import Digests
from bids_harmony.bids.records import PREPROCESSED, load_record, preprocessed, scan_file
from bids_harmony.bids.tables import named_person
from bids_harmony.config import Contract
from bids_harmony.errors import UsageError
from bids_harmony.files import digest_of, sha256_of
from bids_harmony.run.calibrate import (
    Chosen,
    asked_bundle,
    calibrate_sites,
    collect_sites,
    find_calibrations,
    save,
)
from bids_harmony.sites.calibration import SiteScan, sources_digest

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig
    from bids_harmony.models.bundle import Bundle

#: Processing that a scan needs; ``preprocess`` includes harmonizing.
PREPROCESS, HARMONIZE, NOTHING = "preprocess", "harmonize", "nothing"
#: Notes of the dry run on scans that have a record (recipes parse the last one).
NOTES = {
    PREPROCESS: "completed before with other inputs or options",
    HARMONIZE: "preprocessed before, to be harmonized",
    NOTHING: "completed, nothing to do",
}
#: Keys of facts that preprocessing does not depend on.
LATER = frozenset({"warnings", "bundle", "calibration", "harmonization"})


def prepare(config: RunConfig) -> Run:
    """Load the bundle, resolve ``auto`` options and check all settings before processing starts.

    Raises
    ------
    BundleError
        If the bundle is missing or modified.
    MissingProgramError
        If the program of the plugin is missing.
    UsageError
        If the template, the atlases, the device, the plugin, the condition of ``--fit-filter`` or
        a calibration cannot be used.
    """
    from bids_harmony.anat.template import load_template, template_label

    bundle = asked_bundle(config)
    if bundle is not None and config.bundle != "default":
        from bids_harmony.models.bundle import check_weights

        check_weights(bundle)
    if config.use_plugin is not None:
        from bids_harmony.run.engine import load_plugin

        load_plugin(config.use_plugin)
    contract = Contract() if bundle is None else bundle.contract
    skull_strip = contract.skull_strip if config.skull_strip == "auto" else config.skull_strip
    registration = contract.registration if config.registration == "auto" else config.registration
    inputs: dict[str, str | None] = {"atlases": None, "template": None}
    if skull_strip == "multi-atlas":
        from bids_harmony.anat.brain import find_atlases

        atlases = find_atlases(str(config.atlas_dir))
        inputs["atlases"] = digest_of(path for atlas in atlases for path in atlas[1:])
    if config.template is not None:
        grid = load_template(contract.resolution, str(config.template)).mask.shape
        inputs["template"] = sha256_of(config.template)
        if bundle is not None and grid != load_template(contract.resolution).mask.shape:
            raise UsageError(
                f"The template {config.template} has the grid {grid} at {contract.resolution} mm, "
                f"which is not that of {contract.template}, on which the bundle was trained.",
                "Leave --template out.",
            )
    space = template_label(None if config.template is None else str(config.template))
    if bundle is not None and config.fit_filter is not None:
        check_filter(config.fit_filter)
    return Run(
        config=config,
        bundle=bundle,
        contract=contract,
        skull_strip=skull_strip,
        registration=registration,
        tools=tool_versions(skull_strip, registration),
        shared_inputs=inputs,
        digests=Digests(config.output_dir / "logs" / "inputs"),
        space=space,
        device="cpu" if bundle is None else choose_device(config.device),
        warnings=() if bundle is None else tuple(deviations(config, bundle)),
        frozen={} if bundle is None else find_calibrations(config, bundle, space),
    )


def deviations(config: RunConfig, bundle: Bundle) -> list[str]:
    """Return warnings about options that differ from the bundle's contract or have no effect."""
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
    """Return ``cpu`` or ``cuda`` for ``--device``, checking for CUDA with torch in a subprocess.

    Raises
    ------
    UsageError
        If ``cuda`` is requested and torch finds no CUDA device.
    """
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
    """Raise UsageError if the condition of ``--fit-filter`` is invalid."""
    from bids_harmony.bids.filters import meets
    from bids_harmony.qc.dataset import ScanRow, scan_table
    from bids_harmony.qc.reference import dictionary

    row = ScanRow({"scan": "sub-01"}, metrics=tuple(dictionary()))
    meets(scan_table([row])[0], condition)


@dataclass(frozen=True)
class Run:
    """Settings of a run, with ``auto`` options resolved.

    Attributes
    ----------
    config : RunConfig
        Options of the run.
    bundle : Bundle or None
        Model bundle; None for ``--bundle none``.
    contract : Contract
        Preprocessing settings, those of the bundle if there is one.
    skull_strip, registration : str
        Methods of skull stripping and registration.
    tools : dict of str to str
        Versions of the external tools used.
    shared_inputs : dict of str to str or None
        SHA-256 of the atlases and of the template given by the user, if any.
    digests : Digests
        Cached checksums of input files.
    space : str
        Space label of the template.
    device : str
        ``cpu`` or ``cuda``.
    warnings : tuple of str
        Warnings that concern all scans.
    frozen : dict of str to Chosen
        Existing calibrations, by site, which are used without recomputing them.
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
        """Check that the FSL programs used (``bet``, ``flirt``) can run.

        Raises
        ------
        MissingProgramError
            For the first one that cannot.
        """
        from bids_harmony.anat.fsl import check_programs

        check_programs(p for p in ("bet", "flirt") if p in (self.skull_strip, self.registration))

    def inputs(self, scan: Scan) -> dict[str, str | None]:
        """Return the SHA-256 of each file that a scan's results depend on, or None if absent."""
        found: dict[str, str | None] = {**self.shared_inputs, "T1w": None, "brain_mask": None}
        for name, path in (("T1w", scan.path), ("brain_mask", scan.mask)):
            if path is not None:
                with suppress(OSError):  # reported by the step that reads it
                    found[name] = self.digests.of(path, scan.entities["subject"])
        return found

    def record_of(self, scan: Scan) -> Path:
        """Return the path of a scan's record."""
        return scan_file(self.config.output_dir, scan.entities, scan.key, "qc")

    def facts(self, scan: Scan) -> dict[str, Any]:
        """Return the values of a scan's record that are known before processing."""
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
        """Return the values that a harmonized scan's record has in addition to :meth:`facts`.

        Parameters
        ----------
        chosen : mapping
            Identity of the calibration of the scan's site.
        """
        bundle, config = self.bundle, self.config
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
        """Return the processing that each scan needs, by scan key.

        Returns
        -------
        dict of str to str
            :data:`PREPROCESS` (followed by harmonization), :data:`HARMONIZE` (only) or
            :data:`NOTHING`.
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
        """Return whether a scan was preprocessed from the same inputs with the same settings.

        The facts in its record must agree with the run's, and all outputs must exist. The inputs
        are compared last, since computing their checksums may require reading the files.
        """
        if not record.keys() >= {*PREPROCESSED, "outputs"}:
            return False
        facts = json.loads(json.dumps(self.facts(scan)))
        return (
            {k: v for k, v in facts.items() if k not in LATER}.items() <= record.items()
            and self._are_there(preprocessed(record)["outputs"])
            and record.get("inputs") == self.inputs(scan)
        )

    def is_completed(self, record: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> bool:
        """Return whether a preprocessed scan is completed with the run's settings.

        Parameters
        ----------
        record : mapping
            The scan's record.
        chosen : mapping or None
            Known part of the identity of its site's calibration; None if the site is to be
            calibrated anew.
        """
        if record.get("status") == "error" or not self._are_there(record["outputs"]):
            return False
        if self.bundle is None:
            return record.get("bundle") is None
        if chosen is None:
            return False
        wanted = json.loads(json.dumps(self.harmonization(chosen)))
        named = record.get("calibration") or {}
        found = {**record, "calibration": {name: named.get(name) for name in chosen}}
        return bool(wanted.items() <= found.items())

    def _are_there(self, outputs: Sequence[str]) -> bool:
        return all((self.config.output_dir / path).exists() for path in outputs)

    def own_sites(self, scans: Sequence[Scan]) -> dict[str, list[SiteScan]]:
        """Return the preprocessed scans by site, for sites without an existing calibration."""
        assert self.bundle is not None
        records = [self.record_of(scan) for scan in scans if scan.site not in self.frozen]
        return collect_sites(records, self.config, self.bundle, self.space)[0]

    def expected(
        self, scans: Sequence[Scan], states: Mapping[str, str]
    ) -> dict[str, dict[str, Any]]:
        """Return the calibration values expected in records of completed scans, by site.

        Sites with scans still to be preprocessed are left out, since they will be calibrated anew.
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
        """Calibrate the sites of the scans to be harmonized.

        The calibrations are saved if the run covers the whole dataset.

        Parameters
        ----------
        scans : sequence of Scan
            All preprocessed scans of the run.
        used : set of str
            Sites to calibrate.

        Returns
        -------
        dict of str to Chosen
            New and existing calibrations, by site.
        """
        assert self.bundle is not None
        sites = self.own_sites(scans)
        wanted = {site: group for site, group in sites.items() if site in used}
        new = calibrate_sites(wanted, self.config, self.bundle, self.space, "participant")
        files: dict[str, Path] = {}
        if self.whole_dataset and new:
            out = self.config.output_dir
            files = save(out, new.values(), self.bundle, {*sites, *self.frozen})
        return self.frozen | {site: Chosen(one, files.get(site)) for site, one in new.items()}

    def site_notes(self, scans: Sequence[Scan]) -> list[str]:
        """Return messages about the calibration that the run uses for each site.

        Raises
        ------
        UsageError
            If ``--calibration`` is given and has no site of the run.
        """
        if self.bundle is None:
            return []
        given, sites = self.config.calibration, {scan.site for scan in scans}
        lacking = sorted(sites - self.frozen.keys())
        if given is not None and not sites & self.frozen.keys():
            raise UsageError(
                f"The site {lacking[0]} has no calibration in {given}, which has "
                f"{', '.join(sorted(self.frozen))}.",
                "Name its calibration, or the column of the sites by --site-column.",
            )
        notes = [
            f"The site {site} is calibrated by {self.frozen[site].path}."
            for site in sorted(sites & self.frozen.keys())
        ]
        if given is not None and lacking:
            notes.append(
                f"Warning: {given} has no calibration of {', '.join(lacking)}, calibrated from "
                "scans of this run."
            )
        if lacking and not self.whole_dataset:
            notes.append(
                "Sites are calibrated from the chosen scans alone; the calibrate level does it "
                "from all that are preprocessed."
            )
        if unnamed := sum(scan.site_source == "none" for scan in scans):
            notes.append(
                f"Warning: {unnamed} of {len(scans)} scans have no site information, and are "
                "taken for one site."
            )
        return notes
