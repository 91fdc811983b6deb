"""FSL's programs through nipype, where they are installed and asked for."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bids_harmony.errors import MissingProgramError, ScanError

#: Program: (the option that asks for it, what does without).
OPTIONS = {
    "bet": ("--skull-strip bet", "--skull-strip deepbet"),
    "flirt": ("--registration flirt", "--registration ants"),
}
#: What the script ``bet`` calls below FSLDIR.
BET_CALLS = ("bet2", "imtest", "remove_ext", "fslval", "fslstats")


def check_programs(names: Iterable[str]) -> None:
    """Make sure, before anything runs, that programs are there with all that they call.

    Parameters
    ----------
    names : iterable of str
        ``bet``, ``flirt``.

    Raises
    ------
    MissingProgramError
        For the first that is missing or cannot run, with what it lacks and what does without it.
    """
    for name in names:
        if lack := _lacks(name):
            asked, instead = OPTIONS[name]
            raise MissingProgramError(
                f"{asked} needs FSL's program {name}, which {lack}.",
                f"Install FSL and source its setup (etc/fslconf/fsl.sh), or use {instead}.",
            )


def _lacks(name: str) -> str:
    """Say what keeps a program from running; nothing where it can run."""
    if shutil.which(name) is None:
        return "is not on the PATH"
    folder = os.environ.get("FSLDIR", "")
    if name != "bet":
        return ""
    if not folder:
        return "needs FSLDIR, and that is not set"
    if re.search(r"[\s*?\[]", folder):
        return f"breaks at a space or wildcard in FSLDIR ({folder})"
    calls = [str(Path(folder, "bin", call)) for call in BET_CALLS]
    absent = [call for call in (*calls, "dc") if shutil.which(call) is None]
    return f"calls {', '.join(absent)}: not there" if absent else ""


def fsl_version() -> str:
    """Read FSL's version from where it is installed, starting none of its programs."""
    flirt = shutil.which("flirt")
    beside = Path(flirt).resolve().parents[1] if flirt else "/nowhere"
    try:
        file = Path(os.environ.get("FSLDIR") or beside) / "etc" / "fslversion"
        return file.read_text(errors="replace").split()[0]
    except (OSError, IndexError):
        return "unknown"


def fsl_to_itk(
    matrix: str | Path, moving: str | Path, reference: str | Path, out_file: str | Path
) -> None:
    """Convert FLIRT's matrix to an ITK text transform, from ``moving`` to ``reference``.

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

    Raises
    ------
    ScanError
        When FLIRT's matrix is not an invertible affine.
    """
    import nitransforms as nt

    try:
        values = np.loadtxt(matrix, ndmin=2)
        invertible = values.shape == (4, 4) and abs(np.linalg.det(values)) >= 1e-6
    except ValueError:
        invertible = False
    if not invertible:
        raise ScanError(
            "FLIRT did not find an invertible transform.",
            "Look at the brain mask, or try --registration ants.",
        )
    affine = nt.linear.load(str(matrix), fmt="fsl", reference=str(reference), moving=str(moving))
    affine.to_filename(str(out_file), fmt="itk")
