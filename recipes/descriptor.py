"""Print the Boutiques descriptor of the command line, which nipoppy uses too.

python recipes/descriptor.py > recipes/nipoppy/descriptor.json
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from bids_harmony import __version__, errors
from bids_harmony.cli.parser import build_parser

EXIT_CODES = {
    errors.EXIT_SCAN_FAILED: "Some scans failed.",
    errors.EXIT_USAGE: "An argument is invalid.",
    errors.EXIT_NO_INPUT: "No T1w image was found.",
    errors.EXIT_SOFTWARE: "Internal error.",
    errors.EXIT_BUNDLE: "The model bundle cannot be used.",
    errors.EXIT_MISSING_PROGRAM: "A program is missing.",
    130: "Interrupted.",
}


def described(action: argparse.Action, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return an argument as an input of the descriptor."""
    help_text = parser._get_formatter()._expand_help(action)
    # A file type would make the container runtime mount what is only a folder of outputs.
    found: dict[str, Any] = {
        "id": action.dest,
        "name": action.dest.replace("_", " ").capitalize(),
        "description": help_text,
        "type": "Flag" if action.nargs == 0 else "String",
        "value-key": f"[{action.dest.upper()}]",
        "optional": bool(action.option_strings),
    }
    if action.option_strings:
        found["command-line-flag"] = action.option_strings[0]
    if action.choices:
        found["value-choices"] = list(action.choices)
    if action.nargs == "+":
        found["list"] = True
    return found


def descriptor() -> dict[str, Any]:
    """Return the descriptor (Boutiques schema 0.5)."""
    parser = build_parser()
    inputs = [
        described(action, parser)
        for action in parser._actions
        if action.dest not in ("help", "version")
    ]
    keys = " ".join(entry["value-key"] for entry in inputs)
    return {
        "name": parser.prog,
        "description": " ".join((parser.description or "").split()),
        "tool-version": __version__,
        "schema-version": "0.5",
        # The default, /bin/sh, is run as a login shell, which resets the PATH of the image.
        "shell": "/bin/bash",
        "command-line": f"{parser.prog} {keys}",
        "container-image": {
            "type": "docker",
            "index": "docker://",
            "image": f"bids_harmony:{__version__}",
        },
        "inputs": inputs,
        "output-files": [
            {
                "id": "outputs",
                "name": "BIDS derivatives",
                "path-template": "[OUTPUT_DIR]",
            }
        ],
        "error-codes": [{"code": code, "description": text} for code, text in EXIT_CODES.items()],
        "suggested-resources": {"cpu-cores": 1, "ram": 3, "walltime-estimate": 600},
        "tags": {"domain": ["neuroinformatics", "mri"]},
    }


if __name__ == "__main__":
    print(json.dumps(descriptor(), indent=2, ensure_ascii=False))
