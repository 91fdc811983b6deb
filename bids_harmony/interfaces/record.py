"""Interface that puts a scan's record together; its form is in :mod:`bids_harmony.qc.record`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_harmony.files import write_json


class _WriteRecordInputSpec(BaseInterfaceInputSpec):
    facts = traits.Dict(mandatory=True, desc="what was known before anything was computed")
    output_dir = traits.Str(mandatory=True, desc="folder that the outputs are named from")
    bundle = traits.Str(desc="folder of the model bundle")
    check = traits.Dict(mandatory=True)
    mask = traits.Dict(mandatory=True)
    affine = traits.Dict(mandatory=True)
    scale = traits.Dict(mandatory=True)
    metrics = traits.Dict(mandatory=True)
    descriptors = traits.Dict(mandatory=True, desc="of the scan's intensities")
    guard = traits.Dict(desc="verdict of the anatomy guard, where the scan was harmonized")
    outputs = InputMultiObject(traits.Any, mandatory=True, desc="files written for the scan")
    kept = traits.List(traits.Str, desc="those that are in place, below the outputs' root")
    predictions_file = traits.Any(desc="predictions written for the scan")


class _WriteRecordOutputSpec(TraitedSpec):
    out_file = File(exists=True)


class WriteRecord(SimpleInterface):
    """Judge a scan and write its record."""

    input_spec = _WriteRecordInputSpec
    output_spec = _WriteRecordOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.qc.record import scan_record

        reference = None
        if isdefined(self.inputs.bundle):
            from bids_harmony.models.bundle import load_bundle

            reference = load_bundle(Path(self.inputs.bundle)).qc_reference()["metrics"]
        written = [*self.inputs.outputs]
        if isdefined(self.inputs.predictions_file):
            written.append(self.inputs.predictions_file)
        root = Path(self.inputs.output_dir)
        record = scan_record(
            self.inputs.facts,
            check=self.inputs.check,
            mask=self.inputs.mask,
            affine=self.inputs.affine,
            scale=self.inputs.scale,
            metrics=self.inputs.metrics,
            reference=reference,
            descriptors=self.inputs.descriptors,
            guard=self.inputs.guard if isdefined(self.inputs.guard) else None,
            outputs=[
                *(self.inputs.kept if isdefined(self.inputs.kept) else ()),
                *(Path(p).relative_to(root).as_posix() for p in written),
            ],
        )
        out = Path(runtime.cwd) / "record.json"
        write_json(out, record)
        self._results["out_file"] = str(out)
        return runtime


class _SavePredictionsInputSpec(BaseInterfaceInputSpec):
    predictions = traits.Dict(mandatory=True)


class SavePredictions(SimpleInterface):
    """Write a scan's predictions as JSON."""

    input_spec = _SavePredictionsInputSpec
    output_spec = _WriteRecordOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        out = Path(runtime.cwd) / "predictions.json"
        write_json(out, self.inputs.predictions)
        self._results["out_file"] = str(out)
        return runtime
