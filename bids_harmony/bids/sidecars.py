"""Read JSON sidecars with BIDS inheritance, and find existing brain masks.

Only the folders of a scan are listed, and only the JSON files that apply to it are read. A pybids
index with metadata takes a minute for 10,000 subjects and fails on any malformed file; here such
a file only affects the scans it applies to.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bids_harmony.files import TextError, is_missing, read_json

#: Sidecar fields saved with a scan; the first three form the label of a site.
FACTS = (
    *("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength"),
    *("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle"),
    *("ScanningSequence", "PulseSequenceType", "SkullStripped"),
)
SCANNER = FACTS[:3]
_MAKERS = {"siemens": "Siemens", "philips": "Philips", "ge": "GE", "general": "GE"}
#: Endings of brain masks on the scan's own grid, in order of preference.
_MASKS = [
    f"{space}_desc-brain_mask{extension}"
    for space in ("", "_space-T1w", "_space-orig")
    for extension in (".nii.gz", ".nii")
]


class Sidecars:
    """JSON files of a dataset, each read once.

    Files that change later are only seen by a new object.

    Parameters
    ----------
    root : pathlib.Path
        Root of the dataset.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._list, self._read = cache(_list_json), cache(_read_object)

    def of(self, path: Path) -> Iterator[tuple[Path, dict[str, Any] | None, str]]:
        """Read the JSON files that apply to a file by BIDS inheritance, least specific first.

        A file ``[entities_]SUFFIX.json`` applies if all its entities are in the file's name. The
        order is from the dataset's root to deeper folders, and within a folder from fewer to more
        entities.

        Parameters
        ----------
        path : pathlib.Path
            ``[entities_]SUFFIX.EXTENSION`` anywhere below the root.

        Yields
        ------
        file : pathlib.Path
            A file that applies.
        content : dict or None
            Its JSON object; None if it cannot be read.
        note : str
            Text for a warning about the file; empty if there is none.
        """
        *entities, end = path.name.split("_")
        for folder in reversed(path.parents[: len(path.relative_to(self.root).parts)]):
            for needed, file in self._list(folder, end.partition(".")[0]):
                if needed <= set(entities):
                    yield file, *self._read(file)

    def facts(self, scan: Path) -> tuple[dict[str, Any], list[str]]:
        """Read a scan's metadata from its sidecars.

        Returns
        -------
        facts : dict
            Fields of :data:`FACTS` that have a value. If a file cannot be read, fields of less
            specific files are left out, since it may have overridden them. :data:`SCANNER` fields
            are then left out too unless all three are present, as a part of them would give
            another site label.
        warnings : list of str
            One for each applicable file with a problem.
        """
        merged: dict[str, Any] = {}
        warnings, broken = [], False
        for file, content, note in self.of(scan):
            merged.update(content or {})
            if content is None:
                merged, broken = {}, True
                note += ": its metadata is not used, and what it may replace is unknown"
            if note:
                warnings.append(f"{file.relative_to(self.root)} {note}.")
        if broken and not merged.keys() >= set(SCANNER):
            merged = {fact: value for fact, value in merged.items() if fact not in SCANNER}
        return {fact: merged[fact] for fact in FACTS if _is_plain(merged.get(fact))}, warnings


def _list_json(folder: Path, suffix: str) -> list[tuple[set[str], Path]]:
    """Return a folder's ``[entities_]SUFFIX.json`` with their entities, fewest entities first."""
    names = [file.stem.split("_") for file in folder.glob(f"*{suffix}.json")]
    found = [name for name in sorted(names) if name[-1] == suffix]
    return [({*name[:-1]}, folder / f"{'_'.join(name)}.json") for name in sorted(found, key=len)]


def _read_object(path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        content, notes = read_json(path)
    except TextError as error:
        return None, f"cannot be read ({error})"
    return content, "; ".join(notes)


def _is_plain(value: Any) -> bool:
    """Return whether a value is not None and can be written as JSON (NaN cannot)."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return value is not None


def site_label(facts: Mapping[str, Any]) -> str | None:
    """Return the label of a site from its scanner, such as ``Siemens Allegra 3T``.

    So that one scanner gives one site, spellings of a manufacturer are unified and field strengths
    above 0.75 T are rounded to 0.5 T. Returns None if all fields are missing.
    """
    named = [facts.get(name) for name in SCANNER[:2]]
    words = [str(name).replace("_", " ") if isinstance(name, str | int) else "" for name in named]
    maker, model = (" ".join(word.split()) for word in words)
    maker = _MAKERS.get(re.split(r"[\W_]", maker.lower())[0], maker)
    try:
        text = str(facts.get("MagneticFieldStrength", "nan")).strip().rstrip("Tt ")
        tesla = float(text.replace(",", "."))
    except ValueError:
        tesla = float("nan")
    tesla = tesla / 10_000 if tesla > 100 else tesla  # gauss, written by some converters
    field = f"{round(tesla * 2) / 2 if tesla > 0.75 else tesla:g}T" if 0 < tesla <= 100 else ""
    return " ".join(word for word in (maker, model, field) if not is_missing(word)) or None


def find_mask(scan: Path, pipelines: Iterable[Path]) -> Path | None:
    """Return the path of an existing brain mask on a scan's own grid, or None.

    Parameters
    ----------
    scan : pathlib.Path
        ``[...]/sub-XX/[ses-YY/]anat/ENTITIES_T1w.nii.gz``.
    pipelines : iterable of pathlib.Path
        Derivative datasets, in order of preference.

    Returns
    -------
    pathlib.Path or None
        ``ENTITIES_[space-{T1w,orig}_]desc-brain_mask.nii[.gz]``, with exactly the scan's entities.
        It may be a link whose content is absent.
    """
    key = scan.name.rpartition("_")[0]
    folder = Path(*scan.parts[-4 if "_ses-" in key else -3 : -1])
    candidates = (root / folder / (key + ending) for root in pipelines for ending in _MASKS)
    return next(filter(os.path.lexists, candidates), None)
