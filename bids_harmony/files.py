"""Read text files as people leave them, and write files whole.

Every text that a user hands over is read here: tables, sidecars, data dictionaries, ratings and
files of options. What is written appears under its name when it is complete.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

#: "No value", as cells say it in lower case and without punctuation. No number is among them.
_MISSING = re.compile(
    r"(n a|na|nan|nil|none|null|unk|unknown|undefined|unspecified|blank|empty|tbd|nodata|no data"
    r"|no value|missing( value| data)?|not (available|applicable|known|reported|specified"
    r"|recorded|provided|stated|collected|determined))?"
)
#: All but +, which may be a diagnosis.
_PUNCTUATION = re.compile(r"(?:[^\w+]|_)+")
#: What tables of numbers write for no value; none is a site, a diagnosis or a person.
CODE = re.compile(r"-([789])\1*(\.0+)?")
#: Bytes that a pointer to a file's content never exceeds.
MAX_POINTER = 2**15
_LFS = b"version https://git-lfs.github.com/spec/"
#: git-annex's pointer file, or its link where a system without links keeps links as text.
_ANNEX = re.compile(rb"[./\\][^\n\t\"{}]*annex[/\\]objects[/\\]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_NUMBER = re.compile(r"(-?)\+?0*(\d+?)(?:\.(\d*?)0*|,0+)?")
csv.field_size_limit(2**31 - 1)


class TextError(ValueError):
    """Why a text file cannot be read, in a few words."""


def pointer(path: Path) -> str | None:
    """Say that a file only points to its content, and which command fetches that.

    Parameters
    ----------
    path : pathlib.Path
        Any file, or a link to one; at most the start of a small file is read.

    Returns
    -------
    str or None
        Words such as ``its content is not present (Git LFS): run `git lfs pull```; None for a
        file that holds its content, or is not there.
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
        Without the mark.
    notes : list of str
        What a warning should say of the encoding.

    Raises
    ------
    TextError
        When it is no text.
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
    """Read a text file; see :func:`decode`.

    Raises
    ------
    TextError
        When it cannot be read, is no text, or only points to its content.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TextError(pointer(path) or error.strerror or str(error)) from error
    if len(raw) < MAX_POINTER and (why := _fetch(raw)):
        raise TextError(why)
    return decode(raw)


def read_json(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a JSON object, and what a warning should say of its encoding.

    Raises
    ------
    TextError
        When it cannot be read, or is no JSON object.
    """
    text, notes = read_text(path)
    try:
        content = json.loads(text, strict=False)  # line breaks and tabs within strings
    except (ValueError, RecursionError) as error:
        raise TextError(str(error)) from error
    if not isinstance(content, dict):
        raise TextError("it does not hold a JSON object")
    return content, notes


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none that can be read."""
    try:
        return read_json(path)[0]
    except TextError:
        return {}


def split_table(text: str) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """Split a table into cells, whatever separates them.

    The standard library does it: a dataset of 10,000 subjects may have 20,000 tables of a few
    rows, for each of which pandas takes fifty times as long.

    Parameters
    ----------
    text : str
        Rows with any line ends; cells separated by tabs, or by ``,``, ``;`` or ``|`` where the
        first row has no tab. Cells may be in quotes.

    Returns
    -------
    header : list of str
        The first row that is not blank.
    rows : list of (int, list of str)
        The others, each with the line it ends at. White space within cells, line breaks and
        no-break spaces too, is one space.
    notes : list of str
        What a warning should say of the separator.
    """
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    # Not splitlines(), which also splits at characters that names and sites may contain.
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
    """Tell whether a cell says that there is no value, or nothing but punctuation."""
    return bool(_MISSING.fullmatch(_PUNCTUATION.sub(" ", text.lower()).strip()))


def plain_number(text: str) -> str:
    """Spell a number in the shortest way, so that ``1``, ``01`` and ``1.0`` are one label.

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
    """Spell an id in lower case, without punctuation, leading zeros and ``.0``."""
    return re.sub(r"\.0+$|[\W_]|(?<!\d)0+(?=\d)", "", label.casefold())


def id_key(label: str) -> str:
    """Bring ids that may be the same to one form: as :func:`plain_id`, without a prefix."""
    return re.sub(r"^\D+(?=\d)", "", plain_id(label))


def look_alikes(wanted: str, there: Iterable[str]) -> list[str]:
    """Find ids that differ from one by leading zeros, a prefix, case or punctuation alone.

    Parameters
    ----------
    wanted : str
        Such as ``01``.
    there : iterable of str
        The ids there are.

    Examples
    --------
    >>> look_alikes("01", ["1", "S001", "10", "01a"])
    ['1', 'S001']
    """
    plain, key = plain_id(wanted), id_key(wanted)
    return [
        other
        for other in there
        if id_key(other) == key
        and (plain.endswith(plain_id(other)) or plain_id(other).endswith(plain))
    ]


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; parallel jobs that write the same file do no harm."""
    # A path may hold bytes that are no UTF-8.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically; parallel jobs that write the same file do no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        # mkstemp makes files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, with an order and form that depend on the values alone."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n")


def why_unread(path: Path, error: Exception) -> str:
    """Say in a few words why a file cannot be read.

    Parameters
    ----------
    path : pathlib.Path
        The file; in a DataLad dataset a link, whose content may not have been fetched.
    error : Exception
        What reading it raised.
    """
    if why := pointer(path):
        return why
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(paths: Iterable[Path]) -> str:
    """SHA-256 of several files together, their names and order included."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f"{path.name}\0{sha256_of(path)}\0".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def claim(path: Path, names: Iterable[str]) -> tuple[IO[bytes], str | None]:
    """Claim names for this process, for as long as the returned file is open.

    A name is a locked byte of one file, so that ten thousand cost no more than one. The locks end
    with the process, however it ends. Where the disk knows no locks, everything is claimed.

    Parameters
    ----------
    path : pathlib.Path
        The file, made where there is none.
    names : iterable of str
        What to claim.

    Returns
    -------
    file : file object
        Keep it.
    taken : str or None
        A name that another process has claimed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    for name in names:
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            return file, name
        except OSError:
            break
    return file, None
