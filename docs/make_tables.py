"""Fill in the tables of trust.md from the model card of the default bundle.

The text between ``<!-- figures NAME -->`` and ``<!-- end -->`` is replaced.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bids_harmony.models.bundle import DEFAULT_BUNDLE

PAGE = Path(__file__).with_name("trust.md")
#: Scanner, source and licence of each site.
SOURCES = {
    "IXI-HH": ("Philips 3 T; IXI, Hammersmith Hospital, at 2 mm", "CC BY-SA 3.0"),
    "NSK": ("3 T; OpenNeuro ds002748, published skull-stripped", "CC0"),
    "UCLA": ("Siemens 3 T; OpenfMRI ds000011, defaced", "PDDL 1.0"),
}
WAYS = {
    "none": "not harmonized",
    "histogram_matching": "histogram matching",
    "intensity_mapping": "intensity mapping alone",
    "harmonized": "harmonized",
    "harmonized_known_ages": "… with known ages",
}
#: Kinds of simulated acquisitions, as in the model card.
KINDS = {
    "intensity mapping": "intensities alone",
    "all but blur": "also deep grey matter, bias field, noise and brain mask",
    "all": "also the resolution (blur)",
}


def main() -> None:
    """Update the page."""
    card = json.loads((DEFAULT_BUNDLE / "model_card.json").read_text("utf-8"))
    PAGE.write_text(fill(PAGE.read_text("utf-8"), card), "utf-8")


def fill(text: str, card: dict[str, Any]) -> str:
    """Return the page's text with the numbers of a model card."""
    parts = {"sites": sites(card), "offsets": offsets(card), "folds": folds(card),
             "simulated": simulated(card), "known truth": known_truth(card)}  # fmt: skip

    def part(found: re.Match[str]) -> str:
        return f"{found[1]}\n{parts[found[2]]}\n<!-- end -->"

    return re.sub(r"(<!-- figures ([\w ]+) -->).*?<!-- end -->", part, text, flags=re.DOTALL)


def sites(card: dict[str, Any]) -> str:
    """Return the table of the bundle's training sites."""
    rows = ["| site | scans | ages | scanner and source | licence |", "|---|---|---|---|---|"]
    for site, facts in card["data"]["sites"].items():
        name = f"{site}, the reference" if site == card["data"]["reference_site"] else site
        low, high = facts["age"]
        rows.append(
            f"| {name} | {facts['n']}, and {facts['n_held_out']} held out "
            f"| {low:.0f} to {high:.0f} | {' | '.join(SOURCES[site])} |"
        )
    return "\n".join(rows)


def offsets(card: dict[str, Any]) -> str:
    """Return the table of brain age errors by site and harmonization method."""
    rows = ["| site | n | scans | offset | scatter | mean absolute error | r |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    for site, ways in card["metrics"]["brain_age"]["sites"].items():
        name = site.replace(", not in --fit-filter", ", depression")
        name = f"{name}, held out" if name == card["data"]["reference_site"] else name
        for way, spoken in WAYS.items():
            found = ways[way]
            first = f"{name} | {found['n']}" if way == "none" else " | "
            shown = " | ".join(with_ends(found, k) for k in ("offset", "scatter", "mae"))
            rows.append(f"| {first} | {spoken} | {shown} | {found['r']:.2f} |")
    return "\n".join(rows)


def folds(card: dict[str, Any]) -> str:
    """Return a sentence on the cross-validated error at the reference site."""
    found = card["metrics"]["brain_age"]["folds"]
    error = with_ends(found, "mae", 2).replace(" (", " years (")
    return (f"Cross-validated at the reference site: {error}, correlation {found['r']:.3f} "
            f"(n {found['n']}).")  # fmt: skip


def known_truth(card: dict[str, Any]) -> str:
    """Return the table of errors on simulated acquisitions of reference scans."""
    rows = ["| simulated differences | scans | removed (%) | lowest Dice | ventricle error (%) |",
            "|---|---|---|---|---|"]  # fmt: skip
    truth = card["map"]["known_truth"]
    found = {
        (method, row["kind"], row["figure"]): row for method in truth for row in truth[method]
    }
    for kind, spoken in KINDS.items():
        for method, name, state in (
            ("network", "not harmonized", "raw"),
            ("intensity-mapping", "intensity mapping alone", "harmonized"),
            ("network", "harmonized", "harmonized"),
        ):
            removed = found[method, kind, "removed"]
            value, low, high = (100 * removed[key] for key in ("value", "low", "high"))
            first, share = spoken, ""
            if state != "raw":
                first, share = "", f"{value:.0f} ({low:.0f} to {high:.0f})"
            dice = found[method, kind, f"dice_{state}"]["value"]
            ventricle = 100 * found[method, kind, f"ventricle_{state}"]["value"]
            rows.append(f"| {first} | {name} | {share} | {dice:.2f} | {ventricle:.0f} |")
    return "\n".join(rows)


def simulated(card: dict[str, Any]) -> str:
    """Return a sentence on the classification of the simulated diagnosis."""
    found = card["metrics"]["schizophrenia_probability"]["held_out_simulated"]
    return (f"Area under the curve {with_ends(found, 'auc', 2)} on {found['n']} held-out scans, "
            "with the same formula.")  # fmt: skip


def with_ends(figures: dict[str, Any], name: str, digits: int = 1) -> str:
    """Format a value with its 95 % interval, if it has one."""
    value = f"{figures[name]:.{digits}f}"
    if figures.get(f"{name}_95") is None:
        return value
    low, high = figures[f"{name}_95"]
    return f"{value} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
