"""Where a scan's outputs go, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bids_harmony.bids import Scan


@dataclass(frozen=True)
class Places:
    """Where a scan comes from, and where its outputs go.

    Attributes
    ----------
    inputs : dict
        Inputs of :class:`bids_harmony.interfaces.outputs.SaveOutputs`.
    source_uri : str
        The raw scan as a BIDS URI, for the ``Sources`` of the sidecars.
    figures : str
        Path of the figures up to the ``desc`` entity.
    """

    inputs: dict[str, str]
    source_uri: str
    figures: str


def places(scan: Scan, bids_dir: str, output_dir: str, staging_dir: str) -> Places:
    """Say where a scan comes from, and where its outputs go."""
    figures = Path(staging_dir) / f"sub-{scan.entities['subject']}" / "figures" / scan.key
    return Places(
        inputs={
            "source_file": str(scan.path),
            "staging_dir": staging_dir,
            "output_dir": output_dir,
        },
        source_uri=f"bids:raw:{scan.path.relative_to(bids_dir).as_posix()}",
        figures=str(figures),
    )


def grid_names(space: str, resolution: int, template: str | None) -> dict[str, str]:
    """Name the template grid in the name and the sidecar of an image."""
    names = {"space": space, "resolution": str(resolution)}
    return names if template is None else {**names, "SpatialReference": Path(template).name}
