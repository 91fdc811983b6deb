"""One more site for a bundle: only its code changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from random_bundle import write_random_bundle
from training_data import balls

from bids_harmony.errors import UsageError
from bids_harmony.models.bundle import Bundle, write_bundle
from bids_harmony.models.generators import ResidualGenerator
from bids_harmony.training.addsite import add_site


def with_backward(folder: Path, embedding: int) -> Bundle:
    """Return a bundle whose backward map does different things to different sites."""
    plain = write_random_bundle(folder / "plain")
    torch.manual_seed(3)
    options = {"channels": [4, 4], "bins": 4, "n_sites": 2, "embedding": embedding}
    backward = ResidualGenerator(**options)
    for name, parameter in backward.named_parameters():
        if "head" in name or "film" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    info = {k: v for k, v in plain.info.items() if k not in ("format", "files")}
    info["networks"]["backward"] = {
        "kind": "residual", "options": options, "sites": ["SRC", "OTHER"],
        "files": ["backward.safetensors"],
    }  # fmt: skip
    for row in info["sites"].values():
        row["n_held_out"] = 0
    tables = {
        "qc_reference.json": plain.qc_reference(), "guard.json": plain.guard(), "splits.json": {},
    }  # fmt: skip
    networks = {**plain.networks(), "backward": [backward]}
    return write_bundle(folder / "with", info, networks, tables)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_backward(tmp_path_factory.mktemp("bundles"), 4)


def test_only_the_code_of_the_new_site_changes(bundle: Bundle, tmp_path: Path) -> None:
    data = balls()
    scans = np.flatnonzero(data.sites == "A")
    lines: list[str] = []
    new = add_site(
        bundle, data, scans, "A", tmp_path / "b", name="more", steps=30, say=lines.append
    )
    assert (new.name, bundle.name) == ("more", "random")
    assert new.info["networks"]["backward"]["sites"] == ["SRC", "OTHER", "A"]
    record = new.info["training"]["added_sites"]["A"]
    assert record["cycle_error"] < record["cycle_error_unknown"]
    assert str(record["cycle_error"]) in lines[-1]
    assert new.info["sites"]["A"]["n"] == 4
    assert new.qc_reference()["histograms"]["A"]
    assert "A" in new.guard()["style"]["sites"]
    assert json.loads((new.path / "splits.json").read_text())["A"]["train"] == ["0", "1", "2", "3"]
    before, after = (b.networks()["backward"][0].state_dict() for b in (bundle, new))
    for name, value in before.items():
        if name == "sites.weight":
            assert torch.equal(after[name][:2], value[:2])
            assert torch.equal(after[name][3], value[2])
            assert not torch.equal(after[name][2], value[2])
        else:
            assert torch.equal(after[name], value)
    same = set(bundle.info["files"]) - {
        "backward.safetensors", "qc_reference.json", "guard.json", "splits.json",
    }  # fmt: skip
    assert same
    assert all(new.info["files"][name] == bundle.info["files"][name] for name in same)


def test_site_that_cannot_be_added_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    data = balls()
    scans = np.flatnonzero(data.sites == "A")
    for these, site, words in (
        (scans, "SRC", "already knows the site SRC"),
        (scans[:1], "A", "has 1 preprocessed"),
    ):
        with pytest.raises(UsageError, match=words):
            add_site(bundle, data, these, site, tmp_path / "b", name="more")
    with pytest.raises(UsageError, match="no codes"):
        add_site(with_backward(tmp_path, 0), data, scans, "A", tmp_path / "b", name="x")
