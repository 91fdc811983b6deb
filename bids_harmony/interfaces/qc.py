"""Interface of the QC workflow; the measures are in :mod:`bids_harmony.qc`."""

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

from bids_harmony.anat.template import load_template
from bids_harmony.interfaces.anat import TemplateInputSpec


class _ScanMetricsInputSpec(TemplateInputSpec):
    t1w_ras = File(exists=True, mandatory=True, desc="RAS T1w")
    t1w_mask = File(exists=True, mandatory=True, desc="its brain mask")
    xfm = File(exists=True, mandatory=True, desc="ITK transform, T1w to template")
    unscaled = File(exists=True, mandatory=True, desc="scan on the template grid")
    brain_mask = File(exists=True, mandatory=True, desc="its mask on the template grid")
    preproc = File(exists=True, mandatory=True, desc="the scan, masked and scaled")
    preproc_mask = File(exists=True, mandatory=True, desc="its foreground")
    name = traits.Str(mandatory=True, desc="the scan's name, for messages")


class _ScanMetricsOutputSpec(TraitedSpec):
    metrics = traits.Dict()
    xfm = File(exists=True)
    brain_mask = File(exists=True)
    preproc = File(exists=True)
    preproc_mask = File(exists=True)


class ScanMetrics(SimpleInterface):
    """Measure a scan; raise ScanError where its registration failed."""

    input_spec = _ScanMetricsInputSpec
    output_spec = _ScanMetricsOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.qc.limits import check_registration
        from bids_harmony.qc.metrics import scan_metrics

        template = load_template(self.inputs.resolution, self.inputs.path(self.inputs))
        native = nib.load(self.inputs.t1w_ras)
        metrics = scan_metrics(
            native=np.asarray(native.dataobj),
            native_mask=np.asarray(nib.load(self.inputs.t1w_mask).dataobj) > 0,
            zooms=tuple(float(z) for z in native.header.get_zooms()[:3]),
            registered=np.asarray(nib.load(self.inputs.unscaled).dataobj),
            registered_mask=np.asarray(nib.load(self.inputs.brain_mask).dataobj) > 0,
            template=np.asarray(template.t1w.dataobj),
            template_mask=template.mask,
            template_zoom=float(template.t1w.header.get_zooms()[0]),
            scaled=np.asarray(nib.load(self.inputs.preproc).dataobj),
            scaled_mask=np.asarray(nib.load(self.inputs.preproc_mask).dataobj) > 0,
            transform=self.inputs.xfm,
        )
        check_registration(metrics, self.inputs.name)
        self._results["metrics"] = metrics
        for name in ("xfm", "brain_mask", "preproc", "preproc_mask"):
            self._results[name] = getattr(self.inputs, name)
        return runtime


class _DescribeInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="scaled brain on the template grid")
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the template grid")


class _DescribeOutputSpec(TraitedSpec):
    descriptors = traits.Dict()


class Describe(SimpleInterface):
    """Describe a scan's intensities, for the calibration of its site."""

    input_spec = _DescribeInputSpec
    output_spec = _DescribeOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.sites.code import describe

        img = nib.load(self.inputs.in_file)
        self._results["descriptors"] = describe(
            np.asarray(img.dataobj),
            np.asarray(nib.load(self.inputs.in_mask).dataobj) > 0,
            float(img.header.get_zooms()[0]),
        )
        return runtime
