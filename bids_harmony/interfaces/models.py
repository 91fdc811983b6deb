"""Nipype interfaces of harmonization and prediction; see :mod:`bids_harmony.models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_harmony.interfaces.base import ImageOutputSpec, read_array, save_image
from bids_harmony.models.apply import harmonize, predict
from bids_harmony.models.bundle import load_bundle
from bids_harmony.qc.guard import guard_record, measure
from bids_harmony.qc.reference import reference_distances
from bids_harmony.sites.calibration import Calibration


class _ModelInputSpec(BaseInterfaceInputSpec):
    bundle = traits.Str(mandatory=True, desc="folder of the model bundle")
    calibration = traits.Dict(mandatory=True, desc="of the scan's site, as in its file")
    device = traits.Enum("cpu", "cuda", usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, desc="queue for the GPU in nipype's plugins")
    num_threads = traits.Int(1, usedefault=True)


class _HarmonizeInputSpec(_ModelInputSpec):
    in_file = File(exists=True, mandatory=True, desc="scaled brain on the template grid")


class Harmonize(SimpleInterface):
    """Harmonize a scan to the reference site with the bundle's forward map."""

    input_spec = _HarmonizeInputSpec
    output_spec = ImageOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import torch

        inputs = self.inputs
        torch.set_num_threads(inputs.num_threads)
        calibration = Calibration.from_dict(inputs.calibration)
        img, bundle = nib.load(inputs.in_file), load_bundle(inputs.bundle)
        out = harmonize(img, bundle, calibration, device=inputs.device)
        self._results["out_file"] = save_image(out, "harmonized.nii.gz")
        return runtime


class _GuardInputSpec(BaseInterfaceInputSpec):
    raw = File(exists=True, mandatory=True, desc="scaled brain on the template grid")
    harmonized = File(exists=True, mandatory=True)
    bundle = traits.Str(mandatory=True, desc="folder of the model bundle")
    metrics = traits.Dict(mandatory=True, desc="of the scan before harmonization")


class _GuardOutputSpec(TraitedSpec):
    metrics = traits.Dict(desc="with those of harmonization")
    guard = traits.Dict(desc="whether the anatomy stayed")


class Guard(SimpleInterface):
    """Measure how harmonization changed a scan, and check that its anatomy was preserved."""

    input_spec = _GuardInputSpec
    output_spec = _GuardOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        bundle = load_bundle(Path(self.inputs.bundle))
        affine = nib.load(self.inputs.raw).affine
        before, after = read_array(self.inputs.raw), read_array(self.inputs.harmonized)
        mask = before > 0
        changes = measure(before, after, mask, affine)
        histogram = bundle.qc_reference()["histograms"].get(bundle.reference_site)
        changes |= reference_distances(before, after, mask, histogram)
        self._results["metrics"] = self.inputs.metrics | changes
        self._results["guard"] = guard_record(changes, bundle.guard())
        return runtime


class _PredictInputSpec(_ModelInputSpec):
    raw = File(exists=True, mandatory=True, desc="scaled brain on the template grid")
    harmonized = File(exists=True, mandatory=True)
    guard = traits.Dict(mandatory=True, desc="of the anatomy guard")
    site = traits.Str(mandatory=True)
    age = traits.Either(None, traits.Float, usedefault=True, desc="in years")
    calibration_file = traits.Either(
        None, traits.Str, usedefault=True, desc="the calibration among the outputs"
    )
    on_guard_fail = traits.Enum("flag", "raw", usedefault=True)
    correct_age_bias = traits.Bool(False, usedefault=True)


class _PredictOutputSpec(TraitedSpec):
    predictions = traits.Dict()


class Predict(SimpleInterface):
    """Predict every target of the bundle from the raw and the harmonized volume."""

    input_spec = _PredictInputSpec
    output_spec = _PredictOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import torch

        inputs = self.inputs
        torch.set_num_threads(inputs.num_threads)
        left_out = inputs.on_guard_fail == "raw" and inputs.guard["status"] == "fail"
        predictions = predict(
            nib.load(inputs.raw),
            load_bundle(inputs.bundle),
            harmonized=None if left_out else nib.load(inputs.harmonized),
            age=inputs.age,
            site=inputs.site,
            calibration=Calibration.from_dict(inputs.calibration),
            correct_age_bias=inputs.correct_age_bias,
            device=inputs.device,
        )
        if inputs.calibration_file is not None:
            predictions["calibration"]["path"] = inputs.calibration_file
        self._results["predictions"] = predictions
        return runtime
