"""What becomes of scans that are no usual head, and what the software cannot see."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import pytest
from command_line import harmony, label_of, new_dataset, place, record_of
from wrong_heads import wrong_heads

pytestmark = pytest.mark.slow
#: What becomes of each head: its status, and the reason.
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
