"""The form: made from the spec's own schema, and able to say everything that the spec can."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.arms import experiment_document, prefix_arms, seeds_of
from dashboard.spec_form import GROUPS
from dashboard.spec_schema import FormField, form_fields, put_at, value_at
from engine.prefixes import PrefixSchedule
from engine.spec import RunSpec

SCHEMA = RunSpec.model_json_schema()
APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def every_leaf(fields: tuple[FormField, ...]) -> list[FormField]:
    found: list[FormField] = []
    for one in fields:
        for leaf in one.leaves():
            found.append(leaf)
            for member in leaf.members.values():
                found += every_leaf(member.fields)
    return found


def test_every_field_of_the_spec_is_in_the_form() -> None:
    spec = RunSpec.model_validate(
        {
            "name": "a",
            "student": {"path": "s"},
            "teacher": {"path": "t"},
            "prompts": {"path": "p"},
            "evaluation": {"path": "e"},
        }
    )
    leaves = {leaf.path for leaf in every_leaf(form_fields(SCHEMA))}

    def paths(value: dict[str, Any], above: str = "") -> set[str]:
        found: set[str] = set()
        for name, inner in value.items():
            found |= paths(inner, f"{above}{name}.") if isinstance(inner, dict) else {above + name}
        return {path.removesuffix(".kind") for path in found}

    assert paths(spec.model_dump(mode="json")) - {"spec_version"} <= leaves


def test_every_field_has_its_sentence_as_help() -> None:
    assert [leaf.path for leaf in every_leaf(form_fields(SCHEMA)) if not leaf.help] == []


def test_a_union_has_the_fields_of_each_kind() -> None:
    prefix = next(one for one in form_fields(SCHEMA) if one.path == "prefix")
    fields = {kind: [inner.path for inner in member.fields] for kind, member in prefix.members.items()}
    assert fields["constant"] == ["prefix.tokens"]
    assert fields["linear"] == ["prefix.start_tokens", "prefix.increment_tokens", "prefix.cap_tokens"]
    assert fields["full"] == []


def test_limits_are_said_in_words() -> None:
    limits = {leaf.path: leaf.limits for leaf in every_leaf(form_fields(SCHEMA))}
    assert limits["prefix.tokens"] == "at least 1, at most 131072"
    assert limits["sampling.temperature"] == "more than 0, at most 10"


def test_every_field_but_the_seed_is_in_one_group() -> None:
    names = sorted(one.path for one in form_fields(SCHEMA) if one.path != "seed")
    assert sorted(name for group in GROUPS.values() for name in group) == names


def test_put_at_makes_the_objects_on_the_way() -> None:
    document: dict[str, Any] = {}
    put_at(document, "prefix.tokens", 8)
    assert document == {"prefix": {"tokens": 8}}
    assert value_at(document, "prefix.tokens") == 8
    assert value_at(document, "prefix.tokens.more") is None


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", [0]), ("0, 1,2", [0, 1, 2]), ("3-5", [3, 4, 5]), ("7 9-10", [7, 9, 10])]
)
def test_seeds_are_read_as_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "0-99", "0-49 50", "5-3", "0, 5-3", "0-2000000000"])
def test_wrong_seeds_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^Seeds .*[.]$"):
        seeds_of(text)


def test_prefix_lengths_become_arms() -> None:
    arms = prefix_arms("8, 16 full")
    assert [arm.name for arm in arms] == ["prefix 8", "prefix 16", "full"]
    assert arms[0].changes == {"prefix": {"kind": "constant", "tokens": 8}}
    body = experiment_document(name="e", note="", base={"name": "b"}, arms=arms, seeds=[4, 5])
    assert body["base"]["seed"] == 4
    assert body["seeds"] == [4, 5]


@pytest.mark.parametrize("text", ["8", "8, x", "8, 0", ""])
def test_wrong_prefix_lengths_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^Prefix lengths .*[.]$"):
        prefix_arms(text)


def open_form(**query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params.update(query)
    return app.switch_page("views/new_run.py").run()


def said(app: AppTest) -> str:
    return "\n".join(str(one.value) for one in [*app.markdown, *app.caption, *app.error])


def button(app: AppTest, key: str) -> Any:
    return next(one for one in app.button if one.key == key)


def field(app: AppTest, label: str) -> Any:
    return next(one for one in [*app.number_input, *app.text_input, *app.selectbox] if one.label == label)


@pytest.mark.usefixtures("scene")
def test_a_preset_fills_the_form_and_can_be_started() -> None:
    app = open_form(preset="tiny")
    assert not app.exception
    assert field(app, "Prefix tokens").value == 8
    assert field(app, "Learning rate").value == 5e-4
    assert not button(app, "start").disabled
    assert "15.3× less than at full length" in said(app)


@pytest.mark.usefixtures("scene")
def test_a_finding_is_shown_at_its_field_and_on_top_and_start_names_it() -> None:
    app = open_form(preset="tiny")
    field(app, "Prefix tokens").set_value(0).run()
    assert said(app).count("is 0 but must be at least 1; raise it") == 2
    assert button(app, "start").disabled
    assert button(app, "start").label == "Start: first correct prefix tokens"


@pytest.mark.usefixtures("scene")
def test_a_cross_field_finding_lands_at_its_field() -> None:
    app = open_form(preset="tiny")
    field(app, "Prefix tokens").set_value(500).run()
    assert "max\\_completion\\_tokens is 216" in said(app)
    assert "prefix tokens" in button(app, "start").label


@pytest.mark.usefixtures("scene")
def test_choosing_another_kind_of_prefix_brings_its_own_fields() -> None:
    app = open_form(preset="tiny")
    field(app, "Prefix").set_value("linear").run()
    assert field(app, "Prefix start tokens").value == 16
    assert not any(one.label == "Prefix tokens" for one in app.number_input)
    assert not button(app, "start").disabled


@pytest.mark.usefixtures("scene")
def test_every_kind_of_prefix_region_and_anchoring_can_be_started_as_the_form_offers_it() -> None:
    app = open_form(preset="tiny")
    prefix, anchoring, region = (field(app, label).options for label in ("Prefix", "Anchoring", "Loss region"))
    assert (len(prefix), len(anchoring), len(region)) == (10, 3, 3)
    for kind in (member.model_fields["kind"].default for member in get_args(get_args(PrefixSchedule)[0])):
        field(app, "Prefix").set_value(kind).run()
        assert not app.exception
        assert not button(app, "start").disabled, kind
        is_adaptive = kind in ("plateau", "divergence_share", "validation")
        assert ("between never growing and growing as fast as it may" in said(app)) == is_adaptive
    field(app, "Anchoring").set_value("fraction").run()
    field(app, "Loss region").set_value("suffix").run()
    assert not button(app, "start").disabled
    # The default window starts behind a prefix of 16 tokens: refused at its field, in a sentence.
    field(app, "Loss region").set_value("window").run()
    assert "so the window would be empty" in said(app)
    field(app, "Loss region start").set_value(4).run()
    assert not button(app, "start").disabled


@pytest.mark.usefixtures("scene")
def test_what_a_sentinel_does_is_chosen_inside_the_sentinel() -> None:
    app = open_form(preset="tiny")
    field(app, "Sentinel").set_value("watch").run()
    assert field(app, "Sentinel every steps").value == 10
    field(app, "Sentinel action").set_value("grow").run()
    assert not app.exception
    assert field(app, "Sentinel action factor").value == 2.0
    assert not button(app, "start").disabled
    field(app, "Sentinel action factor").set_value(1.0).run()
    assert button(app, "start").label == "Start: first correct sentinel action factor"


@pytest.mark.usefixtures("scene")
def test_a_changed_field_names_the_preset_value() -> None:
    app = open_form(preset="tiny")
    field(app, "Number of steps").set_value(90).run()
    assert any("changed" in one.value and "preset: 120" in one.value for one in app.caption)


@pytest.mark.usefixtures("scene")
def test_cloning_a_run_starts_from_its_spec() -> None:
    app = open_form(**{"from": "r-mix8"})
    assert field(app, "Name").value == "prefix 8, anchored"
    assert field(app, "Anchoring").value == "every_nth_step"


@pytest.mark.usefixtures("scene")
def test_an_empty_name_is_said_before_the_start() -> None:
    app = open_form(preset="tiny")
    field(app, "Name").set_value("").run()
    assert button(app, "start").label == "Start: first correct name"


@pytest.mark.usefixtures("scene")
def test_the_arms_of_a_preset_are_offered_and_counted() -> None:
    app = open_form(preset="demo")
    assert button(app, "start").label == "Start 4 runs"


@pytest.mark.usefixtures("scene")
def test_a_draft_outlives_a_look_at_another_view() -> None:
    app = open_form(preset="tiny")
    field(app, "Prefix tokens").set_value(12).run()
    app.switch_page("views/runs.py").run()
    app.switch_page("views/new_run.py").run()
    assert field(app, "Prefix tokens").value == 12
    assert any("preset: 8" in one.value for one in app.caption)


@pytest.mark.usefixtures("scene")
def test_a_spec_file_is_imported_whole_or_not_at_all() -> None:
    app = open_form(preset="tiny")
    spec = app.session_state["form"]["draft"] | {"name": "from a file", "num_steps": 33}
    app.file_uploader(key="import").upload(
        "spec.json", json.dumps(spec | {"extra": 1}).encode(), "application/json"
    ).run()
    assert "is not a field of the spec" in said(app)
    assert field(app, "Name").value == "prefix 8"
    app.file_uploader(key="import").upload("spec.json", json.dumps(spec).encode(), "application/json").run()
    assert not app.exception
    assert field(app, "Name").value == "from a file"
    assert field(app, "Number of steps").value == 33


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"num_steps": NaN}', "num_steps is nan, but a number must be finite"),
        ('{"optimizer": {"learning_rate": 1e999}}', "optimizer.learning_rate is inf, but a number must be finite"),
        ('{"name": "\\ud800"}', "half a surrogate pair is no character"),
        ("1" * 5000, "cannot be read as JSON"),
        ("[" * 5000, "cannot be read as JSON"),
    ],
    ids=["NaN", "1e999", "surrogate", "digits", "depth"],
)
def test_a_file_with_what_json_cannot_carry_is_refused_in_a_sentence(content: str, says: str) -> None:
    app = open_form(preset="tiny")
    app.file_uploader(key="import").upload("spec.json", content.encode(), "application/json").run()
    assert not app.exception
    assert says in said(app).replace("\\", "")
    assert field(app, "Name").value == "prefix 8"


@pytest.mark.usefixtures("scene")
def test_an_address_that_asks_for_no_finite_number_shows_the_run_as_it_was() -> None:
    app = open_form(**{"from": "r-p8", "set": '{"num_steps": 1e999}'})
    assert any("do not fit the run" in one.value for one in app.warning)
    assert field(app, "Number of steps").value == 120
