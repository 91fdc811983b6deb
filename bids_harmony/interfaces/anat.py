"""Nipype interfaces of anatomical preprocessing; see :mod:`bids_harmony.anat`."""

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

from bids_harmony.anat import made_by
from bids_harmony.anat.affine import register_affine, resample
from bids_harmony.anat.brain import (
    check_mask,
    deepbet_mask,
    find_atlases,
    foreground,
    given_mask,
    is_stripped,
    multiatlas_mask,
    outlines_brain,
)
from bids_harmony.anat.check import load_t1w, usable_affine
from bids_harmony.anat.fsl import bet, flirt
from bids_harmony.anat.intensity import normalize
from bids_harmony.anat.template import load_template
from bids_harmony.config import Contract
from bids_harmony.interfaces.base import (
    ImageOutputSpec,
    TemplateInputSpec,
    apply_mask,
    read_array,
    reorient,
    save_image,
    save_mask,
)
from bids_harmony.qc.metrics import scan_metrics
from bids_harmony.qc.reference import check_registration
from bids_harmony.sites.code import describe


class _CheckT1wInputSpec(BaseInterfaceInputSpec):
    in_file = traits.Str(mandatory=True, desc="T1w scan, or whatever is in its place")


class _CheckT1wOutputSpec(ImageOutputSpec):
    record = traits.Dict(desc="what was found in the file")


class CheckT1w(SimpleInterface):
    """Check a T1w scan and reorient it to RAS; an unusable scan raises ScanError."""

    input_spec = _CheckT1wInputSpec
    output_spec = _CheckT1wOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        img, self._results["record"] = load_t1w(self.inputs.in_file)
        self._results["out_file"] = save_image(img, "t1w.nii")
        return runtime


class _BrainMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="T1w scan in RAS orientation")
    in_mask = traits.Either(None, traits.Str, usedefault=True, desc="mask that was made earlier")
    method = traits.Enum("deepbet", "multi-atlas", "bet", "skip", usedefault=True)
    detect_stripped = traits.Bool(False, usedefault=True, desc="recognise a stripped scan")
    atlas_dir = traits.Either(None, traits.Str, usedefault=True, desc="library of multi-atlas")
    scan_key = traits.Str(mandatory=True, desc="the scan's name, as it is never its own atlas")
    seed = traits.Int(42, usedefault=True)


class _BrainMaskOutputSpec(TraitedSpec):
    out_mask = File(exists=True)
    record = traits.Dict(desc="which method and tool made the mask")


class BrainMask(SimpleInterface):
    """Compute the brain mask with one of four methods, or load an existing mask."""

    input_spec = _BrainMaskInputSpec
    output_spec = _BrainMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        inputs, img = self.inputs, nib.load(self.inputs.in_file)
        method = inputs.method
        record: dict[str, Any] = {}
        if inputs.in_mask is not None:
            method = "precomputed"
            mask, record = given_mask(inputs.in_mask, img)
        elif method != "skip" and inputs.detect_stripped and is_stripped(img):
            method, record = "skip", {"detected": "the scan is already skull-stripped"}
        if method == "skip":
            mask = foreground(img)
        elif method == "deepbet":
            mask = deepbet_mask(img)
        elif method == "multi-atlas":
            atlases = find_atlases(inputs.atlas_dir)
            mask, record = multiatlas_mask(
                img, atlases, seed=inputs.seed, exclude=(inputs.scan_key,)
            )
        elif method == "bet":
            path, record = bet(img, Path(runtime.cwd))
            mask, _ = given_mask(path, img)
            if outlines_brain(img) is not None:
                record["notes"].append(
                    "the scan looks stripped already, and bet shaves the cortex off such scans: "
                    "use --skull-strip auto or skip"
                )
        check_mask(mask, img)
        self._results["out_mask"] = save_mask(mask, img.affine, "mask.nii.gz")
        self._results["record"] = {"method": method, **made_by(method), **record}
        return runtime


class _RegisterAffineInputSpec(TemplateInputSpec):
    in_file = File(exists=True, mandatory=True, desc="T1w scan in RAS orientation")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")
    method = traits.Enum("ants", "flirt", usedefault=True)
    seed = traits.Int(42, usedefault=True)
    sloppy = traits.Bool(False, usedefault=True, desc="low quality, for tests")


class _RegisterAffineOutputSpec(TraitedSpec):
    out_xfm = File(exists=True, desc="ITK text transform, scan to template")
    record = traits.Dict(desc="which method and tool found the transform")


class RegisterAffine(SimpleInterface):
    """Register the brain to the template with 12 degrees of freedom."""

    input_spec = _RegisterAffineInputSpec
    output_spec = _RegisterAffineOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        inputs, out_xfm = self.inputs, Path(runtime.cwd) / "affine.txt"
        record: dict[str, Any] = {}
        brain = apply_mask(inputs.in_file, inputs.in_mask)
        template = load_template(inputs.resolution, inputs.template).t1w
        if inputs.method == "flirt":
            record = flirt(brain, template, out_xfm)
        else:
            register_affine(brain, template, out_xfm, seed=inputs.seed, sloppy=inputs.sloppy)
        self._results["out_xfm"] = str(out_xfm)
        self._results["record"] = {"method": inputs.method, **made_by(inputs.method), **record}
        return runtime


