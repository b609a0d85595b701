"""An objective that does not fit the opened models is refused at its field, in preflight and at the start of a run."""

import dataclasses

import pytest

from engine.check import check
from engine.errors import RunError
from engine.objective_check import check_objective
from engine.setup import load_models
from tests.engine.models import CPU, tiny_document, tiny_model, tiny_spec


@pytest.mark.parametrize("kind", ["top_k_kl", "teacher_order"])
def test_more_top_tokens_than_the_vocabulary_has_are_refused_with_the_limit(kind: str) -> None:
    spec = tiny_spec(divergence={"kind": kind, "k": 82})
    sentence = "divergence.k is 82 but student and teacher share a vocabulary of 81 tokens; lower it to at most 81."
    assert [(found.field, found.message) for found in check(spec).findings] == [("divergence.k", sentence)]
    with pytest.raises(RunError) as caught:
        load_models(spec, CPU, "float32")
    assert (caught.value.failure, caught.value.message) == ("bad_spec", sentence)
    assert check(tiny_spec(divergence={"kind": kind, "k": 81})).findings == []


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("selection.top_k", {"selection": {"kind": "probe", "probe_tokens": 4, "top_k": 82}, "rollouts_per_prompt": 2}),
        ("evaluation.answer_sampling.top_k", {"samples_per_prompt": 2, "answer_sampling": {"top_k": 82}}),
    ],
)
def test_other_choices_of_top_tokens_are_held_to_the_vocabulary_too(field: str, changes: dict[str, object]) -> None:
    document = tiny_document()
    if field.startswith("evaluation."):
        changes = {"evaluation": document["evaluation"] | changes}
    (found,) = check(tiny_spec(**changes)).findings
    assert found.field == field
    assert found.message == (
        f"{field} is 82 but student and teacher share a vocabulary of 81 tokens; lower it to at most 81."
    )


def test_merged_stop_tokens_leave_fewer_outcomes() -> None:
    spec = tiny_spec(divergence={"kind": "top_k_kl", "k": 81}, merge_stop_tokens=True)
    student = dataclasses.replace(tiny_model(), eos_token_ids=frozenset({2, 5}))
    teacher = dataclasses.replace(tiny_model("teacher", "teacher"), eos_token_ids=frozenset({7}))
    with pytest.raises(RunError) as caught:
        check_objective(spec, student, teacher)
    assert caught.value.message == (
        "divergence.k is 81 but student and teacher share a vocabulary of 81 tokens, 2 less with their stop tokens merged; "
        "lower it to at most 79."
    )
