"""Add a site to a bundle: fit one code of the backward map, and leave all else as it is.

The forward map takes no site and already works on the new one. What is fitted says how to come
back from the reference to it (science.md §10, few-shot): the anatomy guard's cycle error and the
distance to the training sites then know the site.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bids_harmony.bids import counted
from bids_harmony.errors import UsageError
from bids_harmony.models.bundle import Bundle, write_bundle
from bids_harmony.models.generators import INPUT_CHANNELS, Generator, build_generator
from bids_harmony.models.slices import slice_input
from bids_harmony.qc.style import StyleReference
from bids_harmony.reports.modelcard import card_html, model_card
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.evaluate import measure_looks
from bids_harmony.training.losses import masked_l1
from bids_harmony.training.predictors import INTERVAL
from bids_harmony.training.presets import FAST
from bids_harmony.training.sampling import LEAST_BRAIN
from bids_harmony.training.splits import TEST, TRAIN, VALIDATION
from bids_harmony.training.stored import as_stored

#: A code of 16 numbers needs few steps; its learning rate is that of nothing else.
STEPS, BATCH, LEARNING_RATE = 300, 8, 0.02
#: Slices on which the fit is measured.
N_MEASURED = 32
MIN_SCANS = 2


def add_site(
    bundle: Bundle,
    data: TrainingSet,
    scans: np.ndarray,
    site: str,
    out: Path,
    *,
    name: str,
    steps: int = STEPS,
    seed: int = 42,
    say: Callable[[str], None] = print,
) -> Bundle:
    """Fit a new site's code on its scans and write the bundle that knows it.

    Parameters
    ----------
    bundle : Bundle
        It stays as it is.
    data : TrainingSet
        Scans preprocessed by the bundle's contract.
    scans : numpy.ndarray
        Numbers of the new site's scans.
    site : str
        Name of the new site.
    out : pathlib.Path
        Folder of the new bundle.
    name : str
        Name of the new bundle.
    steps, seed : int
        Optimiser steps, and seed of the slices drawn.
    say : callable
        Takes a line of progress.

    Returns
    -------
    Bundle

    Raises
    ------
    UsageError
        When the bundle has no backward map with codes, knows the site, or scans are too few.
    """
    networks = bundle.networks()
    info = copy.deepcopy({k: v for k, v in bundle.info.items() if k not in ("format", "files")})
    described = info["networks"].get("backward", {})
    if described.get("kind") != "residual" or not described["options"].get("embedding", 16):
        raise UsageError(
            f"The backward map of the bundle {bundle.name} has no codes a site could be added to.",
            "Train a bundle with --preset fast.",
        )
    if site in info["sites"]:
        raise UsageError(
            f"The bundle {bundle.name} already knows the site {site}.",
            f"Its sites: {', '.join(info['sites'])}.",
        )
    if len(scans) < MIN_SCANS:
        raise UsageError(
            f"The site {site} has {counted(len(scans), 'preprocessed scan')}.",
            f"Adding a site needs {MIN_SCANS}: check --site-column.",
        )
    (forward,), (known,) = networks["harmonizer"], networks["backward"]
    described["options"]["n_sites"] += 1
    described["sites"].append(site)
    backward = _grown(known, described)
    record = fit_code(forward, backward, data, scans, steps=steps, seed=seed)
    say(
        f"{site}: cycle error {record['cycle_error_unknown']} as an unknown site, "
        f"{record['cycle_error']} with its code"
    )
    ages = data.ages[scans][~np.isnan(data.ages[scans])]
    info["name"] = name
    for target in info["targets"].values():
        if "interval" in target:  # bundles of 0.1.0 call theirs conformal
            target["interval"]["method"] = INTERVAL
    info["sites"][site] = {
        "n": len(scans),
        "n_validation": 0,
        "n_held_out": 0,
        "age": [round(float(ages.min()), 1), round(float(ages.max()), 1)] if len(ages) else None,
        "age_mean": round(float(ages.mean()), 1) if len(ages) else None,
    }
    info["training"].setdefault("added_sites", {})[site] = record | {"to": bundle.identity()}
    files = _files(bundle, info, data, scans, site, seed)
    return write_bundle(out, info, {**networks, "backward": [as_stored(backward)]}, files)


def _grown(known: nn.Module, described: dict[str, Any]) -> Generator:
    """Copy a backward map with room for one more site, which begins as the unknown one."""
    state = {key: value.clone() for key, value in known.state_dict().items()}
    codes = state["sites.weight"]
    state["sites.weight"] = torch.cat([codes, codes[-1:]])
    backward = build_generator(described["kind"], described["options"])
    backward.load_state_dict(state)
    return backward.requires_grad_(False)


def fit_code(
    forward: nn.Module,
    backward: Generator,
    data: TrainingSet,
    scans: np.ndarray,
    *,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Fit the code of a backward map's last site by its cycle and identity losses alone.

    Parameters
    ----------
    forward, backward : torch.nn.Module
        The backward map's last code but one, the last known site, is changed in place.
    data : TrainingSet
        Scans.
    scans : numpy.ndarray
        Those of the new site.
    steps, seed : int
        As of :func:`add_site`.

    Returns
    -------
    dict
        ``n``, ``steps``, ``seed``, and the mean absolute cycle error inside the mask, on slices
        of the same scans, with the unknown site's code and with the new one.
    """
    rng = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    number = backward.n_sites - 1
    assert isinstance(backward.sites, nn.Embedding)
    codes: Tensor = backward.sites.weight
    codes.requires_grad_(True)
    only = torch.zeros_like(codes)
    only[number] = 1
    handle = codes.register_hook(lambda gradient: gradient * only)  # type: ignore[no-untyped-call]
    optimiser = torch.optim.Adam([codes], LEARNING_RATE)
    fixed = _draw(data, scans, forward, N_MEASURED, np.random.default_rng(seed + 1))
    unknown = _losses(backward, fixed, number + 1)[0].item()
    for step in range(steps):
        x, mapped = _draw(data, scans, forward, BATCH, rng)
        shaken = FAST.cycle_noise * torch.randn(mapped.shape, generator=noise) * x[:, 1:2]
        cycle, same = _losses(backward, (x, mapped + shaken), number)
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        optimiser.zero_grad()
        (FAST.cycle * cycle + FAST.identity * same).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    handle.remove()
    backward.requires_grad_(False)
    return {
        "n": len(scans),
        "steps": steps,
        "seed": seed,
        "cycle_error_unknown": round(unknown, 5),
        "cycle_error": round(_losses(backward, fixed, number)[0].item(), 5),
    }


