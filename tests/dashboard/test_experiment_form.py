"""Arms made of values of fields, what they cost together, and the same as commands."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from backend.expansion import planned_runs
from backend.schemas import ExperimentCreate
from dashboard.arms import experiment_document, grid_arms
from dashboard.commands import curl_command, train_command
from dashboard.comparison_frames import differences_frame
from dashboard.needs_form import needs_document

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")
BASE = {
    "name": "it's a \"base\"; $(touch owned)", "student": {"path": "student"}, "teacher": {"path": "teacher"},
    "prompts": {"path": "p.jsonl"}, "evaluation": {"path": "e.jsonl"},
}  # fmt: skip


def test_each_combination_is_an_arm_with_the_values_that_were_meant() -> None:
    arms = grid_arms({"prefix.tokens": "8, 16", "optimizer.learning_rate": "1e-3,3e-4", "divergence.kind": "jsd"})
    assert [arm.name for arm in arms][:2] == [
        "tokens 8, learning rate 1e-3, kind jsd",
        "tokens 8, learning rate 3e-4, kind jsd",
    ]
    assert len(arms) == 4
    assert arms[-1].changes == {"prefix.tokens": 16, "optimizer.learning_rate": 3e-4, "divergence.kind": "jsd"}
    body = experiment_document(name="grid", note="", base=BASE, arms=arms, seeds=[0, 1])
    runs = planned_runs(ExperimentCreate.model_validate(body))
    assert len(runs) == 8
    assert {run.spec.optimizer.learning_rate for run in runs} == {1e-3, 3e-4}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "No field to vary"),
        ({"seed": " , "}, "seed has no values"),
        ({"num_steps": "4, 4"}, "num_steps has '4' twice"),
        ({"micro_batch_rollouts": "4, 1e999"}, "micro_batch_rollouts has '1e999', but a number must be finite"),
        ({"optimizer.learning_rate": "-1e999"}, "optimizer.learning_rate has '-1e999', but a number must be finite"),
        ({"num_steps": ", ".join(map(str, range(15))), "prompts_per_step": ", ".join(map(str, range(14)))}, "210 arms but at most 200"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_in_a_sentence(values: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=rf"{says}.*[.]$"):
        grid_arms(values)


def test_the_commands_say_what_the_form_says_and_nothing_else_happens(tmp_path: Path) -> None:
    body = experiment_document(name="e", note="two\nlines 'quoted'", base=BASE, arms=[], seeds=[3])
    sent = shlex.split(curl_command("http://127.0.0.1:8000", body))
    assert sent[2] == "http://127.0.0.1:8000/api/v1/experiments"
    assert json.loads(sent[-1]) == body
    write_spec = train_command(body).splitlines()[0]
    subprocess.run(["bash", "-c", write_spec], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "spec.json").read_text()) == body["base"]
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


def test_differences_name_the_field_with_both_values() -> None:
    parent = {"name": "a", "prefix": {"kind": "constant", "tokens": 8}, "num_steps": 4}
    document = {"name": "b", "prefix": {"kind": "full"}, "num_steps": 4}
    assert differences_frame(parent, document).to_dict("records") == [
        {"field": "prefix.kind", "was": "constant", "is": "full"}, {"field": "prefix.tokens", "was": "8", "is": "–"},
    ]  # fmt: skip
    assert differences_frame(parent, parent).empty


def with_prefixes(values: str) -> AppTest:
    """The form with arms made of the values of prefix.tokens."""
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params["preset"] = "tiny"
    app.switch_page("views/new_run.py").run()
    next(one for one in app.button_group if one.label == "Arms").set_value("values of fields").run()
    next(one for one in app.multiselect if one.label == "Fields to vary").set_value(["prefix.tokens"]).run()
    next(one for one in app.text_input if one.label == "Values of prefix.tokens").set_value(values).run()
    assert not app.exception
    return app


@pytest.mark.usefixtures("scene")
def test_a_grid_says_how_many_runs_it_is_and_what_they_cost_together() -> None:
    app = with_prefixes("4, 8, 12")
    next(one for one in app.text_input if one.label == "Seeds").set_value("0-1").run()
    assert next(one for one in app.button if one.key == "start").label == "Start 6 runs"
    shown = "\n".join(str(one.value) for one in app.markdown)
    assert "**6 runs**: training **300 GFLOP**" in shown  # the stand-in estimates 50 GFLOP for any spec
    assert "Time **48–84 s** on the 1 connected worker" in shown
    assert any("curl" in one.value and '"tokens": 8' in one.value for one in app.code)


@pytest.mark.usefixtures("scene")
def test_many_arms_do_not_ask_the_api_for_hundreds_of_estimates() -> None:
    app = with_prefixes(", ".join(map(str, range(1, 26))))
    assert next(one for one in app.button if one.key == "start").label == "Start 25 runs"
    assert any(one.value.startswith("25 arms: their total is shown for 24 at most") for one in app.caption)


@pytest.mark.usefixtures("scene")
def test_an_arm_that_is_not_valid_is_named_before_the_start() -> None:
    assert any("tokens 0" in one.value for one in with_prefixes("8, 0").error)


def test_labels_and_memory_of_the_worker_become_needs_or_a_sentence() -> None:
    assert needs_document("lab-2, a100", 1.5) == {"labels": ["a100", "lab-2"], "memory_bytes": 1_500_000_000}
    assert needs_document(" ", None) == {"labels": [], "memory_bytes": None}
    for text, says in (
        ("A100", "Worker labels has 'A100', but a label has"),
        ("a, a", "labels has 'a' 2 times; name each once"),
    ):
        with pytest.raises(ValueError, match=rf"{says}.*[.]$"):
            needs_document(text, None)
