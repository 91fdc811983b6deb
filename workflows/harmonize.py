"""Workflow that harmonizes one preprocessed scan and predicts from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.pipeline import engine as pe

from bids_harmony.bids.dataset import Scan
from bids_harmony.bids.records import PREPROCESSED
from bids_harmony.config import Contract
from bids_harmony.interfaces.anat import ToNative
from bids_harmony.interfaces.models import Guard, Harmonize, Predict
from bids_harmony.interfaces.outputs import SaveOutputs
from bids_harmony.interfaces.reports import ScanFigures
from bids_harmony.workflows.preprocess import figures_prefix, names_of_grid

#: Calibration fields written to a scan's record but not to image sidecars.
FOR_RECORD = frozenset({"sources", "changes"})


def init_harmonize_wf(
    *,
    scan: Scan,
    facts: dict[str, Any],
    before: dict[str, Any],
    output_dir: str,
    staging_dir: str,
    contract: Contract,
    space: str,
    bundle: str,
    calibration: dict[str, Any],
    template: str | None = None,
    native: bool = False,
    on_guard_fail: str = "flag",
    correct_age_bias: bool = False,
    device: str = "cpu",
    omp_nthreads: int = 1,
) -> pe.Workflow:
    """Build the workflow that harmonizes one preprocessed scan to the reference site.

    It also computes the harmonization metrics and the bundle's predictions.

    Parameters
    ----------
    scan, facts, output_dir, staging_dir, contract, space, template
        See :func:`~bids_harmony.workflows.preprocess.init_preprocess_wf`.
    before : dict
        Preprocessing results (:func:`bids_harmony.bids.records.preprocessed`).
    bundle : str
        Folder of the model bundle.
    calibration : dict
        Calibration of the scan's site, as in its JSON file.
    native : bool
        Whether to also write the harmonized image on the scan's native grid.
    on_guard_fail : {"flag", "raw"}
        Action if the anatomy guard fails: ``raw`` predicts from the raw scan only, ``flag`` also
        from the harmonized scan.
    correct_age_bias : bool
        Whether to add brain-age gaps corrected for age bias.
    device : {"cpu", "cuda"}
        Device of the networks. With ``cuda``, nodes queue for the GPU in nipype's MultiProc
        plugin.
    omp_nthreads : int
        Maximum number of threads per node.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        The workflow, named after the scan.
    """
    outputs = [Path(output_dir) / path for path in before["outputs"]]
    preproc, xfm = _only(outputs, "_desc-preproc_T1w.nii.gz"), _only(outputs, "_xfm.txt")
    t1w_mask = _only([p for p in outputs if "_space-" not in p.name], "_mask.nii.gz")
    model = {
        "bundle": bundle,
        "calibration": calibration,
        "device": device,
        "use_gpu": device == "cuda",
        "num_threads": omp_nthreads,
    }
    harmonize = pe.Node(
        Harmonize(in_file=preproc, **model), name="harmonize", mem_gb=1.0, n_procs=omp_nthreads
    )
    guard = pe.Node(
        Guard(raw=preproc, metrics=before["metrics"], bundle=bundle), name="guard", mem_gb=0.3
    )
    predict = pe.Node(
        Predict(
            raw=preproc,
            site=scan.site,
            on_guard_fail=on_guard_fail,
            correct_age_bias=correct_age_bias,
            age=scan.age,
            calibration_file=facts["calibration"].get("path"),
            **model,
        ),
        name="predict",
        mem_gb=1.0,
        n_procs=omp_nthreads,
    )
    figures = pe.Node(
        ScanFigures(
            bundle=bundle,
            age=facts["age"],
            raw=preproc,
            prefix=figures_prefix(scan, staging_dir),
        ),
        name="figures",
        mem_gb=0.8,
    )
    settings = {
        "desc": "harmonized",
        "suffix": "T1w",
        "SkullStripped": True,
        "ReferenceSite": facts["bundle"]["reference_site"],
        "Bundle": facts["bundle"],
        "Calibration": {k: v for k, v in facts["calibration"].items() if k not in FOR_RECORD},
    }
    names = {"harmonized": settings | names_of_grid(space, contract.resolution, template)}
    if native:
        names["harmonized_native"] = settings
    publish = pe.Node(
        SaveOutputs(
            source_file=str(scan.path),
            staging_dir=staging_dir,
            output_dir=output_dir,
            facts=facts,
            names=names,
            kept=before["outputs"],
            bundle=bundle,
            **{name: before[name] for name in PREPROCESSED if name != "metrics"},
        ),
        name="publish",
        mem_gb=0.5,
    )
    workflow = pe.Workflow(name=scan.wf_name)
    workflow.connect([
        (harmonize, guard, [("out_file", "harmonized")]),
        (harmonize, predict, [("out_file", "harmonized")]),
        (guard, predict, [("guard", "guard")]),
        (harmonize, figures, [("out_file", "harmonized")]),
        (guard, figures, [("metrics", "metrics")]),
        (predict, figures, [("predictions", "predictions")]),
        (harmonize, publish, [("out_file", "harmonized")]),
        (guard, publish, [("metrics", "metrics"), ("guard", "guard")]),
        (predict, publish, [("predictions", "predictions")]),
        (figures, publish, [("out_files", "figures")]),
    ])  # fmt: skip
    if native:
        to_native = pe.Node(ToNative(in_mask=t1w_mask, in_xfm=xfm), name="to_native", mem_gb=0.8)
        workflow.connect([
            (harmonize, to_native, [("out_file", "in_file")]),
            (to_native, publish, [("out_file", "harmonized_native")]),
        ])  # fmt: skip
    return workflow


def _only(paths: list[Path], ending: str) -> str:
    (found,) = (str(path) for path in paths if path.name.endswith(ending))
    return found
