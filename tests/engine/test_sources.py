"""Who writes the completions: whose tokens they are, where they end, which carry loss, and what it costs."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.completion_spec import (
    DataCompletions,
    MixedCompletions,
    StepSource,
    StudentCompletions,
    TeacherCompletions,
    TeacherPrefix,
)
from engine.errors import RunError
from engine.evaluate import EncodedPrompt
from engine.events import StepDone
from engine.findings import findings_of
from engine.language_model import LanguageModel
from engine.prompts import PromptRow
from engine.rollout import Rollout, RolloutRequest, uniforms
from engine.sources import Writers
from engine.spec import RunSpec
from tests.engine.models import WORDS, random_model, tiny_model
from tests.engine.running import quick_document, quick_spec, train_here

STUDENT, TEACHER = random_model(0), random_model(1)  # float64: no rounding can turn a token
SEED, EOS = 3, 2
DEV = "builtin:tiny/data/dev.jsonl"  # the file whose rows bring completions
SHRINKING = {
    "stages": {"kind": "stages", "stages": [{"steps": 3, "tokens": 20}, {"steps": 3, "tokens": 4}]},
    "cosine": {"kind": "cosine", "start_tokens": 20, "end_tokens": 4, "over_steps": 6},
}


def requests(count: int, num_rollouts: int = 1) -> list[RolloutRequest]:
    """Prompts of 1 to 7 random tokens."""
    generator = random.Random(7)
    return [
        RolloutRequest(i, [1, *(generator.randrange(3, WORDS) for _ in range(i % 7))], num_rollouts, 1)
        for i in range(count)
    ]


def writers(*completions: str | None, teacher: LanguageModel = TEACHER) -> Writers:
    prompts = [EncodedPrompt(PromptRow("", None, text), [1]) for text in completions]
    return Writers.of(STUDENT, teacher, prompts, seed=SEED, temperature=1.0)


def logprobs(model: LanguageModel, rollout: Rollout) -> torch.Tensor:
    """[T, V] of a fresh forward pass, for the tokens of the completion."""
    sequence = torch.tensor([rollout.prompt_token_ids + rollout.completion_token_ids])
    with torch.no_grad():
        logits = model.module(input_ids=sequence[:, :-1]).logits[0, len(rollout.prompt_token_ids) - 1 :]
    return torch.log_softmax(logits, -1)


def is_drawn_from(model: LanguageModel, rollout: Rollout, request: RolloutRequest, index: int, at: range) -> bool:
    """Whether the tokens at these positions are what the rollout's own uniforms draw from the model there."""
    noise = uniforms(SEED, request, index, 64)
    rows = logprobs(model, rollout).exp().numpy()
    drawn = [int(np.searchsorted(np.cumsum(rows[t]), noise[t] * rows[t].sum(), side="right")) for t in at]
    return drawn == [rollout.completion_token_ids[t] for t in at]


def test_the_teacher_writes_with_its_own_distribution_and_ends_at_its_own_eos() -> None:
    stops = frozenset({5, 9})  # not the student's
    asked = requests(12, 2)
    groups = writers(teacher=replace(TEACHER, eos_token_ids=stops)).write(TeacherCompletions(), asked, 40)
    assert {rollout.finish_reason for group in groups for rollout in group} == {"eos", "length"}
    for request, group in zip(asked, groups, strict=True):
        for index, rollout in enumerate(group):
            ids = rollout.completion_token_ids
            assert is_drawn_from(TEACHER, rollout, request, index, range(len(ids)))
            expected = logprobs(TEACHER, rollout).gather(1, torch.tensor(ids)[:, None])[:, 0]
            assert rollout.completion_logprobs == pytest.approx(expected.tolist(), abs=1e-5)
            assert (rollout.author, list(rollout.sampled_by_student)) == ("teacher", [])
            assert list(rollout.supervised) == list(range(len(ids)))
            assert not stops & set(ids[:-1])
            assert (ids[-1] in stops) == (rollout.finish_reason == "eos")
            assert len(ids) == 40 or rollout.finish_reason == "eos"


def test_neither_model_writes_a_token_behind_the_shared_vocabulary() -> None:
    small = TEACHER.limited_to(11)
    [group] = writers(teacher=small).write(TeacherCompletions(), [RolloutRequest(0, [1, 4], 50, 1)], 12)
    assert max(max(rollout.completion_token_ids) for rollout in group) == 10


