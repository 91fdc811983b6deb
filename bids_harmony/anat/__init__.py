"""Anatomical preprocessing functions: input check, brain mask, registration, intensity scaling."""

from __future__ import annotations

from importlib.metadata import version

#: Software behind each brain extraction and registration method.
TOOLS = {
    "deepbet": "deepbet",
    "multi-atlas": "antspyx",
    "bet": "FSL",
    "ants": "antspyx",
    "flirt": "FSL",
}


def tool_versions(skull_strip: str, registration: str) -> dict[str, str]:
    """Return the versions of the software a run uses, without importing it.

    Parameters
    ----------
    skull_strip : {"deepbet", "multi-atlas", "bet", "skip"}
        Brain extraction method.
    registration : {"ants", "flirt"}
        Affine registration method.

    Returns
    -------
    dict
        Version by software name, sorted by name. nipype, torch and nilearn are always included.
    """
    used = {TOOLS[method] for method in (skull_strip, registration) if method in TOOLS}
    # nipype runs the workflow, torch the networks, and nilearn provides the template.
    return {tool: _version(tool) for tool in sorted(used | {"nipype", "torch", "nilearn"})}


def made_by(method: str) -> dict[str, str]:
    """Return the ``tool`` and ``version`` of a method; empty if it needs no other software."""
    tool = TOOLS.get(method)
    return {"tool": tool, "version": _version(tool)} if tool else {}


def _version(tool: str) -> str:
    """Return the version of FSL or of a Python package, without the local label (``+cpu``)."""
    if tool == "FSL":
        from bids_harmony.anat.fsl import fsl_version

        return fsl_version()
    return version(tool).partition("+")[0]
