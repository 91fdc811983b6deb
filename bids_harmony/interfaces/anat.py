"""Interfaces of the anatomical workflow; the work is done in :mod:`bids_harmony.anat`."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_harmony.anat.template import load_template
from bids_harmony.contract import Contract
from bids_harmony.errors import ScanError
from bids_harmony.files import why_unread
from bids_harmony.tools import made_by


class TemplateInputSpec(BaseInterfaceInputSpec):
    """Inputs that say which template."""

    resolution = traits.Int(2, usedefault=True, desc="template voxel size in mm")
    template = File(exists=True, desc="template given as a file; default: the embedded one")

    @staticmethod
    def path(inputs: Any) -> str | None:
        """Return the template's file, or None for the embedded one."""
        return str(inputs.template) if isdefined(inputs.template) else None


class _CheckT1wInputSpec(BaseInterfaceInputSpec):
    in_file = traits.Str(mandatory=True, desc="T1w scan; may be anything at all")


class _CheckT1wOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="RAS float32 copy")
    record = traits.Dict(desc="what was found")
    orientation = traits.Str(desc="axes of the scan as it is stored")


class CheckT1w(SimpleInterface):
    """Refuse an unusable scan, and conform a usable one to RAS."""

    input_spec = _CheckT1wInputSpec
    output_spec = _CheckT1wOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.anat.check import load_t1w

        img, record = load_t1w(self.inputs.in_file)
        self._results["record"] = record
        self._results["orientation"] = record["orientation"]
        self._results["out_file"] = save_image(img, runtime, "t1w.nii")
        return runtime


class _BrainMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="RAS T1w")
    method = traits.Enum("deepbet", "multi-atlas", "skip", mandatory=True)
    detect_stripped = traits.Bool(False, usedefault=True, desc="recognise stripped scans first")
    atlas_dir = traits.Str(desc="atlas library for multi-atlas")
    n_atlases = traits.Int(6, usedefault=True)
    exclude = traits.Str(desc="key of the scan, never used as its own atlas")
    seed = traits.Int(42, usedefault=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True)
    tool_version = traits.Str(desc="of the method's tool: another one runs the node again")


class _BrainMaskOutputSpec(TraitedSpec):
    out_mask = File(exists=True)
    record = traits.Dict(desc="method and tool used and, for multi-atlas, the atlases")


class BrainMask(SimpleInterface):
    """Find the brain."""

    input_spec = _BrainMaskInputSpec
    output_spec = _BrainMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.anat import brain

        set_threads(self.inputs.num_threads)
        img = nib.load(self.inputs.in_file)
        method, record = self.inputs.method, {}
        if self.inputs.detect_stripped and method != "skip" and brain.is_stripped(img):
            method, record = "skip", {"detected": "the scan is already skull-stripped"}
        if method == "skip":
            mask = brain.foreground(img)
        elif method == "deepbet":
            mask = brain.deepbet_mask(img)
        else:
            from bids_harmony.anat.brain import find_atlases, multiatlas_mask

            mask, record = multiatlas_mask(
                img,
                find_atlases(self.inputs.atlas_dir),
                n_best=self.inputs.n_atlases,
                seed=self.inputs.seed,
                exclude=(self.inputs.exclude,) if isdefined(self.inputs.exclude) else (),
            )
        brain.check_mask(mask, img)
        self._results["record"] = {"method": method, **made_by(method), **record}
        self._results["out_mask"] = save_mask(mask, img.affine, runtime)
        return runtime


class _ConformMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="RAS T1w whose grid is wanted")
    in_mask = File(mandatory=True, desc="mask of the same scan, perhaps not fetched yet")
    method = traits.Str(mandatory=True, desc="where the mask comes from")
    record = traits.Dict(value={}, usedefault=True, desc="what the program that made it recorded")
    orientation = traits.Str("RAS", usedefault=True, desc="axes of the scan as it is stored")


