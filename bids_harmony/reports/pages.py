"""Create the HTML pages of a bundle (its model card) and of a site's calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import gaussian_kde

from bids_harmony.qc.guard import MEASURES, spoken_limit
from bids_harmony.qc.reference import dictionary
from bids_harmony.reports import figures, render
from bids_harmony.sites.code import spoken

if TYPE_CHECKING:
    from bids_harmony.models.bundle import Bundle
    from bids_harmony.sites.calibration import Calibration

METHODS = {
    "none": "not harmonized",
    "histogram_matching": "histogram-matched",
    "intensity_mapping": "intensity mapping alone",
    "harmonized": "harmonized",
    "harmonized_known_ages": "harmonized, ages known",
}
#: Sites with fewer test persons than this are listed among the card's limits.
FEW = 20
#: Kernel width (scaled intensity) for smoothing intensity distributions.
KERNEL = 0.03


def model_card(info: Mapping[str, Any], guard: Mapping[str, Any] | None) -> dict[str, Any]:
    """Build the model card of a bundle.

    Parameters
    ----------
    info : mapping
        Contents of ``bundle.json``; ``files`` is not needed.
    guard : mapping or None
        Contents of ``guard.json``; None if the bundle has no guard.

    Returns
    -------
    dict
        JSON-serializable card: ``name``, ``version``, ``intended_use``, ``data``,
        ``preprocessing``, ``networks``, ``map``, ``targets``, ``metrics``, ``guard``, ``limits``,
        ``rerun``.
    """
    options = info["training"].get("options", {})
    return {
        **{key: info[key] for key in ("name", "version", "intended_use", "map", "targets",
                                      "metrics")},
        "data": {
            "reference_site": info["reference_site"],
            "sites": info["sites"],
            "licences": list(info["licences"]),
            "splits": "by person, stratified by site and age; listed in splits.json",
            "fit_filter": options.get("fit_filter"),
        },
        "preprocessing": info["contract"],
        "networks": {
            name: {key: config[key] for key in ("kind", "options")} | {"n": len(config["files"])}
            for name, config in info["networks"].items()
        },
        "guard": {"limits": (guard or {}).get("limits", {}), "n": (guard or {}).get("n", 0)},
        "limits": known_limits(info),
        "rerun": {
            "command": "bids_harmony BIDS OUT train",
            "options": options,
            "note": "The same options on the same scans repeat the training, up to rounding.",
        },
    }  # fmt: skip


def known_limits(info: Mapping[str, Any]) -> list[str]:
    """List the known limitations of a bundle.

    Parameters
    ----------
    info : mapping
        Contents of ``bundle.json``.

    Returns
    -------
    list of str
        One or more sentences per limitation.
    """
    reference, limits = info["reference_site"], []
    for name, target in info["targets"].items():
        if "training_range" in target:
            low, high = target["training_range"]
            trained = f"{name} was trained on values from {low:g} to {high:g} at {reference}"
            limits.append(f"{trained}; it has not been validated outside this range.")
        if "simulated" in str(target.get("training_data")):
            trained = f"{name} was trained on simulated labels"
            limits.append(f"{trained}: it tests the software and says nothing about a person.")
    tested = {
        site: row["n_held_out_persons" if site == reference else "n_persons"]
        for site, row in info["sites"].items()
    }
    if few := [f"{site} ({n})" for site, n in tested.items() if n < FEW]:
        limits.append(f"There are few test persons at {', '.join(few)}: consider the intervals.")
    return [
        *limits,
        "Sites are harmonized by their calibration. With few scans, or if patients and controls "
        "are at different sites, effects of scanner and participants cannot be separated.",
        "Prediction intervals are empirical: they were estimated on held-out scans of the "
        "reference site, and may be too narrow, above all at other sites; their coverage is given "
        "where there are test scans. Gaps are not corrected for age bias unless a column says so.",
    ]


def card_html(card: Mapping[str, Any]) -> str:
    """Render a model card as self-contained HTML.

    Parameters
    ----------
    card : mapping
        Card from :func:`model_card`.

    Returns
    -------
    str
        HTML page with escaped values; it loads nothing from the internet.
    """
    return render(
        "model_card.html",
        card=card,
        methods=METHODS,
        figures={
            target: _interval_figures(found["sites"])
            for target, found in card["metrics"].items()
            if found.get("sites")
        },
        plot=_age_plot(card),
        measures=MEASURES,
        dictionary=dictionary(),
        spoken_limit=spoken_limit,
    )


def _interval_figures(sites: Mapping[str, Any]) -> list[str]:
    """List the measures that have an interval, with ``offset`` and ``scatter`` first."""
    every = dict.fromkeys(f for methods in sites.values() for row in methods.values() for f in row)
    names = [name for name in every if f"{name}_95" in every]
    return sorted(names, key=lambda name: name not in ("offset", "scatter"))


def _age_plot(card: Mapping[str, Any]) -> str:
    """Plot predicted against true age before and after, as SVG; empty without predictions."""
    rows = card["metrics"].get("brain_age", {}).get("predictions", [])
    bias = card["targets"].get("brain_age", {}).get("age_bias")
    if not rows or bias is None:
        return ""
    table = pd.DataFrame(rows, columns=["site", "method", "truth", "predicted"])
    line = (1 + bias["slope"], bias["intercept"])
    panels = {
        METHODS[method]: (found, line)
        for method in ("none", "harmonized")
        if len(found := table[table["method"] == method])
    }
    text = figures.svg_text(figures.scatter_figure(panels, card["data"]["reference_site"]))
    return text[text.index("<svg") :]


def calibration_page(calibration: Calibration, bundle: Bundle) -> str:
    """Render a site's calibration, its data and its intensity mapping, as self-contained HTML.

    Parameters
    ----------
    calibration : Calibration
        Calibration of the site.
    bundle : Bundle
        Bundle that the calibration was made with.

    Returns
    -------
    str
        HTML page with the figure embedded.
    """
    return render(
        "calibration.html",
        calibration=calibration,
        reference=bundle.reference_site,
        network=bundle.has_map_network,
        changes=spoken(calibration.changes(bundle)),
        picture=figures.data_uri(_mapping_figure(calibration)),
    )


def _mapping_figure(calibration: Calibration) -> bytes:
    """Plot deep brain intensities of site and reference, and the mapping; return a PNG."""
    x, y = calibration.mapping.x, calibration.mapping.y
    sd = calibration.code.sd[: len(x)]
    figure = figures.new_figure(0.44)
    left, right = figure.subplots(1, 2)
    grid = np.linspace(0, max(x[-1], y[-1]) + 0.1, 300)
    for quantiles, colour, name in (
        (y, figures.REFERENCE, "reference"), (x, figures.ORANGE, "site"),
    ):  # fmt: skip
        # Evenly spaced quantiles, interpolated, are a sample of the distribution.
        at = np.linspace(0, len(quantiles) - 1, 1000)
        values = np.interp(at, np.arange(len(quantiles)), quantiles)
        density = gaussian_kde(values, KERNEL / values.std(ddof=1))(grid)
        left.plot(grid, density, color=colour, lw=1.8, label=name)
        left.fill_between(grid, density, color=colour, alpha=0.15, lw=0)
    left.set(yticks=[], ylim=(0, None))
    ends = [0, grid[-1]]
    right.plot(ends, ends, color="0.6", lw=1, ls="--", label="no change")
    right.fill_betweenx(
        y, x - 1.96 * sd, x + 1.96 * sd, color=figures.BLUE, alpha=0.2, lw=0, label="95 % interval"
    )
    right.plot(x, y, color=figures.BLUE, lw=1.8, label="mapping")
    right.set(xlim=ends, ylim=ends)
    right.set_ylabel("at the reference", fontsize=9)
    for axes, title, label in (
        (left, "Intensities of the deep brain", "scaled intensity"),
        (right, "Intensity mapping", "at the site"),
    ):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(label, fontsize=9)
        figures.plain_axes(axes)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figures.png_bytes(figure)
