"""A telephone, 390 pixels wide: Home, Runs and Run are whole, and a run can be stopped."""

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.pages import open_page
from tests.browser.site import Site

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("browser")]

_WIDTH = 390
# Elements of the page that reach beyond the screen, but for those in a box that scrolls by itself.
_BEYOND = """width => [...document.querySelectorAll("[data-testid='stMain'] *")].filter(node => {
  if (node.getBoundingClientRect().right <= width + 1 || !node.getClientRects().length) return false;
  for (let box = node.parentElement; box; box = box.parentElement)
    if (box.dataset.testid !== "stMain" && ["auto", "scroll", "hidden"].includes(getComputedStyle(box).overflowX)) return false;
  return true;
}).map(node => node.outerHTML.slice(0, 160))"""


def test_pages_fit_and_a_run_can_be_stopped(browser: Browser, site: Site, finished: list[str]) -> None:
    context = browser.new_context(viewport={"width": _WIDTH, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    for name in ("home", "runs", "run"):
        open_page(page, site, name, finished)
        assert page.evaluate(_BEYOND, _WIDTH) == [], f"{name} is wider than the screen"
    run_id = site.submit("on the way", num_steps=3000)
    site.await_run(run_id, "running", step=5)
    page.goto(f"{site.dashboard_url}/run?id={run_id}")
    page.get_by_role("button", name="Stop…").tap()
    page.get_by_role("button", name="Stop now", exact=True).tap()
    expect(page.get_by_text("stopped").first).to_be_visible()
    site.await_run(run_id, "cancelled")
    context.close()