@pytest.mark.parametrize("num_rollouts", [1, 3])
@pytest.mark.parametrize("loss_on", ["student", "all"])
def test_the_student_goes_on_behind_the_teachers_tokens(num_rollouts: int, loss_on: str) -> None:
    source = TeacherPrefix.model_validate({"tokens": 6, "loss_on": loss_on})
    stops = frozenset({5, 9, 20, 33})  # the teacher's alone, so that some texts end before the student begins
    asked = requests(15, num_rollouts)
    groups = writers(teacher=replace(TEACHER, eos_token_ids=stops)).write(source, asked, 16)
    ended_early = 0
    for request, group in zip(asked, groups, strict=True):
        for index, rollout in enumerate(group):
            ids = rollout.completion_token_ids
            begun = min(6, len(ids))
            own = range(begun, len(ids))
            assert is_drawn_from(TEACHER, rollout, request, index, range(begun))
            assert is_drawn_from(STUDENT, rollout, request, index, own)
            authors = [TEACHER] * begun + [STUDENT] * len(own)
            expected = [logprobs(model, rollout)[t, ids[t]] for t, model in enumerate(authors)]
            assert rollout.completion_logprobs == pytest.approx([float(value) for value in expected], abs=1e-5)
            assert rollout.sampled_by_student == own
            assert rollout.author == ("student" if own else "teacher")
            assert list(rollout.supervised) == list(own if loss_on == "student" else range(len(ids)))
            assert (ids[-1] in ({EOS} if own else stops)) == (rollout.finish_reason == "eos")
            ended_early += not own
    assert 0 < ended_early < 15 * num_rollouts


def test_a_horizon_within_the_teachers_part_leaves_the_student_idle() -> None:
    ours = writers()
    [[rollout]] = ours.write(TeacherPrefix(tokens=6), [RolloutRequest(0, [1, 10], 1, 1)], 4)
    assert (len(rollout.completion_token_ids), list(rollout.supervised)) == (4, [])
    assert ours.student.executed_tokens == 0


def test_a_continued_rollout_runs_each_position_once() -> None:
    ours = writers()
    prompt = list(range(3, 23))
    [group] = ours.write(TeacherPrefix(tokens=4), [RolloutRequest(0, prompt, 6, 1)], 9)
    lengths = [len(rollout.completion_token_ids) for rollout in group]
    assert min(lengths) < 4 < max(lengths)
    assert ours.teacher.executed_tokens == 20 + sum(min(length, 4) - 1 for length in lengths)
    assert ours.student.executed_tokens == 20 + sum(length - 1 for length in lengths if length > 4)
    needed = TeacherPrefix(tokens=4).sampling_ledger(STUDENT.shape, TEACHER.shape, 20, lengths)
    # What the teacher wrote is read through a mask, which has attention compute the whole rectangle.
    num_read = sum(length > 4 for length in lengths)
    rectangle = num_read * 2 * STUDENT.shape.attention_width * 4 * (4 - 1)
    assert ours.executed.rollout_prefill == pytest.approx(needed.rollout_prefill + rectangle, rel=1e-12)
    assert ours.executed.rollout_decode == pytest.approx(needed.rollout_decode, rel=1e-12)


@given(st.integers(1, 12))
def test_completions_of_the_file_are_cut_at_the_horizon_and_end_only_where_their_text_ends(horizon: int) -> None:
    text = "m1 1-1 2-3 3+1 ; r16 6 1-1"
    ids = [*STUDENT.tokenizer.convert_tokens_to_ids(text.split()), EOS]
    [[rollout]] = writers(text).write(DataCompletions(), [RolloutRequest(0, [1, 7], 1, 1)], horizon)
    assert rollout.completion_token_ids == ids[:horizon]
    assert rollout.finish_reason == ("eos" if horizon >= 9 else "length")
    assert (rollout.author, list(rollout.sampled_by_student)) == ("data", [])
    assert rollout.completion_logprobs == [0.0] * len(rollout.completion_token_ids)


