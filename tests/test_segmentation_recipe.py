"""The recipe that segments scans before and after harmonization."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from bids_harmony.anat.affine import write_affine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
import segmentation

sys.path.pop(0)

SHAPE, ZOOM = (28, 30, 24), 4.0
AFFINE = np.diag([ZOOM, ZOOM, ZOOM, 1.0])
AFFINE[:3, 3] = [-ZOOM * n / 2 for n in SHAPE]
#: Scans lie this far (mm) from the template, a whole number of voxels.
AWAY = np.array([8.0, -4.0, 12.0])
#: In the manual list and in DLMUSE's: the ventricles, white matter, cortex; a code of neither.
CODES = {"manual": (51, 44, 100), "dlmuse": (52, 95, 207)}
RADII = (20.0, 33.0, 44.0)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(segmentation, "WIDTHS", (8, 16))
    monkeypatch.setattr(segmentation, "MULTIPLE", 2)
    monkeypatch.setattr(segmentation, "LEARNING_RATE", 0.02)
    monkeypatch.setattr(segmentation, "N_BOOTSTRAP", 50)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def ball(size: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Intensities of a made-up brain, and 1 to 3 from its centre outwards."""
    mm = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")) * ZOOM
    radius = np.linalg.norm(mm + AFFINE[:3, 3][:, None, None, None], axis=0) / size
    layer = sum((radius < r).astype(int) for r in RADII)
    shells = np.array([0, 3, 2, 1])[layer]
    noise = 0.02 * np.random.default_rng(int(100 * size)).standard_normal(SHAPE)
    volume = np.array([0.0, 0.2, 1.0, 0.55])[shells] + noise
    return np.where(shells > 0, np.clip(volume, 0.001, 2), 0).astype(np.float32), shells


def write_dataset(
    folder: Path, desc: str, sizes: dict[str, float], *, harmonized: bool = False
) -> tuple[Path, Path]:
    """Write a dataset of balls of these sizes with labels, and what a run makes of it."""
    dataset, output = folder / desc, folder / f"{desc}-out"
    away = np.eye(4)
    away[:3, 3] = AWAY
    for name, size in sizes.items():
        volume, shells = ball(size)
        codes = np.array([0, *CODES[desc]], np.int16)[shells]
        codes[0, 0, 0] = 62  # a code of no structure
        labels = dataset / "derivatives" / "labels" / name / "anat"
        anat = output / name / "anat"
        for at in (labels, anat):
            at.mkdir(parents=True)
        nib.save(nib.Nifti1Image(codes, away @ AFFINE), labels / f"{name}_desc-{desc}_dseg.nii.gz")
        write_affine(away, anat / f"{name}_from-T1w_to-T_mode-image_xfm.txt")
        for way in ("preproc", *(("harmonized",) if harmonized else ())):
            image = nib.Nifti1Image(volume, AFFINE)
            nib.save(image, anat / f"{name}_space-T_res-2_desc-{way}_T1w.nii.gz")
    table = pd.DataFrame({"participant_id": list(sizes)})
    table["person"] = table["participant_id"].replace({"sub-02": "twice", "sub-03": "twice"})
    table.to_csv(dataset / "participants.tsv", sep="\t", index=False)
    return dataset, output


@pytest.mark.parametrize("desc", CODES)
def test_labels_of_both_lists_come_to_the_template_as_the_same_structures(
    tmp_path: Path, desc: str
) -> None:
    (scan,) = segmentation.find_labelled(*write_dataset(tmp_path, desc, {"sub-01": 1.0}))
    found = scan.labels()
    shells = ball()[1]
    names = ("ventricles", "white matter", "cortex")
    wanted = np.array([0, *(1 + segmentation.NAMES.index(name) for name in names)])[shells]
    np.testing.assert_array_equal(found, wanted)


def test_no_person_is_both_learnt_and_held_out(tmp_path: Path) -> None:
    sizes = {f"sub-0{i}": 1.0 for i in range(1, 7)}
    scans = segmentation.find_labelled(*write_dataset(tmp_path, "manual", sizes))
    for seed in range(5):
        learn, out = segmentation.hold_out(scans, seed)
        assert sorted([*learn, *out], key=lambda s: s.name) == scans
        assert out
        assert not {s.person for s in learn} & {s.person for s in out}


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # structures that no ball has
def test_a_network_learns_the_structures_and_sees_tone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {f"sub-0{i}": 0.85 + 0.05 * i for i in range(1, 6)}
    reference = write_dataset(tmp_path, "dlmuse", sizes)
    site = write_dataset(tmp_path, "manual", {"sub-01": 1.02, "sub-02": 0.97}, harmonized=True)
    work = tmp_path / "work"
    given = ["segmentation.py", *map(str, (*reference, *site, work)), "--steps", "100"]
    monkeypatch.setattr(sys, "argv", given)
    assert segmentation.main() == 0
    assert "training on 4 scans, 1 held out" in capsys.readouterr().out
    table = pd.read_csv(work / "dice_table.tsv", sep="\t")
    known = table[table["structure"].isin(["ventricles", "white matter", "cortex"])]
    assert set(known["site"]) == {"dlmuse, held out", "manual"}
    assert (known["dice"] > 0.85).all()
    # Harmonized images are the raw ones here.
    assert (known.loc[known["way"] == "harmonized", "gain"] == 0).all()

    # The second time the weights are there already.
    monkeypatch.setattr(segmentation, "train", None)
    assert segmentation.main() == 0
    assert "| manual, harmonized (2 scans, 2 persons) | gain |" in capsys.readouterr().out

    network = segmentation.load_network(next(work.glob("*.safetensors")))
    volume, shells = ball(1.02)
    before = segmentation.segment(network, volume, AFFINE)
    assert before.shape == SHAPE
    bright = np.where(shells == 3, 0.95, volume).astype(np.float32)
    changed = segmentation.segment(network, bright, AFFINE) != before
    assert changed.sum() > 0.2 * (shells == 3).sum()


def test_gains_are_of_the_same_scans_and_intervals_over_persons() -> None:
    names = [*segmentation.NAMES, "mean"]
    rows = []
    for scan, (person, raw) in enumerate([("a", 0.6), ("a", 0.6), ("b", 0.9)]):
        for way, gain in (("raw", 0.0), ("harmonized", 0.02)):
            key = {"site": "S", "scan": f"sub-{scan}", "person": person, "way": way}
            rows.append(key | dict.fromkeys(names, raw + gain))
    # Nobody harmonized the last scan.
    table = segmentation.dice_table(pd.DataFrame(rows[:-1])).set_index(["way", "structure"])
    raw, harmonized = (table.loc[(way, "mean")] for way in ("raw", "harmonized"))
    assert (raw["n_scans"], raw["n_persons"], harmonized["n_scans"]) == (3, 2, 2)
    assert raw["dice"] == pytest.approx(0.7)
    # Draws have one person twice or both: no mean but these.
    assert (raw["dice_low"], raw["dice_high"]) == pytest.approx((0.6, 0.9))
    assert harmonized[["gain", "gain_low", "gain_high"]].tolist() == pytest.approx([0.02] * 3)
    assert np.isnan(raw["gain"])
