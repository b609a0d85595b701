"""The widgets of flags, lists and tables, which unions and groups of the spec are free to use."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.spec_form import list_of
from dashboard.spec_schema import FormField, form_fields
from engine.spec import RunSpec

PAGE = str(Path(__file__).with_name("form_page.py"))
WHOLE = FormField("n", "whole", "")


@pytest.fixture
def page() -> AppTest:
    app = AppTest.from_file(PAGE, default_timeout=60).run()
    assert not app.exception
    return app


def document(app: AppTest) -> dict[str, Any]:
    found: dict[str, Any] = app.session_state["document"]
    return found


def test_an_untouched_form_says_what_it_was_given(page: AppTest) -> None:
    assert document(page) == {
        "flag": True,
        "wish": None,
        "patience": 5,
        "limit": 0.5,
        "lengths": [16, 64],
        "modules": None,
        "stages": [{"steps": 2, "tokens": 8}],
    }
    # The columns of a table have no fields of their own.
    assert [one.label for one in page.text_input] == ["Lengths", "Modules"]


def test_what_was_stored_as_empty_is_no_missing_value() -> None:
    app = AppTest.from_file(PAGE, default_timeout=60)
    app.session_state["given"] = {"wish": True, "patience": None}
    app.run()
    assert document(app)["patience"] is None
    assert document(app)["limit"] == 0.5, "what is missing has its default"
    assert document(app)["wish"] is True
    app.number_input(key="form-0-limit").set_value(None)
    app.selectbox[0].set_value(None)
    app.run()
    assert (document(app)["limit"], document(app)["wish"]) == (None, None)
    app.number_input(key="form-0-patience").set_value(3).run()
    assert document(app)["patience"] == 3


@pytest.mark.parametrize("turn", range(10))
def test_every_kind_of_every_union_can_be_drawn(turn: int) -> None:
    app = AppTest.from_file(str(Path(PAGE).with_name("every_kind_page.py")), default_timeout=60)
    app.session_state["turn"] = turn
    app.run()
    assert not app.exception
    chosen = app.session_state["chosen"]
    for name in ("teacher_backend", "rollouts", "divergence", "prefix"):
        assert document(app)[name]["kind"] == chosen[name]["kind"]


def test_ten_turns_reach_every_kind() -> None:
    assert max(len(one.members) for one in every_union(form_fields(RunSpec.model_json_schema()))) <= 10


def every_union(fields: Iterable[FormField]) -> Iterator[FormField]:
    for one in fields:
        inner = [one.fields, *(member.fields for member in one.members.values())]
        if one.kind == "union":
            yield one
        for below in inner:
            yield from every_union(below)


def test_flags_lists_and_wishes_follow_their_widgets(page: AppTest) -> None:
    page.checkbox[0].uncheck()
    page.selectbox[0].set_value(False)
    next(one for one in page.text_input if one.label == "Lengths").set_value("8, 32, x")
    next(one for one in page.text_input if one.label == "Modules").set_value("q_proj")
    page.run()
    found = document(page)
    assert (found["flag"], found["wish"], found["lengths"], found["modules"]) == (
        False,
        False,
        [8, 32, "x"],
        ["q_proj"],
    )


@pytest.mark.parametrize(("text", "values"), [("", []), ("1", [1]), (" 1 ,2,", [1, 2]), ("1.5", ["1.5"])])
def test_a_list_is_read_as_it_was_typed(text: str, values: list[Any]) -> None:
    assert list_of(text, FormField("n", "list", "", item=WHOLE)) == values


def test_an_empty_list_of_a_field_that_may_be_empty_is_none() -> None:
    assert list_of(" , ", FormField("n", "list", "", is_nullable=True, item=WHOLE)) is None


def test_a_number_or_a_word_is_told_in_its_limits_and_read_as_it_was_typed() -> None:
    field = next(one for one in form_fields(RunSpec.model_json_schema()) if one.path == "micro_batch_rollouts")
    assert (field.kind, field.default) == ("whole or word", 16)
    assert field.limits == "at least 1, at most 65536, or auto"
