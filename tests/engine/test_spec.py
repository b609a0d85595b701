"""What a spec refuses, and the sentence for it: one per field, with the value, the limit and the fix."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.findings import Finding, findings_of
from engine.locations import resolve
from engine.spec import RunSpec
from tests.engine.models import tiny_document, tiny_spec


def findings(document: object) -> list[Finding]:
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    return findings_of(caught.value, document)


def changed(path: str, value: object) -> dict[str, Any]:
    """The tiny spec with one value set."""
    document: dict[str, Any] = json.loads(json.dumps(tiny_document()))
    here = document
    *folders, last = path.split(".")
    for name in folders:
        here = here.setdefault(name, {})
    here[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("name", "", "name is empty; please fill it in."),
        ("name", " ", "name is ' ', which has characters or spaces that are not allowed here; correct it."),
        ("name", "x" * 129, "name is longer than 128 characters; shorten it."),
        ("horizn", 3, "horizn is not a field of the spec; remove it or correct its name."),
        ("prefix.length", 3, "prefix.length is not a field of the spec; remove it or correct its name."),
        ("prefix.tokens", 0, "prefix.tokens is 0 but must be at least 1; raise it."),
        ("prefix.tokens", 8.5, "prefix.tokens is 8.5 but must be a whole number; round it."),
        ("prefix.tokens", "many", "prefix.tokens is 'many' but must be a whole number; correct it."),
        ("prefix.tokens", None, "prefix.tokens is None but must be a whole number; correct it."),
        (
            "prefix.tokens",
            225,
            "prefix.tokens is 225 but max_completion_tokens is 224; shorten the prefix or raise max_completion_tokens.",
        ),
        ("prefix.tokens", 131_073, "prefix.tokens is 131073 but must be at most 131072; lower it."),
        (
            "prefix.kind",
            "cubic",
            "prefix has kind 'cubic' but kind must be one of 'constant', 'ratio', 'full', 'linear', 'staircase', 'cosine', "
            "'stages', 'plateau', 'divergence_share', 'validation'; choose one of them.",
        ),
        ("prefix", {"tokens": 8}, "prefix has no kind; say which kind it is."),
        (
            "prefix",
            {"kind": "linear", "start_tokens": 300},
            "prefix.start_tokens is 300 but max_completion_tokens is 224; start shorter or raise max_completion_tokens.",
        ),
        (
            "prefix",
            {"kind": "linear", "increment_tokens": 0},
            "prefix.increment_tokens is 0 but must be more than 0.0; raise it.",
        ),
        (
            "optimizer.warmup_steps",
            41,
            "optimizer.warmup_steps is 41 but num_steps is 40; shorten the warm-up or train longer.",
        ),
        ("optimizer.learning_rate", 0, "optimizer.learning_rate is 0 but must be more than 0.0; raise it."),
        ("optimizer.beta2", 1, "optimizer.beta2 is 1 but must be less than 1.0; lower it."),
        ("optimizer.eps", float("nan"), "optimizer.eps is nan but must be a finite number; correct it."),
        ("divergence", {"kind": "jsd", "beta": 1.0}, "divergence.beta is 1.0 but must be less than 1.0; lower it."),
        ("divergence", {"kind": "top_k_kl", "k": 0}, "divergence.k is 0 but must be at least 1; raise it."),
        ("divergence", {"kind": "teacher_order", "k": 1}, "divergence.k is 1 but must be at least 2; raise it."),
        ("divergence", {"kind": "skew_kl", "alpha": 0}, "divergence.alpha is 0 but must be more than 0.0; raise it."),
        (
            "divergence",
            {"kind": "top_k_kl", "k": 1, "rest": "renormalised"},
            "divergence.k is 1 but a single token renormalised has probability 1 under both models, so that nothing is "
            "learnt; raise k to at least 2 or set divergence.rest to tail_bucket.",
        ),
        ("token_weights", {"kind": "tip", "share": 0}, "token_weights.share is 0 but must be more than 0.0; raise it."),
        (
            "token_weights",
            {"kind": "position_linear", "slope": 2},
            "token_weights.slope is 2 but must be at most 1.0; lower it.",
        ),
        (
            "termination_guard",
            {"kind": "forward_kl", "weight": 0},
            "termination_guard.weight is 0 but must be more than 0.0; raise it.",
        ),
        ("num_steps", 0, "num_steps is 0 but must be at least 1; raise it."),
        ("sampling.temperature", 0, "sampling.temperature is 0 but must be more than 0.0; raise it."),
        ("device", "tpu", "device is 'tpu' but must be one of 'auto', 'cpu' or 'cuda'; choose one of them."),
        ("student.path", "", "student.path is empty; please fill it in."),
        ("student", {}, "student.path is missing; it has no default, please give one."),
        ("seed", -1, "seed is -1 but must be at least 0; raise it."),
        ("name", 5, "name is 5 but must be text; correct it."),
    ],
)
def test_one_bad_value_gives_one_sentence_at_its_field(path: str, value: object, sentence: str) -> None:
    found = findings(changed(path, value))
    assert [finding.message for finding in found] == [sentence]
    # The sentence begins with the field that the finding is shown at.
    assert sentence.startswith(found[0].field + " ")


def test_a_full_prefix_with_anchoring_is_refused_at_the_anchoring() -> None:
    document = tiny_document(prefix={"kind": "full"}, anchoring={"kind": "every_nth_step", "n": 8})
    assert findings(document) == [
        Finding(
            field="anchoring",
            message="anchoring is set but a full prefix already runs every step to the full length; "
            "set anchoring to none or choose another prefix.",
        )
    ]


@pytest.mark.parametrize("kind", ["teacher", "data", "mixture"])
def test_a_policy_gradient_on_tokens_of_another_writer_is_refused(kind: str) -> None:
    (found,) = findings(tiny_document(divergence={"kind": "policy_gradient"}, completions={"kind": kind}))
    assert found == Finding(
        field="divergence",
        message="divergence is policy_gradient, which is right on tokens that the student sampled, but completions.kind is "
        f"{kind!r}; set completions to student or teacher_prefix, or choose another divergence.",
    )
    assert tiny_spec(divergence={"kind": "policy_gradient"}, completions={"kind": "teacher_prefix", "tokens": 2})


def test_a_policy_gradient_on_the_teachers_part_of_a_text_is_refused() -> None:
    completions = {"kind": "teacher_prefix", "tokens": 2, "loss_on": "all"}
    (found,) = findings(tiny_document(divergence={"kind": "policy_gradient"}, completions=completions))
    assert found == Finding(
        field="completions.loss_on",
        message="completions.loss_on is 'all' but divergence policy_gradient is right only on tokens that the student "
        "sampled; set completions.loss_on to student or choose another divergence.",
    )


@pytest.mark.parametrize("kind", ["plateau", "divergence_share"])
def test_a_prefix_that_grows_by_the_divergence_is_refused_with_a_loss_of_either_sign(kind: str) -> None:
    gradient = {"kind": "policy_gradient"}
    (found,) = findings(tiny_document(divergence=gradient, prefix={"kind": kind}))
    assert found == Finding(
        field="prefix",
        message=f"prefix.kind is {kind!r}, which grows by the loss of the prefix's tokens, but divergence policy_gradient has a "
        "loss of either sign whose size says nothing; choose another prefix, such as validation, or another divergence.",
    )
    assert tiny_spec(prefix={"kind": kind})
    assert tiny_spec(divergence=gradient, prefix={"kind": "validation"})


def test_several_mistakes_are_all_told() -> None:
    document = changed("name", "") | {"num_steps": 0, "speed": 3}
    assert {finding.field for finding in findings(document)} == {"name", "num_steps", "speed"}


@pytest.mark.parametrize("document", [[], "text", 3, None])
def test_something_other_than_an_object_is_refused_in_one_sentence(document: object) -> None:
    (finding,) = findings(document)
    assert finding.field == ""
    assert finding.message.startswith("The spec is ")


def test_a_long_value_is_shown_shortened() -> None:
    (finding,) = findings(changed("num_steps", "9" * 1000 + "x"))
    assert len(finding.message) < 200


def test_an_invented_key_cannot_break_the_sentence() -> None:
    (finding,) = findings(tiny_document() | {"prompts": {"path": "p", "a\nb": 1}})
    assert finding.message == "'prompts.a\\nb' is not a field of the spec; remove it or correct its name."


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(RunSpec.model_fields)), json_values)
def test_whatever_stands_in_a_field_is_accepted_or_refused_in_sentences(field: str, value: object) -> None:
    document = tiny_document() | {field: value}
    try:
        RunSpec.model_validate(document)
    except ValidationError as error:
        for finding in findings_of(error, document):
            assert finding.message.endswith(".")
            assert "\n" not in finding.message


def test_a_spec_survives_json() -> None:
    spec = tiny_spec(anchoring={"kind": "every_nth_step", "n": 8}, divergence={"kind": "jsd", "beta": 0.3})
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    assert RunSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_every_field_of_the_schema_has_its_sentence() -> None:
    def undocumented(schema: dict[str, Any]) -> list[str]:
        return [
            f"{name}.{field}"
            for name, part in {"RunSpec": schema, **schema["$defs"]}.items()
            for field, value in part.get("properties", {}).items()
            if field != "kind" and not value.get("description")
        ]

    assert undocumented(RunSpec.model_json_schema()) == []


def test_rollouts_per_step_are_prompts_times_rollouts() -> None:
    assert tiny_spec(prompts_per_step=6, rollouts_per_prompt=4).rollouts_per_step == 24


def test_references_lead_below_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_HOME", str(tmp_path))
    assert resolve("home:models/one") == str(tmp_path / "models" / "one")
    assert Path(resolve("builtin:tiny/models/teacher"), "config.json").is_file()
    assert resolve("org/model") == "org/model"


@pytest.mark.parametrize("climb", [lambda: "builtin:../pyproject.toml", lambda: "home:a/../../b", lambda: "home:/etc"])
def test_a_reference_cannot_climb_out_of_its_folder(climb: Callable[[], str]) -> None:
    with pytest.raises(ValueError, match="leads out of its folder"):
        resolve(climb())
