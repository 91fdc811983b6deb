"""Train the predictors of a bundle, on the reference site only."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from bids_harmony.bids.dataset import counted
from bids_harmony.errors import UsageError
from bids_harmony.models.networks import crop
from bids_harmony.processes import side_by_side
from bids_harmony.simulation.anatomy import apply_effect
from bids_harmony.sites import statistics
from bids_harmony.training.data import TEST, VALIDATION, TrainingRun, make_folds
from bids_harmony.training.grey_matter import grey_matter_networks
from bids_harmony.training.predictor import (
    Ensemble,
    Examples,
    PredictorConfig,
    recipe_of,
)
from bids_harmony.training.storage import one_device
from bids_harmony.training.targets import SIMULATED, Target, figures, find_targets

LOGGER = logging.getLogger(__name__)

#: Range of the strength of the simulated effect in patients, and maximum number of scans, which
#: are held in memory.
STRENGTH, MAX_SIMULATED = (0.7, 1.3), 300
FOLDER = "predictors"
SIMULATED_NAME = "schizophrenia_probability"
#: Maximum slope (and inverse of the minimum) of the calibration line.
MOST_STRETCH = 2.0
INTERVAL = (
    "empirical: holds 90 % of the errors on reference persons of networks that had not seen them; "
    "what is predicted is the ensembles' mean, and no coverage is guaranteed"
)


@dataclass
class Predictor:
    """A trained predictor with its entries of ``bundle.json``.

    Attributes
    ----------
    networks : dict of str to list of torch.nn.Module
        Ensembles by name, with weights rounded to half precision. The prediction is their mean.
    entries : dict of str to dict
        Their entries of ``networks``, without file names.
    target : dict
        Entry of ``targets``, without network names.
    metrics : dict
        Metrics measured in training.
    truth : numpy.ndarray or None
        (scans,) true values of all scans, NaN if unknown; None for simulated labels.
    unseen : pandas.DataFrame or None
        Cross-validated predictions of the reference scans: ``predicted``, ``truth``, ``person``
        and ``seed``.
    """

    networks: dict[str, list[nn.Module]]
    entries: dict[str, dict[str, Any]]
    target: dict[str, Any]
    metrics: dict[str, Any]
    truth: np.ndarray | None = None
    unseen: pd.DataFrame | None = None

    @property
    def ensembles(self) -> list[list[nn.Module]]:
        """Ensembles, as input of :func:`bids_harmony.models.networks.predict_slices`."""
        return list(self.networks.values())

    @property
    def binary(self) -> bool:
        """Whether the networks predict logits."""
        return bool(self.target["output"] == "logit")


def train_predictors(
    run: TrainingRun, config: PredictorConfig | None = None, nprocs: int = 1
) -> dict[str, Predictor]:
    """Train the ensembles of all targets on the reference site.

    Parameters
    ----------
    run : TrainingRun
        Training run. Predictors of two classes also use scans that ``--fit-filter`` excludes.
    config : PredictorConfig, optional
        Architecture and optimization; the recipe of the options if None.
    nprocs : int
        Number of networks trained in parallel on the CPU, each in a single-threaded process.

    Returns
    -------
    dict of str to Predictor
        Predictors by target name.

    Raises
    ------
    UsageError
        If a target is not available; raised before training.
    """
    options, config = run.options, config or recipe_of(run.options)
    columns = [column for column in options.targets if column != SIMULATED]
    targets = find_targets(run.data, columns, run.reference, run.fit)
    ensembles = [plan_ensemble(run, target, config) for target in targets]
    if SIMULATED in options.targets:
        ensembles.append(simulated_patients(run, config))
    train_networks(ensembles, one_device(options.device), nprocs)
    predictors = {
        target.name: _finish(target, ensemble, run)
        for target, ensemble in zip(targets, ensembles, strict=False)
    }
    if SIMULATED in options.targets:
        predictors[SIMULATED_NAME] = _finish_simulated(ensembles[-1], run)
    return predictors


def train_networks(ensembles: Sequence[Ensemble], device: str, nprocs: int) -> None:
    """Train the networks of all ensembles, except those already cached."""
    calls: list[tuple[Any, ...]] = []
    for ensemble in ensembles:
        for fold, path in enumerate(ensemble.paths):
            if path.is_file():
                LOGGER.info(f"{ensemble.name}, network {fold + 1}: loaded from {path}")
            else:
                calls.append((ensemble, fold, device))
    if min(nprocs, len(calls)) > 1 and device == "cpu":
        names = [f"{ensemble.name} {fold + 1}" for ensemble, fold, _ in calls]
        deque(side_by_side(_train_on_one_thread, calls, nprocs, names), maxlen=0)
    else:
        for ensemble, fold, _ in calls:
            ensemble.train(fold, device)


def _train_on_one_thread(ensemble: Ensemble, fold: int, device: str) -> None:
    torch.set_num_threads(1)
    ensemble.train(fold, device)


def _finish(target: Target, ensemble: Ensemble, run: TrainingRun) -> Predictor:
    """Load a target's ensembles, calibrate them on their folds and compute metrics."""
    name, truth, persons = target.name, ensemble.examples.targets, ensemble.examples.persons
    networks = {name: ensemble.load()}
    entries: dict[str, dict[str, Any]] = {name: {"kind": "slice", "options": ensemble.options}}
    if ensemble.config.acquisitions and not target.binary:
        name = f"{name}_grey_matter"
        grey_options, networks[name] = grey_matter_networks(ensemble)
        entries[name] = {"kind": "grey_matter", "options": grey_options}
    predicted = [ensemble.unseen(each) for each in networks.values()]
    if not target.binary:
        for k, (name, each) in enumerate(networks.items()):
            predicted[k], entries[name]["options"] = _calibrate(
                each, entries[name]["options"], predicted[k], truth, ensemble.folds
            )
    unseen = np.mean(predicted, axis=0)
    found = figures(unseen, truth, target.binary, run.options.seed, persons)
    LOGGER.info(f"{target.name}, cross-validation: {json.dumps(found)}")
    return Predictor(
        networks,
        entries,
        _describe(target, truth, unseen, persons),
        {"folds": {**found, "networks": "those of each fold, which were trained without it"}},
        target.values,
        pd.DataFrame({"predicted": unseen, "truth": truth, "person": persons, "seed": 0}),
    )


