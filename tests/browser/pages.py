"""The pages of the dashboard, and how to tell that one of them has been drawn."""

from playwright.sync_api import Page, expect

from tests.browser.site import Site

# Path with the ids of a finished run and of a second one, and text that its slowest part shows.
PAGES: dict[str, tuple[str, str]] = {
    "home": ("/", "Last finished"),
    "runs": ("/runs", "newest first"),
    "new-run": ("/new", "Arms and seeds"),
    "run": ("/run?id={0}", "steps in"),
    "inspect": ("/inspect?run={0}&step=0", "By position"),
    "across-rollouts": ("/inspect?run={0}&tab=Across%20rollouts", "Most divergent token types"),
    "prefix-length": ("/inspect?run={0}&tab=Prefix%20length", "An aid, not a verdict"),
    "compare": ("/compare?runs={0},{1}", "What differs in the specs"),
    "analyses": ("/analyses", "Where does the signal lie"),
    "playground": ("/playground", "One prompt for several models"),
    "checkpoints": ("/checkpoints?run={0}", "Download all"),
    "alerts": ("/alerts", "Rules"),
    "system": ("/system", "Versions and addresses"),
    "help": ("/help", "How long should my prefix be?"),
}


def open_page(page: Page, site: Site, name: str, run_ids: list[str]) -> None:
    """Go to a page and return when it is drawn and has come to rest."""
    path, says = PAGES[name]
    page.goto(site.dashboard_url + path.format(*run_ids))
    expect(page.get_by_text(says).first).to_be_visible()
    await_rest(page)


def await_rest(page: Page) -> None:
    """Return when Streamlit has run the page's script to its end."""
    expect(page.locator("[data-test-script-state='running']")).to_have_count(0)
    expect(page.locator("[data-stale='true']")).to_have_count(0)
    page.wait_for_timeout(500)  # charts and the lens draw behind the last message
