"""A made-up dataset as the group level hands it to its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from bids_harmony.qc.dataset import FACTS, Flag, Group, prediction_columns
from bids_harmony.qc.reference import dictionary

TARGETS = ("brain_age", "schizophrenia_probability")
RATINGS = ("scan", "rater", "time", "verdict", "comment")
REFERENCE = "REF"


def made_up_group(n: int, sites: tuple[str, ...] = (REFERENCE, "A", "B"), seed: int = 0) -> Group:
    """``n`` scans, the first of each 20 flagged, the last of each 50 failed; no files."""
    rng = np.random.default_rng(seed)
    metrics = tuple(dictionary())
    keys = [f"sub-{i:05d}" for i in range(n)]
    site = np.array(sites)[np.arange(n) % len(sites)]
    age = rng.uniform(20, 80, n).round(1)
    failed = np.arange(n) % 50 == 49
    flagged = np.arange(n) % 20 == 0
    table = pd.DataFrame({name: pd.Series([None] * n, dtype=object) for name in FACTS})
    table["scan"], table["participant_id"], table["site"], table["age"] = keys, keys, site, age
    table["sex"] = np.where(np.arange(n) % 2, "F", "M").astype(object)
    table["diagnosis"] = np.where(np.arange(n) % 3, "control", "schizophrenia").astype(object)
    table["manufacturer"], table["field_strength"] = "Siemens", 3.0
    for name in ("repetition_time", "echo_time", "inversion_time", "flip_angle"):
        table[name] = np.nan
    for axis in "xyz":
        table[f"voxel_{axis}_mm"] = 1.0
    table["qc_status"] = np.where(failed, "error", np.where(flagged, "warn", "pass"))
    table["error"] = [f"Scan {i} is broken." if bad else None for i, bad in enumerate(failed)]
    for k, name in enumerate(metrics):
        table[name] = np.where(failed, np.nan, k + rng.normal(size=n))
    table["harmonization_status"] = "pass"
    offset = np.select([site == s for s in sites], 4.0 * np.arange(len(sites)))
    for kind, bias in (("raw", offset), ("harmonized", 0 * offset)):
        predicted = age + bias + rng.normal(0, 3, n)
        table[f"brain_age_{kind}"] = np.where(failed, np.nan, predicted)
        table[f"schizophrenia_probability_{kind}"] = np.where(failed, np.nan, rng.uniform(size=n))
    for name in prediction_columns(TARGETS):
        if name not in table:
            table[name] = np.nan
    table["bundle"] = "small 1"
    table["rating"], table["n_raters"] = None, 0.0
    table["n_flags"] = flagged.astype(float)
    table["outlier_score"] = np.where(flagged, 2.0, 0.0)
    table["outlier_rank"] = table["outlier_score"].rank(method="first", ascending=False)
    table["reasons"] = np.where(flagged, "Noise is far above the site's.", "").astype(object)
    flag = Flag("noise", "Noise is far above the site's.", 2.0)
    bundle = {"name": "small", "version": "1", "sha256": "0" * 64, "reference_site": REFERENCE,
              "n_scans": n, "n_scans_other": 0, "training_data": {},
              "simulated": ["schizophrenia_probability"]}  # fmt: skip
    return Group(
        scans=table,
        metrics=metrics,
        targets=TARGETS,
        flags={key: (flag,) for key, yes in zip(keys, flagged, strict=True) if yes},
        ratings=pd.DataFrame([], columns=list(RATINGS), dtype=object),
        dictionary=dictionary(),
        figures={key: (f"{key}/figures/{key}_desc-brainmask_T1w.png",) for key in keys},
        volumes={},
        bundle=bundle,
    )


def write_volumes(group: Group, out: Path, scans: list[str]) -> None:
    """Give some scans small images on a template grid, harmonized ones a little brighter."""
    import nibabel as nib

    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    head = np.select([radius < 0.2, radius < 0.6, radius < 0.85], [0.05, 1.0, 0.55], 0.0)
    for scan in scans:
        noisy = np.where(head > 0, np.maximum(head + rng.normal(0, 0.03, head.shape), 1e-3), 0)
        group.volumes[scan] = {}
        for name, volume in (("preproc", noisy), ("harmonized", noisy * 1.1)):
            path = Path(scan) / "anat" / f"{scan}_space-T_desc-{name}_T1w.nii.gz"
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            image = nib.Nifti1Image(volume.astype(np.float32), np.diag([8.0, 8, 8, 1]))
            nib.save(image, out / path)
            group.volumes[scan][name] = path.as_posix()
