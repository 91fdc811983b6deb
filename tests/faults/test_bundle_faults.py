"""Bundles that are damaged, invalid or malicious are refused before anything runs."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import assert_sentences
from random_bundle import write_random_bundle
from safetensors.torch import load, save

from bids_harmony.cli.run import main
from bids_harmony.config import Contract
from bids_harmony.errors import BundleError
from bids_harmony.models.bundle import check_weights, load_bundle

WEIGHTS = "brain_age.safetensors"
TEN_GIB = 10 * 2**30
ONE = torch.zeros(1)


class Harm(str):
    """Path of a file that is created when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self}",)


def flipped_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def describe(folder: Path, **changes: object) -> None:
    """Change entries of bundle.json."""
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace(folder: Path, name: str, content: bytes) -> None:
    """Write a file with its right digest."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / "bundle.json").read_text())["files"]
    describe(folder, files=files | {name: hashlib.sha256(content).hexdigest()})


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a network."""
    tensors = load((folder / WEIGHTS).read_bytes())
    change(tensors)
    replace(folder, WEIGHTS, save(tensors))


def claims_10_gib(folder: Path) -> None:
    shape = [TEN_GIB // 4]
    header = {"head.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, TEN_GIB]}}
    text = json.dumps(header).encode()
    replace(folder, WEIGHTS, struct.pack("<Q", len(text)) + text + bytes(64))


def harmful(folder: Path) -> bytes:
    return pickle.dumps(Harm(folder.parent / "harm"))


#: How a bundle is damaged, and what the error says.
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (flipped_bit, "has a modified file"),
    "missing file": (lambda f: (f / WEIGHTS).unlink(), "has no file"),
    "pickle beside": (lambda f: (f / "more.pkl").write_bytes(harmful(f)), "does not list"),
    "pickle as weights": (lambda f: replace(f, WEIGHTS, harmful(f)), "cannot be loaded"),
    "name outside": (lambda f: replace(f, "../x", b"x"), "outside its folder"),
    "10 GB claimed": (claims_10_gib, "cannot be loaded"),
    "missing tensor": (lambda f: weights(f, lambda t: t.pop("head.weight")), "cannot be loaded"),
    "extra tensor": (lambda f: weights(f, lambda t: t.update(x=ONE)), "cannot be loaded"),
    "wrong shape": (lambda f: weights(f, lambda t: t.update({"head.weight": ONE})), "be loaded"),
    "NaN": (lambda f: weights(f, lambda t: t["head.weight"].fill_(np.nan)), "cannot be loaded"),
    "no bundle": (lambda f: (f / "bundle.json").unlink(), "no model bundle"),
    "nested too deep": (
        lambda f: (f / "bundle.json").write_text("[" * 100_000), "not valid JSON",
    ),
    "truncated": (lambda f: (f / "bundle.json").write_text("{"), "not valid JSON"),
    "no object": (lambda f: (f / "bundle.json").write_text("[]"), "format"),
    "another format": (lambda f: describe(f, format=99), "format"),
    "unknown entry": (lambda f: describe(f, surprise=1), "surprise"),
    "wrong type": (lambda f: describe(f, files=[]), "wrong type"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_bundle(tmp_path_factory.mktemp("whole") / "bundle").path


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_bundle_is_refused_before_anything_runs(
    dataset: Path, whole: Path, tmp_path: Path, damage: Callable[[Path], object], says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    check_weights(load_bundle(whole))
    folder, out = shutil.copytree(whole, tmp_path / "bundle"), tmp_path / "out"
    damage(folder)
    argv = [dataset, out, "participant", "-w", tmp_path / "w", "--bundle", folder]
    assert main([*map(str, argv)]) == 78
    said = capsys.readouterr().err
    assert_sentences(said)
    assert says in said
    assert str(folder) in said
    assert not out.exists()
    assert not (tmp_path / "harm").exists()


def test_a_preprocessing_contract_of_another_version_is_refused() -> None:
    with pytest.raises(BundleError, match="contract") as error:
        Contract.from_dict({"skull_strip": "deepbet"})
    assert error.value.exit_code == 78
