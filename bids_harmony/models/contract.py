"""The preprocessing contract: what a network may assume about the volumes it is given."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any

from bids_harmony.errors import BundleError

#: Method of a mask or an affine: the tool that runs it.
MAKERS = {
    "deepbet": "deepbet",
    "multi-atlas": "antspyx",
    "bet": "FSL",
    "ants": "antspyx",
    "flirt": "FSL",
}
#: In every run: what runs the steps, what the networks run on, whose template it is.
ALWAYS = ("nipype", "torch", "nilearn")


@dataclass(frozen=True)
class Contract:
    """How scans are preprocessed before a network sees them (design.md §3).

    A bundle stores the contract it was trained under; ``--skull-strip auto`` and
    ``--registration auto`` mean "as the contract says".

    Attributes
    ----------
    skull_strip : str
        Brain mask method for scans that still have a skull.
    registration : str
        Affine registration method.
    template : str
        BIDS label of the template space.
    resolution : int
        Isotropic voxel size of the template grid, in mm (the ``res-`` entity).
    shading_order : int
        Order of the polynomial by which the bias field is removed; 0 switches it off.
    grey : float
        Value of grey matter in scaled volumes; CSF is 0 and white matter 1.
    slice_mm : tuple of float
        z range, in template mm, of the axial slices the predictors see (science.md §1b).
    """

    skull_strip: str = "deepbet"
    registration: str = "ants"
    template: str = "MNI152NLin2009aSym"
    resolution: int = 2
    shading_order: int = 3
    grey: float = 0.55
    slice_mm: tuple[float, float] = (-28.0, 52.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as JSON-ready values."""
        return asdict(self) | {"slice_mm": list(self.slice_mm)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Contract:
        """Build a contract from :meth:`to_dict`'s values, refusing unknown and missing keys."""
        names = {field.name for field in fields(cls)}
        if wrong := names ^ set(values):
            raise BundleError(
                f"The bundle's preprocessing contract does not fit this version: {sorted(wrong)}.",
                "Use a bundle made with this version, or the version the bundle names.",
            )
        return cls(**{**values, "slice_mm": tuple(values["slice_mm"])})


def tool_versions(skull_strip: str, registration: str) -> dict[str, str]:
    """Name the tools of a run with their versions, without importing any of them.

    Parameters
    ----------
    skull_strip : {"deepbet", "multi-atlas", "bet", "skip"}
        How brains are found.
    registration : {"ants", "flirt"}
        How they are registered.

    Returns
    -------
    dict
        Name to version, in order of the names.
    """
    makers = {MAKERS[method] for method in (skull_strip, registration) if method in MAKERS}
    return {name: version_of(name) for name in sorted({*ALWAYS, *makers})}


def made_by(method: str) -> dict[str, str]:
    """Name the tool of one method: ``tool`` and ``version``, or nothing where it needs none."""
    if method not in MAKERS:
        return {}
    return {"tool": MAKERS[method], "version": version_of(MAKERS[method])}


def version_of(tool: str) -> str:
    """Version of ``FSL`` or of a Python package, without the build's label (``+cpu``)."""
    if tool == "FSL":
        from bids_harmony.anat.fsl import fsl_version

        return fsl_version()
    return version(tool).partition("+")[0]
