"""Every command that README and docs show is run, or at least parsed by its own parser."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import documented
import pytest
from documented import MARKS, NAMES, OTHER, ROOT, Block, all_blocks, commands_in, own_arguments

from bids_harmony.cli import parser as options
from bids_harmony.cli import simulate
from bids_harmony.cli.parser import parse_args
from bids_harmony.errors import UsageError

BLOCKS = all_blocks()
SHELL = [block for block in BLOCKS if block.words[:1] == ["sh"]]
#: Pages whose subject is other programs, with options of theirs.
OF_OTHERS = ("docs/container.md", "docs/hpc.md", "docs/faults.md", "recipes/README.md")
#: Options of other programs that the remaining pages name.
FOREIGN: set[str] = set()


def test_examples_of_the_helpers_hold() -> None:
    assert doctest.testmod(documented).attempted == 3
    assert not doctest.testmod(documented).failed


def test_pages_hold_commands() -> None:
    assert len(SHELL) > 20
    assert {mark for block in SHELL for mark in block.words[1:]} == set(MARKS)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_how_it_is_tested(block: Block) -> None:
    if block.words[:1] == ["sh"]:
        assert len(block.words) == 2, f"write ```sh run, slow or check at {block}"
        assert block.words[1] in MARKS
    else:
        assert block.info in OTHER, f"write ```sh MARK, or one of {sorted(OTHER)}, at {block}"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_block_is_shell_whose_commands_exist(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bids_harmony.cli.parser.check_config", lambda *_, **__: [])
    monkeypatch.setattr("bids_harmony.bids.filters.read_filters", lambda _: {})
    done = subprocess.run(["bash", "-n"], input=block.text, text=True, check=False,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for command in commands_in(block.text):
        check(command)
    assert "warning" not in capsys.readouterr().err


def test_commands_within_the_text_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bids_harmony.cli.parser.check_config", lambda *_, **__: [])
    found = [
        span.replace("\n", " ")
        for path in documented.pages()
        for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", path.read_text("utf-8"))
        if re.match(r"(bids_harmony|bids_harmony-simulate|make|pip|python) ", span)
    ]
    assert len(found) > 5
    for span in found:
        for command in commands_in(span):
            check(command)


def check(command: list[str]) -> None:
    """Fail where a command of the project, or what it runs of it, does not exist."""
    if found := own_arguments(command):
        program, arguments = found
        parse = parse_args if program == "bids_harmony" else simulate.build_parser().parse_args
        try:
            parse(arguments)
        except SystemExit as end:  # 0: --help, --version
            if end.code:
                pytest.fail(f"{' '.join(command)} is not understood")
        except UsageError as error:
            pytest.fail(f"{' '.join(command)}: {error}")
    elif command[0] == "make":
        subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, check=True, capture_output=True)
    elif command[0] == "pip":
        text = (ROOT / "pyproject.toml").read_text("utf-8")
        for extra in re.findall(r"\[(\w+)\]", " ".join(command)):
            assert re.search(rf"^{extra} = \[", text, re.MULTILINE), f"there is no extra {extra}"
    elif command[0] == "python" and len(command) > 1 and command[1].endswith(".py"):
        text = (ROOT / command[1]).read_text("utf-8")
        for word in command[2:]:
            name = word.strip("[]")
            assert not name.startswith("--") or f'"{name}"' in text, f"{command[1]} has no {name}"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("ls && bids_harmony /b /o group -w $W", ["/b", "/o", "group", "-w", "1"]),
        ("apptainer run -B /a x/bids_harmony.sif /b /o group", ["/b", "/o", "group"]),
        ("docker run -v x/bids_harmony:/o bids_harmony:slim /b /o group > log",
         ["/b", "/o", "group"]),
        ("docker build -t bids_harmony .", None),
    ],
)  # fmt: skip
def test_our_own_commands_are_found_wherever_they_stand(
    text: str, arguments: list[str] | None
) -> None:
    found = [own[1] for own in map(own_arguments, commands_in(text)) if own]
    assert found == ([] if arguments is None else [arguments])


@pytest.mark.parametrize(
    "text",
    [
        "bids_harmony /b /o participant --no-such-option",
        "docker run bids_harmony /b /o particpant",
        "bids_harmony /b /o group --skull-strip bet && true",
        "bids_harmony-simulate /b --site 3x",
        "make no-such-target",
        "pip install .[nothing]",
        "python recipes/default_bundle.py SCANS WORK --instal",
    ],
)
def test_a_command_that_does_not_exist_is_found(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = Block("page", 1, "sh check", text + "\n")
    with pytest.raises((AssertionError, pytest.fail.Exception, subprocess.CalledProcessError)):
        test_a_block_is_shell_whose_commands_exist(block, monkeypatch, capsys)


def test_options_that_the_text_names_exist() -> None:
    known = FOREIGN | {
        name
        for parser in (options.build_parser(), simulate.build_parser())
        for action in parser._actions
        for name in action.option_strings
    }
    for path in documented.pages():
        page = path.relative_to(ROOT).as_posix()
        if page in OF_OTHERS:
            continue
        for span in re.findall(r"(?<!`)`(--[^`]+)`", path.read_text("utf-8")):
            name = re.split(r"[ =]", span)[0]
            assert name in known, f"{page} names {name}, which no parser knows"


def test_links_of_the_readme_lead_somewhere() -> None:
    for path in documented.pages():
        text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+:|#", target):
                assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"


# The blocks of a page are executed one after the other, in folders that pages share.

#: The folders' names on the pages, and pages whose scans are preprocessed already, with the
#: reference site.
PLACES = {
    "/data/derivatives/bids_harmony": "out", "/data/bids": "bids", "/data/out": "out",
    "/scratch/work": "work", "BIDS": "bids", "OUT": "out", "WORK": "work",
}  # fmt: skip
PREPROCESSED = {"docs/training.md": "REF", "docs/evaluation.md": "REF"}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our programs on a PATH of their own, from this source tree."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in zip(NAMES, ("bids_harmony", "bids_harmony.cli.simulate"), strict=True):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def execute(block: Block, place: Path, programs: Path) -> None:
    """Run a block as a user would, its places in a folder of its own; it must succeed."""
    names = "|".join(map(re.escape, PLACES))
    text = re.sub(
        rf"(?<![\w/-])({names})(?![\w-])",
        lambda m: f"{place}/heads/{PLACES[m[1]]}",
        block.text.replace("SITE", PREPROCESSED.get(block.page, "site1")),
    )
    path = os.environ.get("PYTHONPATH")
    env = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{path}" if path else str(ROOT),
    }
    shell = ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run(
        [*([sys.executable, "-c"] if block.info == "python" else shell), text],
        cwd=place, env=env, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}:\n{text}\n{done.stdout}\n{done.stderr}"


def test_quick_blocks_run(tmp_path: Path, programs: Path) -> None:
    quick = [block for block in SHELL if block.words[1] == "run"]
    assert {block.page for block in quick} == {"docs/start.md"}
    for block in quick:
        execute(block, tmp_path, programs)
    assert len(list((tmp_path / "heads" / "bids").glob("sub-*/anat/*_T1w.nii.gz"))) == 2


@pytest.mark.slow
def test_blocks_run_over_simulated_heads(tmp_path: Path, programs: Path) -> None:
    blocks = [
        block for block in SHELL if block.words[1] != "check" and block.page not in PREPROCESSED
    ]
    # The first page makes and processes the heads; Python reads the outputs last.
    blocks.sort(key=lambda block: block.page != "docs/start.md")
    python = [block for block in BLOCKS if block.info == "python"]
    assert python
    for block in blocks + python:
        execute(block, tmp_path, programs)
    for name in ("sub-01.html", "sub-02.html", "group_T1w.html"):
        assert (tmp_path / "heads" / "out" / name).is_file()


@pytest.mark.slow
def test_blocks_run_over_preprocessed_scans(tmp_path: Path, programs: Path) -> None:
    from test_train_command import preprocessed_dataset

    preprocessed_dataset(tmp_path / "heads", {"REF": 14, "A": 4}, {"A": 1.8})
    blocks = [b for b in SHELL if b.words[1] != "check" and b.page in PREPROCESSED]
    assert blocks
    for block in blocks:
        execute(block, tmp_path, programs)
    assert (tmp_path / "heads" / "out" / "models" / "harmony" / "bundle.json").is_file()
