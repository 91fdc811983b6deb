"""FSL's bet and flirt, run through nipype, where they are installed and asked for."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from bids_harmony.errors import MissingProgramError, ScanError

if TYPE_CHECKING:
    from nipype.interfaces.fsl.base import FSLCommand

#: Program: the option that asks for it, and what does without.
OPTIONS = {
    "bet": ("--skull-strip bet", "--skull-strip deepbet"),
    "flirt": ("--registration flirt", "--registration ants"),
}
#: What the script ``bet`` calls.
BET_CALLS = (
    *(f"$FSLDIR/bin/{name}" for name in ("bet2", "imtest", "remove_ext", "fslval", "fslstats")),
    "dc",
)


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
        calls = [name, *(BET_CALLS if name == "bet" else ())]
        absent = [call for call in calls if shutil.which(os.path.expandvars(call)) is None]
        if absent:
            asked, instead = OPTIONS[name]
            raise MissingProgramError(
                f"{asked} needs FSL's program {name}, which cannot be run (not found: "
                f"{', '.join(absent)}).",
                f"Install FSL and source its setup (etc/fslconf/fsl.sh), or use {instead}.",
            )


def fsl_version() -> str:
    """Read FSL's version from where it is installed, starting none of its programs."""
    flirt = shutil.which("flirt")
    beside = Path(flirt).resolve().parents[1] if flirt else "/nowhere"
    try:
        file = Path(os.environ.get("FSLDIR") or beside) / "etc" / "fslversion"
        return file.read_text(errors="replace").split()[0]
    except (OSError, IndexError):
        return "unknown"


def bet(head: nib.Nifti1Image, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find the brain with BET: robust centre estimation, FSL's default threshold.

    Parameters
    ----------
    head : nibabel.Nifti1Image
        The scan.
    folder : pathlib.Path
        Where BET runs and writes.

    Returns
    -------
    mask : pathlib.Path
        The brain mask.
    record : dict
        The ``command``, and ``notes`` of what BET said.

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
    """Register a brain with FLIRT as the paper did: 12 degrees of freedom, correlation ratio.

    Parameters
    ----------
    brain, template : nibabel.Nifti1Image
        Background 0.
    out_file : pathlib.Path
        ITK text transform to write (``.txt``), in the folder where FLIRT runs and writes.

    Returns
    -------
    dict
        The ``command``, and ``notes`` of what FLIRT said.

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
    """Run a program where its output goes; it failed if it says so, or leaves no output.

    nipype takes any text on stderr for a failure of BET, so that its exceptions are not used.
    """
    with contextlib.chdir(output.parent):  # names without folders, which may have spaces
        command = program(
            output_type="NIFTI_GZ",
            environ={"LC_ALL": "C"},  # no language of the user's, nor complaints about it
            terminal_output="file_split",  # streams stop at a character that is not UTF-8
            **inputs,
        )
        runtime = command.run(ignore_exception=True).runtime
    code, said = runtime.returncode, last_words(runtime.stderr or "")
    if code in (-9, 137):
        raise ScanError(
            f"{command.cmd} was killed, most likely because memory ran out.",
            "Lower --nprocs, or give the job more memory.",
        )
    if code != 0 or not output.is_file():
        said = said or last_words(runtime.stdout or runtime.traceback)
        lacking = "" if code else " and without output"
        # A full stop would end the cause.
        raise ScanError(
            f"{command.cmd} ended with code {code}{lacking}: '{said.replace('. ', ' ')}'."
        )
    notes = [f"{command.cmd} said: {said}"] if said else []
    return {"command": runtime.cmdline, "notes": notes}


def last_words(said: str) -> str:
    r"""Find what matters in a program's output: its first line, and its last two.

    A script goes on after the program that failed in it, and complains to the end.

    >>> last_words("Out of disk\n\nno image\nno image\ncannot go on\nx: not found\n")
    'Out of disk; cannot go on; x: not found'
    """
    lines = list(dict.fromkeys(filter(None, (line.strip() for line in said.splitlines()))))
    few = lines if len(lines) <= 3 else [lines[0], *lines[-2:]]
    return "; ".join(line if len(line) <= 160 else f"{line[:160]} …" for line in few)


def fsl_to_itk(matrix: Path, moving: Path, reference: Path, out_file: Path) -> None:
    """Convert FLIRT's matrix to an ITK text transform, from ``moving`` to ``reference``.

    FLIRT's matrix maps scaled voxel coordinates, flipped where an image is stored right to
    left; nitransforms knows both images' grids and undoes that.

    Parameters
    ----------
    matrix : pathlib.Path
        FLIRT's ``.mat``.
    moving, reference : pathlib.Path
        The images FLIRT was given as ``-in`` and ``-ref``.
    out_file : pathlib.Path
        ITK text transform to write (``.txt``).

    Raises
    ------
    ScanError
        When FLIRT's matrix is not an invertible affine.
    """
    import nitransforms as nt

    with contextlib.suppress(ValueError):
        values = np.loadtxt(matrix)
        if values.shape == (4, 4) and abs(np.linalg.det(values)) >= 1e-6:
            images = {"reference": str(reference), "moving": str(moving)}
            nt.linear.load(str(matrix), fmt="fsl", **images).to_filename(str(out_file), fmt="itk")
            return
    raise ScanError(
        "FLIRT did not find an invertible transform.",
        "Look at the brain mask, or try --registration ants.",
    )
