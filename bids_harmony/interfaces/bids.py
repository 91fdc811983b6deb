"""Write derivatives: names from the scan's own entities, files that appear whole."""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from niworkflows.interfaces.bids import BIDS_DERIV_ENTITIES
from niworkflows.interfaces.bids import DerivativesDataSink as _DerivativesDataSink

_SPEC = json.loads((files("bids_harmony.data") / "io_spec.json").read_text(encoding="utf-8"))


class DerivativesDataSink(_DerivativesDataSink):
    """niworkflows' sink with this app's name patterns and all-or-nothing writing.

    The parent writes into the node's own folder; each file is then copied beside its target and
    renamed over it, so a run killed at any moment leaves no half-written output (design.md §7).
    """

    out_path_base = ""
    _config_entities_dict: ClassVar = [*BIDS_DERIV_ENTITIES, *_SPEC["entities"]]
    _config_entities = frozenset(entity["name"] for entity in _config_entities_dict)
    _file_patterns = tuple(_SPEC["default_path_patterns"])

    def _run_interface(self, runtime: Any) -> Any:
        final = Path(self.inputs.base_directory)
        staging = Path(runtime.cwd) / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        self.inputs.base_directory = str(staging)
        try:
            runtime = super()._run_interface(runtime)
        finally:
            self.inputs.base_directory = str(final)
        if "Resolution" in self._metadata:
            # The parent writes that TemplateFlow curates the grid; this one is nilearn's.
            self._describe_resolution()
        for result in ("out_meta", "out_file"):
            if written := self._results.get(result):
                paths = [written] if isinstance(written, str) else written
                self._results[result] = [
                    str(publish(path, final / Path(path).relative_to(staging))) for path in paths
                ]
        shutil.rmtree(staging)
        return runtime

    def _describe_resolution(self) -> None:
        sidecar = Path(self._results["out_meta"])
        metadata = json.loads(sidecar.read_text(encoding="utf-8"))
        metadata["Resolution"] = (
            f"{self.inputs.resolution} mm isotropic, on the grid of {self.inputs.space}"
        )
        sidecar.write_text(json.dumps(metadata, sort_keys=True, indent=2), encoding="utf-8")


def publish(source: str | Path, target: Path) -> Path:
    """Copy a file beside its target, then rename it over the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, part)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return target
