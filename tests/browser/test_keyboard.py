"""Everything that matters is reached without a mouse."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import open_page
from tests.browser.site import Site

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("browser")]

_MOST_TABS = 80
# What has the focus, looked for inside of shadow roots too.
_FOCUSED = """() => {
  let node = document.activeElement;
  while (node?.shadowRoot?.activeElement) node = node.shadowRoot.activeElement;
  const text = node.innerText ?? "";  // a region that scrolls has the focus too, and all of its text
  return [node.getAttribute("aria-label"), text.length < 60 ? text : ""].filter(Boolean).join(" ");
}"""


def _tab_to(page: Page, label: str) -> None:
    """Press Tab until something with this label has the focus."""
    seen = []
    for _ in range(_MOST_TABS):
        page.keyboard.press("Tab")
        seen.append(str(page.evaluate(_FOCUSED)).strip())
        if re.search(label, seen[-1]):
            return
    raise AssertionError(f"{_MOST_TABS} times Tab led to no {label!r}, but to {seen}")


def test_a_token_is_found_and_pinned(page: Page, site: Site, finished: list[str]) -> None:
    open_page(page, site, "inspect", finished)
    _tab_to(page, r"^position 1\b")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("p")
    expect(page.locator(".pinned")).to_have_count(1)
    expect(page, "the pin is in the address").to_have_url(re.compile("tok=1"))


def test_a_run_is_stopped(page: Page, site: Site) -> None:
    run_id = site.submit("by keys", num_steps=3000)
    site.await_run(run_id, "running", step=5)
    page.goto(f"{site.dashboard_url}/run?id={run_id}")
    expect(page.get_by_role("button", name="Stop…")).to_be_visible()
    _tab_to(page, r"Stop…")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop now", exact=True)).to_be_visible()
    _tab_to(page, r"Stop now")
    page.keyboard.press("Enter")
    expect(page.get_by_text("stopped").first).to_be_visible()
    site.await_run(run_id, "cancelled")
