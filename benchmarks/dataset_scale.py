"""How long ``--dry-run`` takes on a large dataset: one subject, and all of them.

Makes a dataset of empty NIfTI files with a participants table and sidecars, times the whole
command (imports included), and gives the times also as a ratio to pybids's own indexing of the
same dataset on the same machine, because seconds alone say little about another machine.

    python benchmarks/dataset_scale.py --subjects 10000
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLAIN = "import sys; from bids import BIDSLayout; print(BIDSLayout(sys.argv[1], validate=False))"


def make_dataset(root: Path, n_subjects: int) -> None:
    """Write subjects 00000, 00001... with one empty T1w image and its sidecar each."""
    sidecar = {"Manufacturer": "Siemens", "ManufacturersModelName": "Prisma"}
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    rows = ["participant_id\tage\tsex\tsite"]
    for i in range(n_subjects):
        name = f"sub-{i:05d}"
        folder = root / name / "anat"
        folder.mkdir(parents=True)
        (folder / f"{name}_T1w.nii.gz").touch()
        (folder / f"{name}_T1w.json").write_text(json.dumps(sidecar))
        rows.append(f"{name}\t{20 + i % 60}\t{'MF'[i % 2]}\tsite{i % 7}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")


def timed(command: list[str]) -> dict[str, float]:
    """Run a command and return its wall and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=10_000)
    parser.add_argument("--tmp", type=Path, help="where to make the dataset")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.tmp) as folder:
        root = Path(folder) / "bids"
        make_dataset(root, args.subjects)
        dry = [sys.executable, "-m", "bids_harmony", str(root), f"{folder}/out", "participant"]
        dry += ["--dry-run", "--bundle", "none", "--work-dir", f"{folder}/work"]
        one = f"{args.subjects * 4242 // 10_000:05d}"
        results = {
            "subjects": args.subjects,
            "dry_run_one": timed([*dry, "--participant-label", one]),
            "dry_run_all": timed(dry),
            "pybids_plain": timed([sys.executable, "-c", PLAIN, str(root)]),
        }
    for name in ("dry_run_one", "dry_run_all"):
        plain = results["pybids_plain"]
        results[f"{name}_to_plain"] = {
            unit: round(results[name][unit] / plain[unit], 3) for unit in plain
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