class ConformMask(SimpleInterface):
    """Bring a mask made elsewhere (FSL, ``--derivatives``) onto the RAS scan's grid."""

    input_spec = _ConformMaskInputSpec
    output_spec = _BrainMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.anat import brain

        img = nib.load(self.inputs.in_file)
        path = Path(self.inputs.in_mask)
        try:
            mask, record = brain.given_mask(path, img)
        except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
            raise ScanError(
                f"The brain mask {path.name} cannot be read ({why_unread(path, error)}).",
                "Provide it, or leave --derivatives out.",
            ) from error
        brain.check_mask(mask, img)
        notes = [*self.inputs.record.get("notes", ()), *record.get("notes", ())]
        if self.inputs.method == "bet" and brain.outlines_brain(img) is not None:
            notes.append(
                "the scan looks stripped already, and bet shaves the cortex off such scans: "
                "use --skull-strip auto or skip"
            )
        found = {"method": self.inputs.method, **self.inputs.record, **record}
        self._results["record"] = found | ({"notes": notes} if notes else {})
        self._results["out_mask"] = save_mask(mask, img.affine, runtime)
        return runtime


class _RegisterInputSpec(TemplateInputSpec):
    in_file = File(exists=True, mandatory=True, desc="RAS T1w")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")
    seed = traits.Int(42, usedefault=True)
    sloppy = traits.Bool(False, usedefault=True, desc="low quality, for tests")
    num_threads = traits.Int(1, usedefault=True, nohash=True)
    tool_version = traits.Str(desc="of antspyx: another one runs the node again")


class _RegisterOutputSpec(TraitedSpec):
    out_xfm = File(exists=True, desc="ITK text transform, T1w to template")
    record = traits.Dict(desc="method and tool used")


class RegisterAffine(SimpleInterface):
    """Register the brain to the template with 12 degrees of freedom by antspyx."""

    input_spec = _RegisterInputSpec
    output_spec = _RegisterOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.anat.affine import register_affine

        set_threads(self.inputs.num_threads)
        template = load_template(self.inputs.resolution, self.inputs.path(self.inputs))
        self._results["record"] = {"method": "ants", **made_by("ants")}
        self._results["out_xfm"] = str(
            register_affine(
                masked(self.inputs.in_file, self.inputs.in_mask),
                template.t1w,
                Path(runtime.cwd) / "affine.txt",
                seed=self.inputs.seed,
                sloppy=self.inputs.sloppy,
            )
        )
        return runtime


class _SaveTemplateOutputSpec(TraitedSpec):
    out_file = File(exists=True)


class SaveTemplate(SimpleInterface):
    """Write the template to a file, for programs that read files."""

    input_spec = TemplateInputSpec
    output_spec = _SaveTemplateOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        template = load_template(self.inputs.resolution, self.inputs.path(self.inputs))
        self._results["out_file"] = save_image(template.t1w, runtime, "template.nii.gz")
        return runtime


class _ApplyMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True)
    in_mask = File(exists=True, mandatory=True)


class _ApplyMaskOutputSpec(TraitedSpec):
    out_file = File(exists=True)


class ApplyMask(SimpleInterface):
    """Set everything outside the mask to 0."""

    input_spec = _ApplyMaskInputSpec
    output_spec = _ApplyMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        img = masked(self.inputs.in_file, self.inputs.in_mask)
        self._results["out_file"] = save_image(img, runtime, "brain.nii.gz")
        return runtime


class _FlirtToITKInputSpec(BaseInterfaceInputSpec):
    in_matrix = File(exists=True, mandatory=True, desc="FLIRT's .mat")
    moving = File(exists=True, mandatory=True)
    reference = File(exists=True, mandatory=True)
    record = traits.Dict(desc="what the program recorded")


class FlirtToITK(SimpleInterface):
    """Convert FLIRT's matrix to an ITK text transform."""

    input_spec = _FlirtToITKInputSpec
    output_spec = _RegisterOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.anat.fsl import fsl_to_itk

        out = Path(runtime.cwd) / "affine.txt"
        fsl_to_itk(self.inputs.in_matrix, self.inputs.moving, self.inputs.reference, out)
        self._results["out_xfm"] = str(out)
        self._results["record"] = {"method": "flirt", **self.inputs.record}
        return runtime


