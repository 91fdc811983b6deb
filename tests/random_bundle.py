"""Small bundles with random weights: for tests of everything around the networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_harmony.contract import Contract
from bids_harmony.models.bundle import Bundle, write_bundle
from bids_harmony.models.generators import ResidualGenerator
from bids_harmony.models.networks import SliceNetwork
from bids_harmony.qc.guard import calibrate
from bids_harmony.qc.harmonization import brain_histogram
from bids_harmony.qc.style import FEATURES, StyleReference

BOX = [[9, 89], [11, 107]]


def write_random_bundle(out: Path, *, seed: int = 0, contract: Contract | None = None) -> Bundle:
    """Write a bundle whose networks are small and untrained, for the 2 mm template grid."""
    torch.manual_seed(seed)
    forward = ResidualGenerator([8, 8], bins=4, around=1)
    torch.nn.init.normal_(forward.head.weight, std=0.02)
    backward = ResidualGenerator([8, 8], n_sites=1)
    options = {"channels": [4, 4, 4, 4, 4], "shape": [80, 96], "hidden": 8}
    age_options = {**options, "mean": 45.0, "scale": 15.0}
    networks: dict[str, list[Any]] = {
        "harmonizer": [forward],
        "backward": [backward],
        "brain_age": [SliceNetwork(**age_options) for _ in range(2)],
        "schizophrenia": [SliceNetwork(**options)],
    }
    info = {
        "name": "random",
        "version": "0",
        "reference_site": "REF",
        "sites": {"REF": {"n": 10, "age": [20.0, 80.0]}, "SRC": {"n": 4, "age": [20.0, 50.0]}},
        "contract": (contract or Contract()).to_dict(),
        "box": BOX,
        "networks": {
            "harmonizer": {
                "kind": "residual",
                "files": ["harmonizer.safetensors"],
                "options": {"channels": [8, 8], "bins": 4, "around": 1},
            },
            "backward": {
                "kind": "residual",
                "files": ["backward.safetensors"],
                "options": {"channels": [8, 8], "n_sites": 1},
                "sites": ["SRC"],
            },
            "brain_age": {
                "kind": "slice",
                "files": ["brain_age.safetensors", "brain_age-2.safetensors"],
                "options": age_options,
            },
            "schizophrenia": {
                "kind": "slice",
                "files": ["schizophrenia.safetensors"],
                "options": options,
            },
        },
        "targets": {
            "brain_age": {
                "network": "brain_age",
                "output": "value",
                "training_data": "none (random weights)",
                "training_range": [20.0, 80.0],
                "interval": {"half_width": 12.0, "level": 0.9, "n": 10},
            },
            "schizophrenia_probability": {
                "network": "schizophrenia",
                "output": "logit",
                "training_data": "simulated",
            },
        },
        "metrics": {},
        "training": {},
        "licences": [],
        "intended_use": "Tests.",
    }
    flat = brain_histogram(np.linspace(0, 1, 64).reshape(4, 4, 4), np.ones((4, 4, 4), bool))
    reference = {"metrics": {}, "histograms": {"REF": flat}}
    style = StyleReference.fit(
        np.array([[0.5] * len(FEATURES), [0.3] * len(FEATURES)]), ["REF", "SRC"]
    )
    guard = {"limits": calibrate([]), "style": style.to_dict()}
    return write_bundle(out, info, networks, {"qc_reference.json": reference, "guard.json": guard})
