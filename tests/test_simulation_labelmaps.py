"""Heads made from label maps: true volumes, tables of labels, folders that cannot be used."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_simulation_dataset import validator_errors

from bids_harmony.errors import UsageError
from bids_harmony.simulation.dataset import simulate_dataset
from bids_harmony.simulation.head import Head, make_head
from bids_harmony.simulation.labelmaps import find_maps, load_anatomy, read_table
from bids_harmony.simulation.layers import Tissue

SHARES = ("gm_ml", "wm_ml")
#: Labels of the made-up map.
TABLE = {0: "air", 1: "gm", 2: "wm", 3: "csf", 4: "ventricle", 5: "bone", 6: "soft", 7: "skin"}
AROUND = {Tissue.CSF: 3, Tissue.BONE: 5, Tissue.MARROW: 5, Tissue.SKIN: 7, Tissue.AIR: 0}


def label_map(head: Head) -> np.ndarray:
    """Turn a head into labels of :data:`TABLE`."""
    labels = np.vectorize(lambda code: AROUND.get(code, 6), otypes=[np.int16])(head.labels)
    tissue = np.argmax([head.tissue(name) for name in ("gm", "wm", "csf")], axis=0) + 1
    labels[head.brain_mask] = tissue[head.brain_mask]
    middle = np.stack(np.meshgrid(*[np.arange(n) * 2 for n in labels.shape], indexing="ij"))
    middle = middle + head.affine[:3, 3].reshape(3, 1, 1, 1)
    deep = (
        (abs(middle[0]) < 30) & (middle[1] > -50) & (middle[1] < 35) & (abs(middle[2] - 12) < 20)
    )
    labels[deep & (labels == 3)] = 4
    return labels


def write_table(folder: Path, text: str) -> Path:
    path = folder / "labels.tsv"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def source() -> Head:
    return make_head(31, age=25, spacing=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, source: Head) -> Path:
    """One label map, stored askew, with its table."""
    folder = tmp_path_factory.mktemp("maps")
    turn = np.eye(4)
    turn[:3, 3] = [15.0, -20.0, 30.0]
    turn[:2, :2] = [[0.985, -0.174], [0.174, 0.985]]
    img = nib.Nifti1Image(label_map(source), turn @ source.affine)
    nib.save(img.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])), folder / "one.nii.gz")
    rows = "\n".join(f"{label}\t{tissue}" for label, tissue in TABLE.items())
    write_table(folder, f"index\ttissue\n{rows}\n")
    return folder


def test_a_head_of_a_label_map_has_its_proportions(folder: Path, source: Head) -> None:
    atlas = load_anatomy(folder / "one.nii.gz")
    head = make_head(3, age=25, spacing=2, atlas=atlas)
    made, real = ({k: h.truth[k] / h.truth["brain_ml"] for k in SHARES} for h in (head, source))
    assert made == pytest.approx(real, rel=0.12)
    assert 1000 < head.truth["brain_ml"] < 1900
    outside = np.unique(head.labels)
    assert {Tissue.AIR, Tissue.BRAIN, Tissue.BONE, Tissue.SKIN, Tissue.FAT} <= set(outside)
    # The brain lies where the template's does, and upright.
    centre = np.array([c.mean() for c in np.nonzero(head.brain_mask)]) * 2 + head.affine[:3, 3]
    np.testing.assert_allclose(centre, [0, -18, 8], atol=9)
    old = make_head(3, age=80, spacing=2, atlas=atlas)
    assert old.truth["ventricle_ml"] > 1.2 * head.truth["ventricle_ml"]
    assert 0.75 < old.truth["gm_ml"] / head.truth["gm_ml"] < 0.95


def test_a_dataset_of_label_maps_names_them(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bids"
    simulate_dataset(
        out, n_sites=1, n_subjects=1, seed=1, resolution=3.0, anatomies=folder, pathology=1
    )
    truth = pd.read_csv(out / "derivatives" / "truth" / "participants.tsv", sep="\t")
    assert truth["anatomy"].tolist() == ["one"]
    assert truth["pathology"].tolist() != ["none"]
    assert "label map" in (out / "README").read_text()
    for dataset in (out, out / "derivatives" / "truth"):
        assert validator_errors(dataset, tmp_path) == []


def test_freesurfer_labels_need_no_table(tmp_path: Path) -> None:
    table = read_table(tmp_path)
    assert (table[2], table[3], table[4], table[24], table[516]) == (
        "wm", "gm", "ventricle", "csf", "marrow",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("label\ttissue\n1\tgm\n", "cannot be read"),
        ("index\ttissue\none\tgm\n", "cannot be read"),
        ("index\ttissue\n1\n", "cannot be read"),
        ("index\ttissue\n", "no label"),
        ("index\ttissue\n1\tcheese\n", "cheese"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = write_table(tmp_path, text)
    with pytest.raises(UsageError, match=named) as error:
        read_table(tmp_path)
    assert str(path) in error.value.cause


def test_folders_without_usable_maps_are_refused(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(UsageError) as error:
            find_maps(tmp_path, 2)
        return str(error.value)

    assert "no NIfTI" in refused()
    path = tmp_path / "a.nii"
    path.write_text("text")
    assert "cannot be read" in refused()
    for data, complaint in (
        (np.zeros((4, 4, 4, 2), np.int16), "3-D"),
        (np.full((4, 4, 4), 0.5, np.float32), "whole numbers"),
        (np.full((4, 4, 4), np.nan, np.float32), "whole numbers"),
        (np.full((4, 4, 4), 999, np.int16), "label 999"),
        (np.full((4, 4, 4), -3, np.int16), "label -3"),
        (np.full((9, 9, 9), 3, np.int16), "hardly any wm"),
    ):
        nib.save(nib.Nifti1Image(data, np.diag([10.0, 10.0, 10.0, 1.0])), path)
        message = refused()
        assert complaint in message
        assert str(path) in message
    with pytest.raises(UsageError, match="not a folder"):
        find_maps(tmp_path / "absent", 1)


@pytest.mark.slow
def test_people_of_the_shared_label_maps_differ_in_kind(shared_data: Path) -> None:
    maps = find_maps(shared_data / "head_labels", 3)
    heads = [make_head(1, age=40, spacing=2, atlas=load_anatomy(path)) for path in maps]
    for head in heads:
        assert 1100 < head.truth["brain_ml"] < 2000
        assert 0.35 < head.truth["gm_ml"] / head.truth["brain_ml"] < 0.6
    ventricles = [head.truth["ventricle_ml"] for head in heads]
    assert max(ventricles) > 1.3 * min(ventricles)
