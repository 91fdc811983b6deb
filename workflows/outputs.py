"""Graphs that write a scan's derivatives, figures and, last, its record.

All is written to a staging folder first and put in its place at the end, so that a run that fails
or is cut short leaves what there was. The record (``desc-harmony_qc.json``) names the other files
and comes last, so a record that is there means that they are complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.interfaces.anat import RestoreOrientation
from bids_harmony.interfaces.bids import DerivativesDataSink, PublishScan
from bids_harmony.interfaces.record import SavePredictions, WriteRecord
from bids_harmony.interfaces.reports import MaskFigure, RegistrationFigure, ScanFigures
from bids_harmony.qc.record import PREPROCESSED

#: The node whose end means that a part of a scan's way is done.
LAST_NODE = "publish"
#: What a record alone says of a calibration.
FOR_RECORD = frozenset({"sources", "changes"})


def init_preprocess_outputs_wf(
    *,
    source_file: str,
    source_uri: str,
    output_dir: str,
    staging_dir: str,
    space: str,
    resolution: int,
    facts: dict[str, Any],
    template: str | None = None,
    name: str = "preprocess_outputs_wf",
) -> pe.Workflow:
    """Write what preprocessing leaves behind, in the place of all that the scan had.

    Parameters
    ----------
    source_file : str
        The raw T1w, from which names are derived.
    source_uri : str
        The same as a BIDS URI, for the ``Sources`` of the sidecars.
    output_dir : str
        Root of the derivatives.
    staging_dir : str
        Folder of the scan's own for outputs that are not yet in place.
    space : str
        Template label.
    resolution : int
        Voxel size of the template grid in mm.
    facts : dict
        What is known of the scan and the run before anything is computed; goes to the record.
    template : str, optional
        Template file; the embedded one by default.

    Inputs
    ------
    t1w_ras, t1w_mask, registered, check_record, mask_record, affine_record, scale_record
        From the anatomical workflow. ``registered`` is shown whether or not it passes QC.
    xfm, preproc, brain_mask, metrics, descriptors
        From the QC workflow.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(
            fields=[
                "t1w_ras", "t1w_mask", "registered", "xfm", "preproc", "brain_mask",
                "check_record", "mask_record", "affine_record", "scale_record",
                "metrics", "descriptors",
            ]
        ),
        name="inputnode",
    )  # fmt: skip
    written = _written(6)
    grid, sources = _grid(space, resolution, template), {"Sources": [source_uri]}

    def sink(name: str, number: int, **settings: Any) -> pe.Node:
        node = _sink(name, source_file, staging_dir, **settings)
        workflow.connect([(node, written, [("out_file", f"in{number}")])])
        return node

    restore_mask = pe.Node(
        RestoreOrientation(original=source_file), name="restore_mask", mem_gb=0.3
    )
    ds_mask = sink("ds_mask", 1, desc="brain", suffix="mask", Type="Brain", **sources)
    ds_std_mask = sink(
        "ds_std_mask", 2, desc="brain", suffix="mask", Type="Brain", **grid, **sources
    )
    ds_preproc = sink(
        "ds_preproc", 3, desc="preproc", suffix="T1w", SkullStripped=True, **grid, **sources
    )
    ds_xfm = sink("ds_xfm", 4, suffix="xfm", mode="image", **{"from": "T1w", "to": space})
    mask_figure = pe.Node(MaskFigure(), name="mask_figure", mem_gb=0.5)
    ds_mask_figure = sink("ds_mask_figure", 5, desc="brainmask", datatype="figures", suffix="T1w")
    norm_figure = pe.Node(
        RegistrationFigure(
            resolution=resolution, **({} if template is None else {"template": template})
        ),
        name="norm_figure",
        mem_gb=0.5,
    )
    ds_norm_figure = sink("ds_norm_figure", 6, desc="norm", datatype="figures", suffix="T1w")
    record = _record_nodes(workflow, source_file, output_dir, staging_dir, facts)
    workflow.connect([
        (inputnode, restore_mask, [("t1w_mask", "in_file")]),
        (restore_mask, ds_mask, [("out_file", "in_file")]),
        (inputnode, ds_std_mask, [("brain_mask", "in_file")]),
        (inputnode, ds_preproc, [("preproc", "in_file")]),
        (inputnode, ds_xfm, [("xfm", "in_file")]),
        (inputnode, mask_figure, [("t1w_ras", "in_file"), ("t1w_mask", "in_mask")]),
        (mask_figure, ds_mask_figure, [("out_file", "in_file")]),
        (inputnode, norm_figure, [("registered", "in_file")]),
        (norm_figure, ds_norm_figure, [("out_file", "in_file")]),
        (inputnode, record, [
            ("check_record", "check"),
            ("mask_record", "mask"),
            ("affine_record", "affine"),
            ("scale_record", "scale"),
            ("metrics", "metrics"),
            ("descriptors", "descriptors"),
        ]),
        (written, record, [("out", "outputs")]),
    ])  # fmt: skip
    return workflow


