"""Graph of a run: one workflow per scan, independent of each other.

A scan goes its way in two parts: it is preprocessed and described, then, once its site is
calibrated, harmonized from what the first part left in the output folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.bids import Scan
from bids_harmony.contract import Contract
from bids_harmony.workflows.anat import init_anat_wf
from bids_harmony.workflows.harmonize import init_harmonize_wf
from bids_harmony.workflows.outputs import (
    init_harmonize_outputs_wf,
    init_preprocess_outputs_wf,
)
from bids_harmony.workflows.predict import init_predict_wf
from bids_harmony.workflows.qc import init_qc_wf


def init_harmony_wf(
    *,
    scans: Sequence[Scan],
    build: Callable[[Scan], pe.Workflow],
    crash_dir: str,
    execution: dict[str, str] | None = None,
    name: str = "harmony_wf",
) -> pe.Workflow:
    """Put the workflows of several scans side by side.

    Parameters
    ----------
    scans : sequence of Scan
        What to process.
    build : callable
        Makes the workflow of one: :func:`init_preprocess_wf` or :func:`init_reference_wf`, with
        its settings.
    crash_dir : str
        Crash files go to a folder per subject below it.
    execution : dict, optional
        Nipype's ``execution`` settings, for the workflow and each of its nodes.
    name : str
        Name of the workflow, and of its folder in the work directory.
    """
    workflow = pe.Workflow(name=name)
    workflow.config["execution"].update(execution or {})
    for scan in scans:
        scan_wf = build(scan)
        crashes = Path(crash_dir) / f"sub-{scan.entities['subject']}"
        scan_wf.config["execution"].update(execution or {}, crashdump_dir=str(crashes))
        for node in scan_wf._get_all_nodes():
            node.config = deepcopy(scan_wf.config)
        workflow.add_nodes([scan_wf])
    return workflow


def init_preprocess_wf(
    *,
    scan: Scan,
    facts: dict[str, Any],
    bids_dir: str,
    output_dir: str,
    staging_dir: str,
    contract: Contract,
    space: str,
    skull_strip: str = "auto",
    registration: str = "auto",
    template: str | None = None,
    atlas_dir: str | None = None,
    n_atlases: int = 6,
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
    bids_dir, output_dir : str
        Dataset read and derivatives written.
    staging_dir : str
        Folder of the scan's own for outputs that are not yet in place.
    contract : Contract
        The bundle's preprocessing contract.
    space : str
        Template label.
    skull_strip, registration, template, atlas_dir, n_atlases, seed, sloppy, omp_nthreads
        See :func:`~bids_harmony.workflows.anat.init_anat_wf`.
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
    outputs_wf = init_preprocess_outputs_wf(
        **_places(scan, bids_dir, output_dir, staging_dir),
        space=space,
        resolution=contract.resolution,
        facts=facts,
        template=template,
    )
    records = ("check_record", "mask_record", "affine_record", "scale_record")
    # What the QC workflow lets through only when the registration is good.
    gated = ("xfm", "brain_mask", "preproc")
    workflow.connect([
        (inputnode, anat_wf, [("t1w", "inputnode.t1w")]),
        (anat_wf, qc_wf, [
            (f"outputnode.{f}", f"inputnode.{f}")
            for f in ("t1w_ras", "t1w_mask", "unscaled", "preproc_mask", *gated)
        ]),
        (anat_wf, outputs_wf, [
            ("outputnode.preproc", "inputnode.registered"),
            *((f"outputnode.{f}", f"inputnode.{f}") for f in ("t1w_ras", "t1w_mask", *records)),
        ]),
        (qc_wf, outputs_wf, [
            (f"outputnode.{f}", f"inputnode.{f}") for f in ("metrics", "descriptors", *gated)
        ]),
    ])  # fmt: skip
    return workflow


def init_reference_wf(
    *,
    scan: Scan,
    facts: dict[str, Any],
    before: dict[str, Any],
    bids_dir: str,
    output_dir: str,
    staging_dir: str,
    contract: Contract,
    space: str,
    bundle: str,
    bundle_sha256: str,
    calibration: dict[str, Any],
    template: str | None = None,
    native: bool = False,
    on_guard_fail: str = "flag",
    correct_age_bias: bool = False,
    device: str = "cpu",
    omp_nthreads: int = 1,
) -> pe.Workflow:
    """Take one preprocessed scan to the reference site, and predict there.

    Parameters
    ----------
    scan, facts, bids_dir, output_dir, staging_dir, contract, space, template, omp_nthreads
        See :func:`init_preprocess_wf`.
    before : dict
        What preprocessing found out (:func:`bids_harmony.qc.record.preprocessed`).
    bundle, bundle_sha256 : str
        Folder and checksum of the model bundle.
    calibration : dict
        Of the scan's site, as in its file.
    native : bool
        Write the harmonized image on the scan's own grid too.
    on_guard_fail, correct_age_bias
        See :func:`~bids_harmony.workflows.predict.init_predict_wf`.
    device : {"cpu", "cuda"}
        Where networks run.
    """
    workflow = pe.Workflow(name=scan.wf_name)
    fields = ("preproc", "t1w_mask", "xfm", "metrics")
    inputnode = pe.Node(niu.IdentityInterface(fields=list(fields)), name="inputnode")
    places = [Path(output_dir) / path for path in before["outputs"]]
    inputnode.inputs.trait_set(
        metrics=before["metrics"],
        preproc=_only(places, "_desc-preproc_T1w.nii.gz"),
        xfm=_only(places, "_xfm.txt"),
        t1w_mask=_only([p for p in places if "_space-" not in p.name], "_mask.nii.gz"),
    )
    model = {"bundle": bundle, "bundle_sha256": bundle_sha256, "calibration": calibration}
    machine = {"device": device, "omp_nthreads": omp_nthreads}
    harmonize_wf = init_harmonize_wf(**model, **machine, native=native)
    predict_wf = init_predict_wf(
        **model,
        **machine,
        calibration_file=facts["calibration"].get("path"),
        site=scan.site,
        age=scan.age,
        on_guard_fail=on_guard_fail,
        correct_age_bias=correct_age_bias,
    )
    outputs_wf = init_harmonize_outputs_wf(
        **_places(scan, bids_dir, output_dir, staging_dir),
        space=space,
        resolution=contract.resolution,
        facts=facts,
        before=before,
        bundle=bundle,
        template=template,
        native=native,
    )
    harmonized = ("harmonized", "metrics", "guard", *(["harmonized_native"] if native else []))
    workflow.connect([
        (inputnode, harmonize_wf, [(f, f"inputnode.{f}") for f in fields]),
        (inputnode, predict_wf, [("preproc", "inputnode.preproc")]),
        (inputnode, outputs_wf, [("preproc", "inputnode.preproc")]),
        (harmonize_wf, predict_wf, [
            (f"outputnode.{f}", f"inputnode.{f}") for f in ("harmonized", "guard")
        ]),
        (harmonize_wf, outputs_wf, [(f"outputnode.{f}", f"inputnode.{f}") for f in harmonized]),
        (predict_wf, outputs_wf, [("outputnode.predictions", "inputnode.predictions")]),
    ])  # fmt: skip
    return workflow


def _places(scan: Scan, bids_dir: str, output_dir: str, staging_dir: str) -> dict[str, str]:
    return {
        "source_file": str(scan.path),
        "source_uri": f"bids:raw:{scan.path.relative_to(bids_dir).as_posix()}",
        "output_dir": output_dir,
        "staging_dir": staging_dir,
    }


def _only(paths: Sequence[Path], ending: str) -> str:
    (found,) = (str(path) for path in paths if path.name.endswith(ending))
    return found
