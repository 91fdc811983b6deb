"""The ``calibrate`` level, and calibration of sites within the ``participant`` level.

Sites are calibrated from the records of their preprocessed scans.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony.bids.dataset import counted
from bids_harmony.bids.outputs import BIDSIGNORE
from bids_harmony.bids.records import find_records, load_record
from bids_harmony.errors import EXIT_NO_INPUT, EXIT_OK, UsageError
from bids_harmony.files import write_text
from bids_harmony.processes import side_by_side
from bids_harmony.qc.dataset import named, read_scans, scan_table
from bids_harmony.sites.calibration import (
    Calibration,
    SiteScan,
    calibrate,
    confounded,
    read_calibrations,
    write_calibrations,
)
from bids_harmony.sites.code import LEVELS, N_TEXTURE, spoken

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig
    from bids_harmony.models.bundle import Bundle
    from bids_harmony.sites.code import SiteCode

LOGGER = logging.getLogger(__name__)

#: Folder of calibrations in the output folder.
FOLDER = "calibration"


@dataclass(frozen=True)
class Chosen:
    """A calibration used by a run, and its file (None if not saved)."""

    calibration: Calibration
    path: Path | None

    def identity(self, out: Path, bundle: Bundle) -> dict[str, Any]:
        """Return the identity of the calibration for a scan's record.

        Parameters
        ----------
        out : pathlib.Path
            Output folder. The calibration's path is included if it is inside.
        bundle : Bundle
            Bundle of the run.
        """
        named = {
            **self.calibration.identity(),
            "sources": self.calibration.sources,
            "changes": self.calibration.changes(bundle),
        }
        if self.path is not None and self.path.is_relative_to(out):
            named["path"] = self.path.relative_to(out).as_posix()
        return named


def asked_bundle(config: RunConfig) -> Bundle | None:
    """Load the bundle of ``--bundle``; return None for ``none``."""
    if config.bundle == "none":
        return None
    from bids_harmony.models.bundle import load_bundle

    return load_bundle(None if config.bundle == "default" else Path(config.bundle))


def run_calibrate(config: RunConfig) -> int:
    """Calibrate each site from its preprocessed scans in the output folder.

    Returns
    -------
    int
        Exit code: 0, or 66 if no scan is preprocessed.
    """
    from bids_harmony.anat.template import template_label

    bundle = asked_bundle(config)
    if bundle is None:
        raise UsageError("--bundle none has no reference to calibrate sites to.", "Leave it out.")
    space = template_label(None if config.template is None else str(config.template))
    out = config.output_dir
    sites, unusable = collect_sites(find_records(out), config, bundle, space)
    if unusable:
        LOGGER.warning(
            f"{counted(len(unusable), 'scan')} not used, as preprocessed by another "
            f"version, or for another bundle or template: {named(unusable)}. Run the participant "
            "level on them again."
        )
    if not sites:
        LOGGER.info(f"No preprocessed scan in {out}: run the participant level first.")
        return EXIT_NO_INPUT
    if config.dry_run:
        n_scans = counted(sum(map(len, sites.values())), "scan")
        LOGGER.info(f"{counted(len(sites), 'site')} would be calibrated, from {n_scans}.")
        return EXIT_OK
    for warning in confounded([scan for scans in sites.values() for scan in scans]):
        LOGGER.warning(warning)
    found = calibrate_sites(sites, config, bundle, space)
    save(out, found.values(), bundle)
    for calibration in found.values():
        LOGGER.info(summary(calibration, bundle))
    LOGGER.info(f"Calibrations: {out / FOLDER}. The participant level harmonizes with them.")
    return EXIT_OK


def collect_sites(
    records: Iterable[Path], config: RunConfig, bundle: Bundle, space: str
) -> tuple[dict[str, list[SiteScan]], list[str]]:
    """Collect the calibration data of preprocessed scans, by site.

    Parameters
    ----------
    records : iterable of pathlib.Path
        Records of scans (``desc-harmony_qc.json``).
    config : RunConfig
        Options of the run, including ``fit_filter``.
    bundle : Bundle
        Bundle of the run.
    space : str
        Space label of the template.

    Returns
    -------
    sites : dict of str to list of SiteScan
        Scans by site, sorted by site. Scans whose preprocessing failed are left out.
    unusable : list of str
        Names of scans preprocessed with another version, contract or template.

    Raises
    ------
    UsageError
        If the condition of ``fit_filter`` is invalid, or no scan of a site meets it.
    """
    out, fit_filter = config.output_dir, config.fit_filter
    found: dict[Path, SiteScan] = {}
    unusable = []
    for path in records:
        record = load_record(path) or {}
        made = record.get("processing") or {}
        scan = _site_scan(record, out)
        same = (made.get("template"), made.get("contract")) == (space, bundle.contract.to_dict())
        if scan is not None and same:
            found[path] = scan
        elif record.get("status") in ("pass", "warn"):
            unusable.append(str(record.get("name")))
    sites: dict[str, list[SiteScan]] = {scan.site: [] for scan in found.values()}
    met = {scan.key for scan in found.values()}
    if fit_filter is not None and found:
        from bids_harmony.bids.filters import meets

        table = scan_table(read_scans(list(found), out))[0]
        met = set(table["scan"][meets(table, fit_filter)])
    for scan in found.values():
        if scan.key in met:
            sites[scan.site].append(scan)
    if unmet := [site for site, scans in sites.items() if not scans]:
        raise UsageError(
            f"No scan of the site {unmet[0]} meets --fit-filter {fit_filter!r}.",
            "Change the condition, or give the site a --calibration.",
        )
    return dict(sorted(sites.items())), unusable


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
    sites: Mapping[str, Sequence[SiteScan]],
    config: RunConfig,
    bundle: Bundle,
    space: str,
    made_by: str = "calibrate",
) -> dict[str, Calibration]:
    """Calibrate sites, in parallel for those where ages have to be estimated.

    Raises
    ------
    UsageError
        If ages are missing and the bundle cannot predict age.
    """
    work = partial(
        calibrate,
        bundle=bundle,
        predict=partial(predict_age, bundle),
        template=space,
        fit_filter=config.fit_filter,
        made_by=made_by,
    )
    ageless = [site for site, scans in sites.items() if any(scan.age is None for scan in scans)]
    if ageless and "brain_age" not in bundle.targets:
        raise UsageError(
            f"The site {ageless[0]} has scans without age, and the bundle {bundle.name} predicts "
            "none to estimate it by.",
            "Give the ages in participants.tsv, or the site a --calibration.",
        )
    calls = [(sites[site],) for site in ageless]
    found = {ageless[n]: one for n, one in side_by_side(work, calls, config.nprocs)}
    return {site: found.get(site) or work(scans) for site, scans in sites.items()}


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


def find_calibrations(config: RunConfig, bundle: Bundle, space: str) -> dict[str, Chosen]:
    """Read the existing calibrations to use without recomputing them, by site.

    Those given by ``--calibration`` take precedence over those saved in the output folder by the
    ``calibrate`` level.

    Raises
    ------
    UsageError
        If a calibration cannot be used.
    """
    folder, found = config.output_dir / FOLDER, {}
    if any(folder.glob("site-*_calibration.json")):
        found = read_calibrations(folder, bundle, space, made_by="calibrate")
    if config.calibration is not None:
        found |= read_calibrations(config.calibration, bundle, space)
    return {site: Chosen(calibration, path) for site, (path, calibration) in found.items()}


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
    out: Path, calibrations: Iterable[Calibration], bundle: Bundle, stay: Collection[str] = ()
) -> dict[str, Path]:
    """Write calibrations and their HTML pages to the output folder, and delete outdated ones.

    Parameters
    ----------
    out : pathlib.Path
        Output folder.
    calibrations : iterable of Calibration
        New calibrations, one per site.
    bundle : Bundle
        Bundle they were made with.
    stay : collection of str
        Sites whose existing calibration is kept unless there is a new one; those of all other
        sites are deleted.

    Returns
    -------
    dict of str to pathlib.Path
        Calibration file of each site.
    """
    from bids_harmony.reports.pages import calibration_page

    folder, new = out / FOLDER, {one.site: one for one in calibrations}
    before = {path: load_record(path) or {} for path in folder.glob("site-*_calibration.json")}
    there: dict[str, Calibration] = {
        site: Calibration.from_dict(values)
        for values in before.values()
        if (site := str(values.get("site"))) in stay and site not in new
    }
    files = write_calibrations(folder, [*there.values(), *new.values()])
    for site, calibration in {**there, **new}.items():
        # Pages of kept calibrations stay, since they show values before rounding.
        if site in new or files[site] not in before:
            write_text(files[site].with_suffix(".html"), calibration_page(calibration, bundle))
    # Update .bidsignore in output folders of earlier versions.
    write_text(out / ".bidsignore", BIDSIGNORE)
    for path in before.keys() - set(files.values()):
        path.unlink()
        path.with_suffix(".html").unlink(missing_ok=True)
    return files
