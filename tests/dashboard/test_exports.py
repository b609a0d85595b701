"""The exports of a checkpoint: asked for by a form, drawn in each state, refused at their field."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def opened(checkpoint_id: str = "r-p8.80") -> AppTest:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params["checkpoint"] = checkpoint_id
    found = app.switch_page("views/checkpoints.py").run()
    assert not found.exception
    return found


def said(app: AppTest) -> str:
    everything = [*app.markdown, *app.caption, *app.error]
    return "\n".join(str(one.value) for one in everything).replace("\\", "")


@pytest.mark.usefixtures("scene")
def test_exports_are_drawn_in_every_state() -> None:
    words = said(opened())
    for expected in (
        "hub: lab/prefix-8, bfloat16",
        "GGUF, q8_0",
        "folder, float16",
        "tokenizer is none that llama.cpp knows",
        "LoRA of rank 4 is merged",
    ):
        assert expected in words


@pytest.mark.usefixtures("scene")
def test_buttons_cancel_and_let_go() -> None:
    app = opened()
    assert {one.key for one in app.button if (one.key or "").startswith(("cancel-", "remove-"))} == {
        "cancel-x-queued",
        "cancel-x-running",
        "remove-x-succeeded",
    }
    app.button(key="cancel-x-running").click().run()
    assert not app.exception
    app.button(key="remove-x-succeeded").click().run()
    assert not app.exception
    assert "were let go" in said(app)


@pytest.mark.usefixtures("scene")
def test_a_name_that_the_hub_does_not_take_is_refused_in_the_api_s_words() -> None:
    app = opened("r-p8.120")
    (kind,) = [one for one in app.selectbox if one.label == "Export"]
    kind.set_value("hub").run()
    assert not app.exception
    (name,) = [one for one in app.text_input if one.label == "Repository"]
    name.set_value("prefix-8").run()
    app.button(key="export").click().run()
    assert not app.exception
    assert "export.repository is 'prefix-8', but a repository is named OWNER/NAME" in said(app)
