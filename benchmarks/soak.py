"""Whether a long run stays small: memory, work folder and speed of many scans in one command.

    bids_harmony-simulate BIDS --sites 4 --subjects 50 --resolution 2
    python benchmarks/soak.py BIDS OUT WORK [--nprocs 2] [more options of bids_harmony]

Memory is that of the whole process tree, shared pages once (Linux). The last quarter of the scans
is set against the second: the first still fills caches. An interrupted soak goes on, as the
command does; its figures are then of the scans that were left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from one_scan import tree, usage

PERIOD_S = 5.0


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment: scans done, GB of memory and of work files."""

    done: int
    memory_gb: float
    work_gb: float


def size_gb(folder: Path) -> float:
    """Size of all files in a folder, which may vanish meanwhile."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total / 1e9


def soak(command: list[str], work: Path) -> tuple[list[Sample], int, float, float]:
    """Run a command to its end.

    Returns
    -------
    samples : list of Sample
        Every :data:`PERIOD_S` seconds.
    code : int
        Its exit code.
    wall_s, cpu_s : float
        Of the whole tree.
    """
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    done = 0

    def read() -> None:
        nonlocal done
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            done += re.match(r"\[\d+/\d+\]", line) is not None

    reader = threading.Thread(target=read)
    reader.start()
    samples: list[Sample] = []
    cpu = 0.0
    while process.poll() is None:
        used, memory = usage(tree(process.pid))
        cpu = max(cpu, used)
        samples.append(Sample(done, memory, size_gb(work)))
        time.sleep(PERIOD_S)
    reader.join()
    return samples, process.returncode, time.monotonic() - begin, cpu


def summarize(samples: list[Sample], code: int, wall_s: float, cpu_s: float) -> str:
    """Tell in some lines whether memory and work folder grew."""
    total = max(sample.done for sample in samples)
    quarters = [
        [s for s in samples if total * k / 4 <= s.done < total * (k + 1) / 4] for k in range(4)
    ]
    lines = [
        "| scans | memory, median GB | memory, most GB | work folder, most GB |",
        "|---" * 4 + "|",
    ]
    for k, part in enumerate(quarters):
        if part:
            memory = [s.memory_gb for s in part]
            lines.append(
                f"| {total * k // 4} to {total * (k + 1) // 4} | {np.median(memory):.2f} | "
                f"{max(memory):.2f} | {max(s.work_gb for s in part):.2f} |"
            )
    early, late = ([s.memory_gb for s in quarters[k]] for k in (1, 3))
    if early and late:
        lines.append(f"memory, last quarter / second: {np.median(late) / np.median(early):.2f}")
    lines.append(
        f"{total} scans in {wall_s / 60:.0f} min, {total / wall_s * 3600:.0f} per hour, "
        f"{cpu_s / max(total, 1):.1f} CPU s each; exit code {code}"
    )
    return "\n".join(lines)


def main() -> int:
    """Run the participant level and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further options go to bids_harmony.",
        allow_abbrev=False,
    )
    parser.add_argument("bids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--nprocs", type=int, default=2)
    given, more = parser.parse_known_args()
    command = [
        sys.executable, "-m", "bids_harmony", str(given.bids), str(given.out), "participant",
        "-w", str(given.work), "--nprocs", str(given.nprocs), "--clean-workdir", *more,
    ]  # fmt: skip
    found = soak(command, given.work)
    print(summarize(*found))
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
