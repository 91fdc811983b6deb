"""Read text files written by people and spreadsheets, and write files atomically.

All text files supplied by users are read here: tables, sidecars, data dictionaries, ratings and
option files.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Spellings of a missing value, in lower case and without punctuation; numeric codes are in CODE.
_MISSING = re.compile(
    r"(n a|na|nan|nil|none|null|unk|unknown|undefined|unspecified|blank|empty|tbd|nodata|no data"
    r"|no value|missing( value| data)?|not (available|applicable|known|reported|specified"
    r"|recorded|provided|stated|collected|determined))?"
)
#: Punctuation other than +, which may be a diagnosis.
_PUNCTUATION = re.compile(r"(?:[^\w+]|_)+")
#: Numeric codes of missing values, such as -9 and -999.
CODE = re.compile(r"-([789])\1*(\.0+)?")
#: Upper limit of the size of Git LFS and git-annex pointer files, in bytes.
MAX_POINTER = 2**15
_LFS = b"version https://git-lfs.github.com/spec/"
#: Start of a git-annex pointer file, or of a link saved as text on systems without symlinks.
_ANNEX = re.compile(rb"[./\\][^\n\t\"{}]*annex[/\\]objects[/\\]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_NUMBER = re.compile(r"(-?)\+?0*(\d+?)(?:\.(\d*?)0*|,0+)?")
csv.field_size_limit(2**31 - 1)


class TextError(ValueError):
    """A text file that cannot be read; the message is a short reason."""


def pointer(path: Path) -> str | None:
    """Return why a file's content is absent (Git LFS, git-annex or a broken link), else None.

    Parameters
    ----------
    path : pathlib.Path
        Any file or link. At most the first 1024 bytes of files below :data:`MAX_POINTER` are read.

    Returns
    -------
    str or None
        Reason with the command that fetches the content, such as ``its content is not present
        (Git LFS): run `git lfs pull```. None if the file has its content or does not exist.
    """
    try:
        if path.is_symlink() and not path.exists():
            target = os.fsencode(os.readlink(path))
            return _fetch(b"./" + target) or f"it is a broken link to {os.fsdecode(target)!r}"
        if path.is_file() and path.stat().st_size < MAX_POINTER:
            with path.open("rb") as stream:
                return _fetch(stream.read(1024))
    except OSError:
        pass
    return None


def _fetch(start: bytes) -> str | None:
    if start.startswith(_LFS):
        return "its content is not present (Git LFS): run `git lfs pull`"
    if _ANNEX.match(start):
        return "its content is not present (git-annex): run `datalad get` or `git annex get` on it"
    return None


def decode(raw: bytes) -> tuple[str, list[str]]:
    """Decode UTF-8, UTF-16 or UTF-32, with or without a byte order mark, or Latin-1.

    Parameters
    ----------
    raw : bytes
        Text that begins with an ASCII character, as tables and JSON do.

    Returns
    -------
    text : str
        Decoded text without the byte order mark.
    notes : list of str
        Remarks on an unexpected encoding, for a warning.

    Raises
    ------
    TextError
        If the bytes are not text.
    """
    encoding = json.detect_encoding(raw)
    notes = [] if encoding.startswith("utf-8") else [f"is {encoding.upper()} instead of UTF-8"]
    try:
        text = raw.decode(encoding)
    except UnicodeError as error:
        if notes:
            raise TextError("it is not text") from error
        text, notes = raw.decode("cp1252", "replace"), ["is not UTF-8, and was read as Latin-1"]
    if "\0" in text:
        raise TextError("it is not text")
    return text, notes


def read_text(path: Path) -> tuple[str, list[str]]:
    """Read a text file; see :func:`decode` for its encoding and the returned notes.

    Raises
    ------
    TextError
        If the file cannot be read, is not text, or is only a pointer to its content.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TextError(pointer(path) or error.strerror or str(error)) from error
    if len(raw) < MAX_POINTER and (why := _fetch(raw)):
        raise TextError(why)
    return decode(raw)


