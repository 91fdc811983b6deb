"""Whose brain is in a scan: masks found, given and tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from t1w_images import NAN, SHAPE, affine, nifti, scan, srow, write

from bids_harmony.anat.brain import (
    as_mask,
    deepbet_mask,
    dice,
    foreground,
    given_mask,
    is_stripped,
)
from bids_harmony.anat.check import load_t1w
from bids_harmony.anat.template import from_nilearn, load_template
from bids_harmony.errors import ScanError, UsageError
from bids_harmony.interfaces.anat import BrainMask


def test_template_is_a_stripped_scan_and_a_head_around_it_is_not() -> None:
    template = load_template(2)
    data = np.pad(np.asarray(template.t1w.dataobj), 12)
    near, far = (ndimage.binary_dilation(np.pad(template.mask, 12), iterations=n) for n in (4, 9))
    assert is_stripped(template.t1w)
    head = data + 0.8 * (far & ~near).astype(np.float32)
    assert not is_stripped(nib.Nifti1Image(head, template.t1w.affine))
    # A head of a child with zeroed air around it, a slab, and nothing at all.
    whole = np.where(far, 1, 0).astype(np.float32)
    slab = np.where(np.indices(far.shape)[2] < far.shape[2] // 3, whole, 0)
    for other in (whole, slab, np.zeros_like(whole)):
        assert not is_stripped(nib.Nifti1Image(other, template.t1w.affine))
    for flipped in (data[::-1], 1 + data, np.repeat(data, 3, axis=0)):
        zoom = np.diag([data.shape[0] / flipped.shape[0], 1, 1, 1])
        assert is_stripped(nib.Nifti1Image(flipped, template.t1w.affine @ zoom))


def test_the_stored_template_is_nilearns() -> None:
    stored, made = load_template(2), from_nilearn(2)
    assert stored.t1w.header == made.t1w.header
    np.testing.assert_array_equal(stored.t1w.dataobj, made.t1w.dataobj)
    np.testing.assert_array_equal(stored.mask, made.mask)
    for name in ("gm", "wm"):
        np.testing.assert_array_equal(stored.tissues[name], made.tissues[name])


def with_zero_sform(path: Path, data: np.ndarray, matrix: np.ndarray) -> Path:
    """Write an image with a fourth axis of one and a good qform beside a zero sform."""
    data = data.astype(np.float32)[..., None]
    path.write_bytes(nifti(srow(np.zeros((4, 4))), data=data, matrix=matrix))
    return path


def test_a_template_with_a_broken_sform_and_nan_around_it_is_read(tmp_path: Path) -> None:
    embedded = load_template(2)
    data = np.where(embedded.mask, np.asarray(embedded.t1w.dataobj), np.nan)
    path = with_zero_sform(tmp_path / "tpl-x_T1w.nii", data, embedded.t1w.affine)
    template = load_template(2, str(path))
    np.testing.assert_allclose(template.t1w.affine, embedded.t1w.affine, atol=1e-3)
    assert dice(template.mask, embedded.mask) > 0.999
    assert np.isfinite(np.asarray(template.t1w.dataobj)).all()
    with pytest.raises(UsageError, match="it is not skull-stripped"):
        load_template(2, str(write(tmp_path / "head.nii", scan() + 1)))


def test_foreground_of_a_stripped_scan_may_have_any_background() -> None:
    data = np.full(SHAPE, -1.0, np.float32)
    data[10:30, 10:40, 8:30] = scan()[10:30, 10:40, 8:30]
    data[20, 20, 20] = -1
    data[2, 2, 2] = 5
    mask = foreground(nib.Nifti1Image(data, affine()))
    assert mask.sum() == 20 * 30 * 22


def test_mask_on_another_grid_of_the_same_space_is_conformed(tmp_path: Path) -> None:
    img, path = nib.Nifti1Image(scan(), affine()), tmp_path / "x_mask.nii"
    fine = box().repeat(2, 0).repeat(2, 1).repeat(2, 2)
    half = affine() @ np.diag([0.5, 0.5, 0.5, 1])
    assert dice(given_mask(write(path, fine, half), img)[0], box() > 0) > 0.97
    half[:3, 3] += 300
    with pytest.raises(ScanError, match="outside the field of view"):
        given_mask(write(path, fine, half), img)


@pytest.mark.parametrize(
    ("values", "brain", "threshold"),
    [
        ([0, 0, 1, 1, 1], [0, 0, 1, 1, 1], None),
        ([0, NAN, -1, 1, 1], [0, 0, 0, 1, 1], None),
        ([-0.1, 0.05, 0.45, 0.95, 1.1], [0, 0, 0, 1, 1], 0.5),
        ([0, 0, 255, 255, 255], [0, 0, 1, 1, 1], 0),
        ([0, 2, 3, 17, 41, 42, 77], [0, 1, 1, 1, 1, 1, 1], 0),
    ],
)
def test_what_counts_as_brain_by_the_values_of_a_mask(
    values: list[float], brain: list[int], threshold: float | None
) -> None:
    mask, record = as_mask(np.reshape(values, (-1, 1, 1)), "The brain mask x")
    np.testing.assert_array_equal(mask.ravel(), np.array(brain, bool))
    assert record.get("threshold") == threshold
    assert len(record.get("notes", ())) == (threshold is not None)


def box(scale: float = 1) -> np.ndarray:
    """Some 1.1 litres, nearer to one side of each axis."""
    mask = np.zeros(SHAPE, np.float32)
    mask[10:30, 10:40, 8:36] = scale
    return mask


def conform(folder: Path, mask: nib.Nifti1Image, name: str, cut: int | None = None) -> Any:
    """Run the node on a scan whose mask was made elsewhere; return its outputs."""
    write(folder / "t1w.nii", scan())
    nib.save(mask, folder / name)
    (folder / name).write_bytes((folder / name).read_bytes()[:cut])
    node = BrainMask(
        in_file=str(folder / "t1w.nii"), source_file=str(folder / "t1w.nii"),
        in_mask=str(folder / name), scan_key="sub-01", prefix=str(folder / "sub-01"),
    )  # fmt: skip
    return node.run(cwd=str(folder)).outputs


def test_how_a_mask_was_read_stands_in_the_record(tmp_path: Path) -> None:
    soft = nib.Nifti1Image(box(0.6) + np.float32(0.3), affine())
    found = conform(tmp_path, soft, "soft_mask.nii")
    np.testing.assert_array_equal(np.asarray(nib.load(found.out_mask).dataobj), box())
    assert found.record["method"] == "precomputed"
    assert found.record["threshold"] == 0.5
    assert found.record["notes"] == [
        "The brain mask soft_mask.nii is a probability map: voxels above 0.5 are brain"
    ]
    assert (tmp_path / "sub-01_desc-brainmask_T1w.png").is_file()


def test_masks_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"x_mask.nii.gz cannot be read"):
        conform(tmp_path, nib.Nifti1Image(scan(), affine()), "x_mask.nii.gz", cut=5000)
    with pytest.raises(ScanError, match=r"y_mask.nii is not a 3-D image"):
        conform(tmp_path, nib.Nifti1Image(np.zeros((*SHAPE, 2)), affine()), "y_mask.nii")
    with pytest.raises(ScanError, match=r"a volume of 0\.00 litres"):
        conform(tmp_path, nib.Nifti1Image(np.zeros(SHAPE), affine()), "z_mask.nii")


def test_a_mask_with_a_broken_header_lies_where_its_scan_does(tmp_path: Path) -> None:
    """The scan is stored from right to left: in RAS the mask is mirrored."""
    img = nib.as_closest_canonical(nib.Nifti1Image(scan(), affine(flip=True)))
    path = with_zero_sform(tmp_path / "sub-01_desc-brain_mask.nii", box(), affine(flip=True))
    found, record = given_mask(path, img)
    np.testing.assert_array_equal(found, box()[::-1] > 0)
    (note,) = record["notes"]
    assert path.name in note
    assert "the qform was used" in note


def test_deepbet_finds_no_brain_in_nothing() -> None:
    data = np.zeros((80, 80, 80), np.float32)
    data[40, 40, 40] = 1
    with pytest.raises(ScanError, match="no brain"):
        deepbet_mask(nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])))


def test_deepbet_runs_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mask of a real scan moved by a voxel between one and two threads."""
    import torch

    class Engine:
        def run_model(self, data: np.ndarray) -> np.ndarray:
            return data * (torch.get_num_threads() == 1)

        def postprocess(self, mask: np.ndarray) -> np.ndarray:
            return mask

    monkeypatch.setattr("bids_harmony.anat.brain._deepbet", Engine)
    torch.set_num_threads(2)
    assert deepbet_mask(nib.Nifti1Image(scan(), affine())).any()


@pytest.mark.slow
def test_deepbet_agrees_with_the_reference_masks(shared_data: Path) -> None:
    """Median Dice of at least 0.975 with the union of the labels."""
    found = []
    for folder in sorted((shared_data / "ixi_hh").glob("sub-*"))[::40]:
        name = folder.name
        img, _ = load_t1w(folder / "anat" / f"{name}_T1w.nii.gz")
        labels = shared_data / "ixi_hh" / "derivatives" / "dlmuse" / name / "anat"
        reference, _ = given_mask(labels / f"{name}_desc-dlmuse_dseg.nii.gz", img)
        found.append(dice(deepbet_mask(img), reference))
    assert len(found) == 3
    assert np.median(found) >= 0.975
