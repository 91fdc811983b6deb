"""ComBat voxel by voxel, the usual statistical comparator (Johnson 2007; Fortin 2017).

Fitted on the training scans of all sites by neuroCombat, without covariates: those of a tested
scan are what is to be predicted. A scan of a site is then taken from the site's distribution to
the reference's, so that reference scans, and with them the predictors, stay as they are.
"""

from __future__ import annotations

import contextlib
import io
from importlib.util import find_spec

import numpy as np
import pandas as pd

from bids_harmony.evaluation.prepare import Change
from bids_harmony.training.data import TrainingSet

#: Scans of a site that are fitted on at most, as all voxels of all of them are in memory; and the
#: fewest persons, below which ComBat's spread of a site means nothing.
MOST, LEAST = 60, 3
#: Share of the scans whose brain must hold a voxel.
COMMON = 0.5


def available() -> bool:
    """Whether neuroCombat is installed (``pip install bids_harmony[evaluate]``)."""
    return find_spec("neuroCombat") is not None


def sites_to_fit(data: TrainingSet, among: np.ndarray) -> list[str]:
    """List the sites with enough persons among the given scans for ComBat to be fitted on."""
    sites = np.unique(data.sites[among]).tolist()
    return [
        site for site in sites
        if len(np.unique(data.persons[data.site_scans(site, among)])) >= LEAST
    ]  # fmt: skip


def combat(data: TrainingSet, among: np.ndarray, reference: str, seed: int) -> Change | None:
    """Fit ComBat.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    among : numpy.ndarray
        Numbers of the scans to fit on.
    reference : str
        Site whose distribution the others are given.
    seed : int
        Of the choice of scans where there are many.

    Returns
    -------
    callable or None
        See :data:`bids_harmony.evaluation.prepare.Change`; scans of sites that were not fitted,
        and voxels outside the common brain, stay as they are. None where neuroCombat is missing
        or no site besides the reference has enough persons, or where the fit fails.
    """
    rng = np.random.default_rng(seed)
    by_site = {
        site: np.sort(rng.permutation(data.site_scans(site, among))[:MOST])
        for site in sites_to_fit(data, among)
    }
    if not available() or reference not in by_site or len(by_site) < 2:
        return None
    scans = np.concatenate(list(by_site.values()))
    shown = np.zeros(data.shape, np.int32)
    for scan in scans:
        shown += data.volume(int(scan))[1]
    common = shown >= COMMON * len(scans)
    values = np.stack([data.volume(int(scan))[0][common] for scan in scans], axis=1)
    varied = np.ptp(values, axis=1) > 0
    common[common], values = varied, values[varied]
    from neuroCombat import neuroCombat

    labels = np.repeat(list(by_site), [len(part) for part in by_site.values()])
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            fitted = neuroCombat(values, pd.DataFrame({"site": labels}), "site")["estimates"]
    except (ValueError, ArithmeticError, np.linalg.LinAlgError):
        return None
    sites = [str(site) for site in fitted["batches"]]
    mean, spread = fitted["stand.mean"][:, 0], np.sqrt(fitted["var.pooled"][:, 0])
    shift, scale = fitted["gamma.star"], np.sqrt(fitted["delta.star"])
    home = sites.index(reference)
    if not all(np.isfinite(part).all() for part in (mean, spread, shift, scale)):
        return None

    def change(scan: int, volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
        site = str(data.sites[scan])
        if site not in sites or site == reference:
            return volume
        own = sites.index(site)
        standard = (volume[common] - mean) / spread
        standard = (standard - shift[own]) / scale[own] * scale[home] + shift[home]
        out = volume.copy()
        out[common] = np.clip(standard * spread + mean, 1e-3, 2.0)
        return np.where(mask, out, 0).astype(np.float32)

    return change
