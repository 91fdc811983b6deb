"""What a scan's file may hold, and what is read from it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from t1w_images import SHAPE, affine, scan, write

from bids_harmony.anat.check import load_t1w
from bids_harmony.errors import ScanError


def truncated(path: Path) -> None:
    write(path, scan())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corrupt(path: Path) -> None:
    write(path, scan())
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(bytes(content))


def with_nans(path: Path) -> None:
    data = scan()
    data[::4] = np.nan
    write(path, data)


def broken_link(path: Path) -> None:
    path.symlink_to(path.parent / ".git" / "annex" / "objects" / "x")


def without_forms(path: Path) -> None:
    img = nib.Nifti1Image(scan(), affine())
    img.set_sform(None, 0)
    img.set_qform(None, 0)
    nib.save(img, path)


def nan_affine(path: Path) -> None:
    img = nib.Nifti1Image(scan(), affine())
    content = bytearray(img.to_bytes())
    content[280:284] = np.float32(np.nan).tobytes()  # srow_x[0]
    path.write_bytes(gzip.compress(bytes(content)))


def singular() -> np.ndarray:
    matrix = affine()
    matrix[:, 1] = matrix[:, 0]
    return matrix


def claims_too_much(path: Path) -> None:
    """Write a header of a terabyte without its data."""
    header = nib.Nifti1Header()
    header.set_data_shape((10000, 10000, 10000))
    header.set_data_dtype(np.int16)
    header.set_sform(affine(), 1)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))


def colours(path: Path) -> None:
    data = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(data, affine()), path)


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncated, "cannot be read"),
    "corrupt": (corrupt, "cannot be read"),
    "zero bytes": (lambda p: p.write_bytes(b""), "cannot be read"),
    "text": (lambda p: p.write_text("not an image"), "cannot be read"),
    "zipped text": (lambda p: p.write_bytes(gzip.compress(b"no image " * 99)), "cannot be read"),
    "folder": (lambda p: p.mkdir(), "cannot be read"),
    "absent": (lambda p: None, "does not exist"),
    "broken link": (broken_link, "broken link"),
    "4-D": (lambda p: write(p, np.stack([scan(), scan()], -1)), "not a 3-D volume"),
    "2-D": (lambda p: write(p, scan()[:, :, 20]), "not a 3-D volume"),
    "one slice": (lambda p: write(p, scan()[:, :, :1]), "not a 3-D volume"),
    "colours": (colours, "not a grey-scale image"),
    "complex": (lambda p: write(p, scan(np.complex64)), "not a grey-scale image"),
    "all zeros": (lambda p: write(p, np.zeros(SHAPE, np.float32)), "the same value"),
    "NaN-laced": (with_nans, "NaN or infinite"),
    "absurd affine": (
        lambda p: write(p, scan(), np.diag([1e-4, 1e4, 1, 1])),
        "impossible geometry",
    ),
    "micrometres": (lambda p: write(p, scan(), affine() @ np.diag([1e3] * 3 + [1])), "geometry"),
    "NaN affine": (nan_affine, "impossible geometry"),
    "singular affine": (lambda p: write(p, scan(), singular()), "impossible geometry"),
    "no sform and no qform": (without_forms, "neither sform nor qform"),
    "a terabyte": (claims_too_much, "voxels"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_unusable_files_are_refused_with_their_reason(tmp_path: Path, kind: str) -> None:
    make, reason = HOSTILE[kind]
    path = tmp_path / "sub-01_T1w.nii.gz"
    make(path)
    with pytest.raises(ScanError, match=reason) as raised:
        load_t1w(path)
    assert path.name in raised.value.cause
    assert raised.value.remedy
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", ">f4", "<f8", "<u2", ">i4"])
def test_every_number_format_gives_the_same_values(tmp_path: Path, dtype: str) -> None:
    data = scan() / 4 if dtype == "u1" else scan()
    endian = ">" if dtype[0] == ">" else "<"
    header = nib.Nifti1Header(endianness=endian)
    header.set_data_dtype(np.dtype(dtype))
    img = nib.Nifti1Image(data.astype(np.dtype(dtype)), affine(), header)
    nib.save(img, tmp_path / "x_T1w.nii.gz")
    loaded, _ = load_t1w(tmp_path / "x_T1w.nii.gz")
    out = np.asarray(loaded.dataobj)
    assert out.dtype == np.float32
    assert out.dtype.isnative
    np.testing.assert_allclose(out, data, atol=0 if "f" in dtype else 1.0)


def test_scale_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    img = nib.Nifti1Image(scan(), affine())
    img.header.set_data_dtype(np.uint8)
    nib.save(img, tmp_path / "x_T1w.nii.gz")
    assert nib.load(tmp_path / "x_T1w.nii.gz").dataobj.slope > 1
    loaded, _ = load_t1w(tmp_path / "x_T1w.nii.gz")
    np.testing.assert_allclose(np.asarray(loaded.dataobj), scan(), atol=3)


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    loaded, record = load_t1w(write(tmp_path / "x_T1w.nii.gz", scan()[..., None, None]))
    assert loaded.shape == SHAPE
    assert record["shape"] == list(SHAPE)


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


def test_conflicting_forms_are_noted_and_the_sform_wins(tmp_path: Path) -> None:
    img = nib.Nifti1Image(scan(), affine())
    img.set_sform(affine(), 1)
    moved = affine()
    moved[0, 3] += 30
    img.set_qform(moved, 1)
    nib.save(img, tmp_path / "x_T1w.nii.gz")
    loaded, record = load_t1w(tmp_path / "x_T1w.nii.gz")
    np.testing.assert_allclose(loaded.affine, affine())
    assert "disagree by 30.0 mm" in record["notes"][0]


def test_qform_alone_and_qform_beside_a_broken_sform_are_used(tmp_path: Path) -> None:
    for code, n_notes in ((0, 0), (1, 1)):
        img = nib.Nifti1Image(scan(), affine())
        img.set_qform(affine(turn=(0, 0, 12)), 1)
        img.set_sform(np.diag([0, 0, 0, 1]), code)
        nib.save(img, tmp_path / "x_T1w.nii.gz")
        loaded, record = load_t1w(tmp_path / "x_T1w.nii.gz")
        np.testing.assert_allclose(loaded.affine, affine(turn=(0, 0, 12)), atol=1e-4)
        assert len(record["notes"]) == n_notes


def test_a_few_bad_voxels_are_replaced_and_counted(tmp_path: Path) -> None:
    data = scan()
    data[5, 5, 5:8] = np.nan, np.inf, -np.inf
    loaded, record = load_t1w(write(tmp_path / "x_T1w.nii.gz", data))
    assert record["nonfinite_voxels"] == 3
    assert np.isfinite(np.asarray(loaded.dataobj)).all()
    assert "3 voxels" in record["notes"][0]


def test_standardised_intensities_are_lifted_above_the_background(tmp_path: Path) -> None:
    data = (scan() - 500) / 200
    loaded, record = load_t1w(write(tmp_path / "x_T1w.nii.gz", data))
    out = np.asarray(loaded.dataobj)
    assert out.min() == 0
    assert np.corrcoef(out.ravel(), data.ravel())[0, 1] > 0.999
    assert "below 0" in record["notes"][0]
