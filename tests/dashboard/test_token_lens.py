"""The token lens in a real browser, on a real Streamlit server."""

import math
import re
from types import ModuleType

import pytest
from playwright.sync_api import Page, expect

from dashboard.token_lens import SCRIPT, STYLE
from dashboard.token_lens.payload import lens_payload

pytestmark = pytest.mark.xdist_group("lens")

_MOUNT_ONCE = """() => {
  const holder = document.createElement("div");
  document.getElementById("host").replaceChildren(holder);
  const shadow = holder.attachShadow({ mode: "open" });
  shadow.appendChild(Object.assign(document.createElement("style"), { textContent: window.style }));
  window.mount({ parentElement: shadow, data: window.data, setStateValue: () => {} });
  return shadow.querySelector(".lens").dataset.drawMs;
}"""


@pytest.fixture
def lens(page: Page, lens_page_url: str) -> Page:
    page.goto(f"{lens_page_url}/?hostile=1")
    expect(page.locator(".token").first).to_be_visible(timeout=30_000)
    return page


@pytest.mark.attack(20)
def test_text_from_models_is_shown_and_never_run(lens: Page) -> None:
    hostile = lens.locator(".token", has_text="onerror")
    expect(hostile).to_have_text('<img·src=x·onerror="window.pwned=1">')
    hostile.hover()
    expect(lens.locator(".card")).to_be_visible()
    hostile.click()
    lens.locator("summary", has_text="Show as table").click()
    expect(lens.locator(".all-table td", has_text="onerror").first).to_be_visible()
    assert lens.locator(".lens img").count() == 0
    assert lens.evaluate("window.pwned") is None


def test_blanks_newlines_bytes_and_special_tokens_are_visible(lens: Page) -> None:
    shown = lens.locator(".token").all_inner_texts()
    assert [text.strip() for text in shown[:5]] == ["Let", "·me", "·compute", "⏎", "⇥"]
    assert lens.locator(".token").nth(8).inner_text() == "·"
    assert lens.locator(".token.fragment").all_inner_texts() == ["⟨E2 80⟩", "⟨A6⟩"]
    expect(lens.locator(".token.special")).to_have_text("<eos>")
    lens.locator(".token").nth(0).focus()
    lens.keyboard.press("w")
    assert lens.locator(".token").nth(1).inner_text().strip() == "me"


def test_the_card_shows_both_models_and_all_probability(lens: Page) -> None:
    lens.locator(".token").nth(3).hover()
    card = lens.locator(".card")
    expect(card).to_be_visible()
    expect(card).to_contain_text("position 4 of 16")
    expect(card).to_contain_text("trained")
    expect(card.locator("tr.actual")).to_have_count(1)
    expect(card.locator("tr.rest")).to_contain_text("rest of vocabulary")
    for column in (2, 3):
        cells = card.locator(f"tbody td:nth-child({column})").all_inner_texts()
        shares = [0.0 if cell.startswith("<") else float(cell.removesuffix(" %")) for cell in cells]
        assert math.isclose(sum(shares), 100, abs_tol=1.5), f"column {column} adds up to {sum(shares)} %"


def test_tokens_behind_the_horizon_are_marked_and_dimmed(lens: Page) -> None:
    expect(lens.locator(".boundary")).to_have_text("training stops here (L = 8)")
    assert lens.locator(".token.untrained").count() == 8
    assert lens.locator(".token").nth(8).evaluate("node => getComputedStyle(node).opacity") == "0.55"


def test_tokens_before_a_window_are_marked_and_dimmed_too(page: Page, lens_page_url: str) -> None:
    page.goto(f"{lens_page_url}/?hostile=1&window=1")
    expect(page.locator(".token").first).to_be_visible(timeout=30_000)
    expect(page.locator(".boundary")).to_have_text(["training starts here (token 4)", "training stops here (L = 8)"])
    assert page.locator(".token.untrained").count() == 3 + 8


