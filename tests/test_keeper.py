"""A predictor's training that is cut short goes on to the same weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_data import balls

from bids_harmony.training import keeper, predictor
from bids_harmony.training.examples import Examples
from bids_harmony.training.predictor import ARTICLE, FAST, PredictorConfig, train_predictor

TINY: dict[str, Any] = {"channels": (4, 4, 4, 4, 4), "hidden": 8, "batch": 16}


class Killed(Exception):
    """Stands for SIGKILL."""


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run(config: PredictorConfig, checkpoint: Path | None) -> tuple[torch.Tensor, list[str]]:
    data = balls()
    scans = np.arange(len(data))
    examples = Examples.of(data, scans[::2], 50 + 3.0 * scans[::2], (-1e3, 1e3))
    watched = Examples.of(data, scans[1:6:2], 50 + 3.0 * scans[1:6:2], (-1e3, 1e3))
    options = {
        "channels": [4] * 5, "shape": list(data.size), "hidden": 8, "mean": 60.0, "scale": 9.0,
    }  # fmt: skip
    lines: list[str] = []
    network = train_predictor(
        examples, np.arange(len(examples.scans)), watched, options, config,
        binary=False, seed=1, say=lines.append, checkpoint=checkpoint,
    )  # fmt: skip
    weights = network.state_dict().values()
    assert all(v.is_contiguous() for v in weights)  # as bundles store them, however trained
    return torch.cat([v.flatten().double() for v in weights]), lines


@pytest.mark.parametrize("recipe", [FAST, ARTICLE], ids=["fast", "article"])
@pytest.mark.parametrize(("end", "error"), [(kill, Killed), (terminate, KeyboardInterrupt)])
@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
def test_a_predictor_goes_on_to_the_same_weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: PredictorConfig,
    end: Callable[[], None],
    error: type[BaseException],
    half: bool,
) -> None:
    monkeypatch.setattr(predictor, "has_bf16", lambda device: half)
    config = replace(recipe, **TINY, steps=40)
    whole, _ = run(config, None)
    path = tmp_path / "one.checkpoint"
    take = predictor._Step.take
    ends = {25, 33}

    def cut_short(step: predictor._Step, *args: Any) -> float:
        loss = take(step, *args)
        if step.count in ends:
            ends.remove(step.count)
            end()
        return loss

    monkeypatch.setattr(predictor._Step, "take", cut_short)
    monkeypatch.setattr(keeper, "SAVE_SECONDS", 0.0)
    for _ in range(2):
        with pytest.raises(error):
            run(config, path)
        assert path.is_file()
    again, lines = run(config, path)
    assert "goes on after step" in lines[0]
    assert torch.equal(again, whole)
    assert not path.exists()
