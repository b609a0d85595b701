"""Compare's saved views: opened, kept with a note, removed; viewers only open them."""

import os
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from backend.saved_views import SavedView
from dashboard.api_client import ApiClient

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def opened(**query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params.update(query)
    return app.switch_page("views/compare.py").run()


def said(app: AppTest) -> str:
    return "\n".join(str(one.value) for one in [*app.markdown, *app.caption, *app.code, *app.toast])


@pytest.mark.usefixtures("scene")
def test_a_view_is_kept_with_its_runs_and_cost_and_removed_again() -> None:
    app = opened(runs="r-p8,r-p16", x="Trained tokens")
    assert not app.exception
    assert app.segmented_control(key="x").value == "trained_tokens"
    assert "?runs=r-p8,r-p16&x=Trained+tokens" in said(app)
    assert "\\*Enough\\*?" in said(app)
    assert app.button(key="keep-view").disabled
    app.text_input(key="view-name-0").set_value("short is enough").run()
    app.text_area(key="view-note-0").set_value("With <b>three</b> seeds.").run()
    app.button(key="keep-view").click().run()
    assert not app.exception
    assert "With \\<b\\>three\\</b\\> seeds." in said(app)
    assert app.text_input(key="view-name-1").value == "", "the form is empty again"
    assert app.text_area(key="view-note-1").value == ""
    kept = next(one for one in app.button if str(one.key).endswith("short is enough"))
    kept.click().run()
    assert not app.exception
    assert "\\<b\\>three" not in said(app)


@pytest.mark.usefixtures("scene")
def test_a_viewer_opens_views_and_is_offered_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_LOCAL_TOKEN", "of-a-viewer")
    app = opened(runs="r-p8,r-p16")
    assert not app.exception
    assert "\\*Enough\\*?" in said(app)
    assert not {str(one.key) for one in app.button} & {"keep-view", "remove-v-0", "edit-v-0"}


@pytest.mark.usefixtures("scene")
def test_a_view_is_renamed_gets_another_note_and_shows_what_the_page_shows() -> None:
    app = opened(runs="r-p8,r-p16")
    app.button(key="edit-v-1").click().run()
    app.text_input(key="name-of-v-1").set_value("16 suffice").run()
    app.text_area(key="note-of-v-1").set_value("With <b>five</b> seeds.").run()
    app.checkbox(key="query-of-v-1").check().run()
    app.button(key="save-v-1").click().run()
    assert not app.exception
    assert "name-of-v-1" not in [one.key for one in app.text_input]
    assert "With \\<b\\>five\\</b\\> seeds." in said(app)
    assert [one.value for one in app.toast] == ["Saved\\: 16 suffice"]
    (view,) = [one for one in views_now() if one.id == "v-1"]
    assert (view.name, view.query) == ("16 suffice", "runs=r-p8,r-p16")
    app.button(key="edit-v-1").click().run()
    assert app.checkbox(key="query-of-v-1").disabled, "it shows the page already"
    app.button(key="cancel-v-1").click().run()
    assert "edit-v-1" in [one.key for one in app.button]


@pytest.mark.usefixtures("scene")
def test_what_somebody_else_changed_meanwhile_is_told_before_it_is_replaced() -> None:
    app = opened(runs="r-p8,r-p16")
    app.button(key="edit-v-2").click().run()
    app.text_input(key="name-of-v-2").set_value("mine").run()
    (view,) = [one for one in views_now() if one.id == "v-2"]
    with ApiClient(os.environ["INCIPIT_API_URL"]) as other:
        other.update_view(view, "theirs", "*No*.", view.query)
    app.button(key="save-v-2").click().run()
    assert not app.exception
    assert "It is called “theirs” now, with the note “\\*No\\*.”" in app.error[0].value
    assert "Save again to replace that with yours" in app.error[0].value
    assert app.text_input(key="name-of-v-2").value == "mine", "what was typed is still there"
    app.button(key="save-v-2").click().run()
    assert not app.error
    assert [one.name for one in views_now() if one.id == "v-2"] == ["mine"]


def views_now() -> list[SavedView]:
    with ApiClient(os.environ["INCIPIT_API_URL"]) as client:
        return client.saved_views()
