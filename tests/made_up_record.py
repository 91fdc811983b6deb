"""What preprocessing leaves of a scan, as graphs of harmonization need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bids_harmony.bids.records import ENDINGS, PREPROCESSED
from bids_harmony.files import write_text

FACTS: dict[str, Any] = {
    "name": "sub-01", "age": 30.0, "bundle": {"reference_site": "REF"}, "calibration": {},
}  # fmt: skip


def preprocessed_scan(out: Path) -> dict[str, Any]:
    """Take out of a record what stays, and leave the files that it names."""
    names = [f"sub-01/anat/sub-01{ending}" for ending in ENDINGS]
    names.append("sub-01/anat/sub-01_space-T_desc-brain_mask.nii.gz")
    for name in names:
        write_text(out / name, "")
    return {**{key: {} for key in PREPROCESSED}, "outputs": names}
