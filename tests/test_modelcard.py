"""The model card says what a reader needs, escapes what it is given, and fetches nothing."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from random_bundle import GUARD

from bids_harmony.qc.guard import MEASURES
from bids_harmony.reports.pages import card_html, known_limits, model_card

FIGURES = {
    "n": 9, "mae": 5.25, "mae_95": [4.0, 6.5], "bias": -0.5, "bias_95": [-2.0, 1.0],
    "r": None, "r_95": None,
}  # fmt: skip


@pytest.fixture
def info() -> dict:
    return {
        "name": "small <b>",
        "version": "1",
        "reference_site": "REF",
        "sites": {
            "REF": {"n": 40, "n_persons": 40, "n_validation": 6, "n_held_out": 30,
                    "n_held_out_persons": 30, "age": [20.0, 80.0],
                    "age_mean": 50.0},
            "A & B": {"n": 10, "n_persons": 3, "n_validation": 2, "n_held_out": 3,
                      "n_held_out_persons": 1, "age": None, "age_mean": None},
        },
        "contract": {"skull_strip": "deepbet", "slice_mm": [-28.0, 52.0]},
        "networks": {"brain_age": {"kind": "slice", "options": {"hidden": 8}, "files": ["b"]}},
        "map": {"kind": "intensity-mapping", "known_truth": {}, "acceptance": {
            "passed": False, "removed": 0.4, "moved": ["A & B"], "still": [],
            "text": "The map removes 40 % of the mean site offset at A & B.",
        }},
        "targets": {
            "brain_age": {"training_range": [20.0, 80.0], "training_data": "real"},
            "schizophrenia_probability": {"training_data": "simulated"},
        },
        "metrics": {
            "brain_age": {
                "folds": {"n": 40, "mae": 6.1},
                "sites": {"A & B": {"none": FIGURES, "harmonized": FIGURES}},
                "predictions": [["A & B", "none", 30.0, 35.0], ["REF", "none", 40.0, 41.0]],
            },
        },
        "training": {
            "options": {"seed": 42, "fit_filter": 'diagnosis == "control"'},
        },
        "licences": ["CC0"],
        "intended_use": "Research.",
    }  # fmt: skip


class _Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.open, self.links = "", [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_the_card_holds_and_fetches_nothing(info: dict) -> None:
    card = model_card(info, GUARD)
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    page = _Text(card_html(card))
    assert not page.open
    assert not page.links
    for words in (
        "small <b>", "A & B", "CC0", "Research.", "not harmonized", "harmonized",
        "The map removes 40 %",
        "5.25", "[4, 6.5]", "n/a", 'diagnosis == "control"', "3.0 %",
    ):  # fmt: skip
        assert words in page.text, words
    assert 'class="note">The map removes' in card_html(card)


def test_limits_name_small_samples_simulated_labels_and_ages(info: dict) -> None:
    said = " ".join(known_limits(info))
    assert "A & B (3)" in said
    assert "REF (30)" not in said
    # Thirty test scans of five persons are few.
    info["sites"]["REF"]["n_held_out_persons"] = 5
    assert "REF (5)" in " ".join(known_limits(info))
    assert "simulated labels" in said
    assert "from 20 to 80 at REF" in said


def test_a_bundle_without_guard_or_figures_has_a_card_too(info: dict) -> None:
    bare = {**info, "metrics": {}, "training": {}, "targets": {}}
    card = model_card(bare, None)
    page = _Text(card_html(card))
    assert "This bundle has none." in page.text
    assert "No figures were measured." in page.text
    assert all(name not in page.text for name in MEASURES)
