"""Which scans are completed, and the processing that the others still need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bids_harmony.bids.dataset import Scan
from bids_harmony.bids.records import PREPROCESSED, load_record, preprocessed
from bids_harmony.run.base import Run
from bids_harmony.run.calibrate import own_sites
from bids_harmony.sites.calibration import sources_digest

#: Processing that a scan needs; ``preprocess`` includes harmonizing.
PREPROCESS, HARMONIZE, NOTHING = "preprocess", "harmonize", "nothing"
#: Notes of the dry run on scans that have a record (recipes parse the last one).
NOTES = {
    PREPROCESS: "completed before with other inputs or options",
    HARMONIZE: "preprocessed before, to be harmonized",
    NOTHING: "completed, nothing to do",
}
#: Keys of facts that preprocessing does not depend on.
LATER = frozenset({"warnings", "bundle", "calibration", "harmonization"})


def survey(run: Run, scans: Sequence[Scan]) -> dict[str, str]:
    """Return the processing that each scan needs, by scan key.

    Returns
    -------
    dict of str to str
        :data:`PREPROCESS` (followed by harmonization), :data:`HARMONIZE` (only) or
        :data:`NOTHING`.
    """
    records = {scan.key: load_record(run.record_of(scan)) or {} for scan in scans}
    raw = {scan.key for scan in scans if not is_preprocessed(run, scan, records[scan.key])}
    # Sites with scans still to be preprocessed will be calibrated anew.
    anew = {scan.site for scan in scans if scan.key in raw}
    known = {} if run.bundle is None else identities(run, [s for s in scans if s.site not in anew])
    states = {}
    for scan in scans:
        states[scan.key] = PREPROCESS if scan.key in raw or run.bundle is None else HARMONIZE
        if scan.key not in raw and is_completed(run, records[scan.key], known.get(scan.site)):
            states[scan.key] = NOTHING
    return states


def is_preprocessed(run: Run, scan: Scan, record: Mapping[str, Any]) -> bool:
    """Return whether a scan was preprocessed from the same inputs with the same settings.

    The facts in its record must agree with the run's, and all outputs must exist. The inputs are
    compared last, since computing their checksums may require reading the files.
    """
    if not record.keys() >= {*PREPROCESSED, "outputs"}:
        return False
    facts = json.loads(json.dumps(run.facts(scan)))
    return (
        {name: value for name, value in facts.items() if name not in LATER}.items()
        <= record.items()
        and outputs_exist(run, preprocessed(record))
        and record.get("inputs") == run.inputs(scan)
    )


def is_completed(run: Run, record: Mapping[str, Any], identity: Mapping[str, Any] | None) -> bool:
    """Return whether a preprocessed scan is completed with the run's settings.

    Parameters
    ----------
    run : Run
        Settings of the run.
    record : mapping
        The scan's record.
    identity : mapping or None
        Known part of the identity of its site's calibration; None if the site is to be calibrated
        anew.
    """
    if record.get("status") == "error" or not outputs_exist(run, record):
        return False
    if run.bundle is None or identity is None:
        return run.bundle is None and record.get("bundle") is None
    calibration = record.get("calibration") or {}
    found = {**record, "calibration": {name: calibration.get(name) for name in identity}}
    wanted = json.loads(json.dumps(run.harmonization(identity)))
    return bool(wanted.items() <= found.items())


def outputs_exist(run: Run, record: Mapping[str, Any]) -> bool:
    """Return whether all outputs that a record lists exist."""
    return all((run.config.output_dir / path).exists() for path in record["outputs"])


def identities(run: Run, scans: Sequence[Scan]) -> dict[str, dict[str, Any]]:
    """Return the calibration values expected in records of completed scans, by site."""
    assert run.bundle is not None
    found = {site: run.identity(*frozen) for site, frozen in run.frozen.items()}
    for site, group in own_sites(run, scans).items():
        sources = sources_digest(group, run.bundle, run.space, run.config.fit_filter)
        found[site] = {"made_by": "participant", "sources": sources}
    return found
