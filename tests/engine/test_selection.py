"""Prefix-probe selection: the choice, against a reference by brute force; the continuation, against an unpruned run."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.completion_spec import StudentCompletions
from engine.events import StepDone
from engine.findings import findings_of
from engine.flops import FlopLedger
from engine.language_model import LanguageModel
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.selection import Candidates, probed_candidates
from engine.selection_spec import AllRollouts, ProbeSelection
from engine.spec import RunSpec
from engine.student import Student
from tests.engine.models import WORDS, fresh_random_model, random_model, tiny_model
from tests.engine.running import quick_document, quick_spec, train_here

STUDENT, TEACHER = random_model(0), random_model(1)  # float64: no rounding can turn a token or a score


def requests(count: int, num_rollouts: int, *, prompt_tokens: int | None = None) -> list[RolloutRequest]:
    """Prompts of 1 to 7 random tokens, or all of one length."""
    generator = random.Random(5)
    lengths = [prompt_tokens or 1 + i % 7 for i in range(count)]
    return [
        RolloutRequest(i, [generator.randrange(3, WORDS) for _ in range(length)], num_rollouts, 1)
        for i, length in enumerate(lengths)
    ]


def chosen(selection: ProbeSelection, asked: list[RolloutRequest], horizon: int) -> tuple[Candidates, Sampler]:
    sampler = Sampler(STUDENT, 3, 1.0)
    return probed_candidates(selection, sampler, TEACHER, asked, horizon, micro_batch=5), sampler


def whole_groups(asked: list[RolloutRequest], horizon: int) -> list[list[Rollout]]:
    """The same rollouts without a selection."""
    rollouts = iter(Sampler(STUDENT, 3, 1.0).sample(asked, horizon))
    return [[next(rollouts) for _ in range(request.num_rollouts)] for request in asked]


def overlap_by_hand(rollout: Rollout, num_tokens: int, top_k: int) -> float:
    """Mean over the first tokens of |top k of the student ∩ top k of the teacher| / k, from fresh forward passes."""
    completion = rollout.completion_token_ids[:num_tokens]
    sequence = torch.tensor([rollout.prompt_token_ids + completion])

    def top(model: LanguageModel) -> np.ndarray:
        with torch.no_grad():
            logits = model.module(input_ids=sequence[:, :-1]).logits[0, len(rollout.prompt_token_ids) - 1 :]
        return np.argsort(-logits.numpy(), axis=-1)[:, :top_k]

    pairs = zip(top(STUDENT), top(TEACHER), strict=True)
    return sum(len(set(mine) & set(theirs)) for mine, theirs in pairs) / (top_k * len(completion))


def kept_by_hand(scores: np.ndarray, drop_share: float) -> np.ndarray:
    """The paper's choice, written from its words: the best of each prompt, then the best of what is left."""
    kept = np.zeros(scores.shape, dtype=bool)
    kept[np.arange(len(scores)), scores.argmax(1)] = True
    places = max(len(scores), scores.size - round(drop_share * scores.size))
    while kept.sum() < places:
        rest = np.where(kept, -np.inf, scores)
        kept[np.unravel_index(rest.argmax(), scores.shape)] = True
    return kept


@given(st.data(), st.integers(1, 6), st.integers(2, 5))
def test_the_best_of_each_prompt_and_then_the_best_of_all_are_kept(data: st.DataObject, prompts: int, n: int) -> None:
    shares = st.integers(0, 8).map(lambda i: i / 8)  # ties are common: overlaps are multiples of 1/(k·P)
    scores = np.array(data.draw(st.lists(st.lists(shares, min_size=n, max_size=n), min_size=prompts, max_size=prompts)))
    drop_share = data.draw(st.floats(0, 1 - 1 / n))
    selection = ProbeSelection(drop_share=drop_share)
    kept = np.array(selection.kept(scores.tolist()))
    assert np.array_equal(kept, kept_by_hand(scores, drop_share))
    assert kept.sum() == selection.num_trained(prompts, n)
    assert kept.any(1).all()