@torch.no_grad()
def _draw(
    data: TrainingSet, scans: np.ndarray, forward: nn.Module, n: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw slices with enough brain, as the backward map's input, and map them forward."""
    chosen = rng.choice(scans, n)
    numbers = np.array([rng.choice(np.flatnonzero(_usable(data, i))) for i in chosen])
    images, masks = data.slices(chosen, numbers, int(forward.around))  # type: ignore[arg-type]
    x = torch.from_numpy(slice_input(images, masks, data.heights[numbers]))
    return x[:, :INPUT_CHANNELS], forward(x)


def _usable(data: TrainingSet, scan: int) -> np.ndarray:
    filled = data.filled[scan]
    return np.asarray(filled >= min(LEAST_BRAIN, filled.max()))


def _losses(backward: nn.Module, pair: tuple[Tensor, Tensor], site: int) -> tuple[Tensor, Tensor]:
    """Cycle and identity loss of slices and their forward mapping."""
    x, mapped = pair
    told = torch.full((2 * len(x),), site)
    both = torch.cat([torch.cat([mapped, x[:, 1:]], dim=1), x])
    back, same = backward(both, told).chunk(2)
    return masked_l1(back, x[:, :1], x[:, 1:2]), masked_l1(same, x[:, :1], x[:, 1:2])


def _files(
    bundle: Bundle,
    info: dict[str, Any],
    data: TrainingSet,
    scans: np.ndarray,
    site: str,
    seed: int,
) -> dict[str, dict[str, Any] | str]:
    """Carry the bundle's tables over, with how the new site's scans look."""
    looks = measure_looks(data, scans, site, seed, bundle.contract.grey)
    reference = bundle.qc_reference()
    reference["histograms"][site] = looks.histograms[site]
    files: dict[str, dict[str, Any] | str] = {"qc_reference.json": reference}
    guard = bundle.guard()
    if guard is not None:
        style = StyleReference.from_dict(guard["style"])
        style.sites[site] = looks.style.sites[site]
        guard["style"] = style.to_dict()
        files["guard.json"] = guard
        card = model_card(info, guard)
        files |= {"model_card.json": card, "model_card.html": card_html(card)}
    if "splits.json" in bundle.info["files"]:
        splits = json.loads((bundle.path / "splits.json").read_text(encoding="utf-8"))
        subjects = sorted({str(s).split("/", 1)[1] for s in data.subjects[scans]})
        splits[site] = {TRAIN: subjects, VALIDATION: [], TEST: []}
        files["splits.json"] = splits
    return files
