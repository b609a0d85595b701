"""Compare's saved views: opened, kept with a note, removed; viewers only open them."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

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
    app.text_input(key="view-name").set_value("short is enough").run()
    app.text_area(key="view-note").set_value("With <b>three</b> seeds.").run()
    app.button(key="keep-view").click().run()
    assert not app.exception
    assert "With \\<b\\>three\\</b\\> seeds." in said(app)
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
    assert not {str(one.key) for one in app.button} & {"keep-view", "remove-v-0"}
