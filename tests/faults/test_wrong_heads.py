"""Scans that are not an upright adult T1w head: which are recognized, and which cannot be."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import harmony, label_of, new_dataset, place, record_of
from scipy import ndimage

from bids_harmony.simulation.anatomy import Tissue, make_head
from bids_harmony.simulation.scanner import draw_scanner, scan_head

pytestmark = pytest.mark.slow
HOUNSFIELD = {"AIR": -1000, "BRAIN": 37, "CSF": 8, "BONE": 1000, "MARROW": 300, "FAT": -80}
#: Status of each head, and the reason.
HEADS = {
    "upside down": ("warn", "Centroid offset"),
    "flipped left-right": ("not detectable", ""),
    "T2w named T1w": ("error", "Correlation with the template"),
    "CT": ("error", "The brain mask has a volume of"),
    "tumour": ("warn", "Left-right asymmetry"),
}


def wrong_heads() -> dict[str, nib.Nifti1Image]:
    """Heads by name; ``plain`` is the one that most are made from."""
    head, tumour = (make_head(3, age=45, spacing=2, lesion=lesion) for lesion in (False, True))
    scanner = draw_scanner(1, 3, min_voxel_mm=2.0)
    plain = scan_head(head, scanner, (1,))[0]["t1w"]
    data, affine = plain.get_fdata(dtype=np.float32), plain.affine
    # Tissues in Hounsfield units.
    ct = np.full(head.labels.shape, float(HOUNSFIELD["AIR"]))
    for tissue in Tissue:
        ct[head.labels == tissue] = HOUNSFIELD.get(tissue.name, 40)
    ct = ndimage.gaussian_filter(ct, 0.5) + np.random.default_rng(0).normal(0, 8, ct.shape)
    found = {
        "plain": plain,
        "upside down": nib.Nifti1Image(data, np.diag([-1.0, 1, -1, 1]) @ affine),
        "flipped left-right": nib.Nifti1Image(data, np.diag([-1.0, 1, 1, 1]) @ affine),
        "T2w named T1w": scan_head(head, scanner, (1,), "wrong-contrast")[0]["t1w"],
        "CT": nib.Nifti1Image(ct.astype(np.float32), head.affine),
        "tumour": scan_head(tumour, scanner, (1,))[0]["t1w"],
    }
    for img in found.values():
        img.set_sform(img.affine, 1)
        img.set_qform(img.affine, 1)
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = new_dataset(tmp_path_factory.mktemp("wrong") / "bids")
    for row, img in wrong_heads().items():
        nib.save(img, place(root, label_of(row)))
    done = harmony(
        root, root.parent / "out", "participant", "-w", root.parent / "work", "--nprocs", 2
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return root.parent / "out"


@pytest.mark.parametrize("head", HEADS)
def test_wrong_heads_fail_or_are_flagged_where_that_can_be_seen(out: Path, head: str) -> None:
    record, (status, reason) = record_of(out, label_of(head)), HEADS[head]
    if status == "error":
        assert record["status"] == "error"
        assert reason in record["error"]["cause"]
        # The mask and the registration show why, in the report and for whoever opens the folder;
        # of a head in which no brain is found, there are none.
        shown = {name.rpartition("_desc-")[2] for name in record["outputs"]}
        drawn = {"brainmask_T1w.png", "norm_T1w.png"} if head != "CT" else set()
        assert shown == drawn
        assert all((out / name).is_file() for name in record["outputs"])
        page = (out / f"sub-{label_of(head)}.html").read_text()
        assert page.count("data:image/") >= len(drawn)
    elif status == "warn":
        assert record["status"] == "warn"
        assert any(reason in found for found in record["reasons"])
    else:
        plain = record_of(out, "plain")
        assert record["status"] != "error"
        # Nothing that was measured tells it from the head as it was.
        assert record["metrics"]["template_ncc"] == pytest.approx(
            plain["metrics"]["template_ncc"], abs=0.01
        )
        assert record["metrics"]["affine_determinant"] == pytest.approx(
            plain["metrics"]["affine_determinant"], rel=0.02
        )
