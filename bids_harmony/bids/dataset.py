"""List the T1w scans of a BIDS dataset with their metadata.

pybids parses the entities of file names, but its layout is not used: listing the files directly
takes a second for 10,000 subjects instead of fifteen.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bids_harmony.bids.filters import matches, parse_entities
from bids_harmony.bids.sidecars import Sidecars, find_mask, site_label
from bids_harmony.bids.tables import DEFAULT_COLUMNS, Tables, describe
from bids_harmony.errors import NoInputError, UsageError, mount_hint
from bids_harmony.files import TextError, look_alikes, plain_id, read_json

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

_T1W = re.compile(r"[^/]+_T1w\.(?i:nii\.gz|nii)")
#: Longest file name of a scan; outputs add entities to it, and file systems allow 255 bytes.
MAX_NAME = 190

#: Path of a scan, and the entities of its name.
Named = tuple[Path, dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A T1w file with its metadata.

    Attributes
    ----------
    path : pathlib.Path
        The image file. It may be unreadable, which the check step reports.
    key : str
        File name without ``_T1w.nii.gz``; unique within a run.
    entities : dict of str to str
        Entities of the file name by pybids's long names (``subject``, ``session``, ``run``...),
        with values as written.
    metadata : dict
        Scanner and acquisition parameters from the sidecars.
    mask : pathlib.Path or None
        Existing brain mask on the scan's own grid, found in ``--derivatives``.
    site, site_source : str
        Acquisition site (``unknown`` if none) and its source (``participants.tsv:site``,
        ``sidecar``, ``none``).
    age : float or None
        Age at the scan in years, 0 to 120.
    sex : str or None
        ``M`` or ``F``.
    diagnosis : str or None
        Diagnosis as written in the dataset.
    columns : dict of str to str
        All non-missing cells of the scan's rows by column, from the most specific table that has
        them.
    warnings : tuple of str
        Warnings about the scan's metadata.
    """

    path: Path
    key: str
    entities: dict[str, str]
    metadata: dict[str, Any] = field(default_factory=dict)
    mask: Path | None = None
    site: str = "unknown"
    site_source: str = "none"
    age: float | None = None
    sex: str | None = None
    diagnosis: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def wf_name(self) -> str:
        """Name of the scan's workflow: ``sub-01_ses-a`` gives ``sub_01_ses_a_wf``.

        BIDS labels contain only letters, digits and ``+``, so different keys give different names.
        """
        return re.sub(r"\W", "_", self.key.replace("+", "__")) + "_wf"


class Skipped(NamedTuple):
    """A file (relative to the dataset) or participant (``sub-XX``) left out, and the reason."""

    what: str
    why: str


class Inventory(NamedTuple):
    """Scans of a run, with what was skipped and why.

    Attributes
    ----------
    scans : tuple of Scan
        Scans, sorted by path.
    skipped : tuple of Skipped
        Participants without T1w scan, phase images, and files with duplicate or invalid names.
    warnings : tuple of str
        Warnings about the dataset as a whole.
    """

    scans: tuple[Scan, ...]
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """Number of scans and participants, as in ``3 scans of 1 participant``."""
        subjects = {scan.entities["subject"] for scan in self.scans}
        return f"{counted(len(self.scans), 'scan')} of {counted(len(subjects), 'participant')}"


