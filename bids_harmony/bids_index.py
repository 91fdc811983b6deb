"""Which subjects and which T1w files a dataset folder holds."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bids_harmony.errors import NoInputError, UsageError, mount_hint
from bids_harmony.text import TextError, read_json

if TYPE_CHECKING:
    from bids import BIDSLayout

INDEX_FILE = "layout_index.sqlite"
T1W_NAME = re.compile(r"(?P<key>[^/]+)_T1w\.(?i:nii\.gz|nii)")


def list_subjects(root: Path) -> list[str]:
    """List the labels of a dataset's subjects, sorted.

    Raises
    ------
    UsageError
        When the folder is a subject's, or holds datasets instead of being one.
    NoInputError
        When it holds no subject at all.
    """
    folders = _folders(root)
    if labels := [name[4:] for name in folders if name.startswith("sub-") and len(name) > 4]:
        return labels
    if re.fullmatch(r"sub-[0-9a-zA-Z+]+", root.name):
        raise UsageError(f"{root} is one subject's folder.", f"Give the dataset: {root.parent}.")
    inside = [root / name for name in folders if any((root / name).glob("sub-*/"))]
    if inside:
        raise UsageError(
            f"{root} holds no sub-* folder.", f"Did you mean {' or '.join(map(str, inside[:3]))}?"
        )
    raise NoInputError(
        f"{root} holds no sub-* folder.",
        f"Give the root of a BIDS dataset as the first argument.{mount_hint()}",
    )


def _folders(root: Path) -> list[str]:
    """Sorted names of the folders, and links to folders, in a folder."""

    def is_dir(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:
            return False

    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if is_dir(entry))
    except OSError as error:
        raise UsageError(
            f"{root} cannot be listed ({error.strerror}).", "Check its path and permissions."
        ) from error


def check_description(root: Path) -> list[str]:
    """Say what is wrong with ``dataset_description.json``: none of it stops a run."""
    path = root / "dataset_description.json"
    if not os.path.lexists(path):
        return ["dataset_description.json is missing: the folder is not a valid BIDS dataset."]
    try:
        content, notes = read_json(path)
    except TextError as error:
        return [f"dataset_description.json cannot be read ({error})."]
    notes = [f"dataset_description.json {note}." for note in notes]
    if absent := [name for name in ("Name", "BIDSVersion") if name not in content]:
        notes.append(f"dataset_description.json lacks {' and '.join(absent)}.")
    if content.get("DatasetType") == "derivative":
        notes.append(
            "The dataset describes itself as derivatives: raw T1w scans are expected, "
            "and already processed ones may give misleading results."
        )
    return notes


def index_t1w(
    root: Path, labels: Iterable[str] = (), database_dir: Path | None = None
) -> tuple[list[Path], str | None]:
    """List files named as T1w images in the ``anat`` folders of a dataset, by pybids.

    Parameters
    ----------
    root : pathlib.Path
        The dataset (absolute).
    labels : iterable of str
        Subjects to look into; none means all. A saved index always holds all of them, so that
        it serves the next call.
    database_dir : pathlib.Path or None
        Folder of a saved index, used as it is where there is one.

    Returns
    -------
    paths : list of pathlib.Path
        Sorted; links need not lead anywhere.
    note : str or None
        A warning: the saved index may be out of date, or pybids could not index the dataset and
        its folders were listed instead.

    Raises
    ------
    UsageError
        When the saved index cannot be read or is another dataset's.
    """
    subjects = frozenset(labels)
    note = None
    try:
        paths = _index(root, subjects, database_dir)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001
        # pybids stops at a dataset_description.json it does not like, even when not validating.
        # SQLAlchemy's messages go on for pages, and quote names that need not be UTF-8.
        first = (str(error).splitlines() or [""])[0][:200]
        why = f"{type(error).__name__}: {first}".encode("utf-8", "backslashreplace").decode()
        note = f"pybids cannot index the dataset ({why}), so its folders were listed instead."
        paths = list_t1w(root, subjects or list_subjects(root))
    else:
        saved = database_dir / INDEX_FILE if database_dir else None
        if saved and saved.stat().st_mtime < root.stat().st_mtime:
            note = f"The saved index {saved} is older than the dataset: delete it to index again."
    if subjects:
        paths = [p for p in paths if p.relative_to(root).parts[0].removeprefix("sub-") in subjects]
    return paths, note


def list_t1w(root: Path, subjects: Iterable[str]) -> list[Path]:
    """List the same files by their folders alone: of 10,000 subjects in a second."""
    folders = [root / f"sub-{label}" for label in subjects]
    found = (p for f in folders for a in ("anat", "ses-*/anat") for p in f.glob(f"{a}/*"))
    return sorted(path for path in found if T1W_NAME.fullmatch(path.name))


def _index(root: Path, subjects: frozenset[str], database_dir: Path | None) -> list[Path]:
    """Index by pybids, ignoring everything that is not on the way to a T1w image."""
    from bids import BIDSLayout, BIDSLayoutIndexer

    wanted = "|".join(map(re.escape, sorted(subjects))) if not database_dir else ""
    folder = rf"sub-(?:{wanted or '[^/]+'})"
    indexer = BIDSLayoutIndexer(
        validate=False,
        index_metadata=False,
        ignore=[re.compile(rf"^/(?!{folder}(?:/ses-[^/]+)?(?:/anat(?:/{T1W_NAME.pattern})?)?$)")],
    )
    if database_dir is None:
        layout = BIDSLayout(root, validate=False, indexer=indexer)
    else:
        saved = database_dir / INDEX_FILE
        if not saved.exists():
            # A run that is killed must not leave a half-filled index for the next one to trust.
            partial = database_dir / f".indexing-{os.getpid()}"
            BIDSLayout(root, validate=False, indexer=indexer, database_path=partial)
            (partial / INDEX_FILE).replace(saved)
            shutil.rmtree(partial)
        layout = _saved_layout(saved, root)
    return sorted(Path(found.path) for found in layout.get(suffix="T1w"))


def _saved_layout(saved: Path, root: Path) -> BIDSLayout:
    """Open a saved index, and see that it is this dataset's."""
    from bids import BIDSLayout

    remedy = f"Delete {saved}, or give another --bids-database-dir."
    try:
        layout = BIDSLayout(root, validate=False, database_path=saved.parent)
        layout.get(suffix="T1w", subject="none")
    except Exception as error:  # SQLAlchemy, sqlite and pybids raise their own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"The saved index {saved} cannot be read ({why}).", remedy) from error
    if Path(layout.root) != root:
        raise UsageError(f"The saved index {saved} is of {layout.root}, not of {root}.", remedy)
    return layout
