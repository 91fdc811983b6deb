"""The package's four functions, as a notebook uses them."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import run
from random_bundle import made_calibration, write_random_bundle

from bids_harmony.models import apply as api
from bids_harmony.models.bundle import Bundle

AFFINE = np.array([[2.0, 0, 0, -98], [0, 2, 0, -134], [0, 0, 2, -72], [0, 0, 0, 1]])
SHAPE = (99, 117, 95)


def image(grey: float = 0.6) -> nib.Nifti1Image:
    """Return a head whose intensities fall from the middle to the surface."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    radius = np.sqrt((((grid.T - (49, 58, 42)) / (34, 42, 36)) ** 2).sum(axis=-1)).T
    volume = np.where(radius < 1, 1 - (1 - grey) * radius**4, 0)
    return nib.Nifti1Image(volume.astype(np.float32), AFFINE)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_random_bundle(tmp_path_factory.mktemp("models") / "bundle")


def test_the_example_runs_as_it_is_documented(bundle: Bundle, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.nii.gz" for i in range(3)]
    for i, path in enumerate(paths):
        nib.save(image(0.5 + 0.05 * i), path)
    code = f"""
import doctest, os, pathlib, sys
os.chdir({str(tmp_path)!r})
import bids_harmony
assert not {{"torch", "nibabel", "nipype"}} & set(sys.modules)
from bids_harmony.models import apply as api
from bids_harmony.models import bundle
bundle.DEFAULT_BUNDLE = pathlib.Path({str(bundle.path)!r})  # a small one
names = dict.fromkeys(bids_harmony.__all__)
assert all(callable(getattr(bids_harmony, name)) for name in names)
found = doctest.testmod(api, extraglobs={{"paths": {[str(p) for p in paths]}}})
sys.exit(found.failed or found.attempted < 8)
"""
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    written = nib.load(tmp_path / "harmonized.nii.gz")
    assert written.shape == SHAPE


def test_a_name_that_the_package_has_not_is_no_attribute() -> None:
    import bids_harmony

    with pytest.raises(AttributeError, match="harmonise"):
        _ = bids_harmony.harmonise


def test_a_site_is_calibrated_from_images_and_brought_back(bundle: Bundle) -> None:
    darker = [image(grey) for grey in (0.48, 0.5, 0.52)]
    calibration = api.calibrate(darker, bundle, ages=[30, 50, 70], persons=["a", "b", "b"])
    assert (calibration.site, calibration.code.n, calibration.n_scans) == ("site", 2, 3)
    assert calibration.ages["source"] == "known"
    assert "2 persons" in calibration.warnings[0]
    known = [img.get_fdata() > 0 for img in darker]
    masks = [nib.Nifti1Image(inside.astype(np.uint8), AFFINE) for inside in known]
    again = api.calibrate(darker, bundle, masks=masks, ages=[30, 50, 70], persons=["a", "b", "b"])
    assert again.sha256 == calibration.sha256
    unknown = api.calibrate(darker[:1], bundle, site="B")
    assert (unknown.site, unknown.ages["source"]) == ("B", "estimated")


def test_a_harmonized_image_is_masked_and_follows_the_calibration(bundle: Bundle) -> None:
    raw = image()
    volume = np.asarray(raw.dataobj)
    calibration = made_calibration(bundle, -0.05)
    found = api.harmonize(raw, bundle, calibration)
    first = np.asarray(found.dataobj)
    assert (first.dtype, first.shape) == (np.float32, SHAPE)
    assert np.array_equal(found.affine, AFFINE)
    assert not first[volume == 0].any()
    # Well inside the range of the descriptors, all is brighter by what the site is darker.
    middle = (volume > 0.62) & (volume < 0.9)
    share = 16 / (16 + 1 / 8)  # shrunk for eight persons
    assert np.allclose(first[middle] - volume[middle], 0.05 * share, atol=2e-3)
    # The curve rises: what was brighter stays brighter.
    inside = volume > 0
    assert (np.diff(first[inside][np.argsort(volume[inside])]) >= 0).all()
    again = api.harmonize(raw, bundle, calibration)
    assert np.array_equal(first, np.asarray(again.dataobj))


def test_predictions_have_the_promised_entries(bundle: Bundle) -> None:
    raw = image()
    harmonized = api.harmonize(raw, bundle, made_calibration(bundle))
    result = api.predict(raw, bundle, harmonized=harmonized, age=30.0, site="SRC")
    age = result["brain_age"]
    assert age["harmonized"] == pytest.approx(np.median(age["per_slice"]["harmonized"]), abs=0.011)
    assert age["gap_raw"] == pytest.approx(age["raw"] - 30, abs=0.011)
    assert age["interval_90"] == pytest.approx([age["harmonized"] - 12, age["harmonized"] + 12])
    assert age["age_in_training_range"] is True
    z = age["per_slice"]["z_mm"]
    assert (z[0], z[-1], len(z)) == (-28.0, 52.0, 41)
    probability = result["schizophrenia_probability"]
    assert 0 < probability["raw"] < 1
    assert probability["training_data"] == "simulated"
    assert result["bundle"] == bundle.identity()
    assert result["in_training"] == {"site": True, "reference_site": False}
    assert result == api.predict(raw, bundle, harmonized=harmonized, age=30.0, site="SRC")


def test_predictions_without_harmonization_or_age(bundle: Bundle) -> None:
    age = api.predict(image(), bundle)["brain_age"]
    assert age["harmonized"] is None
    assert age["gap_raw"] is None
    assert age["interval_90"] == age["interval_90_raw"] != [None, None]
