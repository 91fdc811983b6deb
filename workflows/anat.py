"""Graphs of the anatomical steps: brain mask, affine, normalization."""

from __future__ import annotations

from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.contract import Contract
from bids_harmony.interfaces.anat import (
    ApplyMask,
    BrainMask,
    CheckT1w,
    ConformMask,
    FlirtToITK,
    Normalize,
    RegisterAffine,
    SaveTemplate,
)
from bids_harmony.tools import made_by


def init_anat_wf(
    *,
    scan_key: str,
    contract: Contract,
    skull_strip: str,
    registration: str,
    template: str | None = None,
    mask: str | None = None,
    atlas_dir: str | None = None,
    n_atlases: int = 6,
    seed: int = 42,
    sloppy: bool = False,
    omp_nthreads: int = 1,
    name: str = "anat_wf",
) -> pe.Workflow:
    """Check a T1w scan, find its brain, register it and bring it to the contract's form.

    Parameters
    ----------
    scan_key : str
        The scan's name, for messages and so that it is never its own atlas.
    contract : Contract
        Preprocessing contract of the bundle.
    skull_strip : {"auto", "deepbet", "multi-atlas", "bet", "skip"}
        Brain mask method; ``auto`` recognises a stripped scan and otherwise does as the contract.
    registration : {"auto", "ants", "flirt"}
        Affine method; ``auto`` does as the contract.
    template : str, optional
        Template file; the embedded one by default.
    mask : str, optional
        Brain mask computed earlier, used as is.
    atlas_dir : str, optional
        Atlas library of ``multi-atlas``.
    n_atlases : int
        How many atlases are fused.
    seed : int
        Seed of everything random.
    sloppy : bool
        Register with low quality, for tests.
    omp_nthreads : int
        Threads of one node.

    Inputs
    ------
    t1w
        T1w scan as found in the dataset.

    Outputs
    -------
    t1w_ras, t1w_mask
        Scan in RAS and its brain mask, native grid.
    xfm
        ITK text transform, T1w to template.
    preproc, preproc_mask, brain_mask, unscaled
        Scaled brain, its foreground, the brain mask and the unscaled scan, all on the
        template grid.
    check_record, mask_record, affine_record, scale_record
        What each step found, and by which tool.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["t1w"]), name="inputnode")
    outputnode = pe.Node(
        niu.IdentityInterface(
            fields=[
                "t1w_ras", "t1w_mask", "xfm", "preproc", "preproc_mask", "brain_mask", "unscaled",
                "check_record", "mask_record", "affine_record", "scale_record",
            ]
        ),
        name="outputnode",
    )  # fmt: skip
    check = pe.Node(CheckT1w(), name="check", mem_gb=0.5)
    brain_mask_wf = init_brain_mask_wf(
        scan_key=scan_key,
        method=contract.skull_strip if skull_strip == "auto" else skull_strip,
        detect_stripped=skull_strip == "auto",
        mask=mask,
        atlas_dir=atlas_dir,
        n_atlases=n_atlases,
        seed=seed,
        omp_nthreads=omp_nthreads,
    )
    affine_wf = init_affine_wf(
        method=contract.registration if registration == "auto" else registration,
        resolution=contract.resolution,
        template=template,
        seed=seed,
        sloppy=sloppy,
        omp_nthreads=omp_nthreads,
    )
    normalize = pe.Node(
        Normalize(
            contract=contract.to_dict(),
            name=scan_key,
            resolution=contract.resolution,
            **_template(template),
        ),
        name="normalize",
        mem_gb=1.0,
    )
    workflow.connect([
        (inputnode, check, [("t1w", "in_file")]),
        (check, brain_mask_wf, [
            ("out_file", "inputnode.t1w"),
            ("orientation", "inputnode.orientation"),
        ]),
        (check, affine_wf, [("out_file", "inputnode.t1w")]),
        (check, normalize, [("out_file", "in_file")]),
        (brain_mask_wf, affine_wf, [("outputnode.mask", "inputnode.mask")]),
        (brain_mask_wf, normalize, [("outputnode.mask", "in_mask")]),
        (affine_wf, normalize, [("outputnode.xfm", "in_xfm")]),
        (check, outputnode, [("out_file", "t1w_ras"), ("record", "check_record")]),
        (brain_mask_wf, outputnode, [
            ("outputnode.mask", "t1w_mask"),
            ("outputnode.record", "mask_record"),
        ]),
        (affine_wf, outputnode, [
            ("outputnode.xfm", "xfm"),
            ("outputnode.record", "affine_record"),
        ]),
        (normalize, outputnode, [
            ("out_file", "preproc"),
            ("out_mask", "preproc_mask"),
            ("brain_mask", "brain_mask"),
            ("unscaled", "unscaled"),
            ("record", "scale_record"),
        ]),
    ])  # fmt: skip
    return workflow


def init_brain_mask_wf(
    *,
    scan_key: str,
    method: str,
    detect_stripped: bool = False,
    mask: str | None = None,
    atlas_dir: str | None = None,
    n_atlases: int = 6,
    seed: int = 42,
    omp_nthreads: int = 1,
    name: str = "brain_mask_wf",
) -> pe.Workflow:
    """Find the brain by one of four methods, or take a mask found earlier.

    The ``mask_buffer`` node takes whichever branch was built, so what follows does not know.

    Parameters
    ----------
    scan_key : str
        The scan's name.
    method : {"deepbet", "multi-atlas", "bet", "skip"}
        How the brain is found.
    detect_stripped : bool
        Look first whether the scan is stripped already (not with ``bet``, whose node is FSL's).
    mask : str, optional
        Mask computed earlier: no method runs.
    atlas_dir, n_atlases
        Atlas library, and how many of it are fused.
    seed : int
        Seed of the registrations.
    omp_nthreads : int
        Threads of one node.

    Inputs
    ------
    t1w
        RAS T1w.
    orientation
        Axes of the scan as it is stored, for a mask computed earlier.

    Outputs
    -------
    mask, record
        Brain mask on the scan's grid; which method and tool made it.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["t1w", "orientation"]), name="inputnode")
    mask_buffer = pe.Node(niu.IdentityInterface(fields=["mask", "record"]), name="mask_buffer")
    outputnode = pe.Node(niu.IdentityInterface(fields=["mask", "record"]), name="outputnode")
    workflow.connect([(mask_buffer, outputnode, [("mask", "mask"), ("record", "record")])])

    if mask is not None or method == "bet":
        conform_mask = pe.Node(
            ConformMask(method="bet" if mask is None else "precomputed"),
            name="conform_mask",
            mem_gb=0.5,
        )
        workflow.connect([
            (inputnode, conform_mask, [("t1w", "in_file")]),
            (conform_mask, mask_buffer, [("out_mask", "mask"), ("record", "record")]),
        ])  # fmt: skip
        if mask is not None:
            conform_mask.inputs.in_mask = mask
            workflow.connect([(inputnode, conform_mask, [("orientation", "orientation")])])
        else:
            from bids_harmony.anat.fsl import bet_interface

            bet = pe.Node(bet_interface(), name="bet", mem_gb=0.5)
            workflow.connect([
                (inputnode, bet, [("t1w", "in_file")]),
                (bet, conform_mask, [("mask_file", "in_mask"), ("record", "record")]),
            ])  # fmt: skip
        return workflow

    brain_mask = pe.Node(
        BrainMask(
            method=method,
            detect_stripped=detect_stripped,
            n_atlases=n_atlases,
            exclude=scan_key,
            seed=seed,
            num_threads=omp_nthreads,
            tool_version=made_by(method).get("version", ""),
        ),
        name="brain_mask",
        mem_gb=1.5 if method != "multi-atlas" else 2.5,
        n_procs=omp_nthreads,
    )
    if atlas_dir is not None:
        brain_mask.inputs.atlas_dir = atlas_dir
    workflow.connect([
        (inputnode, brain_mask, [("t1w", "in_file")]),
        (brain_mask, mask_buffer, [("out_mask", "mask"), ("record", "record")]),
    ])  # fmt: skip
    return workflow


def init_affine_wf(
    *,
    method: str,
    resolution: int = 2,
    template: str | None = None,
    seed: int = 42,
    sloppy: bool = False,
    omp_nthreads: int = 1,
    name: str = "affine_wf",
) -> pe.Workflow:
    """Register a brain to the template with 12 degrees of freedom.

    Parameters
    ----------
    method : {"ants", "flirt"}
        Which program.
    resolution : int
        Voxel size of the template grid in mm.
    template : str, optional
        Template file; the embedded one by default.
    seed : int
        Seed of the metric's sampling (``ants``).
    sloppy : bool
        Low quality (``ants``), for tests.
    omp_nthreads : int
        Threads of one node.

    Inputs
    ------
    t1w, mask
        RAS T1w and its brain mask.

    Outputs
    -------
    xfm, record
        ITK text transform, T1w to template; which method and tool found it.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["t1w", "mask"]), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["xfm", "record"]), name="outputnode")
    if method == "ants":
        register = pe.Node(
            RegisterAffine(
                resolution=resolution,
                seed=seed,
                sloppy=sloppy,
                num_threads=omp_nthreads,
                tool_version=made_by(method)["version"],
                **_template(template),
            ),
            name="register",
            mem_gb=1.0,
            n_procs=omp_nthreads,
        )
        workflow.connect([
            (inputnode, register, [("t1w", "in_file"), ("mask", "in_mask")]),
            (register, outputnode, [("out_xfm", "xfm"), ("record", "record")]),
        ])  # fmt: skip
        return workflow

    from bids_harmony.anat.fsl import flirt_interface

    save_template = pe.Node(
        SaveTemplate(resolution=resolution, **_template(template)), name="save_template"
    )
    apply_mask = pe.Node(ApplyMask(), name="apply_mask", mem_gb=0.5)
    flirt = pe.Node(flirt_interface(), name="flirt", mem_gb=0.5)
    to_itk = pe.Node(FlirtToITK(), name="to_itk", mem_gb=0.5)
    workflow.connect([
        (inputnode, apply_mask, [("t1w", "in_file"), ("mask", "in_mask")]),
        (apply_mask, flirt, [("out_file", "in_file")]),
        (save_template, flirt, [("out_file", "reference")]),
        (flirt, to_itk, [("out_matrix_file", "in_matrix"), ("record", "record")]),
        (apply_mask, to_itk, [("out_file", "moving")]),
        (save_template, to_itk, [("out_file", "reference")]),
        (to_itk, outputnode, [("out_xfm", "xfm"), ("record", "record")]),
    ])  # fmt: skip
    return workflow


def _template(path: str | None) -> dict[str, Any]:
    return {} if path is None else {"template": path}
