"""Figures of a map measured on simulated heads, and what the issue asks of them.

Every figure can miss its target: ``tests/test_simulated_truth.py`` shows for each a map that does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, stats
from torch import nn

from bids_harmony.contract import Contract
from bids_harmony.models.apply import map_volume
from bids_harmony.qc.harmonization import moved_limits, tissue_limits, ventricle_ml
from bids_harmony.qc.tissue import bias_terms, fit_tissues
from bids_harmony.simulation.head import make_head
from bids_harmony.simulation.scanner import contrast, draw_scanner
from bids_harmony.training.data import Box
from bids_harmony.training.evaluate import match_histogram

GREY = Contract.grey
TISSUES = ("fluid", "grey", "white")
#: Bootstrap draws, and the fewest heads they say anything about.
N_BOOTSTRAP, LEAST_DRAWN = 1000, 3
#: Changes are smoothed over this many voxels before structure is looked for in them.
SMOOTH = 2.0
#: Most that :func:`painted` may find where there is no brain. The issue gives no number; these
#: were set before anything was measured.
NO_BRAIN = {"change": 0.1, "structure": 0.1, "brain": 0.05}


@dataclass(frozen=True)
class Figure:
    """One figure beside what the issue asks for.

    Attributes
    ----------
    item : int
        Number in the issue's list of measures.
    what : str
        What was measured.
    value : float
        The figure.
    interval : tuple of float
        95 % bootstrap interval over heads; NaN with fewer than :data:`LEAST_DRAWN`.
    n : int
        Heads.
    low, high : float
        Target; infinite where there is none.
    """

    item: int
    what: str
    value: float
    interval: tuple[float, float]
    n: int
    low: float = -np.inf
    high: float = np.inf

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        aimed = np.isfinite(self.low) or np.isfinite(self.high)
        return bool(self.low <= self.value <= self.high) if aimed else None

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as JSON-ready values; what is not a number or infinite is None."""
        low, high = (None if np.isinf(v) else v for v in (self.low, self.high))
        value, *ends = (v if np.isfinite(v) else None for v in (self.value, *self.interval))
        return {"item": self.item, "what": self.what, "value": value, "interval_95": ends,
                "n": self.n, "low": low, "high": high, "met": self.met}  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """A travelling head at one site, before and after the map."""

    head: str
    site: str
    age: float
    raw: np.ndarray
    mapped: np.ndarray
    mask: np.ndarray
    affine: np.ndarray


def figure(
    item: int, what: str, rows: np.ndarray, measure: Callable[[np.ndarray], float],
    low: float = -np.inf, high: float = np.inf,
) -> Figure:  # fmt: skip
    """Measure rows, one per head, and draw heads again for an interval."""
    n = len(rows)
    low_end = high_end = np.nan
    if n >= LEAST_DRAWN:
        draws = np.random.default_rng(0).integers(n, size=(N_BOOTSTRAP, n))
        drawn = np.array([measure(rows[d]) for d in draws])
        if np.isfinite(drawn).any():
            low_end, high_end = np.nanpercentile(drawn, (2.5, 97.5))
    ends = (float(low_end), float(high_end))
    return Figure(item, what, float(measure(rows)), ends, n, low, high)


