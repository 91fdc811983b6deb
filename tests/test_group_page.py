"""The dataset's report in a browser: real clicks and keys in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up_group import RATINGS, REFERENCE, made_up_group

from bids_harmony.qc.ratings import merge_ratings, read_ratings
from bids_harmony.reports.group import write_group_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NASTY = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as api:
        found = api.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_group_report(made_up_group(200), tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    yield from opened(browser, page_file)


def opened(browser: Any, path: Path) -> Iterator[Any]:
    """Open a page in a browser that remembers nothing; any script error fails the test."""
    context = browser.new_context(accept_downloads=True, viewport={"width": 1200, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert not errors


def scans_in(page: Any) -> list[str]:
    return page.locator("#list tbody tr td:nth-child(2)").all_inner_texts()


def name_rater(page: Any, name: str) -> None:
    page.fill("#who-name", name)
    page.keyboard.press("Enter")
    # The verdict follows the dialog's closing, which the browser tells in its own time.
    page.locator("#rater", has_text=name).wait_for()


def saved(page: Any, to: Path) -> Path:
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "qc_ratings.tsv"
    download.value.save_as(to)
    return to


def test_the_list_is_sorted_paged_and_filtered(page: Any) -> None:
    assert scans_in(page)[:3] == ["sub-00000", "sub-00020", "sub-00040"], "flagged ones first"
    assert len(scans_in(page)) == 50
    page.click("#page-on")
    assert page.inner_text("#page") == "Page 2 of 4"
    page.click("#list th button >> text=Scan")
    assert scans_in(page)[:2] == ["sub-00000", "sub-00001"]
    page.select_option("#f-site", "A")
    page.select_option("#f-status", "error")
    assert scans_in(page) == ["sub-00049", "sub-00199"]
    page.fill("#f-text", "SCAN 199")
    assert scans_in(page) == ["sub-00199"]
    page.fill("#f-text", "")
    page.select_option("#f-site", "")
    page.select_option("#f-status", "")
    page.check("#f-flagged")
    assert len(scans_in(page)) == 10
    page.keyboard.press("j")
    page.keyboard.press("u")
    name_rater(page, "ann")
    page.select_option("#f-rating", "none")
    assert "sub-00020" not in scans_in(page)
    assert len(scans_in(page)) == 9


def test_a_scan_opens_with_its_pictures_reasons_and_metrics(page: Any) -> None:
    page.click("text=sub-00020")
    panel = page.locator("#panel")
    assert panel.locator("h2").inner_text() == "sub-00020"
    assert "Noise is far above the site's." in panel.inner_text()
    assert "trained on simulated labels; not a diagnosis" in panel.inner_text()
    assert panel.locator("#p-report").get_attribute("href") == "sub-00020.html"
    # The picture is not there, which the page says.
    expected = "sub-00020/figures/sub-00020_desc-brainmask_T1w.png is not beside this page"
    panel.get_by_text(expected).wait_for()
    assert panel.locator("tr.flagged th").inner_text() == "Noise (flagged)"
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    page.fill("#f-text", "00049")
    page.keyboard.press("Enter")
    page.keyboard.press("c")
    assert "Scan 49 is broken." in panel.inner_text()


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_rating_with_keys_alone(page: Any, tmp_path: Path) -> None:
    press(page, "?")
    assert "accept, reject, unsure" in page.inner_text("#help")
    press(page, "?")
    assert not page.locator("#help").is_visible()
    press(page, "j", "Enter", "r")
    name_rater(page, "ann")
    press(page, "c")
    page.keyboard.insert_text("ghost\there, ")
    page.keyboard.type("j and r too")
    press(page, "Escape", "j", "a", "j", "u", "x", "Escape", "/")
    page.keyboard.type("sub-00007")
    press(page, "Enter", "u")
    assert page.inner_text("#unsaved") == "4 new ratings, not saved yet"
    ratings, problems = read_ratings([saved(page, tmp_path / "qc_ratings.tsv")])
    assert not problems
    assert list(ratings["rater"].unique()) == ["ann"]
    rows = ratings.set_index("scan")
    assert rows["verdict"].to_dict() == {
        "sub-00007": "unsure", "sub-00020": "reject", "sub-00040": "accept", "sub-00060": "",
    }  # fmt: skip
    assert rows["comment"]["sub-00020"] == "ghost here, j and r too"
    assert rows["time"].str.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").all()
    assert "saved to a file" in page.inner_text("#unsaved")


def test_a_second_rater_keeps_the_firsts_ratings(browser: Any, tmp_path: Path) -> None:
    first = [("sub-00000", "ann", "2026-01-01T10:00:00Z", "accept", "fine"),
             ("sub-00000", "ann", "2026-01-02T10:00:00Z", "maybe", "no verdict of ours"),
             ("sub-00005", "ann", "2026-01-01T10:01:00Z", "reject", "")]  # fmt: skip
    ratings = pd.DataFrame(first, columns=list(RATINGS))
    path = write_group_report(replace(made_up_group(40), ratings=ratings), tmp_path)
    for page in opened(browser, path):
        assert "accept (ann)" in page.inner_text("#list tbody tr:first-child")
        page.keyboard.press("Enter")
        page.keyboard.press("r")
        name_rater(page, "bob")
        said = page.inner_text("#p-said")
        assert said.startswith("Raters disagree.")
        assert "ann: accept, “fine”" in said
        assert "bob: reject" in said
        page.keyboard.press("Escape")
        page.select_option("#f-rating", "disputed")
        assert scans_in(page) == ["sub-00000"]
        merged, _ = read_ratings([saved(page, tmp_path / "saved.tsv")])
    assert len(merged) == 4
    assert {k: v.verdict for k, v in merge_ratings(merged).items()} == {
        "sub-00000": "disputed", "sub-00005": "reject",
    }  # fmt: skip


def test_ratings_outlive_the_page_and_a_refused_storage_is_no_obstacle(page: Any) -> None:
    page.keyboard.press("a")
    name_rater(page, "ann")
    warned = []
    page.on("dialog", lambda dialog: (warned.append(dialog.type), dialog.accept()))
    page.reload()
    assert warned == ["beforeunload"]
    assert page.inner_text("#unsaved") == "1 new rating, not saved yet"
    assert page.inner_text("#rater") == "ann"
    assert "accept (ann)" in page.inner_text("#list tbody tr:first-child")
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})"
    )
    page.reload()
    page.keyboard.press("r")
    name_rater(page, "bob")
    assert "reject (bob)" in page.inner_text("#list tbody tr:first-child")


def test_charts_are_drawn_and_a_click_on_a_point_opens_its_scan(page: Any) -> None:
    page.locator("#ages").scroll_into_view_if_needed()
    page.locator("#ages .legendtext").first.wait_for()
    assert "A (n = 65)" in page.locator("#ages .legendtext").all_text_contents()
    chart = page.locator(".probability")
    chart.scroll_into_view_if_needed()
    chart.locator(".ytick").first.wait_for()
    assert "simulated labels" in chart.locator(".xtitle").first.text_content()
    page.locator("#metric").scroll_into_view_if_needed()
    page.select_option("#metric", "noise")
    points = page.locator("#strips .trace .point")
    points.first.wait_for()
    assert points.count() == 196 + 10
    assert "Lower is better" in page.inner_text("#metric-text")
    box = page.locator("#strips").bounding_box()
    where = page.evaluate(
        "() => { const g = document.getElementById('strips'), t = g.data[0], k = 17, l = "
        "g._fullLayout; return [l.xaxis.l2p(t.x[k]) + l._size.l, l.yaxis.l2p(t.y[k]) + "
        "l._size.t, t.customdata[k]] }"
    )
    page.mouse.click(box["x"] + where[0], box["y"] + where[1])
    page.locator("#panel").wait_for()
    assert page.inner_text("#p-title") == f"sub-{where[2]:05d}"


def test_text_of_the_dataset_runs_nothing(browser: Any, tmp_path: Path) -> None:
    group = made_up_group(40, (REFERENCE, NASTY))
    group.scans["diagnosis"] = NASTY
    ratings = pd.DataFrame([("sub-00001", NASTY, "2026-01-01T00:00:00Z", "unsure", NASTY)],
                           columns=list(RATINGS))  # fmt: skip
    group.scans.loc[1, "error"] = NASTY
    path = write_group_report(replace(group, ratings=ratings), tmp_path)
    for page in opened(browser, path):
        page.fill("#f-text", "sub-00001")
        page.keyboard.press("Enter")
        page.keyboard.press("c")
        assert NASTY in page.inner_text("#p-body")
        assert NASTY in page.inner_text("#p-said")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        for chart in ("#strips", "#ages", ".probability"):
            page.locator(chart).scroll_into_view_if_needed()
            page.locator(f"{chart} .main-svg").first.wait_for()
        labels = page.locator("#strips .ytick").all_text_contents()
        assert any(NASTY[:20] in label for label in labels)
        assert NASTY in page.locator("#ages .legendtext").first.text_content()
        assert page.evaluate("window.hit") is None


@pytest.mark.slow
def test_ten_thousand_scans(browser: Any, tmp_path: Path) -> None:
    sites = (REFERENCE, *[f"Site {i}" for i in range(9)])
    path = write_group_report(made_up_group(10_000, sites), tmp_path)
    assert path.stat().st_size < 20e6
    for page in opened(browser, path):
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        took = page.evaluate(
            "() => { const t = performance.now(); document.getElementById('f-text').value = '77';"
            "document.getElementById('filters').dispatchEvent(new Event('input'));"
            "document.body.offsetHeight; return performance.now() - t; }"
        )
        assert len(scans_in(page)) == 50
    assert loaded <= 3000
    assert took <= 200
