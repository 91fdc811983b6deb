"""Files that appear whole: written beside their target first, then renamed over it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from bids_harmony.text import pointer


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
