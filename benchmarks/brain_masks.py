"""Brain masks against a reference: Dice and seconds of deepbet and of multi-atlas fusion.

``python benchmarks/brain_masks.py DATASET`` takes a BIDS dataset of whole-head T1w scans with
reference masks or label maps under ``derivatives/`` (labels above 0 are brain). The other scans
of the dataset are the atlases; a scan is never its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_harmony.anat.brain import (
    Atlas,
    deepbet_mask,
    dice,
    find_atlases,
    given_mask,
    multiatlas_mask,
)
from bids_harmony.anat.check import load_t1w


def spread(items: list[Atlas], n: int) -> list[Atlas]:
    """Take ``n`` items at even distances."""
    where = np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int)
    return [items[i] for i in where]


def main() -> None:
    """Print one row per scan, then the median and the minimum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--n-scans", type=int, default=12)
    parser.add_argument("--library", type=int, default=24, help="atlases to choose from")
    parser.add_argument("--n-atlases", type=int, default=6, help="atlases that vote")
    parser.add_argument("--skip-multi-atlas", action="store_true")
    options = parser.parse_args()

    pairs = find_atlases(options.dataset)
    scans = spread(pairs, options.n_scans)
    library = spread([pair for pair in pairs if pair not in scans] or pairs, options.library)
    methods: dict[str, Callable[[nib.Nifti1Image, str], np.ndarray]] = {
        "deepbet": lambda img, name: deepbet_mask(img)
    }
    if not options.skip_multi_atlas:
        methods["multi-atlas"] = lambda img, name: multiatlas_mask(
            img, library, n_best=options.n_atlases, exclude=(name,)
        )[0]
    print(f"{len(scans)} scans; {options.n_atlases} of {len(library)} atlases vote")
    print("scan".ljust(16) + "".join(f"{m:>14} {'CPU s':>7} {'wall s':>7}" for m in methods))
    rows = []
    for scan in scans:
        img, _ = load_t1w(scan.image)
        reference, _ = given_mask(scan.mask, img)
        row = []
        for method in methods.values():
            cpu, wall = time.process_time(), time.perf_counter()
            mask = method(img, scan.name)
            row += [
                dice(mask, reference),
                time.process_time() - cpu,
                time.perf_counter() - wall,
            ]
        rows.append(row)
        show(scan.name, row)
    show("median", list(np.median(rows, axis=0)))
    show("minimum", list(np.min(rows, axis=0)))


def show(name: str, row: list[float]) -> None:
    """Print a row of the table."""
    cells = [f"{row[i]:14.4f} {row[i + 1]:7.1f} {row[i + 2]:7.1f}" for i in range(0, len(row), 3)]
    print(name.ljust(16) + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