def test_scores_are_overlaps_of_the_top_k_and_the_metrics_their_means() -> None:
    selection = ProbeSelection(probe_tokens=5, top_k=9, drop_share=0.5)
    asked = requests(7, 4)
    found, _ = chosen(selection, asked, 12)
    scores = np.array([[overlap_by_hand(r, 5, 9) for r in group] for group in whole_groups(asked, 12)])
    kept = kept_by_hand(scores, 0.5)
    assert np.array_equal(np.array(found.kept), kept)
    assert found.metrics == pytest.approx(
        {
            "probe_overlap_kept": scores[kept].mean(),
            "probe_overlap_dropped": scores[~kept].mean(),
            "kept_share": 0.5,
        }
    )
    assert scores[kept].mean() > scores[~kept].mean()


@pytest.mark.parametrize("horizon", [5, 24])
def test_kept_rollouts_are_those_of_an_unpruned_run_and_dropped_ones_their_beginnings(horizon: int) -> None:
    asked = requests(30, 6)  # more than one decode batch
    found, _ = chosen(ProbeSelection(probe_tokens=5, drop_share=0.6), asked, horizon)
    ended_in_the_probe = 0
    for group, whole, flags in zip(found.groups, whole_groups(asked, horizon), found.kept, strict=True):
        for mine, theirs, is_kept in zip(group, whole, flags, strict=True):
            end = None if is_kept else 5
            assert mine.completion_token_ids == theirs.completion_token_ids[:end]
            assert mine.completion_logprobs == pytest.approx(theirs.completion_logprobs[:end], abs=1e-5)
            if is_kept:
                assert mine.finish_reason == theirs.finish_reason
            ended_in_the_probe += len(theirs.completion_token_ids) < 5
    assert ended_in_the_probe > 0
    assert sum(map(len, found.kept_groups)) == 72


def test_no_token_is_run_twice() -> None:
    asked = requests(6, 5, prompt_tokens=20)
    found, sampler = chosen(ProbeSelection(probe_tokens=7, drop_share=0.5), asked, 30)
    lengths = [len(rollout.completion_token_ids) for group in found.groups for rollout in group]
    assert max(lengths) == 30
    assert lengths.count(7) >= 10
    # Each prompt once, and of each rollout all tokens but its last: what sampling these tokens in one go costs.
    assert sampler.executed_tokens == 6 * 20 + sum(length - 1 for length in lengths)


def test_a_probe_of_the_whole_horizon_leaves_nothing_to_continue() -> None:
    asked = requests(4, 3)
    found, _ = chosen(ProbeSelection(probe_tokens=6, drop_share=0.5), asked, 6)
    whole = whole_groups(asked, 6)
    assert [[r.completion_token_ids for r in g] for g in found.groups] == [
        [r.completion_token_ids for r in g] for g in whole
    ]


def step_events(folder: Path, **changes: object) -> list[StepDone]:
    return [event for event in train_here(quick_spec(**changes), folder) if isinstance(event, StepDone)]


PROBE = {
    "selection": {"kind": "probe", "probe_tokens": 2, "top_k": 4, "drop_share": 0.5},
    "rollouts_per_prompt": 4,
    "num_steps": 2,
}


@pytest.mark.usefixtures("home")
def test_flops_of_dropped_rollouts_and_of_scoring_are_counted(tmp_path: Path) -> None:
    """4 prompts of 9 tokens, 16 candidates of 2 tokens, 8 of them continued to 6."""
    step, _ = step_events(tmp_path, **PROBE)
    student, teacher = tiny_model("student-plan").shape, tiny_model("teacher").shape
    weights = 2 * (student.block_parameters + student.head_parameters)
    second = weights + 4 * student.attention_width * 10
    others = sum(weights + 4 * student.attention_width * context for context in (11, 12, 13, 14))
    assert step.flops.rollout == pytest.approx(4 * student.forward(9, 1) + 16 * second + 8 * others, rel=1e-12)
    assert step.flops.teacher == pytest.approx(16 * teacher.forward(11, 2) + 8 * teacher.forward(15, 6), rel=1e-12)
    assert step.flops.student_forward == pytest.approx(8 * student.forward(15, 6), rel=1e-12)
    assert step.position_count == [8] * 6
    assert step.metrics["kept_share"] == 0.5
    expected = ProbeSelection(probe_tokens=2).expected_ledger(StudentCompletions(), (student, teacher), 9, [6] * 4)
    assert 4 * expected.rollout == pytest.approx(step.flops.rollout, rel=1e-12)
    assert 4 * expected.teacher == pytest.approx(16 * teacher.forward(11, 2), rel=1e-12)


