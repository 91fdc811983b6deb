"""Known truth: reference scans under made-up acquisitions, harmonized, against their originals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from bids_harmony.anat.brain import dice
from bids_harmony.evaluation.statistics import drawn_persons
from bids_harmony.models.mapnetwork import MapNetwork, SiteMap
from bids_harmony.models.slices import Box
from bids_harmony.qc.guard import TISSUES, measure, tissue_limits, tissue_ml
from bids_harmony.sites.code import Appearance, site_code
from bids_harmony.sites.descriptors import describe, vector
from bids_harmony.training.acquisition import Acquisition, apply

#: Kinds of change, and the attributes of :class:`Acquisition` that make them.
KINDS = {
    "all": ("tone", "deep_grey", "bias", "blur", "sharpen", "noise", "rim"),
    "all but blur": ("tone", "deep_grey", "bias", "noise", "rim"),
    "intensity mapping": ("tone",),
    "deep grey": ("deep_grey",),
    "bias field": ("bias",),
    "sharpness": ("blur", "sharpen"),
    "noise": ("noise",),
    "brain mask": ("rim",),
}
#: Scans that a site's code is inferred from, all of other persons.
GROUP = 8
N_BOOTSTRAP = 1000
FIGURES = (
    "distance_raw", "distance_harmonized", "dice_raw", "dice_harmonized",
    "ventricle_raw", "ventricle_harmonized",
)  # fmt: skip


class Scan(NamedTuple):
    """A preprocessed scan on the template grid."""

    volume: np.ndarray
    """Scaled; background 0."""
    brain_mask: np.ndarray
    """Boolean mask of the whole brain, with the CSF at its surface."""
    age: float
    person: str


#: Infer maps by name from scans of one site: each takes one of its scans and returns it
#: harmonized.
Infer = Callable[[Sequence[Scan]], Mapping[str, Callable[[Scan], np.ndarray]]]


def calibrated_maps(
    appearance: Appearance, zoom_mm: float, networks: Mapping[str, MapNetwork | None], box: Box
) -> Infer:
    """Infer a site's maps, with these networks, from scans whose ages are known."""

    def infer(scans: Sequence[Scan]) -> dict[str, Callable[[Scan], np.ndarray]]:
        values = [vector(describe(s.volume, s.brain_mask, zoom_mm)) for s in scans]
        ages = np.array([s.age for s in scans], float)
        code = site_code(np.array(values), ages, [s.person for s in scans], appearance)
        return {
            name: partial(_mapped, SiteMap.of(code, appearance, network, box))
            for name, network in networks.items()
        }

    return infer


def _mapped(site_map: SiteMap, scan: Scan) -> np.ndarray:
    return site_map(scan.volume)


