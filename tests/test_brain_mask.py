"""Whose brain is in a scan: masks found, given and tested."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from t1w_images import SHAPE, affine, scan

from bids_harmony.anat.brain import (
    as_mask,
    deepbet_mask,
    dice,
    foreground,
    given_mask,
    is_stripped,
)
from bids_harmony.anat.check import load_t1w
from bids_harmony.anat.template import load_template
from bids_harmony.bids.records import scan_record
from bids_harmony.errors import ScanError
from bids_harmony.interfaces.anat import ConformMask

NAN = float("nan")


def test_template_is_a_stripped_scan_and_a_head_around_it_is_not() -> None:
    template = load_template(2)
    data = np.pad(np.asarray(template.t1w.dataobj), 12)
    near, far = (ndimage.binary_dilation(np.pad(template.mask, 12), iterations=n) for n in (4, 9))
    assert is_stripped(template.t1w)
    head = data + 0.8 * (far & ~near).astype(np.float32)
    assert not is_stripped(nib.Nifti1Image(head, template.t1w.affine))


def test_a_template_with_a_broken_sform_and_nan_around_it_is_read(tmp_path: Path) -> None:
    embedded = load_template(2)
    data = np.where(embedded.mask, np.asarray(embedded.t1w.dataobj), np.nan)
    img = nib.Nifti1Image(data.astype(np.float32)[..., None], embedded.t1w.affine)
    img.set_qform(img.affine, 1)
    img.set_sform(img.affine, 1)
    content = bytearray(img.to_bytes())
    content[280:328] = bytes(48)
    path = tmp_path / "tpl-x_T1w.nii"
    path.write_bytes(bytes(content))
    template = load_template(2, str(path))
    np.testing.assert_allclose(template.t1w.affine, embedded.t1w.affine, atol=1e-3)
    assert dice(template.mask, embedded.mask) > 0.999
    assert np.isfinite(np.asarray(template.t1w.dataobj)).all()


def test_foreground_of_a_stripped_scan_may_have_any_background() -> None:
    data = np.full(SHAPE, -1.0, np.float32)
    data[10:30, 10:40, 8:30] = scan()[10:30, 10:40, 8:30]
    data[20, 20, 20] = -1
    data[2, 2, 2] = 5
    mask = foreground(nib.Nifti1Image(data, affine()))
    assert mask.sum() == 20 * 30 * 22


def test_mask_on_another_grid_of_the_same_space_is_conformed(tmp_path: Path) -> None:
    img, path = nib.Nifti1Image(scan(), affine()), tmp_path / "x_mask.nii"
    fine = np.zeros([2 * n for n in SHAPE], np.uint8)
    fine[20:60, 20:80, 16:60] = 1
    half = affine() @ np.diag([0.5, 0.5, 0.5, 1])
    nib.save(nib.Nifti1Image(fine, half), path)
    truth = np.zeros(SHAPE, bool)
    truth[10:30, 10:40, 8:30] = True
    assert dice(given_mask(path, img)[0], truth) > 0.97
    half[:3, 3] += 300
    nib.save(nib.Nifti1Image(fine, half), path)
    with pytest.raises(ScanError, match="does not lie in the scan's space"):
        given_mask(path, img)


@pytest.mark.parametrize(
    ("values", "brain", "threshold"),
    [
        ([0, 0, 1, 1, 1], [0, 0, 1, 1, 1], None),
        ([0, NAN, -1, 1, 1], [0, 0, 0, 1, 1], None),
        ([0, 0.2, 0.5, 0.51, 1], [0, 0, 0, 1, 1], 0.5),
        ([-0.1, 0.05, 0.45, 0.95, 1.1], [0, 0, 0, 1, 1], 0.5),
        ([0, 0, 255, 255, 255], [0, 0, 1, 1, 1], 127.5),
        ([0, 30, 49, 51, 100, 100, 98], [0, 0, 0, 1, 1, 1, 1], 50),
        ([0, 2, 3, 17, 41, 42, 77], [0, 1, 1, 1, 1, 1, 1], 0),
        ([0, 1, 1, 2, 2, 3], [0, 1, 1, 1, 1, 1], 0),
    ],
)
def test_what_counts_as_brain_by_the_values_of_a_mask(
    values: list[float], brain: list[int], threshold: float | None
) -> None:
    mask, record = as_mask(np.reshape(values, (-1, 1, 1)), "The brain mask x")
    np.testing.assert_array_equal(mask.ravel(), np.array(brain, bool))
    assert record.get("threshold") == threshold
    if threshold is not None:
        (note,) = record["notes"]
        assert f"above {threshold:g} was taken as brain" in note


def test_a_series_is_no_mask() -> None:
    with pytest.raises(ScanError, match=r"The brain mask x is not a 3-D volume"):
        as_mask(np.zeros((*SHAPE, 2)), "The brain mask x")


def box() -> np.ndarray:
    """Some 1.1 litres, nearer to one side of each axis."""
    mask = np.zeros(SHAPE, np.float32)
    mask[10:30, 10:40, 8:36] = 1
    return mask


def test_a_mask_with_a_broken_header_lies_where_its_scan_does(tmp_path: Path) -> None:
    """The scan is stored from right to left: in RAS the mask is mirrored."""
    img = nib.as_closest_canonical(nib.Nifti1Image(scan(), affine(flip=True)))
    mask = nib.Nifti1Image(box()[..., None], affine(flip=True))
    mask.set_qform(mask.affine, 1)
    content = bytearray(mask.to_bytes())
    content[280:328] = bytes(48)  # an sform of zeros
    path = tmp_path / "sub-01_desc-brain_mask.nii"
    path.write_bytes(bytes(content))
    found, record = given_mask(path, img)
    np.testing.assert_array_equal(found, box()[::-1] > 0)
    (note,) = record["notes"]
    assert path.name in note
    assert "the qform was used" in note


def test_how_a_mask_was_read_stands_in_the_record_and_among_the_warnings(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(scan(), affine()), tmp_path / "t1w.nii")
    soft = np.where(box() > 0, 0.9, 0.3)
    nib.save(nib.Nifti1Image(soft.astype(np.float32), affine()), tmp_path / "soft_mask.nii")
    conform = ConformMask(
        in_file=str(tmp_path / "t1w.nii"),
        in_mask=str(tmp_path / "soft_mask.nii"),
        method="precomputed",
    )
    found = conform.run(cwd=str(tmp_path)).outputs
    np.testing.assert_array_equal(np.asarray(nib.load(found.out_mask).dataobj), box())
    assert found.record["threshold"] == 0.5
    record = scan_record({}, check={}, mask=found.record, scale={}, metrics={})
    assert record["warnings"] == [
        "The brain mask soft_mask.nii holds values other than 0 and 1 up to 0.9; what lies above "
        "0.5 was taken as brain"
    ]


def test_a_mask_that_is_cut_short_is_named(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(scan(), affine()), tmp_path / "t1w.nii")
    path = tmp_path / "x_mask.nii.gz"
    nib.save(nib.Nifti1Image(scan(), affine()), path)
    path.write_bytes(path.read_bytes()[:5000])
    conform = ConformMask(in_file=str(tmp_path / "t1w.nii"), in_mask=str(path), method="given")
    with pytest.raises(ScanError, match=r"The brain mask x_mask.nii.gz cannot be read"):
        conform.run(cwd=str(tmp_path))


def test_deepbet_finds_no_brain_in_nothing() -> None:
    data = np.zeros((80, 80, 80), np.float32)
    data[40, 40, 40] = 1
    with pytest.raises(ScanError, match="no brain"):
        deepbet_mask(nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])))


def test_deepbet_does_not_depend_on_the_number_of_threads() -> None:
    """Its mask of a real scan moved by a voxel between one and two threads."""
    import torch

    seen = []

    class Engine:
        def run_model(self, data: np.ndarray) -> np.ndarray:
            seen.append(torch.get_num_threads())
            return data

        def postprocess(self, mask: np.ndarray) -> np.ndarray:
            return mask

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bids_harmony.anat.brain._deepbet", Engine)
            deepbet_mask(nib.Nifti1Image(scan(), affine()))
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


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
