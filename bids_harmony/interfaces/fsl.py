"""FSL's programs as nipype nodes, judged by what they leave and not by what they say."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nipype.interfaces import fsl
from nipype.interfaces.base import CommandLine, traits
from nipype.interfaces.fsl.preprocess import (
    BETInputSpec,
    BETOutputSpec,
    FLIRTInputSpec,
    FLIRTOutputSpec,
)

from bids_harmony.failures import last_words

_VERSION = traits.Str(desc="FSL's version: another one runs the node again")
_RECORD = traits.Dict(desc="the command, the version, and what the program said")


class _Judged:
    """A program that failed is one that says so by its code, or leaves no output to be read."""

    #: The output without which the program has failed.
    _needed: str

    inputs: Any
    _record: dict[str, Any]

    def _run_interface(self, runtime: Any) -> Any:
        # Not the program's own class's: nipype's BET takes any text on stderr for a failure.
        runtime = CommandLine._run_interface(self, runtime)
        if runtime.returncode != 0 or not _readable(Path(self._list_outputs()[self._needed])):
            CommandLine.raise_exception(self, runtime)
        said = last_words(runtime.stderr)
        program = runtime.cmdline.split()[0]
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


class _BetInputSpec(BETInputSpec):
    tool_version = _VERSION


class _BetOutputSpec(BETOutputSpec):
    record = _RECORD


class Bet(_Judged, fsl.BET):
    """Find the brain with FSL's BET."""

    input_spec = _BetInputSpec
    output_spec = _BetOutputSpec
    _needed = "mask_file"


class _FlirtInputSpec(FLIRTInputSpec):
    tool_version = _VERSION


class _FlirtOutputSpec(FLIRTOutputSpec):
    record = _RECORD


class Flirt(_Judged, fsl.FLIRT):
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
