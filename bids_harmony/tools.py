"""The tools that make masks and affines, and the versions that results depend on."""

from __future__ import annotations

from importlib.metadata import version

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
