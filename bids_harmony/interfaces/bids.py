"""Write derivatives: names from the scan's own entities, files that appear whole."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)
from niworkflows.interfaces.bids import BIDS_DERIV_ENTITIES
from niworkflows.interfaces.bids import DerivativesDataSink as _DerivativesDataSink

from bids_harmony.files import write_json

_SPEC = json.loads((files("bids_harmony.data") / "io_spec.json").read_text(encoding="utf-8"))


class DerivativesDataSink(_DerivativesDataSink):
    """niworkflows' sink with this app's name patterns.

    It writes below the scan's work folder; :class:`PublishScan` copies what is there.
    """

    out_path_base = ""
    _config_entities_dict: ClassVar = [*BIDS_DERIV_ENTITIES, *_SPEC["entities"]]
    _config_entities = frozenset(entity["name"] for entity in _config_entities_dict)
    _file_patterns = tuple(_SPEC["default_path_patterns"])

    def _run_interface(self, runtime: Any) -> Any:
        runtime = super()._run_interface(runtime)
        if "Resolution" in self._metadata:
            # The parent writes that TemplateFlow curates the grid; this one is nilearn's.
            sidecar = Path(self._results["out_meta"])
            metadata = json.loads(sidecar.read_text(encoding="utf-8"))
            metadata["Resolution"] = (
                f"{self.inputs.resolution} mm isotropic, on the grid of {self.inputs.space}"
            )
            write_json(sidecar, metadata)
        return runtime


class _PublishScanInputSpec(BaseInterfaceInputSpec):
    record = File(exists=True, mandatory=True, desc="the scan's record, below staging_dir")
    staging_dir = traits.Str(mandatory=True, desc="where the scan's outputs were written")
    output_dir = traits.Str(mandatory=True)
    kept = traits.List(traits.Str, desc="outputs that are in place already")


class _PublishScanOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the record in the output folder")


class PublishScan(SimpleInterface):
    """Put all outputs of a scan in the place of those that it had (design.md §7)."""

    input_spec = _PublishScanInputSpec
    output_spec = _PublishScanOutputSpec
    # The work folder may have served another output folder before.
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.outputs import publish_scan

        self._results["out_file"] = str(
            publish_scan(
                Path(self.inputs.staging_dir),
                Path(self.inputs.output_dir),
                Path(self.inputs.record),
                kept=self.inputs.kept if isdefined(self.inputs.kept) else (),
            )
        )
        return runtime
