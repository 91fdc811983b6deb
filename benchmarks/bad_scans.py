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
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bids_harmony.bids.records import find_records
from bids_harmony.models.bundle import load_bundle
from bids_harmony.qc.dataset import ScanRow, read_scans, scan_table
from bids_harmony.qc.outliers import find_outliers

GOOD = "good"


def flagged(rows: Sequence[ScanRow], reference: dict) -> set[str]:
    """Return the names of the scans that the group level flags for review."""
    return set(find_outliers(scan_table(rows)[0], rows, reference).flags)


def show(found: dict[str, Counter[bool]]) -> str:
    """Format a Markdown table: kind, scans, flagged, share."""
    lines = ["| kind | scans | flagged | share |", "|---" * 4 + "|"]
    total: Counter[bool] = Counter()
    for kind in sorted(found, key=lambda kind: (kind == GOOD, kind)):
        n = found[kind].total()
        lines.append(f"| {kind} | {n} | {found[kind][True]} | {found[kind][True] / n:.3f} |")
        if kind != GOOD:
            total += found[kind]
    lines.insert(-1, f"| all bad | {total.total()} | {total[True]} | "
                     f"{total[True] / max(total.total(), 1):.3f} |")  # fmt: skip
    return "\n".join(lines)


def count(
    rows: Sequence[ScanRow], flags: set[str], quality: dict[str, str]
) -> dict[str, Counter[bool]]:
    """Count flagged (True) and other scans (False) of each kind."""
    found: dict[str, Counter[bool]] = defaultdict(Counter)
    for row in rows:
        found[quality[row.scan]][row.scan in flags] += 1
    return found


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
    names = [Path(name).name.removesuffix("_T1w.nii.gz") for name in truth["filename"]]
    quality = dict(zip(names, truth["quality"], strict=True))
    reference = dict(load_bundle(None).qc_reference()["metrics"])
    rows = read_scans(find_records(given.out), given.out)
    print(f"{len(rows)} scans, {sum(quality[row.scan] != GOOD for row in rows)} bad\n")
    flags = flagged(rows, reference)
    print(show(count(rows, flags, quality)))
    for row in rows:
        if (quality[row.scan] != GOOD) != (row.scan in flags):
            state = "flagged" if row.scan in flags else "missed"
            print(f"{state}: {row.scan}, {quality[row.scan]}")

    rng = np.random.default_rng(given.seed)
    sites = sorted({str(row.values["site"]) for row in rows})
    found: dict[str, Counter[bool]] = defaultdict(Counter)
    for site in sites:
        here = [row for row in rows if row.values["site"] == site]
        others = [row for row in rows if row.values["site"] != site]
        for _ in range(given.draws):
            drawn = [here[i] for i in rng.choice(len(here), given.small, replace=False)]
            flags = flagged([*others, *drawn], reference)
            for kind, counter in count(drawn, flags, quality).items():
                found[kind] += counter
    print(f"\nOne site of {given.small} scans, {given.draws} draws at each of {len(sites)}\n")
    print(show(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
