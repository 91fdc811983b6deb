"""What the pages say of code, figures and messages is true."""

from __future__ import annotations

import ast
import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from documented import ROOT, code_spans

import bids_harmony
from bids_harmony import errors
from bids_harmony.bids.outputs import scans_dictionary
from bids_harmony.cli.run import EXIT_INTERRUPTED
from bids_harmony.models.bundle import DEFAULT_BUNDLE


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def source(folder: str) -> str:
    return "\n".join(path.read_text("utf-8") for path in sorted((ROOT / folder).rglob("*.py")))


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[c.strip() for c in line[1:-1].split("|")] for line in lines[2:]]


def test_contributing_names_nodes_functions_and_files_that_exist() -> None:
    text = read("CONTRIBUTING.md")
    graphs, interfaces = source("workflows"), source("bids_harmony/interfaces")
    steps, changes = rows(text, "The steps of a scan"), rows(text, "Where do I change …?")
    assert len(steps) >= 6
    for node, functions in steps:
        for name in code_spans(node)[0].split("."):
            assert f'"{name}"' in graphs, name
        for name in code_spans(functions):
            module, _, function = name.rpartition(".")
            assert callable(getattr(import_module(f"bids_harmony.{module}"), function))
            assert re.search(rf"\b{function}\(", interfaces), f"{node}: {name}"
    assert len(changes) == 10
    for _, where in changes:
        for function, file in re.findall(r"`(\w+)` in `([^`]+\.py)`", where):
            assert re.search(rf"^(def|class) {function}\b", read(file), re.MULTILINE), where
    for name in code_spans(text):
        assert "/" not in name or (ROOT / name).exists(), name


def test_modules_on_the_page_about_the_paper_exist() -> None:
    named = [s for s in code_spans(read("docs/paper.md")) if re.fullmatch(r"\w+\.\w+", s)]
    assert len(named) > 10
    for name in named:
        import_module(f"bids_harmony.{name}")


def test_figures_of_trust_are_those_of_the_model_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
    make_tables = import_module("make_tables")
    text = read("docs/trust.md")
    card = json.loads((DEFAULT_BUNDLE / "model_card.json").read_text("utf-8"))
    assert make_tables.fill(text, card) == text, "run: python docs/make_tables.py"
    card["metrics"]["brain_age"]["folds"]["mae"] += 1
    assert make_tables.fill(text, card) != text


def test_explained_messages_are_those_of_the_program() -> None:
    texts = []
    for node in ast.walk(ast.parse(source("bids_harmony"))):
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
            texts.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(re.sub(r"\{\w+\}", "…", node.value))
    messages = [row[0].strip("`") for row in rows(read("docs/faults.md"), "Messages")]
    assert len(messages) > 15
    for message in messages:
        # What is filled in may itself be chosen from several texts.
        parts = [re.escape(part.strip()) for part in message.split("…") if part.strip(" .")]
        assert re.search(r"[^\n]*".join(parts or ["no text"]), "\n".join(texts)), message


def test_tables_of_exit_codes_and_columns_are_complete() -> None:
    codes = {int(row[0]) for row in rows(read("docs/faults.md"), "Exit codes")}
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == known | {EXIT_INTERRUPTED}
    table = rows(read("docs/outputs.md"), "Table of scans")
    assert {name for row in table for name in code_spans(row[0])} == set(scans_dictionary())


def test_pictures_are_small_and_all_shown() -> None:
    files = {path.name: path.stat().st_size for path in Path(ROOT, "docs/pictures").iterdir()}
    assert sum(files.values()) < 300_000
    assert set(re.findall(r"\(pictures/([^)]+)\)", read("docs/outputs.md"))) == set(files)


def test_versions_agree() -> None:
    assert yaml.safe_load(read("CITATION.cff"))["version"] == bids_harmony.__version__
    assert bids_harmony.__version__ in read("CHANGELOG.md")
    # pre-commit runs what `make lint` runs.
    for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]:
        if repo["repo"] != "local":
            name = repo["repo"].rpartition("/")[2].removesuffix("-pre-commit")
            assert f"{name}=={repo['rev'].removeprefix('v')}\n" in read("constraints.txt")
