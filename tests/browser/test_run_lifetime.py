"""A run seen through the browser: reloaded in its middle, stopped and tried again, watched while the API dies."""

import os
import re
import signal

import pytest
from playwright.sync_api import Page, expect

from incipit.stack.state import read_state
from tests.browser.site import Site

pytestmark = [pytest.mark.timeout(420), pytest.mark.xdist_group("browser")]

_LONG = {"num_steps": 3000, "checkpoints": {"every_steps": 20}}
_STEP = re.compile(r"step ([\d,]+) of 3,000")


def _shown_step(page: Page) -> int:
    progress = page.get_by_text(_STEP).first
    expect(progress).to_be_visible()
    found = _STEP.search(progress.inner_text())
    assert found
    return int(found.group(1).replace(",", ""))


def _stop(page: Page, button: str) -> None:
    page.get_by_role("button", name="Stop…").click()
    page.get_by_role("button", name=button, exact=True).click()


def test_a_reload_in_mid_run_shows_the_run_as_it_is_and_stopping_says_what_is_lost(page: Page, site: Site) -> None:
    run_id = site.submit("reloaded", **_LONG)
    site.await_run(run_id, "running", step=25)
    page.goto(f"{site.dashboard_url}/run?id={run_id}&panel=Log")
    before = _shown_step(page)
    page.reload()
    expect(page.get_by_text("running").first).to_be_visible()
    assert _shown_step(page) >= before >= 25
    expect(page.get_by_role("radio", name="Log")).to_be_checked()
    page.get_by_role("button", name="Stop…").click()
    said = page.get_by_text(
        re.compile(r"the newest is of step [\d,]+, so [\d,]+ steps are lost|none of its steps is lost")
    )
    expect(said).to_be_visible()
    page.get_by_role("button", name="Stop and save", exact=True).click()
    expect(page.get_by_text("stopped").first).to_be_visible()
    stopped_at = site.run(run_id)["step"]
    page.get_by_role("button", name="Try again…").click()
    page.get_by_role("button", name=f"Go on from step {stopped_at:,}").click()
    expect(page.get_by_text("running").first).to_be_visible()
    assert _shown_step(page) >= stopped_at
    _stop(page, "Stop now")
    expect(page.get_by_text("stopped").first).to_be_visible()


def test_a_paused_run_goes_on_where_it_was(page: Page, site: Site) -> None:
    run_id = site.submit("paused", **_LONG)
    site.await_run(run_id, "running", step=5)
    page.goto(f"{site.dashboard_url}/run?id={run_id}")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text(re.compile(r"Paused at step [\d,]+ of 3,000"))).to_be_visible()
    step = site.run(run_id)["step"]
    page.get_by_role("button", name="Resume").click()
    site.await_run(run_id, "running", step=step + 1)
    _stop(page, "Stop now")
    expect(page.get_by_text("stopped").first).to_be_visible()


def test_while_the_api_is_dead_the_page_says_so_and_then_goes_on(page: Page, site: Site) -> None:
    """The stack starts it again; the run has not noticed, and the page needs no reload."""
    run_id = site.submit("through an outage", **_LONG)
    site.await_run(run_id, "running", step=5)
    page.goto(f"{site.dashboard_url}/run?id={run_id}")
    before = _shown_step(page)
    state = read_state(site.home)
    assert state is not None
    (api,) = (service for service in state.services if service.name == "api")
    os.kill(api.pid, signal.SIGSTOP)  # a dead one is back before a person could read about it
    expect(page.get_by_text("Cannot reach the API").or_(page.get_by_text("did not answer")).first).to_be_visible()
    assert page.get_by_text("Traceback").count() == 0
    os.kill(api.pid, signal.SIGKILL)
    site.await_api()
    expect(page.get_by_text(_STEP).first).to_be_visible()
    assert _shown_step(page) >= before
    assert site.run(run_id)["attempt"] == 1
    _stop(page, "Stop now")
    expect(page.get_by_text("stopped").first).to_be_visible()
