"""A BIDS dataset of simulated heads, with its truth as a derivative."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_harmony import __version__
from bids_harmony.errors import UsageError
from bids_harmony.simulation.atlas import load_atlas
from bids_harmony.simulation.head import AGE_RANGE, DIAGNOSES, make_head
from bids_harmony.simulation.scanner import Scanner, draw_scanner, scan_head

GENERATOR = "bids_harmony-simulate"
BIDS_VERSION = "1.10.0"
SIMULATED = "Simulated data: no person was scanned, and the diagnosis is made up."
TRUTH = Path("derivatives") / "truth"

PARTICIPANT_COLUMNS: dict[str, Any] = {
    "age": {"Description": "Age of the simulated head.", "Units": "year"},
    "sex": {"Description": "Simulated sex.", "Levels": {"F": "female", "M": "male"}},
    "site": {"Description": "Site, each with its own made-up scanner."},
    "diagnosis": {
        "Description": "Simulated diagnosis: wider ventricles and thinner frontal and temporal "
        "cortex, by a made-up amount. It says nothing about the disease.",
        "Levels": {
            "control": "no effect was simulated",
            "schizophrenia": "the effect was simulated",
        },
    },
}
TRUTH_COLUMNS: dict[str, Any] = {
    f"{name}_ml": {"Description": f"True volume of the {text} of the head.", "Units": "mL"}
    for name, text in (
        ("brain", "brain mask"),
        ("gm", "grey matter"),
        ("wm", "white matter"),
        ("csf", "CSF inside the brain mask"),
        ("ventricle", "lateral ventricles and what of the third joins them"),
    )
}


@dataclass(frozen=True)
class Subject:
    """One head to make, and the scanners that scan it.

    Attributes
    ----------
    label : str
        Participant label without ``sub-``.
    key : tuple of int
        Site (0 when travelling) and number within it: what its seeds are made of, so that a
        head does not change when sites or subjects are added.
    age : float
        Years.
    sex, diagnosis : str
        As in ``participants.tsv``.
    scanners : tuple of Scanner
        One, or all sites' when travelling.
    """

    label: str
    key: tuple[int, int]
    age: float
    sex: str
    diagnosis: str
    scanners: tuple[Scanner, ...]


def simulate_dataset(
    out: str | Path,
    *,
    n_sites: int,
    n_subjects: int,
    seed: int,
    travelling: bool = False,
    nprocs: int = 1,
    resolution: float = 0.0,
    stripped_sites: Iterable[int] = (),
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write a made-up multi-site BIDS dataset and its truth.

    The same arguments write the same bytes, whatever ``nprocs``.

    Parameters
    ----------
    out : path-like
        Folder of the dataset; it must be empty or absent unless ``overwrite``.
    n_sites : int
        Number of sites.
    n_subjects : int
        Heads per site; with ``travelling``, heads in all.
    seed : int
        Not negative.
    travelling : bool
        Scan every head at every site, one session per site.
    nprocs : int
        Heads made at the same time (threads: nearly all time is spent outside the interpreter's
        lock), about 0.3 GB each.
    resolution : float
        Voxels finer than this (mm) become this large; from 2 mm on the heads themselves are made
        at 2 mm, in a fraction of the time.
    stripped_sites : iterable of int
        Numbers of the sites that deliver scans without skull.
    overwrite : bool
        Replace a dataset this function wrote before.
    progress : callable, optional
        Called with a line per finished head.

    Raises
    ------
    UsageError
        When a value is out of range, or the folder holds something else.
    """
    out = Path(out)
    stripped = set(stripped_sites)
    _check_size(n_sites, n_subjects, nprocs)
    _check_values(n_sites, seed, resolution, stripped)
    _make_room(out, overwrite=overwrite)
    scanners = [
        draw_scanner(seed, site, stripped=site in stripped, min_voxel_mm=resolution)
        for site in range(1, n_sites + 1)
    ]
    subjects = plan_subjects(scanners, n_subjects, seed=seed, travelling=travelling)
    _write_dataset(out, scanners, subjects, seed=seed, travelling=travelling)

    load_atlas()
    truths: dict[str, dict[str, Any]] = {}
    spacing = 2 if resolution >= 2 else 1
    with ThreadPoolExecutor(max_workers=nprocs) as pool:
        futures = {
            pool.submit(_write_subject, out, subject, seed, spacing, travelling): subject
            for subject in subjects
        }
        try:
            for done, future in enumerate(as_completed(futures), 1):
                subject = futures[future]
                truths[subject.label] = future.result()
                if progress:
                    sites = ", ".join(scanner.site for scanner in subject.scanners)
                    progress(
                        f"[{done}/{len(subjects)}] sub-{subject.label}: {subject.age:g} years, "
                        f"{subject.sex}, {subject.diagnosis}, {sites}"
                    )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rows = [{**_participant(s, travelling), **truths[s.label]} for s in subjects]
    _write_tsv(out / TRUTH / "participants.tsv", rows)


