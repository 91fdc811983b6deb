"""Measure how many bad scans of a simulated dataset the group level finds, and its false alarms.

    bids_harmony-simulate BIDS --sites 4 --subjects 100 --travelling --bad 0.1
    bids_harmony BIDS OUT participant -d masks=BIDS/derivatives/masks
    python benchmarks/bad_scans.py BIDS OUT [--small 8]

A scan counts as found if it failed or is flagged for any reason. A second table simulates small
sites: it uses random scans of one site at a time, and all scans of the other sites.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bids_harmony.bids.records import find_records
from bids_harmony.models.bundle import load_bundle
from bids_harmony.qc.dataset import ScanRow, read_scans, scan_table
from bids_harmony.qc.outliers import find_outliers

GOOD = "good"


def show(scans: pd.DataFrame) -> None:
    """Print scans, flagged scans and their share, by kind."""
    scans = pd.concat([scans, scans[scans["kind"] != GOOD].assign(kind="all bad")])
    shares = scans.groupby("kind")["flagged"].agg(scans="size", flagged="sum", share="mean")
    print(shares.round(3).to_string(), end="\n\n")


def main() -> int:
    """Print the tables, missed bad scans and flagged good scans."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", type=int, default=8, help="scans of a small site [8]")
    parser.add_argument("--draws", type=int, default=50, help="small sites drawn per site [50]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    truth = pd.read_csv(given.bids / "derivatives/truth/scans.tsv", sep="\t")
    names = truth["filename"].str.extract(r"([^/]+)_T1w", expand=False)
    kinds = truth["quality"].set_axis(names)
    reference = dict(load_bundle(None).qc_reference()["metrics"])
    rows = read_scans(find_records(given.out), given.out)

    def flagged(rows: Sequence[ScanRow]) -> pd.DataFrame:
        """Return site and kind of scans, and whether the group level flags them for review."""
        flags = find_outliers(scan_table(rows)[0], rows, reference).flags
        scans = [row.scan for row in rows]
        values = {"scan": scans, "site": [str(row.values["site"]) for row in rows]}
        found = pd.DataFrame(values | {"kind": kinds[scans].to_numpy()})
        return found.assign(flagged=found["scan"].isin(list(flags)))

    scans = flagged(rows)
    show(scans)
    wrong = scans[scans["flagged"] == (scans["kind"] == GOOD)]
    print("Missed bad scans and flagged good scans:", wrong.to_string(index=False), sep="\n")

    rng, drawn = np.random.default_rng(given.seed), []
    for site, here in scans.groupby("site"):
        others = [rows[i] for i in scans.index.difference(here.index)]
        for _ in range(given.draws):
            chosen = rng.choice(here.index, given.small, replace=False)
            found = flagged([*others, *(rows[i] for i in chosen)])
            drawn.append(found[found["site"] == site])
    print(f"\nOne site of {given.small} scans, {given.draws} draws at each site:")
    show(pd.concat(drawn))
    return 0


if __name__ == "__main__":
    sys.exit(main())
