"""What the pages say of code, figures and messages is so."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import ROOT
from made_up_record import FACTS, preprocessed_scan

import bids_harmony
from bids_harmony import errors
from bids_harmony.bids import Scan
from bids_harmony.cli.parser import build_parser
from bids_harmony.cli.run import EXIT_INTERRUPTED
from bids_harmony.contract import Contract
from bids_harmony.models.bundle import DEFAULT_BUNDLE

DOCS = ROOT / "docs"
WORKFLOWS = ("brain_mask_wf", "affine_wf")
EXPERIMENTS = {"sites", "rotations", "size", "unseen"}


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def spans(text: str) -> list[str]:
    """Code spans of a text."""
    return re.findall(r"(?<!`)`([^`]+)`(?!`)", text)


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def find(name: str) -> Any:
    """Import what the paper's page names; attributes of modules and classes alike."""
    module, rest = "bids_harmony", name.split(".")
    while rest:
        try:
            import_module(f"{module}.{rest[0]}")
        except ModuleNotFoundError:
            break
        module = f"{module}.{rest.pop(0)}"
    found = import_module(module)
    for part in rest:
        found = getattr(found, part)
    return found


@cache
def nodes() -> dict[str, Any]:
    """All nodes of a scan's graphs, by their names within them, over the ways of making them."""
    from bids_harmony.workflows.harmonize import init_harmonize_wf
    from bids_harmony.workflows.preprocess import init_preprocess_wf

    here, out = ROOT / "tests", tempfile.mkdtemp()
    found = {}
    for mask, strip, register in (
        (None, "deepbet", "ants"),
        (None, "bet", "flirt"),
        (here / "conftest.py", "skip", "ants"),
    ):
        path = here / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
        scan = Scan(path=path, key="sub-01", entities={"subject": "01"}, age=30.0, mask=mask)
        common: dict[str, Any] = {
            "scan": scan, "output_dir": out,
            "staging_dir": str(here / "work"), "contract": Contract(),
            "space": "MNI152NLin2009aSym",
        }  # fmt: skip
        for workflow in (
            init_preprocess_wf(**common, facts={}, skull_strip=strip, registration=register),
            init_harmonize_wf(
                **common, facts=FACTS, before=preprocessed_scan(Path(out)), bundle="/bundle",
                calibration={}, native=True,
            ),
        ):  # fmt: skip
            for name in workflow.list_node_names():
                found[name] = workflow.get_node(name)
    return found


def test_every_name_on_the_papers_page_exists() -> None:
    options = {name for action in build_parser()._actions for name in action.option_strings}
    written = {"group_T1w.html", "sub-01.html", "evaluation.html", "model_card.html",
               "evaluation/experiments.tsv", "bids_harmony", "bids_harmony.workflows"}  # fmt: skip
    named = spans(read("docs/paper.md"))
    assert len(named) > 80
    for name in named:
        if name.split(".")[0] in WORKFLOWS:
            assert name in nodes(), f"the graph has no node {name}"
        elif name.startswith("--"):
            assert name.split()[0] in options, name
        elif re.fullmatch(r"[a-z_]+(\.\w+)+", name) and name not in written:
            find(name)
        else:
            known = name in written | EXPERIMENTS | set(nodes()) or (ROOT / name).exists()
            assert known, f"{name} is no file, node, option or function"


def test_a_step_is_two_hops_away() -> None:
    table = rows(read("docs/paper.md"), "A scan's way: from workflow node to function")
    assert len(table) > 10
    for _, node, interface, functions in table:
        (named,) = spans(interface)
        found = type(nodes()[spans(node)[0]].interface)
        assert found is find(named), f"{node} runs {found.__name__}"
        for function in spans(functions):
            assert callable(find(function))
            source = inspect.getsource(found)
            assert re.search(rf"\b{function.split('.')[-1]}\(", source), f"{named}: {function}"
            assert f"bids_harmony.{function.rpartition('.')[0]}".rpartition(".")[2] in source


def test_figures_of_trust_are_those_of_the_model_card() -> None:
    path = ROOT / "docs" / "make_tables.py"
    spec = importlib.util.spec_from_file_location("make_tables", path)
    assert spec is not None
    assert spec.loader is not None
    make_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_tables)
    text = read("docs/trust.md")
    card = json.loads((DEFAULT_BUNDLE / "model_card.json").read_text("utf-8"))
    assert make_tables.fill(text, card) == text, "run: python docs/make_tables.py"
    card["metrics"]["brain_age"]["folds"]["mae"] += 1
    assert make_tables.fill(text, card) != text


@cache
def said() -> str:
    """All texts in the package's source; what is filled in is an ellipsis."""
    texts = []
    for path in sorted(Path(bids_harmony.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"\{\w+\}", "…", node.value))
    return "\n".join(texts)


MESSAGES = [
    spans(line)[0]
    for line in read("docs/troubleshooting.md").partition("## Messages")[2].splitlines()
    if line.startswith("| `")
]


def test_messages_are_explained() -> None:
    assert len(MESSAGES) > 20


@pytest.mark.parametrize("message", MESSAGES)
def test_an_explained_message_is_one_that_the_program_has(message: str) -> None:
    # What is filled in may itself be chosen from several texts.
    parts = [re.escape(part.strip()) for part in message.split("…") if part.strip(" .")]
    assert parts
    assert re.search(r"[^\n]*".join(parts), said()), message


def test_exit_codes_are_those_of_the_program() -> None:
    codes = {int(row[0]) for row in rows(read("docs/troubleshooting.md"), "Exit codes")}
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == known | {EXIT_INTERRUPTED}


def test_pictures_are_small_and_all_shown() -> None:
    files = {path.name: path.stat().st_size for path in (DOCS / "pictures").iterdir()}
    assert sum(files.values()) < 300_000
    assert set(re.findall(r"\(pictures/([^)]+)\)", read("docs/outputs.md"))) == set(files)


def test_columns_of_the_outputs_page_are_those_of_the_table() -> None:
    from bids_harmony.outputs import scans_dictionary

    table = rows(read("docs/outputs.md"), "The numbers of a scan")
    assert {name for row in table for name in spans(row[0])} == set(scans_dictionary())


def test_citation_and_changelog_name_this_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == bids_harmony.__version__
    assert bids_harmony.__version__ in read("CHANGELOG.md")
    for author in citation["authors"] + citation["preferred-citation"]["authors"]:
        assert "name" in author or {"family-names", "given-names"} <= set(author)


def test_contributing_names_what_exists() -> None:
    text = read("CONTRIBUTING.md")
    source = "\n".join(path.read_text("utf-8") for path in ROOT.glob("bids_harmony/**/*.py"))
    source += read("workflows/anat.py")
    for name in spans(text):
        if "/" in name and name != "docs/_build/html":
            assert (ROOT / name).exists(), name
        elif re.fullmatch(r"[A-Z_]{4,}|[a-z]+(_[a-z0-9]+)+|[A-Z][a-z]+[A-Z]\w+", name):
            assert re.search(rf"\b{name}\b", source) or name in bids_harmony.__name__, name
