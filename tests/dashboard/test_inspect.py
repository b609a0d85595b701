"""Inspect: filters, what a run's rollouts say together, and the way from a cell of the map to its tokens."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page
from streamlit.testing.v1 import AppTest

from backend.divergence import DivergenceGrid, GridRow
from dashboard import divergence_charts
from tests.dashboard.conftest import await_answer, free_port, stopped

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def opened(**query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params.update(query)
    return app.switch_page("views/inspect.py").run()


def said(app: AppTest) -> str:
    return "\n".join(str(one.value) for one in [*app.markdown, *app.caption, *app.header, *app.error])


@pytest.mark.usefixtures("scene")
def test_filters_keep_the_rollouts_that_were_asked_for_and_are_cleared_by_a_button() -> None:
    app = opened(run="r-p8", which="right")
    assert app.selectbox(key="chosen-prompt").label == "Rollout (2 of 4)"
    app.text_input(key="contains").set_value("*nowhere*").run()
    assert not app.exception
    assert "None of the 4 rollouts of this step is *right* that contains `\\*nowhere\\*`" in said(app)
    next(one for one in app.button if one.label == "Clear the filters").click().run()
    assert app.selectbox(key="chosen-prompt").label == "Rollout"
    app.text_input(key="contains").set_value("LET ME").run()
    assert app.selectbox(key="chosen-prompt").value == 1


@pytest.mark.usefixtures("scene")
def test_across_rollouts_there_are_a_map_quantiles_and_tokens_each_as_a_table() -> None:
    app = opened(run="r-p8", tab="Across rollouts", step="40")
    assert not app.exception
    assert {"By position and step", "By position at step 40", "Most divergent token types"} <= {
        one.value for one in app.header
    }
    assert len(app.dataframe) == 1, "tables behind charts wait until they are opened"
    for table in ("map-reverse_kl-r-p8", "quantiles"):
        app.session_state[f"behind-{table}"] = True
    app.run()
    shown, quantiles, tokens = (one.value for one in app.dataframe)
    assert set(shown["first_step"]) == set(range(0, 121, 20))
    assert (shown[shown["n"] < divergence_charts.FEW]["start"].min(), shown["start"].max()) == (161, 197)
    assert list(quantiles.columns) == ["start", "end", "mean", "p10", "p50", "p90", "n"]
    assert tokens["token"].tolist()[:3] == ["=SUM(1)", "·the", "⏎"]
    assert "over the full vocabulary" in said(app)
    app.toggle(key="only-step").set_value(True).run()
    assert "tokens at step 40" in said(app)
    overlap = opened(run="r-p8", tab="Across rollouts", quantity="Top-k overlap")
    assert "a lower bound" in said(overlap)


@pytest.mark.usefixtures("scene")
def test_the_aid_says_how_much_the_present_prefix_holds_and_leads_to_the_analyses() -> None:
    app = opened(run="r-p8", tab="Prefix length")
    assert not app.exception
    assert "The prefix of 8 tokens holds" in said(app)
    assert "An aid, not a verdict" in said(app)
    assert len(app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")) == len(divergence_charts.AID_TITLES)
    assert any("analyses" in str(link.proto.page) for link in app.get("page_link"))


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("view", ["Across rollouts", "Prefix length"])
def test_a_run_of_a_version_before_says_why_there_is_nothing(view: str) -> None:
    app = opened(run="r-running", tab=view)
    assert not app.exception
    assert "stored by a version that did not take them together" in said(app)


@pytest.mark.usefixtures("scene")
def test_step_view_and_quantity_survive_a_visit_to_another_page() -> None:
    app = opened(run="r-p8", tab="Across rollouts", step="40", quantity="JSD")
    back = app.switch_page("views/runs.py").run().switch_page("views/inspect.py").run()
    assert (back.segmented_control(key="tab").value, back.segmented_control(key="quantity").value) == (
        "Across rollouts",
        "jsd",
    )


def test_cells_of_few_rollouts_are_grey_and_the_prefix_is_drawn_where_it_ends() -> None:
    rows = [GridRow(first_step=0, last_step=20, horizon=4, mean=[0.5, 9.0, None], n=[8, 4, 0])]
    grid = DivergenceGrid(metric="jsd", bin_tokens=4, starts=[0, 4, 8], rows=rows, num_steps=2, num_steps_read=2)
    frame = divergence_charts.grid_frame(grid)
    assert frame[["steps", "start", "end", "n"]].to_numpy().tolist() == [["0–20", 1, 4, 8], ["0–20", 5, 8, 4]]
    cells, *edges = divergence_charts.grid_chart(frame, "jsd").to_dict()["layer"]
    assert cells["encoding"]["color"]["condition"]["test"] == "datum.n < 5"
    assert len(edges) == 2
    assert divergence_charts.grid_chart(frame, "jsd").to_dict()["layer"][0]["encoding"]["x2"]["field"] == "behind"


@pytest.fixture
def dashboard_url(scene: str) -> Iterator[str]:
    """The whole dashboard in a process of its own, before the stand-in API."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        APP,
        "--server.port",
        str(port),
        "--server.address",
        "127.0.0.1",
    ]
    environment = os.environ | {"INCIPIT_API_URL": scene, "INCIPIT_LOCAL_TOKEN": "of-the-tests"}
    process = subprocess.Popen([*command, "--server.fileWatcherType", "none"], env=environment)
    url = f"http://127.0.0.1:{port}"
    await_answer(f"{url}/_stcore/health", process)
    yield url
    stopped(process)


def test_a_click_on_the_map_opens_that_step_at_that_token(page: Page, dashboard_url: str) -> None:
    page.goto(f"{dashboard_url}/inspect?run=r-p8&tab=Across+rollouts&prompt=2")
    canvas = page.locator("canvas.marks, .vega-embed canvas, .vega-embed svg").first
    canvas.wait_for(timeout=60_000)
    page.wait_for_timeout(1500)
    box = canvas.bounding_box()
    assert box is not None
    canvas.click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.5})
    page.get_by_text("mean reverse KL").first.wait_for(timeout=30_000)
    page.wait_for_function("!location.search.includes('Across')", timeout=30_000)
    assert "step=" in page.url
    assert "tok=" in page.url
