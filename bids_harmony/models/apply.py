"""The package in four functions: load a bundle, calibrate a site, harmonize a scan, predict.

Scans are nibabel images as the participant level leaves them (``*_desc-preproc_T1w.nii.gz``): on
the template grid of the bundle's contract, CSF 0, white matter 1, background exactly 0.

Examples
--------
Harmonize the scans of a site, and predict from the first:

>>> import nibabel as nib
>>> from bids_harmony import calibrate, harmonize, load_bundle, predict
>>> bundle = load_bundle()
>>> images = [nib.load(path) for path in paths]
>>> calibration = calibrate(images, bundle, ages=[34, 61, 47], site="SITE-B")
>>> harmonized = harmonize(images[0], bundle, calibration)
>>> nib.save(harmonized, "harmonized.nii.gz")
>>> found = predict(images[0], bundle, harmonized=harmonized, age=34)
>>> found["brain_age"]["harmonized"]  # doctest: +SKIP
36.2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from bids_harmony.models.bundle import Bundle, load_bundle
from bids_harmony.models.networks import predict_slices, predict_value
from bids_harmony.models.slices import middle_slices, slice_heights
from bids_harmony.sites import calibration as sites
from bids_harmony.sites.calibration import Calibration, SiteScan
from bids_harmony.sites.code import SiteCode, describe

__all__ = ["Bundle", "Calibration", "calibrate", "harmonize", "load_bundle", "predict"]


def calibrate(
    images: Sequence[SpatialImage],
    bundle: Bundle,
    *,
    masks: Sequence[SpatialImage] | None = None,
    ages: Sequence[float | None] | None = None,
    persons: Sequence[str] | None = None,
    site: str = "site",
) -> Calibration:
    """Estimate the code of a site from its scans; the more persons, the surer.

    Parameters
    ----------
    images : sequence of nibabel.spatialimages.SpatialImage
        Preprocessed scans of one site.
    bundle : Bundle
        Of :func:`load_bundle`; its reference is what the site is compared with.
    masks : sequence of nibabel.spatialimages.SpatialImage, optional
        Their brain masks, with the CSF at the surface; where the images are above 0 when None.
    ages : sequence of float or None, optional
        In years; None where unknown. Unknown ages are estimated by the bundle's brain age.
    persons : sequence of str, optional
        Whose scans they are: each person counts once. All of different persons when None.
    site : str
        Name of the site.

    Returns
    -------
    Calibration
        For :func:`harmonize`. Its ``warnings`` say what to keep in mind.
    """
    scans = []
    for i, image in enumerate(images):
        volume = np.asarray(image.dataobj)
        inside = volume if masks is None else np.asarray(masks[i].dataobj)
        age = None if ages is None else ages[i]
        person = str(i) if persons is None else persons[i]
        found = describe(volume, inside > 0, float(abs(image.affine[0, 0])))
        scans.append(SiteScan(f"{i:06}", person, site, age, None, found, image))

    def predict_age(image: Any, code: SiteCode, spare: bool) -> float:
        mapped = bundle.site_map(code, spare=spare)(np.asarray(image.dataobj))
        return brain_age(bundle, mapped, image.affine)

    template = bundle.contract.template
    return sites.calibrate(scans, bundle, predict=predict_age, template=template)


def harmonize(
    image: SpatialImage, bundle: Bundle, calibration: Calibration, *, device: str = "cpu"
) -> nib.Nifti1Image:
    """Map a scan to the reference site.

    Parameters
    ----------
    image : nibabel.spatialimages.SpatialImage
        A preprocessed scan.
    bundle : Bundle
        The one that ``calibration`` was made with.
    calibration : Calibration
        Of the scan's site.
    device : str
        torch device.

    Returns
    -------
    nibabel.Nifti1Image
        float32 on the same grid; background exactly 0.
    """
    volume = np.asarray(image.dataobj)
    site_map = replace(bundle.site_map(calibration.code, device), curve=calibration.mapping)
    mapped = np.where(volume > 0, site_map(volume), np.float32(0))
    return nib.Nifti1Image(mapped, image.affine, image.header)


def brain_age(bundle: Bundle, volume: np.ndarray, affine: np.ndarray) -> float:
    """Predict brain age quickly from a volume on the template grid: every fourth slice."""
    ensembles, slice_mm = bundle.ensembles("brain_age"), bundle.contract.slice_mm
    return predict_value(ensembles, volume, affine, bundle.box, slice_mm, step=4)


def predict(
    image: SpatialImage,
    bundle: Bundle,
    *,
    harmonized: SpatialImage | None = None,
    age: float | None = None,
    site: str | None = None,
    calibration: Calibration | None = None,
    correct_age_bias: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Predict every target of a bundle from a scan before and after harmonization.

    Parameters
    ----------
    image : nibabel.spatialimages.SpatialImage
        A preprocessed scan.
    bundle : Bundle
        Its predictors were trained in the reference domain.
    harmonized : nibabel.spatialimages.SpatialImage, optional
        The same scan by :func:`harmonize`; None when it was not harmonized.
    age : float, optional
        Chronological age, for the gap.
    site : str, optional
        The scan's site, to say whether the bundle was trained on it.
    calibration : Calibration, optional
        What ``harmonized`` was made with, to name it.
    correct_age_bias : bool
        Add gaps without the part that age alone explains at the reference site.
    device : str
        torch device.

    Returns
    -------
    dict
        One object per target (design.md §5) and the bundle's identity. Missing values are None.
        The 90 % interval is empirical, from scans of the reference site by networks that had not
        seen them: it guarantees no coverage, least of all where harmonization leaves a shift.
    """
    n_slices, affine, slice_mm = image.shape[2], image.affine, bundle.contract.slice_mm
    heights = slice_heights(n_slices, affine)[middle_slices(n_slices, affine, slice_mm)]
    result: dict[str, Any] = {}
    for target, spec in bundle.targets.items():
        logit = spec["output"] == "logit"
        digits = 4 if logit else 2
        entry: dict[str, Any] = {}
        per_slice: dict[str, Any] = {"z_mm": [float(z) for z in heights]}
        for kind, source in (("raw", image), ("harmonized", harmonized)):
            entry[kind] = per_slice[kind] = None
            if source is not None:
                values = predict_slices(
                    bundle.ensembles(target, device),
                    np.asarray(source.dataobj), affine, bundle.box, slice_mm, device,
                )  # fmt: skip
                values = 1 / (1 + np.exp(-values)) if logit else values
                entry[kind] = round(float(np.median(values)), digits)
                per_slice[kind] = [round(float(v), digits) for v in values]
        if "interval" in spec:
            entry |= _intervals(entry, float(spec["interval"]["half_width"]))
        if target == "brain_age":
            entry |= _gaps(entry, spec, age, correct_age_bias)
        if "classes" in spec:
            entry["probability_of"] = spec["classes"][1]
        last = np.array(per_slice["raw" if harmonized is None else "harmonized"])
        entry["slice_mad"] = round(float(np.median(np.abs(last - np.median(last)))), digits)
        entry["per_slice"] = per_slice
        entry["training_data"] = spec["training_data"]
        result[target] = entry
    result["in_training"] = {
        "site": None if site is None else site in bundle.info["sites"],
        "reference_site": None if site is None else site == bundle.reference_site,
    }
    result["bundle"] = bundle.identity()
    result["calibration"] = None if calibration is None else calibration.identity()
    return result


def _intervals(entry: dict[str, Any], half: float) -> dict[str, Any]:
    """Put an interval around the values before and after harmonization."""
    raw, harmonized = (
        None if entry[kind] is None else [round(entry[kind] + side, 2) for side in (-half, half)]
        for kind in ("raw", "harmonized")
    )
    return {"interval_90": harmonized or raw, "interval_90_raw": raw}


def _gaps(
    entry: dict[str, Any], spec: dict[str, Any], age: float | None, corrected: bool
) -> dict[str, Any]:
    """Subtract age from brain age, and say whether it is one that was trained on."""
    bias = spec.get("age_bias") if corrected else None
    found: dict[str, Any] = {"unit": "years"}
    for kind in ("raw", "harmonized"):
        known = entry[kind] is not None and age is not None
        gap = found[f"gap_{kind}"] = round(entry[kind] - age, 2) if known else None
        if bias is not None:
            expected = bias["intercept"] + bias["slope"] * (age or 0)
            found[f"gap_corrected_{kind}"] = round(gap - expected, 2) if known else None
    if bias is not None:
        found["age_bias"] = bias
    low, high = spec["training_range"]
    return found | {"age_in_training_range": None if age is None else bool(low <= age <= high)}
