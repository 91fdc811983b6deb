"""Find the commands that README and docs show, and split them into arguments.

A block of commands is fenced as ``sh`` and a mark, which says how it is tested:

``slow``   executed by the slow tests, on simulated heads
``check``  not executed, as it needs Docker, a cluster, hours or the network

All blocks are parsed by ``bash -n``, and commands of this project by its own parser.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What fences say.
KINDS = {"sh slow", "sh check", "text", "json", "yaml", "python"}
FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
#: Our image: by its name and tag, or as Apptainer's file.
IMAGE = re.compile(r"(?:[\w./-]*/)?bids_harmony(?::[\w.-]+|\.sif)?")
ENGINES = ("docker", "podman", "apptainer")
PUNCTUATION = set("();<>|&")
NAMES = ("bids_harmony", "bids_harmony-simulate")


@dataclass(frozen=True)
class Block:
    """A fenced block: page, line, what its fence says, and content."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> dict[str, str]:
    """README, CONTRIBUTING and the pages of docs/ and recipes/, by path."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md"]
    found += sorted((ROOT / "docs").glob("*.md"))
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in found}


def all_blocks() -> list[Block]:
    """Find the fenced blocks of all pages, directives left out."""
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[3].strip(), match[4])
        for page, text in pages().items()
        for match in FENCE.finditer(text)
        if not match[3].startswith("{")
    ]


def code_spans(text: str) -> list[str]:
    """Find what stands between single backquotes."""
    return [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def commands_in(text: str) -> list[list[str]]:
    """Split a script into simple commands, with variables and substitutions replaced by ``1``.

    >>> commands_in('A=1 srun x $N \\\\\\n  --y "$(nproc)" | tee f # so')
    [['A=1', 'srun', 'x', '1', '--y', '1'], ['tee', 'f']]
    """
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(r"\$\([^()]*\)|\$\{[^}]*\}|\$[A-Za-z_]\w*|\$[0-9@?!#*]", "1", text)
    found: list[list[str]] = []
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found.append([])
        for word in lexer:
            if word and set(word) <= PUNCTUATION:
                # What a redirection names is no argument; as a command of its own it is ignored.
                found.append([])
            else:
                found[-1].append(word)
    return [command for command in found if command]


def own_arguments(command: list[str]) -> tuple[str, list[str]] | None:
    """Return the program of ours that a command runs, and its arguments; None for others.

    >>> own_arguments(['docker', 'run', '-v', '/a:/b', 'bids_harmony:slim', '/b', '/o', 'group'])
    ('bids_harmony', ['/b', '/o', 'group'])
    >>> own_arguments(['docker', 'build', '-t', 'bids_harmony', '.'])
    """
    if command[0] in NAMES:
        return command[0], command[1:]
    if command[0] in ENGINES and "run" in command:
        for i, word in enumerate(command):
            if i and IMAGE.fullmatch(word):
                return "bids_harmony", command[i + 1 :]
    return None
