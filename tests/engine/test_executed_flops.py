"""What the engine itself runs, counted by torch, is what the ledger calls executed: padding, ended rows and attention squares.

Attention is written out here, since torch's counter has no formula for the fused kernels of a CPU. It then computes the
whole square, where the engine's kernels are told of causality; the difference is added by hand.
"""

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from engine.batch import micro_batches
from engine.flops import FlopLedger, ModelShape
from engine.language_model import LanguageModel
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.scoring import executed_scoring_flops, score_rollouts
from engine.student import Student
from tests.engine.models import fresh_random_model, tiny_spec

PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11, 12], [1, 20], [1, 9, 9, 9, 30]]


def written_out(seed: int, hidden: int = 16) -> LanguageModel:
    many_ends = frozenset(range(2, 8))
    model = replace(fresh_random_model(seed, hidden=hidden), is_llama_shaped=False, eos_token_ids=many_ends)
    model.module.float()  # written out, transformers' mask of a row that is all padding is not finite in float64
    model.module.set_attn_implementation("eager")
    return model


def above_causal(shape: ModelShape, n: int) -> float:
    return 2.0 * shape.attention_width * n * (n - 1)


def ragged_rollouts(model: LanguageModel) -> list[Rollout]:
    requests = [RolloutRequest(i, ids, 2, 1) for i, ids in enumerate(PROMPTS)]
    rollouts = Sampler(model, 3, 1.0).sample(requests, 30)
    lengths = {len(rollout.completion_token_ids) for rollout in rollouts}
    assert len(lengths) > 2, "some rollouts must end before others"
    return [replace(rollout, supervised_start=1) for rollout in rollouts]


@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[0]] * 3], ids=["ragged", "equal"])
def test_the_sampler(prompts: list[list[int]]) -> None:
    model = written_out(0)
    sampler = Sampler(model, 3, 1.0)
    with FlopCounterMode(display=False) as counter:
        sampler.sample([RolloutRequest(i, ids, 2, 1) for i, ids in enumerate(prompts)], 40)
    is_masked = prompts is PROMPTS
    square = 0 if is_masked else len(prompts) * above_causal(model.shape, len(prompts[0]))
    assert counter.get_total_flops() == sampler.executed.rollout + square


def test_reading_what_another_has_begun() -> None:
    teacher, model = written_out(1, hidden=32), written_out(0)
    requests = [RolloutRequest(i, ids, 2, 1) for i, ids in enumerate(PROMPTS)]
    begun = Sampler(teacher, 3, 1.0).sample(requests, 4)
    sampler = Sampler(model, 3, 1.0)
    with FlopCounterMode(display=False) as counter:
        sampler.sample([replace(r, begun=tuple(begun[2 * i : 2 * i + 2])) for i, r in enumerate(requests)], 12)
    assert counter.get_total_flops() == sampler.executed.rollout
    assert sampler.executed.rollout_decode > 0


def test_a_probe_and_its_continuation() -> None:
    model = written_out(0)
    sampler = Sampler(model, 3, 1.0)
    with FlopCounterMode(display=False) as counter:
        probe = sampler.probe(
            [RolloutRequest(i, ids, 2, 1) for i, ids in enumerate(PROMPTS)], 12, num_tokens=5, top_k=4
        )
        probe.finish([[True, False]] * len(PROMPTS))
    assert counter.get_total_flops() == sampler.executed.rollout


@pytest.mark.parametrize("choice", ["never", "always"])
@pytest.mark.parametrize("micro_batch", [8, 3])
def test_an_update(micro_batch: int, choice: str) -> None:
    model, teacher = written_out(0), written_out(1, hidden=32)
    teacher.module.requires_grad_(False)
    rollouts = ragged_rollouts(model)
    student = Student(model, tiny_spec(micro_batch_rollouts=micro_batch, gradient_checkpointing=choice))
    with FlopCounterMode(display=False) as counter:
        done = student.update(rollouts, teacher, 0)
    passes = 3 + (choice == "always")
    groups = [
        [len(r.prompt_token_ids) + len(r.completion_token_ids) for r in group]
        for group in micro_batches(rollouts, micro_batch, model.device)
    ]
    square = sum(
        len(group) * (above_causal(teacher.shape, group[-1]) + passes * above_causal(model.shape, group[-1]))
        for group in groups
    )
    assert counter.get_total_flops() == done.executed.training + square
    assert done.executed.training > 1.02 * done.flops.training
    assert (done.executed.recompute > 0) == (choice == "always")


def test_scoring_for_an_evaluation() -> None:
    model, teacher = written_out(0), written_out(1, hidden=32)
    rollouts = ragged_rollouts(model)
    with FlopCounterMode(display=False) as counter:
        score_rollouts(model, teacher, rollouts, temperature=1.0, top_k=4, micro_batch=8)
    width = max(len(r.prompt_token_ids) + len(r.completion_token_ids) for r in rollouts)
    square = 8 * sum(above_causal(one.shape, width) for one in (model, teacher))
    assert counter.get_total_flops() == executed_scoring_flops(model, teacher, rollouts, 8) + square


def test_a_head_that_is_limited_to_the_shared_vocabulary_costs_less() -> None:
    model = written_out(0)
    limited = model.limited_to(70)
    sampler = Sampler(limited, 3, 1.0)
    with FlopCounterMode(display=False) as counter:
        sampler.sample([RolloutRequest(0, PROMPTS[0], 1, 1)], 1)
    assert limited.shape.head_parameters == 70 * 16
    assert counter.get_total_flops() == sampler.executed.rollout + above_causal(model.shape, 3)
    assert sampler.executed.as_evaluation() == FlopLedger(evaluation=sampler.executed.rollout)
