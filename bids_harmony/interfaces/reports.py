"""Nipype interfaces that draw a scan's figures; see :mod:`bids_harmony.reports`.

Figures are written directly to the scan's staging folder, so that they help explain why a scan
failed later on. ``prefix`` is the path of a figure up to the ``desc`` entity.
"""

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
from bids_harmony.interfaces.base import ImageOutputSpec, TemplateInputSpec
from bids_harmony.models.bundle import load_bundle
from bids_harmony.qc.reference import brain_histogram
from bids_harmony.reports import figures


class _MaskFigureInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="T1w scan in RAS orientation")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")
    prefix = traits.Str(mandatory=True)


class MaskFigure(SimpleInterface):
    """Plot the outline of the brain mask on the scan."""

    input_spec = _MaskFigureInputSpec
    output_spec = ImageOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        img, mask = nib.load(self.inputs.in_file), nib.load(self.inputs.in_mask)
        out_file = figure_path(self.inputs.prefix, "brainmask")
        figures.mask_figure(img, mask, out_file)
        self._results["out_file"] = str(out_file)
        return runtime


class _RegistrationFigureInputSpec(TemplateInputSpec):
    in_file = File(exists=True, mandatory=True, desc="brain on the template grid")
    prefix = traits.Str(mandatory=True)


class RegistrationFigure(SimpleInterface):
    """Plot the outlines of the template on a registered scan."""

    input_spec = _RegistrationFigureInputSpec
    output_spec = ImageOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        template = load_template(self.inputs.resolution, self.inputs.template)
        out_file = figure_path(self.inputs.prefix, "norm")
        figures.registration_figure(nib.load(self.inputs.in_file), template, out_file)
        self._results["out_file"] = str(out_file)
        return runtime


class _ScanFiguresInputSpec(BaseInterfaceInputSpec):
    bundle = traits.Str(mandatory=True, desc="folder of the model bundle")
    age = traits.Any(desc="in years, if known")
    raw = File(exists=True, mandatory=True, desc="scaled brain on the template grid")
    harmonized = File(exists=True, mandatory=True)
    predictions = traits.Dict(mandatory=True)
    metrics = traits.Dict(mandatory=True)
    prefix = traits.Str(mandatory=True)


class _ScanFiguresOutputSpec(TraitedSpec):
    out_files = traits.List(File(exists=True))


class ScanFigures(SimpleInterface):
    """Plot a scan before and after harmonization, its histograms, predictions and QC metrics.

    The prediction figure is omitted without a brain age, the metrics figure without known metrics.
    """

    input_spec = _ScanFiguresInputSpec
    output_spec = _ScanFiguresOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        bundle = load_bundle(Path(self.inputs.bundle))
        reference = bundle.qc_reference()
        raw, harmonized = nib.load(self.inputs.raw), nib.load(self.inputs.harmonized)
        before, after = np.asarray(raw.dataobj), np.asarray(harmonized.dataobj)
        names = ("harmonized", "histogram", "predictions", "qc")
        out = {name: figure_path(self.inputs.prefix, name) for name in names}
        figures.harmonization_figure(raw, harmonized, before > 0, out["harmonized"])
        histograms = {
            "reference": reference["histograms"].get(bundle.reference_site),
            "before": brain_histogram(before, before > 0),
            "after": brain_histogram(after, before > 0),
        }
        figures.histogram_figure(histograms, bundle.reference_site, out["histogram"])
        if brain_age := self.inputs.predictions.get("brain_age"):
            figures.prediction_figure(brain_age, out["predictions"], age=self.inputs.age)
        figures.metrics_figure(self.inputs.metrics, reference["metrics"], out["qc"])
        self._results["out_files"] = [str(path) for path in out.values() if path.exists()]
        return runtime


def figure_path(prefix: str, desc: str) -> Path:
    """Return the path of a figure, creating its folder."""
    path = Path(f"{prefix}_desc-{desc}_T1w.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
