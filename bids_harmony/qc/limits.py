"""Limits beyond which a registration has failed and the scan must not be used.

Where the limits come from: 151 good affine registrations (three scanners, ages 19 to 82, one brain
with ventricles three times the usual size), and registrations made to fail on four of those
heads, by turning them by up to 180 degrees, and by masks moved by 3 to 6 cm, cut in half or grown
by 2 cm, each followed by the real registration:

=====================  ==================  ===============================================
metric                 good                failed
=====================  ==================  ===============================================
``template_ncc``       0.62 to 0.77;       at most 0.30
                       0.47 for the brain
                       with large
                       ventricles
``template_dice``      0.925 to 0.964      at most 0.79 where the correlation alone was
                                           good (mask far too large), else up to 0.96
=====================  ==================  ===============================================

Starting from a good registration, the correlation falls to the limit at about 10 mm of shift or
15 degrees of turn. A mirrored brain is like its original in every measure of likeness; only the
affine's determinant, negative then, tells.
"""

from __future__ import annotations

from collections.abc import Mapping

from bids_harmony.errors import ScanError

#: Metric: (lowest, highest) value of a registration that may be used; None is no limit.
REGISTRATION_LIMITS: dict[str, tuple[float | None, float | None]] = {
    "template_ncc": (0.36, None),
    "template_dice": (0.85, None),
    "affine_determinant": (0.30, 1.60),
    "affine_scale_x": (0.60, 1.40),
    "affine_scale_y": (0.60, 1.40),
    "affine_scale_z": (0.60, 1.40),
}

_WORDS = {
    "template_ncc": "its correlation with the template",
    "template_dice": "the overlap of its brain mask with the template's",
    "affine_determinant": "the volume ratio of head and template",
    "affine_scale_x": "the left-right size of the head relative to the template",
    "affine_scale_y": "the back-front size of the head relative to the template",
    "affine_scale_z": "the bottom-top size of the head relative to the template",
}


def registration_problems(metrics: Mapping[str, float | None]) -> list[str]:
    """Say in plain words why a registration cannot be used; nothing if it can.

    Parameters
    ----------
    metrics : mapping
        Values of :func:`bids_harmony.qc.metrics.scan_metrics`.

    Returns
    -------
    list of str
        One reason for each limit passed; a metric that could not be computed counts as passed.
    """
    problems = []
    for name, (low, high) in REGISTRATION_LIMITS.items():
        value = metrics.get(name)
        if value is None:
            problems.append(f"{_WORDS[name]} could not be computed")
        elif low is not None and value < low:
            problems.append(f"{_WORDS[name]} is {value:.2f}, below the limit of {low:.2f}")
        elif high is not None and value > high:
            problems.append(f"{_WORDS[name]} is {value:.2f}, above the limit of {high:.2f}")
    return problems


def check_registration(metrics: Mapping[str, float | None], name: str) -> None:
    """Stop a scan whose registration failed.

    Parameters
    ----------
    metrics : mapping
        Values of :func:`bids_harmony.qc.metrics.scan_metrics`.
    name : str
        The scan's name, for the message.

    Raises
    ------
    ScanError
        When a limit is passed.
    """
    if problems := registration_problems(metrics):
        raise ScanError(
            f"The registration of {name} to the template failed: {'; '.join(problems)}.",
            "Look at the brain mask and the orientation of the scan; a mask given through "
            "--derivatives or another --skull-strip or --registration method may help.",
        )
