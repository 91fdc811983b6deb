"""The recipe that segments scans before and after harmonization."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from documented import ROOT

from bids_harmony.anat.affine import write_affine

sys.path.insert(0, str(ROOT / "recipes"))
import segmentation

sys.path.pop(0)

SHAPE, ZOOM = (28, 30, 24), 4.0
AFFINE = np.diag([ZOOM, ZOOM, ZOOM, 1.0])
AFFINE[:3, 3] = [-ZOOM * n / 2 for n in SHAPE]
#: Scans lie a whole number of voxels from the template.
AWAY = np.eye(4)
AWAY[:3, 3] = [8, -4, 12]
KNOWN = ["ventricles", "white matter", "cortex"]
#: In the manual list and in DLMUSE's: background, these structures.
CODES = {"manual": (0, 51, 44, 100), "dlmuse": (0, 52, 95, 207)}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WIDTHS": (8, 16), "MULTIPLE": 2, "LEARNING_RATE": 0.02}.items():
        monkeypatch.setattr(segmentation, name, value)
    monkeypatch.setattr(segmentation, "N_BOOTSTRAP", 50)


def ball(size: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Intensities of a made-up brain, and 1 to 3 from its centre outwards."""
    mm = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")) * ZOOM
    radius = np.linalg.norm(mm + AFFINE[:3, 3][:, None, None, None], axis=0) / size
    shells = np.array([0, 3, 2, 1])[sum((radius < r).astype(int) for r in (20, 33, 44))]
    noise = 0.02 * np.random.default_rng(int(100 * size)).standard_normal(SHAPE)
    volume = np.array([0.0, 0.2, 1.0, 0.55])[shells] + noise
    return np.where(shells > 0, np.clip(volume, 0.001, 2), 0).astype(np.float32), shells


def labelled(folder: Path, desc: str, *sizes: float, images: tuple[str, ...]) -> tuple[Path, Path]:
    """Write a dataset of balls with labels, and what a run makes of it."""
    dataset, output = folder / desc, folder / f"{desc}-out"
    for n, size in enumerate(sizes, 1):
        volume, shells = ball(size)
        codes = np.array(CODES[desc], np.int16)[shells]
        codes[0, 0, 0] = 62  # a code of no structure
        labels = dataset / f"derivatives/labels/sub-{n}/anat"
        anat = output / f"sub-{n}/anat"
        for at in (labels, anat):
            at.mkdir(parents=True)
        nib.save(
            nib.Nifti1Image(codes, AWAY @ AFFINE), labels / f"sub-{n}_desc-{desc}_dseg.nii.gz"
        )
        write_affine(AWAY, anat / f"sub-{n}_from-T1w_to-T_mode-image_xfm.txt")
        for image in images:
            path = anat / f"sub-{n}_space-T_res-2_desc-{image}_T1w.nii.gz"
            nib.save(nib.Nifti1Image(volume, AFFINE), path)
    table = pd.DataFrame({"participant_id": [f"sub-{n + 1}" for n in range(len(sizes))]})
    table["person"] = table["participant_id"].replace({"sub-2": "twice", "sub-3": "twice"})
    table.to_csv(dataset / "participants.tsv", sep="\t", index=False)
    return dataset, output


@pytest.mark.parametrize("desc", CODES)
def test_labels_of_both_lists_come_to_the_template_and_no_person_is_learnt_and_held_out(
    tmp_path: Path, desc: str
) -> None:
    dataset, output = labelled(tmp_path, desc, *[1.0] * 7, images=("preproc",))
    next(output.glob("sub-7/anat/*desc-preproc*")).unlink()
    scans = segmentation.find_labelled(dataset, output)
    assert [scan.name for scan in scans] == [f"sub-{n}" for n in range(1, 7)]
    wanted = np.array([0, *(1 + segmentation.NAMES.index(name) for name in KNOWN)])[ball()[1]]
    np.testing.assert_array_equal(scans[0].labels(), wanted)
    for seed in range(5):
        learn, out = segmentation.hold_out(scans, seed)
        assert {scan.name for scan in (*learn, *out)} == {scan.name for scan in scans}
        assert out
        assert not {s.person for s in learn} & {s.person for s in out}
    with pytest.raises(SystemExit, match="Run the participant level first"):
        segmentation.find_labelled(dataset, tmp_path / "nowhere")


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # structures that no ball has
def test_a_network_learns_the_structures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [0.9, 0.95, 1, 1.05, 1.1]
    reference = labelled(tmp_path, "dlmuse", *sizes, images=("preproc",))
    site = labelled(tmp_path, "manual", 1.02, 0.97, images=("preproc", "harmonized"))
    given = map(str, (*reference, *site, tmp_path / "work"))
    monkeypatch.setattr(sys, "argv", ["segmentation.py", *given, "--steps", "100"])
    assert segmentation.main() == 0
    assert "training on 4 scans, 1 held out" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "work" / "dice_table.tsv", sep="\t")
    known = table[table["structure"].isin(KNOWN)]
    assert set(known["site"]) == {"dlmuse, held out", "manual"}
    assert (known["dice"] > 0.85).all()
    # Harmonized images are the raw ones here.
    assert (known.loc[known["image"] == "harmonized", "gain"] == 0).all()


def test_dice_of_known_labels_and_gains_of_the_same_scans_with_intervals_over_persons() -> None:
    found, truth = np.zeros((2, 4, 4), np.uint8)
    truth[:2], found[1:3] = 1, 1
    truth[3], found[3] = 9, 9
    values = segmentation.dice(found, truth)
    assert (values["ventricles"], values["white matter"]) == (0.5, 1)
    assert np.isnan(values["thalamus"])

    names = [*segmentation.NAMES, "mean"]
    rows = [
        {"site": "S", "scan": scan, "person": person, "image": image}
        | dict.fromkeys(names, raw + gain)
        for scan, (person, raw) in enumerate([("a", 0.6), ("a", 0.6), ("b", 0.9)])
        for image, gain in (("raw", 0.0), ("harmonized", 0.02))
    ]
    # Nobody harmonized the last scan.
    table = segmentation.dice_table(pd.DataFrame(rows[:-1])).set_index(["image", "structure"])
    raw, harmonized = (table.loc[(image, "mean")] for image in ("raw", "harmonized"))
    assert (raw["n_scans"], raw["n_persons"], harmonized["n_scans"]) == (3, 2, 2)
    # Draws have one person twice or both: no mean but these.
    assert raw[["dice", "dice_low", "dice_high"]].tolist() == pytest.approx([0.7, 0.6, 0.9])
    assert harmonized[["gain", "gain_low", "gain_high"]].tolist() == pytest.approx([0.02] * 3)
    assert np.isnan(raw["gain"])
