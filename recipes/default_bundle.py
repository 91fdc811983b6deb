"""Train the bundle that ships with the package on three public datasets (see README)."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from bids_harmony.files import read_json, write_json
from bids_harmony.models.bundle import DEFAULT_BUNDLE, load_bundle

#: Folder of each dataset, and prefix of its subject labels in the merged dataset.
SOURCES = {"ixi_hh": "IXI", "ds002748": "NSK", "ds000011": "UCLA"}
COLUMNS = ["participant_id", "age", "sex", "site", "diagnosis"]


def merge(scans: Path, merged: Path) -> int:
    """Merge the datasets into one BIDS dataset of symbolic links; return the number of scans.

    Parameters
    ----------
    scans : pathlib.Path
        Folder that contains the datasets of :data:`SOURCES`.
    merged : pathlib.Path
        Folder of the merged dataset; existing links are kept.
    """
    tables, licences, n_scans = [], [], 0
    for folder, prefix in SOURCES.items():
        source = scans / folder
        description = read_json(source / "dataset_description.json")[0]
        licences.append(f"{description['Name']}: {description['License']}")
        table = pd.read_csv(source / "participants.tsv", sep="\t", dtype=str, na_filter=False)
        old = table["participant_id"]
        new = f"sub-{prefix}" + old.str.removeprefix("sub-").str.removeprefix(prefix)
        tables.append(table.assign(participant_id=new).reindex(columns=COLUMNS))
        for was, name in zip(old, new, strict=True):
            (merged / name / "anat").mkdir(parents=True, exist_ok=True)
            for image in sorted((source / was / "anat").glob("*_T1w.nii.gz")):
                target = merged / name / "anat" / image.name.replace(was, name, 1)
                if not target.is_symlink():
                    target.symlink_to(image.resolve())
                if (source / "T1w.json").is_file():
                    shutil.copy(source / "T1w.json", str(target).replace(".nii.gz", ".json"))
                n_scans += 1
    table = pd.concat(tables).replace("", None)
    table.to_csv(merged / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    about = {"Name": "Scans of the default bundle", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    write_json(merged / "dataset_description.json", about | {"License": "; ".join(licences)})
    return n_scans


def run(command: list[str]) -> None:
    """Run a command; if it fails, exit with its exit code."""
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


def main() -> int:
    """Merge and preprocess the datasets, train the bundle and, with ``--install``, install it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path, help="folder of the three datasets")
    parser.add_argument("work", type=Path, help="folder for outputs")
    parser.add_argument("--nprocs", type=int, default=2)
    parser.add_argument("--install", action="store_true", help="replace the bundle of the package")
    options = parser.parse_args()

    bids, out = options.work / "bids", options.work / "out"
    print(f"{merge(options.scans, bids)} scans in {bids}")
    command = [sys.executable, "-m", "bids_harmony", str(bids), str(out)]
    nprocs = ["--nprocs", str(options.nprocs)]
    work = ["--work-dir", str(options.work / "work")]
    run([*command, "participant", "--bundle", "none", *nprocs, *work])
    train = ["train", "--reference-site", "IXI-HH", "--model-name", "default"]
    # Depression may affect brain age, so only controls calibrate the site and evaluate its offset.
    run([*command, *train, "--fit-filter", "diagnosis != 'depression'", *nprocs, *work])
    bundle = load_bundle(out / "models" / "default")
    print(json.dumps(bundle.info["metrics"], indent=1))
    if options.install:
        shutil.rmtree(DEFAULT_BUNDLE, ignore_errors=True)
        shutil.copytree(bundle.path, DEFAULT_BUNDLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