class _NormalizeInputSpec(TemplateInputSpec):
    in_file = File(exists=True, mandatory=True, desc="T1w scan in RAS orientation")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")
    in_xfm = File(exists=True, mandatory=True, desc="transform, scan to template")
    contract = traits.Dict(mandatory=True, desc="the bundle's preprocessing contract")


class _NormalizeOutputSpec(ImageOutputSpec):
    out_file = File(exists=True, desc="scaled brain on the template grid, background 0")
    out_mask = File(exists=True, desc="its foreground")
    brain_mask = File(exists=True, desc="the brain mask on the template grid")
    unscaled = File(exists=True, desc="the scan on the template grid, neither masked nor scaled")
    record = traits.Dict(desc="tissue means, bias field and volumes")


class Normalize(SimpleInterface):
    """Resample a scan to the template grid in one step, then mask and scale its intensities."""

    input_spec = _NormalizeInputSpec
    output_spec = _NormalizeOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        inputs, contract = self.inputs, Contract.from_dict(self.inputs.contract)
        grid = load_template(inputs.resolution, inputs.template).t1w
        unscaled = resample(nib.load(inputs.in_file), grid, inputs.in_xfm, antialias=True)
        brain_mask = resample(nib.load(inputs.in_mask), grid, inputs.in_xfm)
        inside = np.asarray(brain_mask.dataobj) > 0.5
        data, used, self._results["record"] = normalize(
            np.asarray(unscaled.dataobj),
            inside,
            float(grid.header.get_zooms()[0]),
            bias_order=contract.shading_order,
            grey=contract.grey,
        )
        scaled = nib.Nifti1Image(data, grid.affine, unscaled.header)
        self._results |= {
            "out_file": save_image(scaled, "preproc.nii.gz"),
            "out_mask": save_mask(used, grid.affine, "mask.nii.gz", code=4),
            "brain_mask": save_mask(inside, grid.affine, "brain_mask.nii.gz", code=4),
            "unscaled": save_image(unscaled, "unscaled.nii.gz"),
        }
        return runtime


class _RestoreOrientationInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="image in RAS orientation")
    original = traits.Str(mandatory=True, desc="the scan as it was acquired")


class RestoreOrientation(SimpleInterface):
    """Undo the reorientation of a scan to RAS, so that results overlay the original."""

    input_spec = _RestoreOrientationInputSpec
    output_spec = ImageOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        original = Path(self.inputs.original)
        affine = usable_affine(nib.load(original), original.name).affine
        out = reorient(nib.load(self.inputs.in_file), affine)
        self._results["out_file"] = save_image(out, "original_axes.nii.gz")
        return runtime


class _MeasureScanInputSpec(TemplateInputSpec):
    scan_key = traits.Str(mandatory=True, desc="the scan's name")
    t1w = File(exists=True, mandatory=True, desc="T1w scan in RAS orientation")
    t1w_mask = File(exists=True, mandatory=True, desc="its brain mask")
    in_xfm = File(exists=True, mandatory=True, desc="transform, scan to template")
    unscaled = File(exists=True, mandatory=True, desc="the scan on the template grid")
    brain_mask = File(exists=True, mandatory=True, desc="the brain mask on the template grid")
    preproc = File(exists=True, mandatory=True, desc="scaled brain on the template grid")
    preproc_mask = File(exists=True, mandatory=True, desc="its foreground")


class _MeasureScanOutputSpec(TraitedSpec):
    metrics = traits.Dict()
    descriptors = traits.Dict()


class MeasureScan(SimpleInterface):
    """Compute QC metrics and intensity descriptors; a failed registration raises ScanError."""

    input_spec = _MeasureScanInputSpec
    output_spec = _MeasureScanOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        inputs = self.inputs
        brain_mask, preproc = read_array(inputs.brain_mask) > 0, nib.load(inputs.preproc)
        metrics = scan_metrics(
            native=nib.load(inputs.t1w),
            native_mask=read_array(inputs.t1w_mask) > 0,
            registered=read_array(inputs.unscaled),
            registered_mask=brain_mask,
            template=load_template(inputs.resolution, inputs.template),
            scaled=np.asarray(preproc.dataobj),
            scaled_mask=read_array(inputs.preproc_mask) > 0,
            transform=inputs.in_xfm,
        )
        check_registration(metrics, inputs.scan_key)
        zoom = float(preproc.header.get_zooms()[0])
        self._results["metrics"] = metrics
        self._results["descriptors"] = describe(np.asarray(preproc.dataobj), brain_mask, zoom)
        return runtime


class _ToNativeInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="image on the template grid")
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the scan's own grid")
    in_xfm = File(exists=True, mandatory=True, desc="transform, scan to template")


class ToNative(SimpleInterface):
    """Resample a template-space image to the grid of the scan's native mask, background 0."""

    input_spec = _ToNativeInputSpec
    output_spec = ImageOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        mask = nib.load(self.inputs.in_mask)
        ras = nib.as_closest_canonical(mask)
        moved = resample(nib.load(self.inputs.in_file), ras, self.inputs.in_xfm, invert=True)
        data = np.where(np.asarray(ras.dataobj) > 0, np.asarray(moved.dataobj), 0)
        out = nib.Nifti1Image(data.astype(np.float32), moved.affine, moved.header)
        self._results["out_file"] = save_image(reorient(out, mask.affine), "native.nii.gz")
        return runtime
