"""Graphs for every combination of options are connected and need nothing that is not there."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from made_up_record import FACTS, preprocessed_scan
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import generate_expanded_graph

from bids_harmony.bids.dataset import Scan
from bids_harmony.config import Contract
from bids_harmony.workflows.harmonize import init_harmonize_wf
from bids_harmony.workflows.preprocess import init_preprocess_wf

MODEL = {"bundle": "/bundle"}


def build(tmp_path: Path, scans: list[Scan], **settings: object) -> list:
    """Build the graph of one part of a run and return its nodes."""
    common = {
        "output_dir": str(tmp_path / "out"),
        "staging_dir": str(tmp_path / "work" / "outputs"),
        "contract": Contract(),
        "space": "MNI152NLin2009aSym",
    }
    if "bundle" in settings:
        common |= {"before": preprocessed_scan(tmp_path / "out"), "calibration": {}}
    init = init_harmonize_wf if "bundle" in settings else init_preprocess_wf
    workflow = pe.Workflow(name="all", base_dir=str(tmp_path / "work"))
    for scan in scans:
        facts = FACTS | {"name": scan.key}
        workflow.add_nodes([init(scan=scan, facts=facts, **common, **settings)])
    return list(generate_expanded_graph(workflow._create_flat_graph()).nodes())


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    path = tmp_path / "sub-01" / "anat" / "sub-01_run-1_T1w.nii.gz"
    return Scan(path=path, key="sub-01_run-1", entities={"subject": "01", "run": "1"}, age=30.0)


@pytest.mark.parametrize("skull_strip", ["auto", "deepbet", "multi-atlas", "bet", "skip"])
@pytest.mark.parametrize("registration", ["auto", "ants", "flirt"])
def test_options_make_a_connected_graph(
    tmp_path: Path, scan: Scan, skull_strip: str, registration: str
) -> None:
    nodes = build(
        tmp_path,
        [scan],
        skull_strip=skull_strip,
        registration=registration,
        atlas_dir=str(tmp_path),
    )
    names = {node.name for node in nodes}
    assert {"check", "normalize", "metrics", "mask_figure", "norm_figure", "publish"} <= names
    assert ("bet" in names) == (skull_strip == "bet")
    assert ("flirt" in names) == (registration == "flirt")
    assert "harmonize" not in names
    assert all(node.mem_gb > 0 for node in nodes)


@pytest.mark.parametrize("native", [False, True])
def test_a_preprocessed_scan_is_harmonized_without_another_look_at_it(
    tmp_path: Path, scan: Scan, native: bool
) -> None:
    nodes = build(tmp_path, [scan], **MODEL, native=native)
    names = {node.name for node in nodes}
    assert {"harmonize", "guard", "predict", "figures", "publish"} <= names
    assert not {"check", "brain_mask", "register", "normalize"} & names
    assert ("to_native" in names) == native
    assert all(node.mem_gb > 0 for node in nodes)


def test_a_mask_from_elsewhere_replaces_skull_stripping(tmp_path: Path, scan: Scan) -> None:
    mask = tmp_path / "mask.nii.gz"
    mask.touch()
    with_mask = Scan(path=scan.path, key=scan.key, entities=scan.entities, mask=mask)
    names = {node.name for node in build(tmp_path, [with_mask])}
    assert "conform_mask" in names
    assert "brain_mask" not in names


def test_networks_queue_for_the_gpu(tmp_path: Path, scan: Scan) -> None:
    nodes = build(tmp_path, [scan], **MODEL, device="cuda")
    assert sorted(node.name for node in nodes if node.is_gpu_node()) == ["harmonize", "predict"]


@pytest.mark.parametrize("settings", [{}, {"skull_strip": "bet", "registration": "flirt"}, MODEL])
def test_nodes_reach_other_processes(tmp_path: Path, scan: Scan, settings: dict) -> None:
    """As nipype's plugins send them: their classes are found by name."""
    for node in build(tmp_path, [scan], **settings):
        again = pickle.loads(pickle.dumps(node))
        assert again.inputs.get() == node.inputs.get()
        assert type(again.interface) is type(node.interface)


def test_scans_of_one_subject_do_not_share_nodes(tmp_path: Path, scan: Scan) -> None:
    other = Scan(
        path=scan.path.with_name("sub-01_run-2_T1w.nii.gz"),
        key="sub-01_run-2",
        entities={"subject": "01", "run": "2"},
    )
    for settings in ({}, MODEL):
        nodes = build(tmp_path, [scan, other], **settings)
        assert len({node.fullname for node in nodes}) == len(nodes)
