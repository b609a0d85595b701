"""A real Chromium, and one stack with finished runs that the tests of this folder look at."""

import json
import os
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from incipit.stack import LocalStack
from incipit.stack.local_token import local_token
from tests.browser.site import Site
from tests.chromium import chromium
from tests.worker.runs import short_spec


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        expect.set_options(timeout=60_000)
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack of its own, shared by all tests that leave it as it was but for runs of their own."""
    home = tmp_path_factory.mktemp("site") / "home"
    home.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("INCIPIT_")]:
            environment.delenv(name)
        environment.setenv("INCIPIT_HOME", str(home))
        with LocalStack(home) as stack:
            assert stack.dashboard_url is not None
            credentials = {"Authorization": f"Bearer {local_token(home)}"}
            address = f"{stack.api_url}/api/v1"
            with httpx.Client(base_url=address, headers=credentials, timeout=30, trust_env=False) as api:
                yield Site(home, stack.dashboard_url, api)


@pytest.fixture(scope="session")
def finished(site: Site) -> list[str]:
    """Ids of two runs that succeeded, of one experiment."""
    base = json.loads(short_spec(num_steps=12).model_dump_json())
    variants = [{"name": f"prefix {n}", "changes": {"prefix": {"kind": "constant", "tokens": n}}} for n in (4, 8)]
    asked = {"name": "two prefixes", "base": base, "variants": variants}
    made = site.api.post("/experiments", json=asked).raise_for_status().json()
    ids = [str(run["id"]) for run in site.api.get(f"/experiments/{made['id']}/runs").raise_for_status().json()]
    for run_id in ids:
        site.await_run(run_id, "succeeded")
    return ids
