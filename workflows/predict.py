"""Graph of the predictions."""

from __future__ import annotations

from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bids_harmony.interfaces.models import Predict


def init_predict_wf(
    *,
    bundle: str,
    bundle_sha256: str,
    site: str,
    calibration: dict[str, Any],
    calibration_file: str | None = None,
    age: float | None = None,
    on_guard_fail: str = "flag",
    correct_age_bias: bool = False,
    device: str = "cpu",
    omp_nthreads: int = 1,
    name: str = "predict_wf",
) -> pe.Workflow:
    """Predict brain age and the bundle's other targets, raw and harmonized.

    Parameters
    ----------
    bundle, bundle_sha256 : str
        Folder and checksum of the model bundle.
    site : str
        Site of the scan, to say whether the bundle knows it.
    calibration : dict
        Of the site, as in its file.
    calibration_file : str, optional
        That file below the root of the derivatives.
    age : float, optional
        Chronological age in years, for the gap.
    on_guard_fail : {"flag", "raw"}
        ``raw`` predicts from the raw scan alone where the anatomy guard says ``fail``.
    correct_age_bias : bool
        Add age gaps corrected for the bias with age.
    device : {"cpu", "cuda"}
        Where the networks run; ``cuda`` nodes queue for the GPU.
    omp_nthreads : int
        Threads of one node.

    Inputs
    ------
    preproc, harmonized
        Scaled brain and harmonized brain on the template grid.
    guard
        Verdict of the anatomy guard.

    Outputs
    -------
    predictions
        Dictionary as written to ``desc-harmony_predictions.json``.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["preproc", "harmonized", "guard"]), name="inputnode"
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=["predictions"]), name="outputnode")
    predict = pe.Node(
        Predict(
            bundle=bundle,
            bundle_sha256=bundle_sha256,
            site=site,
            calibration=calibration,
            on_guard_fail=on_guard_fail,
            correct_age_bias=correct_age_bias,
            device=device,
            use_gpu=device == "cuda",
            num_threads=omp_nthreads,
        ),
        name="predict",
        mem_gb=1.0,
        n_procs=omp_nthreads,
    )
    if calibration_file is not None:
        predict.inputs.calibration_file = calibration_file
    if age is not None:
        predict.inputs.age = age
    workflow.connect([
        (inputnode, predict, [
            ("preproc", "raw"),
            ("harmonized", "harmonized"),
            ("guard", "guard"),
        ]),
        (predict, outputnode, [("predictions", "predictions")]),
    ])  # fmt: skip
    return workflow