class _NormalizeInputSpec(TemplateInputSpec):
    in_file = File(exists=True, mandatory=True, desc="RAS T1w")
    in_mask = File(exists=True, mandatory=True, desc="its brain mask")
    in_xfm = File(exists=True, mandatory=True, desc="ITK transform, T1w to template")
    contract = traits.Dict(mandatory=True, desc="preprocessing contract")
    name = traits.Str(mandatory=True, desc="the scan's name, for messages")


class _NormalizeOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="scaled brain on the template grid, background 0")
    out_mask = File(exists=True, desc="the mask it was cut with")
    brain_mask = File(exists=True, desc="brain mask on the template grid")
    unscaled = File(exists=True, desc="resampled scan before masking and scaling")
    record = traits.Dict(desc="scaling values")


class Normalize(SimpleInterface):
    """Resample the scan once onto the template grid, then mask and scale it by the contract."""

    input_spec = _NormalizeInputSpec
    output_spec = _NormalizeOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.anat.affine import normalize_scan

        result = normalize_scan(
            nib.load(self.inputs.in_file),
            nib.load(self.inputs.in_mask),
            self.inputs.in_xfm,
            load_template(self.inputs.resolution, self.inputs.path(self.inputs)),
            Contract.from_dict(self.inputs.contract),
        )
        self._results["record"] = result.record
        self._results["out_file"] = save_image(result.volume, runtime, "preproc.nii.gz")
        self._results["unscaled"] = save_image(result.unscaled, runtime, "unscaled.nii.gz")
        for name in ("mask", "brain_mask"):
            key = "out_mask" if name == "mask" else name
            self._results[key] = save_mask(
                getattr(result, name), result.volume.affine, runtime, f"{name}.nii.gz", code=4
            )
        return runtime


def set_threads(n_threads: int) -> None:
    """Limit torch and ITK, which otherwise start as many threads as there are cores."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(n_threads)
    import torch

    torch.set_num_threads(n_threads)


def masked(in_file: str, in_mask: str) -> nib.Nifti1Image:
    """Load an image with everything outside the mask set to 0."""
    img = nib.load(in_file)
    data = np.where(np.asarray(nib.load(in_mask).dataobj) > 0, np.asarray(img.dataobj), 0)
    return nib.Nifti1Image(data.astype(np.float32), img.affine, img.header)


def save_mask(
    mask: np.ndarray, affine: np.ndarray, runtime: Any, name: str = "mask.nii.gz", code: int = 1
) -> str:
    """Write a boolean array as a uint8 image in the node's folder."""
    img = nib.Nifti1Image(mask.astype(np.uint8), affine)
    img.set_qform(affine, code)
    img.set_sform(affine, code)
    return save_image(img, runtime, name)


def save_image(img: nib.Nifti1Image, runtime: Any, name: str) -> str:
    """Write an image in the node's folder."""
    path = Path(runtime.cwd) / name
    img.header.set_xyzt_units("mm")
    nib.save(img, path)
    return str(path)


class _RestoreOrientationInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="image on the RAS grid")
    original = traits.Str(mandatory=True, desc="scan whose axes are wanted back")


class _RestoreOrientationOutputSpec(TraitedSpec):
    out_file = File(exists=True)


class RestoreOrientation(SimpleInterface):
    """Undo the flips and permutations that brought a scan to RAS, so that results overlay it."""

    input_spec = _RestoreOrientationInputSpec
    output_spec = _RestoreOrientationOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from bids_harmony.anat.check import usable_affine

        img = nib.load(self.inputs.in_file)
        path = self.inputs.original
        wanted = nib.io_orientation(usable_affine(nib.load(path), Path(path).name).affine)
        back = nib.orientations.ornt_transform(nib.io_orientation(img.affine), wanted)
        out = img.as_reoriented(back)
        self._results["out_file"] = save_image(out, runtime, "original_axes.nii.gz")
        return runtime
