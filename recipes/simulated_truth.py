"""Measure what harmonization does to simulated heads whose truth is known (see README)."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from torch import nn
from truth_figures import (
    GREY,
    Visit,
    anatomy_figures,
    idle_figures,
    pair_figures,
    show,
)
from work_folder import read_scans

from bids_harmony.files import write_json
from bids_harmony.models.apply import map_volume
from bids_harmony.simulation.dataset import TRUTH, simulate_dataset
from bids_harmony.training.cache import open_training_set
from bids_harmony.training.config import TrainOptions, TrainScan
from bids_harmony.training.data import Box, TrainingSet
from bids_harmony.training.evaluate import measure_looks, volume_of
from bids_harmony.training.fabric import Engine
from bids_harmony.training.harmonizer import Plan, train_harmonizer
from bids_harmony.training.overlap import covariate_overlap
from bids_harmony.training.select import choose_checkpoint
from bids_harmony.training.splits import TEST, TRAIN, split_subjects

#: One seed draws the same scanners for both datasets. Their heads differ all the same: those of
#: a travelling dataset belong to no site, and a head is drawn from its site and number.
SEED, N_SITES, REFERENCE = 3, 3, "site1"


def simulate(folder: Path, n: int, travelling: bool, nprocs: int) -> None:
    """Write and preprocess a simulated dataset; what is done already is left alone."""
    bids, out = folder / "bids", folder / "out"
    # The table of volumes is written last.
    if not (bids / TRUTH / "participants.tsv").is_file():
        simulate_dataset(
            bids, n_sites=N_SITES, n_subjects=n, seed=SEED, travelling=travelling,
            nprocs=nprocs, resolution=2.0, overwrite=True, progress=print,
        )  # fmt: skip
    command = [sys.executable, "-m", "bids_harmony", str(bids), str(out), "participant"]
    options = ["--bundle", "none", "--nprocs", str(nprocs), "--work-dir", str(folder / "work")]
    subprocess.run([*command, *options], check=True)


def older_reference(data: TrainingSet) -> np.ndarray:
    """Choose the oldest two thirds of the reference and the youngest of the other sites."""
    used = np.zeros(len(data), bool)
    for site in np.unique(data.sites):
        here = np.flatnonzero(data.sites == site)
        order = here[np.argsort(data.ages[here])]
        n = round(2 / 3 * len(here))
        used[order[-n:] if site == REFERENCE else order[:n]] = True
    return used


def train_map(
    data: TrainingSet, used: np.ndarray, plan: Plan, folder: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """Train the maps on some scans and choose their checkpoint, as ``train`` does.

    Returns
    -------
    network : torch.nn.Module
        The forward map.
    record : dict
        Scans and ages of each site, their overlap, and the table of checkpoints.
    """
    split = split_subjects(data, TrainOptions().validation, 0.0, np.random.default_rng(plan.seed))
    split[~used] = TEST
    train = np.flatnonzero(split == TRAIN)
    maps = train_harmonizer(
        data, train, REFERENCE, plan=plan, folder=folder,
        engine=Engine("cpu", threads=torch.get_num_threads()),
    )  # fmt: skip
    chosen = maps.epochs[0][1].parents[1] / "chosen.json"
    if not chosen.is_file():
        step, table = choose_checkpoint(
            data,
            split,
            REFERENCE,
            maps.steps,
            maps.candidate,
            grey=GREY,
            seed=plan.seed,
            say=print,
        )
        write_json(chosen, {"step": step, "table": table})
    record = json.loads(chosen.read_text(encoding="utf-8"))
    sites = {site: data.site_scans(site, train) for site in np.unique(data.sites)}
    reference = sites.pop(REFERENCE)
    record["overlap"] = covariate_overlap(data, reference, sites)
    old, young = (data.ages[s].mean() for s in (reference, np.concatenate([*sites.values()])))
    record["reference_older_by"] = round(float(old - young), 1)
    return maps.candidate(record["step"]), record


def visit_all(scans: Sequence[TrainScan], network: nn.Module, box: Box) -> list[Visit]:
    """Map all scans of the travelling heads."""
    visits = []
    for scan in scans:
        image = nib.load(scan.t1w)
        raw = np.asarray(image.dataobj, dtype=np.float32)
        mask = np.asarray(nib.load(scan.mask).dataobj) > 0
        mapped = map_volume(network, raw, mask, image.affine, box)
        visits.append(
            Visit(scan.subject, scan.site, scan.age or np.nan, raw, mapped, mask, image.affine)
        )
    return sorted(visits, key=lambda v: (v.site, v.head))


def main() -> int:
    """Simulate, preprocess, train twice, measure, and print the tables."""
    usual = TrainOptions()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for everything that is made")
    parser.add_argument("--heads", type=int, default=36, help="per site, to train on")
    parser.add_argument("--travelling", type=int, default=10, help="heads to measure on")
    parser.add_argument("--steps", type=int, default=usual.harmonizer_steps)
    parser.add_argument("--nprocs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    training = given.work / f"training-{given.heads}"
    travelling = given.work / f"travelling-{given.travelling}"
    simulate(travelling, given.travelling, True, given.nprocs)
    simulate(training, given.heads, False, given.nprocs)
    data = open_training_set(read_scans(training), given.work, threads=given.threads)
    scans = read_scans(travelling)
    table = pd.read_csv(travelling / "bids" / TRUTH / "participants.tsv", sep="\t")
    labels = table["participant_id"].str.removeprefix("sub-")
    truth = dict(zip(labels, table["ventricle_ml"], strict=True))

    result: dict[str, Any] = {}
    designs = {"same ages": np.ones(len(data), bool), "older reference": older_reference(data)}
    for design, used in designs.items():
        plan = Plan(given.steps, usual.epoch_steps, SEED)
        network, record = train_map(data, used, plan, given.work)
        visits = visit_all(scans, network, data.box)
        rows = anatomy_figures(visits, REFERENCE, truth)
        if design == "same ages":
            looks = measure_looks(data, np.flatnonzero(used), REFERENCE, SEED, GREY)
            at_home = data.site_scans(REFERENCE, np.flatnonzero(used))
            brain = np.mean([volume_of(data, int(i))[0] for i in at_home], axis=0)
            rows = pair_figures(visits, REFERENCE, looks.quantiles) + rows
            rows += idle_figures(visits, REFERENCE, network, data.box, brain, SEED)
        result[design] = record | {"figures": [row.to_dict() for row in rows]}
        kept = next(row for row in record["table"] if row["step"] == record["step"])
        print(f"\n{design}: {used.sum()} scans, the reference's heads "
              f"{record['reference_older_by']} years older than the others'; map after step "
              f"{kept['step']}, score {kept['score']} (0 perfect, 2 nothing done); {len(scans)} "
              f"scans of {given.travelling} new heads measured\n{show(rows)}")  # fmt: skip
    write_json(given.work / "simulated_truth.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
