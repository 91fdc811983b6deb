"""The dataset: which T1w scans there are, and what it says about each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from bids_harmony.bids_columns import Columns, check_columns, column_warnings
from bids_harmony.bids_filters import NUMBERED, matches
from bids_harmony.bids_index import (
    T1W_NAME,
    check_description,
    index_t1w,
    list_subjects,
    list_t1w,
)
from bids_harmony.bids_sidecars import (
    ENTITIES,
    Folders,
    find_mask,
    parse_entities,
    read_sidecars,
    site_label,
)
from bids_harmony.bids_tables import Table, describe, read_table
from bids_harmony.errors import NoInputError, UsageError
from bids_harmony.text import look_alikes

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

_SESSION = re.compile(r"/ses-([^/]+)/anat/[^/]+$")
_TABLE = re.compile(
    r"(?i)(?:.*_)?(participant|session|scan)s?\.(?:tsv|csv|txt|xlsx?|ods)(?:\.gz)?"
)
#: Images that hold no magnitude.
NOT_MAGNITUDE = ("phase", "real", "imag")
#: Bytes of a key that leave room in a file's name (255) for what outputs add to it.
MAX_KEY = 180
PARTS = (None, "mag", *NOT_MAGNITUDE)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One T1w file and what the dataset says about it.

    Attributes
    ----------
    path : pathlib.Path
        The file, which need not be readable (the check step finds out).
    key : str
        The file's name without ``_T1w.nii.gz``: unique in a run.
    entities : dict of str to str
        Entities of the name by pybids's long names (``subject``, ``session``, ``run``...),
        values as written.
    site, site_source : str
        Acquisition domain (``unknown`` if none) and where it was found
        (``participants.tsv:site``, ``sidecar``, ``none``).
    age : float or None
        Years at the scan, 0 to 120.
    sex : str or None
        ``M`` or ``F``.
    diagnosis : str or None
        As the dataset writes it.
    columns : dict of str to str
        All cells of its rows that say something, by column; of several tables the most specific.
    metadata : dict
        Scanner and acquisition facts from the sidecars.
    mask : pathlib.Path or None
        An existing brain mask on the scan's own grid, found through ``--derivatives``.
    warnings : tuple of str
        What the user should know about this scan's metadata.
    """

    path: Path
    key: str
    entities: dict[str, str]
    site: str = "unknown"
    site_source: str = "none"
    age: float | None = None
    sex: str | None = None
    diagnosis: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    mask: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def wf_name(self) -> str:
        """Name of the scan's workflow."""
        return workflow_name(self.key)


