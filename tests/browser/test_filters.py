"""Filters of a page are in its address and outlive a visit to another page."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.site import Site

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("browser"), pytest.mark.usefixtures("finished")]


def _go_to(page: Page, title: str, address: str) -> None:
    page.get_by_role("link", name=title, exact=True).first.click()
    expect(page).to_have_url(re.compile(address))
    expect(page.get_by_role("heading", name=title, level=1)).to_be_visible()


def test_filters_of_runs_survive_other_pages_and_a_reload(page: Page, site: Site) -> None:
    page.goto(f"{site.dashboard_url}/runs")
    search = page.get_by_role("textbox", name="Search")
    search.fill("prefix 4")
    search.press("Enter")
    expect(page).to_have_url(re.compile(r"q=prefix"))
    narrowed = page.get_by_text(re.compile(r"^1 of \d+ runs, newest first$"))
    expect(narrowed).to_be_visible()
    page.get_by_role("combobox", name="State").click()
    # By keys: while the page still moves, a list slips away from under the pointer and takes a click for none.
    page.keyboard.type("succeeded")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"state=succeeded"))
    page.keyboard.press("Escape")
    expect(narrowed).to_be_visible()
    for other in ("Help", "Alerts"):
        _go_to(page, other, f"/{other.lower()}")
        _go_to(page, "Runs", r"/runs\?.*q=prefix.*state=succeeded")
        expect(search).to_have_value("prefix 4")
        expect(narrowed).to_be_visible()
    page.reload()
    expect(search).to_have_value("prefix 4")
    expect(narrowed).to_be_visible()


def test_a_layout_of_runs_is_none_of_the_playground(page: Page, site: Site) -> None:
    page.goto(f"{site.dashboard_url}/runs")
    page.get_by_role("radio", name="list").click()
    expect(page).to_have_url(re.compile(r"layout=list"))
    _go_to(page, "Playground", "/playground")
    expect(page.get_by_test_id("stException")).to_have_count(0)
    _go_to(page, "Runs", r"layout=list")