def test_dropped_rollouts_have_neither_loss_nor_gradient() -> None:
    """An update on what was selected leaves the weights that an update on the kept rollouts of an unpruned run leaves."""
    spec = quick_spec(micro_batch_rollouts=3)
    asked = requests(4, 4)
    found, _ = chosen(ProbeSelection(probe_tokens=3, top_k=8, drop_share=0.5), asked, 8)
    pairs = zip(whole_groups(asked, 8), found.kept, strict=True)
    unpruned = [rollout for group, flags in pairs for rollout, is_kept in zip(group, flags, strict=True) if is_kept]
    updates, weights = [], []
    for rollouts in ([r for group in found.kept_groups for r in group], unpruned):
        student = Student(fresh_random_model(0), spec)
        updates.append(student.update(rollouts, TEACHER, 0))
        weights.append(student.model.module.get_input_embeddings().weight.detach())
    assert updates[0].loss == pytest.approx(updates[1].loss, abs=1e-9)
    assert updates[0].num_tokens == sum(len(rollout.completion_token_ids) for rollout in unpruned)
    assert torch.allclose(*weights, atol=1e-9)


@pytest.mark.usefixtures("home")
def test_without_a_selection_all_are_trained_and_nothing_is_told(tmp_path: Path) -> None:
    for step in step_events(tmp_path, rollouts_per_prompt=2, num_steps=2):
        assert step.position_count == [8] * 6
        assert not {"probe_overlap_kept", "kept_share"} & step.metrics.keys()
    assert AllRollouts().num_trained(4, 2) == 8
    assert Candidates.all_kept([]).flops == FlopLedger()


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        (
            {"selection": {"kind": "probe", "probe_tokens": 7}, "rollouts_per_prompt": 2},
            "selection.probe_tokens",
            "selection.probe_tokens is 7 but a rollout has only 6 tokens where the prefix is shortest; shorten the probe or "
            "lengthen the prefix.",
        ),
        (
            {
                "selection": {"kind": "probe", "probe_tokens": 7},
                "rollouts_per_prompt": 2,
                "prefix": {"kind": "cosine", "start_tokens": 20, "end_tokens": 4, "over_steps": 6},
            },
            "selection.probe_tokens",
            "selection.probe_tokens is 7 but a rollout has only 4 tokens where the prefix is shortest; shorten the probe or "
            "lengthen the prefix.",
        ),
        (
            {"selection": {"kind": "probe", "probe_tokens": 2}},
            "rollouts_per_prompt",
            "rollouts_per_prompt is 1 but a probe keeps at least one rollout of each prompt, so it needs 2 or more to choose "
            "from; raise it or set selection to all.",
        ),
        (
            {"selection": {"kind": "probe", "probe_tokens": 2, "drop_share": 0.75}, "rollouts_per_prompt": 3},
            "selection.drop_share",
            "selection.drop_share is 0.75 but at most 0.667 of 3 rollouts per prompt can be dropped, as one is kept for each; "
            "lower it or raise rollouts_per_prompt.",
        ),
        (
            {
                "selection": {"kind": "probe", "probe_tokens": 2},
                "completions": {"kind": "teacher"},
                "rollouts_per_prompt": 2,
            },
            "selection",
            "selection is a probe of what the student writes but completions.kind is 'teacher'; set completions to student "
            "or selection to all.",
        ),
    ],
)
def test_a_probe_that_cannot_choose_is_refused(changes: dict[str, object], field: str, sentence: str) -> None:
    document = quick_document(**changes)
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    assert [(f.field, f.message) for f in findings_of(caught.value, document)] == [(field, sentence)]
