"""The dataset's report says what is in the data, escapes it, and fetches nothing."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_group import RATINGS, REFERENCE, made_up_group, write_volumes
from plotly.offline import get_plotlyjs
from sklearn.metrics import roc_auc_score

from bids_harmony.reports.group import (
    age_rows,
    page_data,
    probability_tables,
    script_json,
    site_rows,
    write_group_report,
)
from bids_harmony.reports.group_figures import _Grid, dataset_pictures

NASTY = "<script>alert(1)</script>"


def test_sites_as_in_the_papers_tables_with_statuses_flags_and_ratings() -> None:
    group = made_up_group(9)
    group.scans["age"] = [20.0, 30, np.nan, 40, 50, 60, 60, 70, 80]
    group.scans.loc[0, "model"] = "Trio"
    group.scans["repetition_time"] = 2.3
    rows = {row["site"]: row for row in site_rows(group)}
    assert list(rows) == ["A", "B", REFERENCE, "All sites"]
    assert (rows[REFERENCE]["n"], rows["All sites"]["n"]) == (3, 9)
    assert (rows[REFERENCE]["age"], rows[REFERENCE]["ages"]) == ("40.0", "20 to 60")
    assert rows["B"]["ages"] == "60 to 80, unknown for 1"
    assert rows[REFERENCE]["scanner"] == "Siemens (2), Siemens Trio (1)"
    assert (rows["A"]["field"], rows["A"]["protocol"]) == ("3 T", "TR 2.3 s")
    assert rows["A"]["voxel"] == "1 × 1 × 1 mm"
    assert rows["All sites"]["diagnosis"] == "control (6), schizophrenia (3)"
    group = made_up_group(60)
    group.scans.loc[[0, 3], "rating"] = ["reject", "disputed"]
    total = site_rows(group)[-1]
    assert (total["n"], total["pass"], total["warn"], total["error"]) == (60, 56, 3, 1)
    assert (total["flagged"], total["reject"], total["disputed"]) == (3, 1, 1)


def test_brain_age_is_measured_on_scans_that_were_not_rejected() -> None:
    group = made_up_group(300)
    group.scans.loc[3, "rating"] = "reject"
    assert "raw_offset" not in age_rows(group)[0]
    rows = {row["site"]: row for row in age_rows(replace(group, line=(0.8, 9.0)))}
    predicted = group.scans.dropna(subset=["brain_age_raw"])
    assert rows[REFERENCE]["n"] == (predicted["site"] == REFERENCE).sum() - 1
    row, here = rows["A"], predicted[predicted["site"] == "A"]
    error = here["brain_age_raw"] - here["age"]
    apart = here["brain_age_raw"] - (0.8 * here["age"] + 9)
    for name, values in (("bias", error), ("offset", apart)):
        ends = row[f"raw_{name}_low"], row[f"raw_{name}_high"]
        half = 1.96 * values.std() / np.sqrt(len(values))
        assert row[f"raw_{name}"] == pytest.approx(values.mean())
        assert ends == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15)
    assert row["raw_mae"] == pytest.approx(error.abs().mean())
    assert row["raw_scatter"] == pytest.approx(apart.std())
    assert row["raw_scatter_low"] < row["raw_scatter"] < row["raw_scatter_high"]
    assert row["raw_r"] == pytest.approx(here["brain_age_raw"].corr(here["age"]))
    assert row["change"] <= row["change_high"] < 0


def test_the_unit_of_resampling_is_the_person() -> None:
    """Ten scans of each person say no more than one, and few persons have no interval."""
    one = made_up_group(30, (REFERENCE,))
    copies = [
        one.scans.assign(
            person=one.scans["participant_id"], participant_id=f"sub-{i}-" + one.scans["scan"]
        )
        for i in range(10)
    ]
    (few,) = age_rows(one)
    (more,) = age_rows(replace(one, scans=pd.concat(copies, ignore_index=True)))
    assert (few["n"], few["people"], more["n"], more["people"]) == (30, 30, 300, 30)
    assert more["raw_mae_high"] == pytest.approx(few["raw_mae_high"])
    row = {row["site"]: row for row in age_rows(made_up_group(6))}["A"]
    assert row["n"] == 2
    assert np.isnan([row["raw_r"], row["raw_mae_low"]]).all()
    four = replace(one, scans=pd.concat([one.scans.head(4)] * 10, ignore_index=True))
    (row,) = age_rows(four)
    assert (row["n"], row["people"]) == (40, 4)
    assert np.isnan(row["raw_r"])
    assert row["raw_mae_low"] < row["raw_mae_high"]
    one.scans["diagnosis"] = ["schizophrenia", *["control"] * 29]
    (found,) = probability_tables(one)[0]["separation"]
    assert 0 <= found["raw"] <= 1
    assert np.isnan(found["raw_low"])


def test_separation_of_diagnoses() -> None:
    group = made_up_group(200)
    column = "schizophrenia_probability_raw"
    group.scans[column] = group.scans[column].round(1)
    (table,) = probability_tables(group)
    known = group.scans.dropna(subset=[column])
    expected = roc_auc_score(known["diagnosis"] == "schizophrenia", known[column])
    (row,) = table["separation"]
    assert (row["diagnosis"], row["against"]) == ("schizophrenia", "control")
    assert row["raw"] == pytest.approx(expected)
    assert row["raw_low"] < row["raw"] < row["raw_high"]
    assert table["simulated"]


def test_pictures_of_the_dataset(tmp_path: Path) -> None:
    group = made_up_group(8, (REFERENCE, "A"))
    write_volumes(group, tmp_path, list(group.scans["scan"]))
    broken = tmp_path / group.volumes["sub-00001"]["harmonized"]
    broken.write_bytes(broken.read_bytes()[:100])
    pictures, notes = dataset_pictures(group, tmp_path)
    assert [(p["site"], p["n"], p["n_all"]) for p in pictures] == [(REFERENCE, 4, 4), ("A", 3, 4)]
    assert len(notes) == 1
    assert "sub-00001" in notes[0]
    assert all(pictures[1][name] for name in ("histograms", "maps"))
    # The sites look alike, and the made-up harmonization brightens by a tenth.
    brain = pictures[1]["distances"][0]
    assert brain["tissue"] == "whole brain"
    assert brain["before"] < 0.01 < brain["after"]
    first = write_group_report(group, tmp_path).read_bytes()
    assert write_group_report(group, tmp_path).read_bytes() == first


def test_pictures_show_the_grid_that_most_have_with_the_front_at_the_top(tmp_path: Path) -> None:
    group = made_up_group(5, ("A",))
    assert dataset_pictures(group, tmp_path)[0] == []
    assert "no images" in write_group_report(group, tmp_path).read_text().lower()
    write_volumes(group, tmp_path, list(group.scans["scan"]))
    group.scans["template"], group.scans["resolution"] = "T", [1.0, 2.0, 2.0, 1.0, 2.0]
    ((site,), notes) = dataset_pictures(group, tmp_path)
    assert (site["n"], site["n_all"], site["distances"]) == (3, 3, [])
    assert notes[0] == "2 of 5 scans are on another template grid than most and are not shown."
    assert f"reference site {REFERENCE}" in notes[1]
    volume = np.zeros((4, 6, 5))
    volume[0, 5, 2], volume[3, 0, 2] = 1, 2
    grid = _Grid(volume.shape, np.eye(4), (slice(4), slice(6)), [2])
    assert grid.axial(volume)[0, 0] == 1, "left and front"
    assert grid.axial(volume)[-1, -1] == 2


def test_page_escapes_what_it_shows_and_fetches_nothing(tmp_path: Path) -> None:
    group = made_up_group(40, (REFERENCE, NASTY))
    group.scans.loc[1, "error"] = NASTY
    group.scans.loc[2, "diagnosis"] = NASTY
    ratings = pd.DataFrame([("sub-00001", NASTY, "2026-01-01T00:00:00Z", "unsure", NASTY)],
                           columns=list(RATINGS))  # fmt: skip
    path = write_group_report(replace(group, ratings=ratings), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert path.name == "group_T1w.html"
    assert text.count("<script>alert") == 0
    assert NASTY in html.unescape(text)
    own = text.replace(get_plotlyjs(), "")
    assert len(re.findall("<script", own)) == 3
    addresses = re.findall(r'<[^>]* (?:src|href|srcset|action)="([^"]*)', own)
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in addresses)
    start = text.index('id="data">') + len('id="data">')
    data = json.loads(text[start : text.index("</script>", start)])
    assert data["ratings"][0][4] == NASTY
    assert "Trained on simulated labels" in text


def test_page_without_a_bundle_and_without_scans(tmp_path: Path) -> None:
    group = made_up_group(5)
    bare = replace(group, bundle=None, targets=(), scans=group.scans.drop(
        columns=[c for c in group.scans if c.startswith(("brain_age", "schizo"))]))  # fmt: skip
    text = write_group_report(bare, tmp_path).read_text(encoding="utf-8")
    assert "no model bundle was used" in text
    empty = replace(bare, scans=bare.scans.iloc[:0], flags={}, figures={})
    assert "No scans were found" in write_group_report(empty, tmp_path).read_text(encoding="utf-8")


def test_data_are_compact() -> None:
    group = made_up_group(100)
    group.scans.loc[0, "noise"] = 1.23456789
    data = page_data(group)
    assert data["numbers"]["noise"][0] == 1.2346
    assert data["numbers"]["noise"][49] is None
    assert data["texts"]["diagnosis"]["levels"] == ["control", "schizophrenia"]
    assert data["patterns"] == ["{p}/figures/{s}_desc-brainmask_T1w.png"]
    assert list(data["flags"]) == [0, 20, 40, 60, 80]
    assert len(script_json(data)) < 100 * 700 + 15_000
    group = replace(group, targets=("skull",))
    group.scans["skull_strip"], group.scans["skull_raw"] = "bet", 1.5
    numbers = page_data(group)["numbers"]
    assert numbers["skull_raw"] == [1.5] * 100
    assert "skull_strip" not in numbers, "its name begins alike"