def counted(n: int, noun: str) -> str:
    """Return a count with its noun: ``1 scan``, ``2 scans``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def find_scans(config: RunConfig) -> Inventory:
    """Return the T1w scans selected for a run, with their metadata.

    No file is written and no image is opened.

    Parameters
    ----------
    config : RunConfig
        Dataset, labels, filters, column names and derivatives.

    Returns
    -------
    Inventory
        At least one scan.

    Raises
    ------
    UsageError
        If the dataset lacks a given label, session or column, or the folder is not a dataset.
    NoInputError
        If no T1w scan matches.
    """
    warnings = check_description(config.bids_dir)
    named, skipped = _search(config)
    if not named:
        raise _no_scans(config, skipped)
    scans, notes = _describe_all(named, config)
    return Inventory(tuple(scans), tuple(skipped), (*warnings, *notes))


def list_scans(config: RunConfig) -> tuple[list[str], list[Skipped]]:
    """Return the keys of all scans of a dataset, from file names only (a second for 10,000).

    Parameters
    ----------
    config : RunConfig
        Only ``bids_dir`` is used; labels and filters are ignored.

    Returns
    -------
    keys : list of str
        :attr:`Scan.key` of each scan, sorted by path.
    skipped : list of Skipped
        As in :class:`Inventory`.

    Raises
    ------
    UsageError, NoInputError
        If the folder is not a dataset.
    """
    everything = replace(config, participant_label=(), session_label=(), bids_filters={})
    named, skipped = _search(everything)
    return [path.name.rpartition("_")[0] for path, _ in named], skipped


def _search(config: RunConfig) -> tuple[list[Named], list[Skipped]]:
    """Return the selected scans, and the files and participants that are skipped."""
    root = config.bids_dir
    there = list_subjects(root)
    subjects = dict.fromkeys(config.participant_label or there)
    _check_labels("participant", subjects, there, root)
    paths = list_t1w(root, subjects)
    sessions = {f.name[4:] for path in paths if (f := path.parents[1]).name.startswith("ses-")}
    _check_labels("session", config.session_label, sorted(sessions), root)
    named, skipped = _select(paths, config)
    with_scans = {entities["subject"] for _, entities in named}
    for folder in (root / f"sub-{s}" for s in subjects if s not in with_scans):
        skipped.append(Skipped(_printable(folder.name), _why_none(folder, config)))
    return named, skipped


def _check_labels(what: str, asked: Iterable[str], there: Collection[str], root: Path) -> None:
    """Raise UsageError if labels do not exist, naming the most similar existing ones."""
    known = set(there)
    if missing := [label for label in asked if label not in known]:
        near = look_alikes(missing[0], there)[:3] or get_close_matches(missing[0], there)
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are {_listed(there, 10)}."
        raise UsageError(f"{root} has no {what} {_listed(missing, 10)}.", hint)


def list_subjects(root: Path) -> list[str]:
    """Return the labels of a dataset's subjects, sorted.

    Raises
    ------
    UsageError
        If the folder cannot be listed, belongs to a subject, or contains datasets.
    NoInputError
        If the folder has no ``sub-*`` folder.
    """
    try:
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    except OSError as error:
        cause = f"{root} cannot be listed ({error.strerror})."
        raise UsageError(cause, "Check its path and permissions.") from error
    if labels := [name[4:] for name in folders if name.startswith("sub-") and len(name) > 4]:
        return labels
    cause = f"{root} holds no sub-* folder."
    if root.name.startswith("sub-"):
        raise UsageError(cause, f"Give the dataset of this subject: {root.parent}.")
    if inside := [str(root / name) for name in folders if any((root / name).glob("sub-*/"))]:
        raise UsageError(cause, f"Did you mean {' or '.join(inside[:3])}?")
    remedy = f"Give the root of a BIDS dataset as the first argument.{mount_hint()}"
    raise NoInputError(cause, remedy)


def list_t1w(root: Path, subjects: Iterable[str]) -> list[Path]:
    """Return the T1w files in the ``anat`` folders of subjects, following symbolic links."""
    folders = [root / f"sub-{label}" for label in subjects]
    found = (p for f in folders for a in ("anat", "ses-*/anat") for p in f.glob(f"{a}/*_T1w.*"))
    return sorted(path for path in found if _T1W.fullmatch(path.name))


def check_description(root: Path) -> list[str]:
    """Return warnings about ``dataset_description.json``; none of them stops a run."""
    file = "dataset_description.json"
    try:
        content, notes = read_json(root / file)
    except TextError as error:
        return [f"{file} is missing or cannot be read ({error})."]
    if not {"Name", "BIDSVersion"} <= content.keys():
        notes.append("lacks Name or BIDSVersion")
    if content.get("DatasetType") == "derivative":
        notes.append("describes derivatives, and raw T1w scans are expected")
    return [f"{file} {note}." for note in notes]


def _why_none(folder: Path, config: RunConfig) -> str:
    """Return the reason why a subject has no scan."""
    for part in (folder, folder / "anat", *folder.glob("ses-*"), *folder.glob("ses-*/anat")):
        if part.is_dir() and not os.access(part, os.R_OK | os.X_OK):
            return f"its folder {part.name} cannot be read"
    if config.session_label or config.bids_filters:
        return "no T1w scan matches the filters"
    if any(folder.iterdir()):
        return "no T1w scan"
    return "its folder is empty (in a DataLad dataset, run `datalad get` on it)"


def _select(paths: Iterable[Path], config: RunConfig) -> tuple[list[Named], list[Skipped]]:
    """Select images by session and filters; skip invalid names, phase images and duplicates."""
    chosen: dict[tuple[tuple[str, str], ...], Named] = {}
    skipped = []
    # foo.nii.gz sorts before foo.nii, so that the compressed file of the two is used.
    for path in sorted(paths, key=lambda p: (str(p.parent), p.name.lower() + "~")):
        inside = path.relative_to(config.bids_dir)
        try:
            entities = _entities_of(inside)
            in_session = (
                entities.get("session") in config.session_label or not config.session_label
            )
            if in_session and matches(path.name, entities, config.bids_filters):
                same = tuple(entities.items())
                if same in chosen:
                    raise ValueError(f"{chosen[same][0].name} has the same entities")
                chosen[same] = (path, entities)
        except ValueError as error:
            skipped.append(Skipped(_printable(inside.as_posix()), _printable(str(error))))
    return sorted(chosen.values(), key=lambda item: item[0]), skipped


def _entities_of(path: Path) -> dict[str, str]:
    """Return the entities of a T1w file's name; raise ValueError if the file cannot be used."""
    entities = parse_entities(path.name)
    if len(path.name) > MAX_NAME:
        raise ValueError(f"its name is longer than {MAX_NAME} characters")
    session = [f"ses-{entities['session']}"] if "session" in entities else []
    if path.parts[:-1] != (f"sub-{entities.get('subject')}", *session, "anat"):
        raise ValueError("the subject or session of its name differs from that of its folder")
    if entities.get("part", "mag") != "mag":
        raise ValueError(f"part-{entities['part']} is not a magnitude image")
    return entities