@pytest.mark.attack(20)
def test_an_answer_of_the_playground_says_whose_it_is_and_where_it_parts(page: Page, lens_page_url: str) -> None:
    page.goto(f"{lens_page_url}/?answer=1")
    hostile = page.locator(".token", has_text="onerror")
    expect(hostile).to_be_visible(timeout=30_000)
    expect(page.locator(".boundary")).to_have_text("first difference")
    expect(page.locator(".legend")).to_contain_text("student: prefix 8, anchored at step 120")
    expect(page.locator(".metrics")).to_be_hidden()
    assert page.locator(".token.untrained").count() == 0
    hostile.click()
    expect(page.locator(".pinned")).to_be_visible()
    expect(page.locator(".pinned")).not_to_contain_text("trained")
    assert page.locator(".lens img").count() == 0
    assert page.evaluate("window.pwned") is None


def test_the_keyboard_reaches_every_token_metric_and_card(lens: Page) -> None:
    tokens = lens.locator(".token")
    assert lens.locator(".token[tabindex='0']").count() == 1
    tokens.nth(0).focus()
    lens.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    lens.keyboard.press("ArrowDown")
    expect(tokens.nth(5)).to_be_focused()
    lens.keyboard.press("n")
    assert "hot" in (lens.locator(".token:focus").get_attribute("class") or "")
    lens.keyboard.press("4")
    expect(lens.locator("[data-metric='delta_logprob']")).to_have_attribute("aria-checked", "true")
    expect(lens.locator(".legend")).to_contain_text("purple: the teacher likes the token more")
    expect(lens.get_by_text("chosen delta_logprob")).to_be_visible()
    lens.locator(".token:focus").or_(tokens.nth(2)).first.focus()
    lens.keyboard.press("p")
    expect(lens.locator(".pinned")).to_have_count(1)
    lens.keyboard.press("p")
    expect(lens.locator(".pinned")).to_have_count(0)
    lens.keyboard.press("?")
    expect(lens.locator(".help")).to_be_visible()
    lens.keyboard.press("Escape")
    expect(lens.locator(".card")).to_be_hidden()


def test_every_token_says_what_it_is(lens: Page) -> None:
    first = lens.locator(".token").nth(0)
    expect(first).to_have_attribute("aria-label", re.compile("^position 1, token “Let”, Reverse KL .*teacher"))


def test_the_legend_names_limit_scale_and_estimator(lens: Page) -> None:
    expect(lens.locator(".legend")).to_contain_text("≥ 3.9 nats")
    expect(lens.locator(".legend")).to_contain_text("99th percentile of the run")
    expect(lens.locator(".legend")).to_contain_text("full vocabulary")


def test_hovering_the_curve_points_at_the_token(lens: Page) -> None:
    box = lens.locator(".curve").bounding_box()
    assert box is not None
    lens.mouse.move(box["x"] + box["width"] * 2.5 / 16, box["y"] + 20)
    expect(lens.locator(".token").nth(2)).to_have_class(re.compile(r"\bpointed\b"))


@pytest.mark.parametrize(("num_tokens", "most_ms"), [(2048, 50.0), pytest.param(8192, 150.0, marks=pytest.mark.full)])
def test_long_rollouts_are_drawn_at_once(page: Page, traces: ModuleType, num_tokens: int, most_ms: float) -> None:
    rollout = traces.rollout("r-p8", 120, 0).model_copy(update={"trace": traces.trace(num_tokens)})
    page.set_content("<div id='host' style='width: 1100px'></div>")
    page.add_script_tag(content=SCRIPT.replace("export default function", "window.mount = function"))
    page.evaluate(
        "([data, style]) => Object.assign(window, { data, style })", [lens_payload(rollout, "reverse_kl", None), STYLE]
    )
    # The best of several: other work on the machine only ever adds to the time.
    taken = min(float(page.evaluate(_MOUNT_ONCE)) for _ in range(8))
    print(f"first view of {num_tokens} tokens after {taken} ms")
    drawn = "document.querySelector('#host > *').shadowRoot.querySelectorAll('.token').length"
    page.wait_for_function(f"{drawn} === {num_tokens}")
    assert taken < most_ms, f"{num_tokens} tokens took {taken} ms, {most_ms} ms are allowed"
