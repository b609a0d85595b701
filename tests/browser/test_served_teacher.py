"""A teacher on servers, as a spec in the form names it: looked at by a worker, trained with, and asked in the playground."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import await_rest
from tests.browser.site import Site
from tests.engine.stand_in_vllm import StandInVllm
from tests.worker.runs import short_spec

pytestmark = [pytest.mark.full, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]


@pytest.fixture
def server() -> Iterator[StandInVllm]:
    one = StandInVllm("builtin:tiny/models/teacher")
    yield one
    one.stop()


def test_a_teacher_on_a_server_is_looked_at_trained_with_and_asked(
    page: Page, site: Site, server: StandInVllm, tmp_path: Path
) -> None:
    backend = {"kind": "vllm_servers", "servers": [{"address": server.address}], "top_k": 8}
    spec = tmp_path / "spec.json"
    spec.write_text(short_spec(num_steps=6, teacher_backend=backend).model_dump_json())
    page.goto(f"{site.dashboard_url}/new")
    page.get_by_text("Import or export").click()
    page.locator("input[type=file]").last.set_input_files(spec)
    expect(page.locator('input[aria-label="Number of steps"][value="6"]')).to_have_count(1)
    page.keyboard.press("Escape")
    await_rest(page)
    check = page.get_by_role("button", name="Check on a worker")
    expect(check).to_be_enabled(timeout=30_000)
    check.click()
    expect(page.get_by_text("nothing stands in the way")).to_be_visible(timeout=60_000)
    num_looks = len(server.asked)
    assert num_looks > 0
    page.get_by_role("button", name="Start", exact=False).last.click()
    expect(page.get_by_text("succeeded").first).to_be_visible(timeout=180_000)
    assert len(server.asked) > num_looks + 6

    run = site.api.get("/runs").raise_for_status().json()["items"][0]
    asked = {
        "run_id": run["id"],
        "prompt": "k3 k2 c2 c3 c3 5 N14 |",
        "speakers": [{"kind": "base"}, {"kind": "teacher"}],
    }
    question = site.api.post("/playground/questions", json=asked).raise_for_status().json()
    deadline = time.monotonic() + 120
    while (found := site.api.get(f"/playground/questions/{question['id']}").json())["state"] != "succeeded":
        assert time.monotonic() < deadline, found
        assert found["state"] != "failed", found
        time.sleep(0.5)
    page.goto(f"{site.dashboard_url}/playground?question={question['id']}")
    expect(page.get_by_text("The teacher is served: of each position its")).to_be_visible()
