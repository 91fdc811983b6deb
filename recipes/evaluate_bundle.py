"""Evaluate a bundle's brain age at new sites, with cross-validated calibrations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bids_harmony.bids.dataset import find_scans
from bids_harmony.bids.filters import select_scans
from bids_harmony.config import RunConfig
from bids_harmony.console import set_up_logging
from bids_harmony.models.bundle import load_bundle
from bids_harmony.models.networks import SiteMap, predict_value
from bids_harmony.sites.statistics import drawn_persons, offset_and_scatter
from bids_harmony.training.data import find_training_scans, open_training_set, usable_scans
from bids_harmony.training.harmonizer import Calibrator, Predict

#: Folds of a site's persons; each fold is harmonized with a calibration on the others.
FOLDS = 5
Map = Callable[[np.ndarray], np.ndarray]


def interval(values: np.ndarray, persons: np.ndarray) -> str:
    """Format a mean with its 95 % bootstrap interval over persons."""
    draws = drawn_persons(persons, 2000, np.random.default_rng(0))
    low, high = np.percentile([values[draw].mean() for draw in draws], (2.5, 97.5))
    return f"{values.mean():.1f} ({low:.1f} to {high:.1f})"


def main() -> int:
    """Print one row per site and harmonization method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids", type=Path, help="dataset with ages and sites")
    parser.add_argument("out", type=Path, help="what the participant level made of it")
    parser.add_argument("work", type=Path, help="folder for the cache")
    parser.add_argument("--bundle", type=Path, help="default: the one that ships")
    parser.add_argument("--fit-filter", help="who may calibrate, as of the train level")
    given = parser.parse_args()
    set_up_logging()

    bundle = load_bundle(given.bundle)
    appearance, ensembles = bundle.appearance(), bundle.ensembles("brain_age")
    if appearance.line is None:
        parser.error("the bundle predicts no brain age")
    config = RunConfig(bids_dir=given.bids.resolve(), output_dir=given.out.resolve())
    scans = find_training_scans(config.output_dir, find_scans(config).scans, config)[0]
    data = open_training_set(usable_scans(scans), given.work)
    fit = select_scans(data.table, given.fit_filter)

    slice_mm, network = bundle.contract.slice_mm, bundle.map_network()
    calibrator = Calibrator(data, appearance, network, ensembles, slice_mm, bundle.box)

    def predict(scan: int, site_map: Map | None) -> float:
        volume = data.volume(scan)[0]
        mapped = volume if site_map is None else site_map(volume)
        return predict_value(ensembles, mapped, data.affine, bundle.box, slice_mm)

    def maps(here: np.ndarray, ages: Predict | None) -> dict[int, SiteMap]:
        codes = calibrator.cross_codes(here, here[fit[here]], ages, FOLDS, 0)
        return {
            scan: SiteMap.of(code, appearance, network, bundle.box) for scan, code in codes.items()
        }

    print("\n| site | n | persons | scans | offset | scatter | r | mean absolute error |")
    print("|---|---|---|---|---|---|---|---|")
    for site in np.unique(data.sites).tolist():
        here = np.flatnonzero((data.sites == site) & np.isfinite(data.ages))
        methods: dict[str, dict[int, Map | None]] = {
            "not harmonized": dict.fromkeys(here.tolist()),
            "harmonized": {**maps(here, calibrator.predict_age)},
            "… with known ages": {**maps(here, None)},
        }
        groups = {site: here} if fit[here].all() else {
            f"{site}, may calibrate": here[fit[here]], f"{site}, may not": here[~fit[here]],
        }  # fmt: skip
        for method, maps_ in methods.items():
            predicted = {scan: predict(scan, site_map) for scan, site_map in maps_.items()}
            for name, group in groups.items():
                scans_ = np.array([i for i in group.tolist() if i in predicted])
                values = np.array([predicted[i] for i in scans_.tolist()])
                ages, persons = data.ages[scans_], data.persons[scans_]
                off = values - (appearance.line[0] * ages + appearance.line[1])
                scatter = offset_and_scatter(values, ages, appearance.line)[1]
                print(
                    f"| {name} | {len(scans_)} | {len(set(persons))} | {method} "
                    f"| {interval(off, persons)} | {scatter:.1f} "
                    f"| {np.corrcoef(values, ages)[0, 1]:.2f} "
                    f"| {interval(np.abs(values - ages), persons)} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
