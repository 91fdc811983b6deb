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
from bids_dataset import write
from documented import KINDS, NAMES, ROOT, Block, all_blocks, code_spans, commands_in, pages

from bids_harmony.cli import parser as options
from bids_harmony.cli import simulate
from bids_harmony.errors import UsageError

BLOCKS = all_blocks()
SHELL = [block for block in BLOCKS if block.kind.startswith("sh")]
#: Pages whose subject is other programs, with options of theirs.
OF_OTHERS = ("docs/container.md", "docs/hpc.md", "docs/faults.md", "recipes/README.md")


def test_examples_of_the_helpers_hold() -> None:
    assert doctest.testmod(documented) == (0, 3)


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the parser ask for no file that a command names."""
    monkeypatch.setattr("bids_harmony.cli.parser.check_config", lambda *_, **__: [])
    monkeypatch.setattr("bids_harmony.bids.filters.read_filters", lambda _: {})


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_shell_whose_commands_exist(
    block: Block, no_files: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert block.kind in KINDS, f"write ```sh MARK, or one of {sorted(KINDS)}, at {block}"
    if block in SHELL:
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        for command in commands_in(block.text):
            check(command)
    assert "Warning" not in capsys.readouterr().err


def test_commands_within_the_text_exist(no_files: None) -> None:
    program = re.compile(r"(bids_harmony|bids_harmony-simulate|make|pip|python) ")
    spans = [span for text in pages().values() for span in code_spans(text)]
    found = [span for span in spans if program.match(span)]
    assert len(found) > 5
    for command in (command for span in found for command in commands_in(span)):
        check(command)


def check(command: list[str]) -> None:
    """Fail where a command of the project, or what it runs of it, does not exist."""
    text = " ".join(command)
    if found := documented.own_arguments(command):
        program, arguments = found
        simulator = simulate.build_parser().parse_args
        try:
            (options.parse_args if program == "bids_harmony" else simulator)(arguments)
        except (SystemExit, UsageError) as error:
            if error.args != (0,):  # of --help and --version
                pytest.fail(f"{text}: {error}")
    elif command[0] == "make":
        subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, check=True, capture_output=True)
    elif command[0] == "pip":
        project = (ROOT / "pyproject.toml").read_text("utf-8")
        for extra in re.findall(r"\[(\w+)\]", text):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"no extra {extra}"
    elif command[0] == "python" and command[1].endswith(".py"):
        script = (ROOT / command[1]).read_text("utf-8")
        for name in re.findall(r"--[\w-]+", text):
            assert f'"{name}"' in script, f"{command[1]} has no {name}"


def test_a_command_that_does_not_exist_is_found(no_files: None) -> None:
    for text in (
        "bids_harmony /b /o participant --no-such-option",
        "docker run bids_harmony /b /o particpant",
        "bids_harmony-simulate /b --site 3x",
        "make no-such-target",
        "pip install .[nothing]",
        "python recipes/default_bundle.py SCANS WORK --instal",
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception, subprocess.CalledProcessError)):
            check(commands_in(text)[0])


def test_options_that_the_text_names_exist() -> None:
    known = {
        name
        for parser in (options.build_parser(), simulate.build_parser())
        for action in parser._actions
        for name in action.option_strings
    }
    named = {
        re.split(r"[ =]", span)[0]
        for page, text in pages().items()
        if page not in OF_OTHERS
        for span in code_spans(text)
        if span.startswith("--")
    }
    assert len(named) > 10
    assert named <= known


def test_links_lead_somewhere() -> None:
    for page, text in pages().items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if not re.match(r"[a-z]+:|#", target):
                path = (ROOT / page).parent / target.partition("#")[0]
                assert path.exists(), f"{page}: {target}"


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
        script = f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n'
        write(folder, name, script).chmod(0o755)
    return folder


def execute(blocks: list[Block], place: Path, programs: Path) -> None:
    """Run blocks as a user would, their places in a folder of their own; they must succeed."""
    assert blocks
    names = "|".join(map(re.escape, PLACES))
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": path}
    for block in blocks:
        text = re.sub(
            rf"(?<![\w/-])({names})(?![\w-])",
            lambda m: f"{place}/heads/{PLACES[m[1]]}",
            block.text.replace("SITE", PREPROCESSED.get(block.page, "site1")),
        )
        python = block.kind == "python"
        shell = [sys.executable, "-c"] if python else ["bash", "-euo", "pipefail", "-c"]
        ran = subprocess.run(
            [*shell, text], cwd=place, env=env, capture_output=True, text=True, check=False,
            timeout=900,
        )  # fmt: skip
        assert ran.returncode == 0, f"{block}:\n{text}\n{ran.stdout}\n{ran.stderr}"


@pytest.mark.slow
def test_blocks_run_over_simulated_heads(tmp_path: Path, programs: Path) -> None:
    blocks = [b for b in BLOCKS if b.kind in ("sh slow", "python") and b.page not in PREPROCESSED]
    # The first page makes and processes the heads; Python reads the outputs last.
    blocks.sort(key=lambda block: (block.kind == "python", block.page != "docs/start.md"))
    execute(blocks, tmp_path, programs)
    for name in ("sub-01.html", "sub-02.html", "group_T1w.html"):
        assert (tmp_path / "heads" / "out" / name).is_file()


@pytest.mark.slow
def test_blocks_run_over_preprocessed_scans(tmp_path: Path, programs: Path) -> None:
    from test_train_command import preprocessed_dataset

    preprocessed_dataset(tmp_path / "heads", {"REF": 14, "A": 4}, {"A": 1.8})
    slow = [b for b in BLOCKS if b.kind == "sh slow" and b.page in PREPROCESSED]
    execute(slow, tmp_path, programs)
    assert (tmp_path / "heads" / "out" / "models" / "harmony" / "bundle.json").is_file()
