"""Each view in each state, run as Streamlit runs it: with runs, without any, with a failing or absent API."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")
VIEWS = [
    "home",
    "new_run",
    "runs",
    "inspect",
    "compare",
    "analyses",
    "playground",
    "checkpoints",
    "alerts",
    "system",
    "help",
]


def opened(view: str, **query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params.update(query)
    return app.switch_page(f"views/{view}.py").run()


def said(app: AppTest) -> str:
    everything = [*app.title, *app.markdown, *app.caption, *app.error, *app.warning, *app.success, *app.code]
    return "\n".join(str(one.value) for one in everything)


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_draws_without_a_fault(view: str) -> None:
    app = opened(view)
    assert not app.exception
    assert not app.error
    assert app.title


@pytest.mark.parametrize("scene", ["empty"], indirect=True)
@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(
    ("view", "says"),
    [
        ("home", "make demo"),
        ("runs", "No runs yet"),
        ("inspect", "Nothing to inspect yet"),
        ("compare", "Nothing to compare yet"),
        ("analyses", "Nothing was asked yet"),
        ("playground", "Nobody to ask yet"),
        ("checkpoints", "No checkpoints yet"),
        ("alerts", "No open alert"),
        ("new_run", "Models and prompts"),
        ("system", "No worker"),
        ("help", "first L tokens"),
    ],
)
def test_an_empty_place_says_what_to_do(view: str, says: str) -> None:
    app = opened(view)
    assert not app.exception
    assert says in said(app) + "\n".join(str(one.value) for one in app.header)


@pytest.mark.parametrize("scene", ["broken", "odd"], indirect=True)
@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("view", VIEWS)
def test_a_failing_api_is_a_sentence_and_not_a_traceback(view: str) -> None:
    app = opened(view)
    assert not app.exception
    assert any("database is locked" in one.value or "does not fit this dashboard" in one.value for one in app.error)


@pytest.mark.parametrize("view", VIEWS)
def test_an_absent_api_is_named_with_its_address(view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_API_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("INCIPIT_LOCAL_TOKEN", "of-the-tests")
    app = opened(view)
    assert not app.exception
    assert any("Cannot reach the API" in one.value and "incipit up" in one.value for one in app.error)


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(
    ("view", "query"),
    [
        ("run", {"id": "nope"}),
        ("inspect", {"run": "nope"}),
        ("compare", {"runs": "r-p8,nope"}),
        ("playground", {"run": "nope"}),
        ("new_run", {"from": "nope"}),
    ],
)
def test_an_unknown_run_is_said_to_be_unknown(view: str, query: dict[str, str]) -> None:
    app = opened(view, **query)
    assert not app.exception
    assert any("There is no run" in one.value for one in app.error)


@pytest.mark.usefixtures("scene")
def test_runs_of_one_name_are_compared_as_two() -> None:
    app = opened("compare", runs="r-p8,r-twin,r-p16,r-p8")
    assert not app.exception
    both = ["prefix 8 (r-p8)", "prefix 8 (r-twin)"]
    assert next(one for one in app.multiselect if one.label == "Runs").options == [*both, "prefix 16"]
    arms = next(one.value for one in app.dataframe if "McNemar p" in one.value)
    assert set(both) < set(arms["arm"])
    drawn = [chart.proto.SerializeToString() for chart in app.get("vega_lite_chart")]
    for name in both:
        assert sum(name.encode() in one for one in drawn) == 4, "by cost, FLOPs by phase, by position, settings"


@pytest.mark.usefixtures("scene")
def test_a_running_run_shows_progress_and_can_be_stopped() -> None:
    app = opened("run", id="r-running")
    assert not app.exception
    assert "prefix 32" in said(app)
    app.session_state["stop-menu"] = True
    app.run()
    stop = next(one for one in app.button if one.key == "stop-save")
    stop.click().run()
    assert not app.exception
    assert any("Stopping" in one.value for one in app.toast)


@pytest.mark.usefixtures("scene")
def test_help_names_every_field_of_the_spec() -> None:
    app = opened("help")
    named = set(app.table[-1].value["field"])
    assert {
        "prefix",
        "prefix.tokens",
        "optimizer.learning_rate",
        "micro_batch_rollouts",
        "health.kl_spike_factor",
    } <= named


@pytest.mark.usefixtures("scene")
def test_system_shows_workers_and_the_queue_in_its_order() -> None:
    app = opened("system")
    workers, queue = (one.value for one in app.dataframe)
    assert workers["works on"].tolist() == ["prefix 32", "–"]
    assert workers["state"].tolist() == ["takes runs", "not heard of"]
    assert next(one.value for one in app.metric if one.label == "At work") == "1"
    assert "created" in queue, "a run that is tried again has waited for less"
    assert queue["place"].tolist() == list(range(1, len(queue) + 1))


@pytest.mark.usefixtures("scene")
def test_of_a_worker_with_another_projects_run_it_is_not_said_that_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_LOCAL_TOKEN", "of-an-admin-of-lab")
    workers = next(one.value for one in opened("system").dataframe if "works on" in one.value)
    assert workers["works on"].tolist() == ["–", "–"]


@pytest.mark.usefixtures("scene")
def test_addresses_to_copy_are_those_of_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_PUBLIC_API_URL", "https://incipit.example/")
    monkeypatch.setenv("INCIPIT_LOCAL_TOKEN", "of-another-client")
    addresses = opened("system").table[-1].value["is"].tolist()
    assert "https://incipit.example/api/v1, documented at https://incipit.example/docs" in addresses
    assert any("https://incipit.example/api/v1/experiments" in one.value for one in opened("new_run").code)


@pytest.mark.usefixtures("scene")
def test_home_says_a_failures_cause_in_one_paragraph() -> None:
    told = [str(one.value) for one in opened("home").markdown if str(one.value).startswith(":red[")]
    assert [one.replace("\\", "") for one in told] == [
        ":red[The update needed 31.2 GB but 7.6 GB are free; lower micro_batch_rollouts from 16 to 4.]"
    ]


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("button", ["drain-w1", "drain-requeue-w1"])
def test_an_admin_drains_a_worker_on_system(button: str) -> None:
    app = opened("system")
    next(one for one in app.button if one.key == button).click().run()
    assert not app.exception
    assert not app.error


@pytest.mark.usefixtures("scene")
def test_an_admin_of_one_project_is_not_offered_to_drain_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_LOCAL_TOKEN", "of-an-admin-of-lab")
    system = opened("system")
    assert not system.exception
    assert not [one.key for one in system.button if "drain" in str(one.key)]
    assert "ask an admin of all projects" in said(system)


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(("view", "query"), [("run", {"id": "r-queued"}), ("runs", {}), ("system", {})])
def test_a_run_that_no_worker_can_take_says_why_wherever_it_is_shown(view: str, query: dict[str, str]) -> None:
    app = opened(view, **query)
    assert not app.exception
    assert sum("needs at least 40.00 GB of memory" in one.value.replace("\\", "") for one in app.warning) == 1


@pytest.mark.usefixtures("scene")
def test_a_viewer_is_offered_nothing_that_the_api_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_LOCAL_TOKEN", "of-a-viewer")
    run = opened("run", id="r-running")
    run.session_state["stop-menu"] = True  # what stands in it is drawn once it is open
    run.run()
    assert not run.exception
    assert not {one.key for one in run.button} & {"pause", "stop-save", "stop-now"}
    assert "ask an admin for the role operator" in said(run)
    new = opened("new_run")
    assert next(one for one in new.button if one.key == "start").disabled
    assert next(one for one in new.button if one.key == "check").disabled
    assert next(one for one in opened("checkpoints").button if one.key == "pin").disabled
    assert next(one for one in opened("analyses").button if one.label == "Ask").disabled
    system = opened("system")
    assert not [one.key for one in system.button if "drain" in str(one.key)]
    assert "ask an admin" in said(system)
    assert opened("playground").button(key="ask").disabled
    assert not {one.key for one in opened("playground", question="q-running").button} & {"cancel-question"}


@pytest.mark.usefixtures("scene")
def test_a_failed_run_says_why_and_what_to_do() -> None:
    app = opened("run", id="r-failed")
    assert any("31\\.2 GB" in one.value or "31.2 GB" in one.value for one in app.error)
    assert "Halve *micro-batch rollouts*" in said(app)
    last_words, log = app.code
    assert last_words.value == "The last lines of its log:\n\nstep 39\nKilled"
    assert not [one.value for one in app.error if "last lines" in one.value], "bold text ends with its paragraph"
    times = [line.split(" · ")[0] for line in log.value.splitlines()]
    assert 1 <= len(times) <= 5
    assert times == sorted(times), "the newest line is the last one, as in a log"


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("panel", ["Overview", "Spec"])
def test_a_run_shows_what_it_warned_of_once_with_its_step_and_advice(panel: str) -> None:
    app = opened("run", id="r-p8", panel=panel)
    assert not app.exception
    alarm, pair = [str(one.value) for one in app.warning]
    assert "cap hits · step 40" in alarm
    assert "Switch anchoring on" in alarm
    assert "model pair" in pair
    assert "\\<img" in pair  # no markup of a model or a person


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("panel", ["Overview", "Metrics", "Evaluations", "Positions", "Tail", "System", "Log", "Spec"])
@pytest.mark.parametrize("run_id", ["r-running", "r-p8", "r-queued", "r-failed"])
def test_every_panel_of_a_run_draws(panel: str, run_id: str) -> None:
    app = opened("run", id=run_id, panel=panel)
    assert not app.exception
    assert not [one for one in app.error if "31" not in one.value]


@pytest.mark.usefixtures("scene")
def test_the_tail_is_drawn_beside_the_teachers_and_where_there_is_none_it_is_said_how() -> None:
    watched = opened("run", id="r-p8", panel="Tail")
    assert not watched.exception
    assert "the teacher's own figure" in said(watched)
    assert len(watched.get("arrow_vega_lite_chart") or watched.get("vega_lite_chart")) == 2
    assert "`sentinel` set to watch" in said(opened("run", id="r-p16", panel="Tail"))


@pytest.mark.usefixtures("scene")
def test_a_run_without_traces_says_how_to_get_them() -> None:
    app = opened("inspect", run="r-queued")
    assert "traces.num_rollouts" in said(app)


@pytest.mark.usefixtures("scene")
def test_the_same_prompt_stays_when_the_step_changes() -> None:
    app = opened("inspect", run="r-p8", step="40", prompt="2")
    assert app.selectbox(key="chosen-prompt").value == 2
    app.select_slider(key="chosen-step").set_value(80).run()
    assert not app.exception
    assert app.selectbox(key="chosen-prompt").value == 2
    assert app.query_params["step"] in ("80", ["80"])


@pytest.mark.usefixtures("scene")
def test_a_search_that_finds_nothing_says_so() -> None:
    app = opened("runs")
    app.text_input(key="q").set_value("zzz").run()
    assert "No run matches" in said(app)


@pytest.mark.usefixtures("scene")
def test_a_checkpoint_is_offered_by_signed_links_only() -> None:
    app = opened("checkpoints", run="r-p8")
    assert not app.exception
    assert "from_pretrained" in said(app)
    assert "signature=abc" in said(app)
    assert "9f9f" in said(app)


@pytest.mark.usefixtures("scene")
def test_a_checkpoint_is_pinned_and_let_go_by_its_button() -> None:
    app = opened("checkpoints", run="r-p8")
    for before, after in (("Pin", "Unpin"), ("Unpin", "Pin")):
        button = app.button(key="pin")
        assert button.label == before
        button.click().run()
        assert not app.exception
        assert app.button(key="pin").label == after
        assert ("Pinned: it stays" in said(app)) is (after == "Unpin")


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("queued", "Teacher prefix"),
        ("running", "Teacher prefix"),
        ("succeeded", "Alone, the student is right in 0.390"),
        ("failed", "no such folder"),
        ("cancelled", "Teacher prefix"),
    ],
)
def test_an_analysis_draws_in_every_state(state: str, says: str) -> None:
    app = opened("analyses", analysis=f"a-{state}")
    assert not app.exception
    assert says in said(app).replace("\\", "") + "\n".join(str(one.value) for one in app.header)


@pytest.mark.usefixtures("scene")
def test_a_question_is_asked_with_the_models_of_a_preset() -> None:
    app = opened("analyses")
    next(one for one in app.selectbox if one.label == "Analysis").set_value("gradient_by_position").run()
    next(one for one in app.button if one.label == "Ask").click().run()
    assert not app.exception
    assert app.query_params["analysis"] in ("a-queued", ["a-queued"])


@pytest.mark.usefixtures("scene")
def test_a_run_shows_its_estimate_beside_what_it_cost() -> None:
    app = opened("run", id="r-p8", panel="Overview")
    assert not app.exception
    (table,) = [frame.value for frame in app.dataframe if "executed" in frame.value]
    lines = table.set_index("phase")
    assert lines.loc["training", "estimate"] == "50.0 GFLOP"
    assert lines.loc["rollout decode", "executed"] == "5.00 GFLOP"
    assert "Training time: estimate 8–14 s, actual" in said(app)
    assert "Memory at the busiest moment: estimate 520 MB" in said(app)
