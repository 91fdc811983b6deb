"""Interfaces of the harmonize and predict workflows; the work is in :mod:`bids_harmony.models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_harmony.interfaces.anat import save_image, set_threads


class _ModelInputSpec(BaseInterfaceInputSpec):
    bundle = traits.Str(mandatory=True, desc="folder of the model bundle")
    bundle_sha256 = traits.Str(desc="its checksum, so that another bundle is another input")
    device = traits.Enum("cpu", "cuda", usedefault=True)
    # Read by nipype's scheduler to queue for the GPU; no part of the result's identity.
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class _HarmonizeInputSpec(_ModelInputSpec):
    in_file = File(exists=True, mandatory=True, desc="scaled brain on the template grid")
    calibration = traits.Dict(mandatory=True, desc="of the scan's site, as in its file")


class _HarmonizeOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the brain as the reference site would show it")


class Harmonize(SimpleInterface):
    """Map a scan to the reference site with the bundle's forward map."""

    input_spec = _HarmonizeInputSpec
    output_spec = _HarmonizeOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.api import harmonize, load_bundle
        from bids_harmony.sites.calibration import Calibration

        set_threads(self.inputs.num_threads)
        out = harmonize(
            nib.load(self.inputs.in_file),
            load_bundle(self.inputs.bundle),
            Calibration.from_dict(self.inputs.calibration),
            device=self.inputs.device,
        )
        self._results["out_file"] = save_image(out, runtime, "harmonized.nii.gz")
        return runtime


class _PredictInputSpec(_ModelInputSpec):
    raw = File(exists=True, mandatory=True, desc="scaled brain on the template grid")
    harmonized = File(exists=True, mandatory=True, desc="the same, harmonized")
    site = traits.Str(mandatory=True, desc="site of the scan")
    calibration = traits.Dict(mandatory=True, desc="of the site, as in its file")
    calibration_file = traits.Str(desc="where the outputs have it, below their root")
    age = traits.Float(desc="chronological age in years, if known")
    guard = traits.Dict(mandatory=True, desc="verdict of the anatomy guard")
    on_guard_fail = traits.Enum("flag", "raw", usedefault=True)
    correct_age_bias = traits.Bool(False, usedefault=True)


class _PredictOutputSpec(TraitedSpec):
    predictions = traits.Dict(desc="one object per target, and the bundle's identity")


class Predict(SimpleInterface):
    """Predict every target of the bundle on the raw and on the harmonized volume."""

    input_spec = _PredictInputSpec
    output_spec = _PredictOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.api import load_bundle, predict
        from bids_harmony.sites.calibration import Calibration

        set_threads(self.inputs.num_threads)
        left_out = self.inputs.on_guard_fail == "raw" and self.inputs.guard["status"] == "fail"
        predictions = predict(
            nib.load(self.inputs.raw),
            load_bundle(self.inputs.bundle),
            harmonized=None if left_out else nib.load(self.inputs.harmonized),
            age=self.inputs.age if isdefined(self.inputs.age) else None,
            site=self.inputs.site,
            calibration=Calibration.from_dict(self.inputs.calibration),
            correct_age_bias=self.inputs.correct_age_bias,
            device=self.inputs.device,
        )
        if isdefined(self.inputs.calibration_file):
            predictions["calibration"]["path"] = self.inputs.calibration_file
        self._results["predictions"] = predictions
        return runtime


class _ToNativeInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="image on the template grid")
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the scan's own grid")
    in_xfm = File(exists=True, mandatory=True, desc="ITK transform, T1w to template")


class _ToNativeOutputSpec(TraitedSpec):
    out_file = File(exists=True)


class ToNative(SimpleInterface):
    """Resample a template-space image to the grid of the scan's own mask, background 0."""

    input_spec = _ToNativeInputSpec
    output_spec = _ToNativeOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.anat.affine import resample

        mask = nib.load(self.inputs.in_mask)
        ras = nib.as_closest_canonical(mask)
        moved = resample(nib.load(self.inputs.in_file), ras, self.inputs.in_xfm, invert=True)
        data = np.where(np.asarray(ras.dataobj) > 0, np.asarray(moved.dataobj), 0)
        out = nib.Nifti1Image(data.astype(np.float32), moved.affine, moved.header)
        axes = [nib.io_orientation(img.affine) for img in (out, mask)]
        out = out.as_reoriented(nib.orientations.ornt_transform(*axes))
        self._results["out_file"] = save_image(out, runtime, "native.nii.gz")
        return runtime


class _GuardInputSpec(BaseInterfaceInputSpec):
    raw = File(exists=True, mandatory=True, desc="scaled brain on the template grid")
    harmonized = File(exists=True, mandatory=True, desc="the same, harmonized")
    bundle = traits.Str(mandatory=True, desc="folder of the model bundle")
    bundle_sha256 = traits.Str(desc="its checksum, so that another bundle is another input")
    metrics = traits.Dict(mandatory=True, desc="metrics so far")


class _GuardOutputSpec(TraitedSpec):
    metrics = traits.Dict(desc="metrics so far and those of the harmonization")
    guard = traits.Dict(desc="verdict: status, reasons, flagged, limits, change")


class Guard(SimpleInterface):
    """Measure what harmonization did to a scan, and judge whether its anatomy stayed."""

    input_spec = _GuardInputSpec
    output_spec = _GuardOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.anat.template import deep_grey, load_template
        from bids_harmony.models.bundle import load_bundle
        from bids_harmony.qc.guard import describe_change, guard_record, measure
        from bids_harmony.qc.histogram import reference_distances

        bundle = load_bundle(Path(self.inputs.bundle))
        raw = nib.load(self.inputs.raw)
        before, after = (
            np.asarray(nib.load(file).dataobj)
            for file in (self.inputs.raw, self.inputs.harmonized)
        )
        mask = before > 0
        changes = measure(before, after, mask, raw.affine)
        deep = deep_grey(load_template(bundle.contract.resolution))
        said = describe_change(before, after, mask, raw.affine, deep)
        histogram = bundle.qc_reference()["histograms"].get(bundle.reference_site)
        changes |= reference_distances(before, after, mask, histogram)
        self._results["metrics"] = self.inputs.metrics | changes
        self._results["guard"] = guard_record(changes, bundle.guard(), said)
        return runtime
