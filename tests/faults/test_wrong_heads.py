"""Scans that are not an ordinary adult head: which fail, are flagged, or cannot be detected."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import harmony, label_of, new_dataset, place, record_of
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_harmony.simulation.anatomy import Head, Tissue, make_head
from bids_harmony.simulation.scanner import draw_scanner, scan_head

pytestmark = pytest.mark.slow
#: Expected status of each head, and the reason.
HEADS = {
    "turned by 90 degrees": ("warn", "Centroid offset"),
    "upside down": ("warn", "Centroid offset"),
    "flipped left-right": ("not detectable", ""),
    "T2w named T1w": ("error", "Correlation with the template"),
    "knee": ("error", "Correlation with the template"),
    "CT": ("error", "The brain mask holds"),
    "infant": ("error", "Affine determinant"),
    "tumour": ("warn", "Left-right asymmetry"),
}
HOUNSFIELD = {"AIR": -1000, "BRAIN": 37, "CSF": 8, "BONE": 1000, "MARROW": 300, "FAT": -80}
SOFT = 40


def image(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    img = nib.Nifti1Image(data.astype(np.float32), affine)
    img.set_sform(affine, 1)
    img.set_qform(affine, 1)
    return img


def wrong_heads() -> dict[str, nib.Nifti1Image]:
    """By name; ``plain`` is the head they are made from."""
    head, scanner = make_head(3, age=45, spacing=2), draw_scanner(1, 3, min_voxel_mm=2.0)
    tumour = make_head(3, age=45, spacing=2, lesion=True)
    images, _ = scan_head(head, scanner, (1,))
    data, affine = images["t1w"].get_fdata(dtype=np.float32), images["t1w"].affine
    # Of 62 % of the size, white matter darker than grey.
    infant, brain = data.copy(), np.asarray(images["brain"].dataobj) > 0
    infant[brain] = np.maximum(2 * np.median(data[brain]) - data[brain], 0)

    def moved(matrix: np.ndarray, data: np.ndarray = data) -> nib.Nifti1Image:
        return image(data, nib.affines.from_matvec(matrix) @ affine)

    return {
        "plain": images["t1w"],
        "turned by 90 degrees": moved(Rotation.from_euler("x", 90, degrees=True).as_matrix()),
        "upside down": moved(Rotation.from_euler("y", 180, degrees=True).as_matrix()),
        "flipped left-right": moved(np.diag([-1.0, 1, 1])),
        "T2w named T1w": scan_head(head, scanner, (1,), "wrong-contrast")[0]["t1w"],
        "knee": knee(),
        "CT": ct(head),
        "infant": moved(np.diag([0.62] * 3), infant),
        "tumour": scan_head(tumour, scanner, (1,))[0]["t1w"],
    }


def knee() -> nib.Nifti1Image:
    """Two long bones with their joint, in muscle, under fat; 16 cm of a leg."""
    n, rng = 80, np.random.default_rng(0)
    x, y, z = np.meshgrid(*[2.0 * np.arange(n) - n] * 3, indexing="ij")
    data = np.select([np.hypot(x, y) < 54, np.hypot(x, y) < 62], [350.0, 900.0], 0.0)
    wide = 6 * np.exp(-((np.abs(z) - 10) ** 2) / 200)
    bone, marrow = (np.hypot(x, y - 8) < radius + wide for radius in (24, 21))
    data[bone] = 60
    data[marrow] = 850
    data[bone & (np.abs(z) < 3)] = 250
    smooth, noise = ndimage.gaussian_filter(data, 0.6), rng.normal(0, 15, (2, *data.shape))
    affine = nib.affines.from_matvec(2.0 * np.eye(3), [-n] * 3)
    return image(np.hypot(smooth + noise[0], noise[1]), affine)


def ct(head: Head) -> nib.Nifti1Image:
    """Tissues in Hounsfield units."""
    units = np.array([HOUNSFIELD.get(tissue.name, SOFT) for tissue in Tissue], dtype=float)
    data = ndimage.gaussian_filter(units[head.labels], 0.5)
    return image(data + np.random.default_rng(0).normal(0, 8, data.shape), head.affine)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = new_dataset(tmp_path_factory.mktemp("wrong") / "bids")
    for row, img in wrong_heads().items():
        nib.save(img, place(root, label_of(row)))
    out, options = root.parent / "out", ("-w", root.parent / "work", "--nprocs", 2)
    done = harmony(root, out, "participant", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return out


@pytest.mark.parametrize("head", HEADS)
def test_wrong_heads_fail_or_are_flagged_where_that_can_be_seen(out: Path, head: str) -> None:
    record, (status, reason) = record_of(out, label_of(head)), HEADS[head]
    assert record["status"] in ({"pass", "warn"} if status == "not detectable" else {status})
    if status == "error":
        assert reason in record["error"]["cause"]
        # The mask and the registration are shown in the report and in the folder; not of a scan
        # in which no brain is found.
        shown = {name.rpartition("_desc-")[2] for name in record["outputs"]}
        assert shown == ({"brainmask_T1w.png", "norm_T1w.png"} if head != "CT" else set())
        assert all((out / name).is_file() for name in record["outputs"])
        page = (out / f"sub-{label_of(head)}.html").read_text()
        assert page.count("data:image/") >= len(shown)
    elif status == "warn":
        assert any(reason in found for found in record["reasons"])
    else:
        # No metric tells it from the head as it was.
        metrics, plain = record["metrics"], record_of(out, "plain")["metrics"]
        assert metrics["template_ncc"] == pytest.approx(plain["template_ncc"], abs=0.01)
        determinant = plain["affine_determinant"]
        assert metrics["affine_determinant"] == pytest.approx(determinant, rel=0.02)
