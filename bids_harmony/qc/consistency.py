"""What does not go together among a dataset's scans: images, processing, and the dataset itself.

Nothing is dropped for it: the notes stand at the top of the group's report and in its log.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bids_harmony.bids import counted
from bids_harmony.qc.values import mapping, number, text

if TYPE_CHECKING:
    import pandas as pd

    from bids_harmony.qc.collect import ScanRow

#: Names that a note gives one by one.
NAMED = 10
#: Columns that say how a scan was made, and how a note speaks of scans that differ in them.
PROCESSING = {
    "skull_strip": "stripped by {}",
    "registration": "registered by {}",
    "template": "registered to {}",
    "resolution": "resampled to {} mm",
    "normalization": "scaled with {}",
    "options": "made with {}",
    "software_version": "made by bids_harmony {}",
    "tools": "made with {}",
    "bundle": "harmonized with {}",
}
#: What stands in the place of "by" and a method that is none.
NO_METHOD = {
    "by precomputed": "with masks given with the data",
    "by stripped": "before they came here",
    "by skip": "not at all",
}


def processing_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Read from a scan's record how it was made; what it does not say is None or NaN."""
    processing, mask = mapping(record, "processing"), mapping(record, "mask")
    contract, digests = mapping(processing, "contract"), mapping(record, "inputs")
    # Of two files of one name the content tells.
    template = [processing.get("template"), str(digests.get("template") or "")[:12]]
    asked = processing.get("registration")
    scaling = [
        form.format(contract[name])
        for name, form in (
            ("grey", "grey matter at {}"),
            ("shading_order", "a bias field of order {}"),
        )
        if name in contract
    ]
    options = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name in ("on_guard_fail", "correct_age_bias", "random_seed", "sloppy")
        if (value := {**mapping(record, "harmonization"), **processing}.get(name))
        not in (None, False)
    ]
    if atlases := digests.get("atlases"):
        options.append(f"--atlas-dir {str(atlases)[:12]}")
    tools = sorted(mapping(processing, "tools").items())
    return {
        "skull_strip": "stripped" if mask.get("detected") else text(mask.get("method")),
        "registration": text(contract.get("registration") if asked == "auto" else asked),
        "template": text(" ".join(str(part) for part in template if part)),
        "resolution": number(contract.get("resolution")),
        "normalization": " and ".join(scaling) or None,
        "options": " ".join(options) or None,
        "software_version": text(processing.get("version")),
        "tools": text("; ".join(f"{name} {version}" for name, version in tools)),
        "input_sha256": text(record.get("input_sha256") or digests.get("T1w")),
        "image": text(image_digest(record)),
    }


def image_digest(record: Mapping[str, Any]) -> Any:
    """Digest of a scan's voxels, or of its file where the record is an older version's."""
    file = record.get("input_sha256") or mapping(record, "inputs").get("T1w")
    return mapping(record, "check").get("voxels_sha256") or file


def same_images(rows: Sequence[ScanRow]) -> list[tuple[str, ...]]:
    """Find the scans whose raw images have equal voxels: those of each image, sorted."""
    by_image: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if isinstance(digest := row.values.get("image"), str):
            by_image[digest].append(row.scan)
    return sorted(tuple(sorted(scans)) for scans in by_image.values() if len(scans) > 1)


def image_notes(rows: Sequence[ScanRow]) -> list[str]:
    """Say which images stand under several participants, or several times under one."""
    notes = []
    same = same_images(rows)
    several = [scans for scans in same if len({scan.split("_")[0] for scan in scans}) > 1]
    for found, where in (
        (several, "under different participants, and is counted for each"),
        (
            [scans for scans in same if scans not in several],
            "more than once under one participant",
        ),
    ):
        if found:
            said = named([named(scans, " and ") for scans in found], "; ")
            notes.append(f"The same image stands {where}: {said}.")
    return notes


