"""What lies beside a scan: JSON sidecars, read with inheritance, and existing brain masks.

The folders of one scan are listed and the few JSON files that apply to it are read, instead of
indexing the metadata of the whole dataset: one malformed file then concerns only the scans it
applies to, and ten thousand subjects cost nothing until they are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bids_harmony.text import TextError, is_missing, read_json

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
#: Those of them that make a site's label.
SCANNER = FACTS[:3]
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
        self._sidecars: dict[tuple[Path, str], list[tuple[str, dict[str, str]]]] = {}
        self._json: dict[Path, tuple[dict[str, Any] | None, str]] = {}

    def names(self, folder: Path) -> frozenset[str]:
        """Names in a folder; none where it cannot be listed."""
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(path.name for path in folder.iterdir())
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]

    def sidecars(self, folder: Path, suffix: str) -> list[tuple[str, dict[str, str]]]:
        """Names of a folder's ``[entities_]SUFFIX.json`` with entities, fewest entities first."""
        if (folder, suffix) not in self._sidecars:
            found = []
            for name in self.names(folder):
                key, there, rest = name.rpartition(f"{suffix}.json")
                if not there or rest or (key and not key.endswith("_")):
                    continue
                try:
                    found.append((name, parse_entities(key[:-1]) if key else {}))
                except ValueError:
                    continue
            self._sidecars[folder, suffix] = sorted(found, key=lambda i: (len(i[1]), i[0]))
        return self._sidecars[folder, suffix]

    def json(self, path: Path) -> tuple[dict[str, Any] | None, str]:
        """Object in a JSON file, None where it cannot be read, and what is to be said of it."""
        if path not in self._json:
            try:
                content, notes = read_json(path)
                self._json[path] = content, "; ".join(notes)
            except TextError as error:
                self._json[path] = None, f"cannot be read ({error})"
        return self._json[path]


def inherited(
    path: Path, root: Path, folders: Folders
) -> Iterator[tuple[Path, dict[str, Any] | None, str]]:
    """Read the JSON files that apply to a file by BIDS inheritance, the least specific first.

    Files named ``[entities_]SUFFIX.json`` apply when their entities are among the file's; deeper
    folders come after the dataset's root, and within a folder more entities after fewer.

    Parameters
    ----------
    path : pathlib.Path
        ``[entities_]SUFFIX.EXTENSION``, somewhere below ``root``.
    root : pathlib.Path
        The dataset.
    folders : Folders
        Listings shared between files.

    Yields
    ------
    file : pathlib.Path
        A file that applies.
    content : dict or None
        None where it cannot be read.
    note : str
        What is to be said of it, or nothing.
    """
    key, _, name = path.name.rpartition("_")
    try:
        wanted = parse_entities(key).items() if key else {}.items()
    except ValueError:
        wanted = {}.items()
    for folder in [*reversed(path.parents[: len(path.relative_to(root).parts)])]:
        for sidecar, entities in folders.sidecars(folder, name.partition(".")[0]):
            if entities.items() <= wanted:
                yield folder / sidecar, *folders.json(folder / sidecar)


def read_sidecars(path: Path, root: Path, folders: Folders) -> tuple[dict[str, Any], list[str]]:
    """Read a scan's metadata with BIDS inheritance.

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
        The fields of :data:`FACTS` that are there. What a file that cannot be read might have
        replaced is not among them; nor are some of :data:`SCANNER` alone then, as they would
        name another scanner.
    warnings : list of str
        One for each applicable file that cannot be used as it is.
    """
    merged: dict[str, Any] = {}
    warnings, broken = [], False
    for file, content, note in inherited(path, root, folders):
        where = file.relative_to(root)
        if content is None:
            merged, broken = {}, True
            note += ": its metadata is not used, and what it may replace is unknown"
        else:
            merged.update(content)
        if note:
            warnings.append(f"{where} {note}.")
    facts = {fact: merged[fact] for fact in FACTS if _is_plain(merged.get(fact))}
    if broken and not facts.keys() >= set(SCANNER):
        facts = {fact: value for fact, value in facts.items() if fact not in SCANNER}
    return facts, warnings


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
    maker, model = (
        "" if not isinstance(name, str | int | float) or is_missing(str(name))
        else " ".join(str(name).replace("_", " ").split())
        for name in named
    )  # fmt: skip
    words = [_MAKERS.get(re.split(r"[\W_]", maker.lower())[0], maker), model]
    try:
        text = str(facts.get("MagneticFieldStrength", "nan")).strip().rstrip("Tt ")
        tesla = float(text.replace(",", "."))
    except (ValueError, OverflowError):
        tesla = float("nan")
    tesla = tesla / 10_000 if tesla > 100 else tesla  # some converters write gauss
    if 0 < tesla <= 100:
        words.append(f"{round(tesla * 2) / 2 if tesla > 0.75 else tesla:g}T")
    return " ".join(filter(None, words)) or None


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
