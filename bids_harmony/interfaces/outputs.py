"""Write a scan's derivatives: names from its own entities, all in place at once."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import traits
from niworkflows.interfaces.bids import BIDS_DERIV_ENTITIES
from niworkflows.interfaces.bids import DerivativesDataSink as _DerivativesDataSink

from bids_harmony.bids.outputs import publish_scan
from bids_harmony.bids.records import PREPROCESSED, scan_file, scan_record
from bids_harmony.files import write_json
from bids_harmony.interfaces import base
from bids_harmony.qc.reference import judge

_SPEC = json.loads((files("bids_harmony.data") / "io_spec.json").read_text(encoding="utf-8"))


class DerivativesDataSink(_DerivativesDataSink):
    """niworkflows' sink with this app's name patterns."""

    out_path_base = ""
    _config_entities_dict: ClassVar = [*BIDS_DERIV_ENTITIES, *_SPEC["entities"]]
    _config_entities = frozenset(entity["name"] for entity in _config_entities_dict)
    _file_patterns = tuple(_SPEC["default_path_patterns"])

    def _run_interface(self, runtime: Any) -> Any:
        runtime = super()._run_interface(runtime)
        if "Resolution" in self._metadata:
            # The parent writes that TemplateFlow curates the grid; this one is nilearn's.
            sidecar = Path(self._results["out_meta"])
            metadata = json.loads(sidecar.read_text(encoding="utf-8"))
            metadata["Resolution"] = (
                f"{self.inputs.resolution} mm isotropic, on the grid of {self.inputs.space}"
            )
            write_json(sidecar, metadata)
        return runtime


class SaveOutputs(base.Step):
    """Write a scan's images and its record, and put them in the place of those that it had.

    All is written below ``staging_dir``, where the figures are already, and copied from there at
    the end, so that a run that is cut short leaves what there was. The record
    (``desc-harmony_qc.json``) names the other files and comes last: where it is, they are whole.

    ``names`` holds, by each image's input, the settings of its :class:`DerivativesDataSink`;
    ``kept`` are outputs of preprocessing that are in place already.
    """

    _files = ("t1w_mask", "brain_mask", "preproc", "xfm", "harmonized", "harmonized_native")
    takes = base.fields(
        facts=base.DICT, source_file=base.TEXT, staging_dir=base.TEXT, output_dir=base.TEXT,
        names=base.DICT, kept=traits.List(traits.Str, value=[], usedefault=True),
        bundle=traits.Str(),
        **dict.fromkeys(_files, base.OPTIONAL_FILE),
        figures=traits.List(base.FILE),
        **dict.fromkeys(PREPROCESSED, base.DICT),
        guard=traits.Dict(), predictions=traits.Dict(),
    )  # fmt: skip
    leaves = base.fields(out_file=base.OPTIONAL_FILE)

    def step(self, given: Any, folder: Path) -> dict[str, Any]:
        """Write all, the record last."""
        staging, facts = Path(given.staging_dir), given.facts
        written = list(base.given_or(given.figures, []))
        guard, predictions = base.given_or(given.guard), base.given_or(given.predictions)
        for name, settings in given.names.items():
            image = settings["suffix"] != "xfm"
            said: dict[str, Any] = {}
            if image:
                said["Sources"] = [f"bids:raw:{facts['source']}"]
            if guard and "harmonized" in name:
                said["AnatomyGuard"] = {"Status": guard["status"], "Reasons": guard["reasons"]}
            sink = DerivativesDataSink(
                base_directory=given.staging_dir,
                source_file=given.source_file,
                in_file=getattr(given, name),
                compress=image,
                **settings,
                **said,
            )
            written.append(sink.run(cwd=str(folder)).outputs.out_file)
        if predictions is not None:
            path = scan_file(staging, facts["entities"], facts["name"], "predictions")
            write_json(path, predictions)
            written.append(path)
        reference = None
        if bundle := base.given_or(given.bundle):
            from bids_harmony.models.bundle import load_bundle

            reference = load_bundle(Path(bundle)).qc_reference()["metrics"]
        verdict = judge(given.metrics, reference)
        record = scan_record(
            facts,
            **{name: getattr(given, name) for name in PREPROCESSED},
            reasons=verdict.reasons,
            flagged=verdict.flagged,
            guard=guard,
            outputs=[*given.kept, *(Path(p).relative_to(staging).as_posix() for p in written)],
        )
        path = scan_file(staging, facts["entities"], facts["name"], "qc")
        write_json(path, record)
        out = publish_scan(staging, Path(given.output_dir), path, kept=given.kept)
        return {"out_file": str(out)}
