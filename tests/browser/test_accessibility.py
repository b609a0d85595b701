"""Every page in both themes, scanned with axe-core: no serious finding, but for those that are Streamlit's own."""

from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.browser.pages import PAGES, open_page
from tests.browser.site import Site

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("browser")]

# Streamlit uses the theme's primary colour both as text and under white text: no blue is readable as both in a dark theme.
# Ours is for white text; what it writes in the colour itself is left to https://github.com/streamlit/streamlit/issues/12801.
_UPSTREAM = {"color-contrast": "[data-testid='stSlider'], button[data-selected='true']"}
_GROUND = "getComputedStyle(document.querySelector('.stApp')).backgroundColor"
_IS_WITHIN = "([target, selector]) => Boolean(document.querySelector(target)?.closest(selector))"


@pytest.mark.parametrize(
    ("theme", "ground"),
    [pytest.param("light", "rgb(255, 255, 255)", marks=pytest.mark.full), ("dark", "rgb(14, 17, 23)")],
)
def test_no_page_has_a_serious_finding(
    browser: Browser, site: Site, finished: list[str], theme: Literal["light", "dark"], ground: str
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, color_scheme=theme)
    found: list[str] = []
    for name in PAGES:
        page = context.new_page()
        open_page(page, site, name, finished)
        assert page.evaluate(_GROUND) == ground, f"{name} is {theme}"
        found += [f"{name}: {sentence}" for sentence in _serious_findings(page)]
        page.close()
    context.close()
    assert not found, "\n".join(found)


def _serious_findings(page: Page) -> list[str]:
    return [
        f"{violation['id']} ({violation['impact']}) at {node['target']}: {node['html'][:200]}"
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if not _is_streamlits(page, violation["id"], node["target"])
    ]


def _is_streamlits(page: Page, rule: str, target: list[Any]) -> bool:
    """Whether a known fault of Streamlit's own elements; a target in a shadow root, which is a list, never is."""
    return (
        rule in _UPSTREAM
        and isinstance(target[0], str)
        and bool(page.evaluate(_IS_WITHIN, [target[0], _UPSTREAM[rule]]))
    )
