"""Write BIDS datasets of simulated heads, with the ground truth as derivatives."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_harmony import __version__
from bids_harmony.errors import UsageError
from bids_harmony.files import write_json, write_text
from bids_harmony.simulation import GENERATOR, KINDS
from bids_harmony.simulation.anatomy import AGE_RANGE, DIAGNOSES, load_template, make_head
from bids_harmony.simulation.scanner import Scanner, draw_scanner, scan_head

LOGGER = logging.getLogger(__name__)
Row = dict[str, Any]

TRUTH, MASKS = Path("derivatives/truth"), Path("derivatives/masks")
#: Folder of dataset descriptions and READMEs, and of the data dictionary of all tables.
TEXTS = files("bids_harmony.data") / "simulation"


def simulate_dataset(
    out: str | Path,
    *,
    n_sites: int,
    n_subjects: int,
    seed: int,
    travelling: bool = False,
    diagnosis_effect: float = 1.0,
    bad: float = 0.0,
    bad_kinds: Sequence[str] = tuple(KINDS),
    nprocs: int = 1,
    resolution: float = 0.0,
) -> None:
    """Write a simulated multi-site BIDS dataset and its ground truth.

    The same arguments write the same bytes for any ``nprocs``.

    Parameters
    ----------
    out : path-like
        Dataset folder; it must be empty or absent.
    n_sites : int
        Number of sites.
    n_subjects : int
        Heads per site; with ``travelling``, heads in total.
    seed : int
        Random seed, not negative.
    travelling : bool
        Whether to scan every head at every site, with one session per site.
    diagnosis_effect : float
        Factor of the diagnosis effect on ventricles and cortex, 0 (none) to 2.
    bad : float
        Fraction of bad scans, 0 to 1.
    bad_kinds : sequence of str
        Kinds of bad scans, keys of :data:`bids_harmony.simulation.KINDS`, used equally often.
    nprocs : int
        Number of heads simulated in parallel, up to 1 GB each. Threads suffice, as most of the
        work releases the interpreter lock.
    resolution : float
        Smallest voxel size in mm; finer voxels are enlarged. From 2 mm, heads are simulated at
        2 mm, which is much faster. 0 keeps all voxel sizes.

    Raises
    ------
    UsageError
        If the folder is not empty.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UsageError(f"The folder {out} is not empty.", "Choose another folder or delete it.")
    scanners = [draw_scanner(seed, k + 1, min_voxel_mm=resolution) for k in range(n_sites)]
    people = plan_people(0 if travelling else n_sites, n_subjects, seed=seed)
    visits = [[scanners[site - 1]] if site else scanners for site, _ in people.index]
    kinds = iter(plan_kinds(sum(map(len, visits)), bad, bad_kinds, seed=seed))
    plan = [{scanner: next(kinds) for scanner in seen} for seen in visits]

    made = f"{n_sites} sites, {len(people)} heads, seed {seed}"
    datasets = {"raw": out, "truth": out / TRUTH, "masks": out / MASKS}
    if not any("wrong-mask" in scans.values() for scans in plan):
        del datasets["masks"]
    for name, dataset in datasets.items():
        about = json.loads((TEXTS / f"{name}.json").read_text(encoding="utf-8"))
        about["GeneratedBy"] = [{"Name": GENERATOR, "Version": __version__, "Description": made}]
        write_json(dataset / "dataset_description.json", about)
        write_text(dataset / "README", (TEXTS / f"README_{name}").read_text(encoding="utf-8"))
    load_template()
    rows: list[Row] = people.to_dict("records")  # type: ignore[assignment]
    truths: list[Row] = []
    scans: list[Row] = []

    def write_person(key: tuple[int, int], person: Row, plan: dict[Scanner, str]) -> list[Row]:
        """Simulate a person's head and scans, and write the files; return the truth of both."""
        traits = {name: person[name] for name in ("age", "sex", "diagnosis")}
        traits |= {"spacing": 2 if resolution >= 2 else 1, "diagnosis_effect": diagnosis_effect}
        ill = {kind == "lesion" for kind in plan.values()}
        heads = {lesion: make_head([seed, 3, *key], lesion=lesion, **traits) for lesion in ill}
        found = [person | heads[min(heads)].truth]
        for visit, (scanner, kind) in enumerate(plan.items(), 1):
            seeds = [seed, 4, *key, visit]
            images, severity = scan_head(heads[kind == "lesion"], scanner, seeds, kind)
            name = person["participant_id"]
            parts = [name, f"ses-{scanner.site}"] if travelling else [name]
            stem = "/".join([*parts, "anat", "_".join(parts)])
            mask = {"Type": "Brain", "Sources": [f"bids:raw:{stem}_T1w.nii.gz"], "Simulated": True}
            for image, path, fields in (
                ("t1w", out / f"{stem}_T1w", sidecar(scanner)),
                ("brain", out / TRUTH / f"{stem}_desc-brain_mask", mask),
                ("wrong_brain", out / MASKS / f"{stem}_desc-brain_mask", mask),
            ):
                if image in images:
                    write_json(path.with_name(f"{path.name}.json"), fields)
                    nib.save(images[image], path.with_name(f"{path.name}.nii.gz"))
            row = {"filename": f"{stem}_T1w.nii.gz", "site": scanner.site, "quality": kind}
            found.append({**row, "severity": round(severity, 4)})
        if travelling:
            sessions = [{"session_id": f"ses-{s.site}", "site": s.site} for s in plan]
            _write_table(out / name / f"{name}_sessions.tsv", sessions, out / "sessions.json")
        return found

    with ThreadPoolExecutor(max_workers=nprocs) as pool:
        for truth, *seen in pool.map(write_person, people.index, rows, plan):
            truths.append(truth)
            scans += seen
            values = ", ".join(map(str, rows[len(truths) - 1].values()))
            LOGGER.info(f"[{len(truths)}/{len(rows)}] {values}")

    _write_table(out / "participants.tsv", rows)
    _write_table(out / TRUTH / "participants.tsv", truths)
    _write_table(out / TRUTH / "scans.tsv", scans)
    _write_table(out / TRUTH / "sites.tsv", [_site(scanner) for scanner in scanners])
    write_text(out / TRUTH / ".bidsignore", "scans.*\nsites.*\n")


