"""Measure CPU time, wall time and peak memory of the participant level for one scan.

    python benchmarks/one_scan.py DATASET --participant-label 01 [--scans 10]

The run is cold (new output and work folders). The whole process tree is measured through /proc
(Linux). CPU time is split by workflow node; nodes that run at the same time share it.
``start, schedule`` is the rest. With ``--scans N``, the cost of a further scan is that of N
participants minus that of one, divided by N - 1.

As seconds depend on the computer, they are also given relative to a peer: deepbet and
``ants.registration('Affine')`` to the template at 1 mm, on the same scan, in one process and one
thread.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

PERIOD_S = 0.1
TICKS = os.sysconf("SC_CLK_TCK")
#: Script of the peer; its arguments are a T1w file and a work folder.
PEER = """
import sys
import ants, nibabel as nib, numpy as np
from deepbet.bet import BrainExtraction
from nilearn.datasets import load_mni152_template
import torch
torch.set_num_threads(1)
img = nib.as_closest_canonical(nib.load(sys.argv[1]))
engine = BrainExtraction(no_gpu=True)
data = np.asarray(img.dataobj, dtype=np.float32)
mask = engine.postprocess(engine.run_model(data.copy()) > 0.5)
nib.save(nib.Nifti1Image(data * mask, img.affine), sys.argv[2] + "/brain.nii")
nib.save(load_mni152_template(resolution=1), sys.argv[2] + "/template.nii")
ants.registration(ants.image_read(sys.argv[2] + "/template.nii"),
                  ants.image_read(sys.argv[2] + "/brain.nii"), type_of_transform="Affine")
"""


@dataclass
class Cost:
    """Cost of a command: seconds, peak memory in GB, and samples (time, CPU seconds so far)."""

    wall: float = 0.0
    cpu: float = 0.0
    peak_gb: float = 0.0
    samples: list[tuple[float, float]] = field(default_factory=list)


def tree(pid: int) -> list[int]:
    """Return the process ids of a process and all its descendants."""
    found = [pid]
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += tree(int(child))
    return found


def usage(pids: list[int]) -> tuple[float, float]:
    """Return CPU seconds (including ended children) and GB of memory (shared pages once)."""
    ticks, kilobytes = 0, 0
    for pid in pids:
        with contextlib.suppress(OSError):
            values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(v) for v in values[11:15])
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
    return ticks / TICKS, kilobytes / 1e6


def measure(command: list[str], log: Path, env: dict[str, str] | None = None) -> Cost:
    """Run a command and measure its process tree; exit with its log if it fails."""
    cost = Cost()
    with log.open("w") as out:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )
        while process.poll() is None:
            cpu, memory = usage(tree(process.pid))
            # The CPU time of an ended process is missing until it is reaped.
            cost.cpu = max(cost.cpu, cpu)
            cost.peak_gb = max(cost.peak_gb, memory)
            cost.samples.append((time.time(), cost.cpu))
            time.sleep(PERIOD_S)
        cost.wall = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{log.read_text()}")
    return cost


def node_seconds(work: Path, cost: Cost) -> dict[str, tuple[float, float]]:
    """Compute CPU and wall seconds by node from nipype's result files and the samples."""
    from nipype.utils.filemanip import loadpkl

    spans: list[tuple[str, float, float]] = []
    for path in work.rglob("result_*.pklz"):
        runtime = loadpkl(path).runtime
        begin, end = (
            datetime.fromisoformat(t).timestamp() for t in (runtime.startTime, runtime.endTime)
        )
        spans.append((path.parent.name, begin, end))
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, begin, end in spans:
        seconds[name][1] += end - begin
    before_time, before_cpu = cost.samples[0][0] - PERIOD_S, 0.0
    for now, cpu in cost.samples:
        # Divide CPU time among simultaneous nodes by their run time in the interval.
        shares = {
            i: max(0.0, min(now, end) - max(before_time, begin))
            for i, (_, begin, end) in enumerate(spans)
        }
        busy = max(sum(shares.values()), now - before_time)
        for i, share in shares.items():
            seconds[spans[i][0]][0] += (cpu - before_cpu) * share / busy
        before_time, before_cpu = now, cpu
    rest = cost.cpu - sum(cpu for cpu, _ in seconds.values())
    return {
        **{name: (cpu, wall) for name, (cpu, wall) in seconds.items()},
        "start, schedule": (rest, float("nan")),
    }


def participants(dataset: Path, first: str, n: int) -> list[str]:
    """Return ``n`` participant labels of the dataset, beginning with ``first``."""
    labels = sorted(p.name.removeprefix("sub-") for p in dataset.glob("sub-*") if p.is_dir())
    if first not in labels or len(labels) < n:
        sys.exit(f"{dataset} must hold participant {first} and {n} participants in all.")
    labels.remove(first)
    return [first, *labels[: n - 1]]


def main() -> None:
    """Measure one cold scan, the peer and, with ``--scans``, a further scan."""
    parser = argparse.ArgumentParser(description="What one scan costs.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--participant-label", required=True)
    parser.add_argument("--scans", type=int, default=1, help="participants of the second run")
    parser.add_argument("--nprocs", type=int, default=2)
    parser.add_argument("options", nargs="*", help="further options of bids_harmony, after --")
    given = parser.parse_args()
    label = given.participant_label.removeprefix("sub-")
    labels = participants(given.dataset, label, given.scans)
    t1w = sorted((given.dataset / f"sub-{label}").rglob(f"sub-{label}*_T1w.nii*"))[0]

    with tempfile.TemporaryDirectory(prefix="one_scan") as folder:
        scratch = Path(folder)

        def participant(name: str, asked: list[str]) -> Cost:
            return measure(
                [
                    sys.executable, "-m", "bids_harmony", str(given.dataset),
                    str(scratch / name), "participant", "--participant-label", *asked,
                    "-w", str(scratch / f"{name}_work"), "--nprocs", str(given.nprocs),
                    *given.options,
                ],
                scratch / f"{name}.log",
            )  # fmt: skip

        one = participant("one", labels[:1])
        peer = measure(
            [sys.executable, "-c", PEER, str(t1w), folder],
            scratch / "peer.log",
            {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"},
        )
        nodes = node_seconds(scratch / "one_work", one)
        print(f"{t1w.name}, --nprocs {given.nprocs}\n\n{'':24}   CPU s  wall s  peak GB")
        print(f"{'one scan, cold':24}{one.cpu:8.1f}{one.wall:8.1f}{one.peak_gb:9.2f}")
        print(f"{'peer':24}{peer.cpu:8.1f}{peer.wall:8.1f}{peer.peak_gb:9.2f}")
        print(f"{'ratio':24}{one.cpu / peer.cpu:8.2f}{one.wall / peer.wall:8.2f}")
        if given.scans > 1:
            many = participant("many", labels)
            cpu, wall = (
                (getattr(many, what) - getattr(one, what)) / (given.scans - 1)
                for what in ("cpu", "wall")
            )
            title = f"a further scan (of {given.scans})"
            print(f"{title:24}{cpu:8.1f}{wall:8.1f}{many.peak_gb:9.2f}")
            print(f"{'ratio':24}{cpu / peer.cpu:8.2f}{wall / peer.wall:8.2f}")
        print(f"\n{'node of the cold run':24}   CPU s  wall s")
        for name, (cpu, wall) in sorted(nodes.items(), key=lambda item: -item[1][0]):
            print(f"{name:24}{cpu:8.1f}{wall:8.1f}")


if __name__ == "__main__":
    main()
