"""What the pages say of code, figures and messages is true."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import ROOT
from made_up_record import FACTS, preprocessed_scan

import bids_harmony
from bids_harmony import errors
from bids_harmony.bids.dataset import Scan
from bids_harmony.cli.run import EXIT_INTERRUPTED
from bids_harmony.config import Contract
from bids_harmony.models.bundle import DEFAULT_BUNDLE


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def spans(text: str) -> list[str]:
    """Code spans of a text."""
    return re.findall(r"(?<!`)`([^`]+)`(?!`)", text)


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[c.strip() for c in line[1:-1].split("|")] for line in lines[2:]]


def nodes(out: Path) -> dict[str, Any]:
    """All nodes of a scan's workflows, by their full names."""
    from bids_harmony.workflows.harmonize import init_harmonize_wf
    from bids_harmony.workflows.preprocess import init_preprocess_wf

    here = ROOT / "tests"
    path = here / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    workflows = []
    for mask in (None, here / "conftest.py"):
        scan = Scan(path=path, key="sub-01", entities={"subject": "01"}, age=30.0, mask=mask)
        common: dict[str, Any] = {
            "scan": scan, "output_dir": str(out),
            "staging_dir": str(out / "work"), "contract": Contract(),
            "space": "MNI152NLin2009aSym",
        }  # fmt: skip
        workflows += [
            init_preprocess_wf(**common, facts={}),
            init_harmonize_wf(
                **common, facts=FACTS, before=preprocessed_scan(out), bundle="/bundle",
                calibration={}, native=True,
            ),
        ]  # fmt: skip
    return {name: wf.get_node(name) for wf in workflows for name in wf.list_node_names()}


def test_each_workflow_node_calls_the_functions_that_contributing_names(tmp_path: Path) -> None:
    table, found = rows(read("CONTRIBUTING.md"), "The steps of a scan"), nodes(tmp_path)
    assert len(table) >= 10
    for node, functions in table:
        interface = type(found[spans(node)[0]].interface)
        for name in spans(functions):
            module, _, function = name.rpartition(".")
            assert callable(getattr(import_module(f"bids_harmony.{module}"), function))
            assert re.search(rf"\b{function}\(", inspect.getsource(interface)), f"{node}: {name}"


def test_modules_on_the_page_about_the_paper_exist() -> None:
    named = [name for name in spans(read("docs/paper.md")) if re.fullmatch(r"\w+\.\w+", name)]
    assert len(named) > 10
    for name in named:
        import_module(f"bids_harmony.{name}")


def test_contributing_names_what_exists() -> None:
    text = read("CONTRIBUTING.md")
    for name in spans(text):
        if "/" in name:
            assert (ROOT / name).exists(), name
    table = rows(text, "Where do I change …?")
    assert len(table) == 10
    for _, where in table:
        for function, file in re.findall(r"`(\w+)` in `([^`]+\.py)`", where):
            assert re.search(rf"^(def|class) {function}\b", read(file), re.MULTILINE), where


def test_figures_of_trust_are_those_of_the_model_card() -> None:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    make_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_tables)
    text = read("docs/trust.md")
    card = json.loads((DEFAULT_BUNDLE / "model_card.json").read_text("utf-8"))
    assert make_tables.fill(text, card) == text, "run: python docs/make_tables.py"
    card["metrics"]["brain_age"]["folds"]["mae"] += 1
    assert make_tables.fill(text, card) != text


@pytest.fixture(scope="module")
def messages_of_the_program() -> str:
    """All strings in the package's source; what is filled in is an ellipsis."""
    texts = []
    for path in sorted(Path(bids_harmony.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"\{\w+\}", "…", node.value))
    return "\n".join(texts)


MESSAGES = re.findall(r"^\| `([^`]+)`", read("docs/faults.md").partition("## Messages")[2], re.M)


def test_messages_are_explained() -> None:
    assert len(MESSAGES) > 15


@pytest.mark.parametrize("message", MESSAGES)
def test_an_explained_message_exists(message: str, messages_of_the_program: str) -> None:
    # What is filled in may itself be chosen from several texts.
    parts = [re.escape(part.strip()) for part in message.split("…") if part.strip(" .")]
    assert parts
    assert re.search(r"[^\n]*".join(parts), messages_of_the_program), message


def test_exit_codes_are_those_of_the_program() -> None:
    codes = {int(row[0]) for row in rows(read("docs/faults.md"), "Exit codes")}
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == known | {EXIT_INTERRUPTED}


def test_pictures_are_small_and_all_shown() -> None:
    files = {path.name: path.stat().st_size for path in (ROOT / "docs" / "pictures").iterdir()}
    assert sum(files.values()) < 300_000
    assert set(re.findall(r"\(pictures/([^)]+)\)", read("docs/outputs.md"))) == set(files)


def test_columns_of_the_outputs_page_are_those_of_the_table() -> None:
    from bids_harmony.bids.outputs import scans_dictionary

    table = rows(read("docs/outputs.md"), "Table of scans")
    assert {name for row in table for name in spans(row[0])} == set(scans_dictionary())


def test_citation_and_changelog_name_this_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == bids_harmony.__version__
    assert bids_harmony.__version__ in read("CHANGELOG.md")


def test_pre_commit_runs_the_versions_that_lint_runs() -> None:
    for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]:
        if repo["repo"] != "local":
            name = repo["repo"].rpartition("/")[2].removesuffix("-pre-commit")
            assert f"{name}=={repo['rev'].removeprefix('v')}\n" in read("constraints.txt")