@dataclass(frozen=True)
class Skipped:
    """Something that is not processed: a file (relative to the dataset) or ``sub-XX``, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Inventory:
    """What a run would work on.

    Attributes
    ----------
    scans : tuple of Scan
        Sorted by path.
    skipped : tuple of Skipped
        Subjects without T1w, phase images, second files of one name.
    warnings : tuple of str
        What concerns the dataset as a whole.
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
    """Write a number of things: ``1 scan``, ``2 scans``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def workflow_name(key: str) -> str:
    """Name a scan's workflow: ``sub-01_ses-a`` gives ``sub_01_ses_a_wf``.

    BIDS labels are letters and digits, so different keys give different names. A key that
    is not BIDS (``sub-01_acq-a.b``) gets a hash, lest two of them meet.
    """
    name = re.sub(r"[^0-9a-zA-Z]", "_", key)
    if not re.fullmatch(r"[0-9a-zA-Z]+-[0-9a-zA-Z]+(_[0-9a-zA-Z]+-[0-9a-zA-Z]+)*", key):
        name += "_" + sha256(key.encode()).hexdigest()[:8]
    return f"{name}_wf"


def find_scans(config: RunConfig) -> Inventory:
    """List the T1w scans a run asks for, and what the dataset says about each.

    Only the asked subjects' ``anat`` folders are indexed, without metadata. Nothing is written
    (unless ``bids_database_dir`` asks for an index) and no image is opened.

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
        For labels, sessions or columns the dataset does not have, and for a folder that is no
        dataset.
    NoInputError
        When no T1w scan matches.
    """
    root = config.bids_dir
    there = dict.fromkeys(list_subjects(root))
    subjects = dict.fromkeys(config.participant_label) or there
    if missing := [label for label in subjects if label not in there]:
        raise _not_found("participant", missing, there, root)
    warnings = [] if config.skip_bids_validation else check_description(root)

    paths, note = index_t1w(root, config.participant_label, config.bids_database_dir)
    warnings += [note] if note else []
    sessions = {m[1]: None for path in paths if (m := _SESSION.search(path.as_posix()))}
    if missing := [label for label in config.session_label if label not in sessions]:
        raise _not_found("session", missing, sessions, root)
    kept, skipped = _select(paths, root, config)
    if not kept:
        raise _no_scans(root, subjects, config, skipped)

    scans, notes = _describe_all(kept, config)
    skipped += _without_scans(subjects, kept, config)
    return Inventory(tuple(scans), tuple(skipped), (*warnings, *notes))


def list_scans(config: RunConfig) -> tuple[list[str], list[Skipped]]:
    """List all scans of a dataset by their names alone, which takes a second for 10,000.

    Parameters
    ----------
    config : RunConfig
        Of it ``bids_dir`` counts, and neither labels nor filters.

    Returns
    -------
    keys : list of str
        As :attr:`Scan.key`, sorted by path.
    skipped : list of Skipped
        As in :class:`Inventory`.

    Raises
    ------
    UsageError, NoInputError
        When the folder is no dataset.
    """
    every = replace(config, participant_label=(), session_label=(), bids_filters={})
    subjects = list_subjects(config.bids_dir)
    kept, skipped = _select(list_t1w(config.bids_dir, subjects), config.bids_dir, every)
    skipped += _without_scans(subjects, kept, every)
    return [path.name.rpartition("_")[0] for path, _ in kept], skipped


def _without_scans(
    subjects: Iterable[str], kept: list[tuple[Path, dict[str, str]]], config: RunConfig
) -> list[Skipped]:
    """Say of the subjects without a scan why they have none."""
    with_scans = {entities["sub"] for _, entities in kept}
    return [
        Skipped(_printable(f"sub-{label}"), _why_none(config.bids_dir / f"sub-{label}", config))
        for label in subjects
        if label not in with_scans
    ]


def _select(
    paths: Iterable[Path], root: Path, config: RunConfig
) -> tuple[list[tuple[Path, dict[str, str]]], list[Skipped]]:
    """Keep the images that are asked for and can be told apart, and say why others are not."""
    kept: dict[tuple[str | None, ...], tuple[Path, dict[str, str]]] = {}
    skipped = []
    # foo.nii.gz before foo.nii, so that the compressed one of two is the one that is used.
    for path in sorted(paths, key=lambda p: (str(p.parent), p.name.lower() + "~")):
        what = _printable(path.relative_to(root).as_posix())
        folders = re.fullmatch(r"sub-([^/]+)(?:/ses-([^/]+))?/anat/[^/]+", what)
        name = T1W_NAME.fullmatch(path.name)
        if not folders or not name:
            continue
        try:
            entities = parse_entities(name["key"])
        except ValueError as error:
            skipped.append(Skipped(what, f"its name is not BIDS: '{_printable(str(error))}'"))
            continue
        if unknown := [e for e in entities if e not in ENTITIES]:
            skipped.append(Skipped(what, f"T1w names have no '{unknown[0]}-' in BIDS"))
        elif wrong := [e for e in NUMBERED if not entities.get(e, "0").isdigit()]:
            skipped.append(Skipped(what, f"its {wrong[0]}- is not a number"))
        elif entities.get("part") not in PARTS:
            skipped.append(Skipped(what, f"part- is one of {', '.join(filter(None, PARTS))}"))
        elif len(name["key"]) > MAX_KEY:
            skipped.append(Skipped(what, "its name is too long for the names of its outputs"))
        elif (entities.get("sub"), entities.get("ses")) != folders.groups():
            skipped.append(Skipped(what, "its name and its folders name different sub- or ses-"))
        elif (
            config.session_label and entities.get("ses") not in config.session_label
        ) or not matches(path.name, entities, config.bids_filters):
            continue
        elif entities.get("part") in NOT_MAGNITUDE:
            skipped.append(Skipped(what, f"part-{entities['part']} is not a magnitude image"))
        else:
            same = tuple(entities.get(e) for e in ENTITIES)
            if same in kept:
                other = kept[same][0].name
                skipped.append(Skipped(what, f"{other} has the same entities"))
            else:
                kept[same] = (path, entities)
    return sorted(kept.values(), key=lambda item: item[0]), skipped


def _describe_all(
    kept: list[tuple[Path, dict[str, str]]], config: RunConfig
) -> tuple[list[Scan], list[str]]:
    """Gather tables, sidecars and masks of the kept images."""
    root, folders = config.bids_dir, Folders()
    columns = Columns(
        site=config.site_column,
        age=config.age_column,
        sex=config.sex_column,
        diagnosis=config.diagnosis_column,
    )
    tables: dict[Path, Table] = {}

    def table(folder: Path, name: str, id_column: str) -> Table | None:
        path = folder / name
        if path not in tables and name in folders.names(folder):
            tables[path] = read_table(path, id_column, root, folders)
        return tables.get(path)

    pending = []
    for path, entities in kept:
        sub, ses = entities["sub"], entities.get("ses")
        subject, key = root / f"sub-{sub}", path.name.partition(".")[0]
        scans_name = f"sub-{sub}_ses-{ses}_scans.tsv" if ses else f"sub-{sub}_scans.tsv"
        own = table(path.parent.parent, scans_name, "filename")
        found = [(own, key)]
        if ses:
            # Some list the scans of all sessions in one table.
            listed = table(subject, f"sub-{sub}_scans.tsv", "filename")
            found += [(listed, key)] if listed and (key in listed.rows or own is None) else []
            found.append((table(subject, f"sub-{sub}_sessions.tsv", "session_id"), ses))
        if participants := table(root, "participants.tsv", "participant_id"):
            found += [(participants, row) for row in participants.ids_of(sub, ses)]
        pending.append((path, entities, [(t, row) for t, row in found if t is not None]))
    check_columns(columns, tables.values())
    unread = _unread_tables(root, {path.parent.parent for path, _ in kept}, tables, folders)

    scans = []
    for path, entities, rows in pending:
        person = describe(rows, columns)
        notes = list(person.warnings)
        facts, more = read_sidecars(path, root, folders)
        site, source = person.site, person.site_source
        if site is None and (site := site_label(facts)):
            source = "sidecar"
            if any(columns.among(t.columns, "site") for t, _ in rows):
                notes.append("site: made of the sidecar, as the scan has none in the tables.")
        for t, row in rows:
            named = re.split(r"[/\\]", t.written.get(row, path.name))[-1]
            if t.name == "scans.tsv" and named.lower() != path.name.lower():
                notes.append(f"{t.where} names {named}: taken for {path.name}.")
        scans.append(
            Scan(
                path=path,
                key=path.name.rpartition("_")[0],
                entities={ENTITIES[name]: label for name, label in entities.items()},
                site=site or "unknown",
                site_source=source,
                age=person.age,
                sex=person.sex,
                diagnosis=person.diagnosis,
                columns=person.columns,
                metadata=facts,
                mask=find_mask(entities, config.derivatives, folders),
                warnings=(*notes, *more),
            )
        )
    general = [note for t in tables.values() for note in t.warnings]
    if people := tables.get(root / "participants.tsv"):
        absent = {
            entities["sub"]: people.absent(entities["sub"])
            for _, entities, _ in pending
            if people.columns and entities["sub"] not in people.rows
        }
        if absent:
            n = counted(len(absent), "participant")
            general.append(f"{n} without a row in participants.tsv: {min(absent.values())}")
    general += [*column_warnings(columns, tables.values()), *unread]
    return scans, [*_shortened(general), *_site_warnings(scans), *_mask_warnings(scans, config)]


def _shortened(notes: Iterable[str]) -> list[str]:
    """Leave of notes that differ in the subject, session or lines alone the first, and a count."""
    alike: dict[str, dict[str, None]] = {}
    for note in notes:
        plain = re.sub(r"sub-[^_/\s]+(_ses-[^_/\s]+)?|\blines? [\d, and]+( more)?", "*", note)
        alike.setdefault(plain, {})[note] = None
    return [
        first + (f" So it is with {counted(len(rest), 'more file')}." if rest else "")
        for first, *rest in alike.values()
    ]


def _unread_tables(
    root: Path, folders_of_scans: set[Path], read: Collection[Path], folders: Folders
) -> list[str]:
    """Name what looks like a table of the dataset, but has another name or place than BIDS's."""
    places = folders_of_scans | {folder.parent for folder in folders_of_scans} | {root}
    known = {(path.parent, path.name.rpartition("_")[2]) for path in read}
    unread = sorted(
        (folder / name).relative_to(root).as_posix()
        for folder in places
        if folder.is_relative_to(root)
        for name in folders.names(folder)
        if (kind := _TABLE.fullmatch(name)) and (folder, f"{kind[1].lower()}s.tsv") not in known
    )
    if not unread:
        return []
    shown = ", ".join(map(_printable, unread[:5])) + (" ..." if len(unread) > 5 else "")
    return [
        f"{counted(len(unread), 'table')} not read, as BIDS has no such name there ({shown}): "
        "read are participants.tsv, sub-XX/sub-XX_sessions.tsv and, beside the folder anat, "
        "sub-XX[_ses-YY]_scans.tsv."
    ]


