"""Draining a worker from System: what is clicked reaches the worker that was chosen, whatever happens to it meanwhile."""

import pytest
from streamlit.testing.v1 import AppTest


def page() -> None:
    import streamlit as st

    from dashboard import cached, worker_actions
    from tests.dashboard.test_worker_room import a_worker

    first = a_worker("server").model_copy(update={"id": "w0", "run_id": "r-p8"})  # the stand-in API refuses to drain it
    told = {"id": "w1", "run_id": "r-running", "drain": st.session_state.get("state", "no")}
    there = [first, a_worker("laptop").model_copy(update=told)]
    worker_actions.show(cached.api(), [one for one in there if one.id not in st.session_state.get("gone", ())])


def with_the_second_chosen() -> AppTest:
    app = AppTest.from_function(page).run(timeout=30)
    return app.selectbox[0].set_value("w1").run()


@pytest.mark.usefixtures("scene")
def test_a_worker_that_begins_to_drain_stays_the_chosen_one() -> None:
    app = with_the_second_chosen()
    label = app.selectbox[0].options[1]
    app.session_state["state"] = "draining"
    app.run()
    app.selectbox[0].options.append(label)  # a browser sends the label that was picked, also when it is no more
    app.selectbox[0].set_value(label)
    next(one for one in app.button if one.label == "Drain and give its run back").click().run()
    assert not app.exception
    assert app.selectbox[0].value == "w1"
    assert [one.value for one in app.error] == [], "the other worker was drained"


@pytest.mark.usefixtures("scene")
def test_a_click_for_a_worker_that_is_gone_reaches_no_other() -> None:
    app = with_the_second_chosen()
    app.session_state["gone"] = ["w1"]
    next(one for one in app.button if one.label == "Drain and give its run back").click().run()
    assert not app.exception
    assert app.selectbox[0].value == "w0"
    assert [one.value for one in app.error] == [], "the other worker was drained"
