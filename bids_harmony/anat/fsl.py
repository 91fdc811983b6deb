"""Optional brain extraction and registration with FSL's bet and flirt, through nipype."""

from __future__ import annotations

import contextlib
import os
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from bids_harmony.errors import MissingProgramError, ScanError

if TYPE_CHECKING:
    from nipype.interfaces.fsl.base import FSLCommand

#: For each program, the option that selects it and an alternative that does not need FSL.
OPTIONS = {
    "bet": ("--skull-strip bet", "--skull-strip deepbet"),
    "flirt": ("--registration flirt", "--registration ants"),
}
#: Programs called by the ``bet`` script.
BET_CALLS = (
    *(f"$FSLDIR/bin/{name}" for name in ("bet2", "imtest", "remove_ext", "fslval", "fslstats")),
    "dc",
)


def check_programs(names: Iterable[str]) -> None:
    """Check that FSL programs, and all programs they call, are installed.

    Parameters
    ----------
    names : iterable of str
        ``bet``, ``flirt``.

    Raises
    ------
    MissingProgramError
        For the first program that is missing or incomplete. The message lists what was not found
        and an alternative option.
    """
    for name in names:
        calls = [name, *(BET_CALLS if name == "bet" else ())]
        absent = [call for call in calls if shutil.which(os.path.expandvars(call)) is None]
        if absent:
            asked, instead = OPTIONS[name]
            raise MissingProgramError(
                f"{asked} needs FSL's program {name}, which is not installed completely (not "
                f"found: {', '.join(absent)}).",
                f"Install FSL and source its setup (etc/fslconf/fsl.sh), or use {instead}.",
            )


def fsl_version() -> str:
    """Return FSL's version from its installation folder, or ``unknown``; no program is run."""
    flirt = shutil.which("flirt")
    folder = Path(flirt).resolve().parents[1] if flirt else "/nowhere"
    try:
        file = Path(os.environ.get("FSLDIR") or folder) / "etc" / "fslversion"
        return file.read_text(errors="replace").split()[0]
    except (OSError, IndexError):
        return "unknown"


def bet(head: nib.Nifti1Image, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Compute a brain mask with BET (robust centre estimation, fractional threshold 0.5).

    Parameters
    ----------
    head : nibabel.Nifti1Image
        3-D scan.
    folder : pathlib.Path
        Working folder.

    Returns
    -------
    mask : pathlib.Path
        Brain mask written by BET.
    record : dict
        ``command``.

    Raises
    ------
    ScanError
        When BET fails.
    """
    from nipype.interfaces import fsl

    nib.save(head, folder / "t1w.nii")
    mask = folder / "t1w_brain_mask.nii.gz"
    return mask, _run(fsl.BET, mask, in_file="t1w.nii", mask=True, robust=True, frac=0.5)


def flirt(brain: nib.Nifti1Image, template: nib.Nifti1Image, out_file: Path) -> dict[str, Any]:
    """Register a brain with FLIRT as in the paper: 12 degrees of freedom, correlation ratio.

    Parameters
    ----------
    brain, template : nibabel.Nifti1Image
        3-D images, background 0.
    out_file : pathlib.Path
        Path of the ITK text transform to write (``.txt``). FLIRT runs in its folder.

    Returns
    -------
    dict
        ``command``.

    Raises
    ------
    ScanError
        When FLIRT fails.
    """
    from nipype.interfaces import fsl

    moving, reference = (out_file.with_name(f"{name}.nii.gz") for name in ("brain", "template"))
    nib.save(brain, moving)
    nib.save(template, reference)
    matrix = out_file.with_name("brain_flirt.mat")
    record = _run(
        fsl.FLIRT, matrix, in_file=moving.name, reference=reference.name, dof=12, cost="corratio"
    )
    fsl_to_itk(matrix, moving, reference, out_file)
    return record


def _run(program: type[FSLCommand], output: Path, **inputs: Any) -> dict[str, Any]:
    """Run a program in its output's folder; raise ScanError if it fails or writes no output.

    nipype treats any text on BET's stderr as a failure, so its exceptions are ignored.
    """
    with contextlib.chdir(output.parent):  # bare file names, as folder names may contain spaces
        command = program(
            output_type="NIFTI_GZ",
            environ={"LC_ALL": "C"},  # no localized messages or locale warnings
            terminal_output="file_split",  # "stream" stops at characters that are not UTF-8
            **inputs,
        )
        runtime = command.run(ignore_exception=True).runtime
    if runtime.returncode != 0 or not output.is_file():
        text = runtime.stderr or runtime.stdout or runtime.traceback or "no message"
        # Drop full stops: the cause is a single sentence.
        text = textwrap.shorten(text.replace(". ", " "), 300, placeholder=" …")
        raise ScanError(f"{command.cmd} failed with exit code {runtime.returncode}: '{text}'.")
    return {"command": runtime.cmdline}


def fsl_to_itk(matrix: Path, moving: Path, reference: Path, out_file: Path) -> None:
    """Convert FLIRT's matrix to an ITK text transform, from ``moving`` to ``reference``.

    FLIRT's matrix maps scaled voxel coordinates, which are flipped for images with a positive
    determinant. nitransforms uses the grids of both images to convert them.

    Parameters
    ----------
    matrix : pathlib.Path
        FLIRT's ``.mat`` file.
    moving, reference : pathlib.Path
        Images passed to FLIRT as ``-in`` and ``-ref``.
    out_file : pathlib.Path
        Path of the ITK text transform to write (``.txt``).

    Raises
    ------
    ScanError
        When FLIRT's matrix is not an invertible affine.
    """
    import nitransforms as nt

    with contextlib.suppress(ValueError):
        words = matrix.read_text(encoding="utf-8").split()
        values = np.array(words, float).reshape(4, 4)
        if np.isfinite(values).all() and abs(np.linalg.det(values)) >= 1e-6:
            images = {"reference": str(reference), "moving": str(moving)}
            nt.linear.load(str(matrix), fmt="fsl", **images).to_filename(str(out_file), fmt="itk")
            return
    raise ScanError(
        "FLIRT did not find an invertible transform.",
        "Check the brain mask, or try --registration ants.",
    )
