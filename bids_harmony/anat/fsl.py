"""FSL's programs through nipype, where they are installed and asked for."""

from __future__ import annotations

import os
import re
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
#: What the script ``bet`` calls below FSLDIR, and with ``-R`` of Unix.
BET_CALLS = ("bet2", "imtest", "remove_ext", "fslval", "fslstats")
BET_UNIX = ("dc",)


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
                f"{asked} needs FSL's program {name}, which {lack[0]}.",
                f"{lack[1]}, or use {instead}.",
            )


def _lacks(name: str) -> tuple[str, str] | None:
    """Say what keeps a program from running, and what to do about it; None where it can run."""
    install = "Install FSL (and source its setup)"
    if shutil.which(name) is None:
        return "is not on the PATH", install
    if name != "bet":
        return None
    folder = os.environ.get("FSLDIR", "")
    if not folder:
        return "needs FSLDIR, and that is not set", "Source FSL's setup (etc/fslconf/fsl.sh)"
    if not Path(folder).is_absolute():  # each scan's programs run in a folder of their own
        return f"cannot run with a relative FSLDIR ({folder})", "Give FSLDIR its whole path"
    if re.search(r"[\s*?\[]", folder):
        return f"breaks at a space or wildcard in FSLDIR ({folder})", "Install FSL elsewhere"
    calls = [str(Path(folder, "bin", call)) for call in BET_CALLS]
    if absent := [call for call in calls if shutil.which(call) is None]:
        return f"calls {', '.join(absent)}: not there", f"{install}, check FSLDIR"
    if absent := [call for call in BET_UNIX if shutil.which(call) is None]:
        return f"calls the Unix program {absent[0]}: not on the PATH", f"Install {absent[0]}"
    return None


def fsl_version() -> str:
    """Read FSL's version from where it is installed, starting none of its programs.

    Parts of FSL that were installed by conda alone have no version in common: theirs are given.
    """
    flirt = shutil.which("flirt")
    folder = Path(
        os.environ.get("FSLDIR") or (Path(flirt).resolve().parents[1] if flirt else "/nowhere")
    )
    try:
        lines = (folder / "etc" / "fslversion").read_text(errors="replace").split()
    except OSError:
        lines = []
    found = (re.fullmatch(r"fsl-(bet2|flirt)-([^-]+)-[^-]+", path.stem)
             for path in sorted((folder / "conda-meta").glob("fsl-*.json")))  # fmt: skip
    return lines[0] if lines else ", ".join(f"{m[1]} {m[2]}" for m in found if m) or "unknown"


def bet_interface() -> Any:
    """Configure BET: robust centre estimation, mask written, FSL's default threshold."""
    from bids_harmony.interfaces.fsl import Bet

    return Bet(mask=True, robust=True, frac=0.5, **_common())


def flirt_interface() -> Any:
    """Configure FLIRT as the paper used it: 12 degrees of freedom, correlation ratio."""
    from bids_harmony.interfaces.fsl import Flirt

    return Flirt(dof=12, cost="corratio", **_common())


def _common() -> dict[str, Any]:
    """Give what FSL's programs have in common."""
    # What nipype's classes expect, where the user's shell has not set it.
    os.environ.setdefault("FSLOUTPUTTYPE", "NIFTI_GZ")
    return {
        "output_type": "NIFTI_GZ",
        # No language of the user's reaches a program that reads numbers, or complains of it.
        "environ": {"LC_ALL": "C", "FSLOUTPUTTYPE": "NIFTI_GZ"},
        # Streams stop at a character that is not UTF-8.
        "terminal_output": "file_split",
        "tool_version": fsl_version(),
    }


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
