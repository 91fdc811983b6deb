"""Datasets whose scans are preprocessed already: for tests of what comes after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from bids_dataset import write

from bids_harmony.anat.affine import write_affine
from bids_harmony.anat.template import load_template
from bids_harmony.bids.dataset import find_scans
from bids_harmony.bids.records import ENDINGS
from bids_harmony.config import RunConfig
from bids_harmony.files import write_json
from bids_harmony.run.base import Run
from bids_harmony.sites.code import LEVELS


def made_up_sites(
    folder: Path, sites: Mapping[str, Sequence[float | None]], **options: Any
) -> RunConfig:
    """Write a dataset with a participant of each age at each site; its scans differ by a voxel."""
    root, rows, number = folder / "bids", [], 0
    write(root, "dataset_description.json", '{"Name": "d", "BIDSVersion": "1.10.0"}')
    for site, ages in sites.items():
        for age in ages:
            number += 1
            data = np.zeros((60, 72, 60), np.uint8)
            data[10:50, 10:60, 10:50], data[0, 0, 0] = 9, number
            path = root / f"sub-{number:02}/anat/sub-{number:02}_T1w.nii"
            path.parent.mkdir(parents=True)
            nib.save(nib.Nifti1Image(data, np.diag([3.0, 3.0, 3.0, 1.0])), path)
            years = "n/a" if age is None else age
            rows.append(f"sub-{number:02}\t{years}\t{site}\t{'patient' if number == 1 else 'hc'}")
    header = "participant_id\tage\tsite\tdiagnosis"
    write(root, "participants.tsv", "\n".join([header, *rows]) + "\n")
    return RunConfig(
        bids_dir=root, output_dir=folder / "out", work_dir=folder / "work", nprocs=1, **options
    )


def preprocess(
    config: RunConfig, shift: Mapping[str, float] | None = None, *, images: bool = False
) -> None:
    """Leave what preprocessing would; scans of a site are darker than the reference by a shift."""
    run = Run(config)
    assert run.bundle is not None
    appearance, rng = run.bundle.appearance(), np.random.default_rng(0)
    for scan in find_scans(config).scans:
        usual = appearance.expected(np.array([scan.age or 50.0]))[0]
        row, n = usual + appearance.person_sd * rng.standard_normal(), len(LEVELS)
        record = run.record_of(scan)
        names = [f"{scan.key}_space-T{end}" for end in ENDINGS[:2]]
        names += [f"{scan.key}{ENDINGS[0]}", f"{scan.key}_from-T1w_to-T{ENDINGS[2]}"]
        for name in names:
            path = write(record.parent, name)
            if images:
                _image(path)
        write_json(
            record,
            run.facts(scan)
            | {
                "inputs": run.inputs(scan),
                "status": "pass",
                "reasons": [],
                "metrics": {"brain_volume_ml": 1400.0},
                "check": {},
                "mask": {"method": "deepbet"},
                "affine": {"method": "ants"},
                "scale": {},
                "descriptors": {
                    "quantiles": (row[:n] - (shift or {}).get(scan.site, 0.1)).tolist(),
                    "texture": row[n:].tolist(),
                },
                "outputs": [
                    (record.parent / name).relative_to(config.output_dir).as_posix()
                    for name in names
                ],
            },
        )
    run.digests.save()


def _image(path: Path) -> None:
    """Put something usable in a file's place: the template, its mask, the identity."""
    template = load_template(2)
    if path.name.endswith(".txt"):
        write_affine(np.eye(4), path)
    elif "_desc-preproc_" in path.name:
        data = np.asarray(template.t1w.dataobj, np.float32)
        data = np.where(template.mask, data / np.percentile(data[template.mask], 90), 0)
        nib.save(nib.Nifti1Image(data.astype(np.float32), template.t1w.affine), path)
    elif "space-T" in path.name:
        nib.save(nib.Nifti1Image(template.mask.astype(np.uint8), template.t1w.affine), path)
    else:
        mask = np.zeros((60, 72, 60), np.uint8)
        mask[10:50, 10:60, 10:50] = 1
        nib.save(nib.Nifti1Image(mask, np.diag([3.0, 3.0, 3.0, 1.0])), path)
