"""How far sites and reference agree in age and sex, before and after balancing.

Where they do not, a map between them learns age or sex along with the scanner (science.md §9).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from bids_harmony.errors import UsageError
from bids_harmony.training.balance import balance
from bids_harmony.training.data import TrainingSet

#: |SMD| after balancing that is told, and that is refused (issue 3).
WARN, REFUSE = 0.25, 1.0
#: Least standard deviations that differences are measured in: years, and share of women.
LEAST_YEARS, LEAST_SHARE = 1.0, 0.1


def covariate_overlap(
    data: TrainingSet,
    reference: np.ndarray,
    sources: Mapping[str, np.ndarray],
    age_width: float = 5.0,
) -> dict[str, dict[str, Any]]:
    """Compare age and sex of each source site with the reference.

    Parameters
    ----------
    data : TrainingSet
        All scans.
    reference : numpy.ndarray
        Numbers of the reference scans to train on.
    sources : mapping of str to numpy.ndarray
        Numbers of each source site's scans.
    age_width : float
        Of :func:`bids_harmony.training.balance.balance`.

    Returns
    -------
    dict
        By site: ``site`` and ``reference``, each with ``n``, ``n_effective`` after balancing,
        ``age`` (``n``, ``mean``, ``sd``, ``range``, ``mean_balanced``) and ``women`` (``n``,
        ``share``, ``share_balanced``); ``age_ks_p``; ``smd``, standardised mean differences
        ``age`` and ``women``, site minus reference, ``before`` and ``after`` balancing in the
        standard deviation before it. What is not known of any scan is None.
    """
    report = {}
    for name, scans in sources.items():
        found = balance(data, scans, reference, age_width)
        drawn = {"site": found.chance, "reference": found.reference_chance()}
        sides = {"site": scans, "reference": reference}
        described = {s: _describe(data, sides[s], drawn[s]) for s in sides}
        # One age a person: further scans of the same are no further evidence.
        ages = [
            pd.Series(data.ages[s]).groupby(data.persons[s]).mean().dropna()
            for s in sides.values()
        ]
        report[name] = {
            **described,
            "age_ks_p": float(ks_2samp(*ages).pvalue) if all(map(len, ages)) else None,
            "smd": {
                "age": _differences(described, "age", "mean", LEAST_YEARS),
                "women": _differences(described, "women", "share", LEAST_SHARE),
            },
        }
    return report


def check_overlap(
    report: Mapping[str, Mapping[str, Any]], *, force: bool, say: Callable[[str], None]
) -> None:
    """Tell the overlap of each site, warn of what balancing leaves, and refuse the hopeless.

    Raises
    ------
    UsageError
        When |SMD| after balancing is above 1 at a site, unless ``force``.
    """
    hopeless = []
    for site, found in report.items():
        known = found["site"]
        text = f"{site}: {known['n']} scans ({known['n_effective']:.0f} after balancing)"
        for what, smd in found["smd"].items():
            if smd is None:
                text += f"; {what} unknown, not balanced"
                continue
            text += f"; {what} SMD {smd['before']:.2f}, balanced {smd['after']:.2f}"
            if abs(smd["after"]) > WARN:
                say(f"Warning: {site} differs in {what} from the reference by {smd['after']:.2f}.")
            if abs(smd["after"]) > REFUSE:
                hopeless.append(f"{site} ({what} {smd['after']:.2f})")
        say(text)
    if hopeless and not force:
        raise UsageError(
            "Even after balancing, sites differ too much from the reference (standardised mean "
            f"difference above {REFUSE:g}): {', '.join(hopeless)}.",
            "A map would learn it as if it were the scanner. Choose another --reference-site, "
            "leave the site out with --fit-filter, or insist with --force.",
        )


def _describe(data: TrainingSet, scans: np.ndarray, chance: np.ndarray) -> dict[str, Any]:
    ages, sexes = data.ages[scans], data.sexes[scans]
    aged, sexed = ~np.isnan(ages), sexes != ""
    age = women = None
    if aged.any():
        known = ages[aged]
        age = {
            "n": int(aged.sum()),
            "mean": float(known.mean()),
            "sd": float(known.std()),
            "range": [float(known.min()), float(known.max())],
            "mean_balanced": _mean(known, chance[aged]),
        }
    if sexed.any():
        female = (sexes[sexed] == "F").astype(float)
        women = {
            "n": int(sexed.sum()),
            "share": float(female.mean()),
            "sd": float(female.std()),
            "share_balanced": _mean(female, chance[sexed]),
        }
    return {
        "n": len(scans),
        "n_effective": float(1 / (chance**2).sum()),
        "age": age,
        "women": women,
    }


def _mean(values: np.ndarray, chance: np.ndarray) -> float:
    """Weighted mean; the plain one where nothing known is ever drawn."""
    return float(np.average(values, weights=chance if chance.sum() > 0 else None))


def _differences(
    sides: Mapping[str, Mapping[str, Any]], covariate: str, what: str, least: float
) -> dict[str, float] | None:
    """Standardised mean differences of a covariate, site minus reference."""
    site, reference = (sides[side][covariate] for side in ("site", "reference"))
    if site is None or reference is None:
        return None
    spread = max(float(np.sqrt((site["sd"] ** 2 + reference["sd"] ** 2) / 2)), least)
    return {
        when: (site[key] - reference[key]) / spread
        for when, key in (("before", what), ("after", f"{what}_balanced"))
    }
