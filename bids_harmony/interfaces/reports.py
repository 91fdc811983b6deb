"""Interfaces that draw a scan's figures; the drawing is in :mod:`bids_harmony.reports`.

Figures are written to their place in the scan's staging folder at once, so that those of a scan
that fails later show why; ``prefix`` is their path up to the ``desc`` entity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import traits

from bids_harmony.interfaces import base


class MaskFigure(base.Step):
    """Draw the brain mask on the scan."""

    takes = base.fields(in_file=base.FILE, in_mask=base.FILE, prefix=base.TEXT)
    leaves = base.fields(out_file=base.OPTIONAL_FILE)

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Draw it."""
        from bids_harmony.reports.figures import mask_figure

        out = figure_path(given.prefix, "brainmask")
        mask_figure(nib.load(given.in_file), nib.load(given.in_mask), out)
        return {"out_file": str(out)}


class RegistrationFigure(base.Step):
    """Draw the template's outlines on a scan on the template grid."""

    takes = base.fields(in_file=base.FILE, **base.TEMPLATE, prefix=base.TEXT)
    leaves = base.fields(out_file=base.OPTIONAL_FILE)

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Draw it."""
        from bids_harmony.reports.figures import registration_figure

        out = figure_path(given.prefix, "norm")
        registration_figure(nib.load(given.in_file), base.template_of(given), out)
        return {"out_file": str(out)}


class ScanFigures(base.Step):
    """Draw what harmonization did, the predictions and the metrics."""

    takes = base.fields(
        bundle=base.TEXT, age=traits.Any(), raw=base.FILE, harmonized=base.FILE,
        predictions=base.DICT, metrics=base.DICT, prefix=base.TEXT,
    )  # fmt: skip
    leaves = base.fields(out_files=traits.List(base.OPTIONAL_FILE))

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Draw them; there is none of predictions without a brain age, or of metrics unknown."""
        from bids_harmony.models.bundle import load_bundle
        from bids_harmony.qc.reference import brain_histogram
        from bids_harmony.reports import figures

        bundle = load_bundle(Path(given.bundle))
        reference = bundle.qc_reference()
        raw, harmonized = nib.load(given.raw), nib.load(given.harmonized)
        before, after = np.asarray(raw.dataobj), np.asarray(harmonized.dataobj)
        names = ("harmonized", "histogram", "predictions", "qc")
        out = {name: figure_path(given.prefix, name) for name in names}
        figures.harmonization_figure(raw, harmonized, before > 0, out["harmonized"])
        histograms = {
            "reference": reference["histograms"].get(bundle.reference_site),
            "before": brain_histogram(before, before > 0),
            "after": brain_histogram(after, before > 0),
        }
        figures.histogram_figure(histograms, bundle.reference_site, out["histogram"])
        if brain_age := given.predictions.get("brain_age"):
            figures.prediction_figure(brain_age, out["predictions"], age=given.age)
        figures.metrics_figure(given.metrics, reference["metrics"], out["qc"])
        return {"out_files": [str(path) for path in out.values() if path.exists()]}


def figure_path(prefix: str, desc: str) -> Path:
    """Path of a figure, in a folder that exists."""
    path = Path(f"{prefix}_desc-{desc}_T1w.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
