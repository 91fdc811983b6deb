"""Measure ``--dry-run`` and, from the records of a few scans, ``group`` on a large dataset.

    python benchmarks/scale.py --subjects 10000 [OUTPUT_DIR ...]

The dataset has empty NIfTI files, a participants table and sidecars. Each command is timed as a
whole, including imports. As seconds depend on the computer, ``--dry-run`` is also compared with
pybids's indexing of the same dataset. The records for ``group`` interpolate between scans of the
same site that were completed in each OUTPUT_DIR; images are symbolic links, so that the report
has something to show.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import measure

QC, PREDICTIONS = "_desc-harmony_qc.json", "_desc-harmony_predictions.json"
PLAIN = "import sys; from bids import BIDSLayout; print(BIDSLayout(sys.argv[1], validate=False))"


def make_dataset(root: Path, n_subjects: int) -> None:
    """Write subjects 00000, 00001... with one empty T1w image and its sidecar each."""
    sidecar = json.dumps({"Manufacturer": "Siemens", "ManufacturersModelName": "Prisma"})
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    rows = ["participant_id\tage\tsex\tsite"]
    for i in range(n_subjects):
        name = f"sub-{i:05d}"
        image = root / name / "anat" / f"{name}_T1w.nii.gz"
        image.parent.mkdir(parents=True)
        image.touch()
        image.with_name(f"{name}_T1w.json").write_text(sidecar)
        rows.append(f"{name}\t{20 + i % 60}\t{'MF'[i % 2]}\tsite{i % 7}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")


def read_records(outs: list[Path]) -> list[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """Return output folder, record and predictions of each completed scan with predictions."""
    found = []
    for out in outs:
        for path in sorted(out.glob(f"sub-*/**/anat/*{QC}")):
            record = json.loads(path.read_text())
            other = path.with_name(path.name.replace(QC, PREDICTIONS))
            if record["status"] != "error" and other.exists():
                found.append((out, record, json.loads(other.read_text())))
    return found


def between(a: Any, b: Any, rng: np.random.Generator) -> Any:
    """Interpolate (or extrapolate) at random between the numbers of two similar JSON values."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {k: between(v, b.get(k), rng) for k, v in a.items()}
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [between(v, w, rng) for v, w in zip(a, b, strict=True)]
    if isinstance(a, float) and isinstance(b, float):
        return float(f"{a + rng.uniform(-0.5, 1.5) * (b - a):.5g}")
    return a


def write_records(root: Path, templates: list[Any], n_scans: int) -> None:
    """Write records of made-up scans, each site split into seven; one in a hundred failed."""
    rng = np.random.default_rng(0)
    for i in range(n_scans):
        out, record, predictions = templates[i % len(templates)]
        others = [t for t in templates if t[1]["site"] == record["site"]]
        other = others[rng.integers(len(others))]
        old, new = record["name"], f"sub-{i:05d}"
        record = copy.deepcopy(record) | {
            "name": new, "entities": {"subject": f"{i:05d}"},
            "age": round(float(rng.uniform(18, 85)), 1), "site": f"{record['site']}-{i % 7}",
            "metrics": between(record["metrics"], other[1]["metrics"], rng),
            "input_sha256": hashlib.sha256(new.encode()).hexdigest(), "outputs": [],
        }  # fmt: skip
        for path in templates[i % len(templates)][1]["outputs"]:
            name = new + Path(path).name.removeprefix(old)
            copied = root / new / Path(path).parent.name / name
            copied.parent.mkdir(parents=True, exist_ok=True)
            record["outputs"].append(copied.relative_to(root).as_posix())
            if not path.endswith(".json"):
                os.symlink(out / path, copied)
        if i % 100 == 99:
            cause = "The brain mask holds 3.17 litres."
            error = {"cause": cause, "remedy": "", "crash_file": None}
            record |= {"status": "error", "error": error, "reasons": [cause]}
            del record["metrics"], record["outputs"]
        anat = root / new / "anat"
        (anat / f"{new}{QC}").write_text(json.dumps(record))
        (anat / f"{new}{PREDICTIONS}").write_text(json.dumps(between(predictions, other[2], rng)))


def main() -> None:
    """Run the measurements and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outputs", type=Path, nargs="*", metavar="OUTPUT_DIR")
    parser.add_argument("--subjects", type=int, default=10_000)
    parser.add_argument("--tmp", type=Path, help="where to make the dataset")
    args = parser.parse_args()
    templates = read_records([out.resolve() for out in args.outputs])
    if args.outputs and not templates:
        parser.error("no scans there with predictions; run participant without --bundle none")
    with tempfile.TemporaryDirectory(dir=args.tmp) as folder:
        bids, out = Path(folder) / "bids", Path(folder) / "out"
        make_dataset(bids, args.subjects)
        command = ("-m", "bids_harmony", bids, out)
        options = ("participant", "--dry-run", "--bundle", "none", "-w", f"{folder}/work")
        results = {
            "dry_run_one": measure(*command, *options, "--participant-label", "00000"),
            "dry_run_all": measure(*command, *options),
            "pybids_plain": measure("-c", PLAIN, bids),
        }
        for name in ("dry_run_one", "dry_run_all"):
            ratio = results[name]["cpu_s"] / results["pybids_plain"]["cpu_s"]
            results[name]["cpu_to_plain"] = round(ratio, 3)
        if templates:
            write_records(out, templates, args.subjects)
            results["group"] = measure(*command, "group", "-w", f"{folder}/work")
            page = (out / "group_T1w.html").stat().st_size
            results["group"]["page_mb"] = round(page / 1e6, 1)
    print(json.dumps({"subjects": args.subjects, **results}, indent=2))


if __name__ == "__main__":
    main()
