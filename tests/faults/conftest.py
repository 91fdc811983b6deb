"""What the tests of faults share: two simulated heads, and what comes of them undisturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import OPTIONS, harmony


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated heads of two sites, at 2 mm."""
    from bids_harmony.simulation.dataset import simulate_dataset

    out = tmp_path_factory.mktemp("heads") / "bids"
    simulate_dataset(out, n_sites=2, n_subjects=1, seed=5, resolution=2.0)
    return out


def processed(heads: Path, name: str, *options: object) -> Path:
    """Outputs of a run without any fault."""
    out = heads.parent / name
    ran = harmony(heads, out, "participant", "-w", f"{out}-work", *OPTIONS, *options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return out


@pytest.fixture(scope="session")
def undisturbed(heads: Path) -> Path:
    """Outputs of both heads."""
    return processed(heads, "out")


@pytest.fixture(scope="session")
def first_alone(heads: Path) -> Path:
    """Outputs of the first head alone, whose site is calibrated without a file."""
    return processed(heads, "first", "--participant-label", "01")
