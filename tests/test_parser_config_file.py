"""Options from a configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import parse, refuse

from bids_harmony.config import RunConfig


def test_configuration_survives_json(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "d/sub-01").mkdir(parents=True)
    config = parse(
        paths, "--participant-label", "01", "--mem", "4", "-d", f"n={tmp_path}/d",
        "--output-spaces", "T1w", "--work-dir", str(tmp_path / "w"), "-v",
    )  # fmt: skip
    assert RunConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["derivatives"] == {"n": str(tmp_path / "d")}


def test_config_file_is_taken_over_and_overridden(paths: list[str], tmp_path: Path) -> None:
    first = parse(
        paths, "--skull-strip", "bet", "--nprocs", "5", "--session-label", "a", "--dry-run"
    )
    file = tmp_path / "c.json"
    file.write_text(first.to_json())
    config = parse(paths, "--config-file", str(file), "--nprocs", "2")
    assert (config.skull_strip, config.nprocs, config.session_label) == ("bet", 2, ("a",))
    assert config.dry_run is False
    assert config.run_uuid != first.run_uuid
    trained = parse(paths, "--folds", "3", "--model-name", "m", level="train")
    file.write_text(trained.to_json())
    config = parse(paths, "--config-file", str(file), "--folds", "6", level="train")
    assert (config.train.folds, config.train.model_name) == (6, "m")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "is not valid JSON"),
        ("3", "does not hold a JSON object"),
        ('{"nproc": 3}', "unknown options: nproc"),
        ('{"nprocs": "3"}', 'nprocs the value "3"'),
        ('{"nprocs": true}', "nprocs the value true"),
        ('{"participant_label": "01"}', "participant_label the value"),
        ('{"train": {"fold": 3}}', "train the value"),
        ('{"skull_strip": "magic"}', "--skull-strip is 'magic'"),
        ('{"template": "/absent/x.nii"}', "--template does not exist"),
    ],
)
def test_wrong_config_files(paths: list[str], tmp_path: Path, text: str, cause: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    assert cause in refuse([*paths, "participant", "--config-file", str(file)]).cause
