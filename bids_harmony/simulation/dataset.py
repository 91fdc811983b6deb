"""A BIDS dataset of simulated heads, with its truth as a derivative."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_harmony.errors import UsageError
from bids_harmony.simulation import describe
from bids_harmony.simulation.atlas import load_atlas
from bids_harmony.simulation.defects import KINDS, draw_defect, scan_badly, spoil_mask
from bids_harmony.simulation.describe import GENERATOR, sidecar
from bids_harmony.simulation.head import make_head
from bids_harmony.simulation.labelmaps import find_maps, load_anatomy
from bids_harmony.simulation.plan import (
    MAX_CONFOUND,
    Subject,
    add_anatomies,
    add_defects,
    add_pathology,
    plan_subjects,
)
from bids_harmony.simulation.scanner import draw_scanner, scan_head

TRUTH = Path("derivatives") / "truth"
MASKS = Path("derivatives") / "masks"
#: Names of nothing wrong.
CLEAN = ("none", "good")


@dataclass(frozen=True)
class Job:
    """What every head of a dataset has in common.

    Attributes
    ----------
    out : pathlib.Path
        Folder of the dataset.
    seed : int
        Seed of the dataset.
    spacing : int
        Voxel size (mm) that heads are made at.
    travelling : bool
        One session per site.
    diagnosis_effect : float
        Size of what the diagnosis does.
    """

    out: Path
    seed: int
    spacing: int
    travelling: bool
    diagnosis_effect: float


def simulate_dataset(
    out: str | Path,
    *,
    n_sites: int,
    n_subjects: int | Sequence[int],
    seed: int,
    travelling: bool = False,
    confound: float = 0.0,
    diagnosis_effect: float = 1.0,
    pathology: float = 0.0,
    bad: float = 0.0,
    bad_kinds: Sequence[str] = tuple(KINDS),
    anatomies: str | Path | None = None,
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
    n_subjects : int or sequence of int
        Heads per site, one number for all or one for each; with ``travelling``, heads in all.
    seed : int
        Not negative.
    travelling : bool
        Scan every head at every site, one session per site.
    confound : float
        Years by which site 1's heads are older on average than the others', -30 to 30.
    diagnosis_effect : float
        Size of what the diagnosis does to ventricles and cortex, 0 (nothing) to 2.
    pathology : float
        Share of heads, 0 to 1, with a lesion, a resection or strong atrophy.
    bad : float
        Share of scans, 0 to 1, that are bad; those of heads with a pathology are not.
    bad_kinds : sequence of str
        Names of :data:`bids_harmony.simulation.defects.KINDS` that bad scans are of, evenly.
    anatomies : path-like, optional
        Folder of label maps (:mod:`bids_harmony.simulation.labelmaps`) that heads are made from
        in turn, instead of nilearn's template; each takes 15 s of CPU and up to 0.7 GB to read.
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
        When a value is out of range, the folder holds something else, or the label maps cannot
        be used.
    """
    out = Path(out)
    stripped = set(stripped_sites)
    sizes = [n_subjects] if isinstance(n_subjects, int) else list(n_subjects)
    _check_size(n_sites, sizes, nprocs, travelling=travelling)
    _check_values(n_sites, seed, resolution, stripped, diagnosis_effect)
    _check_design(n_sites, confound, pathology, bad, bad_kinds, travelling=travelling)
    scanners = [
        draw_scanner(seed, site, stripped=site in stripped, min_voxel_mm=resolution)
        for site in range(1, n_sites + 1)
    ]
    subjects = plan_subjects(
        scanners,
        sizes[0] if len(sizes) == 1 else sizes,
        seed=seed,
        travelling=travelling,
        confound=confound,
    )
    subjects = add_pathology(subjects, pathology, seed=seed)
    subjects = add_defects(subjects, bad, bad_kinds, seed=seed)
    if anatomies is not None:
        subjects = add_anatomies(subjects, find_maps(anatomies, len(subjects)))
    _make_room(out, overwrite=overwrite)

    job = Job(out, seed, 2 if resolution >= 2 else 1, travelling, diagnosis_effect)
    _write_root(job, subjects)
    _write_tsv(out / TRUTH / "sites.tsv", [describe.site_row(scanner) for scanner in scanners])
    for name, content in describe.descriptions(scanners, subjects, seed, travelling).items():
        folder = out if name == "raw" else out / "derivatives" / name
        if folder.is_dir():
            _write_json(folder / "dataset_description.json", content)

    load_atlas()
    truths: dict[str, dict[str, Any]] = {}
    scans: dict[str, list[dict[str, Any]]] = {}
    with ThreadPoolExecutor(max_workers=nprocs) as pool:
        # Heads of one anatomy follow each other: it is built once, and few are in memory.
        ordered = sorted(subjects, key=lambda s: str(s.anatomy or ""))
        futures = {pool.submit(_write_subject, job, subject): subject for subject in ordered}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                subject = futures[future]
                truths[subject.label], scans[subject.label] = future.result()
                if progress:
                    progress(f"[{done}/{len(subjects)}] {_line(subject)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    _write_tsv(out / TRUTH / "scans.tsv", [row for s in subjects for row in scans[s.label]])
    rows = [{**describe.participant_row(s, travelling), **truths[s.label]} for s in subjects]
    _write_tsv(out / TRUTH / "participants.tsv", rows)


def _check_size(n_sites: int, sizes: list[int], nprocs: int, *, travelling: bool) -> None:
    counts = [("sites", n_sites), *(("subjects", size) for size in sizes), ("nprocs", nprocs)]
    for name, value in counts:
        if value < 1:
            raise UsageError(f"--{name} is {value}.", "Give at least 1.")
    if len(sizes) != 1 and (travelling or len(sizes) != n_sites):
        given = " ".join(map(str, sizes))
        raise UsageError(
            f"--subjects {given} does not fit "
            + ("heads that travel to all sites." if travelling else f"{n_sites} sites."),
            "Give one number" + ("." if travelling else ", or one for each site."),
        )


def _check_values(
    n_sites: int, seed: int, resolution: float, stripped: set[int], effect: float
) -> None:
    if seed < 0:
        raise UsageError(f"The seed {seed} is negative.", "Give 0 or a positive whole number.")
    if resolution and not 0.8 <= resolution <= 4.0:
        raise UsageError(
            f"A resolution of {resolution:g} mm is out of range.", "Give 0.8 to 4 mm."
        )
    if not 0 <= effect <= 2:
        raise UsageError(f"--diagnosis-effect is {effect:g}.", "Give a size from 0 to 2.")
    if wrong := sorted(stripped - set(range(1, n_sites + 1))):
        raise UsageError(
            f"There is no site {wrong[0]} to strip.", f"Name sites from 1 to {n_sites}."
        )


def _check_design(
    n_sites: int,
    confound: float,
    pathology: float,
    bad: float,
    bad_kinds: Sequence[str],
    *,
    travelling: bool,
) -> None:
    for name, share in (("pathology", pathology), ("bad", bad)):
        if not 0 <= share <= 1:
            raise UsageError(f"--{name} is {share:g}.", "Give a share from 0 to 1.")
    if not abs(confound) <= MAX_CONFOUND:
        raise UsageError(
            f"--confound is {confound:g} years.", f"Give at most {MAX_CONFOUND:g} years."
        )
    if confound and (travelling or n_sites < 2):
        raise UsageError(
            f"--confound {confound:g} needs sites with heads of their own.",
            "Give at least two sites, and not --travelling.",
        )
    if unknown := sorted(set(bad_kinds) - set(KINDS)):
        raise UsageError(
            f"There is no kind of bad scan called {unknown[0]}.",
            f"Name some of {', '.join(KINDS)}.",
        )
    if bad and not bad_kinds:
        raise UsageError("Bad scans of no kind were asked for.", "Name at least one kind.")


def _make_room(out: Path, *, overwrite: bool) -> None:
    """Make the folder; with ``overwrite``, first remove what an earlier simulation wrote there."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file.", "Give a folder, or a path that does not exist yet.")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise UsageError(
                f"{out} is not empty.", "Give another folder, or --overwrite to replace it."
            )
        if not _is_ours(out):
            raise UsageError(
                f"{out} holds something that {GENERATOR} did not write.",
                "Give another folder: --overwrite replaces only simulated datasets.",
            )
        masks = [out / MASKS] if _is_ours(out / MASKS) else []
        for folder in [*out.glob("sub-*"), out / TRUTH, *masks]:
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("sessions.json", "participants.tsv"):
            (out / name).unlink(missing_ok=True)
    try:
        (out / TRUTH).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be made ({error.strerror}).", "Give a folder you can write to."
        ) from error


def _is_ours(dataset: Path) -> bool:
    """Whether a dataset says that this generator wrote it."""
    try:
        described = json.loads((dataset / "dataset_description.json").read_text(encoding="utf-8"))
        return bool(described["GeneratedBy"][0]["Name"] == GENERATOR)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _line(subject: Subject) -> str:
    """Say what was made."""
    words = [f"{subject.age:g} years", subject.sex, subject.diagnosis]
    words += [scanner.site for scanner in subject.scanners]
    words += [name for name in (subject.pathology, *subject.defects) if name not in CLEAN]
    return f"sub-{subject.label}: {', '.join(words)}"


def _write_subject(job: Job, subject: Subject) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make a head, scan it, write scans, sidecars and masks; return what is true of them."""
    traits: dict[str, Any] = {
        "age": subject.age,
        "diagnosis": subject.diagnosis,
        "diagnosis_effect": job.diagnosis_effect,
        "sex": subject.sex,
        "spacing": job.spacing,
        "atlas": load_anatomy(subject.anatomy) if subject.anatomy else None,
    }
    head = make_head([job.seed, 3, *subject.key], pathology=subject.pathology, **traits)
    truth = head.truth
    name = f"sub-{subject.label}"
    rows = []
    visits = zip(subject.scanners, subject.defects, strict=True)
    for number, (scanner, kind) in enumerate(visits, 1):
        parts = [name, f"ses-{scanner.site}"] if job.travelling else [name]
        place = Path(*parts) / "anat" / "_".join(parts)
        visit = number if job.travelling else 0
        seeds = [job.seed, 4, *subject.key, visit]
        severity = 0.0
        seen = head
        if kind == "good":
            scan, mask = scan_head(head, scanner, seeds)
        else:
            defect = draw_defect(kind, np.random.default_rng([job.seed, 7, *subject.key, visit]))
            if kind == "lesion":
                seen = make_head([job.seed, 3, *subject.key], pathology=kind, **traits)
                truth = truth if job.travelling else seen.truth
            scan, mask, severity = scan_badly(seen, scanner, seeds, defect)
            if kind == "wrong-mask":
                wrong, severity = spoil_mask(scan, mask, defect)
                _write_mask(job.out / MASKS, place, wrong)
        (job.out / place).parent.mkdir(parents=True, exist_ok=True)
        nib.save(scan, job.out / f"{place}_T1w.nii.gz")
        _write_json(job.out / f"{place}_T1w.json", sidecar(scanner))
        _write_mask(job.out / TRUTH, place, mask)
        what = {"filename": f"{place.as_posix()}_T1w.nii.gz", "site": scanner.site}
        ill = {key: seen.truth[key] for key in describe.PATHOLOGY_COLUMNS}
        rows.append({**what, "quality": kind, "severity": round(severity, 4), **ill})
    if job.travelling:
        sessions = [{"session_id": f"ses-{s.site}", "site": s.site} for s in subject.scanners]
        _write_tsv(job.out / name / f"{name}_sessions.tsv", sessions)
    if subject.anatomy:
        truth = truth | {"anatomy": subject.anatomy.name.split(".nii")[0]}
    return {k: v for k, v in truth.items() if k not in describe.PARTICIPANT_COLUMNS}, rows


def _write_mask(dataset: Path, place: Path, mask: nib.Nifti1Image) -> None:
    """Write a scan's brain mask into a derivative dataset."""
    path = dataset / f"{place}_desc-brain_mask.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(mask, path)
    source = f"bids:raw:{place.as_posix()}_T1w.nii.gz"
    _write_json(
        dataset / f"{place}_desc-brain_mask.json",
        {"Type": "Brain", "Sources": [source], "Simulated": True},
    )


def _write_root(job: Job, subjects: list[Subject]) -> None:
    """Write what stands at the root of each dataset, except what only the heads tell."""
    out, travelling = job.out, job.travelling
    (out / "README").write_text(describe.readme(subjects, travelling), encoding="utf-8")
    (out / TRUTH / "README").write_text(describe.TRUTH_README, encoding="utf-8")
    if any("wrong-mask" in subject.defects for subject in subjects):
        (out / MASKS).mkdir(parents=True, exist_ok=True)
        (out / MASKS / "README").write_text(describe.MASKS_README, encoding="utf-8")
    columns = describe.participant_columns(travelling)
    _write_json(out / "participants.json", columns)
    truth = columns | describe.TRUTH_COLUMNS | describe.EFFECT_COLUMNS | describe.PATHOLOGY_COLUMNS
    if any(subject.anatomy for subject in subjects):
        truth |= describe.ANATOMY_COLUMN
    _write_json(out / TRUTH / "participants.json", truth)
    _write_json(out / TRUTH / "scans.json", describe.SCAN_COLUMNS)
    _write_json(out / TRUTH / "sites.json", describe.SITE_COLUMNS)
    names = (f"{stem}.{end}\n" for stem in ("sites", "scans") for end in ("tsv", "json"))
    (out / TRUTH / ".bidsignore").write_text("".join(names), encoding="utf-8")
    _write_tsv(
        out / "participants.tsv", [describe.participant_row(s, travelling) for s in subjects]
    )
    if travelling:
        _write_json(out / "sessions.json", {"site": describe.PARTICIPANT_COLUMNS["site"]})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(str(v) for v in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
