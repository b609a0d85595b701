"""The way a person goes: New run, a wrong value corrected, Start, watch it end, read its tokens, ask it, download, open it."""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.site import Site
from tests.worker.runs import short_spec

_RUN_MILLISECONDS = 180_000  # start of the engine, six steps and two evaluations on a busy core

pytestmark = [pytest.mark.timeout(420), pytest.mark.xdist_group("browser")]


def test_from_a_new_run_to_a_checkpoint_that_transformers_opens(page: Page, site: Site, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(short_spec(num_steps=6).model_dump_json())
    page.goto(site.dashboard_url)
    expect(page.get_by_role("heading", name="Incipit").or_(page.get_by_text("first few tokens")).first).to_be_visible()
    page.get_by_role("link", name="New run").first.click()
    _the_study_is_quoted_and_leads_to_its_page(page)
    _import_spec(page, spec)
    _a_wrong_value_is_named_at_its_field(page)
    page.get_by_role("button", name="Start", exact=False).last.click()
    expect(page.get_by_text("succeeded").first).to_be_visible(timeout=_RUN_MILLISECONDS)
    run_id = _run_id(page)
    page.goto(f"{site.dashboard_url}/inspect?run={run_id}")
    expect(page.get_by_role("button", name=re.compile(r"^position 1\b")).first).to_be_visible()
    _its_checkpoints_are_asked_beside_the_teacher(page)
    page.goto(f"{site.dashboard_url}/checkpoints?run={run_id}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download all").click()
    archive = tmp_path / "checkpoint.tar"
    download.value.save_as(archive)
    _transformers_opens(archive, tmp_path / "checkpoint")


def _the_study_is_quoted_and_leads_to_its_page(page: Page) -> None:
    page.get_by_text("What our studies of the prefix's length found").click()
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="The whole study").click()
    expect(opened.value.get_by_text("Data of the plot")).to_be_visible()
    opened.value.close()


def _import_spec(page: Page, spec: Path) -> None:
    page.get_by_text("Import or export").click()
    page.locator("input[type=file]").last.set_input_files(spec)  # the popover's; prompts have one of their own
    # While Streamlit swaps the form, the old fields stand beside the new ones for a moment.
    expect(page.locator('input[aria-label="Number of steps"][value="6"]')).to_have_count(1)
    expect(page.get_by_role("spinbutton", name="Number of steps")).to_have_count(1)
    page.keyboard.press("Escape")


def _a_wrong_value_is_named_at_its_field(page: Page) -> None:
    field = page.get_by_role("spinbutton", name="Number of steps")
    field.fill("0")
    field.press("Enter")
    expect(page.get_by_text("num_steps is 0 but must be at least 1; raise it.").first).to_be_visible()
    expect(page.get_by_role("button", name="Start: first correct")).to_be_disabled()
    field.fill("6")
    field.press("Enter")
    expect(page.get_by_role("button", name="Start: first correct")).to_have_count(0)


def _its_checkpoints_are_asked_beside_the_teacher(page: Page) -> None:
    """From Inspect to the playground with its prompt; a worker answers, and a reload finds the answers again."""
    page.get_by_role("link", name="Compare checkpoints on this prompt").click()
    ask = page.locator(".st-key-ask button")
    expect(ask).to_be_enabled()
    ask.click()
    expect(page.locator(".lens")).to_have_count(2, timeout=_RUN_MILLISECONDS)
    expect(page.get_by_text("scored by the teacher of").first).to_be_visible()
    expect(page.locator(".legend").first).to_contain_text("student: ")
    assert "question=" in page.url
    page.reload()
    expect(page.locator(".lens")).to_have_count(2)


def _run_id(page: Page) -> str:
    return page.url.partition("id=")[2].partition("&")[0]


def _transformers_opens(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    config = next(folder.rglob("config.json")).parent
    code = (
        "import sys, json; from transformers import AutoModelForCausalLM, AutoTokenizer; "
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1]); t = AutoTokenizer.from_pretrained(sys.argv[1]); "
        "print(json.dumps([m.num_parameters(), len(t)]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(config)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [112_000, 81]