def known_truth(
    scans: Sequence[Scan],
    infer: Infer,
    affine: np.ndarray,
    deep_grey: np.ndarray,
    *,
    kinds: Sequence[str] = ("all",),
    sites: int = 10,
    per_site: int = 4,
    strength: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Harmonize reference scans under made-up acquisitions, and compare with the originals.

    Parameters
    ----------
    scans : sequence of Scan
        Of the reference site, which neither map nor acquisitions were fitted to.
    infer : callable
        The maps under test.
    affine : numpy.ndarray
        4 x 4 affine of the template grid.
    deep_grey : numpy.ndarray
        :func:`bids_harmony.anat.template.deep_grey`.
    kinds : sequence of str
        Of :data:`KINDS`: the same acquisitions, with all of their effects or with some alone.
    sites : int
        Acquisitions.
    per_site : int
        Scans that are harmonized at each, by maps inferred from :data:`GROUP` other persons'.
    strength : float
        Of the acquisitions; at 1 they differ as real sites do.
    seed : int
        Random seed.

    Returns
    -------
    pandas.DataFrame
        One row per scan and map: ``map``, ``kind``, ``site``, ``person``; mean absolute
        ``distance_raw`` and ``distance_harmonized`` to the original inside the mask;
        ``dice_raw`` and ``dice_harmonized``, the least of CSF, grey and white matter, and
        ``ventricle_raw`` and ``ventricle_harmonized``, volume relative to the original's, where
        tissues are told apart by each volume's own tissue means; and what
        :func:`bids_harmony.qc.guard.measure` finds between original and harmonized.

    Raises
    ------
    ValueError
        When there are too few persons.
    """
    rng, rows = np.random.default_rng(seed), []
    by_person = {scan.person: i for i, scan in enumerate(scans)}
    if len(by_person) < GROUP + per_site:
        raise ValueError(f"Known truth takes {GROUP + per_site} persons, not {len(by_person)}.")
    weight = torch.from_numpy(deep_grey)[None, None]
    for site in range(sites):
        generator = torch.Generator().manual_seed(seed * 1000 + site)
        acquisition = Acquisition.draw(generator, strength)
        drawn = rng.choice(sorted(by_person), GROUP + per_site, replace=False)
        chosen = [scans[by_person[str(person)]] for person in drawn]
        for kind in kinds:
            only = acquisition.only(*KINDS[kind])
            if only == Acquisition():
                continue
            acquired = [_acquired(scan, only, generator, weight) for scan in chosen]
            for name, harmonize in infer(acquired[:GROUP]).items():
                for scan, raw in zip(chosen[GROUP:], acquired[GROUP:], strict=True):
                    row = _compare(scan.volume, raw.volume, harmonize(raw), affine)
                    about = {"map": name, "kind": kind, "site": site, "person": scan.person}
                    rows.append(about | row)
    return pd.DataFrame(rows)


def summarize(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Summarize rows of :func:`known_truth`, with 95 % bootstrap intervals over persons.

    Returns
    -------
    pandas.DataFrame
        For each kind of change and ``figure``: ``value``, ``low``, ``high``, ``n`` scans and
        ``persons``. ``removed`` is the share of the distance that harmonization removed;
        ``ventricle_*`` the mean size of the volume's relative error.
    """
    out = []
    for kind, part in rows.groupby("kind", sort=False):
        values = part[list(FIGURES)].copy()
        for name in FIGURES[-2:]:
            values[name] = (values[name] - 1).abs()
        draws = drawn_persons(part["person"].to_numpy(), N_BOOTSTRAP, np.random.default_rng(seed))
        table = values.to_numpy()
        means = np.vstack([table.mean(axis=0), *(table[draw].mean(axis=0) for draw in draws)])
        means = np.column_stack([means, 1 - means[:, 1] / means[:, 0]])
        ends = np.percentile(means[1:], (2.5, 97.5), axis=0)
        for name, value, low, high in zip([*FIGURES, "removed"], means[0], *ends, strict=True):
            out.append(
                {"kind": kind, "figure": name, "value": value, "low": low, "high": high,
                 "n": len(part), "persons": part["person"].nunique()}
            )  # fmt: skip
    return pd.DataFrame(out)


def _acquired(
    scan: Scan, acquisition: Acquisition, generator: torch.Generator, deep_grey: torch.Tensor
) -> Scan:
    volume = torch.from_numpy(scan.volume)[None, None]
    acquired = apply(acquisition, volume, volume > 0, generator, deep_grey)
    new, mask = (x[0, 0].numpy() for x in acquired)
    # What the mask has lost at the surface, the brain mask has lost.
    brain = scan.brain_mask & ~((scan.volume > 0) & ~mask) | mask
    return scan._replace(volume=new, brain_mask=brain)


def _compare(
    original: np.ndarray, raw: np.ndarray, harmonized: np.ndarray, affine: np.ndarray
) -> dict[str, float | None]:
    """Compare a scan before and after with the original, where all have brain."""
    mask = (original > 0) & (raw > 0)
    pairs = [(v, tissue_limits(v, mask, affine)) for v in (original, raw, harmonized)]
    labels = [np.digitize(v, own[:2]) for v, own in pairs]
    ventricles = [tissue_ml(v, mask, affine, own)[TISSUES.index("ventricle")] for v, own in pairs]
    row: dict[str, float | None] = {}
    for i, (kind, volume) in enumerate((("raw", raw), ("harmonized", harmonized)), 1):
        row[f"distance_{kind}"] = float(np.abs(volume - original)[mask].mean(dtype=np.float64))
        row[f"dice_{kind}"] = min(
            dice((labels[0] == k) & mask, (labels[i] == k) & mask) for k in range(3)
        )
        row[f"ventricle_{kind}"] = ventricles[i] / max(ventricles[0], 1.0)
    return row | measure(original, harmonized, mask, affine)
