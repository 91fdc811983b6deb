"""Python API: load a bundle, calibrate a site, harmonize a scan and predict.

Scans are preprocessed nibabel images (``*_desc-preproc_T1w.nii.gz`` of the participant level): on
the template grid of the bundle's contract, with CSF 0, white matter 1 and background exactly 0.

Examples
--------
Calibrate a site, then harmonize its first scan and predict from it:

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
from bids_harmony.models.networks import (
    middle_slices,
    predict_slices,
    predict_value,
    slice_heights,
)
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
    """Estimate the site code of a site from its scans.

    More persons give a more reliable calibration.

    Parameters
    ----------
    images : sequence of nibabel.spatialimages.SpatialImage
        Preprocessed scans of one site.
    bundle : Bundle
        Bundle that defines the reference, see :func:`load_bundle`.
    masks : sequence of nibabel.spatialimages.SpatialImage, optional
        Brain masks that include surface CSF, on the same grid. If None, voxels above 0.
    ages : sequence of float or None, optional
        Ages in years. Unknown ages (None) are estimated with the bundle's brain age predictor.
    persons : sequence of str, optional
        Person of each scan; each person counts once. If None, each scan is of a different person.
    site : str
        Site label.

    Returns
    -------
    Calibration
        Input of :func:`harmonize`. Its ``warnings`` describe possible problems.
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
        Preprocessed scan.
    bundle : Bundle
        Bundle that ``calibration`` was made with.
    calibration : Calibration
        Calibration of the scan's site.
    device : str
        PyTorch device.

    Returns
    -------
    nibabel.Nifti1Image
        float32 image on the same grid; background exactly 0.
    """
    volume = np.asarray(image.dataobj)
    site_map = replace(bundle.site_map(calibration.code, device), curve=calibration.mapping)
    mapped = np.where(volume > 0, site_map(volume), np.float32(0))
    return nib.Nifti1Image(mapped, image.affine, image.header)


def brain_age(bundle: Bundle, volume: np.ndarray, affine: np.ndarray) -> float:
    """Predict brain age (years) of a volume on the template grid from every fourth slice."""
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
        Preprocessed scan.
    bundle : Bundle
        Bundle whose predictors were trained on the reference site.
    harmonized : nibabel.spatialimages.SpatialImage, optional
        The same scan after :func:`harmonize`; None if not harmonized.
    age : float, optional
        Chronological age in years, for the brain age gap.
    site : str, optional
        Site of the scan, to report whether the bundle was trained on it.
    calibration : Calibration, optional
        Calibration that ``harmonized`` was made with; its identity is reported.
    correct_age_bias : bool
        Whether to add brain age gaps corrected for the age bias at the reference site.
    device : str
        PyTorch device.

    Returns
    -------
    dict
        One object per target (design.md §5) and the bundle's identity. Missing values are None.
        The 90 % interval is empirical: it holds 90 % of the errors on scans of the reference site
        by networks that were not trained on them. It does not guarantee coverage, least of all if
        harmonization leaves a site offset.
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
    """Return prediction intervals before and after harmonization."""
    raw, harmonized = (
        None if entry[kind] is None else [round(entry[kind] + side, 2) for side in (-half, half)]
        for kind in ("raw", "harmonized")
    )
    return {"interval_90": harmonized or raw, "interval_90_raw": raw}


def _gaps(
    entry: dict[str, Any], spec: dict[str, Any], age: float | None, corrected: bool
) -> dict[str, Any]:
    """Return brain age gaps, and whether the age is in the range of the training data."""
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