def _describe_all(named: list[Named], config: RunConfig) -> tuple[list[Scan], list[str]]:
    """Return the scans with metadata from tables, sidecars and masks, and all warnings."""
    sidecars = Sidecars(config.bids_dir)
    tables = Tables(sidecars, {w: getattr(config, f"{w}_column") for w in DEFAULT_COLUMNS})
    rows = [tables.rows_of(path, e["subject"], e.get("session")) for path, e in named]
    tables.check_columns()
    scans = []
    for (path, entities), found in zip(named, rows, strict=True):
        metadata, notes = sidecars.facts(path)
        label = site_label(metadata)
        by_scanner = {"site": label, "site_source": "sidecar"} if label else {}
        facts = by_scanner | describe(found)
        facts["warnings"] += tuple(notes)
        key, mask = path.name.rpartition("_")[0], find_mask(path, config.derivatives)
        scans.append(
            Scan(path=path, key=key, entities=entities, metadata=metadata, mask=mask, **facts)
        )
    notes = tables.warnings()
    notes += [w for s in scans for w in s.warnings if w.startswith("participants.tsv has no row")]
    return scans, [*_shortened(notes), *_scan_warnings(scans, config)]


def _shortened(notes: Iterable[str]) -> list[str]:
    """Merge warnings that differ only in subject, session or line numbers, adding a count."""
    alike: dict[str, list[str]] = defaultdict(list)
    for note in dict.fromkeys(notes):
        plain = re.sub(r"(sub|ses)-[^_/\s?.]+(_ses-[^_/\s?.]+)?|\blines? [\d, .]+", "*", note)
        alike[plain].append(note)
    return [
        first + (f" The same applies to {len(rest)} more." if rest else "")
        for first, *rest in alike.values()
    ]


def _scan_warnings(scans: list[Scan], config: RunConfig) -> list[str]:
    """Return warnings about site labels that differ only in spelling, and about missing masks."""
    spellings: dict[str, set[str]] = defaultdict(set)
    for scan in scans:
        spellings[plain_id(scan.site) or scan.site].add(scan.site)
    cause = "Site labels that differ only in spelling are treated as different sites"
    warnings = [f"{cause}: {', '.join(sorted(s))}." for s in spellings.values() if len(s) > 1]
    if config.derivatives and (without := [scan.key for scan in scans if scan.mask is None]):
        warnings.append(
            f"No *_desc-brain_mask.nii.gz in native space was found for {len(without)} of "
            f"{counted(len(scans), 'scan')} ({_listed(without)}) in "
            f"{', '.join(map(str, config.derivatives))}: --skull-strip {config.skull_strip} "
            "computes those masks."
        )
    return warnings


def _printable(name: str) -> str:
    """Replace unprintable and non-UTF-8 characters of a name by U+FFFD."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _listed(names: Iterable[str], most: int = 5) -> str:
    """Return the first few names, separated by commas, and the total if there are more."""
    first = list(names)
    more = f" ... ({len(first)})" if len(first) > most else ""
    return (", ".join(first[:most]) or "none") + more


def _no_scans(config: RunConfig, skipped: list[Skipped]) -> NoInputError:
    """Return the error for a search without results, with the filters in force."""
    filters = {
        "--participant-label": " ".join(config.participant_label),
        "--session-label": " ".join(config.session_label),
        "--bids-filter-file": json.dumps(config.bids_filters) if config.bids_filters else "",
    }
    in_force = "; ".join(f"{flag} {value}" for flag, value in filters.items() if value)
    what, why = skipped[0]
    return NoInputError(
        f"No T1w scan was found in {config.bids_dir} ({len(skipped)} skipped, such as {what}: "
        f"{why}).",
        f"Loosen the filters: {in_force}."
        if in_force
        else "Scans are expected as sub-XX/[ses-YY/]anat/sub-XX_[ses-YY_]T1w.nii.gz.",
    )
