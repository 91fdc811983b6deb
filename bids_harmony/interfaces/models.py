"""Nipype interface of harmonization and prediction; see :mod:`bids_harmony.models`."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_harmony.anat.affine import resample
from bids_harmony.interfaces.anat import figure_path, reorient, save_image
from bids_harmony.models.apply import harmonize, predict
from bids_harmony.models.bundle import load_bundle
from bids_harmony.qc.guard import guard_record, measure
from bids_harmony.qc.reference import brain_histogram, reference_distances
from bids_harmony.reports import figures
from bids_harmony.sites.calibration import Calibration


class _HarmonizeInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="scaled brain on the template grid")
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the native grid")
    in_xfm = File(exists=True, mandatory=True, desc="transform from scan to template")
    metrics = traits.Dict(mandatory=True, desc="QC metrics before harmonization")
    bundle = traits.Str(mandatory=True, desc="folder of the model bundle")
    calibration = traits.Dict(mandatory=True, desc="calibration of the scan's site")
    calibration_file = traits.Either(
        None, traits.Str, usedefault=True, desc="path of the calibration in the output folder"
    )
    site = traits.Str(mandatory=True)
    age = traits.Either(None, traits.Float, usedefault=True, desc="in years")
    native = traits.Bool(False, usedefault=True, desc="resample to the native grid as well")
    on_guard_fail = traits.Enum("flag", "raw", usedefault=True)
    correct_age_bias = traits.Bool(False, usedefault=True)
    prefix = traits.Str(mandatory=True, desc="path of the figures")
    device = traits.Enum("cpu", "cuda", usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, desc="queue for the GPU in nipype's plugins")
    num_threads = traits.Int(1, usedefault=True)


class _HarmonizeOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="harmonized brain on the template grid")
    native_file = File(exists=True, desc="harmonized brain on the native grid, background 0")
    metrics = traits.Dict(desc="QC metrics, including those of harmonization")
    guard = traits.Dict(desc="result of the anatomy guard")
    predictions = traits.Dict(desc="by target, from the raw and from the harmonized scan")


class Harmonize(SimpleInterface):
    """Harmonize a scan, check that its anatomy was preserved, and predict every target."""

    input_spec = _HarmonizeInputSpec
    output_spec = _HarmonizeOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import torch

        inputs = self.inputs
        torch.set_num_threads(inputs.num_threads)
        bundle, calibration = load_bundle(inputs.bundle), Calibration.from_dict(inputs.calibration)
        raw, reference = nib.load(inputs.in_file), bundle.qc_reference()
        harmonized = harmonize(raw, bundle, calibration, device=inputs.device)
        before, after = np.asarray(raw.dataobj), np.asarray(harmonized.dataobj)
        histogram = reference["histograms"].get(bundle.reference_site)
        changes = measure(before, after, before > 0, raw.affine)
        changes |= reference_distances(before, after, before > 0, histogram)
        guard, metrics = guard_record(changes, bundle.guard()), inputs.metrics | changes
        raw_only = inputs.on_guard_fail == "raw" and guard["status"] == "fail"
        predictions = predict(
            raw,
            bundle,
            harmonized=None if raw_only else harmonized,
            age=inputs.age,
            site=inputs.site,
            calibration=calibration,
            correct_age_bias=inputs.correct_age_bias,
            device=inputs.device,
        )
        if inputs.calibration_file is not None:
            predictions["calibration"]["path"] = inputs.calibration_file
        self._results |= {
            "out_file": save_image(harmonized, "harmonized.nii.gz"),
            "metrics": metrics,
            "guard": guard,
            "predictions": predictions,
        }
        if inputs.native:
            mask = nib.load(inputs.in_mask)
            ras = nib.as_closest_canonical(mask)
            moved = resample(harmonized, ras, inputs.in_xfm, invert=True)
            data = np.where(np.asarray(ras.dataobj) > 0, np.asarray(moved.dataobj), 0)
            out = nib.Nifti1Image(data.astype(np.float32), moved.affine, moved.header)
            self._results["native_file"] = save_image(reorient(out, mask.affine), "native.nii.gz")

        out_file = {
            name: figure_path(inputs.prefix, name)
            for name in ("harmonized", "histogram", "predictions", "qc")
        }
        figures.harmonization_figure(raw, harmonized, before > 0, out_file["harmonized"])
        histograms = {
            "reference": histogram,
            "before": brain_histogram(before, before > 0),
            "after": brain_histogram(after, before > 0),
        }
        figures.histogram_figure(histograms, bundle.reference_site, out_file["histogram"])
        if brain_age := predictions.get("brain_age"):
            figures.prediction_figure(brain_age, out_file["predictions"], age=inputs.age)
        figures.metrics_figure(metrics, reference["metrics"], out_file["qc"])
        return runtime