def plan_people(n_sites: int, size: int, *, seed: int) -> pd.DataFrame:
    """Draw the participants; ages cover 18 to 85 years evenly at every site.

    Parameters
    ----------
    n_sites : int
        Number of sites; 0 for travelling participants, who are scanned at all sites.
    size : int
        Participants per site.
    seed : int
        Random seed.

    Returns
    -------
    pandas.DataFrame
        Rows of ``participants.tsv``, indexed by site number (from 1; 0 if travelling) and number
        within the site. Seeds of heads derive from this index, so a head does not change if sites
        are added.
    """
    tables = {}
    for site in range(1, n_sites + 1) if n_sites else [0]:
        rng, order = np.random.default_rng([seed, 2, site]), np.arange(size)
        places = (rng.permutation(size) + rng.random(size)) / size
        first_ill, first_male = rng.integers(0, 2, 2)
        tables[site] = pd.DataFrame({
            "age": (AGE_RANGE[0] + places * np.ptp(AGE_RANGE)).round(1),
            "sex": np.array(["F", "M"])[(order // 2 + first_male) % 2],
            "site": f"site{site}",
            "diagnosis": np.array(DIAGNOSES)[(order + first_ill) % 2],
        })  # fmt: skip
    people = pd.concat(tables)
    width = max(2, len(str(len(people))))
    labels = [f"sub-{n:0{width}d}" for n in range(1, len(people) + 1)]
    people.insert(0, "participant_id", labels)
    return people if n_sites else people.drop(columns="site")


def plan_kinds(n: int, share: float, kinds: Sequence[str], *, seed: int) -> list[str]:
    """Return the kind of each of ``n`` scans: a fraction ``share`` of bad ones, evenly spread."""
    rng, names, count = np.random.default_rng([seed, 6]), ["good"] * n, round(share * n)
    in_turn = itertools.cycle(rng.permutation(list(kinds)).tolist())
    # One in each run of scans, so that every site gets bad scans.
    for run in np.array_split(np.arange(n), max(count, 1))[:count]:
        names[rng.choice(run)] = next(in_turn)
    return names


def sidecar(scanner: Scanner) -> Row:
    """Return the BIDS sidecar of a scanner's T1w scans."""
    return {
        "Simulated": True,
        "SimulationDescription": "No person was scanned, and the diagnosis is simulated.",
        "Manufacturer": "Simulated",
        "ManufacturersModelName": scanner.model,
        "MagneticFieldStrength": scanner.field_strength,
        "PulseSequenceType": "MPRAGE",
        "MRAcquisitionType": "3D",
        "RepetitionTimePreparation": round(scanner.repetition_ms / 1000, 4),
        "RepetitionTimeExcitation": round(scanner.spacing_ms / 1000, 4),
        "RepetitionTime": round(scanner.repetition_ms / 1000, 4),
        "InversionTime": round(scanner.inversion_ms / 1000, 4),
        "EchoTime": round(scanner.echo_ms / 1000, 5),
        "FlipAngle": scanner.flip_deg,
        "SliceThickness": max(scanner.voxel_mm),
    }


def _site(scanner: Scanner) -> Row:
    """Return a scanner's row of ``derivatives/truth/sites.tsv``."""
    row = {
        name: " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        for name, value in asdict(scanner).items()
    }
    signals = scanner.signals()
    return row | {f"{name}_to_wm": round(signals[name], 4) for name in ("gm", "csf", "fat")}


def _write_table(path: Path, rows: list[Row], dictionary: Path | None = None) -> None:
    """Write a table, and its data dictionary (by default next to it)."""
    columns = json.loads((TEXTS / "columns.json").read_text(encoding="utf-8"))
    known = {name: about for name, about in columns.items() if name in rows[0]}
    write_json(dictionary or path.with_suffix(".json"), known)
    write_text(path, pd.DataFrame(rows).to_csv(sep="\t", index=False, lineterminator="\n"))
