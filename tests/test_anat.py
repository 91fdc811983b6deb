"""What a scan's file may hold, whose brain is in it, and where the template lies in it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_harmony.anat.affine import (
    GOOD_LIKENESS,
    downsample,
    likeness,
    register_affine,
    resample,
    write_affine,
)
from bids_harmony.anat.brain import (
    conform_mask,
    deepbet_mask,
    dice,
    foreground,
    is_stripped,
)
from bids_harmony.anat.check import load_t1w
from bids_harmony.anat.template import load_template
from bids_harmony.errors import ScanError

SHAPE = (48, 56, 40)
ZOOM = 4.0


def scan(dtype: Any = np.float32) -> np.ndarray:
    """Smooth positive values without any symmetry."""
    rng = np.random.default_rng(7)
    data = ndimage.gaussian_filter(rng.random(SHAPE), 2)
    return (1000 * (data - data.min()) / np.ptp(data)).astype(dtype)


def affine(*, turn: tuple[float, float, float] = (0, 0, 0), flip: bool = False) -> np.ndarray:
    matrix = np.eye(4)
    rotation = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    matrix[:3, :3] = rotation @ np.diag([-ZOOM if flip else ZOOM, ZOOM, ZOOM])
    matrix[:3, 3] = -matrix[:3, :3] @ (np.array(SHAPE) - 1) / 2
    return matrix


def write(path: Path, data: np.ndarray, matrix: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, affine() if matrix is None else matrix), path)
    return path


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


def singular() -> np.ndarray:
    matrix = affine()
    matrix[:, 1] = matrix[:, 0]
    return matrix


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


def test_template_is_a_stripped_scan_and_a_head_around_it_is_not() -> None:
    template = load_template(2)
    data = np.pad(np.asarray(template.t1w.dataobj), 12)
    near, far = (ndimage.binary_dilation(np.pad(template.mask, 12), iterations=n) for n in (4, 9))
    assert is_stripped(template.t1w)
    head = data + 0.8 * (far & ~near).astype(np.float32)
    assert not is_stripped(nib.Nifti1Image(head, template.t1w.affine))


def test_downsampling_keeps_places_and_leaves_coarse_images_alone() -> None:
    data = scan()
    same, matrix = downsample(data, affine(), 2.0)
    assert same is data
    np.testing.assert_array_equal(matrix, affine())
    small, matrix = downsample(data, affine(), 8.0)
    assert small.shape == (24, 28, 20)
    blob = np.zeros(SHAPE, np.float32)
    blob[20:25, 30:35, 15:20] = 1
    small, matrix = downsample(blob, affine(), 8.0)
    centre = apply_affine(matrix, ndimage.center_of_mass(small))
    np.testing.assert_allclose(centre, apply_affine(affine(), (22, 32, 17)), atol=0.2)


def test_resampling_there_and_back_returns_the_scan(tmp_path: Path) -> None:
    """With a left-handed oblique grid on one side and a known transform."""
    moving = nib.Nifti1Image(
        ndimage.gaussian_filter(scan(), 2), affine(turn=(8, 5, -9), flip=True)
    )
    reference = nib.Nifti1Image(np.zeros((70, 80, 64), np.float32), affine())
    true = np.eye(4)
    true[:3, :3] = Rotation.from_euler("xyz", [4, -6, 10], degrees=True).as_matrix() * 1.1
    true[:3, 3] = (5, -3, 8)
    xfm = write_affine(true, tmp_path / "a.txt")
    moved = resample(moving, reference, xfm)
    expected = ndimage.affine_transform(
        np.asarray(moving.dataobj),
        np.linalg.inv(moving.affine) @ true @ reference.affine,
        output_shape=reference.shape,
        order=1,
    )
    both = (np.asarray(moved.dataobj) != 0) & (expected != 0)
    assert both.mean() > 0.1
    np.testing.assert_allclose(np.asarray(moved.dataobj)[both], expected[both], atol=0.05)
    back = np.asarray(resample(moved, moving, xfm, invert=True).dataobj)
    inside = ndimage.binary_erosion(back != 0, iterations=4)
    assert inside.sum() > 1000
    assert np.corrcoef(back[inside], np.asarray(moving.dataobj)[inside])[0, 1] > 0.99


def brain_in_scanner(true: np.ndarray) -> nib.Nifti1Image:
    """Scan the template's brain: left-handed 3 mm grid, bias field, noise, pose ``true``."""
    template = load_template(2).t1w
    low = np.diag([-3.0, 3, 3, 1])
    low[:3, 3] = (90, -125, -75)
    shape = (62, 70, 62)
    data = ndimage.affine_transform(
        np.asarray(template.dataobj),
        np.linalg.inv(template.affine) @ np.linalg.inv(true) @ (true @ low),
        output_shape=shape,
        order=1,
    )
    x = np.linspace(-1, 1, shape[0])[:, None, None]
    rng = np.random.default_rng(1)
    noisy = data * (1 + 0.3 * x) * 400 + rng.normal(0, 10, shape) * (data > 0)
    return nib.Nifti1Image(noisy.astype(np.float32), true @ low)


def residual(xfm: Path, true: np.ndarray) -> float:
    """Greatest distance, in mm over the template's brain, between found and true places."""
    import nitransforms as nt

    template = load_template(2)
    points = apply_affine(template.t1w.affine, np.argwhere(template.mask)[::500])
    found = nt.linear.load(str(xfm), fmt="itk").map(points)
    return float(np.linalg.norm(found - apply_affine(true, points), axis=1).max())


def pose(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    true = np.eye(4)
    true[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag(
        [1.05, 0.95, 1.1]
    )
    true[:3, 3] = shift
    return true


def test_affine_is_found_repeatably_and_looks_like_the_template(tmp_path: Path) -> None:
    true = pose((15, -10, 20), (60, -20, 40))
    brain, template = brain_in_scanner(true), load_template(2).t1w
    first = register_affine(brain, template, tmp_path / "a.txt")
    second = register_affine(brain, template, tmp_path / "b.txt")
    assert residual(first, true) < 2.0
    assert first.read_bytes() == second.read_bytes()
    moved = np.asarray(resample(brain, template, first).dataobj)
    assert likeness(moved, np.asarray(template.dataobj), template.affine) > GOOD_LIKENESS


def test_affine_of_a_head_lying_on_its_side_is_found(tmp_path: Path) -> None:
    true = pose((90, 20, -30), (10, 0, 0))
    brain = brain_in_scanner(true)
    xfm = register_affine(brain, load_template(2).t1w, tmp_path / "a.txt", sloppy=True)
    assert residual(xfm, true) < 4.0


def test_likeness_tells_a_turned_brain_from_a_good_one() -> None:
    template = load_template(2).t1w
    data = np.asarray(template.dataobj)
    darker = data * np.linspace(0.5, 1.5, data.shape[0], dtype=np.float32)[:, None, None]
    assert likeness(3000 * darker, data, template.affine) > 0.95
    assert likeness(np.ascontiguousarray(data[:, ::-1]), data, template.affine) < GOOD_LIKENESS
    assert likeness(np.zeros_like(data), data, template.affine) < 0.1


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
