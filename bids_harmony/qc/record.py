"""The record of one scan, ``<key>_desc-harmony_qc.json``: what tables and reports are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bids_harmony.qc.verdict import dictionary, judge

#: What preprocessing finds out, from which a scan is harmonized.
PREPROCESSED = ("check", "mask", "affine", "scale", "metrics", "descriptors")
#: What a record holds beside the facts, which are known before anything is computed.
RESULTS = frozenset((*PREPROCESSED, "flagged", "guard", "outputs", "input_sha256"))
#: Endings of the outputs of preprocessing.
ENDINGS = (
    "_desc-brain_mask.nii.gz", "_desc-preproc_T1w.nii.gz", "_mode-image_xfm.txt",
    "_desc-brainmask_T1w.png", "_desc-norm_T1w.png",
)  # fmt: skip


def scan_record(
    facts: Mapping[str, Any],
    *,
    check: Mapping[str, Any],
    mask: Mapping[str, Any],
    affine: Mapping[str, Any] | None = None,
    scale: Mapping[str, Any],
    metrics: Mapping[str, float | None],
    descriptors: Mapping[str, Any] | None = None,
    reference: Mapping[str, Any] | None = None,
    guard: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Put together what is known of a scan that went its whole way.

    Parameters
    ----------
    facts : mapping
        What was known before anything was computed: ``name``, ``entities``, ``source`` (path in
        the dataset), ``site``, ``site_source``, ``age``, ``sex``, ``diagnosis``, ``scanner``,
        ``warnings``, ``processing``, ``bundle`` (``name``, ``version``, ``sha256`` or None),
        ``calibration`` and ``harmonization`` (options; None where there is no bundle, or the scan
        is not yet harmonized), ``inputs`` (SHA-256 of each file that the results depend on).
        They stand in the record unchanged.
    check, mask, affine, scale : mapping
        Records of the check, brain mask, registration and intensity steps. ``mask`` and
        ``affine`` have ``method`` and, where a tool ran, ``tool``, ``version`` and, for FSL's,
        ``command``; ``mask`` of a scan that was stripped before has ``detected``. The ``notes``
        of each become warnings.
    metrics : mapping
        Values of :func:`bids_harmony.qc.metrics.scan_metrics`, with those of
        :func:`bids_harmony.qc.guard.measure` where there is a bundle.
    descriptors : mapping, optional
        Of :func:`bids_harmony.sites.code.describe`.
    reference : mapping, optional
        The bundle's ``qc_reference.json``.
    guard : mapping, optional
        :func:`bids_harmony.qc.guard.guard_record` of a scan that was harmonized.
    outputs : sequence of str
        Files written for the scan, relative to the output folder.
    warnings : sequence of str
        What was found on the way, beside the warnings in ``facts``.

    Returns
    -------
    dict
        JSON-ready: ``facts`` and ``status`` ("pass" or "warn"), ``reasons``, ``flagged`` (names
        of the metrics out of range), ``guard``, ``metrics``, ``check``, ``mask``, ``affine``,
        ``scale``, ``descriptors``, ``outputs``, ``input_sha256``, ``warnings``. What the
        guard found is among the reasons, and makes the status "warn": a map that fails says
        nothing against the scan.
    """
    verdict = judge(metrics, reference)
    reasons = [*verdict.reasons, *(guard or {}).get("reasons", ())]
    affine = affine or {}
    notes = [str(note) for step in (check, mask, affine) for note in step.get("notes", ())]
    return {
        **facts,
        "status": "warn" if reasons else "pass",
        "reasons": reasons,
        "flagged": [*verdict.flagged, *(guard or {}).get("flagged", ())],
        "guard": None if guard is None else dict(guard),
        "metrics": dict(metrics),
        "check": dict(check),
        "mask": dict(mask),
        "affine": dict(affine),
        "scale": dict(scale),
        "descriptors": dict(descriptors or {}),
        "outputs": sorted(outputs),
        "input_sha256": (facts.get("inputs") or {}).get("T1w"),
        "warnings": [*facts.get("warnings", ()), *notes, *warnings],
    }


def preprocessed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Take out of a scan's record what stays where it is harmonized again.

    Parameters
    ----------
    record : mapping
        Of a scan that was preprocessed, whatever came after.

    Returns
    -------
    dict
        :data:`PREPROCESSED`, and ``outputs``, those of preprocessing alone.
    """
    known = dictionary()
    found = {name: record[name] for name in PREPROCESSED}
    found["metrics"] = {
        name: value
        for name, value in record["metrics"].items()
        if known.get(name, {}).get("Group") != "Harmonization"
    }
    found["outputs"] = [path for path in record["outputs"] if path.endswith(ENDINGS)]
    return found


def failed_record(
    facts: Mapping[str, Any], cause: str, remedy: str = "", crash_file: str | None = None
) -> dict[str, Any]:
    """Put together what is known of a scan that could not be finished.

    Parameters
    ----------
    facts : mapping
        As for :func:`scan_record`, with what :func:`preprocessed` takes out of the record of a
        scan whose harmonization failed.
    cause, remedy : str
        One sentence each.
    crash_file : str, optional
        Name of the crash file among the run's logs.

    Returns
    -------
    dict
        ``facts``, ``status`` "error", ``reasons`` (the cause) and ``error`` with ``cause``,
        ``remedy`` and ``crash_file``.
    """
    return {
        **facts,
        "status": "error",
        "reasons": [cause],
        "error": {"cause": cause, "remedy": remedy, "crash_file": crash_file},
        "warnings": list(facts.get("warnings", ())),
    }
