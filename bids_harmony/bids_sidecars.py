"""What lies beside a scan: JSON sidecars, read with inheritance, and existing brain masks.

The folders of one scan are listed and the few JSON files that apply to it are read, instead of
indexing the metadata of the whole dataset: one malformed file then concerns only the scans it
applies to, and ten thousand subjects cost nothing until they are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_harmony.files import why_unread

#: Entities a T1w name may have (BIDS 1.10), in the order of the standard.
ENTITIES = {
    "sub": "subject",
    "ses": "session",
    "task": "task",
    "acq": "acquisition",
    "ce": "ceagent",
    "rec": "reconstruction",
    "run": "run",
    "echo": "echo",
    "part": "part",
    "chunk": "chunk",
}
#: Sidecar fields kept with a scan.
FACTS = (
    *("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength"),
    *("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle"),
    *("ScanningSequence", "PulseSequenceType", "SkullStripped"),
)
NATIVE_SPACES = (None, "T1w", "orig")
_MASK = re.compile(r"(?P<key>.+)_desc-brain_mask\.nii(\.gz)?")
_MAKERS = {"siemens": "Siemens", "philips": "Philips", "ge": "GE", "general": "GE"}


def parse_entities(key: str) -> dict[str, str]:
    """Split ``sub-01_ses-a`` into short entity names and labels.

    Raises
    ------
    ValueError
        Naming the part that is not ``name-label``.
    """
    entities: dict[str, str] = {}
    for part in key.split("_"):
        match = re.fullmatch(r"([0-9a-zA-Z]+)-([0-9a-zA-Z+]+)", part)
        if not match or match[1] in entities:
            raise ValueError(part)
        entities[match[1]] = match[2]
    return entities


class Folders:
    """Folder listings and JSON files, each read once.

    One object serves one search; datasets that change meanwhile are seen by the next.
    """

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}
        self._sidecars: dict[Path, list[tuple[str, dict[str, str]]]] = {}
        self._json: dict[Path, dict[str, Any] | str] = {}

    def names(self, folder: Path) -> frozenset[str]:
        """Names in a folder; none where it cannot be listed."""
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(path.name for path in folder.iterdir())
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]

    def sidecars(self, folder: Path) -> list[tuple[str, dict[str, str]]]:
        """Names of the T1w sidecars in a folder with their entities, fewest entities first."""
        if folder not in self._sidecars:
            found = []
            for name in self.names(folder):
                key, t1w, rest = name.rpartition("T1w.json")
                if not t1w or rest:
                    continue
                try:
                    found.append((name, parse_entities(key.removesuffix("_")) if key else {}))
                except ValueError:
                    continue
            self._sidecars[folder] = sorted(found, key=lambda item: (len(item[1]), item[0]))
        return self._sidecars[folder]

    def json(self, path: Path) -> dict[str, Any] | str:
        """Object in a JSON file, or why it cannot be read."""
        if path not in self._json:
            try:
                content = json.loads(path.read_text(encoding="utf-8-sig"))
                self._json[path] = content if isinstance(content, dict) else "not a JSON object"
            except OSError as error:
                self._json[path] = why_unread(path, error)
            except (ValueError, RecursionError) as error:
                self._json[path] = str(error)
        return self._json[path]


def read_sidecars(path: Path, root: Path, folders: Folders) -> tuple[dict[str, Any], list[str]]:
    """Read a scan's metadata with BIDS inheritance.

    Files named ``[entities_]T1w.json`` apply when their entities are among the scan's; deeper
    folders win over the dataset's root, and within a folder more entities over fewer.

    Parameters
    ----------
    path : pathlib.Path
        The scan, somewhere below ``root``.
    root : pathlib.Path
        The dataset.
    folders : Folders
        Listings shared between scans.

    Returns
    -------
    facts : dict
        The fields of :data:`FACTS` that are there.
    warnings : list of str
        One for each applicable file that cannot be used.
    """
    wanted = parse_entities(path.name.rpartition("_")[0]).items()
    merged: dict[str, Any] = {}
    warnings = []
    for folder in [*reversed(path.parents[: len(path.relative_to(root).parts)])]:
        for name, entities in folders.sidecars(folder):
            if not entities.items() <= wanted:
                continue
            content = folders.json(folder / name)
            if isinstance(content, str):
                where = (folder / name).relative_to(root)
                warnings.append(f"{where} cannot be read ({content}): its metadata is not used.")
            else:
                merged.update(content)
    return {fact: merged[fact] for fact in FACTS if _is_plain(merged.get(fact))}, warnings


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
    words = []
    maker = " ".join(str(facts.get("Manufacturer", "")).split())
    if maker:
        words.append(_MAKERS.get(re.split(r"[\W_]", maker.lower())[0], maker))
    model = " ".join(str(facts.get("ManufacturersModelName", "")).replace("_", " ").split())
    if model:
        words.append(model)
    try:
        tesla = float(facts.get("MagneticFieldStrength", "nan"))
    except (TypeError, ValueError, OverflowError):
        tesla = float("nan")
    tesla = tesla / 10_000 if tesla > 100 else tesla  # some converters write gauss
    if 0 < tesla <= 100:
        words.append(f"{round(tesla * 2) / 2 if tesla > 0.75 else tesla:g}T")
    return " ".join(words) or None


def find_mask(
    entities: Mapping[str, str], pipelines: Mapping[str, Path], folders: Folders
) -> Path | None:
    """Find an existing brain mask on a scan's own grid.

    Parameters
    ----------
    entities : mapping of str to str
        The scan's entities by short name.
    pipelines : mapping of str to pathlib.Path
        Derivative datasets, the preferred one first.
    folders : Folders
        Listings shared between scans.

    Returns
    -------
    pathlib.Path or None
        A ``*_desc-brain_mask.nii[.gz]`` with exactly the scan's entities, and without ``space-``
        or with ``space-T1w`` or ``space-orig``.
    """
    for root in pipelines.values():
        folder = root / f"sub-{entities['sub']}"
        if "ses" in entities:
            folder /= f"ses-{entities['ses']}"
        found = []
        for name in folders.names(folder / "anat"):
            match = _MASK.fullmatch(name)
            if not match:
                continue
            try:
                theirs = parse_entities(match["key"])
            except ValueError:
                continue
            space = theirs.pop("space", None)
            if theirs == entities and space in NATIVE_SPACES:
                found.append((NATIVE_SPACES.index(space), folder / "anat" / name))
        if found:
            return min(found)[1]
    return None