def _site_warnings(scans: list[Scan]) -> list[str]:
    """Name sites that may be one under several spellings."""
    spellings: dict[str, set[str]] = {}
    for site in {scan.site for scan in scans}:
        plain = re.sub(r"[\W_]|\b0+(?=\d)|(?<=\D)0+(?=\d)", "", normalize("NFKD", site.casefold()))
        spellings.setdefault(plain or site, set()).add(site)
    return [
        f"These sites differ in their spelling alone, and count as several: "
        f"{', '.join(sorted(same))}."
        for same in spellings.values()
        if len(same) > 1
    ]


def _mask_warnings(scans: list[Scan], config: RunConfig) -> list[str]:
    """Name the scans for which ``--derivatives`` has no mask."""
    without = [scan.key for scan in scans if scan.mask is None]
    if not config.derivatives or not without:
        return []
    names = ", ".join(f"{name}={path}" for name, path in config.derivatives.items())
    whose = "any scan"
    if len(without) < len(scans):
        shown = ", ".join(without[:5]) + (" ..." if len(without) > 5 else "")
        whose = f"{len(without)} of {counted(len(scans), 'scan')} ({shown})"
    return [
        f"No *_desc-brain_mask.nii.gz in native space was found for {whose} in {names}: "
        f"--skull-strip {config.skull_strip} makes those masks."
    ]


