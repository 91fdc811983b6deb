"""Graph of a run: one workflow per scan, independent of each other."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.bids import Scan
from bids_harmony.contract import Contract
from bids_harmony.outputs import STAGING
from bids_harmony.workflows.anat import init_anat_wf
from bids_harmony.workflows.harmonize import init_harmonize_wf
from bids_harmony.workflows.outputs import init_outputs_wf
from bids_harmony.workflows.predict import init_predict_wf
from bids_harmony.workflows.qc import init_qc_wf


def init_harmony_wf(
    *,
    scans: Sequence[Scan],
    facts: dict[str, dict[str, Any]],
    crash_dir: str,
    execution: dict[str, str] | None = None,
    name: str = "harmony_wf",
    **settings: Any,
) -> pe.Workflow:
    """Put the workflows of several scans side by side.

    Parameters
    ----------
    scans : sequence of Scan
        What to process.
    facts : dict
        By scan key, what goes into the scan's record.
    crash_dir : str
        Crash files go to a folder per subject below it.
    execution : dict, optional
        Nipype's ``execution`` settings, for the workflow and each of its nodes.
    name : str
        Name of the workflow, and of its folder in the work directory.
    **settings
        Passed to :func:`init_scan_wf`.
    """
    workflow = pe.Workflow(name=name)
    workflow.config["execution"].update(execution or {})
    for scan in scans:
        scan_wf = init_scan_wf(scan=scan, facts=facts[scan.key], **settings)
        crashes = Path(crash_dir) / f"sub-{scan.entities['subject']}"
        scan_wf.config["execution"].update(execution or {}, crashdump_dir=str(crashes))
        for node in scan_wf._get_all_nodes():
            node.config = deepcopy(scan_wf.config)
        workflow.add_nodes([scan_wf])
    return workflow


def init_scan_wf(
    *,
    scan: Scan,
    facts: dict[str, Any],
    bids_dir: str,
    output_dir: str,
    work_dir: str,
    contract: Contract,
    space: str,
    skull_strip: str = "auto",
    registration: str = "auto",
    template: str | None = None,
    atlas_dir: str | None = None,
    n_atlases: int = 6,
    bundle: str | None = None,
    bundle_sha256: str = "",
    reference_site: str | None = None,
    native: bool = False,
    on_guard_fail: str = "flag",
    correct_age_bias: bool = False,
    device: str = "cpu",
    seed: int = 42,
    sloppy: bool = False,
    omp_nthreads: int = 1,
) -> pe.Workflow:
    """Take one T1w scan the whole way (design.md §3).

    Parameters
    ----------
    scan : Scan
        The scan.
    facts : dict
        What is known of the scan and the run; goes to the scan's record.
    bids_dir, output_dir : str
        Dataset read and derivatives written.
    work_dir : str
        Folder that holds the scan's work folder.
    contract : Contract
        The bundle's preprocessing contract.
    space : str
        Template label.
    skull_strip, registration, template, atlas_dir, n_atlases, seed, sloppy, omp_nthreads
        See :func:`~bids_harmony.workflows.anat.init_anat_wf`.
    bundle, bundle_sha256, reference_site : str, optional
        Folder, checksum and reference site of the model bundle; without a bundle the scan is
        preprocessed and measured only.
    native : bool
        Write the harmonized image on the scan's own grid too.
    on_guard_fail, correct_age_bias
        See :func:`~bids_harmony.workflows.predict.init_predict_wf`.
    device : {"cpu", "cuda"}
        Where networks run.
    """
    workflow = pe.Workflow(name=scan.wf_name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["t1w"]), name="inputnode")
    inputnode.inputs.t1w = str(scan.path)
    anat_wf = init_anat_wf(
        scan_key=scan.key,
        contract=contract,
        skull_strip=skull_strip,
        registration=registration,
        template=template,
        mask=None if scan.mask is None else str(scan.mask),
        atlas_dir=atlas_dir,
        n_atlases=n_atlases,
        seed=seed,
        sloppy=sloppy,
        omp_nthreads=omp_nthreads,
    )
    qc_wf = init_qc_wf(scan_key=scan.key, resolution=contract.resolution, template=template)
    outputs_wf = init_outputs_wf(
        source_file=str(scan.path),
        source_uri=f"bids:raw:{scan.path.relative_to(bids_dir).as_posix()}",
        output_dir=output_dir,
        staging_dir=str(Path(work_dir) / scan.wf_name / STAGING),
        space=space,
        resolution=contract.resolution,
        facts=facts,
        template=template,
        bundle=bundle,
        reference_site=reference_site,
        native=native,
    )
    records = ("check_record", "mask_record", "affine_record", "scale_record")
    # What the QC workflow lets through only when the registration is good.
    gated = ("xfm", "brain_mask", "preproc", "preproc_mask")
    workflow.connect([
        (inputnode, anat_wf, [("t1w", "inputnode.t1w")]),
        (anat_wf, qc_wf, [
            (f"outputnode.{f}", f"inputnode.{f}")
            for f in ("t1w_ras", "t1w_mask", "unscaled", *gated)
        ]),
        (anat_wf, outputs_wf, [
            ("outputnode.preproc", "inputnode.registered"),
            *((f"outputnode.{f}", f"inputnode.{f}") for f in ("t1w_ras", "t1w_mask", *records)),
        ]),
        (qc_wf, outputs_wf, [(f"outputnode.{f}", f"inputnode.{f}") for f in gated]),
    ])  # fmt: skip
    if bundle is None:
        workflow.connect([(qc_wf, outputs_wf, [("outputnode.metrics", "inputnode.metrics")])])
        return workflow

    harmonize_wf = init_harmonize_wf(
        bundle=bundle,
        bundle_sha256=bundle_sha256,
        device=device,
        native=native,
        omp_nthreads=omp_nthreads,
    )
    predict_wf = init_predict_wf(
        bundle=bundle,
        bundle_sha256=bundle_sha256,
        site=scan.site,
        age=scan.age,
        on_guard_fail=on_guard_fail,
        correct_age_bias=correct_age_bias,
        device=device,
        omp_nthreads=omp_nthreads,
    )
    workflow.connect([
        (anat_wf, harmonize_wf, [
            (f"outputnode.{f}", f"inputnode.{f}") for f in ("t1w_ras", "t1w_mask")
        ]),
        (qc_wf, harmonize_wf, [
            (f"outputnode.{f}", f"inputnode.{f}")
            for f in ("xfm", "preproc", "preproc_mask", "metrics")
        ]),
        (qc_wf, predict_wf, [("outputnode.preproc", "inputnode.preproc")]),
        (harmonize_wf, predict_wf, [
            (f"outputnode.{f}", f"inputnode.{f}") for f in ("harmonized", "guard")
        ]),
        (harmonize_wf, outputs_wf, [
            (f"outputnode.{f}", f"inputnode.{f}") for f in ("harmonized", "metrics", "guard")
        ]),
        (predict_wf, outputs_wf, [("outputnode.predictions", "inputnode.predictions")]),
    ])  # fmt: skip
    if native:
        workflow.connect([
            (harmonize_wf, outputs_wf, [
                ("outputnode.harmonized_native", "inputnode.harmonized_native"),
            ]),
        ])  # fmt: skip
    return workflow