def init_harmonize_outputs_wf(
    *,
    source_file: str,
    source_uri: str,
    output_dir: str,
    staging_dir: str,
    space: str,
    resolution: int,
    facts: dict[str, Any],
    before: dict[str, Any],
    bundle: str,
    template: str | None = None,
    native: bool = False,
    name: str = "harmonize_outputs_wf",
) -> pe.Workflow:
    """Write what harmonization leaves behind, beside what preprocessing did.

    Parameters
    ----------
    source_file, source_uri, output_dir, staging_dir, space, resolution, facts, template
        See :func:`init_preprocess_outputs_wf`.
    before : dict
        What preprocessing found out (:func:`bids_harmony.qc.record.preprocessed`).
    bundle : str
        Folder of the model bundle.
    native : bool
        There is a harmonized image on the scan's own grid too.

    Inputs
    ------
    preproc
        As preprocessing left it.
    harmonized, harmonized_native, metrics, guard
        From the harmonize workflow.
    predictions
        From the predict workflow.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(
            fields=[
                "preproc", "harmonized", "harmonized_native", "metrics", "guard", "predictions",
            ]
        ),
        name="inputnode",
    )  # fmt: skip
    written = _written(3 + native)
    metadata = {
        "SkullStripped": True,
        "Sources": [source_uri],
        "ReferenceSite": facts["bundle"]["reference_site"],
        "Bundle": facts["bundle"],
        "Calibration": {k: v for k, v in facts["calibration"].items() if k not in FOR_RECORD},
    }
    figures = pe.Node(ScanFigures(bundle=bundle, facts=facts), name="figures", mem_gb=0.8)
    save_predictions = pe.Node(SavePredictions(), name="save_predictions")
    record = _record_nodes(
        workflow, source_file, output_dir, staging_dir, facts, bundle, before["outputs"]
    )
    for field in PREPROCESSED:
        if field != "metrics":
            setattr(record.inputs, field, before[field])
    settings = {"desc": "harmonized", "suffix": "T1w", **metadata}
    sinks = {
        "ds_figures": {"datatype": "figures", "suffix": "T1w"},
        "ds_harmonized": {**settings, **_grid(space, resolution, template)},
        "ds_predictions": {"desc": "harmony", "suffix": "predictions"},
        **({"ds_native": settings} if native else {}),
    }
    nodes = {
        name: _sink(name, source_file, staging_dir, **values) for name, values in sinks.items()
    }
    workflow.connect([
        (inputnode, figures, [
            ("preproc", "raw"),
            ("harmonized", "harmonized"),
            ("predictions", "predictions"),
            ("metrics", "metrics"),
        ]),
        (figures, nodes["ds_figures"], [("out_files", "in_file"), ("descs", "desc")]),
        (inputnode, nodes["ds_harmonized"], [
            ("harmonized", "in_file"),
            (("guard", guard_metadata), "meta_dict"),
        ]),
        (inputnode, save_predictions, [("predictions", "predictions")]),
        (save_predictions, nodes["ds_predictions"], [("out_file", "in_file")]),
        (inputnode, record, [("metrics", "metrics"), ("guard", "guard")]),
        *((node, written, [("out_file", f"in{n}")])
          for n, node in enumerate(nodes.values(), start=1)),
        (written, record, [("out", "outputs")]),
    ])  # fmt: skip
    if native:
        workflow.connect([
            (inputnode, nodes["ds_native"], [
                ("harmonized_native", "in_file"),
                (("guard", guard_metadata), "meta_dict"),
            ]),
        ])  # fmt: skip
    return workflow


def _written(n: int) -> pe.Node:
    """Collect the outputs, every time: nipype tells files by their content, not their names."""
    return pe.Node(niu.Merge(n), name="written", run_without_submitting=True, overwrite=True)


def _grid(space: str, resolution: int, template: str | None) -> dict[str, str]:
    return {
        "space": space,
        "resolution": str(resolution),
        **({} if template is None else {"SpatialReference": Path(template).name}),
    }


def _sink(name: str, source_file: str, staging_dir: str, **settings: Any) -> pe.Node:
    image = settings["suffix"] in ("mask", "T1w") and settings.get("datatype") != "figures"
    return pe.Node(
        DerivativesDataSink(
            base_directory=staging_dir, source_file=source_file, compress=image, **settings
        ),
        name=name,
        run_without_submitting=True,
    )


def _record_nodes(
    workflow: pe.Workflow,
    source_file: str,
    output_dir: str,
    staging_dir: str,
    facts: dict[str, Any],
    bundle: str | None = None,
    kept: list[str] | None = None,
) -> pe.Node:
    """Add the nodes that write the record and put all in place; return the one that makes it."""
    record = pe.Node(WriteRecord(facts=facts, output_dir=staging_dir), name="record")
    publish = pe.Node(
        PublishScan(staging_dir=staging_dir, output_dir=output_dir), name=LAST_NODE, mem_gb=0.1
    )
    if bundle is not None:
        record.inputs.bundle = bundle
    if kept is not None:
        record.inputs.kept = publish.inputs.kept = kept
    ds_record = _sink("ds_record", source_file, staging_dir, desc="harmony", suffix="qc")
    workflow.connect([
        (record, ds_record, [("out_file", "in_file")]),
        (ds_record, publish, [("out_file", "record")]),
    ])  # fmt: skip
    return record


def guard_metadata(guard: dict[str, object]) -> dict[str, object]:
    """Put the anatomy guard's verdict into a harmonized image's sidecar.

    Nipype runs it from its source alone: it may use no name of this module.
    """
    return {"AnatomyGuard": {"Status": guard["status"], "Reasons": guard["reasons"]}}