def test_a_text_that_brings_its_own_end_of_text_token_gets_no_second_one() -> None:
    ending = STUDENT.tokenizer.convert_ids_to_tokens(EOS)
    [[rollout]] = writers(f"m1 ; {ending} r16").write(DataCompletions(), [RolloutRequest(0, [1], 1, 1)], 12)
    assert rollout.completion_token_ids == [*STUDENT.tokenizer.convert_tokens_to_ids(["m1", ";"]), EOS]


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.sampled_from(["teacher", "data"]))
def test_a_mixture_of_share_1_is_the_student_and_of_share_0_never(seed: int, step: int, otherwise: str) -> None:
    def source(share: float) -> StepSource:
        mixed = MixedCompletions.model_validate({"on_policy_share": share, "otherwise": otherwise})
        return mixed.source_at(seed, step)

    assert source(1.0) == StudentCompletions()
    assert source(0.0).kind == otherwise
    assert source(0.5) == source(0.5)


def test_a_mixture_draws_its_steps_independently_of_each_other_and_of_the_rollouts() -> None:
    for seed in (0, 1):
        student = np.array(
            [MixedCompletions(on_policy_share=0.3).source_at(seed, s).kind == "student" for s in range(4000)]
        )
        assert abs(student.mean() - 0.3) < 4 * np.sqrt(0.21 / 4000)
        assert abs(np.corrcoef(student[1:], student[:-1])[0, 1]) < 4 / np.sqrt(4000)
    assert (
        uniforms(0, RolloutRequest(0, [1], 1, 0), 0, 1)[0]
        != np.random.Generator(np.random.Philox(key=[0, 0], counter=[0, 0, 2, 0])).random()
    )


def step_metrics(folder: Path, **changes: object) -> list[StepDone]:
    return [event for event in train_here(quick_spec(**changes), folder) if isinstance(event, StepDone)]


def by_hand(model: LanguageModel, contexts: range, num_projected: int) -> float:
    """2 FLOPs per weight of the blocks and 4 per attention width and context for each position, 2 per weight of the head."""
    shape = model.shape
    blocks = sum(2 * shape.block_parameters + 4 * shape.attention_width * context for context in contexts)
    return blocks + 2 * shape.head_parameters * num_projected


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("completions", "student", "teacher"),
    [
        ({"kind": "student"}, (range(1, 15), 6), (range(0), 0)),
        ({"kind": "teacher"}, (range(0), 0), (range(1, 15), 6)),
        ({"kind": "data"}, (range(0), 0), (range(0), 0)),
        ({"kind": "teacher_prefix", "tokens": 2}, (range(1, 15), 4), (range(1, 11), 2)),
    ],
)
def test_rollout_flops_are_counted_for_who_wrote(
    completions: dict[str, object], student: tuple[range, int], teacher: tuple[range, int], tmp_path: Path
) -> None:
    """4 prompts of 9 tokens, 6 completion tokens each: contexts run from 1, the last token is not run through."""
    step, _ = step_metrics(tmp_path, completions=completions, prompts={"path": DEV}, num_steps=2)
    assert step.metrics["mean_tokens"] == 6
    expected = by_hand(tiny_model("student-plan"), *student) + by_hand(tiny_model("teacher"), *teacher)
    assert step.flops.rollout == pytest.approx(4 * expected, rel=1e-12)
    assert step.flops.teacher > 0 < step.flops.student_backward


