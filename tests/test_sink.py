"""Names and wholeness of what the data sink writes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_harmony.interfaces.outputs import DerivativesDataSink


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "made.nii.gz"
    img = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    img.set_sform(np.eye(4), 4)
    img.set_qform(np.eye(4), 4)
    nib.save(img, path)
    return path


def sink(
    tmp_path: Path, in_file: Path | list[Path], source: str, **settings: object
) -> list[Path]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    files = [str(f) for f in (in_file if isinstance(in_file, list) else [in_file])]
    interface = DerivativesDataSink(
        base_directory=str(out),
        source_file=str(tmp_path / "bids" / source),
        in_file=files,
        **settings,
    )
    written = interface.run(cwd=str(tmp_path)).outputs.out_file
    return [Path(p).relative_to(out) for p in ([written] if isinstance(written, str) else written)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_space-{s}_res-2_desc-preproc_T1w"),
        (
            "sub-01/ses-a/anat/sub-01_ses-a_acq-x_rec-y_run-01_echo-1_part-mag_chunk-2_T1w.nii.gz",
            "sub-01/ses-a/anat/sub-01_ses-a_acq-x_rec-y_run-01_echo-1_part-mag_space-{s}"
            "_chunk-2_res-2_desc-preproc_T1w",
        ),
        (
            "sub-01/anat/sub-01_task-rest_ce-gd_T1w.nii",
            "sub-01/anat/sub-01_task-rest_ce-gd_space-{s}_res-2_desc-preproc_T1w",
        ),
    ],
)
def test_every_entity_of_a_t1w_is_kept(
    tmp_path: Path, image: Path, source: str, expected: str
) -> None:
    space = "MNI152NLin2009aSym"
    settings = {"space": space, "resolution": "2", "desc": "preproc", "suffix": "T1w"}
    (written,) = sink(tmp_path, image, source, **settings, SkullStripped=True)
    assert str(written) == expected.format(s=space) + ".nii.gz"
    sidecar = json.loads((tmp_path / "out" / (expected.format(s=space) + ".json")).read_text())
    assert sidecar["SkullStripped"] is True
    assert sidecar["Resolution"] == "2 mm isotropic, on the grid of MNI152NLin2009aSym"


def test_runs_do_not_share_a_file(tmp_path: Path, image: Path) -> None:
    settings = {"desc": "brain", "suffix": "mask"}
    names = {
        str(sink(tmp_path, image, f"sub-01/anat/sub-01_{e}_T1w.nii.gz", **settings)[0])
        for e in ("run-1", "run-2", "run-01", "acq-1", "echo-1", "rec-1", "part-real", "chunk-1")
    }
    assert len(names) == 8


def test_transform_record_and_figures_have_names(tmp_path: Path) -> None:
    source = "sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.nii.gz"
    text = tmp_path / "a.txt"
    text.write_text("#Insight Transform File V1.0\n")
    record, png = tmp_path / "a.json", tmp_path / "a.png"
    record.write_text("{}")
    png.write_bytes(b"png")
    stem = "sub-01_ses-a_run-1"
    assert [
        str(p)
        for p in (
            sink(tmp_path, text, source, suffix="xfm", mode="image", to="MNI", **{"from": "T1w"})
            + sink(tmp_path, record, source, desc="harmony", suffix="qc")
            + sink(tmp_path, [png, png], source, desc=["a", "b"], suffix="T1w", datatype="figures")
        )
    ] == [
        f"sub-01/ses-a/anat/{stem}_from-T1w_to-MNI_mode-image_xfm.txt",
        f"sub-01/ses-a/anat/{stem}_desc-harmony_qc.json",
        f"sub-01/figures/{stem}_desc-a_T1w.png",
        f"sub-01/figures/{stem}_desc-b_T1w.png",
    ]
