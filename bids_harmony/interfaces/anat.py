"""Interfaces of the anatomical steps; the work is done in :mod:`bids_harmony.anat`."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nipype.interfaces.base import File, traits

from bids_harmony.anat import made_by
from bids_harmony.config import Contract
from bids_harmony.errors import ScanError
from bids_harmony.files import why_unread
from bids_harmony.interfaces import base


class CheckT1w(base.Step):
    """Refuse an unusable scan, and conform a usable one to RAS; ``in_file`` may be anything."""

    takes = base.fields(in_file=base.TEXT)
    leaves = base.fields(out_file=base.OPTIONAL_FILE, record=traits.Dict())

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Check the scan."""
        from bids_harmony.anat.check import load_t1w

        img, record = load_t1w(given.in_file)
        return {"out_file": base.save_image(img, folder / "t1w.nii"), "record": record}


class BrainMask(base.Step):
    """Find the brain; ``exclude`` is the scan's name, as it is never its own atlas."""

    takes = base.fields(
        in_file=base.FILE, method=traits.Enum("deepbet", "multi-atlas", "skip", mandatory=True),
        detect_stripped=traits.Bool(False, usedefault=True), atlas_dir=traits.Str(),
        exclude=base.TEXT, seed=traits.Int(42, usedefault=True),
        num_threads=traits.Int(1, usedefault=True),
    )  # fmt: skip
    leaves = base.fields(out_mask=base.OPTIONAL_FILE, record=traits.Dict())

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Make the mask."""
        from bids_harmony.anat import brain

        base.set_threads(given.num_threads)
        img = nib.load(given.in_file)
        method, record = given.method, {}
        if given.detect_stripped and method != "skip" and brain.is_stripped(img):
            method, record = "skip", {"detected": "the scan is already skull-stripped"}
        if method == "skip":
            mask = brain.foreground(img)
        elif method == "deepbet":
            mask = brain.deepbet_mask(img)
        else:
            from bids_harmony.anat.brain import find_atlases, multiatlas_mask

            mask, record = multiatlas_mask(
                img,
                find_atlases(given.atlas_dir),
                seed=given.seed,
                exclude=(given.exclude,),
            )
        brain.check_mask(mask, img)
        return {
            "out_mask": base.save_mask(mask, img.affine, folder / "mask.nii.gz"),
            "record": {"method": method, **made_by(method), **record},
        }


class ConformMask(base.Step):
    """Bring a mask made elsewhere (FSL, ``--derivatives``) onto the RAS scan's grid.

    ``record`` is what the program that made it recorded.
    """

    takes = base.fields(
        in_file=base.FILE,
        in_mask=File(mandatory=True),  # perhaps not fetched yet
        method=base.TEXT,
        record=traits.Dict(value={}, usedefault=True),
    )
    leaves = BrainMask.leaves

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Conform the mask."""
        from bids_harmony.anat import brain

        img, path = nib.load(given.in_file), Path(given.in_mask)
        try:
            mask, record = brain.given_mask(path, img)
        except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
            raise ScanError(
                f"The brain mask {path.name} cannot be read ({why_unread(path, error)}).",
                "Provide it, or leave --derivatives out.",
            ) from error
        brain.check_mask(mask, img)
        notes = [*given.record.get("notes", ()), *record.get("notes", ())]
        if given.method == "bet" and brain.outlines_brain(img) is not None:
            notes.append(
                "the scan looks stripped already, and bet shaves the cortex off such scans: "
                "use --skull-strip auto or skip"
            )
        found = {"method": given.method, **given.record, **record}
        return {
            "out_mask": base.save_mask(mask, img.affine, folder / "mask.nii.gz"),
            "record": found | ({"notes": notes} if notes else {}),
        }


class RegisterAffine(base.Step):
    """Register the brain to the template with 12 degrees of freedom by antspyx."""

    takes = base.fields(
        in_file=base.FILE, in_mask=base.FILE, seed=traits.Int(42, usedefault=True),
        sloppy=traits.Bool(False, usedefault=True), **base.TEMPLATE,
    )  # fmt: skip
    leaves = base.fields(out_xfm=base.OPTIONAL_FILE, record=traits.Dict())

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Register the brain."""
        from bids_harmony.anat.affine import register_affine

        out = register_affine(
            masked(given.in_file, given.in_mask),
            base.template_of(given).t1w,
            folder / "affine.txt",
            seed=given.seed,
            sloppy=given.sloppy,
        )
        return {"out_xfm": str(out), "record": {"method": "ants", **made_by("ants")}}


class SaveBrain(base.Step):
    """Write the brain and the template to files, for programs that read files."""

    takes = base.fields(in_file=base.FILE, in_mask=base.FILE, **base.TEMPLATE)
    leaves = base.fields(brain=base.OPTIONAL_FILE, template=base.OPTIONAL_FILE)

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Write both."""
        brain = masked(given.in_file, given.in_mask)
        return {
            "brain": base.save_image(brain, folder / "brain.nii.gz"),
            "template": base.save_image(base.template_of(given).t1w, folder / "template.nii.gz"),
        }


