"""FSL's programs as nipype nodes, whose outputs tell whether they failed, not what they print."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nipype.interfaces import fsl
from nipype.interfaces.base import CommandLine, traits

from bids_harmony.anat.fsl import fsl_version
from bids_harmony.errors import ScanError

_VERSION, _RECORD = traits.Str(), traits.Dict()
#: Complaints about the locale, of shells and of perl, over several lines.
_LOCALE = re.compile(
    r"locale|^(LC_\w+|LANG|LANGUAGE) = |^are supported and installed on your system", re.IGNORECASE
)


class _Program:
    """A program that failed is one that says so by its code, or leaves no output to be read.

    ``tool_version`` is FSL's; ``record`` has it, the command, and what the program said.
    """

    #: The output without which the program has failed.
    _needed: str

    inputs: Any
    _record: dict[str, Any]

    def _run_interface(self, runtime: Any) -> Any:
        # Not the program's own class's: nipype's BET takes any text on stderr for a failure.
        runtime = CommandLine._run_interface(self, runtime)
        program, code = runtime.cmdline.split()[0], runtime.returncode
        said = last_words(runtime.stderr)
        if code in (-9, 137):
            raise ScanError(
                f"{program} was killed, most likely because memory ran out.",
                "Lower --nprocs, or give the job more memory.",
            )
        if code != 0 or not _readable(Path(self._list_outputs()[self._needed])):
            said = said or last_words(runtime.stdout)
            lacking = "" if code else " and without an output that can be read"
            words = f": '{said}'" if said else ", saying nothing"
            # A full stop ends the cause of an error.
            raise ScanError(
                f"{program} ended with code {code}{lacking}{words.replace('. ', ' ')}."
            )
        self._record = {
            "tool": "FSL",
            "version": self.inputs.tool_version,
            "command": runtime.cmdline,
            "notes": [f"{program} said: {said}"] if said else [],
        }
        return runtime

    def _list_outputs(self) -> dict[str, Any]:
        outputs: dict[str, Any] = super()._list_outputs()  # type: ignore[misc]
        return {**outputs, "record": getattr(self, "_record", {})}

    def _format_arg(self, name: str, spec: Any, value: Any) -> str | None:
        # Paths from the node's folder do not hold the name of the work folder: FSL's script breaks
        # at its spaces, and the record is to be the same in every folder.
        if name in ("in_file", "reference", "out_file", "out_matrix_file"):
            value = os.path.relpath(value)
        text: str | None = super()._format_arg(name, spec, value)  # type: ignore[misc]
        return text


class _BetInputSpec(fsl.BET.input_spec):
    tool_version = _VERSION


class _BetOutputSpec(fsl.BET.output_spec):
    record = _RECORD


class Bet(_Program, fsl.BET):
    """Find the brain with FSL's BET."""

    input_spec = _BetInputSpec
    output_spec = _BetOutputSpec
    _needed = "mask_file"


class _FlirtInputSpec(fsl.FLIRT.input_spec):
    tool_version = _VERSION


class _FlirtOutputSpec(fsl.FLIRT.output_spec):
    record = _RECORD


class Flirt(_Program, fsl.FLIRT):
    """Register a brain with FSL's FLIRT."""

    input_spec = _FlirtInputSpec
    output_spec = _FlirtOutputSpec
    _needed = "out_matrix_file"


def _readable(path: Path) -> bool:
    """Tell whether an image can be read to its end, or a text file holds anything."""
    try:
        if path.suffix == ".mat":
            return bool(path.read_bytes().strip())
        np.asanyarray(nib.load(path).dataobj)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError):
        return False
    return True


def last_words(said: str) -> str:
    r"""Find what matters in a program's output: its first line that means anything, and its last.

    A script goes on after the program that failed in it, and complains to the end.

    Parameters
    ----------
    said : str
        Output, of any length.

    Returns
    -------
    str
        At most three lines, each cut where it is long, separated by semicolons.

    >>> last_words("bash: warning: setlocale: cannot change locale\n\nOut of disk\n")
    'Out of disk'
    """
    ends = f"{said[:20_000]}\n{said[20_000:][-20_000:]}"
    lines = [" ".join(line.split()) for line in ends.splitlines()]
    lines = list(dict.fromkeys(line for line in lines if line and not _LOCALE.search(line)))
    if len(lines) > 3:
        lines = [lines[0], *lines[-2:]]
    return "; ".join(line if len(line) <= 160 else f"{line[:160]} …" for line in lines)


def bet_interface() -> Any:
    """Configure BET: robust centre estimation, mask written, FSL's default threshold."""
    return Bet(mask=True, robust=True, frac=0.5, **_common())


def flirt_interface() -> Any:
    """Configure FLIRT as the paper used it: 12 degrees of freedom, correlation ratio."""
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
