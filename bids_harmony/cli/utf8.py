"""Text is UTF-8, whatever the locale says."""

from __future__ import annotations

import os
import sys


def use_utf8() -> None:
    """Start the command anew in Python's UTF-8 mode where the locale has another encoding.

    Names of files are UTF-8 on any disk in use. nireports reads its parts, pybids stores names
    and ITK opens files by the locale: under ``PYTHONUTF8=0 LC_ALL=C`` or a Latin-1 locale each
    of them fails at an ``ä`` in a path. The process stays the same one, for those that signal it.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8" or not sys.executable:
        return
    # The variable is for what the command starts; `-X` holds where Python is told not to read it.
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606
