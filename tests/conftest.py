"""Shared fixtures. Tests run side by side, so every library keeps to one thread."""

from __future__ import annotations

import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[_name] = "1"
os.environ["NO_ET"] = os.environ["NIPYPE_NO_ET"] = "1"
os.environ["TEMPLATEFLOW_HOME"] = str(
    Path(__file__).resolve().parents[1] / "bids_harmony" / "data" / "templateflow"
)

import pytest  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real scans; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared real scans are not here")
    return SHARED
