"""Two models whose tokens are attacks go the whole way: engine, journal, database, API, pages. Nothing of them runs."""

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from engine.locations import resolve
from tests.browser.pages import PAGES, await_rest
from tests.browser.site import Site

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("browser"), pytest.mark.attack(20)]

_ATTACKS = (
    '<img src=x onerror="window.pwned=1">',
    "<script>window.pwned=1</script>",
    "![x](http://attack.invalid/x.png)",
    "[x](javascript:window.pwned=1)",
    "\u202egnitirw\u202c",
    "\x1b[31m\x07\x00",
    "$\\href{javascript:window.pwned=1}{x}$",
    "w" * 65_536,
)


def _hostile(model: str, folder: Path) -> str:
    """A copy of a tiny model that writes attacks where it wrote its plan and results."""
    shutil.copytree(resolve(f"builtin:tiny/models/{model}"), folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    written = [token for token, number in vocabulary.items() if number in range(31, 49) or number >= 65]
    renamed = {token: f"{_ATTACKS[i % len(_ATTACKS)]}{i}" for i, token in enumerate(written)}
    tokenizer["model"]["vocab"] = {renamed.get(token, token): number for token, number in vocabulary.items()}
    path.write_text(json.dumps(tokenizer))
    return str(folder)


def test_text_of_models_and_people_does_nothing(page: Page, site: Site, finished: list[str], tmp_path: Path) -> None:
    run_id = site.submit(
        "hostile",
        note=" ".join(_ATTACKS[:5]),
        student={"path": _hostile("student-plan", tmp_path / "student")},
        teacher={"path": _hostile("teacher", tmp_path / "teacher")},
    )
    site.await_run(run_id, "succeeded")
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url))
    for name, (path, _) in PAGES.items():
        page.goto(site.dashboard_url + path.format(run_id, finished[0]))
        expect(page.locator("h1").first).to_be_visible()
        await_rest(page)
        assert page.evaluate("window.pwned") is None, f"{name} has run it"
        assert page.locator("img[onerror], img[src='x'], a[href^='javascript']").count() == 0, f"{name} has built it"
    page.goto(f"{site.dashboard_url}/inspect?run={run_id}&step=0")
    expect(page.locator(".token").first).to_be_visible()
    shown = page.locator(".lens").inner_text()
    assert any(attack in shown.replace("·", " ") for attack in _ATTACKS[:4]), "the text itself is shown"
    elsewhere = [url for url in asked if urlsplit(url).netloc not in (urlsplit(site.dashboard_url).netloc, "")]
    assert elsewhere == [], "nothing leaves this machine"