def read_json(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a JSON object, and return it with remarks on its encoding.

    Raises
    ------
    TextError
        If the file cannot be read or does not contain a JSON object.
    """
    text, notes = read_text(path)
    try:
        content = json.loads(text, strict=False)  # allow line breaks and tabs in strings
    except (ValueError, RecursionError) as error:
        raise TextError(str(error)) from error
    if not isinstance(content, dict):
        raise TextError("it does not hold a JSON object")
    return content, notes


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Return a file's JSON object, or an empty dict if it is missing or unreadable."""
    try:
        return read_json(path)[0]
    except TextError:
        return {}


def split_table(text: str) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """Split a table into its header and rows of cells, whatever the separator.

    pandas would take fifty times as long on small tables, and a dataset of 10,000 subjects may
    have 20,000 of them.

    Parameters
    ----------
    text : str
        Table with any line endings. Cells are separated by tabs, or by ``,``, ``;`` or ``|`` if
        the first row has no tab, and may be quoted.

    Returns
    -------
    header : list of str
        First non-blank row.
    rows : list of (int, list of str)
        Other non-blank rows, each with the number of the line where it ends. Runs of white space
        in a cell, including line breaks and no-break spaces, are replaced by one space.
    notes : list of str
        Remarks on an unexpected separator, for a warning.
    """
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    # str.splitlines() would also split at control characters that cells may contain.
    lines = re.split(r"\r\n|\r|\n", text)
    first = re.sub(r'"[^"]*"', "", next(filter(str.strip, lines), ""))
    separator = "\t" if "\t" in first else max("\t;,|", key=first.count)
    split: Iterable[tuple[int, list[str]]]
    if separator == "\t":
        notes = []
        split = enumerate(([_unquoted(c) for c in line.split("\t")] for line in lines), start=1)
    else:
        notes = [f"is separated by '{separator}' instead of tabs"]
        reader = csv.reader([f"{line}\n" for line in lines], delimiter=separator)
        split = ((reader.line_num, cells) for cells in reader)
    rows = [(line, [" ".join(cell.split()) for cell in cells]) for line, cells in split]
    header, *body = [(line, cells) for line, cells in rows if any(cells)] or [(0, [])]
    return header[1], body, notes


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell


def is_missing(text: str) -> bool:
    """Return whether a cell has no value (``n/a``, ``unknown``, empty or only punctuation)."""
    return bool(_MISSING.fullmatch(_PUNCTUATION.sub(" ", text.lower()).strip()))


def plain_number(text: str) -> str:
    """Return a number in its shortest form, so that ``1``, ``01`` and ``1.0`` are the same label.

    Other text is returned unchanged.

    Examples
    --------
    >>> [plain_number(text) for text in ("01", "1.0", "1.50", "Oslo 01")]
    ['1', '1', '1.5', 'Oslo 01']
    """
    match = _NUMBER.fullmatch(text.strip())
    if not match:
        return text
    number = f"{match[2]}.{match[3]}" if match[3] else match[2]
    return number if number == "0" else match[1] + number


def plain_id(label: str) -> str:
    """Return an ID in lower case, without punctuation, leading zeros or a final ``.0``."""
    return re.sub(r"\.0+$|[\W_]|(?<!\d)0+(?=\d)", "", label.casefold())


def id_key(label: str) -> str:
    """Return a key shared by IDs that may be the same: :func:`plain_id` without its prefix."""
    return re.sub(r"^\D+(?=\d)", "", plain_id(label))


def look_alikes(wanted: str, existing: Iterable[str]) -> list[str]:
    """Return IDs that differ only in leading zeros, a prefix, case or punctuation.

    Parameters
    ----------
    wanted : str
        ID that was not found, such as ``01``.
    existing : iterable of str
        Existing IDs.

    Returns
    -------
    list of str
        Similar IDs, in the order of ``existing``.

    Examples
    --------
    >>> look_alikes("01", ["1", "S001", "10", "01a"])
    ['1', 'S001']
    """
    plain, key = plain_id(wanted), id_key(wanted)
    return [
        other
        for other in existing
        if id_key(other) == key
        and (plain.endswith(plain_id(other)) or plain_id(other).endswith(plain))
    ]


def write_text(path: Path, text: str) -> None:
    """Write text atomically, encoded as UTF-8; safe if parallel jobs write the same file."""
    # Paths in the text may not be valid UTF-8.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically; safe if parallel jobs write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        # mkstemp creates files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, with sorted keys, so that equal values give equal files."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n")


def why_unread(path: Path, error: Exception) -> str:
    """Return a short reason why a file cannot be read.

    Parameters
    ----------
    path : pathlib.Path
        The file, which may be a DataLad link whose content has not been fetched.
    error : Exception
        Error raised when reading it.
    """
    if why := pointer(path):
        return why
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 checksum of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(paths: Iterable[Path]) -> str:
    """Return one SHA-256 checksum of several files, including their names and order."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f"{path.name}\0{sha256_of(path)}\0".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()
