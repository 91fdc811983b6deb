"""What a scan's file may hold, and what is read from it."""

from __future__ import annotations

import gzip
import re
import struct
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
from bids_harmony.interfaces.anat import RestoreOrientation

#: Fields of a NIfTI-1 header: place in bytes and format.
PIXDIM, CODES, QUATERNION, OFFSET, SROW = (
    (76, "4f"), (252, "2h"), (256, "3f"), (268, "f"), (280, "12f"),
)  # fmt: skip
NAN = float("nan")


def with_header(
    path: Path, *changes: tuple[tuple[int, str], tuple[float, ...]], q: np.ndarray | None = None
) -> Path:
    """Write a scan with the affine ``q`` in both forms, then change fields of its header."""
    img = nib.Nifti1Image(scan(), affine() if q is None else q)
    img.set_sform(img.affine, 1)
    img.set_qform(img.affine, 1)
    content = bytearray(img.to_bytes())
    for (place, form), values in changes:
        struct.pack_into("<" + form, content, place, *values)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else bytes(content))
    return path


def srow(matrix: np.ndarray) -> tuple[tuple[int, str], tuple[float, ...]]:
    return SROW, tuple(matrix[:3].ravel())


def damaged(path: Path, *, keep: float = 1.0, zeros: int = 0) -> None:
    """Write a scan that is cut short, or holds zeros in its middle."""
    content = bytearray(write(path, scan()).read_bytes())
    middle = len(content) // 2
    content[middle : middle + zeros] = bytes(zeros)
    path.write_bytes(bytes(content[: int(keep * len(content))]))


