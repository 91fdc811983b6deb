"""Evaluate a bundle's brain age at new sites, calibrated on other persons of each site."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.bids.dataset import find_scans
from bids_harmony.bids.filters import select_scans
from bids_harmony.config import RunConfig
from bids_harmony.console import set_up_logging
from bids_harmony.models.bundle import load_bundle
from bids_harmony.models.networks import SiteMap, predict_value
from bids_harmony.sites.code import SiteCode
from bids_harmony.sites.statistics import offset_and_scatter, with_intervals
from bids_harmony.training.data import find_training_scans, open_training_set, usable_scans
from bids_harmony.training.harmonizer import Calibrator

#: Folds of a site's persons, each harmonized with a calibration on the others; bootstrap draws;
#: and fewest test persons of a calibration on some persons.
FOLDS, N_BOOTSTRAP, LEAST_TESTED = 5, 2000, 3


class Evaluation:
    """A bundle, the scans of a dataset with ages, and the scans that may calibrate."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.bundle = load_bundle(given.bundle)
        self.appearance, self.network = self.bundle.appearance(), self.bundle.map_network()
        if self.appearance.line is None:
            sys.exit("The bundle does not predict brain age. Choose another one with --bundle.")
        config = RunConfig(bids_dir=given.bids.resolve(), output_dir=given.out.resolve())
        scans = find_training_scans(config.output_dir, find_scans(config).scans, config)[0]
        self.data = open_training_set(usable_scans(scans), given.work)
        self.fit = select_scans(self.data.table, given.fit_filter)
        self.calibrator = Calibrator(
            self.data, self.appearance, self.network, self.bundle.ensembles("brain_age"),
            self.bundle.contract.slice_mm, self.bundle.box,
        )  # fmt: skip

    def sites(self) -> dict[str, np.ndarray]:
        """Return the scans with known age of each site."""
        known = np.isfinite(self.data.ages)
        names = np.unique(self.data.sites).tolist()
        return {site: np.flatnonzero((self.data.sites == site) & known) for site in names}

    def predict(self, scan: int, code: SiteCode | None, step: int) -> float:
        """Predict brain age from every ``step``-th slice of a scan, mapped with a site code."""
        bundle, volume = self.bundle, self.data.volume(scan)[0]
        if code is not None:
            volume = SiteMap.of(code, self.appearance, self.network, bundle.box)(volume)
        how = bundle.box, bundle.contract.slice_mm, "cpu", step
        return predict_value(bundle.ensembles("brain_age"), volume, self.data.affine, *how)

    def cross_validate(self, site: str, here: np.ndarray) -> Iterator[dict[str, Any]]:
        """Yield a row per method: each scan is calibrated on other persons of its site."""
        data, fit = self.data, self.fit[here]
        groups = {f"{site}, may calibrate": here[fit], f"{site}, may not": here[~fit]}
        for method in ("not harmonized", "harmonized", "… with known ages"):
            if method == "not harmonized":
                codes: dict[int, SiteCode | None] = dict.fromkeys(here.tolist())
            else:
                ages = self.calibrator.predict_age if method == "harmonized" else None
                codes = {**self.calibrator.cross_codes(here, here[fit], ages, FOLDS, 0)}
            for name, group in ({site: here} if fit.all() else groups).items():
                scans = np.array([scan for scan in group.tolist() if scan in codes], dtype=int)
                predicted = np.array([self.predict(i, codes[i], 1) for i in scans.tolist()])
                if len(scans):
                    errors = self.errors(predicted, data.ages[scans], data.persons[scans])
                    yield {"site": name, "n": len(scans), "method": method} | errors

    def errors(
        self, predicted: np.ndarray, ages: np.ndarray, persons: np.ndarray
    ) -> dict[str, Any]:
        """Compute site offset, scatter, correlation and mean absolute error, with intervals."""

        def means(draw: Any) -> dict[str, float]:
            offset, _ = offset_and_scatter(predicted[draw], ages[draw], self.appearance.line)
            return {"offset": offset, "mae": float(np.abs(predicted - ages)[draw].mean())}

        return {
            "persons": len(set(persons.tolist())),
            **with_intervals(means, persons, N_BOOTSTRAP, 0),
            "scatter": offset_and_scatter(predicted, ages, self.appearance.line)[1],
            "r": np.corrcoef(predicted, ages)[0, 1],
        }

    def few_persons(
        self, site: str, here: np.ndarray, numbers: Sequence[int], draws: int
    ) -> Iterator[dict[str, Any]]:
        """Yield a row per number of calibrating persons, without their ages; test on the rest."""
        data, here = self.data, here[self.fit[here]]
        persons, rng = np.unique(data.persons[here]), np.random.default_rng(0)
        for n in (0, *(n for n in numbers if n <= len(persons) - LEAST_TESTED)):
            offsets = []
            for _ in range(draws if n else 1):
                chosen = np.isin(data.persons[here], rng.choice(persons, n, replace=False))
                predict = self.calibrator.predict_age
                code = self.calibrator.code(here[chosen], predict) if n else None
                tested = here[~chosen]
                predicted = np.array([self.predict(i, code, 4) for i in tested.tolist()])
                ages = data.ages[tested]
                offsets.append(offset_and_scatter(predicted, ages, self.appearance.line)[0])
            rms = np.sqrt(np.mean(np.square(offsets)))
            yield {"site": site, "calibrating": n, "offset": np.mean(offsets), "rms_offset": rms}


def main() -> int:
    """Print a table by site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids", type=Path, help="dataset with ages and sites")
    parser.add_argument("out", type=Path, help="its derivatives by bids_harmony")
    parser.add_argument("work", type=Path, help="folder for the cache")
    parser.add_argument("--bundle", type=Path, help="default: the bundle of the package")
    parser.add_argument("--fit-filter", help="who may calibrate, as in the train level")
    parser.add_argument("--persons", type=int, nargs="+", metavar="N", help="instead of "
                        "cross-validation, calibrate on N persons of a site")  # fmt: skip
    parser.add_argument("--draws", type=int, default=10, help="random draws of the N persons")
    given = parser.parse_args()
    set_up_logging()
    evaluation, rows = Evaluation(given), []
    for site, here in evaluation.sites().items():
        if not given.persons:
            rows += evaluation.cross_validate(site, here)
        elif site != evaluation.bundle.reference_site:
            rows += evaluation.few_persons(site, here, given.persons, given.draws)
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
