"""HTML reports in Chromium: no error, no request, no violation; by keyboard, dark, printed."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli.records import RunRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.reports import render
from tests.reports.html import browser
from tests.reports.html.pages import hostile, recorded, twenty_checkpoints

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(browser.what_is_missing()), reason=browser.what_is_missing()),
]
KINDS = ("run", "single", "comparison", "experts", "routing", "check", "twenty", "hostile")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    driver = browser.start()
    yield driver
    driver.quit()


@pytest.fixture
def opened(
    chromium: Any, tmp_path: Path, run: RunRecord, single: RunRecord, comparison: ComparisonRecord
) -> Any:
    """The browser with a kind of page open, and empty logs before it."""
    made = {"run": run, "single": single, "comparison": comparison}

    def show(kind: str) -> Any:
        if kind in made:
            record: Any = made[kind]
        elif kind == "hostile":
            record = hostile(run)
        else:
            record = twenty_checkpoints() if kind == "twenty" else recorded(kind)
        page = tmp_path / "page.html"
        page.write_text(render(record, "html"), encoding="utf-8")
        chromium.get_log("browser")
        chromium.get_log("performance")
        browser.set_dark(chromium, False)
        chromium.get(page.as_uri())
        return chromium

    return show


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def press(driver: Any, selector: str, *keys: str) -> None:
    element = find(driver, selector)
    driver.execute_script("arguments[0].focus()", element)
    element.send_keys(*keys)


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_no_request_and_no_violation(kind: str, opened: Any) -> None:
    driver = opened(kind)
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert {url for url in asked if not url.endswith("/page.html")} == set()
    if not browser.AXE.is_file():
        pytest.skip(f"axe-core is not installed ({browser.AXE})")
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.violations(driver) == []
    browser.set_dark(driver, True)
    assert browser.violations(driver) == []


def test_the_slider_by_keyboard(opened: Any) -> None:
    driver = opened("twenty")
    shown = "#map-load output"
    cells = "return [...document.querySelectorAll('#map-load rect')].map(r => r.className.baseVal)"
    assert find(driver, shown).text == "step 1,900"
    before = driver.execute_script(cells)
    assert len(before) == 48 * 128
    press(driver, "#slide-load", "\ue012", "\ue012")  # left
    assert find(driver, shown).text == "step 1,700"
    assert find(driver, "#slide-load").get_attribute("aria-valuetext") == "step 1,700"
    assert driver.execute_script(cells) != before
    press(driver, "#slide-load", "\ue010")  # end
    assert driver.execute_script(cells)[1:] == before[1:]  # but for the cell pointed at


def test_the_load_map_by_keyboard(opened: Any, run: RunRecord) -> None:
    driver = opened("run")
    press(driver, "#map-load .grid", "\ue014", "\ue015")  # right, down
    told = find(driver, "#map-load .readout").text
    share = run.newest.layers[1].load
    assert share is not None
    found = re.fullmatch(r"layer 1, expert 1: about (\S+) × its fair share \(step 3,000\)", told)
    assert found is not None
    assert float(found[1]) == pytest.approx(share[1] * 8, rel=0.03)
    press(driver, "#map-load .grid", "\ue010", "\ue007")  # end, enter
    card = find(driver, "#map-load .expert").text
    assert "layer 1, expert 7" in card
    assert "unused, by the dead-expert test" in card
    assert "code" in card


def test_sorting_by_keyboard(opened: Any) -> None:
    driver = opened("twenty")
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    head = "#table-routers th:nth-child(3)"
    column = (
        "return [...document.querySelectorAll('#table-routers tbody tr')]"
        ".map(r => Number(r.cells[2].dataset.v))"
    )
    press(driver, f"{head} button", "\ue007")
    values = driver.execute_script(column)
    assert find(driver, head).get_attribute("aria-sort") == "ascending"
    assert values == sorted(values)
    press(driver, f"{head} button", "\ue007")
    assert find(driver, head).get_attribute("aria-sort") == "descending"
    assert driver.execute_script(column) == sorted(values, reverse=True)


def test_hostile_strings_do_nothing(opened: Any) -> None:
    driver = opened("hostile")
    assert "owned" not in driver.title.split("document.title=")[0]
    assert driver.execute_script("return document.images.length") == 0
    assert driver.execute_script("return document.scripts.length") == 2
    press(driver, "#map-load .grid", "\ue014", "\ue007")
    assert driver.execute_script("return document.images.length") == 0
    assert driver.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=1\">');"
        "return window.ran === undefined"
    ), "the policy holds where escaping would not"


def test_dark_screens_and_paper(opened: Any) -> None:
    driver = opened("run")
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert driver.execute_script(ground) == "rgb(255, 255, 255)"
    browser.set_dark(driver, True)
    assert driver.execute_script(ground) == "rgb(13, 17, 23)"
    browser.set_dark(driver, False)
    pdf = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert base64.b64decode(pdf).startswith(b"%PDF")
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert (
        driver.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    )
