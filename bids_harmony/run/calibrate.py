"""The ``calibrate`` level, and calibration of sites within the ``participant`` level.

Sites are calibrated from the records of their preprocessed scans.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony.bids.dataset import Scan, counted
from bids_harmony.bids.outputs import BIDSIGNORE
from bids_harmony.bids.records import find_records, load_record
from bids_harmony.errors import EXIT_NO_INPUT, EXIT_OK, UsageError
from bids_harmony.files import write_text
from bids_harmony.processes import side_by_side
from bids_harmony.qc.dataset import named, read_scans, scan_table
from bids_harmony.run.base import FOLDER, Run
from bids_harmony.sites.calibration import (
    Calibration,
    SiteScan,
    calibrate,
    confounded,
    write_calibrations,
)
from bids_harmony.sites.code import LEVELS, N_TEXTURE, spoken

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig
    from bids_harmony.models.bundle import Bundle
    from bids_harmony.sites.code import SiteCode

LOGGER = logging.getLogger(__name__)


def run_calibrate(config: RunConfig) -> int:
    """Calibrate each site from its preprocessed scans in the output folder.

    Returns
    -------
    int
        Exit code: 0, or 66 if no scan is preprocessed.
    """
    run, out = Run(config), config.output_dir
    if run.bundle is None:
        raise UsageError(
            "Sites cannot be calibrated with --bundle none, which has no reference site.",
            "Omit it, or give --bundle the folder of a bundle.",
        )
    sites, unusable = collect_sites(run, find_records(out))
    if unusable:
        LOGGER.warning(
            f"{counted(len(unusable), 'scan')} not used, as preprocessed by another "
            f"version, or for another bundle or template: {named(unusable)}. Run the participant "
            "level on them again."
        )
    if not sites:
        LOGGER.info(f"No preprocessed scan in {out}: run the participant level first.")
        return EXIT_NO_INPUT
    calibrate_sites(run, sites, "calibrate")
    LOGGER.info(f"Calibrations: {out / FOLDER}. The participant level harmonizes with them.")
    return EXIT_OK


def site_notes(run: Run, scans: Sequence[Scan]) -> tuple[list[str], list[str]]:
    """Return notes and warnings about the calibration that a participant run uses for each site.

    Raises
    ------
    UsageError
        If ``--calibration`` is given and has no site of the run.
    """
    if run.bundle is None:
        return [], []
    given, frozen, sites = run.config.calibration, run.frozen, {scan.site for scan in scans}
    known, missing = sorted(sites & frozen.keys()), sorted(sites - frozen.keys())
    notes, warnings = [f"Site {site}: calibrated by {frozen[site][0]}." for site in known], []
    if missing and not run.whole_dataset:
        notes.append(
            "Sites are calibrated from the selected scans only; the calibrate level uses all "
            "preprocessed scans."
        )
    if given is not None and missing:
        cause = f"{given} has no calibration of the site {', '.join(missing)}"
        if not known:
            remedy = "Give the calibration of this site, or its column by --site-column."
            raise UsageError(f"{cause}, only of {', '.join(sorted(frozen))}.", remedy)
        warnings.append(f"{cause}, which is calibrated from the scans of this run.")
    if unnamed := sum(scan.site_source == "none" for scan in scans):
        warnings.append(
            f"{unnamed} of {len(scans)} scans have no site information, and are treated as one "
            "site."
        )
    return notes, warnings


def own_sites(run: Run, scans: Iterable[Scan]) -> dict[str, list[SiteScan]]:
    """Return the preprocessed scans by site, for sites without an existing calibration."""
    return collect_sites(run, [run.record_of(s) for s in scans if s.site not in run.frozen])[0]


def collect_sites(
    run: Run, records: Iterable[Path]
) -> tuple[dict[str, list[SiteScan]], list[str]]:
    """Collect the calibration data of preprocessed scans, by site.

    Parameters
    ----------
    run : Run
        Settings of the run.
    records : iterable of pathlib.Path
        Records of scans (``desc-harmony_qc.json``).

    Returns
    -------
    sites : dict of str to list of SiteScan
        Scans by site, sorted by site. Scans whose preprocessing failed are left out.
    unusable : list of str
        Names of scans preprocessed with another version, contract or template.

    Raises
    ------
    UsageError
        If the condition of ``--fit-filter`` is invalid, or no scan of a site meets it.
    """
    out, fit_filter, found = run.config.output_dir, run.config.fit_filter, dict[Path, SiteScan]()
    wanted, unusable = (run.space, run.contract.to_dict()), []
    for path in records:
        record = load_record(path) or {}
        made = record.get("processing") or {}
        scan = _site_scan(record, out)
        if scan is not None and (made.get("template"), made.get("contract")) == wanted:
            found[path] = scan
        elif record.get("status") in ("pass", "warn"):
            unusable.append(str(record.get("name")))
    met = {scan.key for scan in found.values()}
    if fit_filter is not None and found:
        from bids_harmony.bids.filters import meets

        table = scan_table(read_scans(list(found), out))[0]
        met = set(table["scan"][meets(table, fit_filter)])
    sites: dict[str, list[SiteScan]] = {}
    for scan in sorted(found.values(), key=lambda scan: scan.site):
        sites.setdefault(scan.site, []).extend([scan] if scan.key in met else [])
    if unmet := [site for site, scans in sites.items() if not scans]:
        raise UsageError(
            f"No scan of the site {unmet[0]} meets --fit-filter {fit_filter!r}.",
            "Change the condition, or give the site a --calibration.",
        )
    return sites, unusable


def _site_scan(record: Mapping[str, Any], out: Path) -> SiteScan | None:
    """Return the calibration data in a record, or None if it has no valid descriptors."""
    descriptors = record.get("descriptors") or {}
    sizes = [len(descriptors.get(name) or ()) for name in ("quantiles", "texture")]
    outputs = record.get("outputs") or ()
    preproc = [path for path in outputs if path.endswith("_desc-preproc_T1w.nii.gz")]
    if sizes != [len(LEVELS), N_TEXTURE] or not preproc:
        return None
    return SiteScan(
        key=str(record["name"]),
        person=str(record["person"]),
        site=str(record["site"]),
        age=record.get("age"),
        diagnosis=record.get("diagnosis"),
        descriptors=descriptors,
        t1w=out / preproc[0],
    )


def calibrate_sites(
    run: Run, sites: Mapping[str, Sequence[SiteScan]], made_by: str
) -> dict[str, tuple[Path | None, Calibration]]:
    """Calibrate sites, in parallel for those where ages have to be estimated.

    The calibrations are saved unless they are made from selected scans of the dataset only.

    Parameters
    ----------
    run : Run
        Settings of the run.
    sites : mapping of str to sequence of SiteScan
        Scans by site.
    made_by : {"calibrate", "participant"}
        Analysis level that makes the calibrations.

    Returns
    -------
    dict of str to tuple
        File (None if not saved) and calibration of each site.

    Raises
    ------
    UsageError
        If ages are missing and the bundle cannot predict age.
    """
    bundle = run.bundle
    assert bundle is not None
    for warning in confounded([scan for scans in sites.values() for scan in scans]):
        LOGGER.warning(warning)
    ageless = [site for site, scans in sites.items() if any(scan.age is None for scan in scans)]
    if ageless and "brain_age" not in bundle.targets:
        raise UsageError(
            f"The site {ageless[0]} has scans without age, and the bundle {bundle.name} does not "
            "predict brain age, from which ages are estimated.",
            "Give the ages in participants.tsv, or the site a --calibration.",
        )
    work = partial(
        calibrate,
        bundle=bundle,
        predict=partial(predict_age, bundle),
        template=run.space,
        fit_filter=run.config.fit_filter,
        made_by=made_by,
    )
    calls = [(sites[site],) for site in ageless]
    new = {ageless[n]: one for n, one in side_by_side(work, calls, run.config.nprocs)}
    new = {site: new.get(site) or work(scans) for site, scans in sites.items()}
    for calibration in new.values():
        LOGGER.info(summary(calibration, bundle))
    files: dict[str, Path] = {}
    if made_by == "calibrate":
        files = save(run, new, {})
    elif run.whole_dataset and new:
        folder = run.config.output_dir / FOLDER
        files = save(run, new, {s: c for s, (p, c) in run.frozen.items() if p.parent == folder})
    return {site: (files.get(site), calibration) for site, calibration in new.items()}


def predict_age(bundle: Bundle, t1w: Path, code: SiteCode, spare: bool) -> float:
    """Predict brain age (years) from a preprocessed scan after mapping it to the reference.

    Parameters
    ----------
    bundle : Bundle
        Bundle that predicts brain age.
    t1w : pathlib.Path
        Preprocessed T1w image.
    code : SiteCode
        Code of the scan's site.
    spare : bool
        Skip the map's network, the slowest step.
    """
    import nibabel as nib
    import numpy as np

    from bids_harmony.models.apply import brain_age

    img = nib.load(t1w)
    site_map = bundle.site_map(code, spare=spare)
    return brain_age(bundle, site_map(np.asarray(img.dataobj)), img.affine)


def summary(calibration: Calibration, bundle: Bundle) -> str:
    """Return a short text on a calibration: its subjects, its effect on images, and warnings."""
    ages = calibration.ages
    years = f"of {ages['min']:.0f} to {ages['max']:.0f} years"
    if ages["source"] != "known":
        years = f"of about {ages['mean']:.0f} years ({ages['source']})"
    lines = [
        f"Site {calibration.site}: {counted(calibration.code.n, 'person')} {years}; "
        f"harmonization makes {spoken(calibration.changes(bundle))}.",
        *(f"  Warning: {warning}" for warning in calibration.warnings),
    ]
    return "\n".join(lines)


def save(
    run: Run, new: Mapping[str, Calibration], kept: Mapping[str, Calibration]
) -> dict[str, Path]:
    """Write calibrations and their HTML pages to the output folder, and delete all others there.

    Parameters
    ----------
    run : Run
        Settings of the run.
    new, kept : mapping of str to Calibration
        New calibrations by site, and those of other sites that remain.

    Returns
    -------
    dict of str to pathlib.Path
        Calibration file of each site.
    """
    from bids_harmony.reports.pages import calibration_page

    assert run.bundle is not None
    folder = run.config.output_dir / FOLDER
    files = write_calibrations(folder, [*kept.values(), *new.values()])
    pages = {site: path.with_suffix(".html") for site, path in files.items()}
    for site, calibration in {**kept, **new}.items():
        # Pages of kept calibrations stay, since they show values before rounding.
        if site in new or not pages[site].exists():
            write_text(pages[site], calibration_page(calibration, run.bundle))
    # Update .bidsignore in output folders of earlier versions.
    write_text(run.config.output_dir / ".bidsignore", BIDSIGNORE)
    for path in {*folder.glob("site-*_calibration.*")} - {*files.values(), *pages.values()}:
        path.unlink()
    return files
