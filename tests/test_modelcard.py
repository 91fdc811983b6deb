"""The model card says what a reader needs, escapes what it is given, and fetches nothing."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from bids_harmony.models.bundle import DEFAULT_BUNDLE
from bids_harmony.qc.reference import dictionary
from bids_harmony.reports import shown
from bids_harmony.reports.pages import METHODS, card_html, known_limits, model_card


@pytest.fixture
def info() -> dict[str, Any]:
    """What the shipped bundle says, under a name that a page must escape."""
    info = json.loads((DEFAULT_BUNDLE / "bundle.json").read_text("utf-8"))
    return info | {"name": "small <b>", "licences": ["A & B"]}


@pytest.fixture
def guard() -> dict[str, Any]:
    return json.loads((DEFAULT_BUNDLE / "guard.json").read_text("utf-8"))


def test_the_page_says_what_the_card_holds_and_fetches_nothing(info: dict, guard: dict) -> None:
    card = model_card(info, guard)
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    page = card_html(card)
    assert "small <b>" not in page
    assert not re.search(r'\s(src|href)="', page)
    text = " ".join(html.unescape(page).split())
    found = info["metrics"]["brain_age"]["sites"]
    site, methods = next(iter(found.items()))
    low, high = methods["none"]["mae_95"]
    for words in (
        "small <b>", "A & B", info["intended_use"], info["map"]["acceptance"]["text"],
        *info["sites"], *(METHODS[method] for method in methods), site, *card["limits"],
        f"{shown(methods['none']['mae'])} <span class=\"small\">[{shown(low)}, {shown(high)}]",
        *(dictionary()[name]["LongName"] for name in guard["limits"]),
    ):  # fmt: skip
        assert words in text, words
    # A map that moves a site stands out.
    card["map"]["acceptance"]["passed"] = False
    assert f'class="note">{info["map"]["acceptance"]["text"][:20]}' in card_html(card)


def test_limits_name_small_samples_simulated_labels_and_ages(info: dict) -> None:
    reference, rows = info["reference_site"], info["sites"]
    rows["B"] = {"n_persons": 3}
    # Thirty test scans of five persons are few.
    rows[reference] |= {"n_held_out": 30, "n_held_out_persons": 5}
    said = " ".join(known_limits(info))
    assert "B (3)" in said
    assert f"{reference} (5)" in said
    rows[reference]["n_held_out_persons"] = 30
    assert f"{reference} (30)" not in " ".join(known_limits(info))
    low, high = info["targets"]["brain_age"]["training_range"]
    assert f"from {low:g} to {high:g} at {reference}" in said
    assert "simulated labels" in said


def test_a_bundle_without_guard_or_figures_has_a_card_too(info: dict) -> None:
    page = card_html(model_card({**info, "metrics": {}, "training": {}, "targets": {}}, None))
    assert "This bundle has none." in page
    assert "Performance was not measured." in page
