"""What follows training: choose the maps, set the guard's limits, measure, write the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_harmony import __version__
from bids_harmony.console import counted_off
from bids_harmony.models.bundle import Bundle, write_bundle
from bids_harmony.qc.guard import calibrate
from bids_harmony.qc.verdict import reference_statistics
from bids_harmony.reports.modelcard import card_html, model_card
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.evaluate import (
    Looks,
    Measured,
    Models,
    measure_looks,
    measure_scan,
    summarize_changes,
    target_figures,
)
from bids_harmony.training.harmonizer import Harmonizer
from bids_harmony.training.predictors import Predictor
from bids_harmony.training.select import choose_checkpoint
from bids_harmony.training.splits import TEST, TRAIN, VALIDATION, splits_record
from bids_harmony.training.stored import as_stored

INTENDED_USE = (
    "Research on T1-weighted scans of adults. Brain age and every probability describe how a "
    "scan looks to a network trained on few scans of one scanner; they are no diagnosis."
)
#: Scans of each site, at most, that the guard's limits are set on, and that the ways without a map
#: are measured on besides the test scans.
MAX_CALIBRATION = 100


@dataclass(frozen=True)
class Trained:
    """What training gave, for the bundle.

    Attributes
    ----------
    data : TrainingSet
        All scans.
    split : numpy.ndarray
        (scans,) ``train``, ``validation`` or ``test``.
    fit : numpy.ndarray
        (scans,) whether ``--fit-filter`` lets the maps be fitted on a scan.
    overlap : dict
        Of :func:`bids_harmony.training.overlap.covariate_overlap`.
    reference : str
        Reference site.
    predictors : dict of str to Predictor
        By target.
    harmonizer : Harmonizer
        The maps and their checkpoints.
    """

    data: TrainingSet
    split: np.ndarray
    fit: np.ndarray
    overlap: dict[str, Any]
    reference: str
    predictors: dict[str, Predictor]
    harmonizer: Harmonizer

    @property
    def fitted(self) -> np.ndarray:
        """Numbers of the scans the maps were fitted on."""
        return np.flatnonzero((self.split == TRAIN) & self.fit)


def finish_bundle(
    trained: Trained,
    out: Path,
    options: TrainOptions,
    licences: Sequence[str],
    say: Callable[[str], None],
) -> Bundle:
    """Choose a checkpoint, set the guard's limits, measure on held-out scans, write the bundle.

    Parameters
    ----------
    trained : Trained
        What training gave.
    out : pathlib.Path
        Folder of the bundle.
    options : TrainOptions
        What the user chose.
    licences : sequence of str
        Under which the scans were given.
    say : callable
        Takes a line of progress.
    """
    data, split, reference = trained.data, trained.split, trained.reference
    grey, seed = options.contract.grey, options.seed

    # 1. The maps, with the weights as stored; what they are not fitted on does not choose them.
    harmonizer = trained.harmonizer
    fitted = np.where(trained.fit, split, TEST)
    step, candidates = choose_checkpoint(
        data, fitted, reference, harmonizer.steps, harmonizer.candidate,
        grey=grey, seed=seed, say=say,
    )  # fmt: skip
    say(f"the maps after step {step} are kept")
    harmonizer.choose(step)
    models = Models(
        as_stored(harmonizer.forward),
        as_stored(harmonizer.backward),
        harmonizer.sites,
        data.box,
        options.contract.slice_mm,
        grey,
        {name: list(p.members) for name, p in trained.predictors.items()},
    )

    # 2. The guard's limits, on validation scans alone: test scans have no say in them.
    looks = measure_looks(data, trained.fitted, reference, seed, grey)
    measured = _measure(trained, models, looks, seed, say)
    judging = [measured[i].changes for i in measured if split[i] == VALIDATION]
    guard = {"limits": calibrate(judging), "n": len(judging), "style": looks.style.to_dict()}

    # 3. Figures on test scans, which chose nothing.
    test = np.flatnonzero(split == TEST)
    tested = {i: found for i, found in measured.items() if split[i] == TEST}
    metrics: dict[str, Any] = {"images": summarize_changes(data, tested)}
    for name, predictor in trained.predictors.items():
        metrics[name] = dict(predictor.metrics)
        if predictor.truth is not None:
            metrics[name]["sites"] = target_figures(
                data, test, measured, name, predictor.truth, reference,
                binary=predictor.binary, seed=seed, say=say,
                half_width=predictor.target.get("interval", {}).get("half_width"),
            )  # fmt: skip

    # 4. The bundle.
    info = {
        "name": options.model_name,
        "version": __version__,
        "reference_site": reference,
        "sites": {
            str(s): _describe_site(trained, str(s)) for s in np.unique(data.sites[trained.fitted])
        },
        "contract": options.contract.to_dict(),
        "box": [list(side) for side in data.box],
        "networks": _describe_networks(trained),
        "targets": {
            name: {"network": name, **predictor.target}
            for name, predictor in trained.predictors.items()
        },
        "metrics": metrics,
        "training": {
            "options": options.to_dict(),
            "overlap": trained.overlap,
            "harmonizer": {**harmonizer.record, "chosen_step": step, "candidates": candidates},
        },
        "licences": list(licences),
        "intended_use": INTENDED_USE,
    }
    card = model_card(info, guard)
    files: dict[str, dict[str, Any] | str] = {
        "qc_reference.json": {
            "metrics": _metric_statistics(trained),
            "histograms": looks.histograms,
        },
        "guard.json": guard,
        "splits.json": splits_record(data, split),
        "model_card.json": card,
        "model_card.html": card_html(card),
    }
    networks: dict[str, list[Any]] = {
        "harmonizer": [models.forward], "backward": [models.backward], **models.predictors,
    }  # fmt: skip
    return write_bundle(out, info, networks, files)


def _measure(
    trained: Trained, models: Models, looks: Looks, seed: int, say: Callable[[str], None]
) -> dict[int, Measured]:
    """Measure all test scans, validation scans for the guard, and the source sites' others."""
    rng = np.random.default_rng(seed)
    wanted = []
    for site in np.unique(trained.data.sites):
        parts = (VALIDATION,) if site == trained.reference else (VALIDATION, TRAIN)
        wanted.append(np.flatnonzero((trained.data.sites == site) & (trained.split == TEST)))
        for part in parts:
            here = np.flatnonzero((trained.data.sites == site) & (trained.split == part))
            wanted.append(rng.permutation(here)[:MAX_CALIBRATION])
    scans = np.sort(np.concatenate(wanted))
    say(f"measuring {len(scans)} scans")
    return {
        int(i): measure_scan(trained.data, int(i), models, looks, trained.reference)
        for i in counted_off(scans, len(scans), "measuring", say)
    }


