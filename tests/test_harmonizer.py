"""Training of the maps: losses, presets, resuming, signals, several processes."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from PIL import Image
from torch import Tensor
from training_data import TINY_ARTICLE, TINY_FAST, balls

from bids_harmony.errors import HarmonyError, UsageError
from bids_harmony.models.slices import generator_input
from bids_harmony.training import maps as maps_module
from bids_harmony.training.data import TrainingSet
from bids_harmony.training.fabric import Engine, load_checkpoint, make_fabric, save_checkpoint
from bids_harmony.training.harmonizer import Harmonizer, Plan, train_harmonizer
from bids_harmony.training.losses import adversarial, edge_loss, memberships, tissue_loss
from bids_harmony.training.maps import ImagePool
from bids_harmony.training.presets import ABLATIONS, Preset

PLAN = Plan(steps=6, epoch=4, seed=1, save_seconds=1e6)


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    return balls()


def train(
    data: TrainingSet, folder: Path, preset: Preset = TINY_FAST, plan: Plan = PLAN, **others: Any
) -> Harmonizer:
    lines: list[str] = []
    return train_harmonizer(
        data, np.arange(len(data)), "REF", preset, plan=plan, folder=folder,
        **({"say": lines.append} | others),
    )  # fmt: skip


def weights(harmonizer: Harmonizer) -> Tensor:
    both = (harmonizer.forward, harmonizer.backward)
    return torch.cat([p.flatten() for network in both for p in network.parameters()])


def some_slices(data: TrainingSet) -> tuple[Tensor, Tensor]:
    images, masks = data.slices(range(4), [6] * 4)
    return torch.from_numpy(images), torch.from_numpy(masks.astype(np.float32))[:, None]


# Losses


def test_edge_loss_ignores_contrast_and_sees_moved_edges(data: TrainingSet) -> None:
    image, mask = some_slices(data)
    assert float(edge_loss(0.5 * image + 0.2 * mask, image, mask)) == pytest.approx(0, abs=1e-4)
    assert float(edge_loss(torch.roll(image, 3, dims=2) * mask, image, mask)) > 0.3


def test_tissue_loss_lets_contrast_change_and_sees_a_grown_ventricle(data: TrainingSet) -> None:
    image, mask = some_slices(data)
    grey = (image > 0.35) & (image < 0.75)
    changed = torch.where(grey, image + 0.15, image)
    contrast = float(tissue_loss(changed, image, mask))
    grown = -torch.nn.functional.max_pool2d(-image, 5, 1, 2) * mask
    assert contrast < 0.1 * float(tissue_loss(grown, image, mask))


def test_tissue_memberships_sum_to_one_and_pass_gradients(data: TrainingSet) -> None:
    image, mask = some_slices(data)
    image.requires_grad_()
    shares = memberships(image, mask)
    assert torch.allclose(shares.sum(dim=1), torch.ones(()), atol=1e-5)
    tissue_loss(image * 1.05, image.detach(), mask).backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_adversarial_loss_counts_patches_by_their_brain() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    scores = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    assert float(adversarial(scores, mask, 1)) == pytest.approx(1)
    assert float(adversarial(scores, mask, 0)) == pytest.approx(0)


def test_pool_gives_new_slices_until_full_then_older_ones_half_the_time() -> None:
    pool = ImagePool(10, (1, 1), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    age = []
    for i in range(400):
        domain = torch.tensor([i])
        images, domains = pool.swap(torch.full((1, 2, 1, 1), float(i)), domain, generator)
        assert int(images[0, 0, 0, 0]) == int(domains[0])
        age.append(i - int(domains[0]))
    assert set(age[:10]) == {0}
    assert 0.4 < np.mean(np.array(age[10:]) == 0) < 0.6
    assert max(age) > 5


# Training


@pytest.mark.parametrize("preset", [TINY_FAST, TINY_ARTICLE], ids=lambda p: p.name)
def test_training_is_told_logged_drawn_and_repeatable(
    data: TrainingSet, tmp_path: Path, preset: Preset
) -> None:
    lines: list[str] = []
    one = train(data, tmp_path / "1", preset, say=lines.append)
    assert "pairs/s" in lines[-1]
    assert "step 6 of 6" in lines[-1]
    assert one.sites == ["A", "B"]
    assert [step for step, _ in one.epochs] == [4, 6]
    assert torch.equal(weights(one), weights(train(data, tmp_path / "2", preset)))
    other = train(data, tmp_path / "3", preset, replace(PLAN, seed=2))
    assert not torch.equal(weights(one), weights(other))
    early = one.at(one.epochs[0][1])[0]
    assert not torch.equal(
        next(early.parameters()).flatten(), next(one.forward.parameters()).flatten()
    )

    (place,) = (tmp_path / "1").glob("harmonizer-*")
    with next(place.glob("logs/csv/*/metrics.csv")).open() as file:
        (row,) = csv.DictReader(file)
    assert int(row["step"]) == 6
    assert float(row["cycle"]) > 0
    assert 0 <= float(row["waited_for_data"]) <= 1
    assert list(place.glob("logs/tensorboard/*/events*"))
    sheet = Image.open(place / "samples" / "step-0000004.png")
    assert sheet.size == (3 * 32, 3 * 48)


@pytest.mark.slow
def test_harmonizer_learns_the_contrast_of_the_reference(tmp_path: Path) -> None:
    """Grey matter is 0.55 at the reference and 0.75 at A; white matter and fluid are the same."""
    data = balls({"REF": 5, "A": 5}, (8, 32, 32))
    preset = replace(
        TINY_FAST, width=16, halvings=1, learning_rate=2e-3, batch=4, precision="32-true"
    )
    maps = train(data, tmp_path, preset, Plan(300, 300, 0))
    images, mask = data.stack(7)
    inputs = torch.from_numpy(generator_input(images, mask, data.heights, around=1))
    mapped = maps.forward(inputs)[:, 0].numpy()
    grey, white, fluid = (
        float(np.median(mapped[(images > low) & (images < high) & mask]))
        for low, high in ((0.65, 0.85), (0.9, 1.1), (0.0, 0.1))
    )
    assert 0.5 < grey < 0.71
    assert white == pytest.approx(1, abs=0.03)
    assert fluid == pytest.approx(0.05, abs=0.05)


@pytest.mark.parametrize("part", ABLATIONS)
def test_every_part_can_be_switched_off(data: TrainingSet, tmp_path: Path, part: str) -> None:
    maps = train(data, tmp_path, replace(TINY_FAST, **ABLATIONS[part]), replace(PLAN, steps=2))
    assert torch.isfinite(weights(maps)).all()


def test_one_source_site_is_two_domain_training(data: TrainingSet, tmp_path: Path) -> None:
    among = np.flatnonzero(data.sites != "B")
    maps = train_harmonizer(
        data, among, "REF", TINY_ARTICLE, plan=PLAN, folder=tmp_path, say=lambda _: None
    )
    assert maps.sites == ["A"]
    assert maps.backward_config["options"]["n_sites"] == 1


def test_loss_that_is_no_number_stops_with_the_step(
    data: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def broken(*args: Tensor) -> Tensor:
        calls.append(1)
        return edge_loss(*args) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(maps_module, "edge_loss", broken)
    with pytest.raises(HarmonyError, match=r"edges loss .* at step 3\. Try --precision 32-true"):
        train(data, tmp_path)
    assert not list(tmp_path.glob("*/checkpoint.pt"))


# Interruption


def test_training_goes_on_to_the_same_weights(data: TrainingSet, tmp_path: Path) -> None:
    """Stopped by a signal in the middle, and started again with the same command."""
    for preset in (TINY_FAST, TINY_ARTICLE):
        whole = train(data, tmp_path / "whole", preset)

        real = data.slices
        calls = []

        def interrupting(*args: Any, real: Any = real, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)

        object.__setattr__(data, "slices", interrupting)
        lines: list[str] = []
        try:
            with pytest.raises(KeyboardInterrupt):
                train(data, tmp_path / "parts", preset, say=lines.append)
        finally:
            object.__delattr__(data, "slices")
        assert "stopped after step" in lines[-1]
        lines.clear()
        again = train(data, tmp_path / "parts", preset, say=lines.append)
        assert "goes on after step" in lines[0]
        assert torch.equal(weights(whole), weights(again))
        assert whole.record == again.record


#: A training in a process of its own: folder, processes.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from training_data import TINY_FAST, balls
from bids_harmony.training.fabric import Engine
from bids_harmony.training.harmonizer import Plan, train_harmonizer
if __name__ == "__main__":
    data = balls()
    train_harmonizer(
        data, np.arange(len(data)), "REF", TINY_FAST, folder=Path(sys.argv[1]),
        plan=Plan(steps=40, epoch=10, seed=1, save_seconds=0),
        engine=Engine("cpu", int(sys.argv[2])),
    )
"""


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def launch(
    folder: Path, devices: int = 1, *, starter: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    """Start the script."""
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    where = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, *starter, str(script), str(folder), str(devices)],
        env=os.environ | {"PYTHONPATH": where} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def start(folder: Path, devices: int = 1, **given: Any) -> subprocess.Popen[str]:
    """Start the script, and wait until it has saved a checkpoint of its own."""
    process = launch(folder, devices, **given)

    def saved() -> list[int]:
        return [file.stat().st_mtime_ns for file in folder.glob("*/checkpoint.pt")]

    before, begun = saved(), time.monotonic()
    while process.poll() is None and saved() == before and time.monotonic() - begun < 120:
        time.sleep(0.01)
    return process


