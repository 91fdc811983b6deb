"""What each part of the full preset is worth: train without it, on the same scans and seeds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from work_folder import read_scans

from bids_harmony.files import write_json
from bids_harmony.training.cache import open_training_set
from bids_harmony.training.config import TrainOptions
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.fabric import Engine
from bids_harmony.training.harmonizer import Plan, train_harmonizer
from bids_harmony.training.presets import ABLATIONS, FULL
from bids_harmony.training.select import choose_checkpoint
from bids_harmony.training.splits import TRAIN, split_subjects

#: What is told of the chosen checkpoint, and of the last one whether or not it was chosen.
CHOSEN = ("step", "score", "tissue_distance", "probe")
LAST = ("tissue_distance", "probe", "violation")
#: Distance at which the anatomy is compared too: parts change how fast a map learns, and one that
#: comes nearer changes more anatomy, whatever its parts.
EARLY = 0.85


def ablate(
    data: TrainingSet,
    reference: str,
    parts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    folder: Path,
    *,
    options: TrainOptions,
    engine: Engine,
    say: Callable[[str], None],
) -> dict[str, list[dict[str, Any]]]:
    """Train with all parts, then without each, and score the chosen and the last checkpoint.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    reference : str
        Reference site.
    parts : sequence of str
        Of :data:`bids_harmony.training.presets.ABLATIONS`.
    seeds : sequence of int
        Each part is left out once per seed.
    plan : Plan
        Its seed is replaced.
    folder : pathlib.Path
        Work folder; trainings that are finished are not repeated.
    options : TrainOptions
        Shares of the split, and the contract.
    engine : Engine
        Devices.
    say : callable
        Takes lines of progress.

    Returns
    -------
    dict of str to list of dict
        Per part, or ``nothing``, one item per seed: ``seed``, and of
        :func:`bids_harmony.training.select.choose_checkpoint` the rows ``chosen`` and ``last``,
        and ``early``, the violation at a distance of :data:`EARLY`.
    """
    chance = np.random.default_rng(options.seed)
    split = split_subjects(data, options.validation, options.holdout, chance)
    train = np.flatnonzero(split == TRAIN)
    rows: dict[str, list[dict[str, Any]]] = {}
    for part in ("nothing", *parts):
        preset = replace(FULL, **ABLATIONS.get(part, {}))
        for seed in seeds:
            say(f"without {part}, seed {seed}")
            maps = train_harmonizer(
                data, train, reference, preset, plan=replace(plan, seed=seed),
                folder=folder, engine=engine, say=say,
            )  # fmt: skip
            step, table = choose_checkpoint(
                data, split, reference, maps.steps, maps.candidate,
                grey=options.contract.grey, seed=options.seed, say=say,
            )  # fmt: skip
            chosen = next(row for row in table if row["step"] == step)
            found = {"chosen": chosen, "last": table[-1], "early": violation_at(EARLY, table)}
            rows.setdefault(part, []).append({"seed": seed, **found})
    return rows


def violation_at(distance: float, table: Sequence[dict[str, Any]]) -> float | None:
    """Violation of the anatomy where a map first comes as near as this; None where it never does.

    Between two checkpoints it is interpolated; before the first the map changes nothing.
    """
    before = (1.0, 0.0)
    for row in table:
        after = (row["tissue_distance"], row["violation"])
        if after[0] <= distance:
            return float(np.interp(-distance, (-before[0], -after[0]), (before[1], after[1])))
        before = after
    return None


def show(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Write a Markdown table of means over seeds, with their range where they differ."""
    names = [*(f"chosen: {name}" for name in CHOSEN), *(f"last: {name}" for name in LAST)]
    names.append(f"violation at {EARLY:g}")
    lines = [
        f"| without | kept the anatomy | {' | '.join(names)} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for part, found in rows.items():
        columns = [
            *([row["chosen"][name] for row in found] for name in CHOSEN),
            *([row["last"][name] for row in found] for name in LAST),
            [row["early"] for row in found if row["early"] is not None],
        ]
        cells = []
        for values in columns:
            spread = f" ({min(values):.3g} to {max(values):.3g})" if len(set(values)) > 1 else ""
            cells.append(f"{round(float(np.mean(values)), 3):g}{spread}" if values else "never")
        kept = sum(row["chosen"]["eligible"] for row in found)
        lines.append(f"| {part} | {kept} of {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table, and write its rows to ``WORK/ablation.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder that default_bundle.py worked in")
    parser.add_argument("--reference-site", default="IXI-HH")
    parser.add_argument("--parts", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--epoch-steps", type=int, default=250)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    data = open_training_set(read_scans(given.work), given.work / "work", threads=given.threads)
    rows = ablate(
        data, given.reference_site, given.parts, given.seeds,
        Plan(given.steps, given.epoch_steps), given.work / "work", options=TrainOptions(),
        engine=Engine(given.device, threads=given.threads), say=print,
    )  # fmt: skip
    write_json(given.work / "ablation.json", rows)
    print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