@given(st.floats(0, 1), st.integers(1, 30), st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_a_mixture_is_expected_to_cost_its_shares(share: float, prompt: int, lengths: list[int]) -> None:
    shapes = (STUDENT.shape, random_model(1, hidden=32).shape)
    own, others = (
        kind().sampling_ledger(*shapes, prompt, lengths).training for kind in (StudentCompletions, TeacherCompletions)
    )
    mixed = MixedCompletions(on_policy_share=share)
    assert mixed.sampling_ledger(*shapes, prompt, lengths).training == pytest.approx(share * own + (1 - share) * others)


@pytest.mark.usefixtures("home")
def test_a_resumed_mixture_draws_the_same_writers_and_gets_the_same_losses(tmp_path: Path) -> None:
    changes = {"completions": {"kind": "mixture"}, "num_steps": 8, "checkpoints": {"every_steps": 2, "keep_last": 4}}
    whole = step_metrics(tmp_path, **changes)
    checkpoint = tmp_path / "attempts" / "1" / "checkpoints" / "step-2"
    events = train_here(quick_spec(**changes), tmp_path, attempt=2, resume=checkpoint)
    resumed = [event for event in events if isinstance(event, StepDone)]
    assert [(e.step, e.metrics, e.flops) for e in resumed] == [(e.step, e.metrics, e.flops) for e in whole[2:]]
    assert {event.metrics["own_token_share"] for event in resumed} == {0, 1}


@pytest.mark.usefixtures("home")
def test_the_gap_of_logprobs_looks_at_the_students_own_tokens_only(tmp_path: Path) -> None:
    for step in step_metrics(
        tmp_path / "prefix", completions={"kind": "teacher_prefix", "tokens": 2, "loss_on": "all"}
    ):
        gap, share = step.metrics["sampled_logprob_gap"], step.metrics["own_token_share"]
        assert gap is not None
        assert gap < 1e-5
        assert share == pytest.approx(4 / 6)
    for step in step_metrics(tmp_path / "teacher", completions={"kind": "teacher"}):
        assert step.metrics["sampled_logprob_gap"] is None
        assert step.metrics["own_token_share"] == 0
        assert step.metrics["loss"] is not None


@pytest.mark.usefixtures("home")
def test_rows_without_a_completion_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "k0 |", "completion": "m1"}, {"prompt": "k1 |"}, {"prompt": "k2 |", "completion": " "}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = quick_document(prompts={"path": str(path)})
    for completions in ({"kind": "data"}, {"kind": "mixture", "otherwise": "data"}):
        with pytest.raises(RunError) as caught:
            train_here(quick_spec(**document | {"completions": completions}), tmp_path / completions["kind"])
        assert [(finding.field, finding.message) for finding in caught.value.findings] == [
            (
                "prompts.path",
                f"prompts.path: line {line} of '{path}' has no text under 'completion'; "
                "add it, or let a model write the completions.",
            )
            for line in (2, 3)
        ]


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        (
            {"completions": {"kind": "mixture", "on_policy_share": 1.5}},
            "completions.on_policy_share",
            "completions.on_policy_share is 1.5 but must be at most 1.0; lower it.",
        ),
        (
            {"completions": {"kind": "teacher_prefix", "tokens": 6}},
            "completions.tokens",
            "completions.tokens is 6 but a rollout has only 6 tokens where the prefix is shortest, which leaves the student "
            "nothing to write; let the teacher write less or lengthen the prefix.",
        ),
        (
            {"completions": {"kind": "teacher_prefix", "tokens": 8}, "prefix": SHRINKING["stages"]},
            "completions.tokens",
            "completions.tokens is 8 but a rollout has only 4 tokens where the prefix is shortest, which leaves the student "
            "nothing to write; let the teacher write less or lengthen the prefix.",
        ),
        (
            {"completions": {"kind": "teacher_prefix", "tokens": 8}, "prefix": SHRINKING["cosine"]},
            "completions.tokens",
            "completions.tokens is 8 but a rollout has only 4 tokens where the prefix is shortest, which leaves the student "
            "nothing to write; let the teacher write less or lengthen the prefix.",
        ),
        (
            {
                "completions": {"kind": "teacher_prefix", "tokens": 3},
                "prefix": SHRINKING["cosine"],
                "loss_region": {"kind": "window", "start": 1, "end": 3},
            },
            "completions.tokens",
            "completions.tokens is 3 but a rollout has only 3 tokens where the prefix is shortest, which leaves the student "
            "nothing to write; let the teacher write less or lengthen the prefix.",
        ),
        (
            {"completions": {"kind": "data"}, "rollouts_per_prompt": 4},
            "rollouts_per_prompt",
            "rollouts_per_prompt is 4 but each row of the prompt file has one completion; "
            "set it to 1 or let a model write the completions.",
        ),
        (
            {"completions": {"kind": "mixture", "otherwise": "data"}, "rollouts_per_prompt": 4},
            "rollouts_per_prompt",
            "rollouts_per_prompt is 4 but each row of the prompt file has one completion; "
            "set it to 1 or let a model write the completions.",
        ),
    ],
)
def test_sources_that_cannot_write_are_refused(changes: dict[str, object], field: str, sentence: str) -> None:
    document = quick_document(**changes)
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    assert [(f.field, f.message) for f in findings_of(caught.value, document)] == [(field, sentence)]


def test_the_teacher_may_begin_what_the_student_goes_on_with_at_every_step() -> None:
    for prefix in SHRINKING.values():
        assert quick_spec(prefix=prefix, completions={"kind": "teacher_prefix", "tokens": 3})
    assert quick_spec(completions={"kind": "mixture", "otherwise": "teacher"}, rollouts_per_prompt=4)
