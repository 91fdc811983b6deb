"""Graph of the harmonization."""

from __future__ import annotations

from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.interfaces.models import Guard, Harmonize, ToNative


def init_harmonize_wf(
    *,
    bundle: str,
    bundle_sha256: str,
    calibration: dict[str, Any],
    device: str = "cpu",
    native: bool = False,
    omp_nthreads: int = 1,
    name: str = "harmonize_wf",
) -> pe.Workflow:
    """Map a preprocessed scan to the reference site.

    Parameters
    ----------
    bundle, bundle_sha256 : str
        Folder and checksum of the model bundle.
    calibration : dict
        Of the scan's site, as in its file.
    device : {"cpu", "cuda"}
        Where the network runs; ``cuda`` nodes queue for the GPU.
    native : bool
        Resample the result to the scan's own grid too.
    omp_nthreads : int
        Threads of one node.

    Inputs
    ------
    preproc
        Scaled brain on the template grid.
    metrics
        Metrics so far.
    t1w_mask, xfm
        The scan's native brain mask and its transform (for ``native``).

    Outputs
    -------
    harmonized
        Harmonized brain on the template grid.
    metrics
        Metrics so far and those of the change.
    guard
        Verdict of the anatomy guard.
    harmonized_native
        The same on the scan's grid (with ``native``).
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["preproc", "metrics", "t1w_mask", "xfm"]),
        name="inputnode",
    )
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["harmonized", "metrics", "guard", "harmonized_native"]),
        name="outputnode",
    )
    harmonize = pe.Node(
        Harmonize(
            bundle=bundle,
            bundle_sha256=bundle_sha256,
            calibration=calibration,
            device=device,
            use_gpu=device == "cuda",
            num_threads=omp_nthreads,
        ),
        name="harmonize",
        mem_gb=1.0,
        n_procs=omp_nthreads,
    )
    guard = pe.Node(Guard(bundle=bundle, bundle_sha256=bundle_sha256), name="guard", mem_gb=0.3)
    workflow.connect([
        (inputnode, harmonize, [("preproc", "in_file")]),
        (inputnode, guard, [("preproc", "raw"), ("metrics", "metrics")]),
        (harmonize, guard, [("out_file", "harmonized")]),
        (harmonize, outputnode, [("out_file", "harmonized")]),
        (guard, outputnode, [("metrics", "metrics"), ("guard", "guard")]),
    ])  # fmt: skip
    if native:
        to_native = pe.Node(ToNative(), name="to_native", mem_gb=0.8)
        workflow.connect([
            (inputnode, to_native, [("t1w_mask", "in_mask"), ("xfm", "in_xfm")]),
            (harmonize, to_native, [("out_file", "in_file")]),
            (to_native, outputnode, [("out_file", "harmonized_native")]),
        ])  # fmt: skip
    return workflow