def plan_subjects(
    scanners: list[Scanner], n_subjects: int, *, seed: int, travelling: bool
) -> list[Subject]:
    """Draw who is scanned where; ages cover 18 to 85 years evenly at every site."""
    groups = (
        [(0, tuple(scanners))]
        if travelling
        else [(k, (scanner,)) for k, scanner in enumerate(scanners, 1)]
    )
    width = max(2, len(str(n_subjects * len(groups))))
    subjects: list[Subject] = []
    for site, visits in groups:
        rng = np.random.default_rng([seed, 2, site])
        strata = (rng.permutation(n_subjects) + rng.random(n_subjects)) / n_subjects
        first_ill, first_male = rng.integers(0, 2, 2)
        for k, place in enumerate(strata):
            subjects.append(
                Subject(
                    label=f"{len(subjects) + 1:0{width}d}",
                    key=(site, k),
                    age=round(float(AGE_RANGE[0] + place * np.ptp(AGE_RANGE)), 1),
                    sex="FM"[(k // 2 + first_male) % 2],
                    diagnosis=DIAGNOSES[(k + first_ill) % 2],
                    scanners=visits,
                )
            )
    return subjects


def _check_size(n_sites: int, n_subjects: int, nprocs: int) -> None:
    for name, value in (("sites", n_sites), ("subjects", n_subjects), ("nprocs", nprocs)):
        if value < 1:
            raise UsageError(f"--{name} is {value}.", "Give at least 1.")


def _check_values(n_sites: int, seed: int, resolution: float, stripped: set[int]) -> None:
    if seed < 0:
        raise UsageError(f"The seed {seed} is negative.", "Give 0 or a positive whole number.")
    if resolution and not 0.8 <= resolution <= 4.0:
        raise UsageError(
            f"A resolution of {resolution:g} mm is out of range.", "Give 0.8 to 4 mm."
        )
    if wrong := sorted(stripped - set(range(1, n_sites + 1))):
        raise UsageError(
            f"There is no site {wrong[0]} to strip.", f"Name sites from 1 to {n_sites}."
        )


def _make_room(out: Path, *, overwrite: bool) -> None:
    """Make the folder; with ``overwrite``, first remove what an earlier simulation wrote there."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file.", "Give a folder, or a path that does not exist yet.")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise UsageError(
                f"{out} is not empty.", "Give another folder, or --overwrite to replace it."
            )
        try:
            described = json.loads((out / "dataset_description.json").read_text())
            ours = described["GeneratedBy"][0]["Name"] == GENERATOR
        except (OSError, ValueError, LookupError, TypeError):
            ours = False
        if not ours:
            raise UsageError(
                f"{out} holds something that {GENERATOR} did not write.",
                "Give another folder: --overwrite replaces only simulated datasets.",
            )
        for folder in [*out.glob("sub-*"), out / TRUTH]:
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("sessions.json", "participants.tsv"):
            (out / name).unlink(missing_ok=True)
    try:
        (out / TRUTH).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be made ({error.strerror}).", "Give a folder you can write to."
        ) from error


def _write_subject(
    out: Path, subject: Subject, seed: int, spacing: int, travelling: bool
) -> dict[str, float]:
    """Make a head, scan it, write scans, sidecars and masks; return its true volumes."""
    head = make_head(
        [seed, 3, *subject.key],
        age=subject.age,
        diagnosis=subject.diagnosis,
        sex=subject.sex,
        spacing=spacing,
    )
    name = f"sub-{subject.label}"
    for number, scanner in enumerate(subject.scanners, 1):
        parts = [name, f"ses-{scanner.site}"] if travelling else [name]
        anat = Path(*parts) / "anat"
        stem = "_".join(parts)
        visit = number if travelling else 0
        scan, mask = scan_head(head, scanner, [seed, 4, *subject.key, visit])
        for folder in (out / anat, out / TRUTH / anat):
            folder.mkdir(parents=True, exist_ok=True)
        nib.save(scan, out / anat / f"{stem}_T1w.nii.gz")
        _write_json(out / anat / f"{stem}_T1w.json", sidecar(scanner))
        nib.save(mask, out / TRUTH / anat / f"{stem}_desc-brain_mask.nii.gz")
        source = (anat / f"{stem}_T1w.nii.gz").as_posix()
        _write_json(
            out / TRUTH / anat / f"{stem}_desc-brain_mask.json",
            {"Type": "Brain", "Sources": [f"bids:raw:{source}"], "Simulated": True},
        )
    if travelling:
        rows = [{"session_id": f"ses-{s.site}", "site": s.site} for s in subject.scanners]
        _write_tsv(out / name / f"{name}_sessions.tsv", rows)
    return {key: value for key, value in head.truth.items() if key.endswith("_ml")}


def sidecar(scanner: Scanner) -> dict[str, Any]:
    """BIDS metadata of a scanner's T1w scans."""
    return {
        "Simulated": True,
        "SimulationDescription": SIMULATED,
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
        "SkullStripped": scanner.stripped,
    }


def _participant(subject: Subject, travelling: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "participant_id": f"sub-{subject.label}",
        "age": subject.age,
        "sex": subject.sex,
    }
    if not travelling:
        row["site"] = subject.scanners[0].site
    return row | {"diagnosis": subject.diagnosis}


def _write_dataset(
    out: Path, scanners: list[Scanner], subjects: list[Subject], *, seed: int, travelling: bool
) -> None:
    """Write everything at the dataset's root and the truth's, except the table of volumes."""
    generated = {
        "Name": GENERATOR,
        "Version": __version__,
        "Description": f"{len(scanners)} sites, {len(subjects)} heads, seed {seed}"
        + (", travelling" if travelling else ""),
    }
    common = {"BIDSVersion": BIDS_VERSION, "GeneratedBy": [generated]}
    _write_json(
        out / "dataset_description.json",
        {"Name": "Simulated heads", "DatasetType": "raw", "Authors": [GENERATOR], **common},
    )
    _write_json(
        out / TRUTH / "dataset_description.json",
        {
            "Name": "Truth of the simulated heads",
            "DatasetType": "derivative",
            "DatasetLinks": {"raw": "../.."},
            **common,
        },
    )
    (out / "README").write_text(_readme(travelling))
    (out / TRUTH / "README").write_text(
        f"{SIMULATED}\n\nTrue brain masks on each scan's grid; `participants.tsv`: true volumes "
        "of each head; `sites.tsv`: what each made-up scanner does.\n"
    )
    columns = {k: v for k, v in PARTICIPANT_COLUMNS.items() if k != "site" or not travelling}
    _write_json(out / "participants.json", columns)
    _write_json(out / TRUTH / "participants.json", columns | TRUTH_COLUMNS)
    _write_tsv(out / "participants.tsv", [_participant(s, travelling) for s in subjects])
    if travelling:
        _write_json(out / "sessions.json", {"site": PARTICIPANT_COLUMNS["site"]})
    _write_tsv(out / TRUTH / "sites.tsv", [_site_row(scanner) for scanner in scanners])
    (out / TRUTH / ".bidsignore").write_text("sites.tsv\n")


def _site_row(scanner: Scanner) -> dict[str, Any]:
    row = {
        name: " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        for name, value in asdict(scanner).items()
    }
    signals = {f"{name}_to_wm": round(scanner.signal(name), 4) for name in ("gm", "csf", "fat")}
    return row | signals


def _readme(travelling: bool) -> str:
    design = (
        "The same heads are scanned at every site, one session per site."
        if travelling
        else "Every site has its own heads."
    )
    return f"""# Simulated heads

{SIMULATED}
{design}

Each head is a smooth random deformation of the MNI ICBM152 2009a symmetric template
(Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
Institute, McGill University), with skull, scalp, face and neck drawn around it. Ventricles grow
and cortex thins with the age in `participants.tsv`; `diagnosis` is a made-up effect on both, and
says nothing about the disease it is named after. Every site has a made-up scanner with its own
contrast, receive field, noise, resolution, orientation, field of view and intensity scale.

The true brain masks, volumes and scanners are in `derivatives/truth`.
Written by {GENERATOR} {__version__}.
"""


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(str(v) for v in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
