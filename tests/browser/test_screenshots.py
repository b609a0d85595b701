"""Pictures of every page in both themes, of runs that were trained for them: docs/screenshots, which the README shows."""

import json
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser

from tests.browser.pages import PAGES, open_page
from tests.browser.site import Site

pytestmark = [pytest.mark.full, pytest.mark.timeout(900), pytest.mark.xdist_group("browser")]

_ROOT = Path(__file__).parents[2]
_FOLDER = _ROOT / "docs" / "screenshots"


@pytest.fixture(scope="module")
def trained(site: Site) -> list[str]:
    """Ids of the runs of a small comparison of prefixes on the tiny pair."""
    base = json.loads((_ROOT / "experiments" / "tiny-prefix-8.json").read_text()) | {"num_steps": 60}
    base["evaluation"] |= {"every_steps": 10, "num_prompts": 40, "num_report_prompts": 100}
    variants = [
        {"name": "prefix 8", "changes": {}},
        {"name": "prefix 16", "changes": {"prefix": {"kind": "constant", "tokens": 16}}},
        {
            "name": "full length",
            "changes": {"prefix": {"kind": "full"}},
            "note": "What the others are measured against.",
        },
    ]
    made = site.api.post("/experiments", json={"name": "How long a prefix?", "base": base, "variants": variants})
    experiment = made.raise_for_status().json()["id"]
    runs = site.api.get(f"/experiments/{experiment}/runs").raise_for_status().json()
    for run in runs:
        site.await_run(run["id"], "succeeded")
    asked = {
        "run_id": runs[0]["id"], "prompt": "k3 k2 c2 c3 c3 5 N14 |", "max_completion_tokens": 48,
        "speakers": [{"kind": "base"}, {"kind": "teacher"}],
    }  # fmt: skip
    site.api.post("/playground/questions", json=asked).raise_for_status()
    return [run["id"] for run in runs]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_has_its_picture(
    browser: Browser, site: Site, trained: list[str], theme: Literal["light", "dark"]
) -> None:
    _FOLDER.mkdir(exist_ok=True)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=theme)
    for name in PAGES:
        page = context.new_page()
        open_page(page, site, name, trained)
        page.mouse.move(1275, 120)  # no card, no tooltip
        page.wait_for_timeout(2500)
        page.screenshot(path=_FOLDER / f"{name}-{theme}.png")
        page.close()
    context.close()
    # The README shows each of them.
    readme = (_ROOT / "README.md").read_text()
    assert [name for name in PAGES if f"docs/screenshots/{name}-{theme}.png" not in readme] == []
