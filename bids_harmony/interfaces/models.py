"""Interfaces of harmonization and prediction; the work is in :mod:`bids_harmony.models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import traits

from bids_harmony.interfaces import base

#: The bundle's folder, the calibration of the scan's site as in its file, and the device;
#: ``use_gpu`` is what nipype's MultiProc queues nodes by.
MODEL = {
    "bundle": base.TEXT,
    "calibration": base.DICT,
    "device": traits.Enum("cpu", "cuda", usedefault=True),
    "use_gpu": traits.Bool(False, usedefault=True),
    "num_threads": traits.Int(1, usedefault=True),
}


class Harmonize(base.Step):
    """Map a scaled brain on the template grid to the reference site by the forward map."""

    takes = base.fields(**MODEL, in_file=base.FILE)
    leaves = base.fields(out_file=base.OPTIONAL_FILE)

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Harmonize the scan."""
        from bids_harmony.models.apply import harmonize
        from bids_harmony.models.bundle import load_bundle
        from bids_harmony.sites.calibration import Calibration

        base.set_threads(given.num_threads)
        out = harmonize(
            nib.load(given.in_file),
            load_bundle(given.bundle),
            Calibration.from_dict(given.calibration),
            device=given.device,
        )
        return {"out_file": base.save_image(out, folder / "harmonized.nii.gz")}


class Guard(base.Step):
    """Measure what harmonization did to a scan, and decide whether its anatomy stayed."""

    takes = base.fields(raw=base.FILE, harmonized=base.FILE, bundle=base.TEXT, metrics=base.DICT)
    leaves = base.fields(metrics=traits.Dict(), guard=traits.Dict())

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Compare before and after."""
        from bids_harmony.models.bundle import load_bundle
        from bids_harmony.qc.guard import guard_record, measure
        from bids_harmony.qc.reference import reference_distances

        bundle = load_bundle(Path(given.bundle))
        before, after = base.array(given.raw), base.array(given.harmonized)
        mask = before > 0
        changes = measure(before, after, mask, nib.load(given.raw).affine)
        histogram = bundle.qc_reference()["histograms"].get(bundle.reference_site)
        changes |= reference_distances(before, after, mask, histogram)
        return {
            "metrics": given.metrics | changes,
            "guard": guard_record(changes, bundle.guard()),
        }


class Predict(base.Step):
    """Predict every target of the bundle on the raw and on the harmonized volume.

    ``calibration_file`` is where the outputs have the calibration, below their root; ``age`` is
    in years.
    """

    takes = base.fields(
        **MODEL, raw=base.FILE, harmonized=base.FILE, site=base.TEXT,
        calibration_file=traits.Str(), age=traits.Float(), guard=base.DICT,
        on_guard_fail=traits.Enum("flag", "raw", usedefault=True),
        correct_age_bias=traits.Bool(False, usedefault=True),
    )  # fmt: skip
    leaves = base.fields(predictions=traits.Dict())

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Predict."""
        from bids_harmony.models.apply import predict
        from bids_harmony.models.bundle import load_bundle
        from bids_harmony.sites.calibration import Calibration

        base.set_threads(given.num_threads)
        left_out = given.on_guard_fail == "raw" and given.guard["status"] == "fail"
        predictions = predict(
            nib.load(given.raw),
            load_bundle(given.bundle),
            harmonized=None if left_out else nib.load(given.harmonized),
            age=base.given_or(given.age),
            site=given.site,
            calibration=Calibration.from_dict(given.calibration),
            correct_age_bias=given.correct_age_bias,
            device=given.device,
        )
        if path := base.given_or(given.calibration_file):
            predictions["calibration"]["path"] = path
        return {"predictions": predictions}


class ToNative(base.Step):
    """Resample a template-space image to the grid of the scan's own mask, background 0."""

    takes = base.fields(in_file=base.FILE, in_mask=base.FILE, in_xfm=base.FILE)
    leaves = base.fields(out_file=base.OPTIONAL_FILE)

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Resample."""
        from bids_harmony.anat.affine import resample

        mask = nib.load(given.in_mask)
        ras = nib.as_closest_canonical(mask)
        moved = resample(nib.load(given.in_file), ras, given.in_xfm, invert=True)
        data = np.where(np.asarray(ras.dataobj) > 0, np.asarray(moved.dataobj), 0)
        out = nib.Nifti1Image(data.astype(np.float32), moved.affine, moved.header)
        return {
            "out_file": base.save_image(
                base.like_stored(out, mask.affine), folder / "native.nii.gz"
            )
        }
