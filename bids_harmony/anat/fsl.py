"""FSL's programs through nipype, where they are installed and asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bids_harmony.errors import MissingProgramError, ScanError

#: Program: (the option that asks for it, what does without).
OPTIONS = {
    "bet": ("--skull-strip bet", "--skull-strip deepbet"),
    "flirt": ("--registration flirt", "--registration ants"),
}


def check_programs(names: Iterable[str]) -> None:
    """Make sure that programs are on the PATH before anything runs.

    Parameters
    ----------
    names : iterable of str
        ``bet``, ``flirt``.

    Raises
    ------
    MissingProgramError
        For the first that is missing.
    """
    for name in names:
        if shutil.which(name) is None:
            asked, instead = OPTIONS[name]
            raise MissingProgramError(
                f"{asked} needs FSL's program {name}, which is not on the PATH.",
                f"Install FSL (and source its setup), or use {instead}.",
            )


def bet_interface() -> Any:
    """Configure BET: robust centre estimation, mask written, FSL's default threshold."""
    from nipype.interfaces import fsl

    _set_output_type()
    return fsl.BET(mask=True, robust=True, frac=0.5, output_type="NIFTI_GZ")


def flirt_interface() -> Any:
    """Configure FLIRT as the paper used it: 12 degrees of freedom, correlation ratio."""
    from nipype.interfaces import fsl

    _set_output_type()
    return fsl.FLIRT(dof=12, cost="corratio", output_type="NIFTI_GZ")


def fsl_to_itk(
    matrix: str | Path, moving: str | Path, reference: str | Path, out_file: str | Path
) -> Path:
    """Convert FLIRT's matrix to an ITK text transform.

    FLIRT's matrix maps scaled voxel coordinates, flipped where an image is stored right to
    left; nitransforms knows both images' grids and undoes that.

    Parameters
    ----------
    matrix : path-like
        FLIRT's ``.mat``.
    moving, reference : path-like
        The images FLIRT was given as ``-in`` and ``-ref``.
    out_file : path-like
        ITK text transform to write (``.txt``).

    Returns
    -------
    pathlib.Path
        ``out_file``. The transform takes images from ``moving`` to ``reference``.

    Raises
    ------
    ScanError
        When FLIRT's matrix is not an invertible affine.
    """
    import nitransforms as nt

    try:
        lines = Path(matrix).read_text(encoding="utf-8").splitlines()
        values = np.array([row for line in lines if (row := line.split())], dtype=float)
    except ValueError as error:
        raise ScanError(
            f"FLIRT's matrix cannot be read ({error}).", "Try --registration ants."
        ) from error
    if (
        values.shape != (4, 4)
        or not np.isfinite(values).all()
        or abs(np.linalg.det(values)) < 1e-6
    ):
        raise ScanError(
            "FLIRT did not find an invertible transform.",
            "Look at the brain mask, or try --registration ants.",
        )
    affine = nt.linear.load(str(matrix), fmt="fsl", reference=str(reference), moving=str(moving))
    affine.to_filename(str(out_file), fmt="itk")
    return Path(out_file)


def _set_output_type() -> None:
    """Give FSL the output type nipype expects, where the user's shell has not."""
    os.environ.setdefault("FSLOUTPUTTYPE", "NIFTI_GZ")
