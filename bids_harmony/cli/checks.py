"""Checks of a configuration before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

from bids_harmony.config import RunConfig
from bids_harmony.errors import UsageError, mount_hint
from bids_harmony.files import read_json_or_empty

NAME = "bids_harmony"


def check_config(config: RunConfig) -> list[str]:
    """Check that the paths of a configuration can be used, and return warnings.

    Raises
    ------
    UsageError
        If a path or value cannot be used.
    """
    _check_inputs(config)
    _check_locations(config)
    check_writable(config.output_dir, "The output folder")
    check_writable(config.work_dir, "The working directory")
    _check_other_dataset(config.output_dir, config.bids_dir)
    warnings = []
    if config.output_dir.resolve() in config.work_dir.resolve().parents:
        warnings.append("The working directory is inside the output folder, which is not BIDS.")
    mounted = any(map(os.path.ismount, (config.output_dir, *config.output_dir.parents[:-1])))
    if mount_hint() and not mounted:
        warnings.append(
            f"The output folder {config.output_dir} is not mounted, and is deleted with the "
            f"container.{mount_hint()}"
        )
    return warnings


def _check_inputs(config: RunConfig) -> None:
    """Check that the inputs exist and are files or folders as expected."""
    bundle = None if config.bundle in ("default", "none") else Path(config.bundle)
    # The group and calibrate levels can run on the records only.
    needed = config.level not in ("group", "calibrate") or config.bids_dir.exists()
    for what, path, folder in (
        ("The dataset", config.bids_dir if needed else None, True),
        ("--template", config.template, False),
        ("--use-plugin", config.use_plugin, False),
        ("--atlas-dir", config.atlas_dir, True),
        ("--bundle", bundle, True),
        *(("--qc-ratings", path, False) for path in config.qc_ratings),
        *(("--derivatives", path, True) for path in config.derivatives),
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
    for path in config.derivatives:
        if not any(path.glob("sub-*/")):
            raise UsageError(
                f"--derivatives {path} contains no sub-* folder.",
                f"Give the folder of one pipeline, such as {path / 'fmriprep'}.",
            )


def _check_locations(config: RunConfig) -> None:
    """Check that the output folder and the working directory are outside the raw data."""
    bids, out, work = (p.resolve() for p in (config.bids_dir, config.output_dir, config.work_dir))
    derivatives = bids / "derivatives"
    if out == derivatives or (bids in (out, *out.parents) and derivatives not in out.parents):
        raise UsageError(
            f"The output folder {config.output_dir} is in the raw dataset, outside derivatives/*.",
            f"Use {config.bids_dir / 'derivatives' / NAME}, for example.",
        )
    if bids in (work, *work.parents) or work in (out, *out.parents, *bids.parents):
        raise UsageError(
            f"The working directory {config.work_dir} is inside the dataset, or is or contains "
            "the output folder.",
            "Give --work-dir a separate folder.",
        )


def _check_other_dataset(output_dir: Path, bids_dir: Path) -> None:
    """Raise UsageError if the output folder holds raw data or derivatives of another dataset."""
    from bids_harmony.bids.outputs import derivatives_name

    path = output_dir / "dataset_description.json"
    content = read_json_or_empty(path)
    makers = [m.get("Name") for m in content.get("GeneratedBy") or () if isinstance(m, dict)]
    if content and (content.get("DatasetType", "raw") == "raw" or (makers and NAME not in makers)):
        what = f"the derivatives of {makers[0]}" if makers else "a raw dataset"
        raise UsageError(
            f"The output folder {output_dir} contains {what}.", "Use another output folder."
        )
    name = content.get("Name")
    known = (bids_dir / "dataset_description.json").is_file()  # unless its disk is not mounted
    if NAME in makers and known and name and name != derivatives_name(bids_dir):
        raise UsageError(
            f"The output folder {output_dir} belongs to another dataset ({name}).",
            f"Use one output folder per dataset, or delete {path} if this dataset was renamed.",
        )


def check_writable(path: Path, what: str) -> None:
    """Check that a folder can be written or created; raise UsageError otherwise."""
    existing = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not existing.is_dir():
        raise UsageError(
            f"{what} {path} cannot be created: {existing} is not a folder.", "Use another folder."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"{what} {path} cannot be written: no permission for {existing}.",
            f"Change its permissions, or use another folder.{mount_hint()}",
        )
