"""What ``--help`` says, and that it says so at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bids_harmony.cli.parser import build_parser


def test_help_names_every_option_once_and_its_default() -> None:
    text = build_parser().format_help()
    for action in build_parser()._actions:
        assert action.help
        if action.option_strings:
            long = [name for name in action.option_strings if name.startswith("--")]
            assert f"{long[0]} " in text or f"{long[0]}\n" in text
            for name in long:
                assert name.replace("-", "_").replace("__", "--", 1) in long
    assert "_label" not in text
    for default in ("(default: auto)", "(default: 42)", "(default: 6)"):
        assert default in " ".join(text.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    code = (
        "import sys\n"
        "from bids_harmony.cli.run import main\n"
        "try:\n"
        f"    main([{option!r}])\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "heavy = {'torch', 'ants', 'nipype', 'bids', 'nibabel', 'pandas', 'numpy', 'deepbet'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "bids_harmony" in done.stdout
