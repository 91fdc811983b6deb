"""Brain masks that other programs left in derivatives."""

from __future__ import annotations

from pathlib import Path

from bids_dataset import find, write


def test_masks_of_derivatives(dataset: Path, tmp_path: Path) -> None:
    write(dataset, "sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.nii.gz")
    one, two = tmp_path / "one", tmp_path / "two"
    for name in (
        "sub-01/anat/sub-01_space-MNI152NLin6Asym_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_run-1_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_desc-brain_mask.json",
        "sub-01/anat/sub-01_desc-head_mask.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz",
        "sub-02/anat/sub-02_space-orig_desc-brain_mask.nii.gz",
        "sub-02/anat/sub-02_space-T1w_desc-brain_mask.nii.gz",
    ):
        write(one, name)
    masks = {s.key: s.mask for s in find(dataset, derivatives={"one": one}).scans}
    assert masks == {
        "sub-01": None,
        "sub-01_ses-a_run-1": None,
        "sub-02": one / "sub-02/anat/sub-02_space-T1w_desc-brain_mask.nii.gz",
    }
    write(two, "sub-01/ses-a/anat/sub-01_ses-a_run-1_desc-brain_mask.nii.gz")
    write(two, "sub-01/anat/sub-01_desc-brain_mask.nii")
    write(two, "sub-02/anat/sub-02_desc-brain_mask.nii.gz")
    masks = {s.key: s.mask for s in find(dataset, derivatives={"one": one, "two": two}).scans}
    assert masks["sub-01"] == two / "sub-01/anat/sub-01_desc-brain_mask.nii"
    assert masks["sub-01_ses-a_run-1"].name == "sub-01_ses-a_run-1_desc-brain_mask.nii.gz"
    assert masks["sub-02"].is_relative_to(one)
    assert find(dataset, derivatives={"one": one, "two": two}).warnings == ()
    (warning,) = find(dataset, derivatives={"one": one}).warnings
    assert warning == (
        "No *_desc-brain_mask.nii.gz in native space was found for 2 of 3 scans (sub-01, "
        f"sub-01_ses-a_run-1) in one={one}: --skull-strip auto makes those masks."
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "No *_desc-brain_mask" in find(dataset, derivatives={"empty": empty}).warnings[0]
