"""What New run keeps of what was typed, and what it takes over from where it starts."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from backend.needs import RunNeeds
from dashboard.api_client import ApiClient
from engine.spec import RunSpec

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def opened(**query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params.update(query)
    return app.switch_page("views/new_run.py").run()


def text(app: AppTest, label: str) -> Any:
    return next(one for one in [*app.text_input, *app.text_area] if one.label.startswith(label))


def arms(app: AppTest) -> Any:
    return next(one for one in app.button_group if one.label == "Arms")


def asked(app: AppTest) -> dict[str, Any]:
    """The body that Start sends, as the page's curl command has it."""
    command = next(one.value for one in app.code if one.value.startswith("curl"))
    body: dict[str, Any] = json.loads(command[command.index("{") : command.rindex("}") + 1])
    return body


@pytest.mark.usefixtures("scene")
def test_a_fix_of_a_run_keeps_its_seed_and_so_does_an_imported_spec() -> None:
    app = opened(**{"from": "r-p8", "set": '{"seed": 3}'})
    assert text(app, "Seeds").value == "3"
    assert asked(app)["seeds"] == [3]
    spec = app.session_state["form"]["draft"]
    assert spec["seed"] == 3, "an exported spec has it too"
    content = json.dumps(spec | {"seed": 7}).encode()
    app.file_uploader(key="import").upload("spec.json", content, "application/json").run()
    assert asked(app)["seeds"] == [7]


@pytest.mark.usefixtures("scene")
def test_a_clone_takes_the_labels_that_were_typed_and_not_those_of_its_spec(
    monkeypatch: pytest.MonkeyPatch, records: ModuleType
) -> None:
    run = records.run("r-p16")
    spec = RunSpec.model_validate(run.spec.model_dump(mode="json") | {"rollouts": {"kind": "vllm_colocated"}})
    stated = RunNeeds.stated(spec)
    assert stated.labels == ["vllm"]
    needs = stated.model_copy(update={"labels": ["lab-2", "vllm"]})
    monkeypatch.setattr(
        ApiClient, "run", lambda *_: run.model_copy(update={"id": "r-served", "spec": spec, "needs": needs})
    )
    assert text(opened(**{"from": "r-served"}), "Worker labels").value == "lab-2"


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("leave", ["a look at another page", "an uploaded file"])
def test_what_stands_beside_the_spec_is_kept(leave: str) -> None:
    app = opened(preset="tiny")
    arms(app).set_value("values of fields").run()
    next(one for one in app.multiselect if one.label == "Fields to vary").set_value(["prefix.tokens"]).run()
    text(app, "Values of prefix.tokens").set_value("4, 12").run()
    text(app, "Seeds").set_value("1-2")
    text(app, "The question").set_value("How short?")
    text(app, "Worker labels").set_value("lab-2")
    next(one for one in app.number_input if one.label.startswith("Memory of the worker")).set_value(2.0)
    before = asked(app.run())
    if leave == "an uploaded file":
        app.button(key="prompts-use-training").click().run()
        assert asked(app)["base"]["prompts"] != before["base"]["prompts"]
        before["base"]["prompts"] = asked(app)["base"]["prompts"]
    else:
        app.switch_page("views/runs.py").run()
        app.switch_page("views/new_run.py").run()
    assert not app.exception
    assert asked(app) == before
    assert (before["seeds"], before["note"], len(before["variants"])) == ([1, 2], "How short?", 2)
    assert before["needs"] == {"labels": ["lab-2"], "memory_bytes": 2_000_000_000}


@pytest.mark.usefixtures("scene")
def test_arms_that_another_choice_hides_are_kept_and_another_preset_starts_afresh() -> None:
    app = opened(preset="tiny")
    arms(app).set_value("several prefix lengths").run()
    text(app, "Prefix lengths").set_value("4, 6").run()
    arms(app).set_value("one run").run()
    arms(app).set_value("several prefix lengths").run()
    assert text(app, "Prefix lengths").value == "4, 6"
    text(app, "Seeds").set_value("5").run()
    next(one for one in app.selectbox if one.label == "Start from").set_value("demo").run()
    assert (text(app, "Seeds").value, len(asked(app)["variants"])) == ("0", 4)


@pytest.mark.usefixtures("scene")
def test_nothing_of_an_experiment_that_was_started_comes_back() -> None:
    app = opened(preset="tiny")
    text(app, "Seeds").set_value("5").run()
    del app.session_state["form"]  # as Start does
    app.switch_page("views/runs.py").run()
    app.switch_page("views/new_run.py").run()
    assert text(app, "Seeds").value == "0"


@pytest.mark.usefixtures("scene")
def test_a_preset_that_does_not_exist_is_told_once_and_the_form_can_be_filled_in() -> None:
    app = opened(preset="nope")
    assert any("There is no preset 'nope'" in one.value.replace("\\", "") for one in app.warning)
    assert "preset" not in app.query_params
    text(app, "Name").set_value("mine").run()
    assert text(app, "Name").value == "mine"
    assert not app.warning
