"""Input and output specifications and helper functions shared by the interfaces."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, TraitedSpec, traits


class TemplateInputSpec(BaseInterfaceInputSpec):
    """Inputs of interfaces that work on the template grid."""

    resolution = traits.Int(2, usedefault=True, desc="voxel size of the template grid in mm")
    template = traits.Either(
        None, File(exists=True), usedefault=True, desc="template; the embedded one by default"
    )


class ImageOutputSpec(TraitedSpec):
    """Output of interfaces that write one file."""

    out_file = File(exists=True)


def read_array(path: str) -> np.ndarray:
    """Load the voxel values of an image."""
    return np.asarray(nib.load(path).dataobj)


def apply_mask(in_file: str, in_mask: str) -> nib.Nifti1Image:
    """Load an image as float32, with voxels outside the mask set to 0."""
    img = nib.load(in_file)
    data = np.where(read_array(in_mask) > 0, np.asarray(img.dataobj), 0)
    return nib.Nifti1Image(data.astype(np.float32), img.affine, img.header)


def save_image(img: nib.Nifti1Image, name: str) -> str:
    """Write an image to the current folder (that of the node) and return its absolute path."""
    img.header.set_xyzt_units("mm")
    nib.save(img, name)
    return str(Path(name).absolute())


def save_mask(mask: np.ndarray, affine: np.ndarray, name: str, code: int = 1) -> str:
    """Write a boolean array as a uint8 image to the current folder and return its absolute path.

    ``code`` is the qform and sform code: 1 for scanner space, 4 for MNI space.
    """
    img = nib.Nifti1Image(mask.astype(np.uint8), affine)
    img.set_qform(affine, code)
    img.set_sform(affine, code)
    return save_image(img, name)


def reorient(img: nib.Nifti1Image, affine: np.ndarray) -> nib.Nifti1Image:
    """Flip and permute the axes of an image to match another affine."""
    axes = [nib.io_orientation(matrix) for matrix in (img.affine, affine)]
    return img.as_reoriented(nib.orientations.ornt_transform(*axes))
