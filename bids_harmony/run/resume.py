"""Which scans are completed, and the processing that the others still need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bids_harmony.bids.dataset import Scan
from bids_harmony.bids.records import PREPROCESSED, load_record, preprocessed
from bids_harmony.files import write_json
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
#: Facts that preprocessing depends on, and those from tables and sidecars, which it does not use.
PROCESSING = ("name", "entities", "source", "processing")
TABLES = ("person", "site", "site_source", "age", "sex", "diagnosis", "scanner")


def survey(run: Run, scans: Sequence[Scan], *, update: bool = False) -> dict[str, str]:
    """Return the processing that each scan needs, by scan key.

    Parameters
    ----------
    run : Run
        Settings of the run.
    scans : sequence of Scan
        Scans of the run.
    update : bool
        Whether to write to the records what the dataset's tables and sidecars now say, such as a
        corrected age. Only harmonization depends on it.

    Returns
    -------
    dict of str to str
        :data:`PREPROCESS` (followed by harmonization), :data:`HARMONIZE` (only) or
        :data:`NOTHING`.
    """
    records, raw = {}, set()
    for scan in scans:
        record = load_record(run.record_of(scan)) or {}
        facts = json.loads(json.dumps(run.facts(scan)))
        tables = {name: facts[name] for name in TABLES}
        if not is_preprocessed(run, scan, facts, record):
            raw.add(scan.key)
        elif not tables.items() <= record.items():
            record |= tables
            if run.bundle is not None:  # without one, a harmonized scan is not taken as it is
                record |= dict.fromkeys(("bundle", "calibration", "harmonization"))
            if update:
                write_json(run.record_of(scan), record)
        records[scan.key] = record
    # Sites with scans still to be preprocessed will be calibrated anew.
    anew = {scan.site for scan in scans if scan.key in raw}
    known = {} if run.bundle is None else identities(run, [s for s in scans if s.site not in anew])
    states = {}
    for scan in scans:
        states[scan.key] = PREPROCESS if scan.key in raw or run.bundle is None else HARMONIZE
        if scan.key not in raw and is_completed(run, records[scan.key], known.get(scan.site)):
            states[scan.key] = NOTHING
    return states


def is_preprocessed(
    run: Run, scan: Scan, facts: Mapping[str, Any], record: Mapping[str, Any]
) -> bool:
    """Return whether a scan was preprocessed from the same inputs with the same settings.

    The inputs are compared last, since computing their checksums may require reading the files.
    """
    if not record.keys() >= {*PREPROCESSED, "outputs"}:
        return False
    return (
        {name: facts[name] for name in PROCESSING}.items() <= record.items()
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
