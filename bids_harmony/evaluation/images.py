"""What each way of preparing scans does to the images: looks, anatomy, travelling heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

from bids_harmony.console import counted_off
from bids_harmony.evaluation.fit import Prepared, Study
from bids_harmony.evaluation.prepare import FROM_SCALED, SCALED
from bids_harmony.evaluation.units import Unit
from bids_harmony.qc.guard import TISSUES, measure
from bids_harmony.qc.metrics import edges_and_noise
from bids_harmony.training.data import TrainingSet

#: Volumes that biology is looked for in.
ANATOMY = tuple(f"{tissue}_ml" for tissue in TISSUES)
#: Brightness, contrast, noise and sharpness, by which a classifier is to tell sites apart.
FEATURES = (*(f"quantile_{q}" for q in (5, 25, 50, 75, 95)), "noise", "sharpness")
QUANTILES = np.linspace(0.01, 0.99, 99)
#: Images are compared on this range: their own 99.5th percentile would differ between pairs.
PAIR_RANGE = 1.5


def measure_scans(study: Study, unit: Unit, prepared: Prepared) -> list[dict[str, Any]]:
    """Measure every test scan in the ways that keep the contract's scale.

    Returns
    -------
    list of dict
        One row per scan and way: ``seed``, ``fold``, ``scan``, ``person``, ``site``, ``age``,
        ``way``, one value of each of :data:`FEATURES` and of :data:`ANATOMY` (tissue limits follow
        an intensity mapping, as the guard's do), the guard's measures, and ``quantiles`` (4, 99).
    """
    data, grey = study.data, study.train.contract.grey
    zoom = abs(float(data.affine[0, 0]))
    rows = []
    test = prepared.test[SCALED]
    for scan in counted_off(map(int, test), len(test), "measuring", study.say):
        before, mask = data.volume(scan)
        for way in (way for way in FROM_SCALED if scan in prepared.test.get(way, ())):
            after = before if way == SCALED else prepared.sets[way].volume(scan)[0]
            changes = measure(before, after, mask, data.affine)
            rows.append(
                {
                    "seed": unit.seed,
                    "fold": unit.fold,
                    "scan": scan,
                    "person": str(data.persons[scan]),
                    "site": str(data.sites[scan]),
                    "age": float(data.ages[scan]),
                    "way": way,
                    **look_features(after, mask, zoom, grey),
                    **{name: changes[f"harmonized_{name}"] for name in ANATOMY},
                    **{k: v for k, v in changes.items() if not k.endswith("_ml")},
                    "quantiles": tissue_quantiles(after, mask, grey),
                }
            )
    return rows


def measure_pairs(study: Study, unit: Unit, prepared: Prepared) -> list[dict[str, Any]]:
    """Compare test scans of a person at another site with those at the reference.

    The reference's scan is as preprocessed in every way; the other is prepared. Where a person
    was scanned twice at the reference, the two scans give the floor: ``way`` is ``rescan``.

    Returns
    -------
    list of dict
        One row per pair and way: ``seed``, ``person``, ``site``, ``way``, ``mae``, ``psnr``
        and ``ssim`` inside both masks.
    """
    data, reference = study.data, unit.train_sites[0]
    rows = []
    test = prepared.test[SCALED]
    for person in np.unique(data.persons[test]):
        scans = [int(i) for i in test if data.persons[i] == person]
        at_home = [i for i in scans if data.sites[i] == reference]
        if not at_home:
            continue
        wanted = at_home[0]
        pairs = [(i, "rescan", data) for i in at_home[1:]]
        pairs += [
            (i, way, prepared.sets[way])
            for i in scans
            if data.sites[i] != reference
            for way in FROM_SCALED
            if i in prepared.test.get(way, ())
        ]
        for scan, way, prepared_data in pairs:
            rows.append(
                {
                    "seed": unit.seed,
                    "person": person,
                    "site": str(data.sites[scan]),
                    "way": way,
                    **compare_images(prepared_data, scan, data, wanted),
                }
            )
    return rows


def compare_images(
    data: TrainingSet, scan: int, at_reference: TrainingSet, wanted: int
) -> dict[str, float]:
    """Mean absolute difference, PSNR (dB) and SSIM of two scans, inside both masks."""
    (a, mask_a), (b, mask_b) = data.volume(scan), at_reference.volume(wanted)
    mask = mask_a & mask_b
    difference = (a - b)[mask].astype(np.float64)
    alike = structural_similarity(a, b, data_range=PAIR_RANGE, full=True)[1]  # type: ignore[no-untyped-call]
    return {
        "mae": float(np.abs(difference).mean()),
        "psnr": float(10 * np.log10(PAIR_RANGE**2 / max((difference**2).mean(), 1e-12))),
        "ssim": float(alike[mask].mean()),
    }


def look_features(
    volume: np.ndarray, mask: np.ndarray, zoom_mm: float, grey: float
) -> dict[str, float]:
    """Measure :data:`FEATURES` of a normalized volume; what cannot be measured is 0."""
    edges = edges_and_noise(volume, mask, (zoom_mm,) * 3, grey, 1.0)
    found = [*np.percentile(volume[mask], (5, 25, 50, 75, 95))]
    found += [edges["noise"] or 0.0, edges["sharpness"] or 0.0]
    return {name: float(value) for name, value in zip(FEATURES, found, strict=True)}


def tissue_quantiles(volume: np.ndarray, mask: np.ndarray, grey: float) -> np.ndarray:
    """Quantiles of the brain's intensities, as a whole and in each tissue: (4, 99)."""
    values = volume[mask]
    parts = np.digitize(values, (grey / 2, (1 + grey) / 2))
    groups = [values, *(values[parts == k] for k in range(3))]
    return np.array([np.quantile(g, QUANTILES) if g.size else 0 * QUANTILES for g in groups])
