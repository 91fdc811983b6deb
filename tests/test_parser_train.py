"""Options of the training level."""

from __future__ import annotations

from dataclasses import replace

import pytest
from command_line import parse, refuse


def test_training_options(paths: list[str]) -> None:
    config = parse(
        paths, "--reference-site", "A", "--targets", "age", "--folds", "3", "--holdout", "0.1",
        "--random-seed", "5", "--nprocs", "3", level="train",
    )  # fmt: skip
    train = config.train
    assert (train.reference_site, train.targets) == ("A", ("age",))
    assert (train.folds, train.holdout) == (3, 0.1)
    again = parse(
        paths, "--target", "age", "--target", "diagnosis", "bmi", "--force",
        "--fit-filter", "diagnosis == 'control'", level="train",
    ).train  # fmt: skip
    assert (again.targets, again.force) == (("age", "diagnosis", "bmi"), True)
    assert again.fit_filter == "diagnosis == 'control'"
    assert (train.seed, train.device, train.threads) == (5, "auto", 3)
    assert "--folds" in refuse([*paths, "participant", "--folds", "3"]).cause


def test_options_of_the_harmonizer(paths: list[str]) -> None:
    train = parse(
        paths, "--preset", "article", "--batch", "8", "--devices", "2", "--nodes", "3",
        "--precision", "32-true", "--harmonizer-steps", "70", "--epoch-steps", "9",
        "--fast-dev-run", "--add-site", "C", level="train",
    ).train  # fmt: skip
    assert (train.preset, train.batch, train.precision, train.add_site) == (
        "article", 8, "32-true", "C",
    )  # fmt: skip
    assert (train.devices, train.nodes) == (2, 3)
    short = train.shortened()
    assert short.harmonizer_steps < 10 < train.harmonizer_steps
    assert replace(train, fast_dev_run=False).shortened().epoch_steps == 9


def test_options_that_do_nothing_in_training_are_named(
    paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parse(paths, "--skull-strip", "skip", "--nprocs", "2", level="train")
    assert "takes no --skull-strip." in capsys.readouterr().err
    parse(paths, "--holdout", "0.2", "--skull-strip", "skip", level="evaluate")
    assert "it takes no --holdout, --skull-strip." in capsys.readouterr().err
    parse(paths, "--nprocs", "2", "--holdout", "0.2", level="train")
    parse(paths, "--skull-strip", "skip")
    assert "training" not in capsys.readouterr().err
