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
        paths, "--target", "age", "--target", "diagnosis", "bmi",
        "--fit-filter", "diagnosis == 'control'", level="train",
    ).train  # fmt: skip
    assert again.targets == ("age", "diagnosis", "bmi")
    assert again.fit_filter == "diagnosis == 'control'"
    assert (train.seed, train.device, train.threads) == (5, "auto", 3)
    assert "--folds" in refuse([*paths, "participant", "--folds", "3"]).cause


def test_a_few_steps_of_everything(paths: list[str]) -> None:
    train = parse(paths, "--predictor-steps", "70", "--fast-dev-run", level="train").train
    assert train.shortened().predictor_steps == 2
    assert replace(train, fast_dev_run=False).shortened().predictor_steps == 70


def test_options_that_do_nothing_in_training_are_named(
    paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parse(paths, "--skull-strip", "skip", "--nprocs", "2", level="train")
    assert "takes no --skull-strip." in capsys.readouterr().err
    parse(paths, "--holdout", "0.2", "--skull-strip", "skip", level="evaluate")
    assert "the evaluate level takes no --holdout, --skull-strip." in capsys.readouterr().err
    parse(paths, "--nprocs", "2", "--holdout", "0.2", level="train")
    parse(paths, "--skull-strip", "skip")
    assert "training" not in capsys.readouterr().err