def workers(pid: int) -> list[int]:
    """Processes that one has started for its devices."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()
    ]


@pytest.mark.slow
def test_killed_training_ends_with_the_same_weights(data: TrainingSet, tmp_path: Path) -> None:
    plan = Plan(steps=40, epoch=10, seed=1, save_seconds=0)
    whole = train(data, tmp_path / "whole", plan=plan)
    chance = random.Random(0)
    for _ in range(5):
        process = start(tmp_path / "parts")
        # At a random moment: in a step, or while a file is written.
        time.sleep(chance.uniform(0, 0.5))
        assert process.poll() is None, "training ended before it could be killed five times"
        process.kill()
        process.communicate()
    again = train(data, tmp_path / "parts", plan=plan)
    assert torch.equal(weights(whole), weights(again))


def test_checkpoint_is_whole_and_holds_no_code(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"a": torch.ones(2), "big": 2**100})
    (tmp_path / ".checkpoint.pt.x.part").write_bytes(b"half")
    assert load_checkpoint(path) == {"a": pytest.approx(torch.ones(2)), "big": 2**100}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    torch.save({"a": Path("x")}, path)
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        load_checkpoint(path)


# Devices


@pytest.mark.slow
def test_two_processes_train_as_one_does(data: TrainingSet, tmp_path: Path) -> None:
    preset = replace(TINY_FAST, precision="32-true", unknown=0.0, cycle_noise=0.0, pool=0, shift=0)
    plan = replace(PLAN, steps=10)
    one = train(data, tmp_path / "1", preset, plan)
    two = train(data, tmp_path / "2", preset, plan, engine=Engine("cpu", devices=2), say=print)
    start = train(data, tmp_path / "0", preset, replace(plan, steps=1))
    moved = (weights(one) - weights(start)).abs().mean()
    assert float((weights(one) - weights(two)).abs().mean()) < 0.01 * float(moved)
    again = train(data, tmp_path / "2", preset, plan, engine=Engine("cpu", devices=2), say=print)
    assert torch.equal(weights(two), weights(again))


@pytest.mark.slow
def test_two_processes_stop_at_a_signal_and_go_on_under_torchrun(
    data: TrainingSet, tmp_path: Path
) -> None:
    plan, engine = Plan(steps=40, epoch=10, seed=1, save_seconds=0), Engine("cpu", devices=2)
    process = start(tmp_path / "parts", 2)
    process.terminate()
    told = process.communicate(timeout=60)[0]
    assert "stopped after step" in told
    assert process.returncode != 0
    told = start(tmp_path / "parts", 2, starter=TORCHRUN).communicate(timeout=120)[0]
    assert "goes on after step" in told
    assert "step 40 of 40" in told
    parts = train(data, tmp_path / "parts", plan=plan, engine=engine, say=print)
    whole = train(data, tmp_path / "whole", plan=plan, engine=engine, say=print)
    assert torch.equal(weights(parts), weights(whole))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_training_in_words(tmp_path: Path, victim: int) -> None:
    process = start(tmp_path / "one", 2)
    os.kill(workers(process.pid)[victim], signal.SIGKILL)
    told = process.communicate(timeout=60)[0]
    assert process.returncode
    assert "HarmonyError: A process of the training ended" in told


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_machine_that_is_lost_ends_the_others_in_words(tmp_path: Path, victim: int) -> None:
    outside = {
        "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(find_free_network_port()),
    }  # fmt: skip
    other = launch(tmp_path / "one", 2, **outside, RANK="1", LOCAL_RANK="1")
    first = start(tmp_path / "one", 2, **outside, RANK="0", LOCAL_RANK="0")
    processes = [first, other]
    processes.pop(victim).kill()
    told = processes[0].communicate(timeout=60)[0]
    assert processes[0].returncode
    assert "HarmonyError: Another process of the training ended" in told


@pytest.mark.parametrize(
    ("asked", "able", "used"),
    [
        ("auto", True, "bf16-mixed"),
        ("auto", False, "32-true"),  # nine times as fast on a processor without bfloat16
        ("bf16-mixed", False, "bf16-mixed"),
        ("32-true", True, "32-true"),
    ],
)
def test_half_precision_is_for_devices_that_have_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, able: bool, used: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    fabric = make_fabric(Engine("cpu", precision=asked), "bf16-mixed")
    assert fabric.strategy.precision.precision == used


def test_batch_and_machines_that_do_not_fit_are_refused(data: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch of 2 cannot be shared by 3"):
        train(data, tmp_path, engine=Engine("cpu", devices=3))
    with pytest.raises(UsageError, match="less than one step"):
        train(data, tmp_path, plan=replace(PLAN, steps=0))
    with pytest.raises(UsageError, match="srun or torchrun"):
        Engine("cpu", nodes=2).check(2)
