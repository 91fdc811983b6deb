"""How fast a training cache is read, and how much memory that takes.

Writes a made-up cache of a million slices (15 GB; ``--distinct`` links the same few files again
and again where there is no room), draws balanced pairs from it as the harmonizer does, and
prints slices per second and this process's memory along the way. The same slices are then read
through zarr, and through zarr from a compressed copy of some scans. With ``--steps`` the ``fast``
preset is trained on the cache, and the share of time that it waited for slices is printed.

    python benchmarks/slice_cache.py WORK_FOLDER --slices 1000000
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import BloscCodec

from bids_harmony.training.cache import StoredVolumes, chunk_name, create_store
from bids_harmony.training.data import TrainingSet, with_columns
from bids_harmony.training.sampling import Pairs, PairSampler, Prefetcher

N_SLICES = 95
SITES = ("REF", "A", "B", "C", "D", "E", "F")


def memory_mb() -> float:
    """Memory of this process that is its own, not the file system's."""
    fields = dict(s.split(":", 1) for s in Path("/proc/self/status").read_text().splitlines())
    return float(fields["RssAnon"].split()[0]) / 1000


def head(rng: np.random.Generator, size: tuple[int, int, int]) -> np.ndarray:
    """Return an ellipsoid of noisy tissue, NaN outside, float16."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    volume = np.where(radius < 0.6, 1.0, 0.55) + 0.03 * rng.standard_normal(size)
    return np.where(radius < 0.95, np.clip(volume, 0, 2), np.nan).astype(np.float16)


def make_cache(folder: Path, n_scans: int, distinct: int, size: tuple[int, int, int]) -> None:
    """Write a store whose first ``distinct`` scans differ; the others are links to them."""
    rng = np.random.default_rng(0)
    _, volumes = create_store(folder, n_scans, size)
    base = [head(rng, size) for _ in range(8)]
    for row in range(n_scans):
        if row < distinct:
            volumes[row] = base[row % 8] * np.float16(1 + 0.05 * (row % 7))
        else:
            path = folder / "volumes" / chunk_name(row)
            os.link(path.with_name(chunk_name(row % distinct)), path)


def open_cache(folder: Path, n_scans: int, size: tuple[int, int, int]) -> TrainingSet:
    """Open the store with made-up ages and sexes."""
    rng = np.random.default_rng(1)
    volumes = StoredVolumes(folder / "volumes", np.arange(n_scans), size)
    share = [0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05]
    table = pd.DataFrame(
        {
            "site": rng.choice(SITES, n_scans, p=share),
            "age": rng.uniform(20, 80, n_scans),
            "sex": rng.choice(["F", "M"], n_scans),
        }
    )
    filled = np.tile((~np.isnan(volumes[0])).mean(axis=(1, 2)), (n_scans, 1))
    heights = -72.0 + 2 * np.arange(size[0])
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[2, 3] = heights[0]
    rows, columns = size[1:]
    return TrainingSet(
        volumes, with_columns(table), heights, filled, ((0, rows), (0, columns)),
        (rows, columns, size[0]), affine,
    )  # fmt: skip


def time_reading(data: TrainingSet, pairs: int, batch: int) -> float:
    """Draw and read pairs of slices with their neighbours; return slices per second."""
    sites = [np.flatnonzero(data.sites == site) for site in SITES]
    sampler = PairSampler(data, sites[0], sites[1:], batch=batch, seed=0)

    def read(drawn: Pairs) -> int:
        data.slices(drawn.source_scans, drawn.source_slices, 1)
        data.slices(drawn.reference_scans, drawn.reference_slices, 1)
        return 2 * len(drawn.sites)

    n, n_batches = 0, pairs // batch
    with Prefetcher(sampler, read) as feed:
        begun, cpu = time.perf_counter(), time.process_time()
        for i in range(n_batches):
            n += next(feed)
            if i % (n_batches // 4) == 0:
                print(f"  after {n:7d} slices: {memory_mb():6.0f} MB")
        spent, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print(f"  after {n:7d} slices: {memory_mb():6.0f} MB")
    print(f"drawn and read: {n / spent:.0f} slices/s, {1e3 * cpu / n:.3f} ms of CPU each")
    return n / spent


def compare(data: TrainingSet, folder: Path, n: int = 400) -> None:
    """Read the same random slices in three ways."""
    stored = zarr.open_array(folder / "volumes", mode="r")
    some = min(100, len(data))
    packed = zarr.create_array(
        folder.with_name("packed"),
        shape=(some, *stored.shape[1:]),
        chunks=stored.chunks,
        dtype="<f2",
        compressors=BloscCodec(cname="lz4"),
    )
    for row in range(some):
        packed[row] = data.volumes[row]
    rng = np.random.default_rng(2)
    wanted = [(int(rng.integers(some)), slice(k - 1, k + 2)) for k in rng.integers(10, 80, n)]
    ways = {"pread": data.volumes, "zarr": stored, "zarr, blosc-lz4": packed}
    times = {}
    for name, array in ways.items():
        begun = time.perf_counter()
        for key in wanted:
            np.asarray(array[key])
        times[name] = (time.perf_counter() - begun) / n
    for name, each in times.items():
        print(f"{name:16s} {1e3 * each:.3f} ms, {each / times['pread']:.0f} times pread")


def train(data: TrainingSet, folder: Path, steps: int) -> None:
    """Train on the cache; its lines of progress tell what it waited for data, and the memory."""
    from bids_harmony.training.harmonizer import Plan, train_harmonizer

    train_harmonizer(
        data,
        np.arange(len(data)),
        "REF",
        plan=Plan(steps, epoch=steps),
        folder=folder,
        say=lambda line: print(f"{line} [{memory_mb():.0f} MB]"),
    )


def main() -> None:
    """Make, read, compare, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--slices", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, nargs=2, default=(80, 96), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--distinct", type=int, help="scans that differ (default: all)")
    parser.add_argument("--pairs", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=0)
    options = parser.parse_args()
    n_scans = -(-options.slices // N_SLICES)
    size = (N_SLICES, *options.size)
    options.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="slice_cache-", dir=options.work))
    try:
        begun = time.perf_counter()
        make_cache(work / "cache", n_scans, options.distinct or n_scans, size)
        print(
            f"{n_scans} scans, {n_scans * N_SLICES} slices of {size[1]} x {size[2]} written in "
            f"{time.perf_counter() - begun:.0f} s"
        )
        data = open_cache(work / "cache", n_scans, size)
        time_reading(data, options.pairs, options.batch)
        compare(data, work / "cache")
        if options.steps:
            train(data, work, options.steps)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
