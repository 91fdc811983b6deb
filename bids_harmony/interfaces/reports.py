"""Interfaces that draw a scan's figures; the drawing is in :mod:`bids_harmony.reports`."""

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
    traits,
)

from bids_harmony.anat.template import load_template
from bids_harmony.interfaces.anat import TemplateInputSpec


class _FigureOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="PNG")


class _MaskFigureInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="RAS T1w")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")


class MaskFigure(SimpleInterface):
    """Draw the brain mask on the scan."""

    input_spec = _MaskFigureInputSpec
    output_spec = _FigureOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.reports.figures import mask_figure

        out = Path(runtime.cwd) / "mask.png"
        mask_figure(nib.load(self.inputs.in_file), nib.load(self.inputs.in_mask), out)
        self._results["out_file"] = str(out)
        return runtime


class _RegistrationFigureInputSpec(TemplateInputSpec):
    in_file = File(exists=True, mandatory=True, desc="scan on the template grid")


class RegistrationFigure(SimpleInterface):
    """Draw the template's outlines on the registered scan."""

    input_spec = _RegistrationFigureInputSpec
    output_spec = _FigureOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.reports.figures import registration_figure

        out = Path(runtime.cwd) / "norm.png"
        template = load_template(self.inputs.resolution, self.inputs.path(self.inputs))
        registration_figure(nib.load(self.inputs.in_file), template, out)
        self._results["out_file"] = str(out)
        return runtime


class _ScanFiguresInputSpec(BaseInterfaceInputSpec):
    bundle = traits.Str(mandatory=True, desc="folder of the model bundle")
    facts = traits.Dict(mandatory=True, desc="what is known of the scan beforehand")
    raw = File(exists=True, mandatory=True, desc="scaled brain on the template grid")
    harmonized = File(exists=True, mandatory=True, desc="the same, harmonized")
    predictions = traits.Dict(mandatory=True)
    metrics = traits.Dict(mandatory=True)


class _ScanFiguresOutputSpec(TraitedSpec):
    out_files = traits.List(File(exists=True))
    descs = traits.List(traits.Str, desc="the desc- label of each file")


class ScanFigures(SimpleInterface):
    """Draw what harmonization did, the predictions and the metrics."""

    input_spec = _ScanFiguresInputSpec
    output_spec = _ScanFiguresOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.models.bundle import load_bundle
        from bids_harmony.qc.histogram import brain_histogram
        from bids_harmony.reports import figures

        bundle = load_bundle(Path(self.inputs.bundle))
        reference = bundle.qc_reference()
        raw, harmonized = nib.load(self.inputs.raw), nib.load(self.inputs.harmonized)
        mask = np.asarray(raw.dataobj) > 0
        descs = ("harmonized", "histogram", "predictions", "qc")
        out = {desc: Path(runtime.cwd) / f"{desc}.png" for desc in descs}
        histograms = {
            "reference": reference["histograms"].get(bundle.reference_site),
            "before": brain_histogram(np.asarray(raw.dataobj), mask),
            "after": brain_histogram(np.asarray(harmonized.dataobj), mask),
        }
        figures.harmonization_figure(raw, harmonized, mask, out["harmonized"])
        figures.histogram_figure(histograms, bundle.reference_site, out["histogram"])
        if (brain_age := self.inputs.predictions.get("brain_age")) is not None:
            figures.prediction_figure(brain_age, out["predictions"], age=self.inputs.facts["age"])
        figures.metrics_figure(self.inputs.metrics, reference["metrics"], out["qc"])
        drawn = {desc: path for desc, path in out.items() if path.exists()}
        self._results["out_files"] = [str(path) for path in drawn.values()]
        self._results["descs"] = list(drawn)
        return runtime
