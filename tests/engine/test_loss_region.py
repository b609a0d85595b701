"""Where the loss applies: spans, the loss of a window against a formula of its own, and steps that supervise nothing."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.divergences import ReverseKL
from engine.evaluate import _divergence_metrics
from engine.events import Evaluated, StepDone, Warned
from engine.language_model import LanguageModel
from engine.loss_region import LossRegion, SuffixRegion, WholeRegion, WindowRegion
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.scoring import score_rollouts
from engine.student import Student
from tests.engine.models import fresh_random_model, random_model, tiny_document, tiny_spec
from tests.engine.references import reverse_kl
from tests.engine.running import quick_spec, train_here
from tests.engine.test_spec import findings

TEACHER = random_model(1)
regions: st.SearchStrategy[WholeRegion | WindowRegion | SuffixRegion] = st.one_of(
    st.just(WholeRegion()),
    st.tuples(st.integers(0, 60), st.integers(1, 60)).map(lambda w: WindowRegion(start=w[0], end=w[0] + w[1])),
    st.builds(SuffixRegion, tokens=st.integers(1, 100)),
)


def test_the_properties_below_cover_every_region() -> None:
    assert set(get_args(get_args(LossRegion)[0])) == {WholeRegion, WindowRegion, SuffixRegion}


@pytest.mark.parametrize(
    ("region", "sampled", "spans"),
    [
        (WholeRegion(), 40, {1: range(1), 40: range(40)}),
        (WindowRegion(start=8, end=16), 16, {4: range(4, 4), 8: range(8, 8), 12: range(8, 12), 16: range(8, 16)}),
        (WindowRegion(start=0, end=64), 40, {40: range(40)}),
        (SuffixRegion(tokens=10), 40, {4: range(4), 10: range(10), 40: range(30, 40)}),
    ],
    ids=str,
)
def test_sampled_tokens_and_spans_under_a_horizon_of_40(
    region: LossRegion, sampled: int, spans: dict[int, range]
) -> None:
    assert region.sampled_tokens(40) == sampled
    assert {count: region.span(count) for count in spans} == spans


@given(regions, st.integers(1, 128), st.integers(1, 128))
def test_a_region_lies_in_what_is_sampled_and_needs_no_more(region: LossRegion, horizon: int, count: int) -> None:
    sampled = region.sampled_tokens(horizon)
    assert 1 <= sampled <= horizon
    span = region.span(min(count, sampled))
    assert 0 <= span.start <= span.stop <= min(count, sampled)
    # What the horizon allows behind the last sampled token would carry no loss.
    assert len(region.span(sampled)) == len(region.span(horizon))


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        (
            {"loss_region": {"kind": "window", "start": 4, "end": 4}},
            "loss_region.start",
            "loss_region.start is 4 but the window ends at 4; start earlier or raise loss_region.end.",
        ),
        (
            {"loss_region": {"kind": "window", "start": 4, "end": 300}},
            "loss_region.end",
            "loss_region.end is 300 but max_completion_tokens is 224; end the window earlier or raise max_completion_tokens.",
        ),
        (
            {"loss_region": {"kind": "window", "start": 8, "end": 16}},
            "loss_region.start",
            "loss_region.start is 8 but the prefix has only 8 tokens at its shortest, so the window would be empty; "
            "start the window earlier or lengthen the prefix.",
        ),
        (
            {"loss_region": {"kind": "suffix", "tokens": 300}},
            "loss_region.tokens",
            "loss_region.tokens is 300 but max_completion_tokens is 224; shorten the suffix or raise max_completion_tokens.",
        ),
    ],
)
def test_a_region_that_does_not_fit_is_one_sentence_at_its_field(
    change: dict[str, object], field: str, sentence: str
) -> None:
    assert [(finding.field, finding.message) for finding in findings(tiny_document(**change))] == [(field, sentence)]


def test_sampling_stops_at_the_end_of_a_window_and_anchored_steps_are_trained_whole() -> None:
    spec = tiny_spec(
        prefix={"kind": "full"},
        loss_region={"kind": "window", "start": 4, "end": 12},
        anchoring={"kind": "every_nth_step", "n": 3},
    )
    assert [spec.horizon_at(step, spec.prefix_state()) for step in range(4)] == [12, 12, 224, 12]
    assert [spec.regions_at(step)[0].span(224) for step in range(4)] == [range(4, 12)] * 2 + [range(224), range(4, 12)]


def sampled(model: LanguageModel, horizon: int = 24) -> list[Rollout]:
    requests = [RolloutRequest(i, [1, *range(3, 3 + i % 5)], 1, 1) for i in range(8)]
    return Sampler(model, 3, 1.0).sample(requests, horizon)


def supervised(rollouts: list[Rollout], region: LossRegion) -> list[Rollout]:
    spans = [region.span(len(rollout.completion_token_ids)) for rollout in rollouts]
    return [
        replace(rollout, supervised_start=span.start, supervised_end=span.stop)
        for rollout, span in zip(rollouts, spans, strict=True)
    ]


def student(micro_batch: int = 8) -> Student:
    return Student(fresh_random_model(0), tiny_spec(micro_batch_rollouts=micro_batch))


@pytest.mark.parametrize("region", [WholeRegion(), WindowRegion(start=5, end=15), SuffixRegion(tokens=6)], ids=str)
def test_the_loss_is_the_mean_reverse_kl_over_the_region_in_float64(region: LossRegion) -> None:
    rollouts = supervised(sampled(random_model(0)), region)
    totals: dict[int, list[float]] = {}
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_token_ids + rollout.completion_token_ids])
        with torch.no_grad():
            s, t = (model.module(input_ids=ids).logits[0].numpy() for model in (random_model(0), TEACHER))
        scored = slice(len(rollout.prompt_token_ids) - 1, -1)
        values = reverse_kl(ReverseKL(), s[scored], t[scored], np.array(rollout.completion_token_ids))
        assert len(values) == len(rollout.completion_token_ids)
        for at in range(len(values)):
            first, last = {
                "whole": (0, 24), "window": (5, 15), "suffix": (len(values) - 6, len(values)),
            }[region.kind]  # fmt: skip
            if first <= at < last:
                totals.setdefault(at, []).append(float(values[at]))
    done = student().update(rollouts, TEACHER, 0)
    everything = [value for position in totals.values() for value in position]
    assert done.loss == pytest.approx(np.mean(everything), rel=1e-9)
    assert done.num_tokens == len(everything) == sum(done.position_count)
    for at, count in enumerate(done.position_count):
        assert count == len(totals.get(at, []))
        assert done.position_loss[at] == pytest.approx(np.mean(totals[at]) if at in totals else 0.0, rel=1e-9)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_a_windows_gradient_does_not_depend_on_micro_batches_or_on_rollouts_without_loss(micro_batch: int) -> None:
    rollouts = supervised(sampled(random_model(0)), WindowRegion(start=3, end=9))
    silent = [replace(rollout, supervised_start=9, supervised_end=9) for rollout in sampled(random_model(2))]
    plain, mixed = student(), student(micro_batch)
    expected = plain.update(rollouts, TEACHER, 0)
    found = mixed.update([*silent, *rollouts], TEACHER, 0)
    assert (found.loss, found.grad_norm) == pytest.approx((expected.loss, expected.grad_norm), rel=1e-9)
    # Neither model has read a rollout without loss.
    assert found.flops.training == pytest.approx(expected.flops.training)
    assert found.position_count == expected.position_count
    for one, other in zip(plain.parameter_names, mixed.parameter_names, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_a_batch_that_supervises_nothing_changes_no_weight_and_has_no_loss() -> None:
    trainee = student()
    trainee.update(sampled(random_model(0)), TEACHER, 0)  # Adam has momentum now, which would move the weights
    before = [p.detach().clone() for p in trainee.parameter_names]
    done = trainee.update(supervised(sampled(random_model(0)), WindowRegion(start=24, end=30)), TEACHER, 1)
    assert all(torch.equal(p, b) for p, b in zip(trainee.parameter_names, before, strict=True))
    assert (done.loss, done.grad_norm, done.student_entropy, done.num_tokens) == (None, None, None, 0)
    assert (done.position_loss, done.position_count, done.flops.training) == ([], [], 0)


@pytest.mark.usefixtures("home")
def test_a_run_counts_the_steps_that_supervise_nothing_and_warns_once(tmp_path: Path) -> None:
    spec = quick_spec(
        max_completion_tokens=224,
        prefix={"kind": "full"},
        loss_region={"kind": "window", "start": 222, "end": 224},
        num_steps=2,
        prompts_per_step=2,
    )
    events = train_here(spec, tmp_path / "run")
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(event.step, event.metrics["loss"], event.position_loss) for event in steps] == [
        (1, None, []),
        (2, None, []),
    ]
    assert steps[-1].metrics["rollout_tokens"] > 2 * 150
    warned = [event for event in events if isinstance(event, Warned)]
    assert [event.code for event in warned] == ["nothing_supervised"]
    assert warned[0].message.startswith("Step 1 changed nothing: every completion of at most 224 tokens ended before")
    before, after = (event for event in events if isinstance(event, Evaluated) and event.subject != "teacher")
    assert before.metrics == after.metrics


@pytest.mark.usefixtures("home")
def test_a_window_run_samples_to_its_end_and_evaluates_at_full_length(tmp_path: Path) -> None:
    spec = quick_spec(loss_region={"kind": "window", "start": 2, "end": 4}, num_steps=2)
    events = train_here(spec, tmp_path / "run")
    for event in events:
        if isinstance(event, StepDone):
            assert (event.horizon, event.position_count) == (4, [0, 0, 4, 4])
            assert event.position_loss[:2] == [0, 0]
            assert event.metrics["rollout_tokens"] == 16
            assert event.metrics["supervised_tokens"] == 8
        if isinstance(event, Evaluated):
            assert event.horizon == 4
            assert event.metrics["mean_tokens"] == 24


@pytest.mark.parametrize("region", [WholeRegion(), WindowRegion(start=2, end=6), SuffixRegion(tokens=3)], ids=str)
def test_inside_before_and_beyond_are_what_training_would_make_of_a_full_length_sample(region: LossRegion) -> None:
    model, horizon = random_model(0), region.sampled_tokens(8)
    columns = score_rollouts(model, TEACHER, sampled(model), temperature=1.0, top_k=1, micro_batch=8)
    found = _divergence_metrics(columns, horizon, region)
    parts: dict[str, list[float]] = {"inside": [], "before": [], "beyond": []}
    for column in columns:
        values = column.reverse_kl.tolist()
        cut = values[:horizon]
        first = {"whole": 0, "window": 2, "suffix": max(len(cut) - 3, 0)}[region.kind]
        parts["before"] += cut[:first]
        parts["inside"] += cut[first:]
        parts["beyond"] += values[horizon:]
    for name, expected in parts.items():
        assert found[f"reverse_kl_{name}"] == pytest.approx(np.mean(expected) if expected else None)
    assert found["share_inside"] == pytest.approx(sum(parts["inside"]) / sum(sum(part) for part in parts.values()))
