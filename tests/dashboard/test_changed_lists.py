"""What is chosen in a list stays that, or is let go, when the list changes meanwhile: it never becomes something else."""

from pathlib import Path

import httpx
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import cached

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def opened(view: str, **query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params.update(query)
    return app.switch_page(f"views/{view}.py").run()


@pytest.mark.usefixtures("scene")
def test_a_ticked_run_is_let_go_when_other_runs_are_shown() -> None:
    def offered(app: AppTest) -> list[str]:
        labels = [str(one.proto.label) for one in app.get("page_link")]
        return [one for one in labels if one.startswith("Open")]

    app = opened("runs")
    table = app.dataframe[0]
    app.session_state[str(table.key)] = {"selection": {"rows": [0], "columns": [], "cells": []}}
    app.run()
    assert offered(app) == [f"Open {table.value['name'].iloc[0]}"]
    app.text_input(key="q").set_value(str(table.value["name"].iloc[1])).run()
    assert not app.exception
    assert app.dataframe[0].value["name"].iloc[0] != table.value["name"].iloc[0]
    assert offered(app) == []


def test_a_checkpoint_is_called_the_same_when_it_is_pinned(scene: str) -> None:
    app = opened("playground", run="r-p8", a="r-p8.80", b="r-mix8.80")
    before = list(app.multiselect[0].options)
    httpx.post(f"{scene}/api/v1/checkpoints/r-p8.80/pin", trust_env=False)
    cached.checkpoints.clear()
    app.run()
    httpx.post(f"{scene}/api/v1/checkpoints/r-p8.80/unpin", trust_env=False)
    cached.checkpoints.clear()
    assert not app.exception
    assert app.multiselect[0].options == before
    assert len(set(before)) == len(before)
    assert app.multiselect[0].value == ["r-p8.80", "r-mix8.80"]
    told = "\n".join(str(one.value) for one in app.caption).replace("\\", "")
    assert "prefix 8 · step 80: pinned, accuracy" in told
    assert "prefix 8 · step 120: best, accuracy" in told


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(
    ("view", "key"), [("analyses", "chosen-analysis"), ("playground", "chosen-question"), ("inspect", "chosen-run")]
)
def test_a_choice_is_named_without_what_changes(view: str, key: str) -> None:
    (box,) = [one for one in opened(view).selectbox if str(one.key).startswith(key)]
    changing = (
        "ago",
        "just now",
        "running",
        "queued",
        "waits",
        "waiting",
        "at work",
        "answered",
        "done",
        "succeeded",
        "failed",
    )
    labels = [one.partition(" (")[0] for one in box.options]  # the stand-in's ids, as ends of labels, have states
    assert [one for one in labels if any(word in one for word in changing)] == []
