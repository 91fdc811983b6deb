"""The dataset as the ``group`` level sees it: one table, with flags, ratings and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Flag:
    """One reason for looking at a scan.

    Attributes
    ----------
    metric : str
        Column of the table, or ``multivariate``, ``guard``, ``status``, ``predictions``.
    text : str
        In plain words: the value, what is usual at the site, and how far off.
    size : float
        How far beyond the limit, where 1 is at the limit; for ranking.
    """

    metric: str
    text: str
    size: float


@dataclass(frozen=True)
class Group:
    """A dataset's scans and what is remarkable about them.

    Attributes
    ----------
    scans : pandas.DataFrame
        One row per scan, failed ones too, with the columns of ``group_T1w.tsv``. Numbers are
        floats with NaN where missing, texts are str or None.
    metrics : tuple of str
        Those columns that are QC metrics.
    targets : tuple of str
        What was predicted: columns ``<target>_raw`` and ``<target>_harmonized``.
    flags : dict of str to tuple of Flag
        By scan, worst first; a scan without any is absent.
    ratings : pandas.DataFrame
        Every row of the rating files: scan, rater, time, verdict, comment (str).
    dictionary : dict
        What each column means (the JSON beside the table).
    figures : dict of str to tuple of str
        By scan, its pictures' paths relative to the output folder.
    volumes : dict of str to dict of str to str
        By scan, ``preproc``, ``harmonized`` and ``mask`` on the template grid, where they were
        written: paths relative to the output folder.
    bundle : dict or None
        ``name``, ``version``, ``sha256`` and ``reference_site`` of the bundle most scans were
        made with, ``n_scans`` made with it, and ``simulated``: the targets whose labels were.
        None where no scan had one.
    """

    scans: pd.DataFrame
    metrics: tuple[str, ...]
    targets: tuple[str, ...]
    flags: dict[str, tuple[Flag, ...]]
    ratings: pd.DataFrame
    dictionary: dict[str, Any]
    figures: dict[str, tuple[str, ...]]
    volumes: dict[str, dict[str, str]]
    bundle: dict[str, Any] | None
