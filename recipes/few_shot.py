"""Measure how many scans a calibration needs: the site offset by number of calibrating persons."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_harmony.bids.dataset import find_scans
from bids_harmony.bids.filters import select_scans
from bids_harmony.config import RunConfig
from bids_harmony.console import set_up_logging
from bids_harmony.files import write_text
from bids_harmony.models.apply import brain_age
from bids_harmony.models.bundle import Bundle, load_bundle
from bids_harmony.models.networks import SiteMap
from bids_harmony.reports.figures import BLUE, GREY, ORANGE, PURPLE, SKY, svg_text
from bids_harmony.sites.code import Appearance
from bids_harmony.sites.statistics import offset_and_scatter
from bids_harmony.training.data import (
    TrainingSet,
    find_training_scans,
    open_training_set,
    usable_scans,
)
from bids_harmony.training.harmonizer import Calibrator

#: Numbers of persons to calibrate on, and fewest persons of a site to keep for testing.
PERSONS, LEAST_TESTED = (1, 2, 4, 8, 16), 3


def main() -> int:
    """Print one row per site and number of persons, and plot them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for the cache")
    parser.add_argument("figure", type=Path, help="SVG file to draw")
    parser.add_argument("datasets", type=Path, nargs="+", metavar="BIDS OUT",
                        help="datasets with ages and sites, each with what the participant level "
                        "made of it")  # fmt: skip
    parser.add_argument("--bundle", type=Path, help="default: the one that ships")
    parser.add_argument("--draws", type=int, default=10, help="of persons that calibrate")
    parser.add_argument("--fit-filter", help="who calibrates and is tested, as of the train level")
    given = parser.parse_args()
    set_up_logging()
    bundle = load_bundle(given.bundle)
    appearance = bundle.appearance()
    if appearance.line is None or len(given.datasets) % 2:
        parser.error("give pairs BIDS OUT, and a bundle that predicts brain age")

    rows = []
    for bids, out in zip(given.datasets[::2], given.datasets[1::2], strict=True):
        config = RunConfig(bids_dir=bids.resolve(), output_dir=out.resolve())
        scans = find_training_scans(config.output_dir, find_scans(config).scans, config)[0]
        data = open_training_set(usable_scans(scans), given.work / bids.name)
        for site in sorted(set(data.sites.tolist()) - {bundle.reference_site}):
            fit = select_scans(data.table, given.fit_filter)
            here = np.flatnonzero((data.sites == site) & np.isfinite(data.ages) & fit)
            for row in measure_site(data, here, bundle, appearance, given.draws):
                print("", *row.values(), "", sep=" | ", flush=True)
                rows.append(row)
    draw(pd.DataFrame(rows), given.figure)
    return 0


def measure_site(
    data: TrainingSet, here: np.ndarray, bundle: Bundle, appearance: Appearance, draws: int
) -> Iterator[dict[str, Any]]:
    """Calibrate a site on some of its persons, without their ages, and test on the others.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    here : numpy.ndarray
        Indices of the site's scans with known ages.
    bundle : Bundle
        Bundle to calibrate for.
    appearance : Appearance
        Appearance model of the bundle.
    draws : int
        Number of random choices of calibrating persons.

    Yields
    ------
    dict
        For each number of persons (0: not harmonized): ``site``, ``persons``, and mean
        (``offset``) and root mean square (``rms``) of the offset over the draws, in years.
    """
    persons, rng = np.unique(data.persons[here]), np.random.default_rng(0)
    network, slice_mm = bundle.map_network(), bundle.contract.slice_mm
    ensembles = bundle.ensembles("brain_age")
    calibrator = Calibrator(data, appearance, network, ensembles, slice_mm, bundle.box)

    for n in (0, *(n for n in PERSONS if n <= len(persons) - LEAST_TESTED)):
        offsets = []
        for _ in range(draws if n else 1):
            chosen = np.isin(data.persons[here], rng.choice(persons, n, replace=False))
            site_map = None
            if n:
                code = calibrator.code(here[chosen], calibrator.predict_age)
                site_map = SiteMap.of(code, appearance, network, bundle.box)
            tested, ages = here[~chosen], []
            for volume, _ in map(data.volume, tested.tolist()):
                mapped = volume if site_map is None else site_map(volume)
                ages.append(brain_age(bundle, mapped, data.affine))
            offsets.append(
                offset_and_scatter(np.array(ages), data.ages[tested], appearance.line)[0]
            )
        rms = float(np.sqrt(np.mean(np.square(offsets))))
        offset = float(np.mean(offsets))
        yield {
            "site": str(data.sites[here[0]]),
            "persons": n,
            "offset": round(offset, 2),
            "rms": round(rms, 2),
        }


def draw(table: pd.DataFrame, path: Path) -> None:
    """Plot the root mean square offset of the test scans by number of calibrating persons."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for (site, part), colour in zip(
        table.groupby("site", sort=False), (BLUE, ORANGE, PURPLE, SKY, GREY), strict=False
    ):
        x = np.arange(len(part))
        axes.plot(x, part["rms"], "o-", color=colour, label=str(site))
    n = sorted(table["persons"].unique())
    axes.set_xticks(range(len(n)), [str(k) if k else "none" for k in n])
    axes.axhline(2.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="persons that calibrate", ylabel="site offset of the others (years)", ylim=0)
    axes.legend(frameon=False)
    write_text(path, svg_text(figure))


if __name__ == "__main__":
    sys.exit(main())
