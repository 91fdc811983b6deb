"""Graphs for every combination of options are connected and need nothing that is not there."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import generate_expanded_graph

from bids_harmony.bids.dataset import Scan
from bids_harmony.bids.records import ENDINGS, PREPROCESSED
from bids_harmony.config import Contract
from bids_harmony.files import write_text
from bids_harmony.workflows.scan import init_harmonize_wf, init_preprocess_wf

MODEL = {"bundle": "/bundle"}
FACTS: dict[str, Any] = {"age": 30.0, "bundle": {"reference_site": "REF"}, "calibration": {}}
#: Outputs of preprocessing, with both brain masks.
OUTPUTS = [
    f"sub-01/anat/sub-01{ending}"
    for ending in (*ENDINGS, "_space-T_desc-brain_mask.nii.gz")
]  # fmt: skip


def build(tmp_path: Path, scans: list[Scan], **settings: object) -> dict[str, Any]:
    """Build the graph of one part of a run and return its nodes by their names."""
    common = {
        "output_dir": str(tmp_path / "out"),
        "staging_dir": str(tmp_path / "work" / "outputs"),
        "contract": Contract(),
        "space": "MNI152NLin2009aSym",
    }
    if "bundle" in settings:
        for name in OUTPUTS:
            write_text(tmp_path / "out" / name, "")
        before = {**{key: {} for key in PREPROCESSED}, "outputs": OUTPUTS}
        common |= {"before": before, "calibration": {}}
    init = init_harmonize_wf if "bundle" in settings else init_preprocess_wf
    workflow = pe.Workflow(name="all", base_dir=str(tmp_path / "work"))
    for scan in scans:
        facts = FACTS | {"name": scan.key}
        workflow.add_nodes([init(scan=scan, facts=facts, **common, **settings)])
    nodes = list(generate_expanded_graph(workflow._create_flat_graph()).nodes())
    assert all(node.mem_gb > 0 for node in nodes)
    # Scans of one subject share no node, which works in a folder of its name.
    assert len({node.fullname for node in nodes}) == len(nodes)
    return {node.name: node for node in nodes}


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    path = tmp_path / "sub-01" / "anat" / "sub-01_run-1_T1w.nii.gz"
    return Scan(path=path, key="sub-01_run-1", entities={"subject": "01", "run": "1"}, age=30.0)


@pytest.mark.parametrize("skull_strip", ["auto", "deepbet", "multi-atlas", "bet", "skip"])
@pytest.mark.parametrize("registration", ["auto", "ants", "flirt"])
def test_options_make_a_connected_graph(
    tmp_path: Path, scan: Scan, skull_strip: str, registration: str
) -> None:
    scan = replace(scan, mask=tmp_path / "x_mask.nii.gz")
    methods = {"skull_strip": skull_strip, "registration": registration}
    nodes = build(tmp_path, [scan], **methods, atlas_dir=str(tmp_path))
    assert set(nodes) == {"check", "brain_mask", "register", "normalize", "publish"}
    mask = nodes["brain_mask"].inputs
    assert (mask.method, mask.detect_stripped) == (
        ("deepbet", True) if skull_strip == "auto" else (skull_strip, False)
    )
    assert mask.in_mask == str(scan.mask)
    wanted = "ants" if registration == "auto" else registration
    assert nodes["register"].inputs.method == wanted


@pytest.mark.parametrize("native", [False, True])
def test_a_preprocessed_scan_is_harmonized_without_another_look_at_it(
    tmp_path: Path, scan: Scan, native: bool
) -> None:
    nodes = build(tmp_path, [scan], **MODEL, native=native, device="cuda")
    assert set(nodes) == {"harmonize", "publish"}
    assert nodes["harmonize"].inputs.native == native
    assert [name for name in nodes if nodes[name].is_gpu_node()] == ["harmonize"]


@pytest.mark.parametrize("settings", [{}, {"skull_strip": "bet", "registration": "flirt"}, MODEL])
def test_nodes_of_several_scans_reach_other_processes(
    tmp_path: Path, scan: Scan, settings: dict
) -> None:
    """As nipype's plugins send them: their classes are found by name."""
    path = scan.path.with_name("sub-01_run-2_T1w.nii.gz")
    other = replace(scan, path=path, key="sub-01_run-2", entities={"subject": "01", "run": "2"})
    for node in build(tmp_path, [scan, other], **settings).values():
        again = pickle.loads(pickle.dumps(node))
        assert again.inputs.get() == node.inputs.get()
        assert type(again.interface) is type(node.interface)