class FlirtToITK(base.Step):
    """Convert FLIRT's matrix to an ITK text transform."""

    takes = base.fields(
        in_matrix=base.FILE, moving=base.FILE, reference=base.FILE, record=base.DICT
    )
    leaves = RegisterAffine.leaves

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Convert the matrix."""
        from bids_harmony.anat.fsl import fsl_to_itk

        out = folder / "affine.txt"
        fsl_to_itk(given.in_matrix, given.moving, given.reference, out)
        return {"out_xfm": str(out), "record": {"method": "flirt", **given.record}}


class Normalize(base.Step):
    """Resample the scan once onto the template grid, then mask and scale it by the contract.

    It leaves the scaled brain with background 0, the foreground it was cut with, the brain mask
    and the unscaled scan, all on the template grid.
    """

    takes = base.fields(
        in_file=base.FILE, in_mask=base.FILE, in_xfm=base.FILE, contract=base.DICT, **base.TEMPLATE
    )
    leaves = base.fields(
        **dict.fromkeys(("out_file", "out_mask", "brain_mask", "unscaled"), base.OPTIONAL_FILE),
        record=traits.Dict(),
    )

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Resample, mask and scale."""
        from bids_harmony.anat.affine import normalize_scan

        result = normalize_scan(
            nib.load(given.in_file),
            nib.load(given.in_mask),
            given.in_xfm,
            base.template_of(given),
            Contract.from_dict(given.contract),
        )
        affine = result.volume.affine
        return {
            "out_file": base.save_image(result.volume, folder / "preproc.nii.gz"),
            "unscaled": base.save_image(result.unscaled, folder / "unscaled.nii.gz"),
            "out_mask": base.save_mask(result.mask, affine, folder / "mask.nii.gz", code=4),
            "brain_mask": base.save_mask(
                result.brain_mask, affine, folder / "brain_mask.nii.gz", code=4
            ),
            "record": result.record,
        }


class RestoreOrientation(base.Step):
    """Undo the flips and permutations that brought a scan to RAS, so that results overlay it."""

    takes = base.fields(in_file=base.FILE, original=base.TEXT)
    leaves = base.fields(out_file=base.OPTIONAL_FILE)

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Turn the image back."""
        from bids_harmony.anat.check import usable_affine

        original = Path(given.original)
        stored = usable_affine(nib.load(original), original.name).affine
        out = base.like_stored(nib.load(given.in_file), stored)
        return {"out_file": base.save_image(out, folder / "original_axes.nii.gz")}


class MeasureScan(base.Step):
    """Measure a scan and describe its intensities; raise ScanError where its registration failed.

    ``unscaled``, ``brain_mask``, ``preproc`` and ``preproc_mask`` are on the template grid.
    """

    _files = ("t1w_ras", "t1w_mask", "xfm", "unscaled", "brain_mask", "preproc", "preproc_mask")
    takes = base.fields(**dict.fromkeys(_files, base.FILE), **base.TEMPLATE, name=base.TEXT)
    leaves = base.fields(metrics=traits.Dict(), descriptors=traits.Dict())

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Measure and describe."""
        from bids_harmony.qc.metrics import scan_metrics
        from bids_harmony.qc.reference import check_registration
        from bids_harmony.sites.code import describe

        brain_mask, preproc = base.array(given.brain_mask) > 0, nib.load(given.preproc)
        metrics = scan_metrics(
            native=nib.load(given.t1w_ras),
            native_mask=base.array(given.t1w_mask) > 0,
            registered=base.array(given.unscaled),
            registered_mask=brain_mask,
            template=base.template_of(given),
            scaled=np.asarray(preproc.dataobj),
            scaled_mask=base.array(given.preproc_mask) > 0,
            transform=given.xfm,
        )
        check_registration(metrics, given.name)
        zoom = float(preproc.header.get_zooms()[0])
        return {
            "metrics": metrics,
            "descriptors": describe(np.asarray(preproc.dataobj), brain_mask, zoom),
        }


def masked(in_file: str, in_mask: str) -> nib.Nifti1Image:
    """Load an image with everything outside the mask set to 0."""
    img = nib.load(in_file)
    data = np.where(base.array(in_mask) > 0, np.asarray(img.dataobj), 0)
    return nib.Nifti1Image(data.astype(np.float32), img.affine, img.header)
