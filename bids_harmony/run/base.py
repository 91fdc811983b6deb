"""Settings of a run, with ``auto`` options resolved and checked before processing starts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony import __version__
from bids_harmony.anat import tool_versions
from bids_harmony.bids.dataset import Scan
from bids_harmony.bids.outputs import Digests
from bids_harmony.bids.records import scan_file
from bids_harmony.bids.tables import named_person
from bids_harmony.config import Contract, RunConfig
from bids_harmony.errors import UsageError
from bids_harmony.files import digest_of, sha256_of
from bids_harmony.sites.calibration import Calibration, read_calibrations

if TYPE_CHECKING:
    from bids_harmony.models.bundle import Bundle

#: Folder of calibrations in the output folder.
FOLDER = "calibration"


class Run:
    """Settings of a run.

    Parameters
    ----------
    config : RunConfig
        Options of the run.

    Attributes
    ----------
    bundle : Bundle or None
        Model bundle; None for ``--bundle none``.
    contract : Contract
        Preprocessing settings, those of the bundle if there is one.
    skull_strip, registration : str
        Methods of skull stripping and registration.
    template : str or None
        Template given by the user.
    space : str
        Space label of the template.
    tools : dict of str to str
        Versions of the external tools used.
    device : str
        ``cpu`` or ``cuda``.
    digests : Digests
        Cached checksums of input files.
    shared_inputs : dict of str to str or None
        SHA-256 of the atlases and of the template given by the user, if any.
    warnings : list of str
        Warnings about options that differ from the bundle's contract or have no effect.

    Raises
    ------
    BundleError
        If the bundle is missing or modified.
    MissingProgramError
        If the program of the plugin is missing.
    UsageError
        If the template, the atlases, the device, the plugin or the condition of ``--fit-filter``
        cannot be used.
    """

    def __init__(self, config: RunConfig) -> None:
        from bids_harmony.anat.template import template_label

        self.config, self.bundle = config, open_bundle(config)
        self.contract = contract = Contract() if self.bundle is None else self.bundle.contract
        auto = {"skull_strip": contract.skull_strip, "registration": contract.registration}
        asked = {name: getattr(config, name) for name in auto}
        self.skull_strip, self.registration = (
            auto[name] if value == "auto" else value for name, value in asked.items()
        )
        self.template = None if config.template is None else str(config.template)
        self.space = template_label(self.template)
        self.tools = tool_versions(self.skull_strip, self.registration)
        self.digests = Digests(config.output_dir / "logs" / "inputs")
        self.shared_inputs: dict[str, str | None] = {"atlases": None, "template": None}
        self.device, self.warnings = "cpu", list[str]()
        self._check_inputs()
        if self.bundle is not None:
            self._check_bundle(self.bundle)
        if config.use_plugin is not None:
            from bids_harmony.run.engine import load_plugin

            load_plugin(config.use_plugin)

    def _check_inputs(self) -> None:
        """Check the atlases and the template, and compute their checksums."""
        from bids_harmony.anat.brain import find_atlases
        from bids_harmony.anat.template import load_template

        if self.skull_strip == "multi-atlas":
            atlases = find_atlases(str(self.config.atlas_dir))
            digest = digest_of(path for atlas in atlases for path in atlas[1:])
            self.shared_inputs["atlases"] = digest
        if self.config.template is None:
            return
        resolution = self.contract.resolution
        grid = load_template(resolution, self.template).mask.shape
        self.shared_inputs["template"] = sha256_of(self.config.template)
        if self.bundle is not None and grid != load_template(resolution).mask.shape:
            raise UsageError(
                f"The template {self.template} has the grid {grid} at {resolution} mm, which is "
                f"not that of {self.contract.template}, on which the bundle was trained.",
                "Omit --template, or use a bundle that was trained with it.",
            )

    def _check_bundle(self, bundle: Bundle) -> None:
        """Check the weights and the options that depend on the bundle, and choose the device."""
        from bids_harmony.models.bundle import check_weights

        config, trained = self.config, bundle.contract
        if config.bundle != "default":
            check_weights(bundle)
        if config.fit_filter is not None:
            check_filter(config.fit_filter)
        self.device = choose_device(config.device)
        self.warnings = [
            f"{option} {asked} differs from the bundle's {theirs}"
            for option, asked, theirs in (
                ("--skull-strip", config.skull_strip, trained.skull_strip),
                ("--registration", config.registration, trained.registration),
                ("--template", self.template or "auto", trained.template),
            )
            if asked not in ("auto", theirs)
        ]
        if config.correct_age_bias and "age_bias" not in bundle.targets.get("brain_age", {}):
            self.warnings.append(
                "--correct-age-bias has no effect: the bundle has no coefficients"
            )

    @cached_property
    def frozen(self) -> dict[str, tuple[Path, Calibration]]:
        """Existing calibrations, by site, which are used without computing them again.

        Those of ``--calibration`` take precedence over those that the ``calibrate`` level saved in
        the output folder.

        Raises
        ------
        UsageError
            If a calibration cannot be used.
        """
        folder, found = self.config.output_dir / FOLDER, {}
        if self.bundle is not None and any(folder.glob("site-*_calibration.json")):
            found = read_calibrations(folder, self.bundle, self.space, made_by="calibrate")
        if self.bundle is not None and self.config.calibration is not None:
            found |= read_calibrations(self.config.calibration, self.bundle, self.space)
        return found

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

    def record_of(self, scan: Scan) -> Path:
        """Return the path of a scan's record."""
        return scan_file(self.config.output_dir, scan.entities, scan.key, "qc")

    def inputs(self, scan: Scan) -> dict[str, str | None]:
        """Return the SHA-256 of each file that a scan's results depend on, or None if absent."""
        found: dict[str, str | None] = {**self.shared_inputs, "T1w": None, "brain_mask": None}
        for name, path in (("T1w", scan.path), ("brain_mask", scan.mask)):
            if path is not None:
                with suppress(OSError):  # reported by the step that reads it
                    found[name] = self.digests.of(path, scan.entities["subject"])
        return found

    def facts(self, scan: Scan) -> dict[str, Any]:
        """Return the values of a scan's record that are known before processing."""
        known = ("site", "site_source", "age", "sex", "diagnosis")
        asked = ("skull_strip", "registration", "random_seed", "sloppy")
        return {
            "name": scan.key,
            "entities": scan.entities,
            "source": scan.path.relative_to(self.config.bids_dir).as_posix(),
            **{name: getattr(scan, name) for name in known},
            "person": named_person(scan.columns) or scan.entities["subject"],
            "scanner": scan.metadata,
            "warnings": [*scan.warnings, *self.warnings],
            "processing": {
                **{name: getattr(self.config, name) for name in asked},
                "version": __version__,
                "tools": self.tools,
                "template": self.space,
                "contract": self.contract.to_dict(),
                "mask_source": None if scan.mask is None else scan.mask.name,
            },
            **dict.fromkeys(("bundle", "calibration", "harmonization")),
        }

    def harmonization(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that a harmonized scan's record has in addition to :meth:`facts`.

        Parameters
        ----------
        identity : mapping
            Identity of the calibration of the scan's site (:meth:`identity`).
        """
        bundle, asked = self.bundle, ("on_guard_fail", "correct_age_bias")
        assert bundle is not None
        return {
            "bundle": {**bundle.identity(), "reference_site": bundle.reference_site},
            "calibration": dict(identity),
            "harmonization": {
                "output_spaces": list(self.config.output_spaces),
                **{name: getattr(self.config, name) for name in asked},
            },
        }

    def identity(self, path: Path | None, calibration: Calibration) -> dict[str, Any]:
        """Return the identity of a calibration for a scan's record.

        Parameters
        ----------
        path : pathlib.Path or None
            File of the calibration, named in the record if it is in the output folder.
        calibration : Calibration
            The calibration.
        """
        assert self.bundle is not None
        found = {
            **calibration.identity(),
            "sources": calibration.sources,
            "changes": calibration.changes(self.bundle),
        }
        if path is not None and path.is_relative_to(self.config.output_dir):
            found["path"] = path.relative_to(self.config.output_dir).as_posix()
        return found


def open_bundle(config: RunConfig) -> Bundle | None:
    """Load the bundle of ``--bundle``; return None for ``none``."""
    if config.bundle == "none":
        return None
    from bids_harmony.models.bundle import load_bundle

    return load_bundle(None if config.bundle == "default" else Path(config.bundle))


def choose_device(asked: str) -> str:
    """Return the device of ``--device``, ``cpu`` or ``cuda``.

    Raises
    ------
    UsageError
        If ``cuda`` is requested and torch finds no CUDA device.
    """
    if asked == "cpu" or (asked == "auto" and not shutil.which("nvidia-smi")):
        return "cpu"
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda cannot be used: torch finds no CUDA device.",
            "Use --device auto, or give the container access to the GPU (--gpus all, --nv).",
        )
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_filter(condition: str) -> None:
    """Raise UsageError if the condition of ``--fit-filter`` is invalid."""
    from bids_harmony.bids.filters import meets
    from bids_harmony.qc.dataset import ScanRow, scan_table
    from bids_harmony.qc.reference import dictionary

    row = ScanRow({"scan": "sub-01"}, metrics=tuple(dictionary()))
    meets(scan_table([row])[0], condition)
