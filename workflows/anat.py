"""Graphs of the brain mask and of the affine, by each method."""

from __future__ import annotations

from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.interfaces import anat


def init_brain_mask_wf(
    *,
    scan_key: str,
    method: str,
    detect_stripped: bool = False,
    mask: str | None = None,
    atlas_dir: str | None = None,
    seed: int = 42,
    omp_nthreads: int = 1,
    name: str = "brain_mask_wf",
) -> pe.Workflow:
    """Find the brain by one of four methods, or take a mask found earlier.

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
    atlas_dir : str, optional
        Atlas library.
    seed : int
        Seed of the registrations.
    omp_nthreads : int
        Threads of one node.

    Inputs
    ------
    t1w
        RAS T1w.

    Outputs
    -------
    mask, record
        Brain mask on the scan's grid; which method and tool made it.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["t1w"]), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["mask", "record"]), name="outputnode")
    if mask is None and method != "bet":
        brain_mask = pe.Node(
            anat.BrainMask(
                method=method,
                detect_stripped=detect_stripped,
                exclude=scan_key,
                seed=seed,
                num_threads=omp_nthreads,
                **({} if atlas_dir is None else {"atlas_dir": atlas_dir}),
            ),
            name="brain_mask",
            mem_gb=1.5 if method != "multi-atlas" else 2.5,
            n_procs=omp_nthreads,
        )
        workflow.connect([
            (inputnode, brain_mask, [("t1w", "in_file")]),
            (brain_mask, outputnode, [("out_mask", "mask"), ("record", "record")]),
        ])  # fmt: skip
        return workflow

    conform_mask = pe.Node(
        anat.ConformMask(method="bet" if mask is None else "precomputed"),
        name="conform_mask",
        mem_gb=0.5,
    )
    workflow.connect([
        (inputnode, conform_mask, [("t1w", "in_file")]),
        (conform_mask, outputnode, [("out_mask", "mask"), ("record", "record")]),
    ])  # fmt: skip
    if mask is not None:
        conform_mask.inputs.in_mask = mask
    else:
        from bids_harmony.interfaces.fsl import bet_interface

        bet = pe.Node(bet_interface(), name="bet", mem_gb=0.5)
        workflow.connect([
            (inputnode, bet, [("t1w", "in_file")]),
            (bet, conform_mask, [("mask_file", "in_mask"), ("record", "record")]),
        ])  # fmt: skip
    return workflow


def init_affine_wf(
    *,
    method: str,
    on_grid: dict[str, Any],
    seed: int = 42,
    sloppy: bool = False,
    name: str = "affine_wf",
) -> pe.Workflow:
    """Register a brain to the template with 12 degrees of freedom.

    Parameters
    ----------
    method : {"ants", "flirt"}
        Which program.
    on_grid : dict
        ``resolution`` of the template grid in mm and, where it is not the embedded one, the
        file of the ``template``.
    seed : int
        Seed of the metric's sampling (``ants``).
    sloppy : bool
        Low quality (``ants``), for tests.

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
            anat.RegisterAffine(seed=seed, sloppy=sloppy, **on_grid), name="register", mem_gb=1.0
        )
        workflow.connect([
            (inputnode, register, [("t1w", "in_file"), ("mask", "in_mask")]),
            (register, outputnode, [("out_xfm", "xfm"), ("record", "record")]),
        ])  # fmt: skip
        return workflow

    from bids_harmony.interfaces.fsl import flirt_interface

    save_brain = pe.Node(anat.SaveBrain(**on_grid), name="save_brain", mem_gb=0.5)
    flirt = pe.Node(flirt_interface(), name="flirt", mem_gb=0.5)
    to_itk = pe.Node(anat.FlirtToITK(), name="to_itk", mem_gb=0.5)
    workflow.connect([
        (inputnode, save_brain, [("t1w", "in_file"), ("mask", "in_mask")]),
        (save_brain, flirt, [("brain", "in_file"), ("template", "reference")]),
        (save_brain, to_itk, [("brain", "moving"), ("template", "reference")]),
        (flirt, to_itk, [("out_matrix_file", "in_matrix"), ("record", "record")]),
        (to_itk, outputnode, [("out_xfm", "xfm"), ("record", "record")]),
    ])  # fmt: skip
    return workflow
