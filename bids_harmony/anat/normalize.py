"""From a native scan to the volume the networks see: one resampling, one mask, one scaling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_harmony.anat.affine import resample
from bids_harmony.anat.intensity import normalize
from bids_harmony.anat.template import Template
from bids_harmony.contract import Contract


@dataclass(frozen=True)
class NormalizedScan:
    """A scan on the template grid.

    Attributes
    ----------
    volume : nibabel.Nifti1Image
        What the networks see: float32, scaled, background exactly 0.
    mask : numpy.ndarray
        Boolean mask of the volume's foreground.
    brain_mask : numpy.ndarray
        The brain mask as it was found, before fluid at its surface was left out.
    unscaled : nibabel.Nifti1Image
        The resampled scan before masking and scaling.
    record : dict
        Scaling values, JSON-ready.
    """

    volume: nib.Nifti1Image
    mask: np.ndarray
    brain_mask: np.ndarray
    unscaled: nib.Nifti1Image
    record: dict[str, Any]


def normalize_scan(
    img: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    transform: str | Path,
    template: Template,
    contract: Contract,
) -> NormalizedScan:
    """Resample a scan once onto the template grid, mask it and scale it.

    Parameters
    ----------
    img, mask : nibabel.Nifti1Image
        Native RAS scan and its brain mask.
    transform : path-like
        ITK text transform from the scan to the template.
    template : Template
        Its grid is the result's.
    contract : Contract
        The bundle's preprocessing contract.
    """
    unscaled = resample(img, template.t1w, transform, antialias=True)
    moved = resample(mask, template.t1w, transform)
    brain_mask = np.asarray(moved.dataobj) > 0.5
    data, final_mask, record = normalize(
        np.asarray(unscaled.dataobj),
        brain_mask,
        contract,
        float(template.t1w.header.get_zooms()[0]),
    )
    volume = nib.Nifti1Image(data, unscaled.affine, unscaled.header)
    return NormalizedScan(volume, final_mask, brain_mask, unscaled, record)
