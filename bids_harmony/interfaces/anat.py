"""Nipype interfaces of anatomical preprocessing; see :mod:`bids_harmony.anat`.

Each step draws its own figure into the scan's staging folder, so that it helps to explain why a
later step failed. ``prefix`` is the path of a figure up to the ``desc`` entity.
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
)
from bids_harmony.anat.check import load_t1w, new_image, usable_affine
from bids_harmony.anat.fsl import bet, flirt
from bids_harmony.anat.intensity import normalize
from bids_harmony.anat.template import load_template
from bids_harmony.config import Contract
from bids_harmony.qc.metrics import scan_metrics
from bids_harmony.qc.reference import check_registration
from bids_harmony.reports.figures import mask_figure, registration_figure
from bids_harmony.sites.code import describe


class _CheckT1wInputSpec(BaseInterfaceInputSpec):
    in_file = traits.Str(mandatory=True, desc="T1w scan")


class _CheckT1wOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="T1w scan in RAS orientation")
    record = traits.Dict(desc="geometry of the scan, and notes")


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
    source_file = traits.Str(mandatory=True, desc="T1w scan as acquired")
    in_mask = traits.Either(None, traits.Str, usedefault=True, desc="existing brain mask")
    method = traits.Enum("deepbet", "multi-atlas", "bet", "skip", usedefault=True)
    detect_stripped = traits.Bool(False, usedefault=True, desc="detect skull-stripped scans")
    atlas_dir = traits.Either(None, traits.Str, usedefault=True, desc="atlases of multi-atlas")
    scan_key = traits.Str(mandatory=True, desc="scan, which is excluded from the atlases")
    seed = traits.Int(42, usedefault=True)
    prefix = traits.Str(mandatory=True, desc="path of the figure")


class _BrainMaskOutputSpec(TraitedSpec):
    out_mask = File(exists=True, desc="brain mask in RAS orientation")
    native_mask = File(exists=True, desc="brain mask in the orientation of the acquired scan")
    record = traits.Dict(desc="method and tool")


class BrainMask(SimpleInterface):
    """Compute the brain mask with one of four methods, or load an existing mask."""

    input_spec = _BrainMaskInputSpec
    output_spec = _BrainMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        inputs, img = self.inputs, nib.load(self.inputs.in_file)
        source, method = Path(inputs.source_file), inputs.method
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
        check_mask(mask, img)
        out = new_image(mask.astype(np.uint8), img.affine, 1)
        mask_figure(img, out, figure_path(inputs.prefix, "brainmask"))
        native = reorient(out, usable_affine(nib.load(source), source.name)[0])
        self._results |= {
            "out_mask": save_image(out, "mask.nii.gz"),
            "native_mask": save_image(native, "native_mask.nii.gz"),
            "record": {"method": method, **made_by(method), **record},
        }
        return runtime


class _RegisterAffineInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="T1w scan in RAS orientation")
    in_mask = File(exists=True, mandatory=True, desc="brain mask")
    resolution = traits.Int(2, usedefault=True, desc="voxel size of the template in mm")
    template = traits.Either(None, File(exists=True), usedefault=True, desc="template file")
    method = traits.Enum("ants", "flirt", usedefault=True)
    seed = traits.Int(42, usedefault=True)
    sloppy = traits.Bool(False, usedefault=True, desc="low quality, for tests")


class _RegisterAffineOutputSpec(TraitedSpec):
    out_xfm = File(exists=True, desc="ITK text transform from scan to template")
    record = traits.Dict(desc="method and tool")


class RegisterAffine(SimpleInterface):
    """Register the brain to the template with 12 degrees of freedom."""

    input_spec = _RegisterAffineInputSpec
    output_spec = _RegisterAffineOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        inputs, out_xfm = self.inputs, Path(runtime.cwd) / "affine.txt"
        record: dict[str, Any] = {}
        img, mask = nib.load(inputs.in_file), nib.load(inputs.in_mask)
        data = np.where(np.asarray(mask.dataobj) > 0, np.asarray(img.dataobj), 0)
        brain = nib.Nifti1Image(data.astype(np.float32), img.affine, img.header)
        template = load_template(inputs.resolution, inputs.template).t1w
        if inputs.method == "flirt":
            record = flirt(brain, template, out_xfm)
        else:
            register_affine(brain, template, out_xfm, seed=inputs.seed, sloppy=inputs.sloppy)
        self._results["out_xfm"] = str(out_xfm)
        self._results["record"] = {"method": inputs.method, **made_by(inputs.method), **record}
        return runtime


class _NormalizeInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="T1w scan in RAS orientation")
    in_mask = File(exists=True, mandatory=True, desc="brain mask")
    in_xfm = File(exists=True, mandatory=True, desc="transform from scan to template")
    template = traits.Either(None, File(exists=True), usedefault=True, desc="template file")
    contract = traits.Dict(mandatory=True, desc="preprocessing contract of the bundle")
    scan_key = traits.Str(mandatory=True, desc="scan, for messages")
    prefix = traits.Str(mandatory=True, desc="path of the figure")


class _NormalizeOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="scaled brain on the template grid, background 0")
    brain_mask = File(exists=True, desc="brain mask on the template grid")
    record = traits.Dict(desc="tissue means, bias field and volumes")
    metrics = traits.Dict(desc="QC metrics")
    descriptors = traits.Dict(desc="intensity distribution and texture")


class Normalize(SimpleInterface):
    """Resample a scan to the template grid, scale its intensities and compute QC metrics.

    A failed registration raises ScanError.
    """

    input_spec = _NormalizeInputSpec
    output_spec = _NormalizeOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        inputs, contract = self.inputs, Contract.from_dict(self.inputs.contract)
        scan, mask = nib.load(inputs.in_file), nib.load(inputs.in_mask)
        template = load_template(contract.resolution, inputs.template)
        grid = template.t1w
        zoom = float(grid.header.get_zooms()[0])
        unscaled = resample(scan, grid, inputs.in_xfm, antialias=True)
        inside = np.asarray(resample(mask, grid, inputs.in_xfm).dataobj) > 0.5
        data, used, record = normalize(
            np.asarray(unscaled.dataobj), inside, zoom,
            bias_order=contract.shading_order, grey=contract.grey,
        )  # fmt: skip
        scaled = nib.Nifti1Image(data, grid.affine, unscaled.header)
        registration_figure(scaled, template, figure_path(inputs.prefix, "norm"))
        metrics = scan_metrics(
            native=scan,
            native_mask=np.asarray(mask.dataobj) > 0,
            registered=np.asarray(unscaled.dataobj),
            registered_mask=inside,
            template=template,
            scaled=data,
            scaled_mask=used,
            transform=inputs.in_xfm,
        )
        check_registration(metrics, inputs.scan_key)
        brain_mask = new_image(inside.astype(np.uint8), grid.affine, 4)
        self._results |= {
            "out_file": save_image(scaled, "preproc.nii.gz"),
            "brain_mask": save_image(brain_mask, "brain_mask.nii.gz"),
            "record": record,
            "metrics": metrics,
            "descriptors": describe(data, inside, zoom),
        }
        return runtime


def save_image(img: nib.Nifti1Image, name: str) -> str:
    """Write an image to the current folder (that of the node) and return its absolute path."""
    img.header.set_xyzt_units("mm")
    nib.save(img, name)
    return str(Path(name).absolute())


def reorient(img: nib.Nifti1Image, affine: np.ndarray) -> nib.Nifti1Image:
    """Flip and permute the axes of an image to match another affine."""
    axes = [nib.io_orientation(matrix) for matrix in (img.affine, affine)]
    return img.as_reoriented(nib.orientations.ornt_transform(*axes))


def figure_path(prefix: str, desc: str) -> Path:
    """Return the path of a figure, creating its folder."""
    path = Path(f"{prefix}_desc-{desc}_T1w.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
