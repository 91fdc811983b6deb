"""The command line as Boutiques, nipoppy and BABS know it."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from bids_harmony import __version__
from bids_harmony.cli.parser import parse_args

RECIPES = Path(__file__).parents[1] / "recipes"
NIPOPPY = RECIPES / "nipoppy"


def read(name: str) -> dict:
    return json.loads((NIPOPPY / name).read_text("utf-8"))


def test_descriptor_is_that_of_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(RECIPES), *sys.path])
    made = import_module("descriptor").descriptor()
    command = "python recipes/descriptor.py > recipes/nipoppy/descriptor.json"
    assert read("descriptor.json") == made, f"run: {command}"
    assert made["tool-version"] == read("config.json")["VERSION"] == __version__


@pytest.mark.parametrize("step", read("config.json")["STEPS"], ids=lambda step: step["NAME"])
def test_steps_of_nipoppy_are_commands(step: dict, tmp_path: Path) -> None:
    inputs = {entry["id"]: entry for entry in read("descriptor.json")["inputs"]}
    words = []
    for name, value in read(step["INVOCATION_FILE"]).items():
        assert isinstance(value, list) == inputs[name].get("list", False)
        values = value if isinstance(value, list) else [value]
        words += [inputs[name]["command-line-flag"]] if inputs[name]["optional"] else []
        words += [v.replace("[[NIPOPPY_DPATH_BIDS]]", str(tmp_path)) for v in values]
    assert parse_args(words).level == words[2]
    for entry in ("TRACKER_CONFIG_FILE", "HPC_CONFIG_FILE"):
        assert entry not in step or read(step[entry])


def test_babs_configuration_is_a_command(tmp_path: Path) -> None:
    config = yaml.safe_load((RECIPES / "babs.yaml").read_text("utf-8"))
    options = config["bids_app_args"]
    words = [str(tmp_path / "BIDS"), str(tmp_path / "out"), "participant"]
    (tmp_path / "BIDS").mkdir()
    words += [options.pop("$SUBJECT_SELECTION_FLAG"), "sub-01"]
    words += [word for option in options.items() for word in option if word]
    found = parse_args(words)
    assert found.participant_label == ("01",)
    assert (found.nprocs, found.mem_gb) == (1, 3.0)
    assert list(config["zip_foldernames"].values()) == [__version__.replace(".", "-")]
