"""How long the group level takes on a large dataset, and how much memory.

Makes the records of many scans from those of a few finished ones, each between two of the same
scanner, links the images so that the report has something to show, and runs the command (imports
included). Records are spread over participants as parallel jobs would leave them.

    python benchmarks/group_scale.py OUTPUT_DIR [OUTPUT_DIR ...] --scans 10000 --sites 7
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from dataset_scale import make_dataset

QC, PREDICTIONS = "_desc-harmony_qc.json", "_desc-harmony_predictions.json"


def read(outs: list[Path]) -> list[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """Read the finished scans' records: output folder, record, predictions."""
    found = []
    for out in outs:
        for path in sorted(out.glob(f"sub-*/**/anat/*{QC}")):
            record = json.loads(path.read_text())
            other = path.with_name(path.name.replace(QC, PREDICTIONS))
            if record["status"] != "error" and other.exists():
                found.append((out, record, json.loads(other.read_text())))
    return found


def between(a: Any, b: Any, rng: np.random.Generator) -> Any:
    """Lie somewhere between or beyond two JSON values of the same form, number by number."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {k: between(v, b.get(k), rng) for k, v in a.items()}
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [between(v, w, rng) for v, w in zip(a, b, strict=True)]
    if isinstance(a, float) and isinstance(b, float):
        return float(f"{a + rng.uniform(-0.5, 1.5) * (b - a):.5g}")
    return a


def write(root: Path, templates: list[Any], n_scans: int, n_sites: int) -> None:
    """Write the scans; one in a hundred failed."""
    rng = np.random.default_rng(0)
    for i in range(n_scans):
        out, record, predictions = templates[i % len(templates)]
        others = [t for t in templates if t[1]["site"] == record["site"]]
        other = others[rng.integers(len(others))]
        old, new = record["name"], f"sub-{i:05d}"
        record = copy.deepcopy(record)
        record["metrics"] = between(record["metrics"], other[1]["metrics"], rng)
        site = f"{record['site']}-{int(rng.integers(n_sites))}"
        record["age"] = round(float(rng.uniform(18, 85)), 1)
        record |= {"name": new, "entities": {"subject": f"{i:05d}"}, "site": site}
        record["input_sha256"] = hashlib.sha256(new.encode()).hexdigest()
        originals, record["outputs"] = record["outputs"], []
        for path in originals:
            name = new + Path(path).name.removeprefix(old)
            copied = root / new / Path(path).parent.name / name
            copied.parent.mkdir(parents=True, exist_ok=True)
            record["outputs"].append(copied.relative_to(root).as_posix())
            if not path.endswith(".json"):
                os.symlink(out / path, copied)
        if i % 100 == 99:
            error = {
                "cause": "The brain mask holds 3.17 litres.",
                "remedy": "",
                "crash_file": None,
            }
            record |= {"status": "error", "error": error, "reasons": [error["cause"]]}
            del record["metrics"], record["outputs"]
        anat = root / new / "anat"
        (anat / f"{new}{QC}").write_text(json.dumps(record))
        (anat / f"{new}{PREDICTIONS}").write_text(json.dumps(between(predictions, other[2], rng)))


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outputs", type=Path, nargs="+", metavar="OUTPUT_DIR")
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--sites", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="where to make the dataset, and leave it")
    args = parser.parse_args()
    templates = read([out.resolve() for out in args.outputs])
    if not templates:
        parser.error("no scans there with predictions; run participant without --bundle none")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        bids, out = folder / "bids", folder / "out"
        if not out.is_dir():
            make_dataset(bids, args.scans)
            write(out, templates, args.scans, args.sites)
        command = [sys.executable, "-m", "bids_harmony", str(bids), str(out), "group"]
        start = time.perf_counter()
        subprocess.run([*command, "-w", str(folder / "work")], check=True)
        wall = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = {
            "scans": args.scans,
            "wall_s": round(wall, 1),
            "cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "peak_gb": round(used.ru_maxrss / 1e6, 2),
            "page_mb": round((out / "group_T1w.html").stat().st_size / 1e6, 1),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
