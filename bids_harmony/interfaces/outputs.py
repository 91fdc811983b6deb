"""Write a scan's derivatives under BIDS names, and publish them together."""

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
    traits,
)
from niworkflows.interfaces.bids import BIDS_DERIV_ENTITIES
from niworkflows.interfaces.bids import DerivativesDataSink as _DerivativesDataSink

from bids_harmony.bids.outputs import publish_scan
from bids_harmony.bids.records import PREPROCESSED, scan_file, scan_record
from bids_harmony.files import write_json
from bids_harmony.models.bundle import load_bundle
from bids_harmony.qc.reference import out_of_range

_SPEC = json.loads((files("bids_harmony.data") / "io_spec.json").read_text(encoding="utf-8"))


class DerivativesDataSink(_DerivativesDataSink):
    """DerivativesDataSink of niworkflows with the name patterns of this app."""

    out_path_base = ""
    _config_entities_dict: ClassVar = [*BIDS_DERIV_ENTITIES, *_SPEC["entities"]]
    _config_entities = frozenset(entity["name"] for entity in _config_entities_dict)
    _file_patterns = tuple(_SPEC["default_path_patterns"])

    def _run_interface(self, runtime: Any) -> Any:
        runtime = super()._run_interface(runtime)
        if "Resolution" in self._metadata:
            # The parent class describes the grid as TemplateFlow's, but it is nilearn's.
            sidecar = Path(self._results["out_meta"])
            metadata = json.loads(sidecar.read_text(encoding="utf-8"))
            metadata["Resolution"] = (
                f"{self.inputs.resolution} mm isotropic, on the grid of {self.inputs.space}"
            )
            write_json(sidecar, metadata)
        return runtime


class _SaveOutputsInputSpec(BaseInterfaceInputSpec):
    facts = traits.Dict(mandatory=True, desc="values of the record known before processing")
    source_file = traits.Str(mandatory=True, desc="T1w scan")
    staging_dir = traits.Str(mandatory=True, desc="folder of new outputs, with the figures")
    output_dir = traits.Str(mandatory=True)
    names = traits.Dict(mandatory=True, desc="settings of DerivativesDataSink by image")
    kept = traits.List(traits.Str, usedefault=True, desc="outputs of preprocessing")
    bundle = traits.Either(None, traits.Str, usedefault=True, desc="folder of the model bundle")
    t1w_mask = File(exists=True)
    brain_mask = File(exists=True)
    preproc = File(exists=True)
    xfm = File(exists=True)
    harmonized = File(exists=True)
    harmonized_native = File(exists=True)
    check = traits.Dict(mandatory=True)
    mask = traits.Dict(mandatory=True)
    affine = traits.Dict(mandatory=True)
    scale = traits.Dict(mandatory=True)
    metrics = traits.Dict(mandatory=True)
    descriptors = traits.Dict(mandatory=True)
    guard = traits.Either(None, traits.Dict, usedefault=True)
    predictions = traits.Either(None, traits.Dict, usedefault=True)


class _SaveOutputsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="QC record")


class SaveOutputs(SimpleInterface):
    """Write a scan's images and QC record, replacing those of earlier runs.

    Everything is first written to ``staging_dir``, which already contains the figures, and then
    copied to ``output_dir``, so that an interrupted run leaves existing outputs intact. The record
    (``desc-harmony_qc.json``) lists the other files and is written last: if it exists, they are
    complete.
    """

    input_spec = _SaveOutputsInputSpec
    output_spec = _SaveOutputsOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        inputs, guard = self.inputs, self.inputs.guard
        staging, facts = Path(inputs.staging_dir), inputs.facts
        written: list[str | Path] = [*staging.glob("sub-*/figures/*")]
        for name, settings in inputs.names.items():
            image = settings["suffix"] != "xfm"
            metadata: dict[str, Any] = {}
            if image:
                metadata["Sources"] = [f"bids:raw:{facts['source']}"]
            if guard and "harmonized" in name:
                metadata["AnatomyGuard"] = {"Status": guard["status"], "Reasons": guard["reasons"]}
            sink = DerivativesDataSink(
                base_directory=inputs.staging_dir,
                source_file=inputs.source_file,
                in_file=getattr(inputs, name),
                compress=image,
                **settings,
                **metadata,
            )
            written.append(sink.run(cwd=runtime.cwd).outputs.out_file)
        if inputs.predictions is not None:
            path = scan_file(staging, facts["entities"], facts["name"], "predictions")
            write_json(path, inputs.predictions)
            written.append(path)
        reference = None
        if inputs.bundle is not None:
            reference = load_bundle(inputs.bundle).qc_reference()["metrics"]
        flagged = out_of_range(inputs.metrics, reference)
        record = scan_record(
            facts,
            **{name: getattr(inputs, name) for name in PREPROCESSED},
            reasons=list(flagged.values()),
            flagged=list(flagged),
            guard=guard,
            outputs=[*inputs.kept, *(Path(p).relative_to(staging).as_posix() for p in written)],
        )
        path = scan_file(staging, facts["entities"], facts["name"], "qc")
        write_json(path, record)
        out_file = publish_scan(staging, Path(inputs.output_dir), path, kept=inputs.kept)
        self._results["out_file"] = str(out_file)
        return runtime
