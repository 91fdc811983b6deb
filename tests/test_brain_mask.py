"""Whose brain is in a scan: masks found, given and tested."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from t1w_images import SHAPE, affine, scan

from bids_harmony.anat.brain import conform_mask, deepbet_mask, dice, foreground, is_stripped
from bids_harmony.anat.check import load_t1w
from bids_harmony.anat.template import load_template
from bids_harmony.errors import ScanError


def test_template_is_a_stripped_scan_and_a_head_around_it_is_not() -> None:
    template = load_template(2)
    data = np.pad(np.asarray(template.t1w.dataobj), 12)
    near, far = (ndimage.binary_dilation(np.pad(template.mask, 12), iterations=n) for n in (4, 9))
    assert is_stripped(template.t1w)
    head = data + 0.8 * (far & ~near).astype(np.float32)
    assert not is_stripped(nib.Nifti1Image(head, template.t1w.affine))


def test_foreground_of_a_stripped_scan_may_have_any_background() -> None:
    data = np.full(SHAPE, -1.0, np.float32)
    data[10:30, 10:40, 8:30] = scan()[10:30, 10:40, 8:30]
    data[20, 20, 20] = -1
    data[2, 2, 2] = 5
    mask = foreground(nib.Nifti1Image(data, affine()))
    assert mask.sum() == 20 * 30 * 22


def test_mask_on_another_grid_of_the_same_space_is_conformed() -> None:
    img = nib.Nifti1Image(scan(), affine())
    fine = np.zeros([2 * n for n in SHAPE], np.uint8)
    fine[20:60, 20:80, 16:60] = 1
    half = affine() @ np.diag([0.5, 0.5, 0.5, 1])
    mask = conform_mask(nib.Nifti1Image(fine, half), img)
    truth = np.zeros(SHAPE, bool)
    truth[10:30, 10:40, 8:30] = True
    assert dice(mask, truth) > 0.97
    elsewhere = half.copy()
    elsewhere[:3, 3] += 300
    with pytest.raises(ScanError, match="does not lie in the scan's space"):
        conform_mask(nib.Nifti1Image(fine, elsewhere), img)


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
        reference = conform_mask(nib.load(labels / f"{name}_desc-dlmuse_dseg.nii.gz"), img)
        found.append(dice(deepbet_mask(img), reference))
    assert len(found) == 3
    assert np.median(found) >= 0.975
