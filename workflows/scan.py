"""Workflows of one scan: preprocessing to the template grid, then harmonization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.pipeline import engine as pe

from bids_harmony.bids.dataset import Scan
from bids_harmony.bids.records import PREPROCESSED
from bids_harmony.config import Contract
from bids_harmony.interfaces.anat import BrainMask, CheckT1w, Normalize, RegisterAffine
from bids_harmony.interfaces.models import Harmonize
from bids_harmony.interfaces.outputs import SaveOutputs

#: Calibration fields written to a scan's record but not to image sidecars.
FOR_RECORD = frozenset({"sources", "changes"})


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
    prefix = figures_prefix(scan, staging_dir)
    check = pe.Node(CheckT1w(in_file=str(scan.path)), name="check", mem_gb=0.5)
    brain_mask = pe.Node(
        BrainMask(
            source_file=str(scan.path),
            in_mask=None if scan.mask is None else str(scan.mask),
            method=contract.skull_strip if skull_strip == "auto" else skull_strip,
            detect_stripped=skull_strip == "auto",
            atlas_dir=atlas_dir,
            scan_key=scan.key,
            seed=seed,
            prefix=prefix,
        ),
        name="brain_mask",
        mem_gb=2.5 if skull_strip == "multi-atlas" else 1.5,
    )
    register = pe.Node(
        RegisterAffine(
            method=contract.registration if registration == "auto" else registration,
            resolution=contract.resolution,
            template=template,
            seed=seed,
            sloppy=sloppy,
        ),
        name="register",
        mem_gb=1.0,
    )
    normalize = pe.Node(
        Normalize(
            contract=contract.to_dict(), template=template, scan_key=scan.key, prefix=prefix
        ),
        name="normalize",
        mem_gb=1.0,
    )
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
        (check, register, [("out_file", "in_file")]),
        (brain_mask, register, [("out_mask", "in_mask")]),
        (check, normalize, [("out_file", "in_file")]),
        (brain_mask, normalize, [("out_mask", "in_mask")]),
        (register, normalize, [("out_xfm", "in_xfm")]),
        (check, publish, [("record", "check")]),
        (brain_mask, publish, [("native_mask", "t1w_mask"), ("record", "mask")]),
        (register, publish, [("out_xfm", "xfm"), ("record", "affine")]),
        (normalize, publish, [
            ("brain_mask", "brain_mask"),
            ("out_file", "preproc"),
            ("record", "scale"),
            ("metrics", "metrics"),
            ("descriptors", "descriptors"),
        ]),
    ])  # fmt: skip
    return workflow


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
        See :func:`init_preprocess_wf`.
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
    harmonize = pe.Node(
        Harmonize(
            in_file=_only(outputs, "_desc-preproc_T1w.nii.gz"),
            in_mask=_only([p for p in outputs if "_space-" not in p.name], "_mask.nii.gz"),
            in_xfm=_only(outputs, "_xfm.txt"),
            metrics=before["metrics"],
            bundle=bundle,
            calibration=calibration,
            calibration_file=facts["calibration"].get("path"),
            site=scan.site,
            age=scan.age,
            native=native,
            on_guard_fail=on_guard_fail,
            correct_age_bias=correct_age_bias,
            prefix=figures_prefix(scan, staging_dir),
            device=device,
            use_gpu=device == "cuda",
            num_threads=omp_nthreads,
        ),
        name="harmonize",
        mem_gb=1.0,
        n_procs=omp_nthreads,
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
    results = [("out_file", "harmonized")]
    results += [(name, name) for name in ("metrics", "guard", "predictions")]
    if native:
        results.append(("native_file", "harmonized_native"))
    workflow.connect([(harmonize, publish, results)])
    return workflow


def figures_prefix(scan: Scan, staging_dir: str) -> str:
    """Return the path of a scan's figures up to the ``desc`` entity."""
    return f"{staging_dir}/sub-{scan.entities['subject']}/figures/{scan.key}"


def names_of_grid(space: str, resolution: int, template: str | None) -> dict[str, str]:
    """Return the entities and sidecar fields that describe the template grid of an image."""
    names = {"space": space, "resolution": str(resolution)}
    return names if template is None else {**names, "SpatialReference": Path(template).name}


def _only(paths: list[Path], ending: str) -> str:
    (found,) = (str(path) for path in paths if path.name.endswith(ending))
    return found
