"""What is read from the file of a scan; tests/faults has the files that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from t1w_images import (
    CODES,
    NAN,
    PIXDIM,
    QOFFSET,
    QUATERNION,
    SHAPE,
    Change,
    affine,
    nifti,
    scan,
    srow,
    write,
)

from bids_harmony.anat.check import load_t1w
from bids_harmony.errors import ScanError
from bids_harmony.interfaces.anat import BrainMask


@pytest.mark.parametrize("dtype", ["u1", ">i2", ">f4", "<f8", "<u2"])
def test_every_number_format_gives_the_same_values(tmp_path: Path, dtype: str) -> None:
    """With trailing axes of one, which are dropped; bytes have a slope."""
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(np.dtype(dtype))
    nib.save(nib.Nifti1Image(scan()[..., None], affine(), header), tmp_path / "x_T1w.nii.gz")
    loaded, record = load_t1w(tmp_path / "x_T1w.nii.gz")
    out = np.asarray(loaded.dataobj)
    assert out.dtype == np.float32
    assert out.dtype.isnative
    assert record["shape"] == list(SHAPE)
    np.testing.assert_allclose(out, scan(), atol=3 if dtype == "u1" else 1)


@pytest.mark.parametrize("turn", [(0, 0, 0), (10, -15, 25), (90, 0, 0), (0, 180, 90)])
@pytest.mark.parametrize("flip", [False, True])
def test_any_orientation_keeps_every_voxel_where_it_is(
    tmp_path: Path, turn: tuple[float, float, float], flip: bool
) -> None:
    data, matrix = scan(), affine(turn=turn, flip=flip)
    loaded, record = load_t1w(write(tmp_path / "x_T1w.nii.gz", data, matrix))
    assert "".join(nib.aff2axcodes(loaded.affine)) == "RAS"
    assert record["orientation"] == "".join(nib.aff2axcodes(matrix))
    assert any("oblique" in note for note in record["notes"]) == (turn == (10, -15, 25))
    voxels = np.random.default_rng(0).integers(0, SHAPE, (50, 3))
    there = apply_affine(np.linalg.inv(loaded.affine) @ matrix, voxels).round().astype(int)
    np.testing.assert_array_equal(
        np.asarray(loaded.dataobj)[tuple(there.T)], data[tuple(voxels.T)]
    )


STORED = affine(turn=(0, 0, 12), flip=True)
NEARLY_SINGULAR = affine()[:, [0, 0, 2, 3]] + np.diag([0, 1e-2, 0, 0])


@pytest.mark.parametrize(
    ("change", "note"),
    {
        "no sform": ((CODES, (1, 0)), ""),
        "zero sform": (srow(np.zeros((4, 4))), "the sform .*; the qform was used"),
        "singular sform": (srow(NEARLY_SINGULAR), "the sform .*; the qform was used"),
        "NaN sform": (srow(np.full((4, 4), NAN)), "the sform .*; the qform was used"),
        "metres": (srow(affine() @ np.diag([1e-3] * 3 + [1])), "the sform has voxels of 0.004 x"),
        "invalid qform": ((QUATERNION, (1, 1, 1)), "the qform is singular .*; the sform was used"),
        "NaN qform": ((PIXDIM, (1, 4, NAN, 4)), "the qform is singular .*; the sform was used"),
        "other qform": ((QOFFSET, (30 + STORED[0, 3],)), "sform and qform disagree by 30.0 mm"),
    }.values(),
)  # fmt: skip
def test_an_invalid_form_gives_way_to_the_other_everywhere(
    tmp_path: Path, change: Change, note: str
) -> None:
    path = tmp_path / "x_T1w.nii"
    path.write_bytes(nifti(change, matrix=STORED))
    loaded, record = load_t1w(path)
    assert record["orientation"] == "LAS"
    np.testing.assert_array_equal(np.asarray(loaded.dataobj), scan()[::-1])
    ends = apply_affine(loaded.affine, [SHAPE[0] - 1, 5, 6]), apply_affine(STORED, [0, 5, 6])
    np.testing.assert_allclose(*ends, atol=1e-3)
    assert len(record["notes"]) == bool(note)
    assert not note or re.match(note, record["notes"][0])

    nib.save(loaded, tmp_path / "ras.nii")
    mask, mask_file = np.zeros(SHAPE, np.uint8), tmp_path / "mask.nii"
    mask[10:30, 10:40, 8:36] = 1
    mask_file.write_bytes(nifti(change, data=mask, matrix=STORED))
    node = BrainMask(
        in_file=str(tmp_path / "ras.nii"), source_file=str(path), in_mask=str(mask_file),
        scan_key="sub-01", prefix=str(tmp_path / "figures" / "sub-01"),
    )  # fmt: skip
    back = nib.load(node.run(cwd=str(tmp_path)).outputs.native_mask)
    np.testing.assert_array_equal(np.asarray(back.dataobj), mask)
    np.testing.assert_allclose(back.affine, STORED, atol=1e-3)


def test_a_few_bad_voxels_are_replaced_and_counted(tmp_path: Path) -> None:
    data = scan()
    data[5, 5, 5:8] = np.nan, np.inf, -np.inf
    loaded, record = load_t1w(write(tmp_path / "x_T1w.nii.gz", data))
    assert record["nonfinite_voxels"] == 3
    assert np.isfinite(np.asarray(loaded.dataobj)).all()
    assert "3 voxels" in record["notes"][0]


def head(noise: bool = True) -> np.ndarray:
    """Something bright of 140 x 170 x 120 mm, of any value from 300 to 1300, in noisy air."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) * n * 2 for n in SHAPE], indexing="ij")
    inside = sum((g / r) ** 2 for g, r in zip(grid, (70, 85, 60), strict=True)) < 1
    air = np.random.default_rng(0).uniform(0, 30, SHAPE) if noise else np.zeros(SHAPE)
    return np.where(inside, 300 + scan(), air).astype(np.float32)


