"""What becomes of scans that are no usual head, and what the software cannot see."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import pytest
from command import harmony, label_of, new_dataset, place, record_of
from fault_table import ERROR, FAULTS, FLAG, UNSEEN
from wrong_heads import wrong_heads

pytestmark = pytest.mark.slow
HEADS = FAULTS["Heads"]


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


@pytest.mark.parametrize("row", HEADS)
def test_wrong_heads_end_as_the_table_says(out: Path, row: str) -> None:
    record, fault = record_of(out, label_of(row)), HEADS[row]
    if fault.then == ERROR:
        assert record["status"] == "error"
        assert fault.says in record["error"]["cause"]
        # The mask and the registration show why, in the report and for whoever opens the folder.
        shown = {name.rpartition("_desc-")[2] for name in record["outputs"]}
        assert shown == {"brainmask_T1w.png", "norm_T1w.png"}
        assert all((out / name).is_file() for name in record["outputs"])
        assert (out / f"sub-{label_of(row)}.html").read_text().count("data:image/") >= 2
    elif fault.then == FLAG:
        assert record["status"] == "warn"
        assert any(fault.says in reason for reason in record["reasons"])
    else:
        assert fault.then == UNSEEN
        plain = record_of(out, "plain")
        assert record["status"] != "error"
        # Nothing that was measured tells it from the head as it was.
        assert record["metrics"]["template_ncc"] == pytest.approx(
            plain["metrics"]["template_ncc"], abs=0.01
        )
        assert record["metrics"]["affine_determinant"] == pytest.approx(
            plain["metrics"]["affine_determinant"], rel=0.02
        )
