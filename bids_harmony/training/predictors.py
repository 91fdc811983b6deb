"""The predictors of a bundle: brain age, and schizophrenia on simulated labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_harmony.models.networks import SliceNetwork
from bids_harmony.models.slices import crop, middle_slices, uncrop
from bids_harmony.simulation.effect import apply_effect
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.data import TrainingSet, make_folds
from bids_harmony.training.predictor import (
    Examples,
    PredictorConfig,
    conformal_half_width,
    network_options,
    predict_stack,
    train_predictor,
)
from bids_harmony.training.stored import as_stored

#: Range of the simulated effect's strength in made-up patients.
STRENGTH = (0.7, 1.3)


@dataclass
class Predictor:
    """A trained predictor with its entries in ``bundle.json``.

    Attributes
    ----------
    members : list of SliceNetwork
        Networks, with the weights as stored.
    network : dict
        Entry of ``networks`` without the files.
    target : dict
        Entry of ``targets`` without the network's name.
    metrics : dict
        Figures measured while training.
    """

    members: list[SliceNetwork]
    network: dict[str, Any]
    target: dict[str, Any]
    metrics: dict[str, Any]


def train_age(
    data: TrainingSet,
    scans: np.ndarray,
    options: TrainOptions,
    config: PredictorConfig,
    say: Callable[[str], None],
) -> Predictor:
    """Train the brain-age ensemble on reference scans and calibrate its interval.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    scans : numpy.ndarray
        Reference scans that may be used; those without an age are left out.
    options : TrainOptions
        Folds, limits and seed.
    config : PredictorConfig
        Size and optimisation.
    say : callable
        Takes a line of progress.
    """
    scans = scans[~np.isnan(data.ages[scans])]
    examples = _examples(data, scans, data.ages[scans], options)
    chance = np.random.default_rng(options.seed)
    folds = make_folds(data, scans, options.folds, chance)[scans]
    network = network_options(examples, config, binary=False)
    members: list[SliceNetwork] = []
    unseen = np.full(len(scans), np.nan)
    for fold in range(options.folds):
        say(f"brain age, network {fold + 1} of {options.folds}")
        member = as_stored(
            train_predictor(
                examples,
                np.flatnonzero(folds != fold),
                network,
                config,
                binary=False,
                steps=options.predictor_steps,
                minutes=options.predictor_minutes,
                seed=options.seed + fold,
                say=say,
            )
        )
        members.append(member)
        for i in np.flatnonzero(folds == fold):
            stack = examples.images[i].astype(np.float32)
            unseen[i] = np.median(predict_stack([member], stack, examples.heights))
    errors = np.abs(unseen - examples.targets)
    correlation = float(np.corrcoef(unseen, examples.targets)[0, 1])
    say(f"brain age on folds not seen: MAE {errors.mean():.2f}, r {correlation:.3f}")
    ages = examples.targets
    return Predictor(
        members,
        {"kind": "slice", "options": network},
        {
            "output": "value",
            "training_data": f"real scans of the reference site (n = {len(scans)})",
            "training_range": [round(float(ages.min()), 1), round(float(ages.max()), 1)],
            "interval": {
                "half_width": round(conformal_half_width(errors), 2),
                "level": 0.9,
                "n": len(scans),
                "method": "split-conformal on reference scans the network had not seen",
            },
        },
        {
            "folds": {
                "n": len(scans),
                "mae_single_network": round(float(errors.mean()), 2),
                "r_single_network": round(correlation, 3),
            }
        },
    )


def train_simulated(
    data: TrainingSet,
    held: np.ndarray,
    reference: str,
    options: TrainOptions,
    config: PredictorConfig,
    say: Callable[[str], None],
) -> Predictor:
    """Train a two-class network on reference scans, every other one with a simulated effect.

    There is no public imaging of schizophrenia; the number it gives says how much a scan looks
    like the simulation's patients, and every output says so.
    """
    scans = np.flatnonzero(data.sites == reference)
    # Patients and controls alternate along age, in training and held-out scans alike.
    labels = np.zeros(len(scans))
    for group in (held[scans], ~held[scans]):
        order = np.flatnonzero(group)[np.argsort(data.ages[scans][group], kind="stable")]
        labels[order[1::2]] = 1
    chance = np.random.default_rng(options.seed + 1000)
    stacks = []
    for i, label in zip(scans, labels, strict=True):
        strength = float(chance.uniform(*STRENGTH)) if label else 0.0
        stacks.append(_with_effect(data, int(i), strength, options.seed + int(i)))
    say(f"schizophrenia: {int(labels.sum())} of {len(scans)} reference scans given the effect")
    examples = _examples(data, scans, labels, options, np.stack(stacks))
    network = network_options(examples, config, binary=True)
    member = as_stored(
        train_predictor(
            examples,
            np.flatnonzero(~held[scans]),
            network,
            config,
            binary=True,
            steps=options.predictor_steps,
            minutes=options.predictor_minutes,
            seed=options.seed + 1000,
            say=say,
        )
    )
    test = np.flatnonzero(held[scans])
    score = np.array(
        [
            np.median(
                predict_stack([member], examples.images[i].astype(np.float32), examples.heights)
            )
            for i in test
        ]
    )
    figures: dict[str, Any] = {"n": len(test), "labels": "simulated"}
    truth = labels[test] == 1
    if truth.any() and not truth.all():
        figures["auc"] = round(area_under_curve(score[truth], score[~truth]), 3)
        figures["accuracy"] = round(float(np.mean((score > 0) == truth)), 3)
        say(f"schizophrenia (simulated) on held-out scans: AUC {figures['auc']}")
    return Predictor(
        [member],
        {"kind": "slice", "options": network},
        {
            "output": "logit",
            "training_data": "simulated",
            "note": "Labels and effect are simulated on real reference scans; not a diagnosis.",
        },
        {"held_out_simulated": figures},
    )


def area_under_curve(cases: np.ndarray, controls: np.ndarray) -> float:
    """Chance that a case scores above a control, ties counting half."""
    difference = cases[:, None] - controls[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _with_effect(data: TrainingSet, scan: int, strength: float, seed: int) -> np.ndarray:
    volume, mask = (uncrop(part, data.box, data.shape) for part in data.stack(scan))
    changed, _ = apply_effect(volume, mask, data.affine, strength=strength, seed=seed)
    return crop(changed, data.box).astype(np.float16)


def _examples(
    data: TrainingSet,
    scans: np.ndarray,
    targets: np.ndarray,
    options: TrainOptions,
    stacks: np.ndarray | None = None,
) -> Examples:
    middle = middle_slices(len(data.heights), data.affine, options.contract.slice_mm)
    if stacks is None:
        stacks = np.stack([data.stack(int(i))[0][middle].astype(np.float16) for i in scans])
    else:
        stacks = stacks[:, middle]
    return Examples(stacks, np.asarray(targets, dtype=float), data.heights[middle])
