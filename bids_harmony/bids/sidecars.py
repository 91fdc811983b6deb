"""What lies beside a scan: JSON sidecars, read with inheritance, and existing brain masks.

The folders of one scan are listed and the few JSON files that apply to it are read. A pybids
index with the metadata of 10,000 subjects takes a minute, and one malformed file stops it; here
such a file concerns only the scans it applies to.
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

#: Sidecar fields that go with a scan; the first three make a site's label.
FACTS = (
    *("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength"),
    *("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle"),
    *("ScanningSequence", "PulseSequenceType", "SkullStripped"),
)
SCANNER = FACTS[:3]
_MAKERS = {"siemens": "Siemens", "philips": "Philips", "ge": "GE", "general": "GE"}
#: Names of masks on the scan's own grid, after the scan's entities, the preferred one first.
_MASKS = [
    f"{space}_desc-brain_mask{extension}"
    for space in ("", "_space-T1w", "_space-orig")
    for extension in (".nii.gz", ".nii")
]


class Sidecars:
    """JSON files of a dataset, each found and read once.

    One object serves one search; datasets that change meanwhile are seen by the next.

    Parameters
    ----------
    root : pathlib.Path
        The dataset.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._list, self._read = cache(_list_json), cache(_read_object)

    def of(self, path: Path) -> Iterator[tuple[Path, dict[str, Any] | None, str]]:
        """Read the files that apply to a file by BIDS inheritance, the least specific first.

        Files named ``[entities_]SUFFIX.json`` apply when their entities are among the file's;
        deeper folders come after the dataset's root, and within a folder more entities after
        fewer.

        Parameters
        ----------
        path : pathlib.Path
            ``[entities_]SUFFIX.EXTENSION``, somewhere below the root.

        Yields
        ------
        file : pathlib.Path
            A file that applies.
        content : dict or None
            None where it cannot be read.
        note : str
            What is to be said of it, or nothing.
        """
        *entities, end = path.name.split("_")
        for folder in reversed(path.parents[: len(path.relative_to(self.root).parts)]):
            for needed, file in self._list(folder, end.partition(".")[0]):
                if needed <= set(entities):
                    yield file, *self._read(file)

    def facts(self, scan: Path) -> tuple[dict[str, Any], list[str]]:
        """Read a scan's metadata.

        Returns
        -------
        facts : dict
            The fields of :data:`FACTS` that are there. What a file that cannot be read might have
            replaced is not among them; nor are some of :data:`SCANNER` alone then, as they would
            name another scanner.
        warnings : list of str
            One for each applicable file that cannot be used as it is.
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
    """List a folder's ``[entities_]SUFFIX.json`` with their entities, fewest entities first."""
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
    """Tell whether a value is there and can be written into JSON (NaN and the like cannot)."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return value is not None


def site_label(facts: Mapping[str, Any]) -> str | None:
    """Name an acquisition domain by its scanner: ``Siemens Allegra 3T``.

    Spellings of one manufacturer, and field strengths such as 2.89 T, come to the same label,
    lest one scanner make two sites.
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
    tesla = tesla / 10_000 if tesla > 100 else tesla  # some converters write gauss
    field = f"{round(tesla * 2) / 2 if tesla > 0.75 else tesla:g}T" if 0 < tesla <= 100 else ""
    return " ".join(word for word in (maker, model, field) if not is_missing(word)) or None


def find_mask(scan: Path, pipelines: Iterable[Path]) -> Path | None:
    """Find an existing brain mask on a scan's own grid.

    Parameters
    ----------
    scan : pathlib.Path
        ``[...]/sub-XX/[ses-YY/]anat/ENTITIES_T1w.nii.gz``.
    pipelines : iterable of pathlib.Path
        Derivative datasets, the preferred one first.

    Returns
    -------
    pathlib.Path or None
        ``ENTITIES_[space-{T1w,orig}_]desc-brain_mask.nii[.gz]``, with exactly the scan's entities.
    """
    key = scan.name.rpartition("_")[0]
    folder = Path(*scan.parts[-4 if "_ses-" in key else -3 : -1])
    candidates = (root / folder / (key + ending) for root in pipelines for ending in _MASKS)
    return next(filter(os.path.lexists, candidates), None)
