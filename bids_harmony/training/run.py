"""The ``train`` level: from preprocessed derivatives to a model bundle.

``train_bundle`` reads from top to bottom: split, predictors, harmonizer, figures, bundle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_harmony import __version__
from bids_harmony.errors import EXIT_OK, NoInputError, UsageError
from bids_harmony.models.bundle import Bundle, write_bundle
from bids_harmony.training.config import TrainOptions, TrainScan

if TYPE_CHECKING:
    from bids_harmony.bids import Scan
    from bids_harmony.config import RunConfig
    from bids_harmony.training.data import TrainingSet
    from bids_harmony.training.harmonizer import Harmonizer
    from bids_harmony.training.predictors import Predictor

#: Below this a held-out part, folds and an age range cannot be had.
MIN_REFERENCE, MIN_SOURCE = 12, 2
TARGETS = {"age": "brain_age", "simulated-schizophrenia": "schizophrenia_probability"}
INTENDED_USE = (
    "Research on T1-weighted scans of adults. Brain age and every probability describe how a "
    "scan looks to a network trained on few scans of one scanner; they are no diagnosis."
)


def run_train(config: RunConfig) -> int:
    """Train a bundle on a dataset's preprocessed scans and write it to ``OUT/models/NAME``.

    Parameters
    ----------
    config : RunConfig
        ``output_dir`` holds the derivatives of the participant level; ``train`` the options.

    Returns
    -------
    int
        0.
    """
    from bids_harmony.bids import find_scans

    scans, missing = find_training_scans(config.output_dir, find_scans(config).scans, config)
    for key in missing:
        print(f"{key} is left out: it has no preprocessed image in {config.output_dir}.")
    licence = ""
    try:
        text = (config.bids_dir / "dataset_description.json").read_text(encoding="utf-8")
        licence = str(json.loads(text).get("License", ""))
    except (OSError, ValueError):
        pass
    out = config.output_dir / "models" / config.train.model_name
    bundle = train_bundle(
        scans,
        out,
        config.train,
        work_dir=config.work_dir,
        licences=[licence] if licence else [],
    )
    print(f"The bundle {bundle.name} {bundle.version} is in {out}.")
    return EXIT_OK


def find_training_scans(
    output_dir: Path, scans: Sequence[Scan], config: RunConfig
) -> tuple[list[TrainScan], list[str]]:
    """Pair the dataset's scans with their preprocessed images and QC records.

    Returns
    -------
    found : list of TrainScan
        Scans with a preprocessed image and mask in the contract's space and resolution.
    missing : list of str
        Keys of the others.
    """
    contract = config.train.contract
    found, missing = [], []
    for scan in scans:
        folder = output_dir / f"sub-{scan.entities['subject']}"
        if session := scan.entities.get("session"):
            folder /= f"ses-{session}"
        stem = f"{scan.key}_space-{contract.template}_res-{contract.resolution}_desc-"
        t1w = folder / "anat" / f"{stem}preproc_T1w.nii.gz"
        mask = folder / "anat" / f"{stem}brain_mask.nii.gz"
        if not (t1w.is_file() and mask.is_file()):
            missing.append(scan.key)
            continue
        try:
            record = json.loads(
                (folder / "anat" / f"{scan.key}_desc-harmony_qc.json").read_text(encoding="utf-8")
            )
            metrics = dict(record.get("metrics", {}))
        except (OSError, ValueError):
            metrics = {}
        subject = scan.entities["subject"]
        found.append(TrainScan(subject, scan.site, t1w, mask, scan.age, metrics))
    return found, missing


def train_bundle(
    scans: Sequence[TrainScan],
    out: Path,
    options: TrainOptions,
    *,
    work_dir: Path,
    licences: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Bundle:
    """Train a harmonizer and predictors on preprocessed scans, and write the bundle.

    Parameters
    ----------
    scans : sequence of TrainScan
        Preprocessed scans of two or more sites.
    out : pathlib.Path
        Folder of the bundle.
    options : TrainOptions
        What the user chose.
    work_dir : pathlib.Path
        Where the slices are kept while training.
    licences : sequence of str
        Under which the scans were given, for the bundle's description.
    say : callable
        Takes lines of progress.

    Returns
    -------
    Bundle

    Raises
    ------
    NoInputError
        When there is no preprocessed scan.
    UsageError
        When there are too few scans of the reference or of any other site, a target is unknown,
        or scans lie on different grids.
    """
    import torch

    from bids_harmony.training.cache import open_training_set
    from bids_harmony.training.data import hold_out
    from bids_harmony.training.harmonizer import HarmonizerConfig, train_harmonizer
    from bids_harmony.training.predictor import PredictorConfig
    from bids_harmony.training.predictors import train_age, train_simulated

    reference = choose_reference(scans, options)
    torch.set_num_threads(options.threads)

    # 1. Read, and keep whole subjects of every site out of everything that follows.
    data = open_training_set(scans, work_dir, threads=options.threads, say=say)
    held = hold_out(data, options.holdout, np.random.default_rng(options.seed))
    ref = np.flatnonzero(~held & (data.sites == reference))
    say(f"{len(data.sites)} scans, {held.sum()} held out; reference {reference}")

    # 2. Predictors, on the reference site alone.
    predictors: dict[str, Predictor] = {}
    if "age" in options.targets:
        predictors["brain_age"] = train_age(data, ref, options, PredictorConfig(), say)
    if "simulated-schizophrenia" in options.targets:
        predictors["schizophrenia_probability"] = train_simulated(
            data, held, reference, options, PredictorConfig(), say
        )

    # 3. The maps between the sites.
    harmonizer = train_harmonizer(
        data,
        np.flatnonzero(~held),
        reference,
        HarmonizerConfig(),
        steps=options.harmonizer_steps,
        minutes=options.harmonizer_minutes,
        seed=options.seed,
        say=say,
    )

    # 4. Figures on what was held out, and the bundle.
    return finish_bundle(
        data, held, reference, predictors, harmonizer, out, options, licences, say
    )


def choose_reference(scans: Sequence[TrainScan], options: TrainOptions) -> str:
    """Check that training makes sense with these scans, and name the reference site."""
    if unknown := set(options.targets) - set(TARGETS):
        raise UsageError(
            f"There is no target {sorted(unknown)[0]}.", f"Choose among {', '.join(TARGETS)}."
        )
    counts: dict[str, int] = {}
    for scan in scans:
        counts[scan.site] = counts.get(scan.site, 0) + 1
    if not counts:
        raise NoInputError(
            "No preprocessed scan was found to train on.",
            "Run the participant level on the same folders first.",
        )
    reference = options.reference_site or max(sorted(counts), key=lambda site: counts[site])
    if counts.get(reference, 0) < MIN_REFERENCE:
        raise UsageError(
            f"The reference site {reference} has {counts.get(reference, 0)} preprocessed scans.",
            f"Training needs {MIN_REFERENCE}; sites here: {counts}.",
        )
    if not any(n >= MIN_SOURCE for site, n in counts.items() if site != reference):
        raise UsageError(
            f"There is no site besides {reference} with {MIN_SOURCE} scans.",
            "Harmonization needs scans of at least two sites: check --site-column.",
        )
    if "age" in options.targets and all(
        scan.age is None for scan in scans if scan.site == reference
    ):
        raise UsageError(
            f"No scan of {reference} has an age.",
            "Check --age-column, or leave --targets age out.",
        )
    return reference


def finish_bundle(
    data: TrainingSet,
    held: np.ndarray,
    reference: str,
    predictors: dict[str, Predictor],
    harmonizer: Harmonizer,
    out: Path,
    options: TrainOptions,
    licences: Sequence[str],
    say: Callable[[str], None],
) -> Bundle:
    """Measure what was trained on the held-out scans, describe it and write the bundle."""
    from bids_harmony.models.slices import middle_slices
    from bids_harmony.qc.harmonization import brain_histogram, mean_histogram
    from bids_harmony.qc.verdict import reference_statistics
    from bids_harmony.training.evaluate import evaluate_age, map_all, summarize_changes
    from bids_harmony.training.stored import as_stored

    forward = as_stored(harmonizer.forward)
    networks: dict[str, Any] = {"harmonizer": [forward]}
    described: dict[str, Any] = {
        "harmonizer": {
            "kind": "generator",
            "files": ["harmonizer.safetensors"],
            "options": {"channels": harmonizer.record["config"]["channels"]},
        }
    }
    networks["backward"] = [as_stored(harmonizer.backward)]
    described["backward"] = {
        "kind": "generator",
        "files": ["backward.safetensors"],
        "options": {
            "channels": harmonizer.record["config"]["channels"],
            "n_sites": len(harmonizer.sites),
        },
        "sites": harmonizer.sites,
    }
    targets: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for name, predictor in predictors.items():
        networks[name] = predictor.members
        numbers = range(1, len(predictor.members) + 1)
        files = [f"{name}-{number}.safetensors" for number in numbers]
        described[name] = {**predictor.network, "files": files}
        targets[name] = {"network": name, **predictor.target}
        metrics[name] = dict(predictor.metrics)
    train_ref = np.flatnonzero(~held & (data.sites == reference))
    mapped = map_all(data, train_ref, forward)
    untrained = np.flatnonzero(held | (data.sites != reference))
    metrics["images"] = summarize_changes(data, untrained, mapped)
    if "brain_age" in predictors:
        middle = middle_slices(len(data.heights), data.affine, options.contract.slice_mm)
        members = predictors["brain_age"].members
        metrics["brain_age"]["sites"] = evaluate_age(
            data, held, reference, mapped, members, middle, seed=options.seed, say=say
        )

    used = {site: np.flatnonzero(~held & (data.sites == site)) for site in np.unique(data.sites)}
    tables = {
        "qc_reference.json": {
            "metrics": reference_statistics(
                {
                    str(site): [data.table["metrics"][i] | mapped.changes[i] for i in here]
                    for site, here in used.items()
                }
            ),
            "histograms": {
                str(site): mean_histogram([brain_histogram(*data.stack(i)) for i in here])
                for site, here in used.items()
            },
        },
        "splits.json": {
            str(site): {
                "trained_on": sorted({str(data.subjects[i]).split("/", 1)[1] for i in here}),
                "held_out": sorted(
                    {
                        str(data.subjects[i]).split("/", 1)[1]
                        for i in np.flatnonzero(held & (data.sites == site))
                    }
                ),
            }
            for site, here in used.items()
        },
    }
    info = {
        "name": options.model_name,
        "version": __version__,
        "reference_site": reference,
        "sites": {str(site): _describe_site(data, held, str(site)) for site in used},
        "contract": options.contract.to_dict(),
        "box": [list(side) for side in data.box],
        "networks": described,
        "targets": targets,
        "metrics": metrics,
        "training": {"options": options.to_dict(), "harmonizer": harmonizer.record},
        "licences": list(licences),
        "intended_use": INTENDED_USE,
    }
    return write_bundle(out, info, networks, tables)


def _describe_site(data: TrainingSet, held: np.ndarray, site: str) -> dict[str, Any]:
    here = data.sites == site
    ages = data.ages[here & ~held]
    known = ages[~np.isnan(ages)]
    return {
        "n": int((here & ~held).sum()),
        "n_held_out": int((here & held).sum()),
        "age": [round(float(known.min()), 1), round(float(known.max()), 1)]
        if len(known)
        else None,
        "age_mean": round(float(known.mean()), 1) if len(known) else None,
    }
