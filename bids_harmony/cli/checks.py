"""Checks of a configuration against the machine, before anything runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bids_harmony.config import RunConfig
from bids_harmony.errors import UsageError, mount_hint
from bids_harmony.files import read_json_or_empty

NAME = "bids_harmony"
MOUNTS = Path("/proc/self/mounts")
#: File systems that a container has of its own, and that end with it.
PASSING = ("overlay", "tmpfs", "fuse-overlayfs", "fuse.fuse-overlayfs")


def check_config(config: RunConfig, *, old_run: bool = False) -> list[str]:
    """Refuse paths that cannot work, and say which choices are doubtful.

    Parameters
    ----------
    config : RunConfig
        The configuration.
    old_run : bool
        Whether ``--run-uuid`` was given, so that ``--reports-only`` means an earlier run.

    Returns
    -------
    list of str
        Warnings.

    Raises
    ------
    UsageError
        Naming the path or the value, and what to do.
    """
    _check_inputs(config)
    warnings = _check_places(config)
    for path, what in (
        (config.output_dir, "The output folder"),
        (config.work_dir, "The work folder"),
        (config.bids_database_dir, "--bids-database-dir"),
    ):
        if path is not None:
            _check_writable(path, what)
    if not re.fullmatch(r"\w[\w.-]*", config.run_uuid):
        raise UsageError(
            f"--run-uuid '{config.run_uuid}' cannot name a folder.",
            "Use letters, digits, '-', '_' and '.'.",
        )
    if config.reports_only and old_run and not config.log_dir.is_dir():
        raise UsageError(f"There is no earlier run {config.log_dir}.", "Correct --run-uuid.")
    if mount_hint() and file_system(config.output_dir) in PASSING:
        warnings.append(
            f"The output folder {config.output_dir} is the container's own, and ends with it."
            f"{mount_hint()}"
        )
    if config.omp_nthreads > config.nprocs:
        warnings.append(
            f"--omp-nthreads {config.omp_nthreads} is more than --nprocs {config.nprocs}: "
            "processes will compete for CPUs."
        )
    return warnings


def _check_inputs(config: RunConfig) -> None:
    """See that what is to be read is there."""
    bundle = None if config.bundle in ("default", "none") else Path(config.bundle)
    # Some levels need the records alone.
    needed = config.level not in ("group", "calibrate") or config.bids_dir.exists()
    for what, path, folder in (
        ("The dataset", config.bids_dir if needed else None, True),
        ("--template", config.template, False),
        ("--use-plugin", config.use_plugin, False),
        ("--atlas-dir", config.atlas_dir, True),
        ("--bundle", bundle, True),
        *(("--qc-ratings", path, False) for path in config.qc_ratings),
        *((f"--derivatives {name}", path, True) for name, path in config.derivatives.items()),
    ):
        if path is not None and not path.exists():
            raise UsageError(f"{what} does not exist: {path}.", f"Correct the path.{mount_hint()}")
        if path is not None and path.is_dir() != folder:
            kind = "folder" if folder else "file"
            raise UsageError(f"{what} is not a {kind}: {path}.", f"Give a {kind}.")
    if config.skull_strip == "multi-atlas" and config.atlas_dir is None:
        raise UsageError(
            "--skull-strip multi-atlas needs atlases.",
            "Give --atlas-dir a folder of T1w images with brain masks.",
        )
    for path in config.derivatives.values():
        if not any(path.glob("sub-*/")):
            inside = sorted({p.parent.name for p in path.glob("*/sub-*/")})
            raise UsageError(
                f"--derivatives {path} holds no sub-* folder.",
                f"Name one pipeline of it, such as {inside[0]}={path / inside[0]}."
                if inside
                else "Give the root of a derivatives dataset.",
            )


def _check_places(config: RunConfig) -> list[str]:
    """See that nothing is written where it does harm."""
    bids, out, work = (p.resolve() for p in (config.bids_dir, config.output_dir, config.work_dir))
    inside = bids in out.parents
    suggestion = f"Use {config.bids_dir / 'derivatives' / NAME}, for example."
    for wrong, cause, remedy in (
        (out == bids, "The output folder is the dataset.", suggestion),
        (inside and out.relative_to(bids).parts[0] != "derivatives",
         f"The output folder {config.output_dir} is among the raw data.", suggestion),
        (out == bids / "derivatives",
         "The output folder is where derivatives of all programs lie.", suggestion),
        (work == bids or bids in work.parents,
         f"The work folder {config.work_dir} is inside the dataset.",
         "Give another with --work-dir."),
        (work == out or work in bids.parents or work in out.parents,
         f"The work folder {config.work_dir} is the output folder, or holds it or the dataset.",
         "Give --work-dir a folder of its own."),
    ):  # fmt: skip
        if wrong:
            raise UsageError(cause, remedy)
    _check_other_dataset(config.output_dir, config.bids_dir)
    warnings = []
    if out in work.parents:
        warnings.append("The work folder is inside the output folder, which BIDS does not allow.")
    if inside and NAME not in out.name:
        warnings.append(f"BIDS asks that {out.name}, inside the dataset, contain '{NAME}'.")
    return warnings


def _check_other_dataset(output_dir: Path, bids_dir: Path) -> None:
    """Refuse to write into a raw dataset, or into derivatives of another program or dataset."""
    from bids_harmony.bids.outputs import derivatives_name

    content = read_json_or_empty(output_dir / "dataset_description.json")
    if not content:
        return
    makers = [m.get("Name") for m in content.get("GeneratedBy") or () if isinstance(m, dict)]
    if content.get("DatasetType", "raw") == "raw" or (makers and NAME not in makers):
        what = f"the derivatives of {makers[0]}" if makers else "a raw dataset"
        raise UsageError(
            f"The output folder {output_dir} holds {what}.", "Give an output folder of its own."
        )
    links = content.get("DatasetLinks")
    raw = links.get("raw") if isinstance(links, dict) else None
    if not isinstance(raw, str):
        return
    owner = (output_dir / raw).resolve()
    same_name = content.get("Name") == derivatives_name(bids_dir)
    gone = not (bids_dir / "dataset_description.json").is_file()  # as of a disk not mounted
    if owner == bids_dir.resolve() and (same_name or gone):
        return
    # Renamed, moved, or mounted elsewhere: its scans tell.
    known = _same_scans(output_dir, bids_dir)
    if not (same_name if known is None else known):
        raise UsageError(
            f"The output folder {output_dir} belongs to another dataset "
            f"({content.get('Name')}; {owner}).",
            "Give this dataset an output folder of its own. If it is the same dataset and all its "
            f"scans were replaced, delete {output_dir / 'dataset_description.json'}.",
        )


def _same_scans(output_dir: Path, bids_dir: Path, most: int = 5) -> bool | None:
    """Tell whether outputs were made from a dataset's scans; None where no scan can tell."""
    from bids_harmony.bids.records import load_record, subject_records
    from bids_harmony.files import sha256_of

    tried = 0
    for path in (p for s in output_dir.glob("sub-*/") for p in subject_records(s)):
        record = load_record(path) or {}
        source, digest = bids_dir / str(record.get("source")), record.get("input_sha256")
        if digest and source.is_file() and tried < most:
            if sha256_of(source) == digest:
                return True
            tried += 1
    return False if tried else None


def _check_writable(path: Path, what: str) -> None:
    """See that a folder can be written, or made where it will be."""
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not there.is_dir():
        raise UsageError(f"{what} {path} cannot be made: {there} is not a folder.", "Move it.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"{what} {path} cannot be written: no permission for {there}.",
            f"Change its permissions or give another folder.{mount_hint(write=True)}",
        )


def file_system(path: Path) -> str | None:
    """Type of the file system that a path lies in, or will; None where that cannot be told."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    mounts = (line.split(" ")[1:3] for line in lines)
    kinds = {Path(place.replace("\\040", " ")): kind for place, kind in mounts}
    path = path.resolve()
    return next((kinds[p] for p in (path, *path.parents) if p in kinds), None)
