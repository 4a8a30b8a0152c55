"""The report's page as a reader opens it, in a real browser: with and without its script, wide and narrow."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from cai.report.page import page
from tests.test_report import HOSTILE, known_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((place for name in names if (place := shutil.which(name))), None)
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        if found is None and not Path(own).exists():
            pytest.skip("no Chromium or Chrome on this machine")
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=found or own, args=as_root)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    (folder / "report.html").write_text(page(known_run(folder / "run", " ".join(HOSTILE)), "data/runs/first"))
    return (folder / "report.html").as_uri()


class Opened:
    """A page that was opened, with what it asked for and complained of."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page: Page = browser.new_context(**options).new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def shown(self) -> int:
        return self.page.locator(".rows > li:visible").count()


def test_rows_are_searched_and_filtered_and_nothing_is_fetched_or_complained_of(browser: Browser, report: str):
    opened = Opened(browser, report)
    assert opened.shown() == 5
    opened.page.get_by_label("What became of it").select_option("benign")
    assert opened.shown() == 2
    opened.page.get_by_label("Search in the rows").fill("CAN'T HELP")
    assert opened.shown() == 1 and "1 of 5 rows shown" in opened.page.get_by_role("status").inner_text()
    opened.page.get_by_label("What became of it").select_option("")
    opened.page.get_by_label("Search in the rows").fill("")
    opened.page.get_by_label("Criticised by", exact=True).select_option("physical-safety")
    assert opened.shown() == 3
    opened.page.get_by_label("Search in the rows").fill("no row has this")
    assert opened.shown() == 0
    opened.page.get_by_label("Search in the rows").fill("")
    opened.page.get_by_role("button", name="Open or close").click()
    assert opened.page.locator(".rows > li > details[open]").count() == 3
    assert opened.asked == [report] and opened.complaints == []


def test_texts_that_mean_harm_are_there_to_be_read_and_do_nothing(browser: Browser, report: str):
    opened = Opened(browser, report)
    opened.page.get_by_role("button", name="Open or close").click()
    assert opened.page.title() == "cai report of data/runs/first"
    assert "<img src=x onerror=document.title='owned'>" in opened.page.locator("#rows").inner_text()
    assert opened.page.locator("#rows :is(script, img, base, svg, style)").count() == 0


def test_it_can_be_read_without_its_script(browser: Browser, report: str):
    opened = Opened(browser, report, java_script_enabled=False)
    assert opened.shown() == 5 and opened.page.locator("form.tools").is_hidden()
    assert opened.page.locator("figure svg:visible").count() >= 4
    opened.page.locator(".rows summary", has_text="benign-1").first.click()
    assert opened.page.locator(".rows del:visible").first.inner_text() == "one two three four"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_anybody_from_reading_it(browser: Browser, report: str, scheme: Any):
    opened = Opened(browser, report, bypass_csp=True, color_scheme=scheme)  # axe is put into the page
    opened.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = Axe().run(opened.page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []


@pytest.mark.parametrize("width", [360, 1280])
def test_no_screen_has_to_be_moved_sideways(browser: Browser, report: str, width: int):
    opened = Opened(browser, report, viewport={"width": width, "height": 800})
    opened.page.get_by_role("button", name="Open or close").click()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_is_printed_has_the_tables_in_full_and_no_tools(browser: Browser, report: str):
    opened = Opened(browser, report)
    opened.page.emulate_media(media="print")
    assert opened.page.locator("form.tools").is_hidden() and opened.page.locator("nav").is_hidden()
    assert opened.page.locator(".scroll").first.evaluate("one => getComputedStyle(one).overflowX") == "visible"
    assert len(opened.page.pdf()) > 10_000
