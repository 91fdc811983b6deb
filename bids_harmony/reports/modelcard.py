"""The card of a bundle: what a reader needs to judge it by, as JSON and as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from bids_harmony.qc.guard import MEASURES, spoken_limit
from bids_harmony.qc.reference import dictionary

METHODS = {
    "none": "not harmonized",
    "histogram_matching": "histogram-matched",
    "intensity_mapping": "intensity mapping alone",
    "harmonized": "harmonized",
    "harmonized_known_ages": "harmonized, ages known",
}
#: Below this many persons with test scans a site's figures are called rough.
FEW = 20


def model_card(info: Mapping[str, Any], guard: Mapping[str, Any] | None) -> dict[str, Any]:
    """Put a bundle's card together.

    Parameters
    ----------
    info : mapping
        ``bundle.json`` without ``files``.
    guard : mapping or None
        ``guard.json``.

    Returns
    -------
    dict
        JSON-ready: ``name``, ``version``, ``intended_use``, ``data``, ``preprocessing``,
        ``networks``, ``map``, ``targets``, ``metrics``, ``guard``, ``limits``, ``rerun``.
    """
    training = info["training"]
    return {
        "name": info["name"],
        "version": info["version"],
        "intended_use": info["intended_use"],
        "data": {
            "reference_site": info["reference_site"],
            "sites": info["sites"],
            "licences": list(info["licences"]),
            "splits": "by person, stratified by site and age; listed in splits.json",
            "fit_filter": training.get("options", {}).get("fit_filter"),
        },
        "preprocessing": info["contract"],
        "networks": {
            name: {key: config[key] for key in ("kind", "options")} | {"n": len(config["files"])}
            for name, config in info["networks"].items()
        },
        "map": info["map"],
        "targets": info["targets"],
        "metrics": info["metrics"],
        "guard": {"limits": (guard or {}).get("limits", {}), "n": (guard or {}).get("n", 0)},
        "limits": known_limits(info),
        "rerun": {
            "command": "bids_harmony BIDS OUT train",
            "options": training.get("options", {}),
            "note": "The same options on the same scans repeat the training; processors round "
            "differently, so that figures agree and bytes need not.",
        },
    }


def known_limits(info: Mapping[str, Any]) -> list[str]:
    """Say where a bundle's numbers should not be trusted.

    Parameters
    ----------
    info : mapping
        ``bundle.json``.

    Returns
    -------
    list of str
        One sentence each.
    """
    reference, sites = info["reference_site"], info["sites"]
    said = []
    for name, target in info["targets"].items():
        if "training_range" in target:
            low, high = target["training_range"]
            said.append(
                f"{name} was trained on values from {low:g} to {high:g} at {reference}; outside "
                "them it is not known to work."
            )
        if "simulated" in str(target.get("training_data")):
            said.append(
                f"{name} was trained on simulated labels: it shows that the path works, and says "
                "nothing about a person."
            )
    tested = {
        site: row["n_held_out_persons"] if site == reference else row["n_persons"]
        for site, row in sites.items()
    }
    few = [f"{site} ({n})" for site, n in tested.items() if n < FEW]
    if few:
        said.append(
            f"Figures rest on few persons at {', '.join(few)}: read the intervals, "
            "not the values alone."
        )
    said.append(
        "A site is harmonized by its calibration. From few scans, or where patients and controls "
        "lie at different sites, what the scanner does and what the persons bring cannot be told "
        "apart."
    )
    said.append(
        "Prediction intervals are empirical: they come from the errors on reference scans of "
        "networks that had not seen them, and may be too narrow, most of all at other sites; "
        "how often they hold the truth (coverage) is given where test scans tell. Gaps are not "
        "corrected for age bias unless a column says so."
    )
    return said


def card_html(card: Mapping[str, Any]) -> str:
    """Write a card as one HTML file that holds all it shows.

    Parameters
    ----------
    card : mapping
        Of :func:`model_card`.

    Returns
    -------
    str
        HTML; every value is escaped, nothing is fetched from elsewhere.
    """
    import jinja2

    source = (files("bids_harmony.data") / "model_card.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(shown=shown, between=between)
    return environment.from_string(source).render(
        card=card,
        figures=figure_tables(card["metrics"]),
        folds=fold_sentences(card["metrics"]),
        plot=age_plot(card),
        guard=guard_rows(card["guard"]),
    )


def figure_tables(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of each target's figures: site, way of preparing, n, and each figure."""
    tables = []
    for target, found in metrics.items():
        rows = [
            {"site": site, "method": METHODS.get(method, method), "values": values}
            for site, methods in found.get("sites", {}).items()
            for method, values in methods.items()
        ]
        if rows:
            every = dict.fromkeys(name for row in rows for name in row["values"])
            names = [n for n in every if f"{n}_95" in every]
            # What a map is judged by comes first.
            names.sort(key=lambda n: n not in ("offset", "scatter"))
            tables.append({"target": target, "names": names, "rows": rows})
    return tables


def age_plot(card: Mapping[str, Any]) -> str:
    """Draw predicted against true age with the reference's line, before and after; or nothing."""
    import pandas as pd

    from bids_harmony.reports.scatter import scatter_figure, svg_text

    rows = card["metrics"].get("brain_age", {}).get("predictions", [])
    bias = card["targets"].get("brain_age", {}).get("age_bias")
    if not rows or bias is None:
        return ""
    table = pd.DataFrame(rows, columns=["site", "way", "truth", "predicted"])
    line = (1 + bias["slope"], bias["intercept"])
    panels = {
        METHODS[way]: (table[table["way"] == way], line)
        for way in ("none", "harmonized")
        if way in set(table["way"])
    }
    text = svg_text(scatter_figure(panels, card["data"]["reference_site"]))
    return text[text.index("<svg") :]


def fold_sentences(metrics: Mapping[str, Any]) -> list[str]:
    """Say of each target how networks did on reference scans they had not seen."""
    sentences = []
    for target, found in metrics.items():
        if (folds := found.get("folds")) is not None:
            parts = [
                f"{name} {shown(value)} {between(folds.get(f'{name}_95'))}".strip()
                for name, value in folds.items()
                if isinstance(value, int | float)
            ]
            sentences.append(
                f"{target}: networks on reference scans of the folds they were trained without: "
                f"{', '.join(parts)}."
            )
    return sentences


def guard_rows(guard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the guard's table: measure, what it means, limit, scans it was set on."""
    return [
        {
            "name": dictionary()[name]["LongName"],
            "meaning": dictionary()[name]["Description"],
            "limit": spoken_limit(name, float(guard["limits"][name]["limit"])),
            "n": guard["limits"][name]["n"],
        }
        for name in MEASURES
        if name in guard["limits"]
    ]


def shown(value: Any) -> str:
    """Write a value for a reader: short numbers, ``n/a`` for what is not there.

    >>> shown(0.123456), shown(None), shown([1, 2]), shown(True)
    ('0.123', 'n/a', '1, 2', 'yes')
    """
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value + 0.0:.4g}" if abs(value) >= 1000 else f"{value + 0.0:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(v) for v in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {shown(v)}" for key, v in value.items())
    return str(value)


def between(ends: Any) -> str:
    """Write an interval in brackets; nothing for None.

    >>> between([1.0, 2.5]), between(None)
    ('[1, 2.5]', '')
    """
    return f"[{shown(ends[0])}, {shown(ends[1])}]" if ends else ""
