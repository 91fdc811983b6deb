"""Made-up records of scans, as tests of the group level need them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bids_harmony.qc.dataset import ScanRow, scan_table
from bids_harmony.qc.outliers import Outliers, find_outliers

#: Metrics with their typical value and its spread; they share a cause, as real ones do.
TYPICAL = {
    "brain_volume_ml": (1400.0, 120.0),
    "affine_scale_x": (0.91, 0.03),
    "template_dice": (0.955, 0.005),
    "template_ncc": (0.72, 0.015),
    "centroid_offset_mm": (1.0, 0.3),
    "snr_wm": (14.0, 1.0),
    "noise": (0.022, 0.002),
    "efc": (0.52, 0.03),
    "csf_fraction": (0.2, 0.03),
    "gm_fraction": (0.49, 0.03),
}


def made_metrics(rng: np.random.Generator, **odd: float | None) -> dict[str, float | None]:
    """Metrics of a scan; ``odd`` are given as they are."""
    shared = rng.standard_normal()
    values: dict[str, float | None] = {
        name: float(f"{middle + spread * (0.5 * shared + 0.85 * rng.standard_normal()):.5g}")
        for name, (middle, spread) in TYPICAL.items()
    }
    return values | odd


def made_row(
    scan: str, site: str, metrics: dict[str, float | None], status: str = "pass", **facts: Any
) -> ScanRow:
    """What the records of a scan say."""
    numbers = {k: np.nan if v is None else v for k, v in metrics.items()}
    rows = {"guard_reasons", "problem"} & set(facts)
    extra = {name: facts.pop(name) for name in rows}
    values = {"scan": scan, "site": site, "qc_status": status, **numbers, **facts}
    return ScanRow(values, metrics=tuple(metrics), **extra)


def made_site(site: str, n: int, seed: int = 0, **shift: float) -> list[ScanRow]:
    """Scans of one site, shifted in some metrics, as by a scanner."""
    rng = np.random.default_rng([seed, n])
    found = []
    for i in range(n):
        metrics = made_metrics(rng)
        metrics |= {name: metrics[name] + by for name, by in shift.items()}  # type: ignore[operator]
        found.append(made_row(f"sub-{site}{i:03d}", site, metrics))
    return found


def outliers_of(rows: list[ScanRow], reference: Any = None) -> Outliers:
    """Find the outliers among scans."""
    return find_outliers(scan_table(rows)[0], rows, reference)


def write_scan(
    out: Path, key: str, site: str | None, metrics: Any, *, predicted: bool = False, **record: Any
) -> Path:
    """Write a scan's record; where it was ``predicted``, it lists the predictions' file."""
    subject = key.split("_")[0]
    session = next((part for part in key.split("_") if part.startswith("ses-")), "")
    folder = out / subject / session / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}_desc-harmony_qc.json"
    values = {
        "name": key, "status": "pass", "reasons": [], "site": site, "age": 40.0, "sex": "F",
        "diagnosis": None, "scanner": {"Manufacturer": "Siemens", "MagneticFieldStrength": 3},
        "check": {"voxel_size_mm": [1.0, 1.0, 1.2]}, "metrics": metrics, "guard": None,
        "bundle": None, "outputs": [], **record,
    }  # fmt: skip
    if predicted:
        name = path.name.replace("_qc", "_predictions")
        values["outputs"].append(path.with_name(name).relative_to(out).as_posix())
    path.write_text(json.dumps(values))
    return path