def off_view() -> np.ndarray:
    """What lies outside a cylinder along the third axis: a fifth of the voxels."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE[:2]], indexing="ij")
    return np.broadcast_to((np.hypot(x, y) > 1)[..., None], SHAPE)


def loaded_from(path: Path, data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    loaded, record = load_t1w(write(path, data.astype(np.float32)))
    return np.asarray(loaded.dataobj), record


@pytest.mark.parametrize(
    "values", [(-1, -1), (-777.5, -777.5), (65535, 65535), (-1000, -2000), (4095, -1000)]
)
@pytest.mark.parametrize("noise", [True, False])
def test_padding_is_background_and_changes_nothing(
    tmp_path: Path, values: tuple[float, float], noise: bool
) -> None:
    """Head and air stay as they are; all else, filled by one program or by two, is 0."""
    data = head(noise)
    padded = np.where(np.arange(SHAPE[2]) < 12, *values[::-1])
    found, record = loaded_from(tmp_path / "x_T1w.nii", np.where(off_view(), padded, data))
    np.testing.assert_array_equal(found, np.where(off_view(), 0, data))
    assert record["padding"] == sorted(set(values))
    assert record["notes"] == [f"the padding value {v:g} was set to 0" for v in record["padding"]]


def test_what_is_cut_off_at_the_highest_value_is_no_padding(tmp_path: Path) -> None:
    data = head()
    data[15:33, 20:36, :5] = 4095  # the neck, where a coil lies close
    found, record = loaded_from(tmp_path / "x_T1w.nii", data)
    assert record["notes"] == []
    np.testing.assert_array_equal(found, data)


def test_standardized_scans_keep_their_intensities_whatever_surrounds_them(tmp_path: Path) -> None:
    path, data = tmp_path / "x_T1w.nii", (head() - 200) / 300
    own = np.where(off_view(), data.min(), data)
    wanted, record = loaded_from(path, own)
    assert not record["padding"]
    assert record["notes"] == ["the scan has negative intensities: 0.6667 was added to all voxels"]
    np.testing.assert_allclose(wanted, np.where(off_view(), 0, data + 2 / 3), atol=1e-3)
    found, record = loaded_from(path, np.where(off_view(), -1000, data))
    assert record["padding"] == [-1000]
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_the_constant_background_of_a_standardized_scan_is_0_again(tmp_path: Path) -> None:
    """Whether air was the lowest, or the scan was standardized within the brain."""
    path, data = tmp_path / "x_T1w.nii", np.maximum(head(noise=False) - 280, 0)
    found, record = loaded_from(path, data / 500 - 0.8)
    assert not record["padding"]
    np.testing.assert_allclose(found, data / 500, atol=1e-6)
    brain = data > 0
    scaled = np.where(brain, (data - data[brain].mean()) / data[brain].std(), 0)
    found, _ = loaded_from(path, scaled)
    assert not found[~brain].any()
    assert np.corrcoef(found[brain], data[brain])[0, 1] > 0.9999
    assert found[brain].mean() == pytest.approx(-np.percentile(scaled[brain], 0.1), abs=0.01)


@pytest.mark.parametrize("value", [np.nan, -np.inf, -3.4e38])
def test_values_that_are_none_around_a_brain_are_its_background(
    tmp_path: Path, value: float
) -> None:
    brain = head(noise=False)
    given = np.where(brain > 0, brain, value)
    middle = tuple(n // 2 for n in SHAPE)
    given[middle] = np.nan
    found, record = loaded_from(tmp_path / "x_T1w.nii", given)
    brain[middle] = 0
    np.testing.assert_array_equal(found, brain)
    assert record["nonfinite_voxels"] == np.sum(brain == 0)
    assert record["notes"] == [
        f"{np.sum(brain == 0)} voxels were NaN or infinite and were set to 0"
    ]


def test_values_that_are_none_within_a_brain_are_refused(tmp_path: Path) -> None:
    """Also where they are few of the file, but not of the brain."""
    brain = head(noise=False)
    around = np.where(brain > 0, brain, np.nan)
    hole, specks, planes, cut = (around.copy() for _ in range(4))
    hole[20:28, 24:32, 16:24] = np.nan  # 512 voxels of some 23,400
    specks[np.random.default_rng(0).random(SHAPE) < 0.05] = np.nan
    planes[:, :, ::4] = np.nan
    cut[20:28] = np.nan
    for data in (hole, specks, planes, cut):
        with pytest.raises(ScanError, match="that are not background are NaN or infinite"):
            loaded_from(tmp_path / "x_T1w.nii", data)


def test_an_image_is_known_again_in_another_file(tmp_path: Path) -> None:
    """The same voxels uncompressed, or stored as other numbers, are one image."""
    data = scan().round()
    other = data.copy()
    other[1, 1, 1] += 1
    files = {"a.nii.gz": data, "a.nii": data, "b.nii.gz": data.astype(np.int16), "c.nii": other}
    digests = [load_t1w(write(tmp_path / f, i))[1]["voxels_sha256"] for f, i in files.items()]
    assert digests[0] == digests[1] == digests[2] != digests[3]
