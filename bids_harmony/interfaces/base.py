"""What the interfaces have in common."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

#: A file that a node needs, and one that it may be given or may leave.
FILE, OPTIONAL_FILE = File(exists=True, mandatory=True), File(exists=True)
TEXT, DICT = traits.Str(mandatory=True), traits.Dict(mandatory=True)
#: Which template: voxel size in mm and, where it is not the embedded one, its file.
TEMPLATE = {"resolution": traits.Int(2, usedefault=True), "template": OPTIONAL_FILE}


def fields(**of_traits: Any) -> dict[str, Any]:
    """Name the traits that a step takes or leaves."""
    return of_traits


class Step(SimpleInterface):
    """A nipype interface around a function of the package.

    A class names the traits that it takes and leaves; nipype's two specifications are made of
    them. Its ``step`` does the work.
    """

    takes: ClassVar[dict[str, Any]]
    leaves: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the specifications, under names of the module by which pickle finds them."""
        super().__init_subclass__(**kwargs)
        module = sys.modules[cls.__module__]
        for role, base, fields in (
            ("input_spec", BaseInterfaceInputSpec, cls.takes),
            ("output_spec", TraitedSpec, cls.leaves),
        ):
            name = f"{cls.__name__}_{role}"
            spec = type(name, (base,), {**fields, "__module__": module.__name__})
            setattr(module, name, spec)
            setattr(cls, role, spec)

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Do the work.

        Parameters
        ----------
        given : object
            The inputs, as attributes.
        folder : pathlib.Path
            The node's folder, for files.

        Returns
        -------
        dict
            What the class leaves, by name.
        """
        raise NotImplementedError

    def _run_interface(self, runtime: Any) -> Any:
        self._results.update(self.step(self.inputs, Path(runtime.cwd)))
        return runtime


def given_or(value: Any, default: Any = None) -> Any:
    """Return an input, or the default where it was not given."""
    return value if isdefined(value) else default


def template_of(given: Any) -> Any:
    """Load the template that the inputs name."""
    from bids_harmony.anat.template import load_template

    return load_template(given.resolution, given_or(given.template))


def array(path: str) -> np.ndarray:
    """Read an image's values."""
    return np.asarray(nib.load(path).dataobj)


def set_threads(n_threads: int) -> None:
    """Limit torch, which otherwise starts as many threads as there are cores."""
    import torch

    torch.set_num_threads(n_threads)


def save_image(img: nib.Nifti1Image, path: Path) -> str:
    """Write an image."""
    img.header.set_xyzt_units("mm")
    nib.save(img, path)
    return str(path)


def save_mask(mask: np.ndarray, affine: np.ndarray, path: Path, code: int = 1) -> str:
    """Write a boolean array as a uint8 image."""
    img = nib.Nifti1Image(mask.astype(np.uint8), affine)
    img.set_qform(affine, code)
    img.set_sform(affine, code)
    return save_image(img, path)


def like_stored(img: nib.Nifti1Image, stored: np.ndarray) -> nib.Nifti1Image:
    """Flip and permute an image's axes to those of another affine."""
    axes = [nib.io_orientation(affine) for affine in (img.affine, stored)]
    return img.as_reoriented(nib.orientations.ornt_transform(*axes))