def _calibrate(
    networks: Sequence[Any],
    options: dict[str, Any],
    unseen: np.ndarray,
    truth: np.ndarray,
    folds: np.ndarray,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Calibrate networks with a linear fit to their cross-validated predictions.

    Predictions regress to the mean: a single slice is less informative than a scan, so the median
    over slices is too close to the mean; a penalty on weights has the same effect. The fit becomes
    part of the networks. The returned predictions of each fold are calibrated on the other folds.
    """
    stretched = np.full(len(unseen), np.nan)
    for fold in np.unique(folds):
        slope, intercept = fit_line(unseen[folds != fold], truth[folds != fold])
        stretched[folds == fold] = slope * unseen[folds == fold] + intercept
    slope, intercept = fit_line(unseen, truth)
    mean, scale = slope * options["mean"] + intercept, slope * options["scale"]
    options = options | {"mean": round(mean, 3), "scale": round(scale, 3)}
    for network in networks:
        network.mean, network.scale = options["mean"], options["scale"]
    return stretched, options


def _describe(
    target: Target, values: np.ndarray, unseen: np.ndarray, persons: np.ndarray
) -> dict[str, Any]:
    """Return the entry of ``targets`` in ``bundle.json``."""
    n = len(values)
    entry: dict[str, Any] = {
        "output": "logit" if target.binary else "value",
        "training_data": f"real scans of the reference site (n = {n})",
        "column": target.column,
    }
    if target.binary:
        counts = [int((values == k).sum()) for k in (0, 1)]
        return entry | {"classes": list(target.classes), "counts": counts}
    half_width = round(empirical_half_width(unseen - values, persons), 2)
    interval: dict[str, Any] = {"half_width": half_width, "level": 0.9, "n": n}
    interval |= {"n_persons": len(np.unique(persons)), "method": INTERVAL}
    entry["training_range"] = [round(float(end), 1) for end in (values.min(), values.max())]
    bias = {"age_bias": age_bias(unseen, values)} if target.name == "brain_age" else {}
    return entry | {"interval": interval} | bias


def fit_line(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return slope and intercept that calibrate predictions to the truth by least squares.

    Parameters
    ----------
    predicted, truth : numpy.ndarray
        (scans,) values of scans that the network was not trained on.

    Returns
    -------
    slope, intercept : float
        The slope is clipped to 1/2 to 2 (:data:`MOST_STRETCH`). It is 1 if the predictions are
        constant.
    """
    slope = np.nan_to_num(statistics.fit_line(truth, predicted)[0], nan=1.0)
    slope = float(np.clip(slope, 1 / MOST_STRETCH, MOST_STRETCH))
    return slope, float(truth.mean() - slope * predicted.mean())


def empirical_half_width(
    errors: np.ndarray, persons: np.ndarray | None = None, level: float = 0.9
) -> float:
    """Compute the half-width of an empirical prediction interval from held-out errors.

    Parameters
    ----------
    errors : numpy.ndarray
        (scans,) predicted minus true values.
    persons : numpy.ndarray, optional
        (scans,) person of each scan; each person has the same total weight. If None, each scan is
        of a different person.
    level : float
        Nominal coverage, as a fraction of persons. For n persons, the half-width is the ceil((n +
        1) level)-th smallest absolute error, or the largest if n is too small.
    """
    labels = np.arange(len(errors)) if persons is None else persons
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(np.abs(errors), kind="stable")
    share = np.cumsum(1 / counts[inverse][order])
    place = int(np.searchsorted(share, (len(counts) + 1) * level - 1e-9))
    return float(np.abs(errors)[order[min(place, len(order) - 1)]])


def age_bias(predicted: np.ndarray, age: np.ndarray) -> dict[str, float]:
    """Fit the age bias of brain age: gap = intercept + slope * age (de Lange, Beheshti).

    Parameters
    ----------
    predicted, age : numpy.ndarray
        (scans,) predicted and true age in years, of scans that the network was not trained on.

    Returns
    -------
    dict
        ``slope``, ``intercept`` (years) and number of scans ``n``.
    """
    slope, intercept = np.nan_to_num(statistics.fit_line(predicted - age, age)).tolist()
    return {"slope": round(slope, 4), "intercept": round(intercept, 3), "n": len(age)}


def plan_ensemble(run: TrainingRun, target: Target, config: PredictorConfig) -> Ensemble:
    """Select scans and cross-validation folds for the networks of a target.

    Folds are split by person and balanced on age, and on class if there are two.

    Parameters
    ----------
    run : TrainingRun
        Training run.
    target : Target
        Target to predict.
    config : PredictorConfig
        Architecture and optimization.

    Raises
    ------
    UsageError
        If there are fewer persons than folds (in either class).
    """
    data, split, options = run.data, run.split, run.options
    usable = (data.sites == run.reference) & np.isfinite(target.values) & (run.fit | target.binary)
    # Only the paper's schedule needs validation scans; the default is calibrated on its folds.
    watched = np.flatnonzero(usable & (split == VALIDATION) & config.patient)
    scans = np.setdiff1d(np.flatnonzero(usable & (split != TEST)), watched)
    rng = np.random.default_rng(options.seed)
    values = target.values[scans]
    # The class of a person is that of the first scan, as in make_folds.
    first = np.unique(data.persons[scans], return_index=True)[1]
    counts = [int((values[first] == k).sum()) for k in (0, 1)] if target.binary else [len(first)]
    if min(counts) < options.folds:
        raise UsageError(
            f"The reference site has {counted(min(counts), 'person')} to train {target.name}"
            f"{' of one class' if target.binary else ''}, fewer than --folds {options.folds}.",
            "Lower --folds, or choose another --target.",
        )
    strata = target.values if target.binary else None
    folds = make_folds(data, scans, options.folds, rng, strata)[scans]
    examples, validation = (
        Examples(data, some, target.values[some], options.contract.slice_mm)
        for some in (scans, watched)
    )
    return Ensemble(target.name, examples, validation, folds, options.folds, target.binary,
                    options.seed, config, run.work_dir / FOLDER)  # fmt: skip


def simulated_patients(run: TrainingRun, config: PredictorConfig) -> Ensemble:
    """Simulate patients for training: half of the reference persons get a simulated effect.

    No imaging data of schizophrenia are public. The predicted number measures how similar a scan
    is to the simulated patients, and every output says so. The ensemble is a single network, and
    the scans of fold 0 are held out.
    """
    data, options = run.data, run.options
    scans = np.flatnonzero(data.sites == run.reference)
    scans = np.sort(np.random.default_rng(options.seed).permutation(scans)[:MAX_SIMULATED])
    held = run.split[scans] == TEST
    # Patients and controls alternate in age, in both the training and the held-out set.
    persons = data.persons[scans]
    patients: list[str] = []
    for group in (held, ~held):
        order = np.flatnonzero(group)[np.argsort(data.ages[scans][group], kind="stable")]
        patients += list(dict.fromkeys(persons[order].tolist()))[1::2]
    labels = np.isin(persons, patients).astype(float)
    examples = Examples(data, scans, labels, options.contract.slice_mm)
    rng, changed = np.random.default_rng(options.seed + 1000), {}
    for scan, label in zip(scans.tolist(), labels, strict=True):
        strength = float(rng.uniform(*STRENGTH)) if label else 0.0
        volume, mask = data.volume(scan)
        seed = options.seed + scan
        volume, _ = apply_effect(volume, mask, data.affine, strength=strength, seed=seed)
        # Other slices are never read; np.zeros allocates no memory for them.
        changed[scan] = np.zeros((len(data.heights), *data.size), np.float16)
        changed[scan][examples.numbers] = crop(volume, data.box)[examples.numbers]
    LOGGER.info(
        f"simulated schizophrenia: effect applied to {int(labels.sum())} of {len(scans)} scans"
    )
    examples = replace(examples, data=replace(data, volumes=changed))
    return Ensemble(SIMULATED_NAME, examples, None, np.where(held, 0, 1), 1, True,
                    options.seed + 1000, config, run.work_dir / FOLDER)  # fmt: skip


def _finish_simulated(ensemble: Ensemble, run: TrainingRun) -> Predictor:
    """Evaluate the network trained on simulated labels on its held-out scans."""
    held, networks = ensemble.folds == 0, ensemble.load()
    found: dict[str, Any] = {"n": 0}
    if held.any():
        score, truth = ensemble.unseen(networks)[held], ensemble.examples.targets[held]
        persons = ensemble.examples.persons[held]
        found = figures(score, truth, True, run.options.seed, persons)
    LOGGER.info(f"simulated schizophrenia, held-out scans: {json.dumps(found)}")
    return Predictor(
        {SIMULATED_NAME: networks},
        {SIMULATED_NAME: {"kind": "slice", "options": ensemble.options}},
        {
            "output": "logit",
            "training_data": "simulated",
            "note": "Labels and effect are simulated on real reference scans; not a diagnosis.",
        },
        {"held_out_simulated": {**found, "labels": "simulated"}},
    )