def _printable(name: str) -> str:
    """Make a name that is not UTF-8 or commands the terminal fit for a table or a report."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _why_none(folder: Path, config: RunConfig) -> str:
    """Say why a subject has no scan."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return "its folder cannot be read"
    inside = [folder / "anat", *folder.glob("ses-*"), *folder.glob("ses-*/anat")]
    if closed := [p for p in inside if p.is_dir() and not os.access(p, os.R_OK | os.X_OK)]:
        return f"its folder {closed[0].relative_to(folder)} cannot be read"
    if config.session_label or config.bids_filters:
        return "no T1w scan matches the filters"
    with suppress(StopIteration, OSError):
        next(folder.iterdir())
        return "no T1w scan"
    return "its folder is empty (in a DataLad dataset, run `datalad get` on it)"


def _not_found(what: str, missing: list[str], there: Collection[str], root: Path) -> UsageError:
    """Build the error for labels that are not there, naming those nearest to them."""
    near: list[str] = []
    for wanted in missing[:3]:
        near += look_alikes(wanted, there)[:3] or get_close_matches(wanted, there, n=3)
    quoted = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
    cause = f"{root} has no {what} {quoted}."
    if near:
        return UsageError(cause, f"Did you mean {', '.join(dict.fromkeys(near))}?")
    first = ", ".join(list(there)[:10]) + (f" (of {len(there)})" if len(there) > 10 else "")
    return UsageError(cause, f"There are {first}." if there else f"It has no {what}s.")


def _no_scans(
    root: Path, subjects: Collection[str], config: RunConfig, skipped: list[Skipped]
) -> NoInputError:
    """Build the error for a search without result, printing the filters in force."""
    filters = {
        "--participant-label": " ".join(config.participant_label),
        "--session-label": " ".join(config.session_label),
        "--bids-filter-file": json.dumps(config.bids_filters) if config.bids_filters else "",
    }
    in_force = "; ".join(f"{flag} {value}" for flag, value in filters.items() if value)
    cause = f"No T1w scan was found in {root} ({len(subjects)} subjects)"
    if skipped:
        first = skipped[0]
        cause += f"; {len(skipped)} were left out, such as {first.what}: {first.why}"
    if in_force:
        return NoInputError(f"{cause}.", f"Loosen the filters in force: {in_force}.")
    return NoInputError(
        f"{cause}.", "Scans are expected as sub-XX/[ses-YY/]anat/sub-XX_[ses-YY_]T1w.nii.gz."
    )
