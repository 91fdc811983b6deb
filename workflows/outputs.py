"""Graph that writes a scan's derivatives, figures and, last, its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.interfaces.anat import RestoreOrientation
from bids_harmony.interfaces.bids import DerivativesDataSink, PublishScan
from bids_harmony.interfaces.record import SavePredictions, WriteRecord
from bids_harmony.interfaces.reports import MaskFigure, RegistrationFigure, ScanFigures

#: The node whose end means that the scan is done.
LAST_NODE = "publish"


def init_outputs_wf(
    *,
    source_file: str,
    source_uri: str,
    output_dir: str,
    staging_dir: str,
    space: str,
    resolution: int,
    facts: dict[str, Any],
    template: str | None = None,
    bundle: str | None = None,
    reference_site: str | None = None,
    native: bool = False,
    name: str = "outputs_wf",
) -> pe.Workflow:
    """Write everything a scan leaves behind.

    All is written to ``staging_dir`` first and put in its place at the end, so that a run that
    fails or is cut short leaves what there was. The record (``desc-harmony_qc.json``) names the
    other files and comes last, so a record that is there means a scan that is complete.

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
    bundle : str, optional
        Folder of the model bundle; without one there is nothing harmonized or predicted.
    reference_site : str, optional
        The bundle's reference site.
    native : bool
        There is a harmonized image on the scan's own grid too.

    Inputs
    ------
    t1w_ras, t1w_mask, registered, check_record, mask_record, affine_record, scale_record
        From the anatomical workflow. ``registered`` is shown whether or not it passes QC.
    xfm, preproc, preproc_mask, brain_mask
        From the QC workflow.
    metrics
        From the QC workflow, or with a bundle from the harmonize workflow.
    harmonized, harmonized_native, predictions, guard
        From the workflows that need a bundle.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(
            fields=[
                "t1w_ras", "t1w_mask", "registered",
                "xfm", "preproc", "preproc_mask", "brain_mask",
                "check_record", "mask_record", "affine_record", "scale_record", "metrics",
                "harmonized", "harmonized_native", "predictions", "guard",
            ]
        ),
        name="inputnode",
    )  # fmt: skip
    common = {"base_directory": staging_dir, "source_file": source_file}
    grid = {
        "space": space,
        "resolution": str(resolution),
        **({} if template is None else {"SpatialReference": Path(template).name}),
    }
    sources: dict[str, Any] = {"Sources": [source_uri]}
    n_sinks = 6 if bundle is None else 8 + native
    # Run every time: nipype tells files by their content, and not by their names.
    written = pe.Node(
        niu.Merge(n_sinks), name="written", run_without_submitting=True, overwrite=True
    )

    def sink(name: str, number: int, **settings: Any) -> pe.Node:
        is_image = settings["suffix"] != "xfm" and settings.get("datatype") != "figures"
        node = pe.Node(
            DerivativesDataSink(**common, compress=is_image, **settings),
            name=name,
            run_without_submitting=True,
        )
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
        RegistrationFigure(resolution=resolution, **_template(template)),
        name="norm_figure",
        mem_gb=0.5,
    )
    ds_norm_figure = sink("ds_norm_figure", 6, desc="norm", datatype="figures", suffix="T1w")
    record = pe.Node(
        WriteRecord(facts=facts, output_dir=staging_dir, **_bundle(bundle)),
        name="record",
    )
    ds_record = pe.Node(
        DerivativesDataSink(**common, desc="harmony", suffix="qc"),
        name="ds_record",
        run_without_submitting=True,
    )
    publish = pe.Node(
        PublishScan(staging_dir=staging_dir, output_dir=output_dir), name=LAST_NODE, mem_gb=0.1
    )
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
        ]),
        (written, record, [("out", "outputs")]),
        (record, ds_record, [("out_file", "in_file")]),
        (ds_record, publish, [("out_file", "record")]),
    ])  # fmt: skip
    if bundle is None:
        return workflow

    model = {"ReferenceSite": reference_site, "Bundle": facts["bundle"]}
    figures = pe.Node(ScanFigures(bundle=bundle, facts=facts), name="figures", mem_gb=0.8)
    ds_figures = sink("ds_figures", 7, datatype="figures", suffix="T1w")
    ds_harmonized = sink(
        "ds_harmonized", 8, desc="harmonized", suffix="T1w", SkullStripped=True,
        **grid, **sources, **model,
    )  # fmt: skip
    save_predictions = pe.Node(SavePredictions(), name="save_predictions")
    ds_predictions = pe.Node(
        DerivativesDataSink(**common, desc="harmony", suffix="predictions"),
        name="ds_predictions",
        run_without_submitting=True,
    )
    workflow.connect([
        (inputnode, figures, [
            ("preproc", "raw"),
            ("preproc_mask", "in_mask"),
            ("harmonized", "harmonized"),
            ("predictions", "predictions"),
            ("metrics", "metrics"),
        ]),
        (figures, ds_figures, [("out_files", "in_file"), ("descs", "desc")]),
        (inputnode, ds_harmonized, [
            ("harmonized", "in_file"),
            (("guard", guard_metadata), "meta_dict"),
        ]),
        (inputnode, save_predictions, [("predictions", "predictions")]),
        (save_predictions, ds_predictions, [("out_file", "in_file")]),
        (ds_predictions, record, [("out_file", "predictions_file")]),
        (inputnode, record, [("guard", "guard")]),
    ])  # fmt: skip
    if native:
        restore_harmonized = pe.Node(
            RestoreOrientation(original=source_file), name="restore_harmonized", mem_gb=0.5
        )
        ds_native = sink(
            "ds_native", 9, desc="harmonized", suffix="T1w", SkullStripped=True, **sources, **model
        )
        workflow.connect([
            (inputnode, restore_harmonized, [("harmonized_native", "in_file")]),
            (inputnode, ds_native, [(("guard", guard_metadata), "meta_dict")]),
            (restore_harmonized, ds_native, [("out_file", "in_file")]),
        ])  # fmt: skip
    return workflow


def guard_metadata(guard: dict[str, object]) -> dict[str, object]:
    """Put the anatomy guard's verdict into a harmonized image's sidecar.

    Nipype runs it from its source alone: it may use no name of this module.
    """
    return {"AnatomyGuard": {"Status": guard["status"], "Reasons": guard["reasons"]}}


def _template(path: str | None) -> dict[str, Any]:
    return {} if path is None else {"template": path}


def _bundle(path: str | None) -> dict[str, Any]:
    return {} if path is None else {"bundle": path}
