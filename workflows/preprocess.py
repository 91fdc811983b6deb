"""Graph of one scan's preprocessing, from raw to the template grid, measured and described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.bids.dataset import Scan
from bids_harmony.config import Contract
from bids_harmony.interfaces.anat import CheckT1w, MeasureScan, Normalize, RestoreOrientation
from bids_harmony.interfaces.outputs import SaveOutputs
from bids_harmony.interfaces.reports import MaskFigure, RegistrationFigure
from bids_harmony.workflows.anat import init_affine_wf, init_brain_mask_wf


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
    omp_nthreads: int = 1,
) -> pe.Workflow:
    """Take one T1w scan from raw to the template grid, measured and described (design.md §3).

    Parameters
    ----------
    scan : Scan
        The scan.
    facts : dict
        What is known of the scan and the run; goes to the scan's record.
    output_dir : str
        Derivatives written.
    staging_dir : str
        Folder of the scan's own for outputs that are not yet in place.
    contract : Contract
        The bundle's preprocessing contract.
    space : str
        Template label.
    skull_strip : {"auto", "deepbet", "multi-atlas", "bet", "skip"}
        Brain mask method; ``auto`` recognises a stripped scan and otherwise does as the contract.
    registration : {"auto", "ants", "flirt"}
        Affine method; ``auto`` does as the contract.
    template : str, optional
        Template file; the embedded one by default.
    atlas_dir : str, optional
        Atlas library of ``multi-atlas``.
    seed : int
        Seed of everything random.
    sloppy : bool
        Register with low quality, for tests.
    omp_nthreads : int
        Threads of one node.
    """
    on_grid: dict[str, Any] = {"resolution": contract.resolution}
    if template is not None:
        on_grid["template"] = template
    check = pe.Node(CheckT1w(in_file=str(scan.path)), name="check", mem_gb=0.5)
    brain_mask_wf = init_brain_mask_wf(
        scan_key=scan.key,
        method=contract.skull_strip if skull_strip == "auto" else skull_strip,
        detect_stripped=skull_strip == "auto",
        mask=None if scan.mask is None else str(scan.mask),
        atlas_dir=atlas_dir,
        seed=seed,
        omp_nthreads=omp_nthreads,
    )
    affine_wf = init_affine_wf(
        method=contract.registration if registration == "auto" else registration,
        on_grid=on_grid,
        seed=seed,
        sloppy=sloppy,
    )
    normalize = pe.Node(
        Normalize(contract=contract.to_dict(), **on_grid), name="normalize", mem_gb=1.0
    )
    metrics = pe.Node(MeasureScan(name=scan.key, **on_grid), name="metrics", mem_gb=0.8)
    prefix = figures_prefix(scan, staging_dir)
    mask_figure = pe.Node(MaskFigure(prefix=prefix), name="mask_figure", mem_gb=0.5)
    norm_figure = pe.Node(
        RegistrationFigure(prefix=prefix, **on_grid), name="norm_figure", mem_gb=0.5
    )
    figures = pe.Node(niu.Merge(2), name="figures", run_without_submitting=True)
    restore_mask = pe.Node(
        RestoreOrientation(original=str(scan.path)), name="restore_mask", mem_gb=0.3
    )
    mask_names = {"desc": "brain", "suffix": "mask", "Type": "Brain"}
    grid = grid_names(space, contract.resolution, template)
    publish = pe.Node(
        SaveOutputs(
            source_file=str(scan.path),
            staging_dir=staging_dir,
            output_dir=output_dir,
            facts=facts,
            names={
                "t1w_mask": mask_names,
                "brain_mask": mask_names | grid,
                "preproc": {"desc": "preproc", "suffix": "T1w", "SkullStripped": True} | grid,
                "xfm": {"suffix": "xfm", "mode": "image", "from": "T1w", "to": space},
            },
        ),
        name="publish",
        mem_gb=0.5,
    )
    workflow = pe.Workflow(name=scan.wf_name)
    workflow.connect([
        (check, brain_mask_wf, [("out_file", "inputnode.t1w")]),
        (check, affine_wf, [("out_file", "inputnode.t1w")]),
        (brain_mask_wf, affine_wf, [("outputnode.mask", "inputnode.mask")]),
        (check, normalize, [("out_file", "in_file")]),
        (brain_mask_wf, normalize, [("outputnode.mask", "in_mask")]),
        (affine_wf, normalize, [("outputnode.xfm", "in_xfm")]),
        (check, metrics, [("out_file", "t1w_ras")]),
        (brain_mask_wf, metrics, [("outputnode.mask", "t1w_mask")]),
        (affine_wf, metrics, [("outputnode.xfm", "xfm")]),
        (normalize, metrics, [
            ("unscaled", "unscaled"),
            ("brain_mask", "brain_mask"),
            ("out_file", "preproc"),
            ("out_mask", "preproc_mask"),
        ]),
        (check, mask_figure, [("out_file", "in_file")]),
        (brain_mask_wf, mask_figure, [("outputnode.mask", "in_mask")]),
        (normalize, norm_figure, [("out_file", "in_file")]),
        (mask_figure, figures, [("out_file", "in1")]),
        (norm_figure, figures, [("out_file", "in2")]),
        (brain_mask_wf, restore_mask, [("outputnode.mask", "in_file")]),
        (check, publish, [("record", "check")]),
        (brain_mask_wf, publish, [("outputnode.record", "mask")]),
        (restore_mask, publish, [("out_file", "t1w_mask")]),
        (affine_wf, publish, [("outputnode.xfm", "xfm"), ("outputnode.record", "affine")]),
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
    """Path of a scan's figures up to the ``desc`` entity."""
    return f"{staging_dir}/sub-{scan.entities['subject']}/figures/{scan.key}"


def grid_names(space: str, resolution: int, template: str | None) -> dict[str, str]:
    """Name the template grid in the name and the sidecar of an image."""
    names = {"space": space, "resolution": str(resolution)}
    return names if template is None else {**names, "SpatialReference": Path(template).name}