def processing_notes(table: pd.DataFrame) -> list[str]:
    """Say, with counts, in what the finished scans of a table were made in different ways.

    Parameters
    ----------
    table : pandas.DataFrame
        Of :func:`bids_harmony.qc.collect.scan_table`. Scans whose record does not say are left
        out of the count.
    """
    done = table[table["qc_status"] != "error"]
    notes = []
    for column, form in PROCESSING.items():
        values = done[column]
        if column == "tools":
            each = (cell.split("; ") for cell in values.dropna())
            of_tool: dict[str, list[str]] = defaultdict(list)
            for tool in (tool for tools in each for tool in tools):
                of_tool[tool.rpartition(" ")[0]].append(tool)
            notes += [_counts(found, form) for found in of_tool.values() if len(set(found)) > 1]
            continue
        if column == "bundle" and values.notna().any():
            values = values.fillna("no bundle")
        known = [f"{v:g}" if isinstance(v, float) else str(v) for v in values.dropna()]
        if len(set(known)) > 1:
            notes.append(_counts(known, form))
    return [*notes, "Scans that were made in different ways may differ for that alone."] * bool(
        notes
    )


def _counts(values: Sequence[str], form: str) -> str:
    """Count scans that were made in different ways, the fewest first.

    >>> _counts(["deepbet", "bet", "deepbet"], "stripped by {}")
    '1 of 3 scans was stripped by bet, 2 by deepbet.'
    """
    ways = sorted(((values.count(v), v) for v in set(values)), key=lambda way: (way[0], way[1]))
    done, _, how = form.partition(" ")
    said = [(n, how.format(value)) for n, value in ways]
    (n, first), *rest = [(n, NO_METHOD.get(way, way)) for n, way in said]
    start = f"{n} of {len(values)} scans {'was' if n == 1 else 'were'} {done} {first}"
    others = [f"{n} {way}" for n, way in rest]
    return f"{start}, {named(others)}."


def named(names: Iterable[str], mark: str = ", ", n: int | None = None) -> str:
    """Give the first names, and count the rest of all ``n``.

    >>> named("abcdefghijkl")
    'a, b, c, d, e, f, g, h, i, j and 2 more'
    """
    names = list(names)
    more = (len(names) if n is None else n) - len(names[:NAMED])
    return mark.join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def absent_scans(
    keys: Iterable[str], there: Sequence[str], without: Iterable[tuple[str, str]]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Compare the scans that have a record with those of the dataset.

    Parameters
    ----------
    keys : iterable of str
        Scans that have a record.
    there : sequence of str
        Scans of the dataset.
    without : iterable of (str, str)
        Participants of the dataset without a scan, and why.

    Returns
    -------
    absent : list of (str, str)
        What is in the dataset or among the records only, and what that means.
    notes : list of str
        The same with counts, for those to whom the first names are enough.
    """
    recorded, in_dataset, empty = set(keys), set(there), list(without)
    never = [key for key in there if key not in recorded]
    gone = sorted(recorded - in_dataset)
    notes = []
    if never:
        people = counted(len({key.split("_")[0] for key in never}), "participant")
        notes.append(
            f"{counted(len(never), 'scan')} of {people} in the dataset {_have(never)} no record, "
            f"and {_are(never)} in no table: {named(never)}."
        )
    if empty:
        said = named(f"{name} ({why})" for name, why in empty)
        notes.append(
            f"{counted(len(empty), 'participant')} of the dataset {_have(empty)} no T1w scan that "
            f"can be used: {said}."
        )
    if gone:
        notes.append(
            f"{counted(len(gone), 'scan')} with a record {_are(gone)} no longer in the dataset, "
            f"but still in the tables: {named(gone)}."
        )
    absent = [
        *((key, "no record: not processed, or its record was removed") for key in never),
        *empty,
        *((key, "it has a record, but is no longer in the dataset") for key in gone),
    ]
    return absent, notes


def _have(things: Sequence[Any]) -> str:
    return "has" if len(things) == 1 else "have"


def _are(things: Sequence[Any]) -> str:
    return "is" if len(things) == 1 else "are"
