"""Anatomical preprocessing as plain functions: check, brain mask, affine, intensity."""

from __future__ import annotations

from importlib.metadata import version

#: Tool that runs each method of brain masks and registrations.
TOOLS = {
    "deepbet": "deepbet",
    "multi-atlas": "antspyx",
    "bet": "FSL",
    "ants": "antspyx",
    "flirt": "FSL",
}


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
    used = {TOOLS[method] for method in (skull_strip, registration) if method in TOOLS}
    # What runs the steps, what the networks run on, and whose template it is.
    return {tool: _version(tool) for tool in sorted(used | {"nipype", "torch", "nilearn"})}


def made_by(method: str) -> dict[str, str]:
    """Name the tool of one method: ``tool`` and ``version``, or nothing where it needs none."""
    tool = TOOLS.get(method)
    return {"tool": tool, "version": _version(tool)} if tool else {}


def _version(tool: str) -> str:
    """Version of FSL or of a Python package, without the build's label (``+cpu``)."""
    if tool == "FSL":
        from bids_harmony.anat.fsl import fsl_version

        return fsl_version()
    return version(tool).partition("+")[0]