def segment(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Label fluid 0, grey matter 1 and white matter 2 by the image's own three classes.

    As segmentation programs do, so that a new tone is no new anatomy; 0 also outside the mask.
    """
    fit = fit_tissues(volume, mask)
    where = np.argwhere(mask)
    values = volume[mask] / np.exp(bias_terms(where, mask.shape) @ fit.field)
    sd = np.maximum(fit.sd, 1e-6)
    height = np.log(np.maximum(fit.fraction, 1e-9) / sd) - 0.5 * np.square(
        (values[:, None] - fit.mean) / sd
    )
    labels = np.zeros(mask.shape, np.uint8)
    # The widest class's tails must not take what is darker or brighter than all means.
    labels[mask] = np.select(
        [values <= fit.mean[0], values >= fit.mean[2]], [0, 2], height.argmax(axis=1)
    )
    return labels


def tissues(visit: Visit) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label tissues before and after, in three ways.

    By the guard's limits, which follow a change of tone; by the same limits before and after; and
    by each image's own classes, which move with tone and noise: noise of 0.005 makes ventricles
    up to 2 % larger by them.
    """
    limits = tissue_limits(GREY)
    moved = moved_limits(visit.raw[visit.mask], visit.mapped[visit.mask], GREY)
    before = np.digitize(visit.raw, limits)
    return {
        "same limits": (before, np.digitize(visit.mapped, limits)),
        "guard's limits": (before, np.digitize(visit.mapped, moved)),
        "own classes": (segment(visit.raw, visit.mask), segment(visit.mapped, visit.mask)),
    }


def dice(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> list[float]:
    """Overlap of each tissue in two label volumes, 0 to 1."""
    pairs = [((a == k) & mask, (b == k) & mask) for k in range(len(TISSUES))]
    return [float(2 * (x & y).sum() / max(x.sum() + y.sum(), 1)) for x, y in pairs]


def slope_ratio(rows: np.ndarray) -> float:
    """Slope on age of the volume after over that before; columns age, before, after."""
    ages = rows[:, 0] - rows[:, 0].mean()
    before, after = ages @ rows[:, 1], ages @ rows[:, 2]
    return float(after / before) if before else np.nan


def rank_correlation(rows: np.ndarray) -> float:
    """Spearman's correlation of the first two columns."""
    ranks = stats.rankdata(rows[:, :2], axis=0)
    return float(np.corrcoef(ranks.T)[0, 1]) if (np.ptp(ranks, axis=0) > 0).all() else np.nan


def painted(
    before: np.ndarray, after: np.ndarray, brain: np.ndarray, where: np.ndarray
) -> dict[str, float]:
    """Measure how much of a brain a map drew where there was none.

    Parameters
    ----------
    before, after : numpy.ndarray
        Volume before and after the map.
    brain : numpy.ndarray
        Mean brain of the reference on the same grid.
    where : numpy.ndarray
        Boolean mask of where to look.

    Returns
    -------
    dict
        ``change``: mean absolute change, white matter is 1. ``structure``: standard deviation of
        the smoothed change, relative to the smoothed brain's. ``brain``: how much of the mean
        brain's contrast the change holds (regression coefficient; 1 is a whole brain).
    """
    change = (after - before).astype(np.float64)
    smooth = [ndimage.gaussian_filter(v.astype(np.float64), SMOOTH) for v in (change, brain)]
    drawn, wanted = (v[where] - v[where].mean() for v in smooth)
    return {
        "change": float(np.abs(change[where]).mean()),
        "structure": float(drawn.std() / wanted.std()),
        "brain": float(abs(drawn @ wanted) / (wanted @ wanted)),
    }


def nothings(mask: np.ndarray, affine: np.ndarray, seed: int) -> dict[str, tuple[np.ndarray, ...]]:
    """Volumes that hold no brain: each a volume, the mask given to the map, and where to look."""
    noise = np.random.default_rng(seed).uniform(0, 1, mask.shape).astype(np.float32)
    head = make_head([seed, 9], age=40, spacing=2)
    signal = contrast(head, draw_scanner(seed, 1))
    signal[head.brain_mask] = 0
    to_head = np.linalg.inv(head.affine) @ affine
    shell, brain = (
        ndimage.affine_transform(
            v.astype(np.float32), to_head[:3, :3], to_head[:3, 3], mask.shape, order=1
        )
        for v in (signal, head.brain_mask)
    )
    hollow = brain > 0.99
    shell = np.where(hollow, 0, np.clip(shell, 0, 2))
    return {
        "noise": (noise * mask, mask, mask),
        "a constant": (np.float32(0.5) * mask, mask, mask),
        "a head without brain": (shell, (shell > 0.1) | (brain > 0), hollow & mask),
        "an empty brain mask": (np.zeros(mask.shape, np.float32), mask, mask),
    }


def pair_figures(visits: Sequence[Visit], reference: str, quantiles: np.ndarray) -> list[Figure]:
    """Item 3: how near scans of other sites come to the same head's scan at the reference."""
    at = {(v.site, v.head): v for v in visits}
    heads = sorted({v.head for v in visits})
    sources = sorted({v.site for v in visits} - {reference})
    errors = np.zeros((len(heads), len(sources), 4))
    change = np.zeros((len(heads), len(sources)))
    for i, head in enumerate(heads):
        wanted = at[reference, head]
        for j, site in enumerate(sources):
            v = at[site, head]
            both = v.mask & wanted.mask
            matched = match_histogram(v.raw, v.mask, quantiles)
            images = [image[both] for image in (v.raw, matched, v.mapped)]
            images.append(best_tone(images[0], wanted.raw[both]))
            errors[i, j] = [np.abs(image - wanted.raw[both]).mean() for image in images]
            change[i, j] = np.abs(v.mapped - v.raw)[v.mask].mean()
    ways = ("unharmonized", "histogram-matched", "harmonized", "best tone curve of each pair")
    rows = [
        figure(3, f"distance from the reference scan, {way}", errors[..., k], np.mean)
        for k, way in enumerate(ways)
    ]
    # A map that does next to nothing can be closer in every pair, and harms nothing either.
    rows += [
        figure(3, "part of the distance that harmonization removes, in %", errors, removed),
        figure(3, "change of the other sites' scans in % of range", 100 * change, np.mean),
    ]
    nearer = errors[..., 2:3] < errors[..., :2]
    rows += [
        figure(3, f"pairs closer than {way}", nearer[..., k], np.mean, low=0.9)
        for k, way in enumerate(ways[:2])
    ]
    return rows


def best_tone(image: np.ndarray, wanted: np.ndarray, bins: int = 64) -> np.ndarray:
    """Give each intensity of a scan the median of what the other scan shows there.

    No tone curve comes closer: what distance it leaves is noise, sharpness and registration.
    """
    edges = np.quantile(image, np.linspace(0, 1, bins + 1)[1:-1])
    at = np.digitize(image, edges)
    return np.asarray(ndimage.median(wanted, at, np.arange(bins))[at])


def removed(errors: np.ndarray) -> float:
    """Percentage of the unharmonized distance that is gone when harmonized."""
    before, after = errors[..., 0].mean(), errors[..., 2].mean()
    return float(100 * (1 - after / before))


def anatomy_figures(
    visits: Sequence[Visit], reference: str, truth: Mapping[str, float]
) -> list[Figure]:
    """Items 3 and 4 at each site: tissue before and after, ventricles, their slope on age."""
    rows = []
    for site in sorted({v.site for v in visits}):
        here = [v for v in visits if v.site == site]
        labels = [tissues(v) for v in here]
        for way in labels[0]:
            pairs = [(v, *found[way]) for v, found in zip(here, labels, strict=True)]
            name = f"{site}, {way}"
            overlap = np.array([dice(a, b, v.mask) for v, a, b in pairs])
            ml = np.array(
                [[ventricle_ml(x, v.mask, v.affine, 0.5) for x in (a, b)] for v, a, b in pairs]
            )
            known = np.array([[truth[v.head], v.age] for v in here])
            if site != reference:
                rows += [
                    figure(3, f"Dice of {tissue}, {name}", overlap[:, k], np.median, low=0.95)
                    for k, tissue in enumerate(TISSUES)
                ]
                rows += [
                    figure(3, f"ventricle change in %, {name}", 100 * (ml[:, 1] / ml[:, 0] - 1),
                           lambda v: float(np.median(np.abs(v))), high=2.0),
                    figure(3, f"ventricles' rank correlation, {name}", ml, rank_correlation, 0.98),
                ]  # fmt: skip
                rows += [
                    figure(3, f"with the true ventricles, {when}, {name}",
                           np.column_stack([known[:, 0], ml[:, k]]), rank_correlation)
                    for k, when in enumerate(("before", "after"))
                ]  # fmt: skip
            ageing = np.column_stack([known[:, 1], ml])
            rows.append(figure(4, f"slope on age after/before, {name}", ageing, slope_ratio,
                               0.9, 1.1))  # fmt: skip
    return rows


def idle_figures(
    visits: Sequence[Visit],
    reference: str,
    network: nn.Module,
    box: Box,
    brain: np.ndarray,
    seed: int,
) -> list[Figure]:
    """Item 5: what the map does to scans that need nothing, and where there is no brain."""
    here = [v for v in visits if v.site == reference]
    change = 100 * np.array([np.abs(v.mapped - v.raw)[v.mask].mean() for v in here])
    rows = [figure(5, f"change of reference scans in % of range, {what}", change, of, high=1.0)
            for what, of in (("mean", np.mean), ("largest", np.max))]  # fmt: skip
    affine = here[0].affine
    for what, (volume, mask, where) in nothings(here[0].mask, affine, seed).items():
        mapped = map_volume(network, volume, mask, affine, box)
        found = painted(volume, mapped, brain, where & (brain > 0))
        rows += [figure(5, f"{what}: {name}", np.array([value]), np.mean, high=NO_BRAIN[name])
                 for name, value in found.items()]  # fmt: skip
    return rows


def show(rows: Sequence[Figure]) -> str:
    """Write a Markdown table of figures and targets."""
    lines = ["| item | what | figure | 95 % | heads | target | met |", "|---" * 7 + "|"]
    for row in rows:
        ends = [f"{v:g}" if np.isfinite(v) else "" for v in (row.low, row.high)]
        target = f"{ends[0]} to {ends[1]}".strip() if row.met is not None else "-"
        low, high = row.interval
        met = {True: "yes", False: "NO", None: "-"}[row.met]
        lines.append(
            f"| {row.item} | {row.what} | {row.value:.3f} | {low:.3f} to {high:.3f} "
            f"| {row.n} | {target} | {met} |"
        )
    return "\n".join(lines)
