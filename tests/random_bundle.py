"""Small bundles with random weights, and calibrations, for tests of everything around networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_harmony.config import Contract
from bids_harmony.models.bundle import Bundle, write_bundle
from bids_harmony.models.networks import GreyMatterNetwork, SliceNetwork
from bids_harmony.qc.guard import MEASURES, limits
from bids_harmony.qc.reference import brain_histogram
from bids_harmony.sites.calibration import Calibration, SiteScan, calibrate
from bids_harmony.sites.code import LEVELS, N_TEXTURE, Appearance

BOX = [[9, 89], [11, 107]]
#: As if known truth had been missed by three per cent, and nowhere by more than 0.1.
GUARD = {
    "limits": limits(100 * [{**dict.fromkeys(MEASURES, 0.03), "harmonized_local_change": 0.1}])
}


def write_random_bundle(out: Path, *, seed: int = 0, contract: Contract | None = None) -> Bundle:
    """Write a bundle whose networks are small and untrained, for the 2 mm template grid."""
    torch.manual_seed(seed)
    years = {"mean": 45.0, "scale": 15.0}
    options: dict[str, Any] = {"channels": [4, 4, 4, 4, 4], "shape": [80, 96], "hidden": 8}
    grey = {"shape": [95, 80, 96], "cell": 8, **years}
    networks: dict[str, list[Any]] = {
        "brain_age": [SliceNetwork(**options, **years) for _ in range(2)],
        "brain_age_grey_matter": [GreyMatterNetwork(**grey)],  # type: ignore[arg-type]
        "schizophrenia": [SliceNetwork(**options)],
    }
    entries = {
        "brain_age": ("slice", options | years, ["brain_age", "brain_age-2"]),
        "brain_age_grey_matter": ("grey_matter", grey, ["brain_age_grey_matter"]),
        "schizophrenia": ("slice", options, ["schizophrenia"]),
    }
    info = {
        "name": "random",
        "version": "0",
        "reference_site": "REF",
        "sites": {"REF": {"n": 10, "age": [20.0, 80.0]}, "SRC": {"n": 4, "age": [20.0, 50.0]}},
        "contract": (contract or Contract()).to_dict(),
        "box": BOX,
        "networks": {
            name: {"kind": kind, "files": [f"{f}.safetensors" for f in files], "options": given}
            for name, (kind, given, files) in entries.items()
        },
        "map": {"kind": "intensity-mapping"},
        "targets": {
            "brain_age": {
                "networks": ["brain_age", "brain_age_grey_matter"],
                "output": "value",
                "training_data": "none (random weights)",
                "training_range": [20.0, 80.0],
                "interval": {"half_width": 12.0, "level": 0.9, "n": 10},
            },
            "schizophrenia_probability": {
                "networks": ["schizophrenia"], "output": "logit", "training_data": "simulated",
            },
        },
        "metrics": {},
        "training": {},
        "licences": [],
        "intended_use": "Tests.",
    }  # fmt: skip
    flat = brain_histogram(np.linspace(0, 1, 64).reshape(4, 4, 4), np.ones((4, 4, 4), bool))
    texture = np.zeros(N_TEXTURE)
    expected = np.concatenate([LEVELS, texture])
    slopes = np.concatenate([0.001 * (np.array(LEVELS) - 0.5), texture])
    sd = np.full(len(expected), 0.02)
    appearance = Appearance(expected, slopes, sd, (20.0, 80.0), (0.8, 9.0), 45.0, 10)
    tables = {
        "qc_reference.json": {"metrics": {}, "histograms": {"REF": flat}},
        "guard.json": GUARD,
        "appearance.json": appearance.to_dict(),
    }
    return write_bundle(out, info, networks, tables)


def made_calibration(bundle: Bundle, shift: float = -0.05) -> Calibration:
    """Calibrate a site whose scans are darker by ``shift`` than the reference's at each age."""
    appearance, n = bundle.appearance(), len(LEVELS)
    ages = np.linspace(*appearance.ages, 8)
    scans = []
    for i, (age, row) in enumerate(zip(ages.tolist(), appearance.expected(ages), strict=True)):
        descriptors = {"quantiles": row[:n] + shift, "texture": row[n:]}
        scans.append(SiteScan(f"sub-{i}", f"{i}", "SRC", age, None, descriptors, Path()))
    return calibrate(scans, bundle, predict=None, template=bundle.contract.template)