def _metric_statistics(trained: Trained) -> dict[str, Any]:
    """Statistics of the QC metrics of scans that were not held out."""
    data = trained.data
    return reference_statistics(
        {
            str(site): [
                data.table["metrics"][i]
                for i in np.flatnonzero((data.sites == site) & (trained.split != TEST))
            ]
            for site in np.unique(data.sites)
        }
    )


def _describe_networks(trained: Trained) -> dict[str, Any]:
    harmonizer = trained.harmonizer
    described: dict[str, Any] = {
        "harmonizer": {**harmonizer.forward_config, "files": ["harmonizer.safetensors"]},
        "backward": {
            **harmonizer.backward_config,
            "files": ["backward.safetensors"],
            "sites": harmonizer.sites,
        },
    }
    for name, predictor in trained.predictors.items():
        numbers = range(1, len(predictor.members) + 1)
        files = [f"{name}-{number}.safetensors" for number in numbers]
        described[name] = {**predictor.network, "files": files}
    return described


def _describe_site(trained: Trained, site: str) -> dict[str, Any]:
    """Count the scans a site gave to the maps, and those held out of everything."""
    data, split = trained.data, trained.split
    here = data.sites == site
    used = here & trained.fit & (split != TEST)
    ages = data.ages[used]
    known = ages[~np.isnan(ages)]
    return {
        "n": int(used.sum()),
        "n_validation": int((used & (split == VALIDATION)).sum()),
        "n_held_out": int((here & (split == TEST)).sum()),
        "n_held_out_persons": len(np.unique(data.persons[here & (split == TEST)])),
        "age": [round(float(known.min()), 1), round(float(known.max()), 1)]
        if len(known)
        else None,
        "age_mean": round(float(known.mean()), 1) if len(known) else None,
    }
