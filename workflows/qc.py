"""Graph of the quality metrics."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.interfaces.qc import Describe, ScanMetrics


def init_qc_wf(
    *,
    scan_key: str,
    resolution: int = 2,
    template: str | None = None,
    name: str = "qc_wf",
) -> pe.Workflow:
    """Measure and describe a scan, and refuse a registration that failed.

    Parameters
    ----------
    scan_key : str
        The scan's name, for messages.
    resolution : int
        Voxel size of the template grid in mm.
    template : str, optional
        Template file; the embedded one by default.

    Inputs
    ------
    t1w_ras, t1w_mask, unscaled, xfm, brain_mask, preproc, preproc_mask
        What the anatomical workflow put out.

    Outputs
    -------
    metrics
        Dictionary of metrics.
    descriptors
        Of its intensities, for the calibration of its site.
    xfm, brain_mask, preproc, preproc_mask
        As they came in. They pass this gate only if the registration is good, so that nothing
        after it is made from one that failed.
    """
    gated = ["xfm", "brain_mask", "preproc", "preproc_mask"]
    fields = ["t1w_ras", "t1w_mask", "unscaled", *gated]
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name="inputnode")
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["metrics", "descriptors", *gated]), name="outputnode"
    )
    metrics = pe.Node(
        ScanMetrics(resolution=resolution, name=scan_key), name="metrics", mem_gb=0.8
    )
    if template is not None:
        metrics.inputs.template = template
    describe = pe.Node(Describe(), name="describe", mem_gb=0.3)
    workflow.connect([
        (inputnode, metrics, [(field, field) for field in fields]),
        (metrics, describe, [("preproc", "in_file"), ("brain_mask", "in_mask")]),
        (metrics, outputnode, [(field, field) for field in ("metrics", *gated)]),
        (describe, outputnode, [("descriptors", "descriptors")]),
    ])  # fmt: skip
    return workflow
