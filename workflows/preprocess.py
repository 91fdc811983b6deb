"""Workflow that preprocesses one scan to the template grid and computes its QC metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.bids.dataset import Scan
from bids_harmony.config import Contract
from bids_harmony.interfaces.anat import (
    BrainMask,
    CheckT1w,
    MeasureScan,
    Normalize,
    RegisterAffine,
    RestoreOrientation,
)
from bids_harmony.interfaces.outputs import SaveOutputs
from bids_harmony.interfaces.reports import MaskFigure, RegistrationFigure


def init_preprocess_wf(
    *,
    scan: Scan,
    facts: dict[str, Any],
    output_dir: str,
    staging_dir: str,
    contract: Contract,
    space: str,
    skull_strip: str = "auto",
    registration: str = "auto",
    template: str | None = None,
    atlas_dir: str | None = None,
    seed: int = 42,
    sloppy: bool = False,
) -> pe.Workflow:
    """Build the workflow that preprocesses one T1w scan to the template grid.

    It also computes the scan's QC metrics and intensity descriptors.

    Parameters
    ----------
    scan : Scan
        T1w scan.
    facts : dict
        Information on the scan and the run that is copied to the scan's record.
    output_dir : str
        Root folder of the derivatives.
    staging_dir : str
        Folder for this scan's outputs until they are complete.
    contract : Contract
        Preprocessing contract of the bundle.
    space : str
        Template label (``space`` entity).
    skull_strip : {"auto", "deepbet", "multi-atlas", "bet", "skip"}
        Brain extraction method; ``auto`` detects skull-stripped scans and otherwise uses the
        contract's method.
    registration : {"auto", "ants", "flirt"}
        Affine registration method; ``auto`` uses the contract's method.
    template : str, optional
        Template file; None for the built-in template.
    atlas_dir : str, optional
        Atlas folder, required by ``multi-atlas``.
    seed : int
        Random seed of brain extraction and registration.
    sloppy : bool
        Whether to use fast, low-quality registration; for tests only.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        The workflow, named after the scan.
    """
    grid = {"resolution": contract.resolution, "template": template}
    prefix = figures_prefix(scan, staging_dir)
    check = pe.Node(CheckT1w(in_file=str(scan.path)), name="check", mem_gb=0.5)
    brain_mask = pe.Node(
        BrainMask(
            in_mask=None if scan.mask is None else str(scan.mask),
            method=contract.skull_strip if skull_strip == "auto" else skull_strip,
            detect_stripped=skull_strip == "auto",
            atlas_dir=atlas_dir,
            scan_key=scan.key,
            seed=seed,
        ),
        name="brain_mask",
        mem_gb=2.5 if skull_strip == "multi-atlas" else 1.5,
    )
    mask_figure = pe.Node(MaskFigure(prefix=prefix), name="mask_figure", mem_gb=0.5)
    register = pe.Node(
        RegisterAffine(
            method=contract.registration if registration == "auto" else registration,
            seed=seed,
            sloppy=sloppy,
            **grid,
        ),
        name="register",
        mem_gb=1.0,
    )
    normalize = pe.Node(
        Normalize(contract=contract.to_dict(), **grid), name="normalize", mem_gb=1.0
    )
    norm_figure = pe.Node(
        RegistrationFigure(prefix=prefix, **grid), name="norm_figure", mem_gb=0.5
    )
    metrics = pe.Node(MeasureScan(scan_key=scan.key, **grid), name="metrics", mem_gb=0.8)
    restore_mask = pe.Node(
        RestoreOrientation(original=str(scan.path)), name="restore_mask", mem_gb=0.3
    )
    figures = pe.Node(niu.Merge(2), name="figures", run_without_submitting=True)
    mask_names = {"desc": "brain", "suffix": "mask", "Type": "Brain"}
    grid_names = names_of_grid(space, contract.resolution, template)
    publish = pe.Node(
        SaveOutputs(
            source_file=str(scan.path),
            staging_dir=staging_dir,
            output_dir=output_dir,
            facts=facts,
            names={
                "t1w_mask": mask_names,
                "brain_mask": mask_names | grid_names,
                "preproc": {"desc": "preproc", "suffix": "T1w", "SkullStripped": True}
                | grid_names,
                "xfm": {"suffix": "xfm", "mode": "image", "from": "T1w", "to": space},
            },
        ),
        name="publish",
        mem_gb=0.5,
    )
    workflow = pe.Workflow(name=scan.wf_name)
    workflow.connect([
        (check, brain_mask, [("out_file", "in_file")]),
        (check, mask_figure, [("out_file", "in_file")]),
        (brain_mask, mask_figure, [("out_mask", "in_mask")]),
        (check, register, [("out_file", "in_file")]),
        (brain_mask, register, [("out_mask", "in_mask")]),
        (check, normalize, [("out_file", "in_file")]),
        (brain_mask, normalize, [("out_mask", "in_mask")]),
        (register, normalize, [("out_xfm", "in_xfm")]),
        (normalize, norm_figure, [("out_file", "in_file")]),
        (check, metrics, [("out_file", "t1w")]),
        (brain_mask, metrics, [("out_mask", "t1w_mask")]),
        (register, metrics, [("out_xfm", "in_xfm")]),
        (normalize, metrics, [
            ("unscaled", "unscaled"),
            ("brain_mask", "brain_mask"),
            ("out_file", "preproc"),
            ("out_mask", "preproc_mask"),
        ]),
        (brain_mask, restore_mask, [("out_mask", "in_file")]),
        (mask_figure, figures, [("out_file", "in1")]),
        (norm_figure, figures, [("out_file", "in2")]),
        (check, publish, [("record", "check")]),
        (brain_mask, publish, [("record", "mask")]),
        (restore_mask, publish, [("out_file", "t1w_mask")]),
        (register, publish, [("out_xfm", "xfm"), ("record", "affine")]),
        (normalize, publish, [
            ("brain_mask", "brain_mask"),
            ("out_file", "preproc"),
            ("record", "scale"),
        ]),
        (metrics, publish, [("metrics", "metrics"), ("descriptors", "descriptors")]),
        (figures, publish, [("out", "figures")]),
    ])  # fmt: skip
    return workflow


def figures_prefix(scan: Scan, staging_dir: str) -> str:
    """Return the path of a scan's figures up to the ``desc`` entity."""
    return f"{staging_dir}/sub-{scan.entities['subject']}/figures/{scan.key}"


def names_of_grid(space: str, resolution: int, template: str | None) -> dict[str, str]:
    """Return the entities and sidecar fields that describe the template grid of an image."""
    names = {"space": space, "resolution": str(resolution)}
    return names if template is None else {**names, "SpatialReference": Path(template).name}
