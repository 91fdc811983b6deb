"""What the tests of faults share: what comes of the two simulated heads undisturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import OPTIONS, harmony


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