def singular() -> np.ndarray:
    matrix = affine()
    matrix[:, 1] = matrix[:, 0]
    return matrix


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"
ANNEXED = Path(".git", "annex", "objects", "x")
RGB = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
FAR = np.array([[4, 0, 0, 0], [0, 4, 0, 3.6e16], [0, 0, 4, 0], [0, 0, 0, 1]])
EVERY_FOURTH = np.arange(SHAPE[0])[:, None, None] % 4 == 0
USELESS = srow(np.full((4, 4), NAN)), (QUATERNION, (1, 1, 1))
HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda p: damaged(p, keep=0.5), "cannot be read"),
    "corrupt": (lambda p: damaged(p, zeros=2000), "cannot be read"),
    "zero bytes": (lambda p: p.write_bytes(b""), "cannot be read"),
    "text": (lambda p: p.write_text("not an image"), "cannot be read"),
    "folder": (lambda p: p.mkdir(), "cannot be read"),
    "absent": (lambda p: None, "does not exist"),
    "broken link": (lambda p: p.symlink_to(ANNEXED), "content is not present.*datalad get"),
    "Git LFS": (lambda p: p.write_text(LFS), "content is not present.*git lfs pull"),
    "4-D": (lambda p: write(p, np.stack([scan(), scan()], -1)), "not a 3-D volume"),
    "one slice": (lambda p: write(p, scan()[:, :, :1]), "not a 3-D volume"),
    "colours": (lambda p: write(p, RGB), "not a 3-D volume of grey values"),
    "complex": (lambda p: write(p, scan(np.complex64)), "not a 3-D volume of grey values"),
    "all zeros": (lambda p: write(p, np.zeros(SHAPE, np.float32)), "the same value"),
    "NaN-laced": (lambda p: write(p, np.where(EVERY_FOURTH, NAN, scan())), "NaN or infinite"),
    "absurd voxels": (lambda p: write(p, scan(), np.diag([1e-4, 1e4, 1, 1])), "geometry"),
    "far away": (lambda p: write(p, scan(), FAR), "impossible geometry"),
    "singular affine": (lambda p: write(p, scan(), singular()), "impossible geometry"),
    "no forms": (lambda p: with_header(p, (CODES, (0, 0))), "neither sform nor qform"),
    "sform of zeros": (
        lambda p: with_header(p, srow(np.zeros((4, 4))), (CODES, (0, 1))),
        "impossible geometry: the sform has voxels of 0 x 0 x 0 mm",
    ),
    "useless forms": (lambda p: with_header(p, *USELESS), "impossible geometry"),
    "useless qform": (lambda p: with_header(p, USELESS[1], (CODES, (1, 0))), "cannot be read"),
    "slab": (lambda p: write(p, scan()[:, :, :10]), "only: 192 x 224 x 40 mm, where 80 mm"),
    "slab among zeros": (
        lambda p: write(p, np.where(np.arange(SHAPE[1])[:, None] < 10, scan(), 0)),
        "covers a part of the head only: 192 x 40 x 160 mm",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_unusable_files_are_refused_with_their_reason(tmp_path: Path, kind: str) -> None:
    make, reason = HOSTILE[kind]
    path = tmp_path / "sub-01_T1w.nii.gz"
    make(path)
    with pytest.raises(ScanError) as raised:
        load_t1w(path)
    assert re.search(reason, f"{raised.value.cause} {raised.value.remedy}")
    assert path.name in raised.value.cause
    assert raised.value.remedy
    assert "\n" not in str(raised.value)


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


@pytest.mark.parametrize(
    "matrix",
    {
        "unset": None,
        "zeros": np.zeros((4, 4)),
        "nearly singular": singular() + np.diag([0, 1e-2, 0, 0]),
        "NaN": np.full((4, 4), NAN),
        "metres": affine() @ np.diag([1e-3] * 3 + [1]),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_useless_sform_gives_way_to_the_qform_everywhere(
    tmp_path: Path, matrix: tuple[str, np.ndarray | None]
) -> None:
    stored = affine(turn=(0, 0, 12), flip=True)
    change = (CODES, (1, 0)) if matrix[1] is None else srow(matrix[1])
    path = with_header(tmp_path / "x_T1w.nii.gz", change, q=stored)
    loaded, record = load_t1w(path)
    assert record["orientation"] == "LAS"
    np.testing.assert_array_equal(np.asarray(loaded.dataobj), scan()[::-1])
    np.testing.assert_allclose(
        apply_affine(loaded.affine, [SHAPE[0] - 1, 5, 6]),
        apply_affine(stored, [0, 5, 6]),
        atol=1e-3,
    )
    said = [note for note in record["notes"] if note.startswith("the sform ")]
    assert len(said) == len(record["notes"]) == (matrix[1] is not None)
    assert all(note.endswith("; the qform was used") for note in said)

    nib.save(loaded, tmp_path / "ras.nii")
    restore = RestoreOrientation(in_file=str(tmp_path / "ras.nii"), original=str(path))
    back = nib.load(restore.run(cwd=str(tmp_path)).outputs.out_file)
    np.testing.assert_array_equal(np.asarray(back.dataobj), scan())
    np.testing.assert_allclose(back.affine, stored, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ((QUATERNION, (1, 1, 1)), "the qform is not .*; the sform was used"),
        ((PIXDIM, (1, 4, NAN, 4)), "the qform is not .*; the sform was used"),
        ((OFFSET, (30 + affine()[0, 3],)), "sform and qform disagree by 30.0 mm"),
    ],
)
def test_a_useless_or_other_qform_is_said_beside_a_good_sform(
    tmp_path: Path, change: Any, note: str
) -> None:
    loaded, record = load_t1w(with_header(tmp_path / "x_T1w.nii.gz", change))
    np.testing.assert_allclose(loaded.affine, affine())
    assert re.match(note, *record["notes"])


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
    assert all("outside the field of view was taken as padding" in n for n in record["notes"])
    assert len(record["notes"]) == len(record["padding"])


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
    assert record["notes"] == ["intensities below 0 were found; 0.6667 was added to all"]
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
        "1 voxels were NaN or infinite and were set to 0",
        f"{np.sum(brain == 0) - 1} voxels around the brain were NaN or infinite and were set to 0",
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
