"""The report's page in a real browser, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_study

from eval_suite.reporting.write import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium to look at the page with")
NARROW = 400


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page that is alone in its folder: what it shows, it holds."""
    page = write_report([write_study(tmp_path_factory.mktemp("browser") / "study")])
    alone = tmp_path_factory.mktemp("alone") / "report.html"
    return Path(shutil.copy(page, alone)).as_uri()


def opened(browser: Any, address: str, **options: Any) -> tuple[Any, list[str]]:
    """Open the page offline; return it and what it complained of."""
    page = browser.new_context(offline=True, **options).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.goto(address)
    return page, complaints


def test_images_load_and_tables_sort_without_complaint(browser: Any, address: str) -> None:
    page, complaints = opened(browser, address)
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) > 10
    assert min(widths) > 0

    table = page.locator("table").first
    title = table.locator("th", has_text="mean ± std")
    keys = "cells => cells.map(cell => cell.dataset.key)"
    before = table.locator("td.value").evaluate_all(keys)
    title.locator("button").click()
    rising = table.locator("td.value").evaluate_all(keys)
    assert rising[:-1] == sorted(filter(None, before), key=float)
    assert rising[-1] is None  # what is missing is last
    assert title.get_attribute("aria-sort") == "ascending"
    title.locator("button").press("Enter")  # by keyboard, too
    falling = table.locator("td.value").evaluate_all(keys)
    assert falling == [*rising[-2::-1], None]
    table.locator("th", has_text="model").locator("button").click()
    assert title.get_attribute("aria-sort") is None
    assert complaints == []


def test_the_page_follows_the_colour_scheme_and_fits_a_phone(browser: Any, address: str) -> None:
    backgrounds = set()
    for scheme in ("light", "dark"):
        page, complaints = opened(
            browser, address, color_scheme=scheme, viewport={"width": NARROW, "height": 800})
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW
        assert complaints == []
    assert len(backgrounds) == 2
