"""Run a bundle's networks on one scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_harmony.models.bundle import Bundle
from bids_harmony.models.slices import crop, middle_slices, predictor_input, slice_heights
from bids_harmony.sites.calibration import Calibration

if TYPE_CHECKING:
    from torch import nn


def harmonize_volume(
    bundle: Bundle,
    volume: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    calibration: Calibration,
    *,
    device: str = "cpu",
) -> np.ndarray:
    """Map a volume to the reference site.

    Parameters
    ----------
    bundle : Bundle
        The one that ``calibration`` was made with.
    volume : numpy.ndarray
        3-D volume on the template grid as :func:`bids_harmony.anat.intensity.normalize` makes
        it (white matter 1, background 0).
    mask : numpy.ndarray
        Boolean brain mask of the same shape.
    affine : numpy.ndarray
        4 x 4 affine of the template grid.
    calibration : Calibration
        Of the scan's site.
    device : str
        torch device.

    Returns
    -------
    numpy.ndarray
        float32 volume of the same shape, exactly 0 outside the mask.
    """
    site_map = replace(bundle.site_map(calibration.code, device), curve=calibration.mapping)
    return np.where(mask, site_map(volume), np.float32(0))


def predict_slices(
    ensembles: Sequence[Sequence[nn.Module]],
    volume: np.ndarray,
    affine: np.ndarray,
    box: tuple[tuple[int, int], tuple[int, int]],
    slice_mm: tuple[float, float],
    device: str = "cpu",
    step: int = 1,
) -> np.ndarray:
    """Predict from a volume, slice by slice.

    Networks on slices say how the slices differ, and all ensembles together what their median is.

    Parameters
    ----------
    ensembles : sequence of sequence of torch.nn.Module
        Networks on slices and, where there are any, on whole scans. What they predict is the mean
        over ensembles; within an ensemble, networks are averaged, and slices have their median.
    volume : numpy.ndarray
        3-D preprocessed volume on the template grid.
    affine : numpy.ndarray
        4 x 4 affine of that grid.
    box, slice_mm
        Of the bundle and its contract.
    device : str
        torch device.
    step : int
        Take every ``step``-th slice only.

    Returns
    -------
    numpy.ndarray
        Years, or the logit of a probability, of every ``step``-th slice of
        :func:`bids_harmony.models.slices.middle_slices`; their median is the prediction.
    """
    import torch

    from bids_harmony.models.networks import GreyMatterNetwork, repeatable

    chosen = middle_slices(volume.shape[2], affine, slice_mm)[::step]
    heights = slice_heights(volume.shape[2], affine)[chosen]
    whole = crop(volume, box).astype(np.float32)
    slices, medians = np.zeros(len(chosen)), []
    with repeatable():
        for members in ensembles:
            alone = isinstance(members[0], GreyMatterNetwork)
            inputs = whole[None] if alone else predictor_input(whole[chosen], heights)
            x = torch.from_numpy(inputs).to(device)
            values = np.mean([member(x).double().cpu().numpy() for member in members], axis=0)
            medians.append(float(np.median(values)))
            slices = slices if alone else values
    return np.asarray(slices + np.mean(medians) - np.median(slices))


def predict_value(*args: Any, **kwargs: Any) -> float:
    """Predict one value from a volume: the median of :func:`predict_slices`."""
    return float(np.median(predict_slices(*args, **kwargs)))


def brain_age(bundle: Bundle, volume: np.ndarray, affine: np.ndarray) -> float:
    """Predict one scan's brain age quickly, from every fourth slice.

    Parameters
    ----------
    bundle : Bundle
        One that predicts brain age.
    volume : numpy.ndarray
        3-D preprocessed volume on the template grid.
    affine : numpy.ndarray
        4 x 4 affine of that grid.
    """
    ensembles, slice_mm = bundle.ensembles("brain_age"), bundle.contract.slice_mm
    return predict_value(ensembles, volume, affine, bundle.box, slice_mm, step=4)


def predict_scan(
    bundle: Bundle,
    raw: np.ndarray,
    harmonized: np.ndarray | None,
    affine: np.ndarray,
    *,
    age: float | None = None,
    site: str | None = None,
    calibration: Calibration | None = None,
    correct_age_bias: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Predict every target of a bundle from a scan before and after harmonization.

    Parameters
    ----------
    bundle : Bundle
        Its predictors were trained in the reference domain.
    raw : numpy.ndarray
        Preprocessed volume on the template grid, background 0.
    harmonized : numpy.ndarray or None
        The same scan after :func:`harmonize_volume`; None when it was not harmonized.
    affine : numpy.ndarray
        4 x 4 affine of the template grid.
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
    volumes = {"raw": raw, "harmonized": harmonized}
    heights = slice_heights(raw.shape[2], affine)
    slice_mm = bundle.contract.slice_mm
    chosen = heights[middle_slices(raw.shape[2], affine, slice_mm)]
    result: dict[str, Any] = {}
    for target, spec in bundle.targets.items():
        entry: dict[str, Any] = {}
        per_slice: dict[str, Any] = {"z_mm": [float(z) for z in chosen]}
        digits = 4 if spec["output"] == "logit" else 2
        for kind, volume in volumes.items():
            if volume is None:
                entry[kind] = per_slice[kind] = None
                continue
            values = predict_slices(
                bundle.ensembles(target, device), volume, affine, bundle.box, slice_mm, device
            )
            if spec["output"] == "logit":
                values = 1 / (1 + np.exp(-values))
            entry[kind] = round(float(np.median(values)), digits)
            per_slice[kind] = [round(float(v), digits) for v in values]
        if "interval" in spec:
            entry |= _interval_entries(entry, spec)
        if target == "brain_age":
            entry |= _age_entries(entry, spec, age, correct_age_bias)
        if "classes" in spec:
            entry["probability_of"] = spec["classes"][1]
        last = per_slice["raw"] if harmonized is None else per_slice["harmonized"]
        middle = np.median(last)
        entry["slice_mad"] = round(float(np.median(np.abs(np.array(last) - middle))), digits)
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


def _interval_entries(entry: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    half = float(spec["interval"]["half_width"])
    extra: dict[str, Any] = {}
    for kind, name in (("harmonized", "interval_90"), ("raw", "interval_90_raw")):
        value = entry[kind]
        extra[name] = None if value is None else [round(value - half, 2), round(value + half, 2)]
    if extra["interval_90"] is None:
        extra["interval_90"] = extra["interval_90_raw"]
    return extra


def _age_entries(
    entry: dict[str, Any], spec: dict[str, Any], age: float | None, corrected: bool
) -> dict[str, Any]:
    extra: dict[str, Any] = {"unit": "years"}
    bias = spec.get("age_bias") if corrected else None
    for kind in ("raw", "harmonized"):
        value = entry[kind]
        gap = None if value is None or age is None else round(value - age, 2)
        extra[f"gap_{kind}"] = gap
        if bias is not None:
            usual = bias["intercept"] + bias["slope"] * (age or 0)
            extra[f"gap_corrected_{kind}"] = None if gap is None else round(gap - usual, 2)
    if bias is not None:
        extra["age_bias"] = bias
    low, high = spec["training_range"]
    extra["age_in_training_range"] = None if age is None else bool(low <= age <= high)
    return extra
